package localbroker

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker/packet"
	"github.com/fieldferry/fieldferry/localbroker/topic"
)

// What TestSimulation knows of messages and of who is to get them.

// simPublish is a message as its publisher knows it.
type simPublish struct {
	n       int        // counts messages, and begins the payload unless that is empty
	by      *simClient // nil is the gateway
	topic   string
	payload []byte
	props   packet.Properties
	qos     byte
	retain  bool
	expiry  uint32 // s, 0 is none
	will    *simWill
	member  *simClient // of a shared subscription, who got it last if that was with QoS 2
	shared  bool       // a member of one has got it

	sends      int
	first      int // the moment when it was sent first, 0 if it was not
	last       int // and last
	firstAt    time.Time
	hadRefused uint64 // publishes that the broker had refused then
	acked      int    // the moment when that it is safe was heard, 0 if it was not
	ackedAt    time.Time
	boot       uint64 // of the machine, then
	refused    bool   // it is nowhere, its publisher was told
	loose      bool   // it may have been published a second time, as another message
}

func (p *simPublish) String() string {
	by := "gateway"
	if p.by != nil {
		by = p.by.id
	}
	s := fmt.Sprintf("%d of %s to %s, QoS %d", p.n, by, p.topic, p.qos)
	if p.retain {
		s += ", retain"
	}
	if p.expiry > 0 {
		s += fmt.Sprintf(", expiry %d", p.expiry)
	}
	if p.will != nil {
		s += ", a will"
	}
	return fmt.Sprintf("%s (sent %d to %d, %d times, acked %d)", s, p.first, p.last, p.sends, p.acked)
}

// mayExpire reports whether so much time has passed since it was sent first that it
// may have expired.
func (p *simPublish) mayExpire() bool {
	return p.expiry > 0 && time.Since(p.firstAt) >= time.Duration(p.expiry)*time.Second
}

var simTopics = []string{"a/0", "a/0", "a/1", "b/0", "b/1", "c/0", "s/x/0", "s/x/1", "s/y/0"}

// newPublish makes a message that nobody has sent yet.
func (w *simWorld) newPublish(by *simClient, name string, v packet.Version) *simPublish {
	w.next++
	p := &simPublish{n: w.next, by: by, topic: name, qos: byte(w.dice.IntN(3)), retain: w.one(5)}
	p.payload = fmt.Appendf(nil, "%d %s", p.n, strings.Repeat("x", w.dice.IntN(120)))
	if w.one(50) {
		p.payload = fmt.Appendf(nil, "%d %s", p.n, strings.Repeat("x", 3000))
	}
	if p.retain && w.one(4) {
		p.payload = nil
	}
	if v == packet.V5 {
		if w.one(3) {
			p.props = p.props.AppendText(packet.ContentType, "t").AppendUser("k", fmt.Sprint(p.n))
		}
		if w.one(6) {
			p.expiry = []uint32{2, 20, 600}[w.dice.IntN(3)]
		}
	}
	w.published[p.n] = p
	return p
}

// refusals is how many publishes were ever refused.
func (w *simWorld) refusals() uint64 {
	if w.broker == nil {
		return w.refused
	}
	return w.refused + w.broker.stats.refused.Load()
}

// sent notes that it was sent.
func (w *simWorld) sent(p *simPublish) {
	p.last = w.now()
	p.sends++
	if p.first == 0 {
		p.first, p.firstAt, p.hadRefused = p.last, time.Now(), w.refusals()
		w.counts[simPublished]++
		if p.retain {
			w.retained[p.topic] = append(w.retained[p.topic], p)
		}
	}
}

// acknowledged notes that its publisher was told that it is safe: everybody who had
// subscribed to it before it was sent has it coming.
func (w *simWorld) acknowledged(p *simPublish) {
	if p.acked > 0 {
		return // once more after it was published again
	}
	w.counts[simAcked]++
	w.note("%v is acknowledged", p)
	p.acked, p.ackedAt = w.now(), time.Now()
	_, p.boot = w.machine.Uptime()
	for _, c := range w.clients {
		if s := c.session; s != nil && len(p.payload) > 0 && c.got[p.n] == 0 && s.entitled(p) {
			s.owed[p.n] = p
		}
	}
	w.bridge.owe(p)
	w.inside.owe(p)
	w.share(p)
}

// refusedFor notes that its publisher was told that it is not safe.
func (w *simWorld) refusedFor(p *simPublish, reason packet.Reason) {
	w.counts[simRefused]++
	w.note("%v is refused: %v", p, reason)
	switch reason {
	case packet.QuotaExceeded:
		if p.sends == 1 && p.acked == 0 {
			p.refused = true
		}
	case packet.ImplementationSpecific: // what failed may come up all the same
	default:
		w.fail("%v is refused: %v", p, reason)
	}
}

