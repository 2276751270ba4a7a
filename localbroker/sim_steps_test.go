package localbroker

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing/synctest"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker/packet"
	"github.com/fieldferry/fieldferry/localbroker/topic"
)

// What happens in TestSimulation, and how it ends.

var simFilters = []string{"a/0", "a/+", "a/#", "b/#", "c/0", "b/0", "+/0", "$share/g/s/x/#", "$share/h/s/y/#"}

// step is one thing that happens.
func (w *simWorld) step() {
	w.hearInside()
	c := w.clients[w.dice.IntN(len(w.clients))]
	if c.link == nil {
		if !w.one(3) {
			c.connect()
		}
		w.others()
		return
	}
	if !c.connected {
		if c.pump(1 << 20); w.one(10) && c.link != nil {
			c.connect()
		}
		return
	}
	switch w.dice.IntN(16) {
	case 0, 1, 2, 3:
		if c != w.watcher {
			c.publish(1 + w.dice.IntN(5))
		}
	case 4, 5:
		c.subscribe()
	case 6:
		c.unsubscribe()
	case 7, 8, 9:
		c.pump([]int{1, 50, 500, 1 << 20}[w.dice.IntN(4)])
	case 10:
		if c.manner != simNever {
			c.acknowledge(1+w.dice.IntN(5), c.manner == simShuffled)
		}
	case 11:
		if w.one(3) {
			c.cut()
		}
	case 12:
		if w.one(3) {
			c.disconnect()
		}
	case 13:
		if w.one(3) {
			c.connect()
		}
	default:
		w.others()
	}
	if w.watcher.link != nil {
		w.watcher.pump(1 << 20)
	}
}

// others is what does not come from a client.
func (w *simWorld) others() {
	switch w.dice.IntN(8) {
	case 0, 1:
		w.bridge.drain(false)
	case 2:
		w.publishInside()
	case 3, 4:
		time.Sleep(time.Duration(w.dice.IntN(100)) * time.Millisecond)
	case 5:
		time.Sleep(time.Duration(w.dice.IntN(5000)) * time.Millisecond)
		w.breakDisk()
	case 6:
		switch w.dice.IntN(12) {
		case 0:
			time.Sleep(80 * time.Second)
		case 1:
			w.machine.Kill()
		case 2:
			w.machine.Crash()
		case 3:
			w.calm()
			w.fault(true)
		}
	}
}

// breakDisk lets every write fail from now on, or has that be over.
func (w *simWorld) breakDisk() {
	was := w.broken
	w.broken = !was && w.one(6)
	w.machine.Break(w.broken)
	if w.broken {
		w.counts[simOutages]++
	}
}

// subscribe sends a SUBSCRIBE for filters of which no change is under way.
func (c *simClient) subscribe() {
	w := c.w
	var filters []string
	if c == w.watcher {
		filters = []string{"w/#"}
	}
	for len(filters) == 0 || w.one(3) {
		if f := simFilters[w.dice.IntN(len(simFilters))]; !slices.Contains(filters, f) && c != w.watcher {
			filters = append(filters, f)
		}
		if c == w.watcher {
			break
		}
	}
	filters = slices.DeleteFunc(filters, c.changing)
	if len(filters) == 0 {
		return
	}
	p := packet.Subscribe{PacketID: c.newID()}
	op := &simOp{at: w.now()}
	id := uint32(0)
	if c.version == packet.V5 && w.one(2) {
		id = uint32(1 + w.dice.IntN(5))
		p.Props = p.Props.AppendUint(packet.SubscriptionID, id)
	}
	for _, f := range filters {
		g := &simGrant{session: c.session, filter: f, qos: byte(w.dice.IntN(3)), replays: true, id: id, may: op.at}
		g.share, g.inner = topic.SplitShared(f)
		o := packet.Subscription{Filter: f, QoS: g.qos}
		if c == w.watcher {
			g.qos, o.QoS = 2, 2
		} else if c.version == packet.V5 {
			o.NoLocal, o.RetainAsPublished, o.RetainHandling = g.share == "" && w.one(5), w.one(3), byte(w.dice.IntN(3))
			g.noLocal, g.asIs, g.replays = o.NoLocal, o.RetainAsPublished, o.RetainHandling < 2
		}
		for _, old := range c.session.grants {
			if old.filter == f && old.mustEnd == 0 && (g.qos == 0 || g.noLocal) {
				old.mustEnd = op.at
			}
		}
		c.session.grants = append(c.session.grants, g)
		if g.share != "" {
			w.shares = append(w.shares, g)
		}
		op.grants = append(op.grants, g)
		p.Subscriptions = append(p.Subscriptions, o)
	}
	w.note("%s subscribes to %v with %d, %d", c.id, p.Subscriptions, p.PacketID, id)
	c.ops[p.PacketID] = op
	c.link.write(p.Append(nil, c.version))
}

