package simulate

import (
	"encoding/binary"
	"math"
	"slices"
	"sync"
	"time"
)

// Table is one of the four kinds of data of a unit, by the function that reads
// it. Modbus Application Protocol 1.1b3 §6.1 to §6.4.
type Table uint8

const (
	Coil     Table = 1
	Discrete Table = 2
	Holding  Table = 3
	Input    Table = 4
)

// A Signal is a value that follows time and the number of reads. Elapsed counts
// from the unit's making; reads counts the requests that the unit was asked to
// answer, from 1.
type Signal func(elapsed time.Duration, reads uint64) float64

// Constant stays at v.
func Constant(v float64) Signal {
	return func(time.Duration, uint64) float64 { return v }
}

// Counter is the number of reads.
func Counter() Signal {
	return func(_ time.Duration, reads uint64) float64 { return float64(reads) }
}

// Ramp goes from low to high in a period, again and again.
func Ramp(low, high float64, period time.Duration) Signal {
	return func(elapsed time.Duration, _ uint64) float64 {
		return low + (high-low)*turn(elapsed, period)
	}
}

// Sine swings between low and high, once in a period.
func Sine(low, high float64, period time.Duration) Signal {
	return func(elapsed time.Duration, _ uint64) float64 {
		return (low+high)/2 + (high-low)/2*math.Sin(2*math.Pi*turn(elapsed, period))
	}
}

// Blink is 0 for half of a period and 1 for the other.
func Blink(period time.Duration) Signal {
	return func(elapsed time.Duration, _ uint64) float64 {
		return math.Floor(2 * turn(elapsed, period))
	}
}

// turn returns which part of its period has elapsed, in [0, 1).
func turn(elapsed, period time.Duration) float64 {
	return float64(elapsed%period) / float64(period)
}

// An Encoding writes a number into 1 to 4 registers, as they go on the wire.
type Encoding struct {
	Registers int
	Put       func(registers []byte, v float64) // 2*Registers bytes
}

// Int16 is one register, with or without sign.
func Int16() Encoding {
	return Encoding{1, func(b []byte, v float64) { binary.BigEndian.PutUint16(b, uint16(int64(v))) }}
}

// Int32 is two registers in the standard's order, with or without sign.
func Int32() Encoding {
	return Encoding{2, func(b []byte, v float64) { binary.BigEndian.PutUint32(b, uint32(int64(v))) }}
}

// Float32 is two registers in the standard's order.
func Float32() Encoding {
	return Encoding{2, func(b []byte, v float64) { binary.BigEndian.PutUint32(b, math.Float32bits(float32(v))) }}
}

// Float64 is four registers in the standard's order.
func Float64() Encoding {
	return Encoding{4, func(b []byte, v float64) { binary.BigEndian.PutUint64(b, math.Float64bits(v)) }}
}

// A Unit is one device. Its methods may be called at any time, concurrently
// with the server.
type Unit struct {
	made time.Time

	mu       sync.Mutex // guards what follows
	tables   [5]table   // by Table
	reads    uint64
	fault    Fault
	identity map[byte]string // nil: it does not say
}

// table is one address space. What was never defined cannot be read.
type table struct {
	pages   [256]*page // by the high byte of the address
	signals []driven   // by address; they do not overlap
}

type page struct {
	words   [256]uint16 // a coil or discrete input is 0 or 1
	defined [256]bool
}

// driven is what a signal is written to.
type driven struct {
	start  int
	enc    Encoding // no registers for a coil or a discrete input
	signal Signal
}

func newUnit() *Unit { return &Unit{made: time.Now()} }

// Set defines words from address on, in a table of bits each 0 or 1, and gives
// them their values. What would lie past address 65535 is left out.
func (u *Unit) Set(t Table, address uint16, words ...uint16) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, w := range words {
		u.tables[t].set(int(address)+i, w)
	}
}

// Drive defines registers that hold what a signal says at the moment they are
// read. They must not overlap what is driven by another.
func (u *Unit) Drive(t Table, address uint16, enc Encoding, signal Signal) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.tables[t].drive(driven{int(address), enc, signal})
}

// Switch defines a coil or a discrete input that is on while a signal is not 0.
func (u *Unit) Switch(t Table, address uint16, signal Signal) {
	u.Drive(t, address, Encoding{}, signal)
}

// SetFault gives the unit a fault; the zero Fault takes it away.
func (u *Unit) SetFault(f Fault) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.fault = f
}

// Reads returns how many requests the unit was asked to answer.
func (u *Unit) Reads() uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.reads
}

// asked counts a request, and returns the fault to answer it with.
func (u *Unit) asked() Fault {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.reads++
	f := u.fault
	if f.Times > 0 {
		if u.fault.Times--; u.fault.Times == 0 {
			u.fault = Fault{}
		}
	}
	return f
}

// read appends the byte count and the content of count registers or bits. It
// reports false if any of them is not defined.
func (u *Unit) read(dst []byte, t Table, start, count int) ([]byte, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	tab := &u.tables[t]
	tab.refresh(start, start+count, time.Since(u.made), u.reads)
	if t == Coil || t == Discrete {
		n := (count + 7) / 8
		at := len(dst) + 1
		dst = append(dst, byte(n))
		dst = append(dst, make([]byte, n)...)
		for i := range count {
			w, ok := tab.get(start + i)
			if !ok {
				return dst, false
			}
			if w != 0 { // the first in the lowest bit of the first byte
				dst[at+i/8] |= 1 << (i % 8)
			}
		}
		return dst, true
	}
	dst = append(dst, byte(2*count))
	for i := range count {
		w, ok := tab.get(start + i)
		if !ok {
			return dst, false
		}
		dst = binary.BigEndian.AppendUint16(dst, w)
	}
	return dst, true
}

func (t *table) get(at int) (uint16, bool) {
	if at > math.MaxUint16 {
		return 0, false
	}
	p := t.pages[at>>8]
	if p == nil {
		return 0, false
	}
	return p.words[at&255], p.defined[at&255]
}

func (t *table) set(at int, w uint16) {
	if at > math.MaxUint16 {
		return
	}
	p := t.pages[at>>8]
	if p == nil {
		p = new(page)
		t.pages[at>>8] = p
	}
	p.words[at&255], p.defined[at&255] = w, true
}

func (t *table) drive(d driven) {
	for i := range d.words() {
		t.set(d.start+i, 0)
	}
	i, _ := slices.BinarySearchFunc(t.signals, d.start, func(s driven, at int) int { return s.start - at })
	t.signals = slices.Insert(t.signals, i, d)
}

// refresh writes the signals that reach into start to end.
func (t *table) refresh(start, end int, elapsed time.Duration, reads uint64) {
	const longest = 4 // registers of an encoding
	i, _ := slices.BinarySearchFunc(t.signals, start-longest+1, func(s driven, at int) int { return s.start - at })
	for ; i < len(t.signals) && t.signals[i].start < end; i++ {
		s := &t.signals[i]
		v := s.signal(elapsed, reads)
		if s.enc.Registers == 0 {
			var w uint16
			if v != 0 {
				w = 1
			}
			t.set(s.start, w)
			continue
		}
		var b [2 * longest]byte
		s.enc.Put(b[:2*s.enc.Registers], v)
		for k := range s.enc.Registers {
			t.set(s.start+k, binary.BigEndian.Uint16(b[2*k:]))
		}
	}
}

func (d *driven) words() int { return max(d.enc.Registers, 1) }
