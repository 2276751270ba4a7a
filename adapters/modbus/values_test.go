package modbus_test

import (
	"context"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/modbus"
	"github.com/fieldferry/fieldferry/adapters/simulate"
)

func decimals(n int) *int { return &n }

// values are registers and what has to be made of them.
var values = []struct {
	name  string
	words []uint16
	point modbus.Point
	want  string // quality, unless good; and the value
	kind  adapters.Kind
}{
	{"auto", []uint16{65535}, modbus.Point{}, "65535", adapters.KindInt},
	{"bool off", []uint16{0}, modbus.Point{Type: modbus.Bool}, "false", adapters.KindBool},
	{"bool on", []uint16{0x0100}, modbus.Point{Type: modbus.Bool}, "true", adapters.KindBool},
	{"int16", []uint16{0xFFFE}, modbus.Point{Type: modbus.Int16}, "-2", adapters.KindInt},
	{"int16, bytes swapped", []uint16{0xFEFF}, modbus.Point{Type: modbus.Int16, Order: modbus.BADC}, "-2", adapters.KindInt},
	{"int16, words swapped", []uint16{0xFFFE}, modbus.Point{Type: modbus.Int16, Order: modbus.CDAB}, "-2", adapters.KindInt},
	{"int32", []uint16{0xFFFF, 0xFFFE}, modbus.Point{Type: modbus.Int32}, "-2", adapters.KindInt},
	{"uint32 ABCD", []uint16{0x0102, 0x0304}, modbus.Point{Type: modbus.Uint32}, "16909060", adapters.KindInt},
	{"uint32 CDAB", []uint16{0x0304, 0x0102}, modbus.Point{Type: modbus.Uint32, Order: modbus.CDAB}, "16909060", adapters.KindInt},
	{"uint32 BADC", []uint16{0x0201, 0x0403}, modbus.Point{Type: modbus.Uint32, Order: modbus.BADC}, "16909060", adapters.KindInt},
	{"uint32 DCBA", []uint16{0x0403, 0x0201}, modbus.Point{Type: modbus.Uint32, Order: modbus.DCBA}, "16909060", adapters.KindInt},
	{"uint32 highest", []uint16{0xFFFF, 0xFFFF}, modbus.Point{Type: modbus.Uint32}, "4294967295", adapters.KindInt},
	{"uint64 ABCD", []uint16{0x0102, 0x0304, 0x0506, 0x0708}, modbus.Point{Type: modbus.Uint64}, "72623859790382856", adapters.KindUint64},
	{"uint64 CDAB", []uint16{0x0708, 0x0506, 0x0304, 0x0102}, modbus.Point{Type: modbus.Uint64, Order: modbus.CDAB}, "72623859790382856", adapters.KindUint64},
	{"uint64 BADC", []uint16{0x0201, 0x0403, 0x0605, 0x0807}, modbus.Point{Type: modbus.Uint64, Order: modbus.BADC}, "72623859790382856", adapters.KindUint64},
	{"uint64 DCBA", []uint16{0x0807, 0x0605, 0x0403, 0x0201}, modbus.Point{Type: modbus.Uint64, Order: modbus.DCBA}, "72623859790382856", adapters.KindUint64},
	{"uint64 highest", []uint16{0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF}, modbus.Point{Type: modbus.Uint64}, "18446744073709551615", adapters.KindUint64},
	{"int64", []uint16{0x8000, 0, 0, 1}, modbus.Point{Type: modbus.Int64}, "-9223372036854775807", adapters.KindInt64},
	{"float16", []uint16{0x3E00}, modbus.Point{Type: modbus.Float16}, "1.5", adapters.KindFloat32},
	{"float16 smallest", []uint16{0x8001}, modbus.Point{Type: modbus.Float16}, "-5.9604645e-08", adapters.KindFloat32},
	{"float16 highest", []uint16{0x7BFF}, modbus.Point{Type: modbus.Float16}, "65504", adapters.KindFloat32},
	{"float16 infinite", []uint16{0x7C00}, modbus.Point{Type: modbus.Float16}, "bad not-a-number", 0},
	{"float32", []uint16{0x41BB, 0x3333}, modbus.Point{Type: modbus.Float32}, "23.4", adapters.KindFloat32},
	{"float32 CDAB", []uint16{0x3333, 0x41BB}, modbus.Point{Type: modbus.Float32, Order: modbus.CDAB}, "23.4", adapters.KindFloat32},
	{"float32 NaN", []uint16{0x7FC0, 0}, modbus.Point{Type: modbus.Float32}, "bad not-a-number", 0},
	{"float32 infinite", []uint16{0xFF80, 0}, modbus.Point{Type: modbus.Float32}, "bad not-a-number", 0},
	{"float64", []uint16{0x4037, 0x6666, 0x6666, 0x6666}, modbus.Point{Type: modbus.Float64}, "23.4", adapters.KindFloat64},
	{"float64 CDAB", []uint16{0x6666, 0x6666, 0x6666, 0x4037}, modbus.Point{Type: modbus.Float64, Order: modbus.CDAB}, "23.4", adapters.KindFloat64},
	{"bcd16", []uint16{0x1234}, modbus.Point{Type: modbus.BCD16}, "1234", adapters.KindInt},
	{"bcd16 is none", []uint16{0x12A4}, modbus.Point{Type: modbus.BCD16}, "bad invalid", 0},
	{"bcd32", []uint16{0x9876, 0x5432}, modbus.Point{Type: modbus.BCD32}, "98765432", adapters.KindInt},
	{"bcd32 CDAB, scaled", []uint16{0x5432, 0x9876}, modbus.Point{Type: modbus.BCD32, Order: modbus.CDAB, Scale: 0.01}, "987654.32", adapters.KindFloat64},

	{"string", []uint16{0x4142, 0x4320, 0x2000, 0x5858}, modbus.Point{Type: modbus.String, Bytes: 8}, "ABC", adapters.KindString},
	{"string of odd length", []uint16{0x4142, 0x4344}, modbus.Point{Type: modbus.String, Bytes: 3}, "ABC", adapters.KindString},
	{"string, bytes swapped", []uint16{0x4241, 0x0043}, modbus.Point{Type: modbus.String, Bytes: 4, Order: modbus.BADC}, "ABC", adapters.KindString},
	{"string that is empty", []uint16{0}, modbus.Point{Type: modbus.String, Bytes: 2}, "", adapters.KindString},

	{"scale", []uint16{235}, modbus.Point{Type: modbus.Int16, Scale: 0.1}, "23.5", adapters.KindFloat64},
	{"scale, exact", []uint16{3}, modbus.Point{Type: modbus.Int16, Scale: 0.1}, "0.3", adapters.KindFloat64},
	{"scale below zero", []uint16{0xFFFD}, modbus.Point{Type: modbus.Int16, Scale: 0.1}, "-0.3", adapters.KindFloat64},
	{"scale and offset", []uint16{7}, modbus.Point{Scale: 0.1, Offset: -0.35}, "0.35", adapters.KindFloat64},
	{"offset", []uint16{7}, modbus.Point{Offset: -40}, "-33", adapters.KindFloat64},
	{"scale above one", []uint16{7}, modbus.Point{Scale: 1000}, "7000", adapters.KindFloat64},
	{"scale of a third", []uint16{2}, modbus.Point{Scale: 1.0 / 3}, "0.6666666666666666", adapters.KindFloat64},
	{"scale of a float32", []uint16{0x41BB, 0x3333}, modbus.Point{Type: modbus.Float32, Scale: 0.1}, "2.34", adapters.KindFloat32},
	{"float32 scaled to infinity", []uint16{0x7F7F, 0xFFFF}, modbus.Point{Type: modbus.Float32, Scale: math.MaxFloat64}, "bad not-a-number", 0},
	{"decimals, half up", []uint16{1005}, modbus.Point{Scale: 0.001, Decimals: decimals(2)}, "1.01", adapters.KindFloat64},
	{"decimals, half away", []uint16{0xFFF1}, modbus.Point{Type: modbus.Int16, Scale: 0.1, Decimals: decimals(0)}, "-2", adapters.KindFloat64},
	{"decimals of a float32", []uint16{0x41BB, 0x3333}, modbus.Point{Type: modbus.Float32, Decimals: decimals(1)}, "23.4", adapters.KindFloat64},
	{"decimals, none", []uint16{0x41BB, 0x3333}, modbus.Point{Type: modbus.Float32, Decimals: decimals(0)}, "23", adapters.KindFloat64},
	{"decimals of an integer", []uint16{5}, modbus.Point{Decimals: decimals(3)}, "5", adapters.KindInt},
	{"range", []uint16{12000}, modbus.Point{Range: &modbus.Range{Raw: [2]float64{4000, 20000}, To: [2]float64{0, 100}}}, "50", adapters.KindFloat64},
	{"range, below", []uint16{3200}, modbus.Point{Range: &modbus.Range{Raw: [2]float64{4000, 20000}, To: [2]float64{0, 100}}}, "-5", adapters.KindFloat64},
	{"range, rounded", []uint16{4001}, modbus.Point{Range: &modbus.Range{Raw: [2]float64{4000, 20000}, To: [2]float64{100, 0}}, Decimals: decimals(2)}, "99.99", adapters.KindFloat64},

	{"invalid", []uint16{65535}, modbus.Point{Invalid: []adapters.Value{adapters.Int(65535)}}, "bad invalid", 0},
	{"not invalid", []uint16{65534}, modbus.Point{Invalid: []adapters.Value{adapters.Int(65535)}}, "65534", adapters.KindInt},
	{"invalid, below zero", []uint16{0x8000}, modbus.Point{Type: modbus.Int16, Invalid: []adapters.Value{adapters.Int(-32768)}}, "bad invalid", 0},
	{"invalid, as a pattern", []uint16{0xFFFF}, modbus.Point{Type: modbus.Int16, Invalid: []adapters.Value{adapters.Int(65535)}}, "bad invalid", 0},
	{"invalid uint64", []uint16{0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF}, modbus.Point{Type: modbus.Uint64, Invalid: []adapters.Value{adapters.Uint64(math.MaxUint64)}}, "bad invalid", 0},
	{"invalid float32", []uint16{0x477F, 0xFF00}, modbus.Point{Type: modbus.Float32, Invalid: []adapters.Value{adapters.Int(65535), adapters.Float64(math.NaN())}}, "bad invalid", 0},
	{"invalid float16", []uint16{0x8000}, modbus.Point{Type: modbus.Float16, Invalid: []adapters.Value{adapters.Int(0)}}, "bad invalid", 0},
	{"invalid before scale", []uint16{100}, modbus.Point{Scale: 0.1, Invalid: []adapters.Value{adapters.Int(100)}}, "bad invalid", 0},
	{"invalid bcd", []uint16{0x9999}, modbus.Point{Type: modbus.BCD16, Invalid: []adapters.Value{adapters.Int(9999)}}, "bad invalid", 0},

	{"bits", []uint16{0b1001}, modbus.Point{Bits: []modbus.Bit{{0, "running"}, {1, "ready"}, {3, "fault"}}}, "{running fault}", adapters.KindFlags},
	{"bits, bytes swapped", []uint16{0x0080}, modbus.Point{Order: modbus.DCBA, Bits: []modbus.Bit{{15, "top"}}}, "{top}", adapters.KindFlags},
	{"bit 31", []uint16{0x8000, 0}, modbus.Point{Type: modbus.Uint32, Bits: []modbus.Bit{{31, "top"}, {0, "low"}}}, "{top}", adapters.KindFlags},
	{"enum", []uint16{2}, modbus.Point{Enum: map[int64]string{0: "off", 2: "manual"}}, "manual", adapters.KindString},
	{"enum, below zero", []uint16{0xFFFF}, modbus.Point{Type: modbus.Int16, Enum: map[int64]string{-1: "error"}}, "error", adapters.KindString},
	{"enum, unknown", []uint16{0xFFFD}, modbus.Point{Type: modbus.Int16, Enum: map[int64]string{0: "off"}}, "uncertain not-in-enum -3", adapters.KindInt},

	{"array", []uint16{1, 0xFFFF, 3}, modbus.Point{Type: modbus.Int16, Count: 3, Scale: 0.1}, "[0.1 -0.1 0.3]", adapters.KindList},
	{"array of one", []uint16{1}, modbus.Point{Count: 1}, "[1]", adapters.KindList},
	{"array of float32", []uint16{0x3F80, 0, 0x4000, 0}, modbus.Point{Type: modbus.Float32, Count: 2}, "[1 2]", adapters.KindList},
	{"array with a hole", []uint16{0x3F80, 0, 0x7FC0, 0}, modbus.Point{Type: modbus.Float32, Count: 2}, "bad not-a-number", 0},

	{"coil", []uint16{1}, modbus.Point{Table: modbus.Coil}, "true", adapters.KindBool},
	{"discrete", []uint16{0}, modbus.Point{Table: modbus.Discrete, Type: modbus.Bool}, "false", adapters.KindBool},
	{"coils", []uint16{1, 0, 0, 1, 1, 0, 0, 0, 0, 1}, modbus.Point{Table: modbus.Coil, Count: 10}, "[true false false true true false false false false true]", adapters.KindList},
	{"input", []uint16{9}, modbus.Point{Table: modbus.Input}, "9", adapters.KindInt},

	{"power of ten", []uint16{1234, 0xFFFE}, modbus.Point{Type: modbus.Int16, ScaleBy: "sf-after"}, "12.34", adapters.KindFloat64},
	{"power of ten, up", []uint16{1234, 2}, modbus.Point{Type: modbus.Int16, ScaleBy: "sf-after"}, "123400", adapters.KindFloat64},
	{"power of ten and decimals", []uint16{1235, 0xFFFE}, modbus.Point{Type: modbus.Int16, ScaleBy: "sf-after", Decimals: decimals(1)}, "12.4", adapters.KindFloat64},
	{"power of ten not there", []uint16{1234, 0x8000}, modbus.Point{Type: modbus.Int16, ScaleBy: "sf-after"}, "bad invalid", 0},
	{"power of ten of an array", []uint16{10, 20, 0xFFFF}, modbus.Point{Count: 2, ScaleBy: "sf-after"}, "[1 2]", adapters.KindList},
}

