package buffer

import (
	"context"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"time"

	"github.com/fieldferry/fieldferry/buffer/log"
)

// Reader hands out the copies of one or more outboxes. Next, Rewind and Close
// must not be called concurrently; Settle and Park of the outboxes may.
type Reader struct {
	lanes  []*lane // the first class first
	ready  chan struct{}
	notify func() // instead of ready, if it is not nil
}

// lane is an outbox in a reader.
type lane struct {
	*Outbox
	passed int // copies of other lanes that went before while this one waited
}

// handOutBytes is how much of one outbox is handed out at a time: what is large must
// not make a reader hold as many as it has places for.
const handOutBytes = 1 << 20

// guard is how many copies of higher classes may pass a waiting lane before it
// has a turn.
const guard = 1024

// readerSide is where a reader stands in an outbox. Only the reader uses it.
type readerSide struct {
	after log.Seq // blocks up to here are done
	block *log.Block
	off   int           // of the next record in block
	nth   int           // copy of the outbox in that record
	next  uint64        // ordinal of the next copy in block
	last  uint64        // of the last
	made  time.Duration // when block was committed, as an uptime of this boot

	crowded bool    // the block has copies of many, and the next of ours are at
	places  []place // these
}

// Reader returns the single consumer of these outboxes; it starts with the oldest
// copy that is not settled.
func (b *Buffer) Reader(outboxes ...*Outbox) (*Reader, error) {
	return newReader(&Reader{ready: make(chan struct{}, 1)}, outboxes)
}

// ReaderFunc is Reader for a consumer that has no goroutine of its own and only
// calls TryNext: ready is called when there may be something new. That is while
// locks of the buffer are held: it must neither block nor call the buffer.
func (b *Buffer) ReaderFunc(ready func(), outboxes ...*Outbox) (*Reader, error) {
	return newReader(&Reader{notify: ready}, outboxes)
}

func newReader(r *Reader, outboxes []*Outbox) (*Reader, error) {
	for _, o := range outboxes {
		if err := r.Add(o); err != nil {
			r.Close()
			return nil, err
		}
	}
	return r, nil
}

// Add makes the reader the single consumer of one more outbox. It must not be
// called concurrently with Next, Rewind and Close.
func (r *Reader) Add(o *Outbox) error {
	o.mu.Lock()
	taken := o.reader != nil || o.removed
	if !taken {
		o.reader = r
	}
	o.mu.Unlock()
	if taken {
		return fmt.Errorf("outbox %s of class %s has a reader already, or is gone", o.name, o.class)
	}
	r.lanes = append(r.lanes, &lane{Outbox: o})
	slices.SortStableFunc(r.lanes, func(x, y *lane) int { return int(x.class) - int(y.class) })
	o.rewind()
	r.wake()
	return nil
}

// Close lets go of the outboxes.
func (r *Reader) Close() {
	for _, l := range r.lanes {
		l.mu.Lock()
		l.reader, l.blocked = nil, false
		l.mu.Unlock()
	}
	r.lanes = nil
}

func (r *Reader) wake() {
	if r.notify != nil {
		r.notify()
		return
	}
	select {
	case r.ready <- struct{}{}:
	default:
	}
}

