package localbroker

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// numPacketIDs is how many packet identifiers there are, MQTT 5 §2.2.1.
const numPacketIDs = 65535

// delivery is a message on its way to one session.
type delivery struct {
	m      *Message
	qos    byte
	retain bool
	ids    []uint32 // subscription identifiers
	group  *group   // of the shared subscription it came through
}

// replayed is a retained message for a new subscription.
type replayed struct {
	delivery
	after uint64 // how many deliveries of the queue go before it
}

// sent is a delivery that waits for its PUBACK, PUBREC or PUBCOMP.
type sent struct {
	delivery
	state flightState
}

// outgoing is a delivery with the packet identifier it goes out with.
type outgoing struct {
	delivery
	packetID uint16
	dup      bool
	release  bool // just its PUBREL
}

// session is what the broker knows of one client: what it has subscribed to,
// what waits for it, and what it has not acknowledged. Sessions of callers
// inside of the process have a handler in the place of a connection.
//
// A session that ends with its connection has all in memory. One that is kept has
// there only what it gets with QoS 0; for the rest see kept.
type session struct {
	b       *Broker
	id      string
	kept    *kept // nil if it ends with its connection
	handler *handler
	conn    atomic.Pointer[conn]   // nil while the client is away
	rights  atomic.Pointer[Rights] // of the last connection; nil may do everything

	subscriptions map[string]*subscription // by filter; only its own goroutine uses it
	filterBytes   int                      // of those filters; likewise
	shared        bool                     // some of those it had were shared; as it ends
	publisher     *publisher

	mu        sync.Mutex // guards what follows
	window    int        // unacknowledged deliveries that the client takes, its Receive Maximum
	queue     ring[delivery]
	gone      uint64         // deliveries that have left the queue
	replay    ring[replayed] // retained messages, in between
	replaying bool           // more of them are being looked for
	bytes     int            // of queue and inflight
	inflight  ring[sent]     // packet identifiers first, first+1 …
	first     uint64         // what inflight's head was counted as
	unacked   int
	awake     bool // whoever sends has been told that there is something
	stuck     bool // the window is full
	ended     bool
	warned    time.Time // that the queue is full

	inbound map[uint16]inbound // QoS 2 publishes of the client that it has not released
	turn    uint64             // counts the connections of the session
	open    int                // QoS 2 publishes that the client began or resumed on this one
	will    *pendingWill
	leftAt  time.Time // when the client went away
}

// inbound is a packet identifier that a QoS 2 publish of the client has in use.
type inbound struct {
	class   buffer.Class
	durable bool   // it is in the log, so its release must be, too
	turn    uint64 // of the connection that it counts for in the Receive Maximum
}

// packetID is the identifier of the n-th delivery.
func packetID(n uint64) uint16 { return uint16(n%numPacketIDs) + 1 }

func (s *session) mayReceive(topic string) bool {
	r := s.rights.Load()
	return r == nil || (*r).MayReceive(topic)
}

func (s *session) mayPublish(topic string) bool {
	r := s.rights.Load()
	return r == nil || (*r).MayPublish(topic)
}

func (s *session) maySubscribe(filter string) bool {
	r := s.rights.Load()
	return r == nil || (*r).MaySubscribe(filter)
}

func (s *session) setRights(r Rights) {
	if r == nil {
		s.rights.Store(nil)
	} else {
		s.rights.Store(&r)
	}
}

// online reports whether what is enqueued is on its way to somebody.
func (s *session) online() bool { return s.handler != nil || s.conn.Load() != nil }

// enqueue takes a delivery, or, if there is no room, drops it or an older one.
// wake is true if the caller is to wake the session. A session that has ended, or
// whose client is away, takes nothing.
func (s *session) enqueue(d delivery) (wake, taken bool) {
	size := d.m.size()
	s.mu.Lock()
	if s.ended || !s.online() {
		s.mu.Unlock()
		return false, false
	}
	dropped, warn := 0, false
	for s.queue.len() >= s.b.limits.QueuedMessages || s.bytes+size > s.b.limits.QueuedBytes {
		dropped++
		if d.qos == 0 || s.queue.len() == 0 {
			d.m = nil // the newest gives way
			break
		}
		s.shift()
	}
	if dropped > 0 && time.Since(s.warned) > time.Minute {
		s.warned, warn = time.Now(), true
	}
	if d.m != nil {
		s.queue.push(d)
		s.bytes += size
		wake = !s.awake && !s.stuck && !s.replaying
		s.awake = s.awake || wake
	}
	s.mu.Unlock()
	if dropped > 0 {
		s.dropped(uint64(dropped))
	}
	if warn {
		s.b.log.Warn("subscriber is too slow, messages are dropped", "client", s.id, "limit_messages", s.b.limits.QueuedMessages, "limit_bytes", s.b.limits.QueuedBytes)
	}
	return wake, true
}