// simGrant is one subscription of a session.
type simGrant struct {
	session *simSession
	filter  string // as it was sent
	share   string
	inner   string // without the share
	qos     byte
	noLocal bool
	asIs    bool // retain as published
	replays bool // retained messages came with it
	id      uint32

	may, mayEnd   int // the moments between which it may have been there; 0 is not yet
	must, mustEnd int // and was for certain
	since         time.Time
}

func (g *simGrant) matches(name string) bool { return topic.Match(g.inner, name) }

// mayBring reports whether p can have come through it.
func (g *simGrant) mayBring(p *simPublish) bool {
	switch {
	case g.mayEnd > 0 && g.mayEnd < p.first, !g.matches(p.topic):
		return false
	case p.acked == 0 || p.loose || g.may <= p.acked, g.share != "": // from a member before it
		return true
	}
	return g.mayReplay(p)
}

// mayReplay reports whether p can have come with it as a retained message.
func (g *simGrant) mayReplay(p *simPublish) bool {
	return p.retain && g.share == "" && g.replays && g.matches(p.topic) && (g.mayEnd == 0 || g.mayEnd > p.first)
}

// simSession is a session that a client has or had.
type simSession struct {
	c       *simClient
	began   int
	kept    bool // it outlives the connection, and the process
	least   time.Duration
	most    time.Duration // after its client has left it lasts so long
	left    time.Time
	seen    time.Time // when the client may have been there last
	leftIn  int       // in this life
	doubt   bool      // it may have ended
	stray   bool      // an older connection may still be there
	ghost   bool      // it may have ended, and another one begun that its client was not told of
	blurred bool      // it had

	grants  []*simGrant
	owed    map[int]*simPublish // what is to come yet
	last    map[string]int      // the last message in an order
	newest  map[string]int      // the last retained message in it
	replays map[int]int         // how often one came that may have been there before
	drops   uint64              // messages that it had no room for, as far as is counted
	ledger  uint64              // the same in its ledgers
}

// entitled reports whether the session has subscribed to p so that it must get it.
func (s *simSession) entitled(p *simPublish) bool {
	if p.qos == 0 {
		return false
	}
	for _, g := range s.grants {
		if g.share == "" && g.qos > 0 && g.must > 0 && g.must <= p.first && g.mustEnd == 0 && g.matches(p.topic) && !(g.noLocal && p.by == s.c) {
			return true
		}
	}
	return false
}

// haunted has nothing be owed any more: it may not be the session that it was, though
// the client cannot know.
func (s *simSession) haunted() {
	at := s.c.w.now()
	for _, g := range s.grants {
		if g.mustEnd == 0 {
			g.mustEnd = at
		}
	}
	for _, f := range s.c.out {
		f.p.loose = true
	}
	clear(s.owed)
	s.ghost, s.blurred = false, true
}

// end is the end of all its subscriptions.
func (s *simSession) end() {
	at := s.c.w.now()
	for _, g := range s.grants {
		if g.mayEnd == 0 {
			g.mayEnd = at
		}
		if g.mustEnd == 0 {
			g.mustEnd = at
		}
	}
	s.owed = nil
}

// surely reports whether the session must be there when its client comes back now. It
// takes a broker a second to part from a client that does not read.
func (s *simSession) surely() bool {
	return s.kept && !s.doubt && time.Since(s.left)+2*time.Second < s.least
}

// hardly reports whether the session cannot be there any more for a client that came
// back at a time.
func (s *simSession) hardly(at time.Time) bool {
	return s.leftIn == s.c.w.lifeNo && !s.stray && at.Sub(s.seen) > s.most+10*time.Second
}