// Next fills dst with the next copies, to about 1 MiB, and returns how many, at least
// one; it blocks until there is one or ctx ends. A copy that expired before it was ever
// handed out is settled as DroppedExpired instead. A copy of a higher class goes
// first; after 1,024 of those, a class that waits has a turn. An outbox has at most
// 65,535 copies handed out and unsettled.
func (r *Reader) Next(ctx context.Context, dst []Delivery) (int, error) {
	for {
		n, err := r.TryNext(dst)
		if n > 0 || err != nil {
			return n, err
		}
		select {
		case <-r.ready:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// TryNext is Next without waiting: it returns 0 if there is nothing.
func (r *Reader) TryNext(dst []Delivery) (int, error) {
	for {
		n, err := r.turn(dst)
		if n > 0 || err != nil || !slices.ContainsFunc(r.lanes, func(l *lane) bool { return l.waiting() }) {
			return n, err
		}
		// What was read had been settled before a rewind, has expired or is lost.
	}
}

// turn lets every lane fill what is left of dst, first those that waited long.
func (r *Reader) turn(dst []Delivery) (n int, err error) {
	for _, starving := range []bool{true, false} {
		for i, l := range r.lanes {
			if n == len(dst) || starving && l.passed < guard {
				continue
			}
			got, err := l.fill(dst[n:])
			n += got
			r.served(i, got)
			if err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// served notes that a lane had a turn and that those behind it were passed.
func (r *Reader) served(i, n int) {
	r.lanes[i].passed = 0
	if n == 0 {
		return
	}
	for _, l := range r.lanes[i+1:] {
		if l.waiting() {
			l.passed += n
		}
	}
}

func (o *Outbox) waiting() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.voids) > 0 && o.voids[0].first == o.taken+1 {
		return false
	}
	return o.taken+1 < o.next && o.taken-o.cursor < o.limit.Window
}

// Rewind makes every copy that was handed out and is not settled come again, in
// order and with Dup set.
func (r *Reader) Rewind() {
	for _, l := range r.lanes {
		l.rewind()
	}
	r.wake()
}

func (o *Outbox) rewind() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.dupTo = max(o.dupTo, o.taken)
	o.rd = readerSide{} // where the first pin begins
	if len(o.seen) > 0 {
		o.rd.after = o.seen[0].block - 1
	}
	// What was settled out of order stays settled: fill passes over it.
	o.taken = o.cursor
	o.seen = nil
}

// fill hands out copies of the outbox until dst is full or there is no more.
func (o *Outbox) fill(dst []Delivery) (n int, err error) {
	o.mu.Lock()
	taken, next, limit := o.taken, o.next, o.cursor+o.limit.Window
	if len(o.voids) > 0 {
		next = min(next, o.voids[0].first) // behind it when all before is settled
		if next == o.cursor+1 {
			o.chain.buffer.hurry() // and it is durable
		}
	}
	// Generations that hold nothing for the outbox are passed over.
	if i := slices.IndexFunc(o.pins, func(p pin) bool { return p.last > taken }); i >= 0 && o.rd.block == nil {
		o.rd.after = max(o.rd.after, log.Seq(o.pins[i].gen.id.First)-1)
	}
	o.mu.Unlock()
	clock := o.chain.buffer.clock
	up := clock.up()
	now := clock.raw.Now()
	var done []seen
	var lost uint64 // copies up to here are nowhere to be found
	committed := now.Add(o.rd.made - up)
	for size := 0; n < len(dst) && taken+1 < next && taken < limit && size < handOutBytes; {
		if o.rd.block == nil {
			if lost, err = o.turn(taken, next); err != nil || lost > taken {
				break
			}
			done = append(done, seen{o.rd.block.First, max(o.rd.next, taken+1), o.rd.last})
			committed = now.Add(o.rd.made - up)
		}
		if o.rd.crowded {
			ordinal := o.rd.next
			o.rd.next++
			if ordinal > taken {
				d := &dst[n]
				size += readCopy(o.rd.block, o.rd.places[0], committed, d)
				d.Outbox, d.Ordinal = o, ordinal
				taken = ordinal
				n++
			}
			o.rd.places = o.rd.places[1:]
			if ordinal == o.rd.last {
				o.leaveBlock()
			}
			continue
		}
		rec, off := o.rd.block.RecordAt(o.rd.off)
		if rec == nil {
			lost = o.rd.last // the block ends before its span does
			o.leaveBlock()
			break
		}
		d := &dst[n]
		nth := o.rd.nth
		copies, err := parseRecord(rec, o.id, nth, committed, d)
		if o.rd.nth++; o.rd.nth >= copies {
			o.rd.off, o.rd.nth = off, 0
		}
		if err != nil || nth >= copies {
			continue // of other outboxes; a malformed one shows as a short block
		}
		ordinal := o.rd.next
		o.rd.next++
		if ordinal > taken {
			d.Outbox, d.Ordinal = o, ordinal
			taken = ordinal
			size += len(rec)
			n++
		}
		if ordinal == o.rd.last {
			o.leaveBlock()
		}
	}
	n, ok := o.handOut(dst[:n], taken, done, now)
	if ok && lost > taken {
		o.lose(lost)
	}
	return n, err
}

func (o *Outbox) leaveBlock() {
	o.rd = readerSide{after: o.rd.block.Last()}
}

// turn goes to the next block that holds copies above taken. If it returns a
// higher ordinal, copies up to that are nowhere to be found, and it stays where it
// is.
func (o *Outbox) turn(taken, next uint64) (lost uint64, err error) {
	var s span
	var crowd *crowded
	b, err := o.chain.log.After(o.rd.after, func(h *log.Header, dir []byte) bool {
		var ok bool
		if crowd = crowdedOf(h, dir); crowd == nil {
			s, ok = findSpan(dir, o.id)
		} else if i, found := crowd.find(o.id); found {
			s, ok = crowd.spans[i], true
		}
		return ok && s.last > taken
	})
	switch {
	case err != nil:
		return 0, err
	case b == nil || s.first > taken+1:
		// What was accepted is not in the log, as far as can be seen.
		lost, before := next-1, log.Seq(math.MaxUint64)
		if b != nil {
			lost, before = s.first-1, b.First
		}
		if repaired, err := o.chain.log.Recheck(o.rd.after, before); err != nil {
			return 0, err
		} else if repaired {
			return o.turn(taken, next)
		}
		return lost, nil
	}
	o.rd = readerSide{after: o.rd.after, block: b, next: s.first, last: s.last, made: o.chain.buffer.clock.made(b.Boot, b.Uptime)}
	if crowd != nil {
		o.rd.places, o.rd.crowded = crowd.of(o.id, b)
	}
	return 0, nil
}

// lose settles the next copies up to last, which are nowhere to be found, unless
// they were dropped while they were looked for.
func (o *Outbox) lose(last uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	first := o.taken + 1
	for o.taken < last && (len(o.voids) == 0 || o.taken+1 < o.voids[0].first) {
		o.grow(o.taken + 1)
		o.taken++
		o.settle(o.taken, DroppedQuarantined)
	}
	if first <= o.taken {
		o.chain.buffer.logger.Error("copies were on a damaged part of the disk", "destination", o.name, "class", o.class.String(), "first", first, "last", o.taken)
	}
	o.reader.wake()
}

// handOut makes copies known as handed out. Those that were settled before a
// rewind are taken out of dst, and so are those that expired before they were
// handed out for the first time; what may have been sent comes again as it was.
// It reports false, and hands out nothing, if copies
// that were read have been dropped at the same time.
func (o *Outbox) handOut(dst []Delivery, taken uint64, done []seen, now time.Time) (n int, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.voids) > 0 && taken >= o.voids[0].first {
		o.rd = readerSide{} // where the pin begins that has what comes next
		o.reader.wake()
		return 0, false
	}
	for _, s := range done {
		if s.last > o.cursor {
			o.seen = append(o.seen, s)
		}
	}
	if o.taken = max(o.taken, taken); o.taken > o.cursor {
		o.grow(o.taken)
	}
	for i := range dst {
		d := &dst[i]
		if d.Ordinal <= o.cursor {
			continue // dropped meanwhile
		}
		if o.window[d.Ordinal&uint64(len(o.window)-1)] != 0 {
			continue
		}
		d.Dup = d.Ordinal <= o.dupTo
		if d.Expiry > 0 && !d.Dup && now.Sub(d.Enqueued) > d.Expiry && !o.own() && !o.limit.KeepExpired {
			o.settle(d.Ordinal, DroppedExpired)
			continue
		}
		if d != &dst[n] {
			dst[n] = *d
		}
		n++
	}
	if n < len(dst) {
		o.advance()
	}
	o.blocked = o.taken-o.cursor >= o.limit.Window || len(o.voids) > 0
	return n, true
}

// grow makes the window reach an ordinal.
func (o *Outbox) grow(ordinal uint64) {
	need := int(ordinal - o.cursor)
	if need < len(o.window) {
		return
	}
	w := make([]Outcome, max(64, 1<<bits.Len(uint(need))))
	for i := o.cursor + 1; i <= o.cursor+uint64(len(o.window)); i++ {
		if len(o.window) > 0 {
			w[i&uint64(len(w)-1)] = o.window[i&uint64(len(o.window)-1)]
		}
	}
	o.window = w
}
