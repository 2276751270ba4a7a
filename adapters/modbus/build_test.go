package modbus

import (
	"testing"

	"github.com/fieldferry/fieldferry/adapters"
)

// A value that waits for its power of ten is of this poll, or there is none.
func TestScaledIsOfThisPoll(t *testing.T) {
	d := Device{Points: []Point{
		{Point: &adapters.Point{Name: "w"}, Table: Input, ScaleBy: "sf"},
		{Point: &adapters.Point{Name: "sf"}, Table: Holding, Type: Int16, Hidden: true},
	}}
	p, samples, err := newPlan(&d, []*Point{&d.Points[0]}, maxRegisters, maxBits, 0)
	if err != nil || len(p.requests) != 2 || len(samples) != 1 {
		t.Fatalf("%v, %d requests, %d samples", err, len(p.requests), len(samples))
	}
	factor, value := &p.requests[0], &p.requests[1]
	blank := func() {
		p.begin()
		samples[0] = adapters.Sample{Point: d.Points[0].Point, Quality: adapters.Bad}
	}
	blank()
	p.takeRegisters(value, []byte{0, 25}, samples)
	p.takeRegisters(factor, []byte{0xFF, 0xFF}, samples)
	p.finish(samples)
	if s := samples[0]; s.Quality != adapters.Good || s.Value.String() != "2.5" {
		t.Fatalf("%v %v", s.Value, s.Quality)
	}
	for name, take := range map[string]func(){
		"no value":       func() { p.takeRegisters(factor, []byte{0xFF, 0xFF}, samples) },
		"no factor":      func() { p.takeRegisters(value, []byte{0, 25}, samples) },
		"neither":        func() {},
		"value refused":  func() { p.takeRefusal(value, "exception-4", samples); p.takeRegisters(factor, []byte{0, 0}, samples) },
		"factor refused": func() { p.takeRegisters(value, []byte{0, 25}, samples); p.takeRefusal(factor, "exception-4", samples) },
		"factor is none": func() {
			p.takeRegisters(value, []byte{0, 25}, samples)
			p.takeRegisters(factor, []byte{0, 11}, samples)
		},
	} {
		blank()
		take()
		p.finish(samples)
		if s := samples[0]; s.Quality != adapters.Bad {
			t.Errorf("%s: %v is %v", name, s.Value, s.Quality)
		}
	}
}
