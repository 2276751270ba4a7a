package bridge

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
)

// Outboxes are a bridge's, by class; the class local has none. Replay comes last.
type Outboxes [Replay + 1]*buffer.Outbox

// Replay is the place of a second outbox of the class telemetry. With live-first it
// takes what cannot be sent soon, so that it does not stand before what is new.
const Replay = int(buffer.Local)

// OpenOutboxes opens the outboxes of one destination, or creates them.
func OpenOutboxes(b *buffer.Buffer, name string) (Outboxes, error) {
	var out Outboxes
	for lane := range out {
		of, class := name, buffer.Class(lane)
		if lane == Replay {
			of, class = name+"/replay", buffer.Telemetry
		}
		var err error
		if out[lane], err = b.Outbox(of, class); err != nil {
			return Outboxes{}, err
		}
	}
	return out, nil
}

// lane is an outbox's place.
func (o *Outboxes) lane(b *buffer.Outbox) int {
	if b == o[Replay] {
		return Replay
	}
	return int(b.Class())
}

// Ledger adds up the classes.
func (o Outboxes) Ledger() buffer.Ledger {
	var sum buffer.Ledger
	for _, b := range o {
		sum.Add(b.Ledger())
	}
	return sum
}

// The 65,535 packet ids are shared out for good, because an id must mean the same
// copy after a restart: 1 to 8,191 are for what the bridge says on its own behalf,
// the next three times 8,192 for alert, command and status, 16,384 for telemetry,
// and the last 16,384 for what is replayed of that.
const (
	idBlock    = 8192
	idPresence = 1
)

// packetID is the id of a copy: the base of its lane + ordinal mod size. It needs
// no table and no file. Two copies that are unsettled at the same time must not
// share one, so a copy waits for the one that is a whole share older.
func packetID(lane int, ordinal uint64) uint16 {
	base := uint64(lane+1) * idBlock
	if lane == Replay {
		base = 6 * idBlock
	}
	return uint16(base + ordinal%idShare(lane))
}

// idShare is how many ids a lane has.
func idShare(lane int) uint64 {
	if lane >= int(buffer.Telemetry) {
		return 2 * idBlock
	}
	return idBlock
}

// flight is a message that was sent with QoS 1 or 2 and has not been settled.
type flight struct {
	buffer.Delivery // its Outbox is nil for the gateway's own status
	id              uint16
	qos             byte // it was sent with
	dup             bool // the upstream may have had it before
	size            int  // of the packet; 0 for the gateway's own status
	state           state
	came            uint64         // of a received one: which PUBREC of the connection
	outcome         buffer.Outcome // of a released one, when its PUBCOMP comes; 0 settles nothing
}

// state is how far a flight is.
type state byte

const (
	sent     state = iota
	refused        // answered with "later"; it is not on the wire
	received       // a PUBREC came, and that is not durable yet
	released       // PUBREL goes or went; a PUBCOMP ends it
)

// copyID names a copy.
type copyID struct {
	outbox  *buffer.Outbox
	ordinal uint64
}

// waiting is a QoS 2 copy that has no PUBREC, or one that is not yet noted. With id
// 0 it is copies up to an ordinal that ended without one: a mark may pass them only
// together with the outbox's cursor, or they would be taken for received after a
// crash.
type waiting struct {
	ordinal uint64
	id      uint16
}

// window holds the flights of one connection. What it allows to be unanswered is
// the Receive Maximum, and less for a while after the upstream has said "quota
// exceeded": from one message at a time it doubles with each that is taken, so
// that what was refused goes again in its order.
type window struct {
	size int // messages
	out  *Outboxes

	mu      sync.Mutex // guards all below
	moved   time.Time  // when the last answer came, or when the first flight began to wait for one
	flights map[uint16]*flight
	spare   []*flight
	refused []*flight
	held    int           // flights that are received: they wait for us
	limit   int           // of unanswered flights, at most size
	pause   time.Duration // the last one
	resume  time.Time     // nothing goes before; zero is no pause

	waits [len(Outboxes{})][]waiting // QoS 2, by lane: what has no PUBREC yet, in order
	came  uint64                     // PUBRECs
}

// A quota is tried again after a second, then after twice as long each time.
const (
	firstPause = time.Second
	maxPause   = 30 * time.Second
)

func newWindow(size int, out *Outboxes) *window {
	return &window{size: size, out: out, limit: size, flights: make(map[uint16]*flight)}
}

// room is how many more messages may be handed out by the buffer.
func (w *window) room() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.refused) > 0 {
		return 0
	}
	return w.limit - len(w.flights)
}