// dropped counts messages that the session has no room for. It may be called with any
// lock held but that of drops.
func (s *session) dropped(n uint64) {
	s.b.stats.dropped.Add(n)
	s.b.drops.add(s.id, n)
}

// drops counts by client what was dropped lately.
type drops struct {
	mu sync.Mutex
	n  map[string]uint64
}

// dropNames is how many clients are told apart.
const dropNames = 100

func (d *drops) add(client string, n uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, known := d.n[client]; !known && len(d.n) >= dropNames {
		client = "others"
	}
	if d.n == nil {
		d.n = make(map[string]uint64)
	}
	d.n[client] += n
}

// TakeDrops returns how many messages were dropped since the last call because
// clients were too slow or away for too long, by client id; those of clients beyond
// the first hundred are under "others".
func (b *Broker) TakeDrops() map[string]uint64 {
	b.drops.mu.Lock()
	defer b.drops.mu.Unlock()
	n := b.drops.n
	b.drops.n = nil
	return n
}

// wake tells whoever sends that there may be something, if there is anybody. It
// neither blocks nor calls the buffer.
func (s *session) wake() {
	if s.handler != nil {
		s.handler.wake()
	} else if c := s.conn.Load(); c != nil {
		c.wake()
	}
}

// take moves what may be sent now to dst, to its capacity or to about bytes. It reports
// whether there is more. to is the connection that asks, nil for a handler.
func (s *session) take(to *conn, dst []outgoing, bytes int) (batch []outgoing, more bool, err error) {
	now := time.Now()
	expired := 0
	s.mu.Lock()
	s.awake = false
	for !s.ended && !s.replaying && s.conn.Load() == to {
		var next *delivery
		retained := s.replay.len() > 0 && s.replay.at(0).after <= s.gone
		if retained {
			next = &s.replay.at(0).delivery
		} else if s.queue.len() > 0 {
			next = s.queue.at(0)
		} else {
			break
		}
		if _, _, ok := next.m.expiresIn(now); !ok {
			s.next(retained)
			expired++
			continue
		}
		numbered := next.qos > 0 && s.handler == nil
		if numbered && (s.unacked >= s.window || s.inflight.len() >= numPacketIDs-1) {
			s.stuck = true
			break
		}
		if len(dst) == cap(dst) || bytes <= 0 {
			more, s.awake = true, true
			break
		}
		out := outgoing{delivery: s.next(retained)}
		bytes -= out.m.size()
		if numbered {
			out.packetID = packetID(s.first + uint64(s.inflight.len()))
			state := awaitsPuback
			if out.qos == 2 {
				state = awaitsPubrec
			}
			s.inflight.push(sent{delivery: out.delivery, state: state})
			s.unacked++
			s.bytes += out.m.size()
		}
		dst = append(dst, out)
	}
	held := s.replaying
	s.mu.Unlock()
	if expired > 0 {
		s.b.stats.expired.Add(uint64(expired))
	}
	if s.kept != nil && to != nil && !held {
		var keptMore bool
		dst, keptMore, err = s.kept.take(to, dst, bytes)
		more = more || keptMore
	}
	return dst, more, err
}

// next takes the next delivery, from the retained messages or from the queue;
// s.mu is held.
func (s *session) next(retained bool) delivery {
	if retained {
		return s.replay.pop().delivery
	}
	return s.shift()
}

// shift takes the first from the queue; s.mu is held.
func (s *session) shift() delivery {
	d := s.queue.pop()
	s.gone++
	s.bytes -= d.m.size()
	return d
}

// flight returns the delivery that is under way under an identifier, nil if there
// is none; s.mu is held.
func (s *session) flight(id uint16) *sent {
	i := int((uint64(id) - 1 + numPacketIDs - s.first%numPacketIDs) % numPacketIDs)
	if id == 0 || i >= s.inflight.len() || s.inflight.at(i).state == landed {
		return nil
	}
	return s.inflight.at(i)
}

// land ends a delivery. It reports true if the caller is to wake the session. s.mu
// is held.
func (s *session) land(f *sent) (wake bool) {
	if f.m != nil {
		s.bytes -= f.m.size()
	}
	*f = sent{}
	s.unacked--
	for s.inflight.len() > 0 && s.inflight.at(0).state == landed {
		s.inflight.pop()
		s.first++
	}
	wake = s.stuck && !s.awake
	s.awake, s.stuck = s.awake || wake, false
	return wake
}

