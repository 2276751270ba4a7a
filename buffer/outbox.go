package buffer

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fieldferry/fieldferry/buffer/log"
)

// maxWindow is how many copies of an outbox may be handed out and unsettled: as
// many as MQTT has packet ids (MQTT 5 §2.2.1).
const maxWindow = 65535

// Outbox is the queue of one destination in one class. Each copy that is
// appended for it gets the next ordinal; the order of ordinals is the order of
// the appends, and holds over restarts.
type Outbox struct {
	id    uint32
	name  string
	class Class
	chain *chain

	enc encoderSide
	rd  readerSide

	mu       sync.Mutex // guards what follows
	marks               // cursor and outcomes are live, not what is durable
	next     uint64     // ordinal the next copy gets; the copies accepted are next-1
	stored   uint64     // copies accepted and not settled
	taken    uint64     // highest ordinal handed out since the last rewind
	dupTo    uint64     // copies up to here may have been handed out before
	reserved uint64     // sent is durable up to here
	began    uint64     // sent when the buffer was opened
	window   []Outcome  // of the copies above cursor: a ring, its length a power of two
	ahead    [numOutcomes]uint64
	seen     []seen // the blocks that hold copies handed out and unsettled
	pins     []pin  // the generations that hold unsettled copies, oldest first
	limit    OutboxLimit
	removed  bool
	voids    []void // copies above taken that were dropped, in order
	reader   *Reader
	blocked  bool      // the reader waits for the window
	dirty    bool      // marks differ from what is durable
	since    time.Time // dirty since
	version  uint64    // of marks
}

// encoderSide is what the goroutine that writes directories keeps with an outbox.
type encoderSide struct {
	next  uint64 // the ordinal after those given out
	first uint64 // in the block being made
	count uint64
	named bool // the generation has the name
}

// seen is a block that was handed out from.
type seen struct {
	block       log.Seq
	first, last uint64
}

// void is a run of copies that were dropped before they were handed out. Nothing
// behind it is handed out before it is durable: a crash that brought it back would
// bring it back too late.
type void struct {
	first, last uint64
	out         Outcome
	durable     bool
}

// pin is a generation that holds copies of an outbox.
type pin struct {
	gen         *generation
	first, last uint64
	bytes       int64 // of all of these copies
}

// Name is the destination's.
func (o *Outbox) Name() string { return o.name }

// own reports whether the outbox is the program's own: its copies are changes of
// state, and reach nobody. So they neither expire nor make room: what they change
// holds when the message that brought it is long of no use. The name begins with a
// dollar sign.
func (o *Outbox) own() bool { return strings.HasPrefix(o.name, "$") }

// Class is that of all copies in the outbox.
func (o *Outbox) Class() Class { return o.class }

// Stored is how many copies are not settled.
func (o *Outbox) Stored() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.stored
}

// Settle says how a copy that was handed out has ended, in any order. It does no
// I/O: the mark is durable within a second, or with the next commit. If it gets
// lost before, the copy comes again. A copy that is already settled stays as it
// was.
func (o *Outbox) Settle(ordinal uint64, out Outcome) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.settle(ordinal, out)
}

func (o *Outbox) settle(ordinal uint64, out Outcome) {
	if ordinal <= o.cursor || ordinal > o.taken {
		return
	}
	slot := &o.window[ordinal&uint64(len(o.window)-1)]
	if *slot != 0 {
		return
	}
	*slot = out
	o.ahead[out]++
	o.stored--
	if ordinal == o.cursor+1 {
		o.advance()
	}
}

// advance moves the cursor over what is settled.
func (o *Outbox) advance() {
	mask := uint64(len(o.window) - 1)
	for {
		if len(o.voids) > 0 && o.voids[0].first == o.cursor+1 {
			v := o.voids[0]
			if !v.durable {
				if o.reader != nil {
					o.chain.buffer.hurry()
				}
				break
			}
			o.voids = o.voids[1:]
			n := v.last - v.first + 1
			o.ahead[v.out] -= n
			o.outcomes[v.out] += n
			o.cursor = v.last
			o.taken = max(o.taken, v.last)
			continue
		}
		if o.cursor >= o.taken {
			break
		}
		slot := &o.window[(o.cursor+1)&mask]
		if *slot == 0 {
			break
		}
		o.ahead[*slot]--
		o.outcomes[*slot]++
		*slot = 0
		o.cursor++
	}
	o.moved()
}

// underWayIn reports whether copies in a generation were handed out, maybe by an
// earlier process, and are not settled.
func (o *Outbox) underWayIn(g *generation) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	i := slices.IndexFunc(o.pins, func(p pin) bool { return p.gen == g })
	if i < 0 {
		return false
	}
	out := max(o.taken, o.dupTo)
	if o.own() {
		out = o.next - 1
	}
	return out >= o.pins[i].first && o.cursor < min(o.pins[i].last, out)
}

// drop settles the copies of a generation, none of which is under way.
func (o *Outbox) drop(g *generation, out Outcome) (dropped uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	i := slices.IndexFunc(o.pins, func(p pin) bool { return p.gen == g })
	if i < 0 || o.own() {
		return 0
	}
	p := o.pins[i]
	if p.last <= o.taken || o.own() {
		return 0 // all of it is settled, or became under way
	}
	first := max(p.first, o.taken+1)
	dropped = o.void(first, p.last, out)
	if first == p.first || o.cursor+1 == first {
		o.pins = slices.Delete(o.pins, i, i+1)
		o.chain.unpin(g)
	}
	o.advance()
	return dropped
}

