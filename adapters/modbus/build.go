package modbus

import (
	"fmt"
	"slices"

	"github.com/fieldferry/fieldferry/adapters"
)

// The powers of ten of a ScaleBy. SunSpec has them (sunssf) from -10 to 10.
const maxExponent = 10

// A plan is what one job asks for and what to do with the answers.
type plan struct {
	unit     uint8
	fields   []field
	spans    []adapters.Span // of the fields
	scaled   []scaled
	factors  []factor
	requests []request

	// To arrange the requests.
	tables    [4][]int32 // fields
	registers int        // in a request
	bits      int
	gap       int

	// What was learned of the device: addresses that no request may span.
	walls  [4][]int
	barren int // polls in a row in which everything was refused
}

// A field is one point in its place.
type field struct {
	converter
	sample int32 // in the job; -1 for a factor
	aux    int32 // in scaled or, for a factor, in factors; or -1
}

// scaled is a field that awaits its factor.
type scaled struct {
	field  int32
	factor int32
	b      []byte // of this poll; nil before the answer
}

// A factor is a power of ten that other points are multiplied by.
type factor struct {
	known  bool   // in this poll
	reason string // why it cannot be used; empty for no answer
	exp    int
}

// A request is one block of one table.
type request struct {
	table Table
	adapters.Block
}

// newPlan makes the plan of the points of one rate, and the samples of its job.
func newPlan(d *Device, points []*Point, registers, bits, gap int) (*plan, []adapters.Sample, error) {
	p := &plan{unit: d.UnitID, registers: registers, bits: bits, gap: gap}
	var samples []adapters.Sample
	add := func(pt *Point, sample, aux int) error {
		c, err := pt.converter()
		if err != nil {
			return err
		}
		s := pt.span()
		if limit := p.limit(pt.Table); s.Count > limit {
			return fmt.Errorf("takes %d of %s, and a request may ask for %d", s.Count, pt.Table, limit)
		}
		p.tables[pt.Table] = append(p.tables[pt.Table], int32(len(p.fields)))
		p.fields = append(p.fields, field{c, int32(sample), int32(aux)})
		p.spans = append(p.spans, s)
		return nil
	}
	factors := map[string]int{}
	for _, pt := range points {
		aux := -1
		if name := pt.ScaleBy; name != "" {
			f, ok := factors[name]
			if !ok {
				f = len(factors)
				factors[name] = f
				of := slices.IndexFunc(d.Points, func(o Point) bool { return o.Point.Name == name })
				if of < 0 {
					return nil, nil, fmt.Errorf("point %s: there is no point %s to scale by", pt.Point.Name, name)
				}
				by := &d.Points[of]
				if !by.integer() || by.Count > 0 || by.arithmetic() || by.Enum != nil || len(by.Bits) > 0 {
					return nil, nil, fmt.Errorf("point %s: %s is not a plain integer to scale by", pt.Point.Name, name)
				}
				if err := add(by, -1, f); err != nil {
					return nil, nil, fmt.Errorf("point %s: %w", name, err)
				}
				p.factors = append(p.factors, factor{})
			}
			aux = len(p.scaled)
			p.scaled = append(p.scaled, scaled{field: int32(len(p.fields)), factor: int32(f)})
		}
		if err := add(pt, len(samples), aux); err != nil {
			return nil, nil, fmt.Errorf("point %s: %w", pt.Point.Name, err)
		}
		samples = append(samples, adapters.Sample{Point: pt.Point})
	}
	p.arrange()
	return p, slices.Clip(samples), nil
}

// arrange makes the requests.
func (p *plan) arrange() {
	p.requests = nil
	for t, fields := range p.tables {
		spans := make([]adapters.Span, len(fields))
		for i, f := range fields {
			spans[i] = p.spans[f]
		}
		for _, b := range adapters.Plan(spans, p.limit(Table(t)), p.gap, p.walls[t]) {
			for i, s := range b.Spans {
				b.Spans[i] = int(fields[s])
			}
			p.requests = append(p.requests, request{Table(t), b})
		}
	}
}

// limit returns how much one request may ask for.
func (p *plan) limit(t Table) int {
	if t.holdsBits() {
		return p.bits
	}
	return p.registers
}

// begin forgets the last poll.
func (p *plan) begin() {
	for i := range p.scaled {
		p.scaled[i].b = nil
	}
	for i := range p.factors {
		p.factors[i] = factor{}
	}
}

// takeRegisters takes the answer to a request for registers.
func (p *plan) takeRegisters(r *request, b []byte, samples []adapters.Sample) {
	for _, i := range r.Spans {
		f, s := &p.fields[i], p.spans[i]
		at := 2 * (s.Start - r.Start)
		mine := b[at : at+2*s.Count]
		switch {
		case f.sample < 0:
			p.factors[f.aux].take(f.value(mine, 0))
		case f.aux >= 0:
			p.scaled[f.aux].b = mine
		default:
			to := &samples[f.sample]
			to.Value, to.Quality, to.Reason = f.value(mine, 0)
		}
	}
}

// takeBits takes the answer to a request for coils or discrete inputs.
func (p *plan) takeBits(r *request, on []bool, samples []adapters.Sample) {
	for _, i := range r.Spans {
		f, s := &p.fields[i], p.spans[i]
		at := s.Start - r.Start
		to := &samples[f.sample]
		to.Value, to.Quality = f.switches(on[at:at+s.Count]), adapters.Good
	}
}

// takeRefusal takes an exception as the answer to a request.
func (p *plan) takeRefusal(r *request, reason string, samples []adapters.Sample) {
	for _, i := range r.Spans {
		if f := &p.fields[i]; f.sample < 0 {
			p.factors[f.aux].reason = reason
		} else {
			samples[f.sample].Reason = reason
		}
	}
}

// finish multiplies what has a factor, when all answers are there.
func (p *plan) finish(samples []adapters.Sample) {
	for i := range p.scaled {
		s := &p.scaled[i]
		if s.b == nil {
			continue
		}
		f := &p.fields[s.field]
		to := &samples[f.sample]
		if by := &p.factors[s.factor]; by.known {
			to.Value, to.Quality, to.Reason = f.value(s.b, by.exp)
		} else {
			to.Reason = by.reason // empty if it was not answered: then it is that of the poll
		}
	}
}

func (f *factor) take(v adapters.Value, _ adapters.Quality, reason string) {
	exp, ok := v.Float64()
	switch {
	case !ok:
		f.reason = reason
	case exp < -maxExponent || exp > maxExponent:
		f.reason = adapters.ReasonInvalid
	default:
		f.known, f.exp = true, int(exp)
	}
}