// puback takes a PUBACK. An identifier that is not in use changes nothing.
func (s *session) puback(id uint16) (wake bool) {
	if s.kept != nil {
		return s.kept.puback(id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.flight(id); f != nil && f.state == awaitsPuback {
		return s.land(f)
	}
	return false
}

// refuse ends a delivery that the client does not take on a connection.
func (s *session) refuse(on *conn, id uint16) (wake bool) {
	if s.kept != nil {
		return s.kept.refuse(on, id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.flight(id); f != nil {
		return s.land(f)
	}
	return false
}

// pubrec takes a PUBREC. It returns the PUBREL to answer, if it is to be answered
// now.
func (s *session) pubrec(id uint16, reason packet.Reason) (rel packet.Ack, answer, wake bool) {
	known, answer := false, false
	if s.kept != nil {
		known, answer, wake = s.kept.pubrec(id, reason.Failed())
	} else {
		s.mu.Lock()
		f := s.flight(id)
		switch {
		case f == nil || f.state == awaitsPuback:
		case f.state == awaitsPubrec && reason.Failed():
			known, wake = true, s.land(f)
		default:
			known, answer = true, true
			if f.state == awaitsPubrec {
				s.bytes -= f.m.size()
				*f = sent{state: awaitsPubcomp} // the message is the client's now
			}
		}
		s.mu.Unlock()
	}
	if !known && !reason.Failed() { // MQTT 5 §3.6.2.1
		return packet.Ack{PacketID: id, Reason: packet.PacketIDNotFound}, true, false
	}
	return packet.Ack{PacketID: id}, answer, wake
}

// pubcomp takes a PUBCOMP.
func (s *session) pubcomp(id uint16) (wake bool) {
	if s.kept != nil {
		return s.kept.pubcomp(id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.flight(id); f != nil && f.state == awaitsPubcomp {
		return s.land(f)
	}
	return false
}

// beginReplay stops everything from being sent until endReplay, so that
// nothing comes before the answer to a subscription.
func (s *session) beginReplay() {
	s.mu.Lock()
	s.replaying = true
	s.mu.Unlock()
}

// place is where in the queue retained messages belong that are found now:
// behind what is older, before what is newer.
func (s *session) place() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gone + uint64(s.queue.len())
}

// endReplay takes the retained messages that were found.
func (s *session) endReplay(found []replayed) {
	s.mu.Lock()
	for _, d := range found {
		s.replay.push(d)
	}
	s.replaying = false
	wake := !s.awake && !s.stuck
	s.awake = s.awake || wake
	s.mu.Unlock()
	if wake || s.kept != nil {
		s.wake()
	}
}

// replayWaits is how many retained messages wait to be sent.
func (s *session) replayWaits() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.replay.len()
}

// attach makes c the connection of the session.
func (s *session) attach(c *conn, window int) error {
	s.mu.Lock()
	s.conn.Store(c)
	s.window, s.awake, s.stuck = window, false, false
	s.leftAt, s.will = time.Time{}, nil
	s.turn, s.open = s.turn+1, 0
	s.mu.Unlock()
	if s.kept == nil {
		return nil
	}
	return s.kept.attach(c, window)
}

// detach notes that the client has left a session that is kept. What waited in
// memory had QoS 0.
func (s *session) detach(c *conn) {
	s.kept.detach(c)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn.Store(nil)
	s.queue, s.replay, s.bytes, s.replaying = ring[delivery]{}, ring[replayed]{}, 0, false
	s.leftAt = time.Now()
}

// end takes the session's subscriptions away and drops what waits for it. What
// came through a shared subscription and was not acknowledged goes to another
// member, MQTT 5 §4.8.2. Only its own goroutine calls it.
func (s *session) end() {
	for _, sub := range s.subscriptions {
		s.b.index.replace(sub, nil)
	}
	s.subscriptions = nil
	s.mu.Lock()
	s.ended = true
	var others []delivery
	keep := func(d delivery) {
		if d.group != nil && d.m != nil && d.qos > 0 {
			others = append(others, d)
		}
	}
	for ; s.inflight.len() > 0; s.inflight.pop() {
		// What is on its way with QoS 2 must not go to anybody else [MQTT-4.8.2-5].
		if f := s.inflight.at(0); f.qos < 2 {
			keep(f.delivery)
		}
	}
	for ; s.queue.len() > 0; s.queue.pop() {
		keep(*s.queue.at(0))
	}
	s.replay, s.queue, s.inflight = ring[replayed]{}, ring[delivery]{}, ring[sent]{}
	s.conn.Store(nil)
	s.mu.Unlock()
	var f fanout
	for _, d := range others {
		s.b.redirect(d, &f)
	}
	f.wake()
}
