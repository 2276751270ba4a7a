package localbroker

import (
	"context"
	"encoding/binary"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// takeAtOnce is how many copies are read at a time.
const takeAtOnce = 64

// kept is the part of a session that outlives its connections and the process. What
// it gets with QoS 1 and 2 is copies in outboxes of its own, one for each class; they
// are read when the client takes them, so a client that is away or slow costs no
// memory.
type kept struct {
	s      *session
	id     uint64
	expiry time.Duration // after the client has left; only its connection changes it

	lanes [buffer.NumClasses]atomic.Pointer[lane]
	over  bool // the session has ended, there will be no more lanes; guarded by Broker.making

	reading sync.Mutex // guards what follows; held while copies are read, by the one goroutine that writes to the client
	reader  *buffer.Reader
	owner   *conn // that the copies go to
	average int   // bytes of a copy, lately

	mu      sync.Mutex // guards what follows, and the lanes' own
	conn    *conn      // that the flights are on; nil while the client is away
	added   []*lane    // that the reader does not have yet
	window  int
	unacked int  // sent on this connection and not acknowledged
	stuck   bool // the window is full
}

// flight is a copy on its way to the client.
type flight struct {
	state   flightState
	counted bool // in the window of this connection
}

type flightState uint8

const (
	landed        flightState = iota // settled
	awaitsPuback                     // QoS 1
	awaitsPubrec                     // QoS 2
	awaitsDisk                       // QoS 2: PUBREC came, and is not durable yet
	awaitsPubcomp                    // QoS 2: PUBREL was sent

)

// flight returns the copy that is under way under an identifier, nil if there is none.
func (k *kept) flight(id uint16) (*lane, uint64, *flight) {
	class := (int(id) - 1) / laneSize
	if id == 0 || class >= int(buffer.NumClasses) {
		return nil, 0, nil
	}
	l := k.lanes[class].Load()
	if l == nil || l.flights.len() == 0 {
		return nil, 0, nil
	}
	size := uint64(laneSize)
	i := ((uint64(id)-1)%size + size - (l.first-1)%size) % size
	if i >= uint64(l.flights.len()) || l.flights.at(int(i)).state == landed {
		return nil, 0, nil
	}
	return l, l.first + i, l.flights.at(int(i))
}

// launch returns the flight of a copy, making it if it is new. k.mu is held.
func (l *lane) launch(ordinal uint64) *flight {
	if l.flights.len() == 0 {
		l.first = ordinal
	}
	for l.first+uint64(l.flights.len()) <= ordinal {
		l.flights.push(flight{})
	}
	return l.flights.at(int(ordinal - l.first))
}

// land ends a flight. k.mu is held.
func (k *kept) land(l *lane, ordinal uint64, f *flight, out buffer.Outcome) (wake bool) {
	if f.counted {
		k.unacked--
	}
	*f = flight{}
	delete(l.outOfTurn, ordinal)
	for l.flights.len() > 0 && l.flights.at(0).state == landed {
		l.flights.pop()
		l.first++
	}
	l.outbox.Settle(ordinal, out)
	wake = k.stuck
	k.stuck = false
	return wake
}

// attach makes a connection the one that the copies go to, under its own Receive
// Maximum. All that was sent and is not settled comes again.
func (k *kept) attach(c *conn, window int) error {
	k.reading.Lock()
	defer k.reading.Unlock()
	if k.reader == nil {
		r, err := k.s.b.options.State.buffer.ReaderFunc(k.s.wake)
		if err != nil {
			return err
		}
		k.reader = r
	}
	k.owner = c
	k.reader.Rewind()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.conn, k.window, k.unacked, k.stuck = c, window, 0, false
	for class := range k.lanes {
		if l := k.lanes[class].Load(); l != nil {
			l.resume()
		}
	}
	return nil
}

// resume forgets what was sent: it comes again. k.mu is held.
func (l *lane) resume() {
	for ; l.flights.len() > 0; l.first++ {
		if f := l.flights.pop(); f.state == awaitsDisk || f.state == awaitsPubcomp {
			if l.resumed == nil {
				l.resumed = make(map[uint64]flightState)
			}
			l.resumed[l.first] = f.state
		}
	}
}

// detach takes the copies from a connection that ends.
func (k *kept) detach(c *conn) {
	k.reading.Lock()
	defer k.reading.Unlock()
	if k.owner == c {
		k.owner = nil
		k.mu.Lock()
		k.conn = nil
		k.mu.Unlock()
	}
}

// take moves copies that may be sent now to dst, as session.take does.
func (k *kept) take(c *conn, dst []outgoing, bytes int) (batch []outgoing, more bool, err error) {
	k.reading.Lock()
	defer k.reading.Unlock()
	if k.owner != c {
		return dst, false, nil
	}
	k.mu.Lock()
	added := k.added
	k.added = nil
	n := min(cap(dst)-len(dst), takeAtOnce, k.window-k.unacked)
	if k.stuck = k.unacked >= k.window; k.stuck {
		n = 0
	}
	k.mu.Unlock()
	for _, l := range added {
		if err := k.reader.Add(l.outbox); err != nil {
			return dst, false, err
		}
	}
	if n = min(n, max(bytes, 1)/max(k.average, 1)+1); n <= 0 {
		return dst, len(dst) == cap(dst), nil
	}
	pool := &k.s.b.deliveries
	space := pool.Get().(*[takeAtOnce]buffer.Delivery)
	defer pool.Put(space)
	got, err := k.reader.TryNext(space[:n])
	if err != nil {
		return dst, false, err
	}
	var highest [buffer.NumClasses]uint64 // QoS 2 copies that are sent for the first time
	size := 0
	for i := range space[:got] {
		d := &space[i]
		size += len(d.Topic) + len(d.Payload) + len(d.Props)
		if o, ok := k.send(d); ok {
			dst = append(dst, o)
			if d.QoS == 2 {
				highest[d.Outbox.Class()] = d.Ordinal
			}
		}
		*d = buffer.Delivery{}
	}
	if got > 0 {
		k.average = size / got
	}
	for class, ordinal := range highest {
		if ordinal > 0 {
			// A copy beyond what is reserved was never sent; one up to there keeps its
			// identifier until it is settled.
			if err := k.lanes[class].Load().outbox.Reserve(ordinal); err != nil {
				return dst, false, err
			}
		}
	}
	return dst, got > 0, nil // what was settled or has expired did not come, and there may be more behind it
}

// send makes of a copy what goes to the client; nothing if it must not.
func (k *kept) send(d *buffer.Delivery) (outgoing, bool) {
	l := k.lanes[d.Outbox.Class()].Load()
	topic := d.Topic
	if strings.HasPrefix(topic, "\x00") { // came through a shared subscription
		_, topic = splitShare(topic)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	f := l.launch(d.Ordinal)
	f.state = l.resumed[d.Ordinal]
	delete(l.resumed, d.Ordinal)
	switch {
	case f.state == awaitsDisk && d.Ordinal > l.durable && !l.outOfTurn[d.Ordinal]:
		return outgoing{}, false // its PUBREL follows
	case f.state == awaitsDisk, f.state == awaitsPubcomp, d.QoS == 2 && (d.Ordinal <= l.durable || l.outOfTurn[d.Ordinal]):
		f.state = awaitsPubcomp
		return outgoing{packetID: l.packetID(d.Ordinal), release: true}, true
	case !k.s.mayReceive(topic):
		k.land(l, d.Ordinal, f, buffer.DroppedRefused)
		k.s.b.stats.dropped.Add(1)
		return outgoing{}, false
	}
	f.state = awaitsPuback
	if d.QoS == 2 {
		f.state = awaitsPubrec
	}
	f.counted = true
	k.unacked++
	m := &Message{Topic: topic, Payload: d.Payload, Props: packet.Properties(d.Props), QoS: d.QoS, Expiry: d.Expiry, Received: d.Enqueued}
	return outgoing{delivery: delivery{m: m, qos: d.QoS, retain: d.Retain}, packetID: l.packetID(d.Ordinal), dup: d.Dup}, true
}

// puback, pubrec and pubcomp take the client's answers. They report whether the
// caller is to wake the session.

func (k *kept) puback(id uint16) (wake bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l, ordinal, f := k.flight(id); f != nil && f.state == awaitsPuback {
		return k.land(l, ordinal, f, buffer.Delivered)
	}
	return false
}

// refuse ends a copy that the client does not take on a connection; it may take it
// on the next.
func (k *kept) refuse(on *conn, id uint16) (wake bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l, ordinal, f := k.flight(id); f != nil && k.conn == on {
		return k.land(l, ordinal, f, buffer.DroppedRefused)
	}
	return false
}

// pubrec is a PUBREC. Its PUBREL follows when it is durable; known is false if there
// is no such copy, and repeat true if the PUBREL was sent already.
func (k *kept) pubrec(id uint16, failed bool) (known, repeat, wake bool) {
	known, repeat, wake, late := k.takePubrec(id, failed)
	if late == nil {
		return known, repeat, wake
	}
	record := binary.AppendUvarint(nil, k.id)
	record = append(record, byte(late.l.outbox.Class()))
	record = binary.AppendUvarint(record, late.ordinal)
	record = binary.AppendUvarint(record, late.durable)
	if err := k.s.b.options.State.record(context.Background(), buffer.Local, changeReceived, record, late); err != nil {
		late.Stored(err)
	}
	return known, repeat, wake
}

// outOfTurn is the receipt for a PUBREC that came out of turn.
type outOfTurn struct {
	k       *kept
	l       *lane
	ordinal uint64
	durable uint64 // of those up to here it need not be known any more: the mark says it
}

// Stored is the buffer's receipt.
func (r *outOfTurn) Stored(err error) {
	r.k.goOn(r.released, err)
}

// released is kept.released for this one copy.
func (r *outOfTurn) released() (ids []uint16) {
	var f *flight
	state := r.l.resumed[r.ordinal]
	if i := r.ordinal - r.l.first; r.ordinal >= r.l.first && i < uint64(r.l.flights.len()) {
		f = r.l.flights.at(int(i))
		state = f.state
	}
	if state == landed { // it has ended meanwhile
		return nil
	}
	r.l.outOfTurn[r.ordinal] = true
	if f != nil && state == awaitsDisk {
		f.state = awaitsPubcomp
		ids = append(ids, r.l.packetID(r.ordinal))
	}
	return ids
}

// goOn sends the PUBRELs of copies whose PUBREC has become durable, or, with an error,
// ends the connection. They are for the connection that those copies are on: on the
// next one they come again by themselves.
func (k *kept) goOn(released func() []uint16, err error) {
	k.mu.Lock()
	var ids []uint16
	if err == nil {
		ids = released()
	}
	c := k.conn
	k.mu.Unlock()
	switch {
	case c == nil:
	case err != nil:
		c.end(packet.Errorf(packet.ImplementationSpecific, "the disk failed"))
	default:
		c.sendPubrels(ids)
	}
}

func (k *kept) takePubrec(id uint16, failed bool) (known, repeat, wake bool, late *outOfTurn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	l, ordinal, f := k.flight(id)
	switch {
	case f == nil || f.state == awaitsPuback:
		return false, false, false, nil
	case f.state == awaitsPubcomp:
		return true, true, false, nil
	case failed:
		wake = k.land(l, ordinal, f, buffer.DroppedRefused)
	case f.state == awaitsPubrec:
		f.state = awaitsDisk
	}
	// The mark is for all up to an ordinal: a client answers in order [MQTT-4.6.0-3].
	// For one that does not, the rest is changes of the state.
	rec := l.rec
	for next := max(rec+1, l.first); next < l.first+uint64(l.flights.len()); next++ {
		if l.flights.at(int(next-l.first)).state == awaitsPubrec {
			break
		}
		rec = next
	}
	if rec > l.rec {
		l.rec = rec
		l.outbox.Received(rec)
		k.s.b.marker.add(k)
	}
	if !failed && ordinal > l.rec {
		late = &outOfTurn{k, l, ordinal, l.durable}
	}
	return true, false, wake, late
}

func (k *kept) pubcomp(id uint16) (wake bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l, ordinal, f := k.flight(id); f != nil && f.state == awaitsPubcomp {
		return k.land(l, ordinal, f, buffer.Delivered)
	}
	return false
}

// flushing notes what is about to be made durable.
func (k *kept) flushing() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for class := range k.lanes {
		if l := k.lanes[class].Load(); l != nil {
			l.flushed = l.rec
		}
	}
}

// released returns the identifiers of the copies whose PUBREC has become durable. k.mu
// is held.
func (k *kept) released() (ids []uint16) {
	for class := range k.lanes {
		l := k.lanes[class].Load()
		if l == nil {
			continue
		}
		l.durable = l.flushed
		for i := range l.flights.len() {
			ordinal := l.first + uint64(i)
			if ordinal > l.durable {
				break
			}
			if f := l.flights.at(i); f.state == awaitsDisk {
				f.state = awaitsPubcomp
				ids = append(ids, l.packetID(ordinal))
			}
		}
	}
	return ids
}

// marker makes it durable that PUBRECs came, those of all sessions in one write,
// and has the PUBRELs sent.
type marker struct {
	b *Broker

	mu      sync.Mutex // guards what follows
	waiting map[*kept]struct{}
	running bool
}

// add has what is known of a session made durable. It may be called with the
// session's lock held.
func (m *marker) add(k *kept) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.waiting == nil {
		m.waiting = make(map[*kept]struct{})
	}
	m.waiting[k] = struct{}{}
	if !m.running {
		m.running = true
		m.b.background.begin(m.run)
	}
}

func (m *marker) run() {
	for {
		m.mu.Lock()
		waiting := m.waiting
		m.waiting = nil
		if len(waiting) == 0 {
			m.running = false
			m.mu.Unlock()
			return
		}
		m.mu.Unlock()
		_ = m.b.guard("answers of QoS 2 subscribers", func() { m.flush(waiting) })
	}
}

func (m *marker) flush(waiting map[*kept]struct{}) {
	var outboxes []*buffer.Outbox
	for k := range waiting {
		k.flushing()
		outboxes = append(outboxes, k.outboxes()...)
	}
	err := m.b.options.State.buffer.Flush(outboxes...)
	if err != nil {
		m.b.log.Error("answers of QoS 2 subscribers could not be made durable; their connections end", "err", err)
	}
	for k := range waiting {
		k.goOn(k.released, err)
	}
}

// A copy that came through a shared subscription has a topic that names it, so that
// it can go to another member if this one's session ends.

func joinShare(filter, topic string) string { return "\x00" + filter + "\x00" + topic }

func splitShare(joined string) (filter, topic string) {
	filter, topic, _ = strings.Cut(joined[1:], "\x00")
	return filter, topic
}