// largest is the largest message that is not settled, and the size of its packet,
// 0 if there is none.
func (w *window) largest() (d buffer.Delivery, size int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.flights {
		if f.state == sent && f.size > size {
			d, size = f.Delivery, f.size
		}
	}
	return d, size
}

// stuck reports whether messages are under way and none was answered for a while.
func (w *window) stuck(now time.Time, patience time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.flights) > len(w.refused)+w.held && now.Sub(w.moved) > patience
}

// inFlight is how many messages are not settled.
func (w *window) inFlight() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.flights)
}

// add takes a slot for a message that is about to be sent; qos 0 needs none. It
// reports false if the message has to wait for an answer: for messages before it,
// for a slot, or for its id.
func (w *window) add(d *buffer.Delivery, id uint16, qos byte, dup bool, size int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.refused) > 0 {
		return false
	}
	if qos == 0 {
		return true
	}
	f := w.slot(d, id)
	if f == nil {
		return false
	}
	f.qos, f.dup, f.size = qos, dup, size
	if d.QoS == 2 { // also if it goes with QoS 1: a mark must not pass it
		w.wait(d.Outbox, waiting{d.Ordinal, id})
	}
	return true
}

// pass notes that the copies up to an ordinal ended before they were sent.
func (w *window) pass(o *buffer.Outbox, ordinal uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wait(o, waiting{ordinal, 0})
}

// wait puts an entry behind those of its class. w.mu is held.
func (w *window) wait(o *buffer.Outbox, e waiting) {
	list := w.waits[w.out.lane(o)]
	if n := len(list); n > 0 && e.id == 0 && list[n-1].id == 0 {
		list[n-1].ordinal = e.ordinal
		return
	}
	if len(list) >= 2*maxWindow { // no PUBREC ever comes that would have it shortened
		settled := o.Marks().Settled
		n, _ := slices.BinarySearchFunc(list, settled+1, func(e waiting, ordinal uint64) int { return cmp.Compare(e.ordinal, ordinal) })
		list = slices.Clone(list[n:])
	}
	w.waits[w.out.lane(o)] = append(list, e)
}

// holding reports whether something that is received waits for us.
func (w *window) holding() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.held > 0
}

// release takes a slot for a copy of which only the PUBREL is to be sent. It is
// settled with the outcome; with 0 there is no copy any more, only its id. It
// reports false if it has to wait, as add does.
func (w *window) release(d *buffer.Delivery, id uint16, out buffer.Outcome) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.refused) > 0 {
		return false
	}
	f := w.slot(d, id)
	if f == nil {
		return false
	}
	f.qos, f.state, f.outcome = 2, released, out
	if out != 0 && out != buffer.Delivered {
		w.wait(d.Outbox, waiting{d.Ordinal, 0})
	}
	return true
}

// slot makes a flight if there is room for it. w.mu is held.
func (w *window) slot(d *buffer.Delivery, id uint16) *flight {
	if len(w.flights) >= w.limit || w.flights[id] != nil {
		return nil
	}
	var f *flight
	if n := len(w.spare); n > 0 {
		f, w.spare = w.spare[n-1], w.spare[:n-1]
	} else {
		f = new(flight)
	}
	*f = flight{Delivery: *d, id: id}
	if len(w.flights) == 0 {
		w.moved = time.Now()
	}
	w.flights[id] = f
	return f
}

// acked ends the flight that a PUBACK, or a PUBREC that ends it as well, is for. It
// reports false if there is none: an answer that came twice.
func (w *window) acked(id uint16, qos byte, taken bool) (buffer.Delivery, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.flights[id]
	if f == nil || f.state != sent || f.qos != qos {
		return buffer.Delivery{}, false
	}
	return w.end(f, taken), true
}

// completed ends the flight that a PUBCOMP is for, with the outcome that it has.
func (w *window) completed(id uint16) (buffer.Delivery, buffer.Outcome, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.flights[id]
	if f == nil || f.state != released {
		return buffer.Delivery{}, 0, false
	}
	out := f.outcome
	return w.end(f, true), out, true
}

// drop ends a refused flight that is not to be sent again.
func (w *window) drop(id uint16) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f := w.flights[id]; f != nil {
		w.end(f, false)
	}
}

// end lets go of a flight. w.mu is held.
func (w *window) end(f *flight, taken bool) buffer.Delivery {
	w.moved = time.Now()
	delete(w.flights, f.id)
	d := f.Delivery
	*f = flight{} // let go of the payload
	w.spare = append(w.spare, f)
	if taken {
		w.limit = min(2*w.limit, w.size)
		if len(w.refused) == 0 {
			w.pause = 0
		}
	}
	return d
}

