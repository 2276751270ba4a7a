package modbus

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"
	"slices"
	"unicode/utf8"

	"github.com/fieldferry/fieldferry/adapters"
)

// A converter turns the registers of one point into its value. There are as many
// as points, so it is small; what only some of them need hangs off it.
type converter struct {
	typ       Type
	swapWords bool
	swapBytes bool
	size      uint8 // bytes of one value; 0 for a coil or a discrete input
	*special        // nil for a plain number
}

// special is what makes a point more than a plain number.
type special struct {
	invalid []uint64 // raw bits that mean "no value"
	linear  *linear
	bits    []uint8
	names   *adapters.FlagNames // of bits
	enum    map[int64]adapters.Value

	// Used again from poll to poll.
	list  []adapters.Value // of an array
	whole adapters.Value   // the same as a value
	text  adapters.Value   // the last string
}

// A number is a raw one: an integer, or else a float.
type number struct {
	isInt  bool
	single bool // a float of 32 bits or fewer
	i      int64
	f      float64 // set for integers above the int64 too
}

// value converts b, which holds exactly the point's registers as they came. The
// number is multiplied by ten to the power of exp.
func (c *converter) value(b []byte, exp int) (adapters.Value, adapters.Quality, string) {
	if c.special == nil {
		return c.one(b, 0)
	}
	if c.typ == String {
		return c.string(b)
	}
	if c.list == nil {
		return c.one(b, exp)
	}
	size := int(c.size)
	for i := range c.list {
		v, q, reason := c.one(b[i*size:(i+1)*size], exp)
		if q == adapters.Bad {
			return adapters.Value{}, q, reason // half an array is none
		}
		c.list[i] = v
	}
	return c.whole, adapters.Good, ""
}

// switches converts what a coil or discrete input, or an array of them, holds.
func (c *converter) switches(on []bool) adapters.Value {
	if c.special == nil {
		return adapters.Bool(on[0])
	}
	for i := range c.list {
		c.list[i] = adapters.Bool(on[i])
	}
	return c.whole
}

func (c *converter) one(b []byte, exp int) (adapters.Value, adapters.Quality, string) {
	raw := c.raw(b)
	if c.special != nil && slices.Contains(c.invalid, raw) {
		return adapters.Value{}, adapters.Bad, adapters.ReasonInvalid
	}
	n, ok := c.number(raw)
	if !ok {
		return adapters.Value{}, adapters.Bad, adapters.ReasonInvalid
	}
	if !n.isInt && !finite(n.f) {
		return adapters.Value{}, adapters.Bad, adapters.ReasonNotANumber
	}
	if c.special != nil {
		switch {
		case c.names != nil:
			var set uint64
			for i, bit := range c.bits {
				set |= raw >> bit & 1 << i
			}
			return adapters.Flags(c.names, set), adapters.Good, ""
		case c.enum != nil:
			if v, ok := c.enum[n.i]; ok {
				return v, adapters.Good, ""
			}
			return c.plain(raw, n), adapters.Uncertain, adapters.ReasonNotInEnum
		case c.linear != nil:
			f := c.linear.apply(n, exp)
			if !finite(f) {
				return adapters.Value{}, adapters.Bad, adapters.ReasonNotANumber
			}
			if n.single && !c.linear.Rounds() && math.Abs(f) <= math.MaxFloat32 {
				return adapters.Float32(float32(f)), adapters.Good, ""
			}
			return adapters.Float64(f), adapters.Good, ""
		}
	}
	return c.plain(raw, n), adapters.Good, ""
}

// plain returns a number as it is, in the kind of the point's type.
func (c *converter) plain(raw uint64, n number) adapters.Value {
	switch c.typ {
	case Bool:
		return adapters.Bool(raw != 0)
	case Int64:
		return adapters.Int64(n.i)
	case Uint64:
		return adapters.Uint64(raw)
	case Float16, Float32:
		return adapters.Float32(float32(n.f))
	case Float64:
		return adapters.Float64(n.f)
	default:
		return adapters.Int(n.i)
	}
}

