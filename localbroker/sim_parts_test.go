package localbroker

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/buffer/simulated"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// The wills, the groups, the bridge and the gateway itself in TestSimulation.

// simWill is a will and what has become of it. The watcher gets it when it is
// published.
type simWill struct {
	w     *simWorld
	c     *simClient
	p     *simPublish
	delay time.Duration

	armed   bool      // its client was let in with it
	ended   bool      // the connection has, without a goodbye
	at      time.Time // then
	soon    time.Time // it is not published before
	due     time.Time // but then
	watched bool      // the watcher gets it
	may     bool      // nobody knows whether it is published
	back    int       // the life in which it was taken back
	never   bool      // it must not be published any more
	came    bool
}

// newWill gives a client a will in its CONNECT, or not.
func (w *simWorld) newWill(c *simClient, p *packet.Connect) *simWill {
	if c == w.watcher || w.one(3) {
		return nil
	}
	m := w.newPublish(c, "w/"+c.id, c.version)
	m.expiry = 0
	m.payload = fmt.Appendf(nil, "%d will", m.n)
	will := &simWill{w: w, c: c, p: m}
	m.will = will
	p.Will = &packet.Will{Topic: m.topic, Payload: m.payload, QoS: m.qos, Retain: m.retain, Props: m.props}
	if c.version == packet.V5 && w.one(2) {
		will.delay = time.Duration(1+w.dice.IntN(8)) * time.Second
		p.Will.Props = packet.Properties{}.AppendUint(packet.WillDelay, uint32(will.delay/time.Second))
		p.Will.Props = append(p.Will.Props, m.props...)
	}
	w.sent(m)
	w.wills = append(w.wills, will)
	return will
}

// lost is the end of the connection. If it is parting, the client has said goodbye,
// but nobody knows who has heard.
func (l *simWill) lost(parting bool) {
	w, s := l.w, l.c.session
	l.ended, l.at = true, l.c.link.ended()
	l.may = parting || !l.armed
	l.soon, l.due = l.at, l.at
	if s != nil && s.kept {
		l.soon, l.due = l.at.Add(min(l.delay, s.least)), l.at.Add(min(l.delay, s.most))
	}
	if ws := w.watcher.session; ws != nil {
		l.watched = slices.ContainsFunc(ws.grants, func(g *simGrant) bool { return g.filter == "w/#" && g.must > 0 && g.since.Before(l.at) })
	}
	w.note("the will %v is due in %v, may %t", l.p, time.Until(l.due), l.may)
}

// takeBack notes that the broker has heard the goodbye. If it was stored the will is gone
// for good.
func (l *simWill) takeBack(stored bool) {
	l.at, l.back, l.never = time.Now(), l.w.lifeNo, stored
	l.w.note("the will %v is taken back", l.p)
}

// open reports whether the will may still be published.
func (l *simWill) open() bool { return l.ended && !l.came && !l.never }

// back notes that a client was let in, which has to do with its earlier wills.
func (w *simWorld) back(c *simClient, present bool) {
	for _, l := range w.wills {
		if l.c != c || !l.open() {
			continue
		}
		switch {
		case !present:
			l.soon, l.due = time.Now(), time.Now() // the session has ended
		case time.Now().Add(2 * time.Second).Before(l.soon): // [MQTT-3.1.3-9]; it takes a second to part
			l.never = !l.may
		case c.attempt.at.Before(l.due.Add(2 * time.Second)):
			l.may = true
		}
	}
}

// maybeBack notes that a client may have been let in and was not told: its earlier wills
// may be gone with that.
func (w *simWorld) maybeBack(c *simClient) {
	for _, l := range w.wills {
		if l.c == c && l.open() && c.attempt.at.Before(l.due) {
			l.may = true
		}
	}
}

