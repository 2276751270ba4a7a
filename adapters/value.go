package adapters

import (
	"math"
	"strconv"
)

// Kind is the type of a value.
type Kind uint8

const (
	KindNone    Kind = iota // no value
	KindBool                // a coil, a discrete input, a bit
	KindInt                 // an integer that a float64 holds exactly: at most 53 bits
	KindInt64               // an integer of 64 bits
	KindUint64              // an integer of 64 bits without sign
	KindFloat32             // shown with the digits that a float32 has
	KindFloat64             //
	KindString              // UTF-8, as far as the device keeps to it
	KindList                // an array of values
	KindFlags               // named bits
)

// A Value is what a point holds: one of the kinds above. The zero value is
// none. Numbers, booleans and flags take no memory beyond the 24 bytes of the
// value itself. Values are not comparable by ==.
type Value struct {
	num uint64
	ref any // the Kind of a number or boolean, or else the string, []Value or *FlagNames itself
}

// FlagNames are the names of the bits of a flags value, the lowest first; at
// most 64. They are shared by all values of a point.
type FlagNames []string

// Bool returns a value of KindBool.
func Bool(b bool) Value {
	if b {
		return Value{1, KindBool}
	}
	return Value{0, KindBool}
}

// Int returns a value of KindInt. It is for types of at most 53 bits; a value
// from a 64-bit type is an [Int64] even if it is small, so that a point does
// not change its kind.
func Int(i int64) Value { return Value{uint64(i), KindInt} }

// Int64 returns a value of KindInt64.
func Int64(i int64) Value { return Value{uint64(i), KindInt64} }

// Uint64 returns a value of KindUint64.
func Uint64(u uint64) Value { return Value{u, KindUint64} }

// Float32 returns a value of KindFloat32.
func Float32(f float32) Value { return Value{uint64(math.Float32bits(f)), KindFloat32} }

// Float64 returns a value of KindFloat64.
func Float64(f float64) Value { return Value{math.Float64bits(f), KindFloat64} }

// String returns a value of KindString.
func String(s string) Value { return Value{0, s} }

// List returns a value of KindList. It refers to l, it does not copy it.
func List(l []Value) Value { return Value{0, l} }

// Flags returns a value of KindFlags; bit i of set belongs to (*names)[i].
func Flags(names *FlagNames, set uint64) Value { return Value{set, names} }

// Kind returns the type of v.
func (v Value) Kind() Kind {
	switch r := v.ref.(type) {
	case Kind:
		return r
	case string:
		return KindString
	case []Value:
		return KindList
	case *FlagNames:
		return KindFlags
	}
	return KindNone
}

// Bool returns the boolean of a KindBool.
func (v Value) Bool() bool { return v.num != 0 }

// Int64 returns the integer of a KindInt or KindInt64.
func (v Value) Int64() int64 { return int64(v.num) }

// Uint64 returns the integer of a KindUint64.
func (v Value) Uint64() uint64 { return v.num }

// Float32 returns the number of a KindFloat32.
func (v Value) Float32() float32 { return math.Float32frombits(uint32(v.num)) }

// Float64 returns v as a float64: exact for KindInt and the floats, rounded for
// 64-bit integers, 0 or 1 for a boolean. It reports false for everything else.
func (v Value) Float64() (float64, bool) {
	switch v.Kind() {
	case KindFloat64:
		return math.Float64frombits(v.num), true
	case KindFloat32:
		return float64(v.Float32()), true
	case KindInt, KindInt64:
		return float64(int64(v.num)), true
	case KindUint64, KindBool:
		return float64(v.num), true
	}
	return 0, false
}

// Text returns the string of a KindString.
func (v Value) Text() string {
	s, _ := v.ref.(string)
	return s
}

// List returns the elements of a KindList. They belong to the value.
func (v Value) List() []Value {
	l, _ := v.ref.([]Value)
	return l
}

// Flags returns the names and bits of a KindFlags: bit i of set belongs to
// names[i].
func (v Value) Flags() (names []string, set uint64) {
	if n, ok := v.ref.(*FlagNames); ok {
		return *n, v.num
	}
	return nil, 0
}

// String returns v as a person reads it.
func (v Value) String() string { return string(v.appendText(nil)) }

func (v Value) appendText(dst []byte) []byte {
	switch v.Kind() {
	case KindBool:
		return strconv.AppendBool(dst, v.Bool())
	case KindInt, KindInt64:
		return strconv.AppendInt(dst, v.Int64(), 10)
	case KindUint64:
		return strconv.AppendUint(dst, v.num, 10)
	case KindFloat32:
		return strconv.AppendFloat(dst, float64(v.Float32()), 'g', -1, 32)
	case KindFloat64:
		return strconv.AppendFloat(dst, math.Float64frombits(v.num), 'g', -1, 64)
	case KindString:
		return append(dst, v.Text()...)
	case KindList:
		dst = append(dst, '[')
		for i, e := range v.List() {
			if i > 0 {
				dst = append(dst, ' ')
			}
			dst = e.appendText(dst)
		}
		return append(dst, ']')
	case KindFlags:
		names, set := v.Flags()
		dst = append(dst, '{')
		for i, n := range names {
			if set>>i&1 == 0 {
				continue
			}
			if dst[len(dst)-1] != '{' {
				dst = append(dst, ' ')
			}
			dst = append(dst, n...)
		}
		return append(dst, '}')
	}
	return append(dst, "none"...)
}
