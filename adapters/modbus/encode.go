package modbus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

// A Write allows a point to be written, within limits.
type Write struct {
	Min, Max *float64      // in the unit of the point; nil is no limit
	Values   []float64     // the only ones; empty allows all. true is 1
	Pulse    time.Duration // after which the opposite is written; 0 is never
}

// encoded is a value as a device holds it.
type encoded struct {
	on    []bool // of coils
	raw   []byte // of registers, or the bits to set of those in mask
	mask  []byte // the bits of the registers that are written; nil is all
	flags bool   // mask counts
}

// encode makes of a value what the point's registers or coils are to hold, and
// checks that it may. The number is divided by ten to the power of exp.
func (p *Point) encode(v adapters.Value, exp int) (encoded, error) {
	var e encoded
	switch {
	case p.Table == Input || p.Table == Discrete:
		return e, fmt.Errorf("is in the table %s, which cannot be written", p.Table)
	case p.Write == nil:
		return e, errors.New("may not be written; write: {} in the site file allows it")
	}
	elements := []adapters.Value{v}
	if p.Count > 0 {
		if v.Kind() != adapters.KindList || len(v.List()) != p.Count {
			return e, fmt.Errorf("takes a list of %d values", p.Count)
		}
		elements = v.List()
	}
	c, err := p.converter()
	if err != nil {
		return e, err
	}
	for _, v := range elements {
		switch {
		case p.Table == Coil:
			on, err := p.boolean(v)
			if err != nil {
				return e, err
			}
			e.on = append(e.on, on)
		case p.Type == String:
			b, err := p.text(v)
			if err != nil {
				return e, err
			}
			if c.swapBytes {
				for i := 0; i+1 < len(b); i += 2 {
					b[i], b[i+1] = b[i+1], b[i]
				}
			}
			e.raw = append(e.raw, b...)
		case len(p.Bits) > 0:
			set, mask, err := p.flags(v)
			if err != nil {
				return e, err
			}
			e.raw, e.mask, e.flags = c.appendRaw(nil, set), c.appendRaw(nil, mask), true
		default:
			raw, err := p.number(&c, v, exp)
			if err != nil {
				return e, err
			}
			e.raw = c.appendRaw(e.raw, raw)
		}
	}
	if n := len(e.raw) / 2; n > maxWriteRegisters {
		return e, fmt.Errorf("takes %d registers, and a request can write %d", n, maxWriteRegisters)
	}
	if n := len(e.on); n > maxWriteBits {
		return e, fmt.Errorf("takes %d coils, and a request can write %d", n, maxWriteBits)
	}
	return e, nil
}

// allowed reports a number that is beyond the limits of a point.
func (p *Point) allowed(f float64) error {
	w := p.Write
	show := func(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }
	switch {
	case !finite(f):
		return errors.New("takes a finite number")
	case w.Min != nil && f < *w.Min:
		return fmt.Errorf("%s is below its limit %s", show(f), show(*w.Min))
	case w.Max != nil && f > *w.Max:
		return fmt.Errorf("%s is above its limit %s", show(f), show(*w.Max))
	case len(w.Values) > 0 && !slices.Contains(w.Values, f):
		return fmt.Errorf("%s is not among the values that may be written: %v", show(f), w.Values)
	}
	return nil
}

// boolean returns whether v is on: true, or a number that is not 0.
func (p *Point) boolean(v adapters.Value) (bool, error) {
	f, ok := v.Float64()
	if !ok || f != 0 && f != 1 {
		return false, fmt.Errorf("takes true or false, not %s", v)
	}
	return f == 1, p.allowed(f)
}

func (p *Point) text(v adapters.Value) ([]byte, error) {
	s := v.Text()
	switch {
	case v.Kind() != adapters.KindString:
		return nil, fmt.Errorf("takes a text, not %s", v)
	case len(s) > p.Bytes:
		return nil, fmt.Errorf("takes a text of at most %d bytes, and this has %d", p.Bytes, len(s))
	}
	b := make([]byte, (p.Bytes+1)/2*2)
	copy(b, s)
	return b, nil
}

// flags returns the bits to set, and those that are written at all: the ones that
// v names.
func (p *Point) flags(v adapters.Value) (set, mask uint64, err error) {
	names, on := v.Flags()
	if len(names) == 0 {
		return 0, 0, fmt.Errorf("takes bits by their names, not %s", v)
	}
	for i, name := range names {
		at := slices.IndexFunc(p.Bits, func(b Bit) bool { return b.Name == name })
		if at < 0 {
			known := make([]string, 0, len(p.Bits))
			for _, b := range p.Bits {
				known = append(known, b.Name)
			}
			return 0, 0, fmt.Errorf("has no bit %s; there are %s", name, shorten(known))
		}
		mask |= 1 << p.Bits[at].Bit
		set |= on >> i & 1 << p.Bits[at].Bit
	}
	return set, mask, nil
}

