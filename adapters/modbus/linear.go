package modbus

import "github.com/fieldferry/fieldferry/adapters"

// linear is the arithmetic between a raw number and its value.
type linear struct{ *adapters.Linear }

func newLinear(p *Point) *linear {
	var raw, to *[2]float64
	if p.Range != nil {
		raw, to = &p.Range.Raw, &p.Range.To
	}
	return &linear{adapters.NewLinear(raw, to, p.Scale, p.Offset, p.Decimals)}
}

// apply returns the value of a raw number, multiplied by ten to the power of exp.
func (l *linear) apply(n number, exp int) float64 {
	if n.isInt {
		return l.Apply(float64(n.i), 0, exp)
	}
	return l.Apply(n.f, -1, exp)
}
