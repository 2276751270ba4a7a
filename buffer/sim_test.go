package buffer

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fieldferry/fieldferry/buffer/simulated"
)

var (
	seeds = flag.Int("seeds", 1000/slower, "how many seeds TestSimulation runs")
	seed  = flag.Uint64("seed", 0, "run TestSimulation with this seed only")
)

// TestSimulation runs the buffer on a disk, a store and a clock of its own, in
// which everything that can fail does, at random but from a seed: commits that
// fail or whose fate is unknown, a full disk, crashes before and after every
// write, of the process alone or of the machine; files that may not grow and a disk
// that is broken for a while; a wall clock that begins in 1970, jumps by years and steps back; messages
// that expire; a destination that stays far behind; a process that crashes again
// and again. After each crash a new buffer opens what is left. In the end
// everything that was acknowledged must have come out, in order, or stand in the
// ledger as dropped, and nothing may have expired before its time.
func TestSimulation(t *testing.T) {
	first, n := uint64(1), uint64(*seeds)
	if testing.Short() {
		n = min(n, 100)
	}
	if *seed != 0 {
		first, n = *seed, 1
	}
	var crashes, delivered, rewritten, expired, unsynced, outages int
	for s := first; s < first+n; s++ {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, s)
			w.run()
			crashes += w.crashes
			delivered += w.delivered
			rewritten += w.machine.Rewritten()
			expired += w.expired
			unsynced += w.machine.Unsynced()
			outages += w.outages
		})
		if t.Failed() {
			t.Fatalf("seed %d failed: run again with -seed %d", s, s)
		}
	}
	if n > 50 && min(crashes, delivered, rewritten, expired, unsynced, outages) == 0 {
		t.Error("the simulation does nothing")
	}
	t.Logf("%d seeds, %d crashes, %d messages delivered, %d expired, %d generations rewritten, %d blocks not synced at a power cut, %d times a broken disk", n, crashes, delivered, expired, rewritten, unsynced, outages)
}

// world is the buffer on its machine, and the model of what it promised.
type world struct {
	t       *testing.T
	seed    uint64
	machine *simulated.Machine
	life    *simulated.Life

	mu sync.Mutex // guards what receipts change: sent, and of the queues acked and failed; the machine is not called with it held

	// The model, of the test's goroutine.
	dice      *rand.Rand
	b         *Buffer
	options   Options
	queues    []*queueModel
	next      int
	sent      map[int]*sentModel // messages that expire
	crashes   int
	delivered int
	expired   int
	outages   int
	broken    bool // the disk is
}

// sentModel is what is known of a message that expires.
type sentModel struct {
	at     time.Time // of the append
	stored time.Time // when its publisher heard of it
	boot   uint64
	expiry time.Duration
	queues []*queueModel
}

// queueModel is what is known of one outbox.
type queueModel struct {
	name   string
	class  Class
	o      *Outbox
	acked  map[int]bool // told stored, not delivered yet
	failed map[int]bool // told that nothing is stored
	last   int          // highest number that came out
	out    map[int]bool // came out
	reader *Reader
	open   []Delivery // handed out, not settled
	lags   bool       // is rarely asked
	limit  uint64     // of messages; 0 is none
	ends   bool       // is removed now and then, and made anew
	ended  int        // how often
	unsure bool       // whether the last time was durable
}

