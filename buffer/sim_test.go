package buffer

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"iter"
	"log/slog"
	"maps"
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
	seeds = flag.Int("seeds", 1000, "how many seeds TestSimulation runs")
	seed  = flag.Uint64("seed", 0, "run TestSimulation with this seed only")
)

// TestSimulation runs the buffer on a disk, a store and a clock of its own, in
// which everything that can fail does, at random but from a seed: commits that
// fail or whose fate is unknown, a full disk, crashes before and after every
// write. After each crash a new buffer opens what is left. In the end everything that was acknowledged must have
// come out, in order, or stand in the ledger as dropped.
func TestSimulation(t *testing.T) {
	first, n := uint64(1), uint64(*seeds)
	if testing.Short() {
		n = min(n, 100)
	}
	if *seed != 0 {
		first, n = *seed, 1
	}
	var crashes, delivered int
	for s := first; s < first+n; s++ {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, s)
			w.run()
			crashes += w.crashes
			delivered += w.delivered
		})
		if t.Failed() {
			t.Fatalf("seed %d failed: run again with -seed %d", s, s)
		}
	}
	if n > 50 && (crashes == 0 || delivered == 0) {
		t.Errorf("%d crashes, %d deliveries: the simulation does nothing", crashes, delivered)
	}
	t.Logf("%d seeds, %d crashes, %d messages delivered", n, crashes, delivered)
}

var errCrashed = errors.New("the machine is off")