// received notes a PUBREC. It reports false if that is none the connection waits
// for: one that came twice, or of a copy that was not sent again yet.
func (w *window) received(id uint16) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.flights[id]
	if f == nil || f.state != sent || f.qos != 2 {
		return false
	}
	w.moved = time.Now()
	w.came++
	f.state, f.came = received, w.came
	w.held++
	return true
}

// commit is what is to be made durable before PUBRELs go.
type commit struct {
	upTo [len(Outboxes{})]uint64 // a PUBREC came for all QoS 2 copies up to here; 0 is as before
	ids  []copyAt                // what may be released then
}

// copyAt is a flight, and when its PUBREC came.
type copyAt struct {
	copyID
	id   uint16
	came uint64
}

// toCommit moves the marks over what has its PUBREC, or is settled without one.
func (w *window) toCommit() (c commit) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for lane := range w.waits {
		list := w.waits[lane]
		n := 0
		for ; n < len(list); n++ {
			f := w.flights[list[n].id]
			if list[n].id == 0 || f == nil || f.Ordinal != list[n].ordinal { // settled without a PUBREC
				if w.out[lane].Marks().Settled < list[n].ordinal {
					break
				}
				continue
			}
			if f.state != received {
				break
			}
			c.ids = append(c.ids, copyAt{copyID{f.Outbox, f.Ordinal}, f.id, f.came})
		}
		if n == 0 {
			continue
		}
		c.upTo[lane] = list[n-1].ordinal
		if w.waits[lane] = list[n:]; n == len(list) {
			w.waits[lane] = list[:0]
		}
	}
	slices.SortFunc(c.ids, func(a, b copyAt) int { return cmp.Compare(a.came, b.came) })
	return c
}

// committed notes that a commit is durable, and appends the PUBRELs that go now, in
// the order in which the PUBRECs came (MQTT 5 §4.6).
func (w *window) committed(c commit, dst []byte) []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, at := range c.ids {
		f := w.flights[at.id]
		if f == nil || f.Ordinal != at.ordinal || f.Outbox != at.outbox {
			continue
		}
		w.moved = time.Now() // marks alone are no news of the upstream
		f.state, f.outcome = released, buffer.Delivered
		w.held--
		dst = appendPubrel(dst, at.id)
	}
	return dst
}

// repeated reports whether a flight without a PUBREC was sent with DUP.
func (w *window) repeated(id uint16) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.flights[id]
	return f != nil && f.state == sent && f.qos == 2 && f.dup
}

// open yields the QoS 2 copies of which the upstream may have the id.
func (w *window) open(yield func(lane int, ordinal uint64)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.flights {
		if f.qos == 2 && f.state != refused && f.Outbox != nil {
			yield(w.out.lane(f.Outbox), f.Ordinal)
		}
	}
}

// refuse keeps the flight to be sent again. It reports false if there is none, and
// the pause if one begins with it.
func (w *window) refuse(id uint16, qos byte, now time.Time) (ok bool, pause time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.flights[id]
	if f == nil || f.state != sent || f.qos != qos {
		return false, 0
	}
	f.state = refused
	w.moved = now
	w.refused = append(w.refused, f)
	slices.SortFunc(w.refused, func(a, b *flight) int {
		return cmp.Or(cmp.Compare(w.out.lane(a.Outbox), w.out.lane(b.Outbox)), cmp.Compare(a.Ordinal, b.Ordinal))
	})
	w.limit = 1
	if !now.Before(w.resume) { // not of a volley that has paused us already
		w.pause = min(max(firstPause, 2*w.pause), maxPause)
		w.resume = now.Add(w.pause)
		pause = w.pause
	}
	return true, pause
}

// retry returns the next refused message, which is about to be sent. If there is
// none to send now, it returns how long to wait for one; 0 is until an answer
// comes. What waits for us does not count: it may wait for what was refused.
func (w *window) retry(now time.Time) (d buffer.Delivery, ok bool, wait time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case len(w.refused) == 0:
		return d, false, 0
	case now.Before(w.resume):
		return d, false, w.resume.Sub(now)
	case len(w.flights)-len(w.refused)-w.held >= w.limit:
		return d, false, 0
	}
	f := w.refused[0]
	w.refused = w.refused[1:]
	f.state, f.dup = sent, false // its id was set free
	w.moved = now
	return f.Delivery, true, 0
}