// changing reports whether a change of its subscription to a filter is under way.
func (c *simClient) changing(filter string) bool {
	for _, op := range c.ops {
		if slices.Contains(op.filters, filter) || slices.ContainsFunc(op.grants, func(g *simGrant) bool { return g.filter == filter }) {
			return true
		}
	}
	return false
}

// unsubscribe sends an UNSUBSCRIBE for one filter.
func (c *simClient) unsubscribe() {
	w := c.w
	f := simFilters[w.dice.IntN(len(simFilters))]
	if c == w.watcher || c.changing(f) {
		return
	}
	op := &simOp{at: w.now(), filters: []string{f}}
	for _, g := range c.session.grants {
		if g.filter == f && g.mustEnd == 0 {
			g.mustEnd = op.at
		}
	}
	p := packet.Unsubscribe{PacketID: c.newID(), Filters: op.filters}
	w.note("%s unsubscribes from %s with %d", c.id, f, p.PacketID)
	c.ops[p.PacketID] = op
	c.link.write(p.Append(nil, c.version))
}

func (c *simClient) takeSuback(t packet.Type, p *packet.Suback) {
	w := c.w
	op := c.ops[p.PacketID]
	if op == nil || (op.grants == nil) != (t == packet.UNSUBACK) {
		w.fail("%s gets %v %d, which is not what it waits for", c.id, t, p.PacketID)
	}
	w.note("%s gets %v %d %v", c.id, t, p.PacketID, p.Reasons)
	delete(c.ops, p.PacketID)
	at := w.now()
	end := func(filter string) {
		for _, g := range c.session.grants {
			if g.filter == filter && g.may < op.at && g.mayEnd == 0 {
				g.mayEnd = at
				if g.mustEnd == 0 {
					g.mustEnd = at
				}
			}
		}
	}
	for _, f := range op.filters {
		end(f)
	}
	for i, g := range op.grants {
		if p.Reasons[i].Failed() && (w.machine.Failures() > 0 || w.options.Limits.MaxBytes > 0) { // no room for the retained messages
			g.mayEnd = at
			continue
		}
		if p.Reasons[i] != packet.Reason(g.qos) {
			w.fail("%s gets %v for %s with QoS %d", c.id, p.Reasons[i], g.filter, g.qos)
		}
		end(g.filter)
		g.must, g.since = at, time.Now()
	}
}

// settle waits until everything has happened that needs no time.
func (w *simWorld) settle() {
	synctest.Wait()
	for _, c := range w.clients {
		if c.link != nil && c.link.down.underWay() == 0 {
			c.drained = time.Now()
		}
	}
}

// quiet has everything arrive that is under way, and be answered.
func (w *simWorld) quiet() {
	for idle := 0; idle < 30; idle++ {
		w.settle()
		w.hearInside()
		any := w.bridge.drain(true)
		for _, c := range w.clients {
			for c.link != nil && c.pump(1<<20) {
				any = true
			}
			if c.link != nil && c.connected && len(c.acks) > 0 {
				c.acknowledge(len(c.acks), false)
				any = true
			}
		}
		w.check()
		if any {
			idle = 0
		} else {
			time.Sleep(200 * time.Millisecond)
		}
	}
}

