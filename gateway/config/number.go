package config

import "strconv"

// Number is a number in decimal digits, so that none of them is lost; or NaN.
type Number string

// Int64 is the number as an integer; 1.0 is one, too. It reports false for
// what is none, or does not fit.
func (n Number) Int64() (int64, bool) {
	if i, err := strconv.ParseInt(string(n), 10, 64); err == nil {
		return i, true
	}
	if _, err := strconv.ParseUint(string(n), 10, 64); err == nil {
		return 0, false
	}
	f := n.Float64()
	i := int64(f)
	return i, float64(i) == f && f > -1<<53 && f < 1<<53
}

// Uint64 is the number as an integer without sign, where Int64 has no room.
func (n Number) Uint64() (uint64, bool) {
	u, err := strconv.ParseUint(string(n), 10, 64)
	return u, err == nil
}

// Float64 is the number, rounded if need be, and infinite if it is too large.
func (n Number) Float64() float64 {
	f, _ := strconv.ParseFloat(string(n), 64)
	return f
}