// world is the machine the buffer runs on, and the model of what it promised.
type world struct {
	t    *testing.T
	seed uint64

	mu     sync.Mutex // guards what follows, up to the model
	rng    *rand.Rand
	faults bool
	dead   bool
	disks  [NumClasses]*simDisk
	rows   map[string]map[string][]byte
	up     time.Time // when the machine was booted

	trace []string // what happened to the disk, for a seed that fails

	// The model, of the test's goroutine.
	b         *Buffer
	options   Options
	queues    []*queueModel
	next      int
	crashes   int
	delivered int
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
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 7)), rows: map[string]map[string][]byte{}, up: time.Now()}
	for c := range w.disks {
		w.disks[c] = &simDisk{w: w, class: Class(c), gens: map[log.GenID]*simGen{}}
	}
	for _, name := range buckets {
		w.rows[name] = map[string][]byte{}
	}
	for i, class := range []Class{Telemetry, Telemetry, Alert} {
		w.queues = append(w.queues, &queueModel{name: fmt.Sprintf("q%d", i), class: class,
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

func (w *world) Now() time.Time                  { return time.Now() }
func (w *world) Uptime() (time.Duration, uint64) { return time.Since(w.up), w.seed }

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
	w.dead = true
	return errCrashed
}

// write is any durable write: it may fail, or be the last thing that happens.
func (w *world) write(what string, apply func()) (err error) {
	defer func() { w.note("%s: %v", what, err) }()
	switch {
	case w.dead:
		return errCrashed
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

type simDisk struct {
	w     *world
	class Class
	gens  map[log.GenID]*simGen
}

type simGen struct {
	w      *world
	class  Class
	firsts []log.Seq
	blocks [][]byte
}

func (d *simDisk) List() ([]log.GenID, error) {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	return slices.SortedFunc(maps.Keys(d.gens), log.GenID.Compare), nil
}

func (d *simDisk) Create(id log.GenID) (log.Generation, error) {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	g := &simGen{w: d.w, class: d.class}
	if d.gens[id] != nil {
		return nil, fmt.Errorf("%s is there already", id)
	}
	if err := d.w.write(fmt.Sprint("create ", d.class, id), func() { d.gens[id] = g }); err != nil {
		return nil, err
	}
	return g, nil
}

func (d *simDisk) Open(id log.GenID) (log.Generation, error) {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	switch g := d.gens[id]; {
	case d.w.dead:
		return nil, errCrashed
	case g == nil:
		return nil, fmt.Errorf("open %s: %w", id, os.ErrNotExist)
	default:
		return g, nil
	}
}

func (d *simDisk) Remove(id log.GenID) error {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	return d.w.write(fmt.Sprint("remove ", d.class, id), func() { delete(d.gens, id) })
}

func (d *simDisk) DiskBytes(id log.GenID) int64 {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	n := int64(0)
	if g := d.gens[id]; g != nil {
		for _, b := range g.blocks {
			n += int64(len(b))
		}
	}
	return n
}

// Nothing is ever damaged here, so nothing may be repaired; TestDamage does that.
func (d *simDisk) Salvage(id log.GenID, _ func([]byte) int) error {
	return fmt.Errorf("salvage of %s", id)
}
func (d *simDisk) SetAside(id log.GenID) error { return fmt.Errorf("%s set aside", id) }
func (d *simDisk) Replace(id log.GenID, _ iter.Seq2[log.Seq, []byte]) error {
	return fmt.Errorf("%s replaced", id)
}

func (g *simGen) Put(first log.Seq, block []byte) error {
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	apply := func() {
		g.firsts = append(g.firsts, first)
		g.blocks = append(g.blocks, bytes.Clone(block))
	}
	if g.w.chance(60) { // an error, and nobody knows what was written
		if g.w.rng.IntN(2) == 0 {
			apply()
			g.w.note("put %s %s fails, done", g.class, first)
		} else {
			g.w.note("put %s %s fails", g.class, first)
		}
		return errors.New("input/output error")
	}
	return g.w.write(fmt.Sprint("put ", g.class, first), apply)
}

func (g *simGen) Scan(from log.Seq, fn func(log.Seq, []byte) bool) error {
	g.w.mu.Lock()
	i, _ := slices.BinarySearch(g.firsts, from)
	firsts, blocks, dead := slices.Clone(g.firsts[i:]), slices.Clone(g.blocks[i:]), g.w.dead
	g.w.mu.Unlock()
	if dead {
		return errCrashed
	}
	for i := range firsts {
		if !fn(firsts[i], blocks[i]) {
			break
		}
	}
	return nil
}

func (g *simGen) Close() error { return nil }

// The store: rows in memory, an update at once or not at all.
type simTx struct {
	w    *world
	rows map[string]map[string][]byte
}

func (w *world) Update(fn func(metaTx) error) error {
	w.mu.Lock()
	rows := make(map[string]map[string][]byte)
	for name, bucket := range w.rows {
		rows[name] = maps.Clone(bucket)
	}
	w.mu.Unlock()
	// As in bbolt, one update at a time; the buffer's locks are taken inside.
	if err := fn(simTx{w, rows}); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.write("save", func() { w.rows = rows })
}

func (w *world) View(fn func(metaTx) error) error { return fn(simTx{w, w.rows}) }
func (w *world) Close() error                     { return nil }
func (w *world) DiskBytes() int64                 { return 0 }

func (t simTx) Get(bucket string, key []byte) []byte { return t.rows[bucket][string(key)] }
func (t simTx) Put(bucket string, key, value []byte) error {
	t.rows[bucket][string(key)] = bytes.Clone(value)
	return nil
}
func (t simTx) Delete(bucket string, key []byte) error {
	delete(t.rows[bucket], string(key))
	return nil
}
func (t simTx) Rows(bucket string) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		for _, k := range slices.Sorted(maps.Keys(t.rows[bucket])) {
			if !yield([]byte(k), t.rows[bucket][k]) {
				return
			}
		}
	}
}

// lockedStore lets one update happen at a time.
type lockedStore struct {
	mu sync.Mutex
	*world
}

func (s *lockedStore) Update(fn func(metaTx) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.world.Update(fn)
}

func (w *world) run() {
	defer func() {
		if w.t.Failed() {
			w.t.Log(strings.Join(w.trace, "\n"))
		}
	}()
	defer w.stop()
	lives := 3 + w.rng.IntN(6)
	for range lives {
		w.mu.Lock()
		w.faults = true
		w.mu.Unlock()
		if !w.start() {
			continue // it crashed again while it opened
		}
		for range 20 + w.rng.IntN(60) {
			if w.off() {
				break
			}
			w.step()
			synctest.Wait()
			w.check()
		}
		w.stop()
	}
	w.mu.Lock()
	w.faults = false
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
	switch w.rng.IntN(10) {
	case 0, 1, 2, 3:
		w.append(1 + w.rng.IntN(5))
	case 4, 5, 6:
		w.take(w.queues[w.rng.IntN(len(w.queues))])
	case 7:
		q := w.queues[w.rng.IntN(len(w.queues))]
		w.settle(q, len(q.open))
	case 8:
		q := w.queues[w.rng.IntN(len(w.queues))]
		q.reader.Rewind()
		q.open = nil
	case 9:
		time.Sleep(time.Duration(w.rng.IntN(4000)) * time.Millisecond)
	}
	if w.rng.IntN(200) == 0 {
		w.mu.Lock()
		w.crash()
		w.mu.Unlock()
	}
}

func (w *world) append(n int) {
	class := w.queues[w.rng.IntN(len(w.queues))].class
	var to []*queueModel
	for _, q := range w.queues {
		if q.class == class && (len(to) == 0 || w.rng.IntN(2) == 0) {
			to = append(to, q)
		}
	}
	for range n {
		w.next++
		m := &Message{Topic: "t", Payload: fmt.Appendf(nil, "%d %s", w.next, bytes.Repeat([]byte("x"), w.rng.IntN(200))), Urgent: w.rng.IntN(2) == 0}
		for _, q := range to {
			m.Copies = append(m.Copies, Copy{Outbox: q.o})
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

func (w *world) take(q *queueModel) {
	dst := make([]Delivery, 1+w.rng.IntN(20))
	n, err := q.reader.TryNext(dst)
	if err != nil && !errors.Is(err, errCrashed) {
		w.t.Fatalf("seed %d: next: %v", w.seed, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range dst[:n] {
		var i int
		if _, err := fmt.Sscan(string(d.Payload), &i); err != nil {
			w.t.Fatalf("seed %d: payload %q", w.seed, d.Payload)
		}
		switch {
		case q.failed[i]:
			w.t.Fatalf("seed %d: %s: %d came out, and its publisher was told that it is not stored", w.seed, q.name, i)
		case q.out[i]:
		case i <= q.last:
			w.t.Fatalf("seed %d: %s: %d comes after %d", w.seed, q.name, i, q.last)
		default:
			q.last = i
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
		if w.rng.IntN(4) == 0 {
			i = w.rng.IntN(len(q.open))
		}
		q.o.Settle(q.open[i].Ordinal, Delivered)
		q.open = slices.Delete(q.open, i, i+1)
		if w.rng.IntN(10) == 0 {
			return
		}
	}
}

func (w *world) check() {
	if w.off() {
		return
	}
	for _, q := range w.queues {
		l := q.o.Ledger()
		if l.Difference() != 0 {
			w.t.Fatalf("seed %d: %s: the ledger is out by %d: %+v", w.seed, q.name, l.Difference(), l)
		}
		if stored := q.o.recount(); l.Stored != stored {
			w.t.Fatalf("seed %d: %s: %d copies are in the log: %+v", w.seed, q.name, stored, l)
		}
		if l.Dropped["quarantined"] != 0 {
			w.t.Fatalf("seed %d: %s: copies were lost on a sound disk: %+v", w.seed, q.name, l)
		}
	}
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
			w.take(q)
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