// calm lets nothing fail for a while, after which everything must have arrived that
// can.
func (w *simWorld) calm() {
	w.fault(false)
	if w.machine.Break(false); w.machine.Off() {
		return
	}
	w.broken = false
	w.quiet()
	w.inside.check()
	w.checkWills()
	for _, c := range w.clients {
		if c.link == nil {
			continue
		}
		if !c.connected {
			w.fail("%s is not answered", c.id)
		}
		if len(c.out)+len(c.ops) > 0 {
			w.fail("%s is not answered: %d publishes, %d changes of subscriptions; %s", c.id, len(c.out), len(c.ops), w.inner(c.id))
		}
		if lost := c.session.missing(); len(lost) > 0 {
			w.fail("%s has not got %d messages, %d were dropped; the first: %v; %s", c.id, len(lost), max(c.session.drops, c.session.ledger), lost[0], w.inner(c.id))
		}
	}
	if lost := w.bridge.missing(); len(lost) > 0 {
		w.fail("the bridge has not got %d messages; the first: %v", len(lost), lost[0])
	}
}

// finish lets everybody come back and get what they have coming.
func (w *simWorld) finish() {
	for round := 0; ; round++ {
		all := true
		for _, c := range w.clients {
			if c.link == nil {
				all = false
				c.connect()
			}
		}
		if w.calm(); all {
			break
		}
		if round > 20 {
			w.fail("clients do not stay")
		}
	}
	time.Sleep(12 * time.Second) // for delayed wills
	w.calm()
	w.checkGroups()
	w.probe()
	before := w.lookRetained()
	w.checkRetained(before)
	w.end()
	w.start(false)
	after := w.lookRetained()
	for name, p := range before {
		if q, ok := after[name]; (!ok || !bytes.Equal(p, q)) && w.retainedExpiry(p) == 0 {
			w.fail("%.10q was retained for %s, and after a restart %.10q", p, name, q)
		}
	}
	for name, q := range after {
		if before[name] == nil {
			w.fail("%.10q is retained for %s only after a restart", q, name)
		}
	}
	w.leave()
}

// probe publishes to every topic and has everybody get it who is to.
func (w *simWorld) probe() {
	for name := range maps.Keys(map[string]bool{"a/0": true, "a/1": true, "b/0": true, "b/1": true, "c/0": true, "s/x/0": true, "s/y/0": true}) {
		p := w.newPublish(nil, name, packet.V5)
		p.qos, p.retain, p.expiry = byte(1+w.dice.IntN(2)), false, 0
		p.payload = fmt.Appendf(nil, "%d probe", p.n)
		w.sent(p)
		if err := w.broker.Publish(w.t.Context(), &Message{Topic: name, Payload: p.payload, Props: p.props, QoS: p.qos, Urgent: true}, simTold{r: w.told, p: p}); err != nil {
			w.fail("probe: %v", err)
		}
	}
	w.calm()
	w.checkGroups()
}

// checkGroups has somebody have got what was for a group. What a session has taken
// with it when it ended is counted.
func (w *simWorld) checkGroups() {
	ended := w.buffer.Stats().Ledger.Dropped["ended"]
	for filter, g := range w.groups {
		var lost []*simPublish
		for _, p := range g.owed {
			if !p.mayExpire() {
				lost = append(lost, p)
			}
		}
		if uint64(len(lost)) > ended+w.dropped() {
			w.fail("nobody of %s has got %d messages; the first: %v", filter, len(lost), lost[0])
		}
	}
}

// dropped is how many messages there was no room for, also in sessions that have ended.
func (w *simWorld) dropped() uint64 {
	n := w.drops
	for _, c := range w.clients {
		if c.session != nil {
			n += max(c.session.drops, c.session.ledger)
		}
	}
	l := w.buffer.Stats().Ledger
	return max(n, l.Dropped["oldest"]+l.Dropped["full"])
}

// lookRetained is what a new subscriber gets, by topic. Wills are left out, because
// they come whenever a broker stops.
func (w *simWorld) lookRetained() map[string][]byte {
	found := make(map[string][]byte)
	for _, m := range w.broker.retained.match("#", func() {}) {
		if !strings.HasPrefix(m.Topic, "w/") {
			found[m.Topic] = m.Payload
		}
	}
	return found
}