// restartWills begins the delays of clients that were connected anew.
func (w *simWorld) restartWills() {
	for _, l := range w.wills {
		if l.open() && since(w.rough, l.due) {
			l.may = true // it was due when the disk failed and the process ended
		}
		if l.open() && l.due.After(l.at) {
			l.due = time.Now().Add(l.due.Sub(l.at))
		}
		if l.back > 0 && !l.never {
			l.may = true // the process may have died before it was told
		}
	}
}

// come notes that the watcher has got it.
func (l *simWill) come() {
	w := l.w
	w.counts[simWills]++
	switch {
	case l.never, l.back == w.lifeNo:
		w.fail("the will %v is published, and was not to be", l.p)
	case l.ended && time.Now().Add(2*time.Second).Before(l.soon) && !l.c.unsure(): // it takes a second to part
		w.fail("the will %v is published %v too early", l.p, time.Until(l.soon))
	}
	l.came = true
}

// unsure reports whether the broker may know something of the client that the model
// does not.
func (c *simClient) unsure() bool {
	return c.unclean || c.link != nil && (!c.connected || c.link.over()) || c.w.machine.Off()
}

// checkWills is for when nothing is under way.
func (w *simWorld) checkWills() {
	for _, l := range w.wills {
		if l.back == w.lifeNo && !l.may {
			l.never = true
		}
		if l.came && l.c.attempt.will == l && l.c.connected {
			w.fail("the will %v is published, and its client is there", l.p)
		}
		sure := l.armed && !l.may && l.watched && l.p.qos > 0 && w.watcher.connected && w.watcher.session.lossless()
		if l.open() && sure && time.Since(l.due) > 3*time.Second {
			w.fail("the will %v was due %v ago, and has not come", l.p, time.Since(l.due))
		}
	}
}

// simGroup is a shared subscription.
type simGroup struct {
	owed map[int]*simPublish
}

func (w *simWorld) group(filter string) *simGroup {
	if w.groups[filter] == nil {
		w.groups[filter] = &simGroup{owed: make(map[int]*simPublish)}
	}
	return w.groups[filter]
}

// share notes that a member of a shared subscription is to get a message, if all who
// may be members have sessions that are kept.
func (w *simWorld) share(p *simPublish) {
	if p.qos == 0 || len(p.payload) == 0 || p.shared {
		return
	}
	members := make(map[string]int)
	for _, g := range w.shares {
		switch {
		case !g.matches(p.topic) || g.mayEnd > 0 && g.mayEnd < p.first:
		case g.mayEnd > 0 || !g.session.kept || g.session.doubt || g.qos == 0:
			members[g.filter] = -1000
		case g.must > 0 && g.must <= p.first && g.mustEnd == 0:
			members[g.filter]++
		}
	}
	for filter, n := range members {
		if n > 0 {
			w.group(filter).owed[p.n] = p
		}
	}
}

// unshare notes that somebody has got it.
func (w *simWorld) unshare(p *simPublish) {
	for _, g := range w.groups {
		delete(g.owed, p.n)
	}
}

// endShares lets go of what a session has taken with it: what was sent to it with QoS
// 2 goes to nobody else.
func (w *simWorld) endShares(s *simSession) {
	for _, g := range s.grants {
		if g.share == "" {
			continue
		}
		others := slices.ContainsFunc(w.shares, func(o *simGrant) bool {
			return o.filter == g.filter && o.session != s && o.must > 0 && o.mustEnd == 0
		})
		for n, p := range w.group(g.filter).owed {
			if p.qos == 2 || !others {
				delete(w.groups[g.filter].owed, n)
			}
		}
	}
}

// simBridge is a destination of other classes that takes what comes and sometimes
// all of it again.
type simBridge struct {
	w        *simWorld
	outboxes [2]*buffer.Outbox
	reader   *buffer.Reader
	open     []buffer.Delivery // handed out, not settled
	space    [16]buffer.Delivery
	owed     map[int]*simPublish
	got      map[int]string // which copy has brought it
	is       map[string]int // and what a copy is
	last     map[string]int
}