// number returns the bits of a number.
func (p *Point) number(c *converter, v adapters.Value, exp int) (uint64, error) {
	if p.Type == Bool {
		on, err := p.boolean(v)
		if on {
			return 1, err
		}
		return 0, err
	}
	if p.Enum != nil {
		i, err := p.enumerated(v)
		if err != nil {
			return 0, err
		}
		v = adapters.Int64(i)
	}
	f, ok := v.Float64()
	switch {
	case v.Kind() == adapters.KindString:
		return 0, fmt.Errorf("takes a number, not the text %q", v.Text())
	case !ok || v.Kind() == adapters.KindBool:
		return 0, fmt.Errorf("takes a number, not %s", v)
	}
	if err := p.allowed(f); err != nil {
		return 0, err
	}
	if c.special != nil && c.linear != nil {
		f = c.linear.Undo(f, exp)
		if p.Type.isFloat() {
			v = adapters.Float64(f)
		} else if f = math.Round(f); math.Abs(f) < 1<<53 {
			v = adapters.Int64(int64(f))
		} else {
			return 0, fmt.Errorf("%s is beyond what %s holds", v, article(p.Type, Auto))
		}
	}
	raw, err := c.rawNumber(v)
	if err != nil {
		return 0, err
	}
	if c.special != nil && slices.Contains(c.invalid, raw) {
		return 0, fmt.Errorf("%s stands for an invalid value there", v)
	}
	return raw, nil
}

// enumerated returns the number of a name, or a number that has one.
func (p *Point) enumerated(v adapters.Value) (int64, error) {
	if i, ok := integerOf(v); ok && v.Kind() != adapters.KindString {
		if _, there := p.Enum[i]; there {
			return i, nil
		}
		return 0, p.notNamed(v)
	}
	for i, name := range p.Enum {
		if name == v.Text() {
			return i, nil
		}
	}
	return 0, p.notNamed(v)
}

func (p *Point) notNamed(v adapters.Value) error {
	names := make([]string, 0, len(p.Enum))
	for _, i := range slices.Sorted(maps.Keys(p.Enum)) {
		names = append(names, p.Enum[i])
	}
	return fmt.Errorf("%s is none of its values: %s", v, shorten(names))
}

// shorten lists what there is, as far as a sentence has room.
func shorten(names []string) string {
	const most = 16
	if len(names) > most {
		names = append(slices.Clip(names[:most]), "…")
	}
	return strings.Join(names, ", ")
}

// rawNumber returns the bits of a number in the type of a point. Integers are not
// taken for what they are not: 70000 is no uint16.
func (c *converter) rawNumber(v adapters.Value) (uint64, error) {
	f, _ := v.Float64()
	switch c.typ {
	case Float16:
		if math.Abs(f) > 65504 {
			return 0, fmt.Errorf("%s is beyond what a float16 holds", v)
		}
		return uint64(toFloat16(f)), nil
	case Float32:
		if math.Abs(f) > math.MaxFloat32 {
			return 0, fmt.Errorf("%s is beyond what a float32 holds", v)
		}
		return uint64(math.Float32bits(float32(f))), nil
	case Float64:
		return math.Float64bits(f), nil
	}
	i, ok := integerOf(v)
	if !ok {
		return 0, fmt.Errorf("takes an integer, not %s", v)
	}
	width := 8 * c.typ.bytes()
	unsigned := c.typ == Uint16 || c.typ == Uint32 || c.typ == BCD16 || c.typ == BCD32
	beyond := fmt.Errorf("%s is beyond what %s holds", v, article(c.typ, Uint16))
	big := v.Kind() == adapters.KindUint64 && v.Uint64() > math.MaxInt64
	switch {
	case c.typ == Uint64:
		if i < 0 && !big {
			return 0, beyond
		}
		return uint64(i), nil
	case big:
		return 0, beyond
	case c.typ == Int64:
		return uint64(i), nil
	case unsigned && (i < 0 || i >= 1<<width), !unsigned && (i < -1<<(width-1) || i >= 1<<(width-1)):
		return 0, beyond
	case c.typ == BCD16 || c.typ == BCD32:
		all := bcdsOf(i, width)
		if all == nil {
			return 0, beyond
		}
		return all[0], nil
	}
	return uint64(i) & (1<<width - 1), nil
}

func article(t, auto Type) string {
	if t == Auto {
		t = auto
	}
	if t >= Int16 && t <= Int64 && t.String()[0] == 'i' {
		return "an " + t.String()
	}
	return "a " + t.String()
}

// appendRaw appends the registers that hold raw bits: the inverse of raw.
func (c *converter) appendRaw(dst []byte, u uint64) []byte {
	switch c.size {
	case 2:
		w := uint16(u)
		if c.swapBytes {
			w = bits.ReverseBytes16(w)
		}
		return binary.BigEndian.AppendUint16(dst, w)
	case 4:
		w := uint32(u)
		if c.swapWords {
			w = bits.RotateLeft32(w, 16)
		}
		if c.swapBytes {
			w = w&0x00FF00FF<<8 | w>>8&0x00FF00FF
		}
		return binary.BigEndian.AppendUint32(dst, w)
	default:
		if c.swapWords {
			u = bits.RotateLeft64(u, 32)
			u = u&0x0000FFFF0000FFFF<<16 | u>>16&0x0000FFFF0000FFFF
		}
		if c.swapBytes {
			u = u&0x00FF00FF00FF00FF<<8 | u>>8&0x00FF00FF00FF00FF
		}
		return binary.BigEndian.AppendUint64(dst, u)
	}
}

// toFloat16 rounds to the nearest number of 16 bits, to the even one of two.
func toFloat16(f float64) uint16 {
	var sign uint16
	if math.Signbit(f) {
		sign, f = 1<<15, -f
	}
	if f < 1.0/(1<<14) { // subnormal, in steps of 2^-24
		return sign | uint16(math.RoundToEven(f*(1<<24)))
	}
	frac, exp := math.Frexp(f) // f = frac × 2^exp, frac in [0.5, 1)
	return sign | uint16((exp+13)<<10) + uint16(math.RoundToEven(frac*(1<<11)))
}