// begin forgets everything: the outbox is new.
func (q *queueModel) begin() {
	q.acked, q.failed, q.out, q.last, q.open = map[int]bool{}, map[int]bool{}, map[int]bool{}, 0, nil
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, seed: seed, machine: simulated.New(seed), dice: rand.New(rand.NewPCG(seed, 8)), sent: map[int]*sentModel{}}
	for i, class := range []Class{Telemetry, Telemetry, Telemetry, Alert, Telemetry, Telemetry} {
		q := &queueModel{name: fmt.Sprintf("q%d", i), class: class, lags: i == 2 || i == 4, ends: i == 5}
		if i == 4 {
			q.limit = uint64(1 + w.dice.IntN(20))
		}
		q.begin()
		w.queues = append(w.queues, q)
	}
	w.options = Options{
		Linger:          time.Duration(w.dice.IntN(3)) * 100 * time.Millisecond,
		GenerationBytes: 1 << (9 + w.dice.IntN(6)),
		Compress:        w.dice.IntN(2) == 0,
		Clock:           w.machine,
		Logger:          slog.New(slog.NewTextHandler(w.machine, nil)),
	}
	if w.dice.IntN(3) == 0 {
		w.options.Limits = Limits{MaxBytes: 8 << 10, RejectNew: w.dice.IntN(2) == 0}
	}
	return w
}

func (w *world) run() {
	defer func() {
		if w.t.Failed() {
			w.t.Log(w.machine.Trace())
		}
	}()
	defer w.stop()
	lives := 3 + w.dice.IntN(6)
	short := 0 // lives in a row that crash soon
	for life := 0; life < lives; life++ {
		w.machine.Faults(1)
		if w.reboot(); !w.start(true) {
			continue // it crashed again while it opened
		}
		steps := 20 + w.dice.IntN(60)
		if short == 0 && w.dice.IntN(4) == 0 {
			short = 2 + w.dice.IntN(8)
			lives += short
		}
		if short > 0 {
			short--
			steps = 3
		}
		for range steps {
			if w.machine.Off() {
				break
			}
			w.step()
			synctest.Wait()
			w.check()
		}
		if short > 0 {
			w.machine.Crash()
		}
		w.stop()
	}
	w.machine.Faults(0)
	w.machine.Break(false)
	w.start(false)
	w.finish()
	w.stop()
}

// start opens the buffer on what is there. Only a machine that has faults may fail.
func (w *world) start(faults bool) bool {
	w.life = w.machine.On()
	parts := Parts{Meta: w.life.Store("meta")}
	for c := range NumClasses {
		parts.Disks[c] = w.life.Disk(c.String())
	}
	var err error
	w.b, err = OpenParts(parts, w.options)
	for _, q := range w.queues {
		if err == nil {
			q.o, err = w.b.Outbox(q.name, q.class)
		}
		if err == nil {
			if q.unsure && q.o.Ledger().Accepted == 0 {
				q.begin()
				q.ended++
			}
			q.unsure = false
			q.o.SetLimit(OutboxLimit{Messages: q.limit})
			q.reader, err = w.b.Reader(q.o)
			q.open = nil
		}
	}
	if err != nil {
		if !faults {
			w.t.Fatalf("seed %d: start: %v", w.seed, err)
		}
		w.stop()
		return false
	}
	return true
}

// stop ends the buffer, by a crash or well.
func (w *world) stop() {
	if w.machine.Off() {
		w.crashes++
	}
	if w.b == nil {
		return
	}
	for _, q := range w.queues {
		if q.reader != nil {
			q.reader.Close()
			q.reader = nil
		}
	}
	w.b.Close() // fails on a machine that is off
	synctest.Wait()
	w.b = nil
}

// told is a receipt.
type told struct {
	w      *world
	life   *simulated.Life
	n      int
	queues []*queueModel
	ended  []int // how often each had ended
}

func (r told) Stored(err error) {
	_, boot := r.w.machine.Uptime()
	r.life.Do(func() { r.tell(err, boot) }) // or nobody is there to hear it
}

func (r told) tell(err error, boot uint64) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	if s := r.w.sent[r.n]; s != nil {
		s.stored, s.boot = time.Now(), boot
	}
	for i, q := range r.queues {
		switch {
		case q.ended != r.ended[i]: // it went with those that were removed
		case errors.Is(err, ErrFull):
			q.failed[r.n] = true
		case err != nil: // it may come out or not
		case !q.out[r.n]:
			q.acked[r.n] = true
		}
	}
}

