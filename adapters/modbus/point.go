package modbus

import (
	"errors"
	"fmt"
	"math"

	"github.com/fieldferry/fieldferry/adapters"
)

func (t Table) holdsBits() bool { return t == Coil || t == Discrete }

// bytes returns the length of one value of a type in registers; 0 for a string.
func (t Type) bytes() int {
	switch t {
	case Auto, Bool, Int16, Uint16, Float16, BCD16:
		return 2
	case Int32, Uint32, Float32, BCD32:
		return 4
	case Int64, Uint64, Float64:
		return 8
	}
	return 0
}

func (t Type) isFloat() bool { return t == Float16 || t == Float32 || t == Float64 }

// integer reports whether p's raw numbers are integers.
func (p *Point) integer() bool {
	return p.Type != String && p.Type != Bool && !p.Type.isFloat() && !p.Table.holdsBits()
}

// span returns the registers or bits that p takes.
func (p *Point) span() adapters.Span {
	n := 1
	switch {
	case p.Type == String:
		n = (p.Bytes + 1) / 2
	case !p.Table.holdsBits():
		n = p.Type.bytes() / 2
	}
	return adapters.Span{Start: int(p.Address), Count: n * max(p.Count, 1)}
}

// converter returns what turns p's registers into its value.
func (p *Point) converter() (converter, error) {
	if err := p.check(); err != nil {
		return converter{}, err
	}
	c := converter{
		typ:       p.Type,
		swapWords: p.Order == CDAB || p.Order == DCBA,
		swapBytes: p.Order == BADC || p.Order == DCBA,
	}
	switch {
	case p.Table.holdsBits():
		c.typ = Bool
	case p.Type == Auto:
		c.typ, c.size = Uint16, 2
	case p.Type == String:
		c.size = uint8(p.Bytes)
	default:
		c.size = uint8(p.Type.bytes())
	}
	var s special
	for _, v := range p.Invalid {
		raw, ok := rawOf(c.typ, v)
		if !ok {
			return c, fmt.Errorf("%s is no %s, and cannot stand for an invalid one", v, c.typ)
		}
		s.invalid = append(s.invalid, raw...)
	}
	if len(p.Bits) > 0 {
		names := make(adapters.FlagNames, len(p.Bits))
		for i, b := range p.Bits {
			names[i] = b.Name
			s.bits = append(s.bits, uint8(b.Bit))
		}
		s.names = &names
	}
	if p.Enum != nil {
		s.enum = make(map[int64]adapters.Value, len(p.Enum))
		for n, name := range p.Enum {
			s.enum[n] = adapters.String(name)
		}
	}
	if p.arithmetic() {
		s.linear = newLinear(p)
	}
	if p.Count > 0 {
		s.list = make([]adapters.Value, p.Count)
		s.whole = adapters.List(s.list)
	}
	if s.invalid != nil || s.names != nil || s.enum != nil || s.linear != nil || s.list != nil || p.Type == String {
		c.special = &s
	}
	return c, nil
}

// arithmetic reports whether p asks for any.
func (p *Point) arithmetic() bool {
	return p.Scale != 0 && p.Scale != 1 || p.Offset != 0 || p.Range != nil || p.ScaleBy != "" ||
		p.Decimals != nil && p.Type.isFloat()
}