// retainedExpiry is the expiry interval of a message.
func (w *simWorld) retainedExpiry(payload []byte) uint32 {
	var n int
	if _, err := fmt.Sscan(string(payload), &n); err != nil || w.published[n] == nil {
		w.fail("%.10q is retained, which nobody published", payload)
	}
	return w.published[n].expiry
}

// checkRetained has the last message be retained that was acknowledged, or one that
// may have come after it.
func (w *simWorld) checkRetained(found map[string][]byte) {
	for name, all := range w.retained {
		payload, there := found[name]
		var is *simPublish
		for _, p := range all {
			if there && bytes.Equal(p.payload, payload) {
				is = p
			}
		}
		if there && is == nil {
			w.fail("%.10q is retained for %s, which nobody published", payload, name)
		}
		for _, p := range all {
			switch {
			case p.acked == 0 || p.refused || p.loose || p.qos == 0:
				continue // nobody knows when it came
			case there && p != is && after(is, p):
				w.fail("%v is retained, %v came later", is, p)
			case !there && len(p.payload) > 0 && !p.mayExpire() && !slices.ContainsFunc(all, func(o *simPublish) bool {
				return o != p && (len(o.payload) == 0 || o.mayExpire()) && !after(o, p)
			}):
				w.fail("nothing is retained for %s, not even %v", name, p)
			}
		}
	}
}

// after reports whether p, which was acknowledged, came after o for certain.
func after(o, p *simPublish) bool {
	if o.acked > 0 && !o.loose {
		return p.first > o.acked
	}
	return o.by == p.by && o.by != nil && o.will == nil && o.qos == p.qos && o.last < p.first && !o.loose
}

// leave has everybody go for good: nothing is left behind.
func (w *simWorld) leave() {
	for _, c := range w.clients {
		c.lose()
	}
	w.settle()
	for _, c := range w.clients {
		c.keeps, c.expiry, c.unclean = false, 0, true
		c.connect()
	}
	w.quiet()
	for _, c := range w.clients {
		c.disconnect()
	}
	w.quiet()
	time.Sleep(15 * time.Second)
	w.quiet()
	for _, o := range w.buffer.Outboxes() {
		l := o.Ledger()
		if strings.HasPrefix(o.Name(), sessionOutbox) || l.Stored > 0 {
			w.fail("%s is left: %+v", o.Name(), l)
		}
	}
	s := w.buffer.Stats()
	if s.Ledger.Difference() != 0 {
		w.fail("the ledger of all is out by %d: %+v", s.Ledger.Difference(), s.Ledger)
	}
	if s.Generations > 0 && w.options.Limits == (buffer.Limits{}) {
		w.fail("%d generations are left", s.Generations)
	}
	if n, _ := w.broker.index.count(); n != 1 || len(w.broker.sessions) > 0 {
		w.fail("%d subscriptions and %d sessions are left", n-1, len(w.broker.sessions))
	}
}

// inner is what the broker has of a client's session, for a seed that fails.
func (w *simWorld) inner(id string) string {
	w.broker.mu.Lock()
	s := w.broker.sessions[id]
	w.broker.mu.Unlock()
	if s == nil || s.kept == nil {
		return "no session that is kept"
	}
	k := s.kept
	k.mu.Lock()
	defer k.mu.Unlock()
	text := fmt.Sprintf("window %d, unacked %d, stuck %t, added %d, connected %t", k.window, k.unacked, k.stuck, len(k.added), s.conn.Load() != nil)
	for class := range k.lanes {
		if l := k.lanes[class].Load(); l != nil {
			text += fmt.Sprintf("; %v: %d flights from %d, rec %d, durable %d, %d resumed, marks %+v, %+v", l.outbox.Class(), l.flights.len(), l.first, l.rec, l.durable, len(l.resumed), l.outbox.Marks(), l.outbox.Ledger())
		}
	}
	return text
}