func (w *world) step() {
	q := w.queues[w.dice.IntN(len(w.queues))]
	if q.lags && w.dice.IntN(5) > 0 {
		q = w.queues[0]
	}
	if q.ends && w.dice.IntN(10) == 0 {
		w.end(q)
		return
	}
	switch w.dice.IntN(11) {
	case 0, 1, 2, 3:
		w.append(1 + w.dice.IntN(5))
	case 4, 5, 6:
		w.take(q, 0)
	case 7:
		w.settle(q, len(q.open))
	case 8:
		q.reader.Rewind()
		q.open = nil
	case 9:
		time.Sleep(time.Duration(w.dice.IntN(4000)) * time.Millisecond)
		w.breakDisk()
	case 10:
		if w.dice.IntN(3) == 0 {
			time.Sleep(25 * time.Second) // long enough to tidy up
		}
		w.jump()
	}
	if w.dice.IntN(200) == 0 {
		w.machine.Crash()
	}
}

// breakDisk lets every write fail from now on, or has that be over.
func (w *world) breakDisk() {
	was := w.broken
	w.broken = !was && w.dice.IntN(6) == 0
	w.machine.Break(w.broken)
	switch {
	case w.broken:
		w.outages++
	case was && !w.machine.Off() && w.options.Limits.MaxBytes == 0:
		w.works()
	}
}

// works has every class store a message again within 10 s.
func (w *world) works() {
	w.machine.Faults(0)
	defer w.machine.Faults(1)
	for _, q := range w.queues {
		for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
			w.appendTo(q.class, 1)
			time.Sleep(w.options.Linger)
			synctest.Wait()
			w.mu.Lock()
			stored := slices.ContainsFunc(w.queues, func(q *queueModel) bool { return q.acked[w.next] })
			w.mu.Unlock()
			if stored {
				break
			}
			if time.Since(began) > 10*time.Second {
				w.t.Fatalf("seed %d: 10 s after the disk works again, nothing is stored in class %s", w.seed, q.class)
			}
		}
	}
}

// end removes an outbox and makes it anew.
func (w *world) end(q *queueModel) {
	synctest.Wait()
	q.reader.Close()
	old := q.o.id
	if err := w.b.Remove(q.o); err != nil {
		q.unsure = true
		w.machine.Crash() // nobody knows what the write has done
		return
	}
	var err error
	if q.o, err = w.b.Outbox(q.name, q.class); err == nil {
		q.reader, err = w.b.Reader(q.o)
	}
	if err != nil {
		q.unsure = true
		w.machine.Crash() // nobody knows what the write has done
		return
	}
	if q.o.id == old || q.o.Ledger().Accepted != 0 {
		w.t.Fatalf("seed %d: %s: what was removed goes on", w.seed, q.name)
	}
	q.begin()
	q.ended++
	w.machine.Note("%s is removed", q.name)
}

func (w *world) append(n int) {
	w.appendTo(w.queues[w.dice.IntN(len(w.queues))].class, n)
}

func (w *world) appendTo(class Class, n int) {
	var to []*queueModel
	for _, q := range w.queues {
		if q.class == class && (len(to) == 0 || w.dice.IntN(2) == 0) {
			to = append(to, q)
		}
	}
	var ended []int
	for _, q := range to {
		ended = append(ended, q.ended)
	}
	w.machine.Note("append %d to %d to %d queues", w.next+1, w.next+n, len(to))
	for range n {
		w.next++
		m := &Message{Topic: "t", Payload: fmt.Appendf(nil, "%d %s", w.next, bytes.Repeat([]byte("x"), w.dice.IntN(200))), Urgent: w.dice.IntN(2) == 0}
		for _, q := range to {
			m.Copies = append(m.Copies, Copy{Outbox: q.o})
		}
		if w.dice.IntN(4) == 0 {
			m.Expiry = []time.Duration{3 * time.Second, 20 * time.Second, time.Minute, 20 * time.Minute}[w.dice.IntN(4)]
			w.mu.Lock()
			w.sent[w.next] = &sentModel{at: time.Now(), expiry: m.Expiry, queues: to}
			w.mu.Unlock()
		}
		if err := w.b.Append(w.t.Context(), class, m, told{w, w.life, w.next, to, ended}); err != nil && !errors.Is(err, ErrFull) {
			w.t.Fatalf("seed %d: append: %v", w.seed, err)
		} else if err != nil {
			w.mu.Lock()
			for _, q := range to {
				q.failed[w.next] = true
			}
			w.mu.Unlock()
		}
	}
}