func (b *simBridge) begin(w *simWorld) {
	b.w, b.owed, b.got, b.is, b.last = w, make(map[int]*simPublish), make(map[int]string), make(map[string]int), make(map[string]int)
}

// simRouter routes to the bridge.
type simRouter map[buffer.Class]*buffer.Outbox

func (r simRouter) Route(m *Message, dst []buffer.Copy) (buffer.Class, []buffer.Copy) {
	class, ok := simClass(m.Topic)
	if !ok {
		return class, dst
	}
	return class, append(dst, buffer.Copy{Outbox: r[class], QoS: m.QoS, Retain: m.Retain})
}

func (b *simBridge) start(buf *buffer.Buffer) (Router, error) {
	router := make(simRouter)
	for i, class := range []buffer.Class{buffer.Alert, buffer.Telemetry} {
		o, err := buf.Outbox("bridge", class)
		if err != nil {
			return nil, err
		}
		b.outboxes[i], router[class] = o, o
	}
	r, err := buf.ReaderFunc(func() {}, b.outboxes[:]...)
	b.reader = r
	return router, err
}

func (b *simBridge) close() {
	if b.reader != nil {
		b.reader.Close()
	}
	b.reader, b.open = nil, nil
}

func (b *simBridge) owe(p *simPublish) {
	if _, ok := simClass(p.topic); ok && p.qos > 0 && len(p.payload) > 0 && b.got[p.n] == "" {
		b.owed[p.n] = p
	}
}

// drain takes what there is, and settles some of it.
func (b *simBridge) drain(all bool) (any bool) {
	w := b.w
	n, err := b.reader.TryNext(b.space[:])
	if w.machine.Off() {
		return false // who has read it?
	}
	if err != nil && !errors.Is(err, simulated.ErrOff) {
		w.fail("the bridge cannot read: %v", err)
	}
	for i := range b.space[:n] {
		b.take(&b.space[i])
		b.open = append(b.open, b.space[i])
	}
	for len(b.open) > 0 && (all || !w.one(4)) {
		b.open[0].Outbox.Settle(b.open[0].Ordinal, buffer.Delivered)
		b.open = b.open[1:]
	}
	if !all && w.one(10) {
		b.reader.Rewind()
		b.open = nil
	}
	return n > 0
}

func (b *simBridge) take(d *buffer.Delivery) {
	w := b.w
	w.counts[simBridged]++
	if len(d.Payload) == 0 {
		return // nobody knows which deletion it is
	}
	var n int
	if _, err := fmt.Sscan(string(d.Payload[:min(len(d.Payload), 10)]), &n); err != nil || w.published[n] == nil {
		w.fail("the bridge gets %q, which nobody published", d.Payload)
	}
	p := w.published[n]
	copied := fmt.Sprint(d.Outbox.Class(), d.Ordinal)
	w.note("the bridge gets %v as %s, dup %t", p, copied, d.Dup)
	if was, ok := b.is[copied]; ok && was != n {
		w.fail("the bridge gets %v as copy %s, which was %d", p, copied, was)
	}
	b.is[copied] = n
	switch {
	case p.refused:
		w.fail("the bridge gets %v, which is not stored", p)
	case d.Topic != p.topic || string(d.Payload) != string(p.payload) || string(d.Props) != string(p.props) || d.QoS != p.qos || d.Retain != p.retain:
		w.fail("the bridge gets %v as %+v", p, d)
	case b.got[n] != "" && b.got[n] != copied && p.qos == 2 && !p.loose:
		w.fail("the bridge gets %v as %s and as %s", p, b.got[n], copied)
	case b.got[n] != "":
		return
	}
	b.got[n] = copied
	delete(b.owed, n)
	by := "gateway"
	if p.by != nil {
		by = p.by.id
	}
	key := fmt.Sprint(by, " ", p.topic, p.qos)
	if n < b.last[key] && !p.loose && !p.mayExpire() && !(p.sends > 1 && (w.refusals() > p.hadRefused || w.options.Limits.MaxBytes > 0)) {
		w.fail("the bridge gets %v after %d", p, b.last[key])
	}
	if !p.loose {
		b.last[key] = n
	}
}

