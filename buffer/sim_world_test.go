package buffer

import (
	"bytes"
	"fmt"
	"iter"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fieldferry/fieldferry/buffer/log"
	"github.com/fieldferry/fieldferry/buffer/rows"
)

// The disk, the store and the clock of TestSimulation.

type simDisk struct {
	w     *world
	class Class
	gens  map[log.GenID]*simGen
}

type simGen struct {
	w       *world
	class   Class
	firsts  []log.Seq
	blocks  [][]byte
	durable int  // so many blocks are; the rest is in the page cache
	limited bool // the file may not grow any more
}

// powerCut takes what is in the page cache only. w.mu is held.
func (w *world) powerCut() {
	for _, d := range w.disks {
		for _, g := range d.gens {
			if lost := len(g.blocks) - g.durable; lost > 0 {
				w.unsynced += lost
				w.note("power cut: %d blocks of %s were not synced", lost, g.class)
			}
			g.firsts, g.blocks = g.firsts[:g.durable], g.blocks[:g.durable]
		}
	}
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

func (d *simDisk) Write(id log.GenID, blocks iter.Seq2[log.Seq, []byte]) error {
	g := &simGen{w: d.w, class: d.class}
	for first, block := range blocks {
		g.firsts = append(g.firsts, first)
		g.blocks = append(g.blocks, bytes.Clone(block))
	}
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	if d.gens[id] != nil {
		return fmt.Errorf("%s is there already", id)
	}
	if len(g.firsts) > 0 && d.w.chance(30) { // a part of it, and no more
		n := d.w.rng.IntN(len(g.firsts))
		d.gens[id] = &simGen{w: d.w, class: d.class, firsts: g.firsts[:n], blocks: g.blocks[:n], durable: n}
		if d.w.rng.IntN(2) == 0 {
			return d.w.crash()
		}
		return &os.PathError{Op: "write", Path: "sim", Err: syscall.ENOSPC}
	}
	d.w.rewritten++
	g.durable = len(g.blocks)
	return d.w.write(fmt.Sprint("rewrite ", d.class, id), func() { d.gens[id] = g })
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

func (d *simDisk) Sync(id log.GenID) error {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	g := d.gens[id]
	if g == nil {
		return fmt.Errorf("sync %s: %w", id, os.ErrNotExist)
	}
	if d.w.dead {
		return errCrashed
	}
	g.durable = len(g.blocks)
	return nil
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
	written := func() {
		g.firsts = append(g.firsts, first)
		g.blocks = append(g.blocks, bytes.Clone(block))
	}
	apply := func() {
		written()
		g.durable = len(g.blocks)
	}
	switch {
	case g.w.dead:
		return errCrashed
	case g.limited || g.w.chance(300):
		g.limited = len(g.blocks) > 0 // an empty one may when it is tried again
		g.w.note("put %s %s: the file is at its limit", g.class, first)
		return &os.PathError{Op: "truncate", Path: "sim", Err: syscall.EFBIG}
	case g.w.chance(150):
		written()
		g.w.note("put %s %s: the process is killed before the sync", g.class, first)
		return g.w.kill()
	case g.w.broken || g.w.chance(60): // an error, and nobody knows what was written
		fate := g.w.rng.IntN(3)
		g.w.note("put %s %s fails, done: %d", g.class, first, fate)
		switch fate {
		case 1:
			written()
		case 2:
			apply()
		}
		return errIO
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

func (w *world) Update(fn func(rows.Tx) error) error {
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

func (w *world) View(fn func(rows.Tx) error) error { return fn(simTx{w, w.rows}) }
func (w *world) Close() error                      { return nil }
func (w *world) DiskBytes() int64                  { return 0 }

func (t simTx) Get(bucket string, key []byte) []byte { return t.rows[bucket][string(key)] }
func (t simTx) Put(bucket string, key, value []byte) error {
	t.rows[bucket][string(key)] = bytes.Clone(value)
	return nil
}
func (t simTx) Delete(bucket string, key []byte) error {
	delete(t.rows[bucket], string(key))
	return nil
}
func (t simTx) Rows(bucket string, prefix []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		for _, k := range slices.Sorted(maps.Keys(t.rows[bucket])) {
			if strings.HasPrefix(k, string(prefix)) && !yield([]byte(k), t.rows[bucket][k]) {
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

func (s *lockedStore) Update(fn func(rows.Tx) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.world.Update(fn)
}

// simClock is the machine's clock. Its wall clock may be wrong; the simulation
// itself goes by that of the bubble.
type simClock struct {
	shift  time.Duration // of the wall clock
	synced bool
	boot   uint64
	up     time.Time // when the machine was booted
}

// simEpoch is where the wall clock stands when a simulation begins, in which it is
// 2000.
const simEpoch = 30 * 365 * 24 * time.Hour

func (w *world) Now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Add(simEpoch + w.clock.shift)
}

func (w *world) Uptime() (time.Duration, uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Since(w.clock.up), w.clock.boot
}

func (w *world) Synced() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.clock.shift == 0 && w.clock.synced
}

// reboot lets some time pass, and may start the machine anew, for want of power or
// well.
func (w *world) reboot() {
	time.Sleep(time.Duration(w.dice.IntN(30)) * time.Second)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dice.IntN(2) == 0 {
		if w.dice.IntN(2) == 0 {
			w.powerCut()
		}
		w.clock.boot++
		w.clock.up = time.Now()
		w.clock.synced = false
		w.misset()
	}
}

// jump may move the wall clock, or have it set right.
func (w *world) jump() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch w.dice.IntN(4) {
	case 0:
		w.clock.synced = false
		w.misset()
	case 1:
		w.clock.shift, w.clock.synced = 0, true
		w.note("the clock is right")
	}
}

// misset sets the wall clock wrong, once the right time was made durable: nobody can
// know better of the first time that is not absurd. w.mu is held.
func (w *world) misset() {
	if len(w.rows[bucketBoots]) == 0 {
		return
	}
	shifts := []time.Duration{0, -simEpoch - 30*365*24*time.Hour, -time.Hour, 10 * 365 * 24 * time.Hour}
	w.clock.shift = shifts[w.dice.IntN(len(shifts))]
	w.note("the clock is wrong by %v", w.clock.shift)
}