// deliver takes a message that has come to the client, for the first time with this
// packet identifier.
func (c *simClient) deliver(d *packet.Publish) {
	w, s := c.w, c.session
	w.counts[simDelivered]++
	if len(d.Payload) == 0 {
		c.deliverDeletion(d)
		return
	}
	var n int
	if _, err := fmt.Sscan(string(d.Payload[:min(len(d.Payload), 10)]), &n); err != nil || w.published[n] == nil {
		w.fail("%s gets %q, which nobody published", c.id, d.Payload)
	}
	p := w.published[n]
	w.note("%s gets %v as %d, QoS %d, dup %t, retain %t", c.id, p, d.PacketID, d.QoS, d.Dup, d.Retain)
	c.checkSame(d, p)
	through, replay := c.through(d, p)
	first := c.got[n] == 0
	c.got[n]++
	if replay {
		c.checkReplay(d, p, first)
	}
	delete(s.owed, n)
	w.unshare(p)
	if replay {
		w.counts[simReplayed]++
	}
	once := c.once[n]
	if d.QoS == 2 && !replay {
		c.once[n] = s
	}
	if !first {
		w.counts[simAgain]++
		// What has come only to sessions that end with their connection is nowhere
		// durable, DESIGN.md §1: after a restart the broker does not know that it has it,
		// and takes it again, for those who are there then. Such a member of a shared
		// subscription leaves what it has not taken to another one.
		forgotten := since(w.ended, p.firstAt) && (through.share != "" || once != s && once != nil && !once.kept)
		if d.QoS == 2 && once != nil && !p.loose && !replay && !forgotten && !(p.will != nil && since(w.rough, p.will.at)) {
			w.fail("%s gets %v twice", c.id, p)
		}
		return
	}
	if through.share != "" {
		w.counts[simShared]++
		if p.member != nil && p.member != c && d.QoS == 2 && !p.loose && !since(w.ended, p.firstAt) {
			w.fail("%s gets %v, which %s has got", c.id, p, p.member.id)
		}
		if p.member = nil; d.QoS == 2 {
			p.member = c
		}
		p.shared = true
		return
	}
	if p.will != nil && c == w.watcher {
		p.will.come()
	}
	c.checkExpiry(d, p)
	by := "gateway"
	if p.by != nil {
		by = p.by.id
	}
	key := fmt.Sprint(by, " ", p.topic, d.QoS, p.will != nil)
	// One that had expired, but not durably, comes with all that come again. What the
	// gateway publishes is in order only where it is durable.
	mayBeLate := p.by == nil && (!s.kept || d.QoS == 0) || replay || p.loose || p.mayExpire() || p.sends > 1 && (!s.entitled(p) || w.refusals() > p.hadRefused || !s.lossless())
	if n < s.last[key] && !mayBeLate && p.will == nil {
		w.fail("%s gets %v after %v", c.id, p, w.published[s.last[key]])
	}
	if !replay && !p.loose {
		s.last[key] = max(s.last[key], n)
	}
	if p.retain && !p.loose && p.will == nil {
		key := fmt.Sprintf("%p %s %d", p.by, p.topic, d.QoS)
		s.newest[key] = max(s.newest[key], n)
	}
}

// checkReplay has a retained message come once with each subscription, and not behind
// a newer one.
func (c *simClient) checkReplay(d *packet.Publish, p *simPublish, first bool) {
	w, s := c.w, c.session
	if p.loose || p.will != nil {
		return
	}
	most := 1 // as it was published
	for _, g := range s.grants {
		if g.mayReplay(p) {
			most++
		}
	}
	if d.QoS == 2 {
		s.replays[p.n]++
	}
	if s.replays[p.n] > most {
		w.fail("%s gets %v as a retained message %d times", c.id, p, s.replays[p.n])
	}
	key := fmt.Sprintf("%p %s %d", p.by, p.topic, d.QoS)
	if first && d.Retain && p.n < s.newest[key] && p.sends == 1 {
		w.fail("%s gets %v as a retained message after %v", c.id, p, w.published[s.newest[key]])
	}
}

// deliverDeletion takes a message that is empty: it does not say which it is.
func (c *simClient) deliverDeletion(d *packet.Publish) {
	for _, p := range c.w.retained[d.Topic] {
		if len(p.payload) > 0 || p.qos < d.QoS {
			continue
		}
		for _, g := range c.session.grants {
			if g.mayBring(p) {
				return
			}
		}
	}
	c.w.fail("%s gets nothing to %s, which nobody published", c.id, d.Topic)
}

// checkSame compares what has come with what was published.
func (c *simClient) checkSame(d *packet.Publish, p *simPublish) {
	w := c.w
	props := p.props
	if c.version == packet.V311 {
		props = nil
	}
	switch {
	case p.refused:
		w.fail("%s gets %v, which is not stored", c.id, p)
	case p.first == 0:
		w.fail("%s gets %v, which was not published", c.id, p)
	case d.Topic != p.topic, !bytes.Equal(d.Payload, p.payload), !bytes.Equal(d.Props, props):
		w.fail("%s gets %v as topic %s, %d bytes of payload, properties %q", c.id, p, d.Topic, len(d.Payload), d.Props)
	case d.HasExpiry && d.Expiry > p.expiry, c.version == packet.V5 && d.HasExpiry != (p.expiry > 0):
		w.fail("%s gets %v with the expiry %d", c.id, p, d.Expiry)
	}
}