// take takes what comes, or waits for it.
func (w *world) take(q *queueModel, wait time.Duration) {
	dst := make([]Delivery, 1+w.dice.IntN(20))
	n, err := q.reader.TryNext(dst)
	if n == 0 && err == nil && wait > 0 {
		ctx, cancel := context.WithTimeout(w.t.Context(), wait)
		n, err = q.reader.Next(ctx, dst)
		cancel()
	}
	if err != nil && !errors.Is(err, simulated.ErrOff) && !errors.Is(err, context.DeadlineExceeded) {
		w.t.Fatalf("seed %d: next: %v", w.seed, err)
	}
	_, boot := w.machine.Uptime()
	for _, d := range dst[:n] {
		w.machine.Note("%s: %.8s comes as %d, dup %t", q.name, d.Payload, d.Ordinal, d.Dup)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range dst[:n] {
		var i int
		if _, err := fmt.Sscan(string(d.Payload), &i); err != nil {
			w.t.Fatalf("seed %d: payload %q", w.seed, d.Payload)
		}
		if s := w.sent[i]; s != nil && !d.Dup && s.boot == boot && time.Since(s.stored) > s.expiry {
			w.t.Fatalf("seed %d: %s: %d came out %v after it was stored, it was good for %v", w.seed, q.name, i, time.Since(s.stored), s.expiry)
		}
		switch {
		case q.failed[i]:
			w.t.Fatalf("seed %d: %s: %d came out, and its publisher was told that it is not stored", w.seed, q.name, i)
		case q.out[i]:
		case i <= q.last && (w.sent[i] == nil || time.Since(w.sent[i].at) <= w.sent[i].expiry):
			// (One that had expired, but not durably, and which a wrong clock brings
			// back, comes with all that come again.)
			w.t.Fatalf("seed %d: %s: %d comes after %d", w.seed, q.name, i, q.last)
		default:
			q.last = max(q.last, i)
			q.out[i] = true
			w.delivered++
		}
		if k := len(q.open); k > 0 && q.open[k-1].Ordinal >= d.Ordinal {
			w.t.Fatalf("seed %d: %s: ordinal %d comes after %d", w.seed, q.name, d.Ordinal, q.open[k-1].Ordinal)
		}
		delete(q.acked, i)
		q.open = append(q.open, d)
	}
}

// settle settles up to n of the copies handed out, mostly in order.
func (w *world) settle(q *queueModel, n int) {
	for range n {
		if len(q.open) == 0 {
			return
		}
		i := 0
		if w.dice.IntN(4) == 0 {
			i = w.dice.IntN(len(q.open))
		}
		q.o.Settle(q.open[i].Ordinal, Delivered)
		q.open = slices.Delete(q.open, i, i+1)
		if w.dice.IntN(10) == 0 {
			return
		}
	}
}

func (w *world) check() {
	if w.machine.Off() {
		return
	}
	for _, q := range w.queues {
		l := q.o.Ledger()
		if l.Difference() != 0 {
			w.t.Fatalf("seed %d: %s: the ledger is out by %d: %+v", w.seed, q.name, l.Difference(), l)
		}
		if over := l.Stored > q.limit+q.o.underWay(); q.limit > 0 && over {
			w.t.Fatalf("seed %d: %s: the limit is %d: %+v", w.seed, q.name, q.limit, l)
		}
		if stored := q.o.recount(); l.Stored != stored {
			w.t.Fatalf("seed %d: %s: %d copies are in the log: %+v", w.seed, q.name, stored, l)
		}
		var old uint64
		for _, s := range w.sent {
			if slices.Contains(s.queues, q) && time.Since(s.at) > s.expiry {
				old++
			}
		}
		if l.Dropped["expired"] > old {
			w.t.Fatalf("seed %d: %s: %d copies have expired, %d can have: %+v", w.seed, q.name, l.Dropped["expired"], old, l)
		}
		if l.Dropped["quarantined"] != 0 {
			w.t.Fatalf("seed %d: %s: copies were lost on a sound disk: %+v", w.seed, q.name, l)
		}
	}
}

// underWay is how many copies may have been handed out at the most.
func (o *Outbox) underWay() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return max(o.taken, o.dupTo) - o.cursor
}