// TestValues reads every one of them over a real connection.
func TestValues(t *testing.T) {
	s := simulate.New()
	unit := s.Unit(1)
	d := modbus.Device{Device: &adapters.Device{Name: "dev"}, UnitID: 1, Every: 10 * time.Millisecond}
	address := uint16(0)
	for i, v := range values {
		p := v.point
		p.Point = &adapters.Point{Name: v.name}
		p.Address = address
		address += uint16(len(v.words))
		unit.Set(simulateTable(p.Table), p.Address, v.words...)
		if p.ScaleBy != "" { // the last word
			p.ScaleBy = fmt.Sprint("sf-", i)
			d.Points = append(d.Points, modbus.Point{
				Point: &adapters.Point{Name: p.ScaleBy}, Table: p.Table, Address: address - 1, Type: modbus.Int16, Hidden: true,
			})
		}
		d.Points = append(d.Points, p)
	}
	r := readOnce(t, s, d, modbus.Config{})
	if len(r.Samples) != len(values) {
		t.Fatalf("%d samples of %d points", len(r.Samples), len(values))
	}
	for i, v := range values {
		s := r.Samples[i]
		got := ""
		if s.Quality != adapters.Good {
			got = fmt.Sprint(s.Quality, " ", s.Reason)
		}
		if s.Quality == adapters.Uncertain {
			got += " "
		}
		if s.Quality != adapters.Bad {
			got += s.Value.String()
		}
		if s.Point.Name != v.name || got != v.want || s.Value.Kind() != v.kind {
			t.Errorf("%s: %s, kind %d; want %s, kind %d", v.name, got, s.Value.Kind(), v.want, v.kind)
		}
	}
}

func simulateTable(t modbus.Table) simulate.Table {
	return [...]simulate.Table{
		modbus.Holding: simulate.Holding, modbus.Input: simulate.Input,
		modbus.Coil: simulate.Coil, modbus.Discrete: simulate.Discrete,
	}[t]
}

// readOnce serves s and returns the first reading of d.
func readOnce(t *testing.T, s *simulate.Server, d modbus.Device, c modbus.Config) adapters.Reading {
	t.Helper()
	c.Address = freeAddress(t)
	c.Devices = []modbus.Device{d}
	defer serve(t, s, c.Address)()
	var first adapters.Reading
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err := newLink(t, c).Run(ctx, sink(func(r adapters.Reading) {
		first = r
		cancel()
	}))
	if err != nil || first.Samples == nil {
		t.Fatalf("no reading: %v", err)
	}
	return first
}

// sink calls a function with each reading.
type sink func(adapters.Reading)

func (f sink) Emit(_ context.Context, r adapters.Reading) error {
	f(r)
	return nil
}

func (f sink) Status(context.Context, adapters.Status) error { return nil }
