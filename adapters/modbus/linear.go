package modbus

import (
	"math"
	"strconv"
	"strings"
)

// linear is the arithmetic between a raw number and its value.
type linear struct {
	rng      *Range
	scale    float64
	offset   float64
	exact    int // decimals of scale and offset, or -1 if they are not meant in decimals
	decimals int // to round to, or -1
}

func newLinear(p *Point) *linear {
	l := &linear{rng: p.Range, scale: p.Scale, offset: p.Offset, decimals: -1}
	if l.scale == 0 {
		l.scale = 1
	}
	if p.Decimals != nil {
		l.decimals = *p.Decimals
	}
	l.exact = max(decimalsOf(l.scale), decimalsOf(l.offset))
	if l.exact > 12 || l.rng != nil {
		l.exact = -1
	}
	return l
}

// apply returns the value of a raw number, multiplied by ten to the power of
// exp. Integers are reckoned in decimal fractions, so that 235 × 0.1 + 0 is 23.5
// and 3 × 0.1 is not 0.30000000000000004, and a half is rounded where a person
// sees one.
func (l *linear) apply(n number, exp int) float64 {
	v := n.f
	if n.isInt {
		v = float64(n.i)
	}
	if r := l.rng; r != nil {
		v = r.To[0] + (v-r.Raw[0])*(r.To[1]-r.To[0])/(r.Raw[1]-r.Raw[0])
	}
	if exp >= 0 {
		v *= math.Pow10(exp)
	} else {
		v /= math.Pow10(-exp)
	}
	v = v*l.scale + l.offset
	if n.isInt && l.exact >= 0 {
		decimals := l.exact + max(-exp, 0)
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

// decimalsOf returns how many decimals f has in the fewest digits that give it
// back.
func decimalsOf(f float64) int {
	_, frac, _ := strings.Cut(strconv.FormatFloat(f, 'f', -1, 64), ".")
	return len(frac)
}
