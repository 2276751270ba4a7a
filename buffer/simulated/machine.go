// Package simulated is a machine to test on what must survive one: disks with a
// page cache, stores of rows and a clock, all in memory, in which everything that
// can fail does, at random but from a seed. Writes fail, or their fate is unknown;
// the disk is full or broken for a while, files may not grow; the process is killed
// or the power cut before and after every write; the wall clock is wrong.
//
// It is for tests that run in a bubble of testing/synctest, and for nothing else.
package simulated

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

var (
	// ErrOff is what everything returns while the machine is off, and for ever to who
	// was on it before.
	ErrOff = errors.New("the machine is off")
	errIO  = errors.New("input/output error")
)

// Machine is one computer. Its methods may be called concurrently.
type Machine struct {
	seed uint64

	mu        sync.Mutex // guards what follows, and the parts
	rare      int        // faults are so many times as rare as they might be; 0 is none at all
	life      int        // counts the times that it was turned on
	on        bool
	broken    bool // every write fails
	latency   time.Duration
	disks     map[string]*disk
	stores    map[string]*store
	clock     clock
	rewritten int
	unsynced  int
	failures  int
	trace     []string
}

// New returns a machine that is off. It is called when nothing else runs in the
// bubble, whose clock it sets to a year that programs take for possible.
func New(seed uint64) *Machine {
	time.Sleep(time.Until(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)))
	return &Machine{
		seed: seed, disks: make(map[string]*disk), stores: make(map[string]*store),
		clock: clock{boot: 1, up: time.Now()},
	}
}

// Life is what a machine is from being turned on until it is off. A process that
// goes on after that does it for nobody: all that it has of the machine fails.
type Life struct {
	m *Machine
	n int
}

// On turns the machine on.
func (m *Machine) On() *Life {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.life++
	m.on = true
	m.note("the machine is on")
	return &Life{m, m.life}
}

// over reports whether the life has ended. m.mu is held.
func (l *Life) over() bool { return !l.m.on || l.m.life != l.n }

// Do calls f, unless the life is over, and reports whether it did. The life does not
// end meanwhile: f must not call the machine.
func (l *Life) Do(f func()) bool {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.over() {
		return false
	}
	f()
	return true
}

// Off reports whether the machine is off, by whatever crash.
func (m *Machine) Off() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.on
}

// Kill ends the process, and with it this life. What it has written is in the page
// cache, and there for the next.
func (m *Machine) Kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	_ = m.kill()
}

// Crash turns the machine off. What was not synced is gone.
func (m *Machine) Crash() {
	m.mu.Lock()
	defer m.mu.Unlock()
	_ = m.crash()
}

func (m *Machine) crash() error {
	m.powerCut()
	return m.kill()
}

func (m *Machine) kill() error {
	if m.on {
		m.note("the process is dead")
	}
	m.on = false
	return ErrOff
}

// powerCut takes what is in the page cache only. m.mu is held.
func (m *Machine) powerCut() {
	for _, d := range m.disks {
		for id, g := range d.gens {
			if lost := len(g.blocks) - g.durable; lost > 0 {
				m.unsynced += lost
				m.note("power cut: %d blocks of %s %s were not synced", lost, d.name, id)
			}
			g.firsts, g.blocks = g.firsts[:g.durable], g.blocks[:g.durable]
		}
	}
}

// Faults lets things go wrong by themselves, n times as rarely as they might; with 0
// nothing does.
func (m *Machine) Faults(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rare = n
}

// Break has every write fail from now on, or not any more.
func (m *Machine) Break(broken bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken != broken {
		m.note("the disk is broken: %t", broken)
	}
	m.broken = broken
}

// Latency has each block take up to this long on its way to the disk, and the news of
// it as long on its way back.
func (m *Machine) Latency(most time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.latency = most
}

// Rewritten is how many generations were written as a whole.
func (m *Machine) Rewritten() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rewritten
}

// Unsynced is how many blocks were lost for want of a sync.
func (m *Machine) Unsynced() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.unsynced
}

// Failures is how many writes have failed on a machine that stayed on.
func (m *Machine) Failures() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.failures
}

// Note adds to the trace of what has happened.
func (m *Machine) Note(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.note(format, args...)
}

func (m *Machine) note(format string, args ...any) {
	at := time.Since(m.clock.up).Truncate(time.Millisecond)
	m.trace = append(m.trace, fmt.Sprintf("%d+%v ", m.clock.boot, at)+fmt.Sprintf(format, args...))
}

// Write makes the machine what a program logs to: it goes to the trace.
func (m *Machine) Write(p []byte) (int, error) {
	m.Note("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// Trace is what has happened, for a seed that fails.
func (m *Machine) Trace() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Join(m.trace, "\n")
}

// part is a disk or a store. Each has its own dice, so that what one of them does
// changes little of what comes over another.
type part struct {
	m    *Machine
	name string
	rng  *rand.Rand
}

func (m *Machine) part(kind, name string) part {
	h := fnv.New64a()
	h.Write([]byte(kind + name))
	return part{m: m, name: name, rng: rand.New(rand.NewPCG(m.seed, h.Sum64()))}
}

// chance is true once in n, or more rarely, while there are faults. m.mu is held.
func (p *part) chance(n int) bool { return p.m.rare > 0 && p.rng.IntN(n*p.m.rare) == 0 }

// write is any durable write: it may fail, or be the last thing that happens. m.mu is
// held.
func (p *part) write(l *Life, what string, apply func()) (err error) {
	m := p.m
	if l.over() {
		return ErrOff
	}
	defer func() {
		m.note("%s %s: %v", what, p.name, err)
		if err != nil {
			m.failures++
		}
	}()
	switch {
	case m.broken:
		return errIO
	case p.chance(150):
		return m.crash()
	case p.chance(150):
		apply()
		what += ", done"
		return m.crash()
	case p.chance(60):
		return &os.PathError{Op: "write", Path: p.name, Err: syscall.ENOSPC}
	}
	apply()
	return nil
}