// recount is how many copies the generations hold that are not settled.
func (o *Outbox) recount() (n uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range o.pins {
	copies:
		for ordinal := max(p.first, o.cursor+1); ordinal <= p.last; ordinal++ {
			for _, v := range o.voids {
				if v.first <= ordinal && ordinal <= v.last {
					continue copies
				}
			}
			if ordinal <= o.cursor+uint64(len(o.window)) && len(o.window) > 0 && o.window[ordinal&uint64(len(o.window)-1)] != 0 {
				continue
			}
			n++
		}
	}
	return n
}

func (w *world) finish() {
	for _, q := range w.queues {
		for more := true; more; {
			w.take(q, 0)
			if len(q.open) == 0 && q.o.Ledger().Stored > 0 {
				w.take(q, 10*time.Second) // a drop may have to become durable first
			}
			more = len(q.open) > 0
			w.settle(q, len(q.open))
		}
	}
	synctest.Wait()
	w.check()
	for _, q := range w.queues {
		l := q.o.Ledger()
		if l.Stored != 0 {
			w.t.Errorf("seed %d: %s: %d copies are left: %+v", w.seed, q.name, l.Stored, l)
		}
		var dropped uint64
		for _, n := range l.Dropped {
			dropped += n
		}
		w.expired += int(l.Dropped["expired"])
		if uint64(len(q.acked)) > dropped {
			missing := slices.Sorted(maps.Keys(q.acked))
			w.t.Errorf("seed %d: %s: %d acknowledged messages never came out, %d are counted as dropped; first %v", w.seed, q.name, len(q.acked), dropped, missing[:min(5, len(missing))])
		}
		// What came out before a crash may be dropped after it.
		if out := uint64(len(q.out)); l.Accepted < out || l.Accepted > out+dropped {
			w.t.Errorf("seed %d: %s: %d accepted, %d came out, %d dropped", w.seed, q.name, l.Accepted, len(q.out), dropped)
		}
	}
	if w.options.Limits.MaxBytes == 0 {
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := w.b.Stats().Generations; n != 0 {
			w.t.Errorf("seed %d: %d generations are left of a drained buffer", w.seed, n)
		}
	}
}

// reboot lets some time pass, and may start the machine anew, for want of power or
// well.
func (w *world) reboot() {
	time.Sleep(time.Duration(w.dice.IntN(30)) * time.Second)
	if w.dice.IntN(2) == 0 {
		w.machine.Reboot(w.dice.IntN(2) == 0)
		w.misset()
	}
}

// jump may move the wall clock, or have it set right.
func (w *world) jump() {
	switch w.dice.IntN(4) {
	case 0:
		w.misset()
	case 1:
		w.machine.SetClock(0, true)
	}
}

// misset sets the wall clock wrong, once the right time was made durable: nobody can
// know better of the first time that is not absurd.
func (w *world) misset() {
	if w.machine.Rows("meta", bucketBoots) == 0 {
		return
	}
	const year = 365 * 24 * time.Hour
	shifts := []time.Duration{0, -60 * year, -time.Hour, 10 * year}
	w.machine.SetClock(shifts[w.dice.IntN(len(shifts))], false)
}