// number reads raw bits as the point's type. It reports false if they are none.
func (c *converter) number(raw uint64) (n number, ok bool) {
	n.isInt, ok = true, true
	switch c.typ {
	case Int16:
		n.i = int64(int16(raw))
	case Int32:
		n.i = int64(int32(raw))
	case Uint64:
		n.i, n.f, n.isInt = int64(raw), float64(raw), raw <= math.MaxInt64
	case BCD16, BCD32:
		n.i, ok = fromBCD(uint32(raw))
	case Float16:
		n.f, n.isInt, n.single = float64(fromFloat16(uint16(raw))), false, true
	case Float32:
		n.f, n.isInt, n.single = float64(math.Float32frombits(uint32(raw))), false, true
	case Float64:
		n.f, n.isInt = math.Float64frombits(raw), false
	default: // without sign, or of 64 bits
		n.i = int64(raw)
	}
	return n, ok
}

// raw returns the bits of one value, put in the order of the standard.
func (c *converter) raw(b []byte) uint64 {
	switch c.size {
	case 2:
		u := binary.BigEndian.Uint16(b)
		if c.swapBytes {
			u = bits.ReverseBytes16(u)
		}
		return uint64(u)
	case 4:
		u := binary.BigEndian.Uint32(b)
		if c.swapWords {
			u = bits.RotateLeft32(u, 16)
		}
		if c.swapBytes {
			u = u&0x00FF00FF<<8 | u>>8&0x00FF00FF
		}
		return uint64(u)
	default:
		u := binary.BigEndian.Uint64(b)
		if c.swapWords {
			u = bits.RotateLeft64(u, 32)
			u = u&0x0000FFFF0000FFFF<<16 | u>>16&0x0000FFFF0000FFFF
		}
		if c.swapBytes {
			u = u&0x00FF00FF00FF00FF<<8 | u>>8&0x00FF00FF00FF00FF
		}
		return u
	}
}

// string returns the text in b, as the value of the last poll if it is the same.
func (c *converter) string(b []byte) (adapters.Value, adapters.Quality, string) {
	if c.swapBytes {
		b = slices.Clone(b) // other points may lie in the same registers
		for i := 0; i+1 < len(b); i += 2 {
			b[i], b[i+1] = b[i+1], b[i]
		}
	}
	b = b[:c.size]
	if end := bytes.IndexByte(b, 0); end >= 0 {
		b = b[:end]
	}
	b = bytes.TrimRight(b, " ")
	if c.text.Kind() == adapters.KindString && c.text.Text() == string(b) {
		return c.text, adapters.Good, ""
	}
	if !utf8.Valid(b) {
		return adapters.Value{}, adapters.Bad, adapters.ReasonNotText
	}
	c.text = adapters.String(string(b))
	return c.text, adapters.Good, ""
}

func finite(f float64) bool { return !math.IsNaN(f) && !math.IsInf(f, 0) }

// fromBCD reads a decimal digit from each four bits.
func fromBCD(u uint32) (int64, bool) {
	var n int64
	for shift := 28; shift >= 0; shift -= 4 {
		d := u >> shift & 15
		if d > 9 {
			return 0, false
		}
		n = n*10 + int64(d)
	}
	return n, true
}

// fromFloat16 widens a number of 16 bits. IEEE 754-2019 §3.4, table 3.5: a sign
// bit, 5 bits of exponent with a bias of 15, 10 bits of fraction.
func fromFloat16(u uint16) float32 {
	sign := uint32(u>>15) << 31
	exp := uint32(u >> 10 & 31)
	frac := uint32(u & 0x3FF)
	switch exp {
	case 0: // zero and subnormals: frac × 2^-24
		return math.Float32frombits(math.Float32bits(float32(frac)/(1<<24)) | sign)
	case 31: // infinity and NaN
		return math.Float32frombits(sign | 0xFF<<23 | frac<<13)
	default:
		return math.Float32frombits(sign | (exp+127-15)<<23 | frac<<13)
	}
}