// void settles the copies above taken from first to last that are not, and
// returns how many those were.
func (o *Outbox) void(first, last uint64, out Outcome) (n uint64) {
	at, _ := slices.BinarySearchFunc(o.voids, first, func(v void, first uint64) int { return cmp.Compare(v.first, first) })
	// What was voided already stays as it is.
	if at > 0 {
		first = max(first, o.voids[at-1].last+1)
	}
	for next := first; next <= last; {
		end := last
		if at < len(o.voids) && o.voids[at].first <= last {
			end = o.voids[at].first - 1
		}
		if next <= end {
			made := o.runs(next, end, out)
			for _, v := range made {
				if v.out == out {
					n += v.last - v.first + 1
				}
			}
			if k := at - 1; k >= 0 && len(made) > 0 && o.voids[k].last+1 == made[0].first && o.voids[k].out == made[0].out && !o.voids[k].durable {
				o.voids[k].last = made[0].last
				made = made[1:]
			}
			o.voids = slices.Insert(o.voids, at, made...)
			at += len(made)
		}
		next = end + 1
		if at < len(o.voids) && o.voids[at].first == next {
			next = o.voids[at].last + 1
			at++
		}
	}
	return n
}

// runs makes voids of copies above taken: of those that are not settled, with the
// outcome given; of those that were settled before a rewind, with their own.
func (o *Outbox) runs(first, last uint64, out Outcome) (runs []void) {
	for ordinal := first; ordinal <= last; {
		end, is, settled := last, out, false
		if reach := o.cursor + uint64(len(o.window)); ordinal < reach {
			slot := &o.window[ordinal&uint64(len(o.window)-1)]
			if *slot != 0 {
				is, settled = *slot, true
				*slot = 0
			}
			end = ordinal
		}
		if k := len(runs); k > 0 && runs[k-1].out == is {
			runs[k-1].last = end
		} else {
			runs = append(runs, void{first: ordinal, last: end, out: is})
		}
		if !settled {
			o.ahead[out] += end - ordinal + 1
			o.stored -= end - ordinal + 1
		}
		ordinal = end + 1
	}
	return runs
}

// moved lets go of what lies behind the cursor.
func (o *Outbox) moved() {
	for len(o.seen) > 0 && o.seen[0].last <= o.cursor {
		o.seen = o.seen[1:]
	}
	for len(o.pins) > 0 && o.pins[0].last <= o.cursor {
		o.chain.unpin(o.pins[0].gen)
		o.pins = o.pins[1:]
	}
	o.touch()
	if o.blocked {
		o.blocked = false
		o.reader.wake()
	}
}

// touch notes that the marks have changed.
func (o *Outbox) touch() {
	o.version++
	if !o.dirty {
		o.dirty = true
		o.since = time.Now()
	}
}

// Park keeps a copy that its destination refused for good where it can be
// inspected, and settles it as Parked.
func (o *Outbox) Park(d *Delivery, reason string) error {
	if d.Outbox != o {
		return errors.New("park: the copy is of another outbox")
	}
	if err := o.chain.buffer.meta.park(o, d, reason, o.chain.buffer.clock.Now()); err != nil {
		return fmt.Errorf("park: %w", err)
	}
	o.Settle(d.Ordinal, Parked)
	return nil
}

// Ledger counts the outbox's copies since it was made.
func (o *Outbox) Ledger() Ledger {
	o.mu.Lock()
	defer o.mu.Unlock()
	l := Ledger{Accepted: o.next - 1, Stored: o.stored, Dropped: make(map[string]uint64)}
	for out := Delivered; out < numOutcomes; out++ {
		l.count(out, o.outcomes[out]+o.ahead[out])
	}
	return l
}

// committed takes note of copies that have become durable.
// It reports false if there is no such outbox any more.
func (o *Outbox) committed(s span, g *generation, bytes int64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.removed {
		return false
	}
	o.next = s.last + 1
	o.stored += s.last - s.first + 1
	o.pin(s, g, bytes)
	o.trim()
	if o.reader != nil {
		o.reader.wake()
	}
	return true
}

// pin notes that a generation holds copies of the outbox.
func (o *Outbox) pin(s span, g *generation, bytes int64) {
	if n := len(o.pins); n > 0 && o.pins[n-1].gen == g {
		o.pins[n-1].last = s.last
		o.pins[n-1].bytes += bytes
		return
	}
	o.pins = append(o.pins, pin{g, s.first, s.last, bytes})
	o.chain.pin(g)
}

// durable returns the marks to be made durable, with their version.
func (o *Outbox) durable() (marks, uint64) {
	m := o.marks
	m.sent = max(m.sent, o.taken)
	return m, o.version
}

// persisted notes that the marks of a version are durable, and some voids.
func (o *Outbox) persisted(version uint64, voids []void) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.version == version {
		o.dirty = false
	}
	fresh := false
	for _, v := range voids {
		i, ok := slices.BinarySearchFunc(o.voids, v.first, func(v void, first uint64) int { return cmp.Compare(v.first, first) })
		if !ok || o.voids[i].durable {
			continue
		}
		if is := o.voids[i]; is.last > v.last { // it has grown meanwhile
			o.voids[i].last, is.first = v.last, v.last+1
			o.voids = slices.Insert(o.voids, i+1, is)
		}
		o.voids[i].durable, fresh = true, true
	}
	if fresh {
		o.advance()
	}
}

// urgent reports whether the reader may have to wait until the marks are durable.
// o.mu is held.
func (o *Outbox) urgent() bool {
	return slices.ContainsFunc(o.voids, func(v void) bool { return !v.durable })
}