// checkExpiry has a message not be older than it may.
func (c *simClient) checkExpiry(d *packet.Publish, p *simPublish) {
	w := c.w
	if p.expiry == 0 || d.Dup || p.acked == 0 {
		return
	}
	w.counts[simExpired]++
	_, boot := w.machine.Uptime()
	age := time.Since(p.ackedAt)
	if p.boot != boot {
		return // nobody knows how long the machine was off
	}
	if age > time.Duration(p.expiry)*time.Second+c.slack() {
		w.fail("%s gets %v %v after it was acknowledged", c.id, p, age)
	}
	if left := time.Duration(p.expiry)*time.Second - age + time.Second + c.slack(); d.HasExpiry && time.Duration(d.Expiry)*time.Second > left {
		w.fail("%s gets %v with %d s left, it can be %v", c.id, p, d.Expiry, left)
	}
}

// through returns the subscription that a message came through, and whether it can
// have come as a retained one that was there before.
func (c *simClient) through(d *packet.Publish, p *simPublish) (g *simGrant, replay bool) {
	var found []*simGrant
	qos, asIs, ids := false, false, len(d.SubscriptionIDs) == 0
	for _, g := range c.session.grants {
		if !g.mayBring(p) {
			continue
		}
		found = append(found, g)
		replay = replay || g.mayReplay(p)
		qos = qos || min(g.qos, p.qos) == d.QoS || g.share != "" && d.QoS < min(g.qos, p.qos) // of a member before it
		asIs = asIs || g.asIs
		for _, id := range d.SubscriptionIDs {
			ids = ids || id == g.id
		}
	}
	switch {
	case len(found) == 0:
		c.w.fail("%s gets %v, to which it has not subscribed", c.id, p)
	case !qos:
		c.w.fail("%s gets %v with QoS %d", c.id, p, d.QoS)
	case d.Retain && !p.retain, d.Retain && !replay && !asIs:
		c.w.fail("%s gets %v with retain set", c.id, p)
	case !ids:
		c.w.fail("%s gets %v with subscription identifiers %v", c.id, p, d.SubscriptionIDs)
	case len(found) == 1 && found[0].noLocal && p.by == c:
		c.w.fail("%s gets %v, which is its own", c.id, p)
	}
	if !d.Retain && !asIs {
		replay = false
	}
	return found[0], replay
}

// check holds the ledgers against themselves.
func (w *simWorld) check() {
	if w.broker == nil || w.machine.Off() {
		return
	}
	for id, n := range w.broker.TakeDrops() {
		w.counts[simDropped] += int(n)
		if c := w.client(id); c != nil && c.session != nil {
			c.session.drops += n
		}
		if id == simInsideFilter {
			w.inside.drops += n
		}
	}
	ledgers := make(map[string]uint64)
	for _, o := range w.buffer.Outboxes() {
		l := o.Ledger()
		if l.Difference() != 0 {
			w.fail("%s: the ledger is out by %d: %+v", o.Name(), l.Difference(), l)
		}
		if l.Dropped["quarantined"]+l.Dropped["refused"]+l.Parked+l.Uncertain > 0 {
			w.fail("%s: copies were lost: %+v", o.Name(), l)
		}
		if o.Name() == stateOutbox && l.Dropped["oldest"]+l.Dropped["full"] > 0 {
			w.fail("changes of the state were dropped: %+v", l)
		}
		if rest, ok := strings.CutPrefix(o.Name(), sessionOutbox); ok {
			id, _, _ := strings.Cut(rest, "#")
			ledgers[id] += l.Dropped["oldest"] + l.Dropped["full"]
		}
	}
	for id, n := range ledgers {
		if c := w.client(id); c != nil && c.session != nil {
			c.session.ledger = max(c.session.ledger, n)
		}
	}
}

func (w *simWorld) client(id string) *simClient {
	for _, c := range w.clients {
		if c.id == id {
			return c
		}
	}
	return nil
}

// lossless reports whether nothing was ever dropped, or refused, for want of room.
func (s *simSession) lossless() bool {
	return s.drops+s.ledger == 0 && s.c.w.options.Limits.MaxBytes == 0
}

// missing is what the session should have got and has not, which nothing accounts
// for.
func (s *simSession) missing() (lost []*simPublish) {
	for _, p := range s.owed {
		if !p.mayExpire() {
			lost = append(lost, p)
		}
	}
	if uint64(len(lost)) <= max(s.drops, s.ledger) {
		return nil
	}
	return lost
}

// simClass is the class of a topic, and whether the bridge gets what is published to it.
func simClass(name string) (buffer.Class, bool) {
	switch name[0] {
	case 'b':
		return buffer.Telemetry, true
	case 'c':
		return buffer.Alert, true
	}
	return buffer.Local, false
}

// since reports whether something that has happened at a time may have done so after
// another.
func since(at, other time.Time) bool { return !at.IsZero() && !at.Before(other) }