// check reports what in p contradicts itself.
func (p *Point) check() error {
	switch {
	case p.Table > Discrete || p.Type > BCD32 || p.Order > DCBA:
		return errors.New("table, type or order is unknown")
	case p.Every < 0 || p.Count < 0:
		return errors.New("period and count must not be negative")
	case p.Table.holdsBits() && p.Type != Auto && p.Type != Bool:
		return fmt.Errorf("a %s is a bool, not a %s", p.Table, p.Type)
	case p.Type == String && (p.Bytes < 1 || p.Bytes > 2*maxRegisters):
		return fmt.Errorf("bytes must be 1 to %d for a string", 2*maxRegisters)
	case p.Type == String && p.Count > 0:
		return errors.New("there are no arrays of strings")
	}
	if s := p.span(); s.Start+s.Count > 1<<16 {
		return fmt.Errorf("ends past address 65535")
	}
	numeric := p.integer() || p.Type.isFloat() && !p.Table.holdsBits()
	ways := 0
	for _, on := range []bool{len(p.Bits) > 0, p.Enum != nil, p.arithmetic()} {
		if on {
			ways++
		}
	}
	switch {
	case p.arithmetic() && !numeric:
		return fmt.Errorf("no arithmetic with a %s", p.Type)
	case (p.Enum != nil || len(p.Bits) > 0) && !p.integer():
		return errors.New("bits and enum are for integers")
	case ways > 1:
		return errors.New("a point has either bits, or an enum, or arithmetic")
	case len(p.Bits) > 0 && p.Count > 0:
		return errors.New("there are no arrays of bits")
	case len(p.Invalid) > 0 && !numeric:
		return errors.New("invalid is for numbers")
	case p.Decimals != nil && (*p.Decimals < 0 || *p.Decimals > 15):
		return errors.New("decimals must be 0 to 15")
	case !finite(p.Scale) || !finite(p.Offset):
		return errors.New("scale and offset must be finite")
	}
	if r := p.Range; r != nil && (r.Raw[0] == r.Raw[1] || !finite(r.Raw[0]+r.Raw[1]+r.To[0]+r.To[1])) {
		return errors.New("a range needs two different raw numbers")
	}
	for _, b := range p.Bits {
		if b.Bit < 0 || b.Bit >= 8*p.Type.bytes() {
			return fmt.Errorf("there is no bit %d in %d", b.Bit, 8*p.Type.bytes())
		}
	}
	return nil
}

// rawOf returns the bits that a number has in a type; none for NaN, which is
// never valid. A pattern without sign, as 65535, may stand for a negative
// number. It reports false for what the type cannot hold.
func rawOf(t Type, v adapters.Value) ([]uint64, bool) {
	f, ok := v.Float64()
	if !ok {
		return nil, false
	}
	switch t {
	case Float16, Float32, Float64:
		if math.IsNaN(f) {
			return nil, true
		}
		switch t {
		case Float16:
			return float16sOf(f), true
		case Float32:
			return []uint64{uint64(math.Float32bits(float32(f)))}, true
		}
		return []uint64{math.Float64bits(f)}, true
	}
	i, ok := integerOf(v)
	width := 8 * t.bytes()
	switch {
	case !ok || t == Uint64 && i < 0 && v.Kind() != adapters.KindUint64:
		return nil, false
	case width == 64:
		return []uint64{uint64(i)}, true
	case i >= 1<<width || i < 0 && (t != Int16 && t != Int32 || i < -1<<(width-1)):
		return nil, false
	case t == BCD16 || t == BCD32:
		return bcdsOf(i, width), true
	}
	return []uint64{uint64(i) & (1<<width - 1)}, true
}

// integerOf returns the integer that v is, its bits if it needs all 64.
func integerOf(v adapters.Value) (int64, bool) {
	switch v.Kind() {
	case adapters.KindInt, adapters.KindInt64:
		return v.Int64(), true
	case adapters.KindUint64:
		return int64(v.Uint64()), true
	}
	f, _ := v.Float64()
	return int64(f), f == math.Trunc(f) && math.Abs(f) <= 1<<53
}

// float16sOf returns the bits of the numbers of 16 bits that equal f: two for
// zero, one, or none.
func float16sOf(f float64) (all []uint64) {
	for u := range 1 << 16 {
		if float64(fromFloat16(uint16(u))) == f {
			all = append(all, uint64(u))
		}
	}
	return all
}

// bcdsOf returns the bits of i in decimal digits. What has too many digits is
// no number to begin with.
func bcdsOf(i int64, width int) []uint64 {
	var u uint64
	for shift := 0; shift < width; shift += 4 {
		u |= uint64(i%10) << shift
		i /= 10
	}
	if i != 0 {
		return nil
	}
	return []uint64{u}
}

// Decode returns the value of a point, no array and with no factor, whose
// registers hold b, or why there is none.
func (p *Point) Decode(b []byte) (adapters.Value, adapters.Quality, string) {
	c, err := p.converter()
	if err != nil || p.Count > 0 || len(b) != 2*p.span().Count {
		return adapters.Value{}, adapters.Bad, adapters.ReasonInternal
	}
	return c.value(b, 0)
}

// Encode returns what the registers of a point, which may be written, are to hold
// to have a value.
func (p *Point) Encode(v adapters.Value) ([]byte, error) {
	e, err := p.encode(v, 0)
	return e.raw, err
}

// Registers returns how many registers, or bits, a point takes.
func (p *Point) Registers() int { return p.span().Count }
