package serial

import (
	"bytes"
	"math"
	"slices"

	"github.com/fieldferry/fieldferry/adapters"
)

// arrange puts bytes from an order into that of ABCD, or the other way round.
func (o Order) arrange(b []byte) []byte {
	b = slices.Clone(b)
	if o == DCBA || o == CDAB {
		slices.Reverse(b)
	}
	if o == BADC || o == CDAB {
		for i := 0; i+1 < len(b); i += 2 {
			b[i], b[i+1] = b[i+1], b[i]
		}
	}
	return b
}

// binary makes a value of the bytes of a point.
func (r *reader) binary(b []byte, linear *adapters.Linear) (adapters.Value, adapters.Quality, string) {
	if r.Type == String {
		if end := bytes.IndexByte(b, 0); end >= 0 {
			b = b[:end]
		}
		return r.string(bytes.TrimSpace(b))
	}
	b = r.Order.arrange(b)
	var u uint64
	for _, c := range b {
		u = u<<8 | uint64(c)
	}
	switch r.Type {
	case Bool:
		return adapters.Bool(u != 0), adapters.Good, ""
	case Float32:
		f := math.Float32frombits(uint32(u))
		return r.number(float64(f), -1, linear, func(float64) adapters.Value { return adapters.Float32(f) })
	case Float64:
		return r.number(math.Float64frombits(u), -1, linear, adapters.Float64)
	case Int8, Int16, Int24, Int32, Int48, Int64:
		shift := 64 - 8*len(b)
		return r.integer(int64(u<<shift)>>shift, linear, r.Type == Int64)
	case Uint64:
		if r.names == nil && r.enum == nil && u > math.MaxInt64 {
			return r.number(float64(u), -1, linear, func(float64) adapters.Value { return adapters.Uint64(u) })
		}
		v, q, reason := r.integer(int64(u), linear, true)
		if v.Kind() == adapters.KindInt64 {
			v = adapters.Uint64(u)
		}
		return v, q, reason
	case BCD8, BCD16, BCD24, BCD32, BCD48, BCD64:
		var n int64
		for _, c := range b {
			if c>>4 > 9 || c&15 > 9 {
				return bad(adapters.ReasonInvalid)
			}
			n = n*100 + int64(c>>4)*10 + int64(c&15)
		}
		return r.integer(n, linear, r.Type == BCD64)
	}
	return r.integer(int64(u), linear, false)
}
