package modbus

import (
	"math"
	"testing"

	"github.com/fieldferry/fieldferry/adapters"
)

// FuzzValue converts any registers by any description that is accepted: it must
// not panic, and what it calls good must be a value of the point's kind.
func FuzzValue(f *testing.F) {
	f.Add([]byte{0x41, 0xBB, 0x33, 0x33}, uint8(Float32), uint8(ABCD), uint8(0), uint8(0), 0.1, 0.0, int8(1), int8(0), int64(65535))
	f.Add([]byte{0x7F, 0xC0, 0, 0}, uint8(Float32), uint8(CDAB), uint8(0), uint8(0), 0.0, 0.0, int8(-1), int8(0), int64(0))
	f.Add([]byte{0xFF, 0xFE}, uint8(Int16), uint8(BADC), uint8(1), uint8(0), 0.01, -40.0, int8(2), int8(-2), int64(-1))
	f.Add([]byte{0x12, 0x34, 0x56, 0xA8}, uint8(BCD32), uint8(DCBA), uint8(0), uint8(0), 0.0, 0.0, int8(-1), int8(0), int64(9999))
	f.Add([]byte("Fieldferry\x00  "), uint8(String), uint8(DCBA), uint8(0), uint8(11), 0.0, 0.0, int8(-1), int8(0), int64(0))
	f.Add([]byte{0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF}, uint8(Uint64), uint8(ABCD), uint8(1), uint8(0), 1e-9, 1e300, int8(-1), int8(10), int64(1))
	f.Fuzz(func(t *testing.T, b []byte, typ, order, count, length uint8, scale, offset float64, places, exp int8, invalid int64) {
		p := Point{
			Type: Type(typ), Order: Order(order), Count: int(count), Bytes: int(length),
			Scale: scale, Offset: offset,
		}
		if places >= 0 {
			d := int(places)
			p.Decimals = &d
		}
		if invalid != 0 {
			p.Invalid = []adapters.Value{adapters.Int64(invalid)}
		}
		c, err := p.converter()
		if err != nil {
			return
		}
		b = append(b, make([]byte, 2*p.span().Count)...)[:2*p.span().Count]
		power := 0
		if p.arithmetic() {
			power = int(exp) % (maxExponent + 1)
		}
		v, q, reason := c.value(b, power)
		if (q == adapters.Good) != (reason == "") {
			t.Fatalf("quality %v, reason %q", q, reason)
		}
		if q == adapters.Bad {
			if v.Kind() != adapters.KindNone {
				t.Fatalf("bad, and yet %v", v)
			}
			return
		}
		all := []adapters.Value{v}
		if p.Count > 0 {
			if all = v.List(); len(all) != p.Count {
				t.Fatalf("%d of %d values", len(all), p.Count)
			}
		}
		for _, v := range all {
			if f, ok := v.Float64(); ok && (math.IsNaN(f) || math.IsInf(f, 0)) {
				t.Fatalf("%v is good", f)
			}
			if want := c.kind(); v.Kind() != want && !(c.single() && v.Kind() == adapters.KindFloat64) {
				t.Fatalf("%s has kind %d, want %d", c.typ, v.Kind(), want)
			}
			if p.Decimals != nil && p.Type.isFloat() {
				f, _ := v.Float64()
				units := f * math.Pow10(*p.Decimals)
				if math.Abs(units) < 1<<40 && math.Abs(units-math.Round(units)) > 1e-3 {
					t.Fatalf("%v has more than %d decimals", f, *p.Decimals)
				}
			}
		}
	})
}

// kind returns what the values of c are.
func (c *converter) kind() adapters.Kind {
	switch {
	case c.typ == String:
		return adapters.KindString
	case c.typ == Bool:
		return adapters.KindBool
	case c.single():
		return adapters.KindFloat32
	case c.typ == Float64 || c.special != nil && c.linear != nil:
		return adapters.KindFloat64
	case c.typ == Int64:
		return adapters.KindInt64
	case c.typ == Uint64:
		return adapters.KindUint64
	}
	return adapters.KindInt
}

func (c *converter) single() bool { return c.typ == Float16 || c.typ == Float32 }

// TestExactDecimals compares the arithmetic on integers with that on decimal
// digits.
func TestExactDecimals(t *testing.T) {
	for raw := range 1 << 16 {
		for digits, scale := range []float64{1, 0.1, 0.01, 0.001, 0.0001} {
			p := Point{Type: Int16, Scale: scale, Offset: 0.5}
			l := newLinear(&p)
			i := int64(int16(raw))
			got := l.apply(number{isInt: true, i: i}, 0)
			pow := int64(math.Pow10(max(digits, 1)))
			want := float64(i*pow/int64(math.Pow10(digits))+pow/2) / float64(pow)
			if got != want {
				t.Fatalf("%d × %v + 0.5 is %v, want %v", i, scale, got, want)
			}
		}
	}
}
