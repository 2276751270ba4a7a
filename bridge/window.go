package bridge

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
)

// Outboxes are a bridge's, by class; the class local has none.
type Outboxes [buffer.Local]*buffer.Outbox

// OpenOutboxes opens the outboxes of one destination, or creates them.
func OpenOutboxes(b *buffer.Buffer, name string) (Outboxes, error) {
	var out Outboxes
	for class := range out {
		var err error
		if out[class], err = b.Outbox(name, buffer.Class(class)); err != nil {
			return Outboxes{}, err
		}
	}
	return out, nil
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
// and the last 16,384 are spare.
const (
	idBlock    = 8192
	idPresence = 1
)

// packetID is the id of a copy: the base of its class + ordinal mod size. It needs
// no table and no file. Two copies that are unsettled at the same time must not
// share one, so a copy waits for the one that is a whole share older.
func packetID(class buffer.Class, ordinal uint64) uint16 {
	size := uint64(idBlock)
	if class == buffer.Telemetry {
		size = 2 * idBlock
	}
	return uint16((uint64(class)+1)*idBlock + ordinal%size)
}

// flight is a message that was sent with QoS 1 or 2 and has not been settled.
type flight struct {
	buffer.Delivery // its Outbox is nil for the gateway's own status
	id              uint16
	size            int  // of the packet; 0 for the gateway's own status
	refused         bool // answered with "later"; it is not on the wire
}

// window holds the flights of one connection. What it allows to be unanswered is
// the Receive Maximum, and less for a while after the upstream has said "quota
// exceeded": from one message at a time it doubles with each that is taken, so
// that what was refused goes again in its order.
type window struct {
	size int // messages

	mu      sync.Mutex // guards all below
	moved   time.Time  // when the last answer came, or when the first flight began to wait for one
	flights map[uint16]*flight
	spare   []*flight
	refused []*flight
	limit   int           // of unanswered flights, at most size
	pause   time.Duration // the last one
	resume  time.Time     // nothing goes before; zero is no pause
}

// A quota is tried again after a second, then after twice as long each time.
const (
	firstPause = time.Second
	maxPause   = 30 * time.Second
)

func newWindow(size int) *window {
	return &window{size: size, limit: size, flights: make(map[uint16]*flight)}
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
		if f.size > size {
			d, size = f.Delivery, f.size
		}
	}
	return d, size
}

// stuck reports whether messages are under way and none was answered for a while.
func (w *window) stuck(now time.Time, patience time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.flights) > len(w.refused) && now.Sub(w.moved) > patience
}

// inFlight is how many messages are not settled.
func (w *window) inFlight() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.flights)
}

// add takes a slot for a message that is about to be sent; id 0 is one with
// QoS 0, which needs none. It reports false if the message has to wait for an
// answer: for messages before it, for a slot, or for its id.
func (w *window) add(d *buffer.Delivery, id uint16, size int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.refused) > 0 {
		return false
	}
	if id == 0 {
		return true
	}
	if len(w.flights) >= w.limit || w.flights[id] != nil {
		return false
	}
	var f *flight
	if n := len(w.spare); n > 0 {
		f, w.spare = w.spare[n-1], w.spare[:n-1]
	} else {
		f = new(flight)
	}
	*f = flight{Delivery: *d, id: id, size: size}
	if len(w.flights) == 0 {
		w.moved = time.Now()
	}
	w.flights[id] = f
	return true
}

// done ends the flight with this id. It reports false if there is none: an answer
// that came twice.
func (w *window) done(id uint16, taken bool) (buffer.Delivery, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.flights[id]
	if f == nil || f.refused {
		return buffer.Delivery{}, false
	}
	w.moved = time.Now()
	delete(w.flights, id)
	d := f.Delivery
	*f = flight{} // let go of the payload
	w.spare = append(w.spare, f)
	if taken {
		w.limit = min(2*w.limit, w.size)
		if len(w.refused) == 0 {
			w.pause = 0
		}
	}
	return d, true
}

// refuse keeps the flight to be sent again. It reports false if there is none, and
// the pause if one begins with it.
func (w *window) refuse(id uint16, now time.Time) (ok bool, pause time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.flights[id]
	if f == nil || f.refused {
		return false, 0
	}
	f.refused = true
	w.moved = now
	w.refused = append(w.refused, f)
	slices.SortFunc(w.refused, func(a, b *flight) int {
		return cmp.Or(cmp.Compare(a.Outbox.Class(), b.Outbox.Class()), cmp.Compare(a.Ordinal, b.Ordinal))
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
// comes.
func (w *window) retry(now time.Time) (d buffer.Delivery, ok bool, wait time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case len(w.refused) == 0:
		return d, false, 0
	case now.Before(w.resume):
		return d, false, w.resume.Sub(now)
	case len(w.flights)-len(w.refused) >= w.limit:
		return d, false, 0
	}
	f := w.refused[0]
	w.refused = w.refused[1:]
	f.refused = false
	w.moved = now
	return f.Delivery, true, 0
}
