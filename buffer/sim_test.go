package buffer

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fieldferry/fieldferry/buffer/log"
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
			rewritten += w.rewritten
			expired += w.expired
			unsynced += w.unsynced
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

var (
	errCrashed = errors.New("the machine is off")
	errIO      = errors.New("input/output error")
)

// world is the machine the buffer runs on, and the model of what it promised.
type world struct {
	t    *testing.T
	seed uint64

	mu     sync.Mutex // guards what follows, up to the model
	rng    *rand.Rand
	faults bool
	dead   bool
	broken bool // every write fails
	disks  [NumClasses]*simDisk
	rows   map[string]map[string][]byte
	clock  simClock

	rewritten int
	unsynced  int
	trace     []string // what happened to the disk, for a seed that fails

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
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 7)), dice: rand.New(rand.NewPCG(seed, 8)), rows: map[string]map[string][]byte{}, sent: map[int]*sentModel{}}
	w.clock.boot = 1
	w.clock.up = time.Now()
	for c := range w.disks {
		w.disks[c] = &simDisk{w: w, class: Class(c), gens: map[log.GenID]*simGen{}}
	}
	for _, name := range buckets {
		w.rows[name] = map[string][]byte{}
	}
	for i, class := range []Class{Telemetry, Telemetry, Telemetry, Alert} {
		w.queues = append(w.queues, &queueModel{name: fmt.Sprintf("q%d", i), class: class, lags: i == 2,
			acked: map[int]bool{}, failed: map[int]bool{}, out: map[int]bool{}})
	}
	w.options = Options{
		Linger:          time.Duration(w.rng.IntN(3)) * 100 * time.Millisecond,
		GenerationBytes: 1 << (9 + w.rng.IntN(6)),
		Compress:        w.rng.IntN(2) == 0,
		Clock:           w,
		Logger:          slog.New(slog.NewTextHandler(w, nil)),
		Free:            func() (int64, error) { return 1 << 40, nil },
	}
	if w.rng.IntN(3) == 0 {
		w.options.Limits = Limits{MaxBytes: 8 << 10, RejectNew: w.rng.IntN(2) == 0}
	}
	return w
}

// note adds to the trace. w.mu is held.
func (w *world) note(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf(format, args...))
}

// Write takes what the buffer logs.
func (w *world) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// chance is true once in n, of the faults while they are on.
func (w *world) chance(n int) bool { return w.faults && w.rng.IntN(n) == 0 }

// crash turns the machine off. What was not durable is gone.
func (w *world) crash() error {
	w.powerCut()
	return w.kill()
}

// kill ends the process. What it has written is in the page cache.
func (w *world) kill() error {
	w.dead = true
	return errCrashed
}

// write is any durable write: it may fail, or be the last thing that happens.
func (w *world) write(what string, apply func()) (err error) {
	defer func() { w.note("%s: %v", what, err) }()
	switch {
	case w.dead:
		return errCrashed
	case w.broken:
		return errIO
	case w.chance(150):
		return w.crash()
	case w.chance(150):
		apply()
		what += ", done"
		return w.crash()
	case w.chance(60):
		return &os.PathError{Op: "write", Path: "sim", Err: syscall.ENOSPC}
	}
	apply()
	return nil
}

func (w *world) run() {
	defer func() {
		if w.t.Failed() {
			w.t.Log(strings.Join(w.trace, "\n"))
		}
	}()
	defer w.stop()
	lives := 3 + w.dice.IntN(6)
	short := 0 // lives in a row that crash soon
	for life := 0; life < lives; life++ {
		w.withFaults(true)
		if w.reboot(); !w.start() {
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
			if w.off() {
				break
			}
			w.step()
			synctest.Wait()
			w.check()
		}
		if short > 0 {
			w.mu.Lock()
			w.crash()
			w.mu.Unlock()
		}
		w.stop()
	}
	w.withFaults(false)
	w.mu.Lock()
	w.broken = false
	w.mu.Unlock()
	if !w.start() {
		w.t.Fatal("the last start failed")
	}
	w.finish()
	w.stop()
}

func (w *world) off() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dead
}

// start opens the buffer on what is there.
func (w *world) start() bool {
	w.mu.Lock()
	w.dead = false
	w.mu.Unlock()
	w.mu.Lock()
	w.note("start")
	w.mu.Unlock()
	m := &meta{db: &lockedStore{world: w}}
	err := m.begin(0)
	if err == nil {
		var disks [NumClasses]log.Disk
		for i, d := range w.disks {
			disks[i] = d
		}
		w.b, err = open(m, disks, w.options.withDefaults())
	}
	for _, q := range w.queues {
		if err == nil {
			q.o, err = w.b.Outbox(q.name, q.class)
		}
		if err == nil {
			q.reader, err = w.b.Reader(q.o)
			q.open = nil
		}
	}
	if err != nil {
		w.mu.Lock()
		faults := w.faults
		w.mu.Unlock()
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
	if w.off() {
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
	n      int
	queues []*queueModel
}

func (r told) Stored(err error) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	if r.w.dead {
		return // nobody is there to hear it
	}
	if s := r.w.sent[r.n]; s != nil {
		s.stored, s.boot = time.Now(), r.w.clock.boot
	}
	for _, q := range r.queues {
		switch {
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
		w.mu.Lock()
		w.crash()
		w.mu.Unlock()
	}
}

// breakDisk lets every write fail from now on, or has that be over.
func (w *world) breakDisk() {
	w.mu.Lock()
	was := w.broken
	w.broken = !was && w.dice.IntN(6) == 0
	if w.broken != was {
		w.note("the disk is broken: %t", w.broken)
	}
	w.mu.Unlock()
	switch {
	case w.broken:
		w.outages++
	case was && !w.off() && w.options.Limits.MaxBytes == 0:
		w.works()
	}
}

// works has every class store a message again within 10 s.
func (w *world) works() {
	w.withFaults(false)
	defer w.withFaults(true)
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

func (w *world) withFaults(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = on
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
	w.mu.Lock()
	w.note("append %d to %d to %d queues", w.next+1, w.next+n, len(to))
	w.mu.Unlock()
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
		if err := w.b.Append(w.t.Context(), class, m, told{w, w.next, to}); err != nil && !errors.Is(err, ErrFull) {
			w.t.Fatalf("seed %d: append: %v", w.seed, err)
		} else if err != nil {
			for _, q := range to {
				q.failed[w.next] = true
			}
		}
	}
}
