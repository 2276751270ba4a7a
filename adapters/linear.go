package adapters

import (
	"math"
	"strconv"
	"strings"
)

// Linear is the arithmetic between a raw number and a value: a range, a power of
// ten, a scale, an offset, and rounding, in this order.
type Linear struct {
	raw, to  *[2]float64
	scale    float64
	offset   float64
	exact    int // decimals of scale and offset, or -1 if they are not meant in decimals
	decimals int // to round to, or -1
}

// NewLinear returns the arithmetic that maps raw[0] and raw[1] to to[0] and to[1],
// unless these are nil, then multiplies by scale, of which 0 is 1, adds offset, and
// rounds half away from zero to so many decimals, unless that is nil.
func NewLinear(raw, to *[2]float64, scale, offset float64, decimals *int) *Linear {
	l := &Linear{raw: raw, to: to, scale: scale, offset: offset, decimals: -1}
	if l.scale == 0 {
		l.scale = 1
	}
	if decimals != nil {
		l.decimals = *decimals
	}
	l.exact = max(decimalsOf(l.scale), decimalsOf(l.offset))
	if l.exact > 12 || l.raw != nil {
		l.exact = -1
	}
	return l
}

// Apply returns the value of a raw number, multiplied by ten to the power of exp.
// Numbers that are known to have so many decimals, as integers have none, are
// reckoned in decimal fractions, so that 235 × 0.1 + 0 is 23.5 and 3 × 0.1 is not
// 0.30000000000000004, and a half is rounded where a person sees one; of others
// rawDecimals is -1.
func (l *Linear) Apply(v float64, rawDecimals, exp int) float64 {
	if l.raw != nil {
		v = l.to[0] + (v-l.raw[0])*(l.to[1]-l.to[0])/(l.raw[1]-l.raw[0])
	}
	if exp >= 0 {
		v *= math.Pow10(exp)
	} else {
		v /= math.Pow10(-exp)
	}
	v = v*l.scale + l.offset
	if rawDecimals >= 0 && l.exact >= 0 {
		decimals := l.exact + rawDecimals + max(-exp, 0)
		// Below 2^50 the rounding errors of v do not reach half a unit.
		if units := math.Round(v * math.Pow10(decimals)); math.Abs(units) < 1<<50 {
			if l.decimals >= 0 && l.decimals < decimals {
				units = math.Round(units / math.Pow10(decimals-l.decimals))
				decimals = l.decimals
			}
			return units / math.Pow10(decimals)
		}
	}
	if l.decimals >= 0 {
		if units := math.Round(v * math.Pow10(l.decimals)); math.Abs(units) < 1<<53 {
			return units / math.Pow10(l.decimals)
		}
	}
	return v
}

// Undo returns the raw number of a value: the inverse of Apply, not rounded.
func (l *Linear) Undo(v float64, exp int) float64 {
	v = (v - l.offset) / l.scale
	if exp >= 0 {
		v /= math.Pow10(exp)
	} else {
		v *= math.Pow10(-exp)
	}
	if l.raw != nil {
		v = l.raw[0] + (v-l.to[0])*(l.raw[1]-l.raw[0])/(l.to[1]-l.to[0])
	}
	return v
}

// Rounds reports whether values are rounded to decimals.
func (l *Linear) Rounds() bool { return l.decimals >= 0 }

// decimalsOf returns how many decimals f has in the fewest digits that give it
// back.
func decimalsOf(f float64) int {
	_, frac, _ := strings.Cut(strconv.FormatFloat(f, 'f', -1, 64), ".")
	return len(frac)
}
