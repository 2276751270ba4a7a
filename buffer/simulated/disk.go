package simulated

import (
	"bytes"
	"fmt"
	"iter"
	"maps"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/fieldferry/fieldferry/buffer/log"
)

// disk keeps generations over the lives of the machine.
type disk struct {
	part
	gens map[log.GenID]*generation
}

type generation struct {
	firsts  []log.Seq
	blocks  [][]byte
	durable int  // so many blocks are; the rest is in the page cache
	limited bool // the file may not grow any more
}

// mounted is a disk as one life has it.
type mounted struct {
	*disk
	l *Life
}

// file is a generation as one life has it.
type file struct {
	mounted
	id log.GenID
	g  *generation
}

// Disk returns the disk of this name.
func (l *Life) Disk(name string) log.Disk {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	d := l.m.disks[name]
	if d == nil {
		d = &disk{part: l.m.part("disk ", name), gens: make(map[log.GenID]*generation)}
		l.m.disks[name] = d
	}
	return mounted{d, l}
}

func (d mounted) List() ([]log.GenID, error) {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if d.l.over() {
		return nil, ErrOff
	}
	return slices.SortedFunc(maps.Keys(d.gens), log.GenID.Compare), nil
}

func (d mounted) Create(id log.GenID) (log.Generation, error) {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if d.gens[id] != nil {
		return nil, fmt.Errorf("%s is there already", id)
	}
	g := new(generation)
	if err := d.write(d.l, "create "+id.String(), func() { d.gens[id] = g }); err != nil {
		return nil, err
	}
	return file{d, id, g}, nil
}

func (d mounted) Write(id log.GenID, blocks iter.Seq2[log.Seq, []byte]) error {
	g := new(generation)
	for first, block := range blocks {
		g.firsts = append(g.firsts, first)
		g.blocks = append(g.blocks, bytes.Clone(block))
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	switch {
	case d.l.over():
		return ErrOff
	case d.gens[id] != nil:
		return fmt.Errorf("%s is there already", id)
	}
	if len(g.firsts) > 0 && d.chance(30) { // a part of it, and no more
		n := d.rng.IntN(len(g.firsts))
		d.gens[id] = &generation{firsts: g.firsts[:n], blocks: g.blocks[:n], durable: n}
		if d.rng.IntN(2) == 0 {
			return d.m.crash()
		}
		return &os.PathError{Op: "write", Path: d.name, Err: syscall.ENOSPC}
	}
	d.m.rewritten++
	g.durable = len(g.blocks)
	return d.write(d.l, "rewrite "+id.String(), func() { d.gens[id] = g })
}

func (d mounted) Open(id log.GenID) (log.Generation, error) {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	switch g := d.gens[id]; {
	case d.l.over():
		return nil, ErrOff
	case g == nil:
		return nil, fmt.Errorf("open %s: %w", id, os.ErrNotExist)
	default:
		return file{d, id, g}, nil
	}
}

func (d mounted) Sync(id log.GenID) error {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	switch g := d.gens[id]; {
	case g == nil:
		return fmt.Errorf("sync %s: %w", id, os.ErrNotExist)
	case d.l.over():
		return ErrOff
	default:
		g.durable = len(g.blocks)
		return nil
	}
}

func (d mounted) Remove(id log.GenID) error {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	return d.write(d.l, "remove "+id.String(), func() { delete(d.gens, id) })
}

func (d mounted) DiskBytes(id log.GenID) int64 {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	n := int64(0)
	if g := d.gens[id]; g != nil {
		for _, b := range g.blocks {
			n += int64(len(b))
		}
	}
	return n
}

// Nothing is ever damaged here, so nothing may be repaired.

func (d mounted) Salvage(id log.GenID, _ func([]byte) int) error {
	return fmt.Errorf("salvage of %s", id)
}

func (d mounted) SetAside(id log.GenID) error { return fmt.Errorf("%s set aside", id) }

func (d mounted) Replace(id log.GenID, _ iter.Seq2[log.Seq, []byte]) error {
	return fmt.Errorf("%s replaced", id)
}

func (f file) Put(first log.Seq, block []byte) error {
	f.wait()
	if err := f.put(first, block); err != nil {
		return err
	}
	f.wait()
	return nil
}

// wait lets some of the disk's latency pass.
func (f file) wait() {
	f.m.mu.Lock()
	d := time.Duration(0)
	if f.m.latency > 0 {
		d = time.Duration(f.rng.Int64N(int64(f.m.latency)))
	}
	f.m.mu.Unlock()
	if d > 0 {
		time.Sleep(d)
	}
}

func (f file) put(first log.Seq, block []byte) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	g := f.g
	written := func() {
		g.firsts = append(g.firsts, first)
		g.blocks = append(g.blocks, bytes.Clone(block))
	}
	apply := func() {
		written()
		g.durable = len(g.blocks)
	}
	switch {
	case f.l.over():
		return ErrOff
	case g.limited || f.chance(300):
		g.limited = len(g.blocks) > 0 // an empty one may when it is tried again
		f.m.failures++
		f.m.note("put %s %s: the file is at its limit", f.name, first)
		return &os.PathError{Op: "truncate", Path: f.name, Err: syscall.EFBIG}
	case f.chance(150):
		written()
		f.m.note("put %s %s: the process is killed before the sync", f.name, first)
		return f.m.kill()
	case f.m.broken || f.chance(60): // an error, and nobody knows what was written
		fate := f.rng.IntN(3)
		f.m.failures++
		f.m.note("put %s %s fails, done: %d", f.name, first, fate)
		switch fate {
		case 1:
			written()
		case 2:
			apply()
		}
		return errIO
	}
	return f.write(f.l, "put "+first.String(), apply)
}

func (f file) Scan(from log.Seq, fn func(log.Seq, []byte) bool) error {
	f.m.mu.Lock()
	i, _ := slices.BinarySearch(f.g.firsts, from)
	firsts, blocks, over := slices.Clone(f.g.firsts[i:]), slices.Clone(f.g.blocks[i:]), f.l.over()
	f.m.mu.Unlock()
	if over {
		return ErrOff
	}
	for i := range firsts {
		if !fn(firsts[i], blocks[i]) {
			break
		}
	}
	return nil
}

func (f file) Close() error { return nil }
