package localbroker

import (
	"sync"
	"time"
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

// sent is a delivery that waits for its PUBACK.
type sent struct {
	delivery
	acked bool
}

// outgoing is a delivery with the packet identifier it goes out with.
type outgoing struct {
	delivery
	packetID uint16
}

// session is what the broker knows of one client: what it has subscribed to,
// what waits for it, and what it has not acknowledged. Sessions of callers
// inside of the process have a handler in the place of a connection.
type session struct {
	b       *Broker
	id      string
	rights  Rights // nil may do everything
	conn    *conn
	handler *handler
	window  int // unacknowledged deliveries that the client takes, its Receive Maximum

	subscriptions map[string]*subscription // by filter; only its own goroutine uses it

	mu        sync.Mutex // guards what follows
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
}

// packetID is the identifier of the n-th delivery.
func packetID(n uint64) uint16 { return uint16(n%numPacketIDs) + 1 }

func (s *session) mayReceive(topic string) bool {
	return s.rights == nil || s.rights.MayReceive(topic)
}

// enqueue takes a delivery, or, if there is no room, drops it or an older one.
// wake is true if the caller is to wake the session. A session that has ended
// takes nothing.
func (s *session) enqueue(d delivery) (wake, taken bool) {
	size := d.m.size()
	s.mu.Lock()
	if s.ended {
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
		s.b.stats.dropped.Add(uint64(dropped))
	}
	if warn {
		s.b.log.Warn("subscriber is too slow, messages are dropped", "client", s.id, "limit_messages", s.b.limits.QueuedMessages, "limit_bytes", s.b.limits.QueuedBytes)
	}
	return wake, true
}

// wake tells whoever sends that enqueue, ack or endReplay reported true.
func (s *session) wake() {
	if s.handler != nil {
		s.handler.wake()
	} else {
		s.conn.wake()
	}
}

// take moves what may be sent now to dst, to its capacity or to about bytes. It reports
// whether there is more.
func (s *session) take(dst []outgoing, bytes int) (batch []outgoing, more bool) {
	now := time.Now()
	expired := 0
	s.mu.Lock()
	s.awake = false
	for !s.ended && !s.replaying {
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
			s.inflight.push(sent{delivery: out.delivery})
			s.unacked++
			s.bytes += out.m.size()
		}
		dst = append(dst, out)
	}
	s.mu.Unlock()
	if expired > 0 {
		s.b.stats.expired.Add(uint64(expired))
	}
	return dst, more
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

// ack ends a delivery. It reports true if the caller is to wake the session.
// An identifier that is not in use changes nothing.
func (s *session) ack(id uint16) (wake bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := int((uint64(id) - 1 + numPacketIDs - s.first%numPacketIDs) % numPacketIDs)
	if id == 0 || i >= s.inflight.len() || s.inflight.at(i).acked {
		return false
	}
	done := s.inflight.at(i)
	s.bytes -= done.m.size()
	*done = sent{acked: true}
	s.unacked--
	for s.inflight.len() > 0 && s.inflight.at(0).acked {
		s.inflight.pop()
		s.first++
	}
	wake = s.stuck && !s.awake
	s.awake, s.stuck = s.awake || wake, false
	return wake
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
	if wake {
		s.wake()
	}
}

// replayWaits is how many retained messages wait to be sent.
func (s *session) replayWaits() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.replay.len()
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
		if d.group != nil && d.qos > 0 {
			others = append(others, d)
		}
	}
	for ; s.inflight.len() > 0; s.inflight.pop() {
		keep(s.inflight.at(0).delivery)
	}
	for ; s.queue.len() > 0; s.queue.pop() {
		keep(*s.queue.at(0))
	}
	s.replay, s.queue, s.inflight = ring[replayed]{}, ring[delivery]{}, ring[sent]{}
	s.mu.Unlock()
	var f fanout
	for _, d := range others {
		s.b.redirect(d, &f)
	}
	f.wake()
}
