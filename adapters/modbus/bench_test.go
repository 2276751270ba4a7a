package modbus

import (
	"context"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/simulate"
)

// BenchmarkTake decodes an answer of 62 numbers of each kind, and counts the
// time of one.
func BenchmarkTake(b *testing.B) {
	one := 1
	for _, bench := range []struct {
		name  string
		point Point
	}{
		{"float32", Point{Type: Float32}},
		{"float32 CDAB", Point{Type: Float32, Order: CDAB}},
		{"int32 scaled", Point{Type: Int32, Scale: 0.1}},
		{"float32 rounded", Point{Type: Float32, Decimals: &one}},
		{"uint32 bits", Point{Type: Uint32, Bits: []Bit{{0, "a"}, {3, "b"}}}},
		{"uint32 enum", Point{Type: Uint32, Enum: map[int64]string{0: "off"}}},
		{"string of 4", Point{Type: String, Bytes: 4}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			const n = 62
			d := Device{Device: &adapters.Device{}}
			var points []*Point
			for i := range n {
				p := bench.point
				p.Point, p.Address = &adapters.Point{}, uint16(2*i)
				points = append(points, &p)
			}
			p, samples, err := newPlan(&d, points, maxRegisters, maxBits, 0)
			if err != nil || len(p.requests) != 1 {
				b.Fatal(err, len(p.requests))
			}
			raw := make([]byte, 4*n)
			b.ReportAllocs()
			for b.Loop() {
				p.takeRegisters(&p.requests[0], raw, samples)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/value")
		})
	}
}

// BenchmarkPoll polls 500 float32 in nine requests over a real connection; the
// server is in the same process.
func BenchmarkPoll(b *testing.B) {
	const n = 500
	s := simulate.New()
	s.Unit(1).Set(simulate.Input, 0, make([]uint16, 2*n)...)
	if err := s.Open("127.0.0.1:0"); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		<-done
	}()
	d := Device{Device: &adapters.Device{Name: "dev"}, UnitID: 1}
	for i := range n {
		d.Points = append(d.Points, Point{Point: &adapters.Point{}, Table: Input, Address: uint16(2 * i), Type: Float32})
	}
	l, err := New(Config{Address: s.Addr().String(), Devices: []Device{d}, Timeout: time.Second})
	if err != nil {
		b.Fatal(err)
	}
	if err := l.bus.Open(ctx); err != nil {
		b.Fatal(err)
	}
	defer l.bus.Close()
	for j := range l.bus.plans {
		b.ReportAllocs()
		for b.Loop() {
			if a := l.bus.Poll(ctx, j); a.Reason != "" {
				b.Fatal(a)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/value")
}
