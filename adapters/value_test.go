package adapters

import (
	"math"
	"testing"
	"unsafe"
)

func TestValue(t *testing.T) {
	names := &FlagNames{"running", "", "fault"}
	tests := []struct {
		v      Value
		kind   Kind
		text   string
		number float64
		isNum  bool
	}{
		{Value{}, KindNone, "none", 0, false},
		{Bool(true), KindBool, "true", 1, true},
		{Bool(false), KindBool, "false", 0, true},
		{Int(-5), KindInt, "-5", -5, true},
		{Int64(math.MinInt64), KindInt64, "-9223372036854775808", math.MinInt64, true},
		{Uint64(math.MaxUint64), KindUint64, "18446744073709551615", math.MaxUint64, true},
		{Float32(23.4), KindFloat32, "23.4", float64(float32(23.4)), true},
		{Float64(23.4), KindFloat64, "23.4", 23.4, true},
		{String("on"), KindString, "on", 0, false},
		{String(""), KindString, "", 0, false},
		{List([]Value{Int(1), Bool(true)}), KindList, "[1 true]", 0, false},
		{Flags(names, 0b101), KindFlags, "{running fault}", 0, false},
	}
	for _, test := range tests {
		if k := test.v.Kind(); k != test.kind {
			t.Errorf("%v: kind %d, want %d", test.v, k, test.kind)
		}
		if s := test.v.String(); s != test.text {
			t.Errorf("%q, want %q", s, test.text)
		}
		if f, ok := test.v.Float64(); f != test.number || ok != test.isNum {
			t.Errorf("%v: number %v %v, want %v %v", test.v, f, ok, test.number, test.isNum)
		}
	}
	if n := unsafe.Sizeof(Value{}); n > 24 {
		t.Errorf("a value takes %d bytes", n)
	}
}

func TestValueAllocatesNothing(t *testing.T) {
	names := &FlagNames{"a"}
	values := make([]Value, 7)
	n := 1000.0
	allocs := testing.AllocsPerRun(100, func() {
		n++
		values[0] = Bool(n > 0)
		values[1] = Int(int64(n))
		values[2] = Int64(int64(n))
		values[3] = Uint64(uint64(n))
		values[4] = Float32(float32(n))
		values[5] = Float64(n)
		values[6] = Flags(names, uint64(n))
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}