// missing is what it should have got and has not, which nothing accounts for.
func (b *simBridge) missing() (lost []*simPublish) {
	for _, p := range b.owed {
		if !p.mayExpire() {
			lost = append(lost, p)
		}
	}
	var dropped uint64
	for _, o := range b.outboxes {
		l := o.Ledger()
		dropped += l.Dropped["oldest"] + l.Dropped["full"]
	}
	if uint64(len(lost)) <= dropped {
		return nil
	}
	return lost
}

// simInside is a subscriber within the process.
type simInside struct {
	w      *simWorld
	cancel func()
	since  int
	owed   map[int]*simPublish
	drops  uint64
	seen   map[int]bool

	mu  sync.Mutex // guards got
	got []string
}

const simInsideFilter = "a/#"

func (w *simWorld) subscribeInside() *simInside {
	i := &simInside{w: w, since: w.now(), owed: make(map[int]*simPublish), seen: make(map[int]bool)}
	cancel, err := w.broker.Subscribe(simInsideFilter, 2, func(m *Message) {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.got = append(i.got, string(m.Payload))
	})
	if err != nil {
		w.fail("subscribe inside: %v", err)
	}
	i.cancel = cancel
	return i
}

func (i *simInside) owe(p *simPublish) {
	if i != nil && !i.seen[p.n] && p.first > i.since && strings.HasPrefix(p.topic, "a/") && len(p.payload) > 0 && p.expiry == 0 {
		i.owed[p.n] = p
	}
}

// check is for when nothing is under way.
func (i *simInside) check() {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, s := range i.got {
		var n int
		if _, err := fmt.Sscan(s, &n); err == nil && !i.w.machine.Off() {
			if p := i.w.published[n]; p == nil || p.refused {
				i.w.fail("the gateway gets %q", s)
			}
			i.seen[n] = true
			delete(i.owed, n)
		}
	}
	i.got = nil
	if uint64(len(i.owed)) > i.drops {
		for _, p := range i.owed {
			i.w.fail("the gateway has not got %v, and %d others", p, len(i.owed)-1)
		}
	}
}

// simReceipts are those of the gateway's own publishes.
type simReceipts struct {
	life *simulated.Life

	mu   sync.Mutex // guards told
	told []simTold
}

type simTold struct {
	r   *simReceipts
	p   *simPublish
	err error
}

func (t simTold) Stored(err error) {
	t.err = err
	t.r.life.Do(func() { // or nobody is there to hear it
		t.r.mu.Lock()
		defer t.r.mu.Unlock()
		t.r.told = append(t.r.told, t)
	})
}

// publishInside publishes as the gateway itself does.
func (w *simWorld) publishInside() {
	p := w.newPublish(nil, simTopics[w.dice.IntN(len(simTopics))], packet.V5)
	m := &Message{Topic: p.topic, Payload: p.payload, Props: p.props, QoS: p.qos, Retain: p.retain, Expiry: time.Duration(p.expiry) * time.Second, Urgent: w.one(2)}
	w.sent(p)
	w.note("the gateway publishes %v", p)
	if err := w.broker.Publish(w.t.Context(), m, simTold{r: w.told, p: p}); err != nil {
		w.hear(p, err)
	}
}

// hearInside takes the receipts that have come.
func (w *simWorld) hearInside() {
	w.told.mu.Lock()
	told := w.told.told
	w.told.told = nil
	w.told.mu.Unlock()
	for _, t := range told {
		w.hear(t.p, t.err)
	}
}

func (w *simWorld) hear(p *simPublish, err error) {
	switch {
	case err == nil:
		w.acknowledged(p)
	case errors.Is(err, buffer.ErrFull):
		w.refusedFor(p, packet.QuotaExceeded)
	default:
		w.refusedFor(p, packet.ImplementationSpecific)
	}
}
