package alarm

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Unit is what a value is counted in.
type Unit uint8

// The units. Ratio is a share of something, 1 is all of it.
const (
	Count Unit = iota
	Ratio
	Seconds
)

// Format writes a value as a person reads it: 83 %, 1h30m, 120 ms, 4.
func (u Unit) Format(v float64) string {
	switch u {
	case Ratio:
		return significant(v*100) + " %"
	case Seconds:
		switch {
		case v < 1:
			return significant(v*1000) + " ms"
		case v < 60:
			return significant(v) + " s"
		}
		d := time.Duration(min(v, 9e9) * 1e9).Round(time.Second).String() // a Duration ends at 292 years
		if strings.HasSuffix(d, "m0s") {
			d = strings.TrimSuffix(d, "0s")
		}
		if strings.HasSuffix(d, "h0m") {
			d = strings.TrimSuffix(d, "0m")
		}
		return d
	}
	return strconv.FormatFloat(v, 'f', -1, 64)
}

// significant writes three digits, or all before the point.
func significant(v float64) string {
	if v == math.Trunc(v) || v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}
