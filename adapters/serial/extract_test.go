package serial

import (
	"bytes"
	"fmt"
	"math"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/fieldferry/fieldferry/adapters"
)

func ptr[T any](v T) *T { return &v }

// read reads one message of a device.
func read(t *testing.T, d Device, frame string) (string, bool) {
	t.Helper()
	d.Device = &adapters.Device{Name: "d"}
	if d.Frame.End == nil && d.Frame.Length == 0 {
		d.Frame.End = []byte("\r\n")
	}
	for i := range d.Points {
		if d.Points[i].Point == nil {
			d.Points[i].Point = &adapters.Point{Name: fmt.Sprint(i), Unit: "g"}
		}
	}
	dev, err := newDevice(&d)
	if err != nil {
		t.Fatal(err)
	}
	if !dev.fits([]byte(frame)) {
		return "", false
	}
	p := dev.plans[0]
	p.take(p.readers, p.samples)
	var out []string
	for _, s := range p.samples {
		text := s.Value.String()
		if s.Quality != adapters.Good {
			text += " " + s.Quality.String() + " " + s.Reason
		}
		out = append(out, text)
	}
	return strings.Join(out, "; "), true
}

func TestExtract(t *testing.T) {
	match := func(re string, points ...Point) Device {
		return Device{Match: regexp.MustCompile(re), Points: points}
	}
	weight := match(`^S (?P<s>[SDI+])(?: (?P<w>[- 0-9.]{10}) (?P<u>\w+))?$`,
		Point{Field: "w", Type: Float64, UnitFrom: "u", Units: map[string]float64{"g": 1, "kg": 1000}}, Point{Field: "s", When: "S"}, Point{Field: "u"})
	columns := Device{Split: ",", Points: []Point{{Column: 2, Type: Float64, Scale: 0.1}, {Column: 3, Type: Int64, Enum: map[int64]string{1: "on"}}, {Column: 4, Type: Bool}, {Column: 5, Type: Hex}}}
	fixed := Device{Points: []Point{{Chars: [2]int{1, 4}}, {Chars: [2]int{5, 9}, Type: Float64, Decimals: ptr(1)}}}
	gps := match(`^(?P<p>[^;]*)$`, Point{Field: "p", Type: Degrees, Decimals: ptr(6)})
	binary := Device{Frame: Frame{Length: 20}, Holds: []Hold{{0, []byte("\x68")}, {-1, []byte("\x16")}}, Points: []Point{
		{At: ptr(1), Type: BCD32, Order: DCBA, Scale: 0.001}, {At: ptr(5), Type: Int16}, {At: ptr(7), Type: Int24, Order: DCBA},
		{At: ptr(10), Type: Float32}, {At: ptr(14), Type: Uint8, Bits: []Bit{{0, "a"}, {7, "b"}}}, {At: ptr(-5), Type: String, Bytes: 4},
	}}
	for _, c := range []struct {
		name  string
		d     Device
		frame string
		want  string // empty: it does not fit
	}{
		{"a weight", weight, "S S     100.00 g\r\n", "100; true; g"},
		{"in another unit", weight, "S D -   1.2345 kg\r\n", "-1234.5; false; kg"},
		{"in an unknown unit", weight, "S S     100.00 lb\r\n", "none bad other-unit; true; lb"},
		{"none at the moment", weight, "S +\r\n", "none bad invalid; false; none bad invalid"},
		{"a digit lost", weight, "S S    100.00 g\r\n", ""},
		{"a digit spoilt", weight, "S S     1 0.00 g\r\n", "none bad not-a-number; true; g"},
		{"columns", columns, "A,235,1,on,1F\r\n", "23.5; on; true; 31"},
		{"columns, not all good", columns, "A,,7,maybe,G\r\n", "none bad invalid; 7 uncertain not-in-enum; none bad invalid; none bad not-a-number"},
		{"too few columns", columns, "A,235,1\r\n", ""},
		{"no words for numbers", columns, "A,Inf,1,0,0\r\n", "none bad not-a-number; on; false; 0"},
		{"characters", fixed, "ab  12.34\r\n", "ab; 12.3"},
		{"too few characters", fixed, "ab  12.3\r\n", ""},
		{"no text", fixed, "\xFF\xFEab12.34\r\n", "none bad not-text; 12.3"},
		{"a place", gps, "4807.038,N\r\n", "48.1173"},
		{"a place in the west", gps, "01131.500,W\r\n", "-11.525"},
		{"no place", gps, ",\r\n", "none bad invalid"},
		{"no such minute", gps, "4860.000,N\r\n", "none bad not-a-number"},
		{"beyond the pole", gps, "9100.000,S\r\n", "none bad not-a-number"},
		{"bytes", binary, "\x68\x78\x56\x34\x12\xFF\xFE\xFE\xFF\xFF\x42\xF6\xE9\x79\x81ab\x00c\x16", "12345.678; -2; -2; 123.456; {a b}; ab"},
		{"bytes that are no digits", binary, "\x68\x7A\x56\x34\x12\xFF\xFE\xFE\xFF\xFF\x7F\x80\x00\x00\x00abcd\x16", "none bad invalid; -2; -2; none bad not-a-number; {}; abcd"},
		{"bytes that it has not", binary, "\x69\x78\x56\x34\x12\xFF\xFE\xFE\xFF\xFF\x42\xF6\xE9\x79\x81ab\x00c\x16", ""},
		{"fewer bytes", binary, "\x68\x78\x56\x16", ""},
		{"several lines", match(`(?ms)^1\.8\.0\((?P<a>[\d.]+)\*kWh\)\r$`, Point{Field: "a", Type: Float64}), "21.8.0(7*kWh)\r\n1.8.0(001234.5*kWh)\r\n\r\n", "1234.5"},
		{"a number that says none", match(`^(?P<a>\d+)$`, Point{Field: "a", Type: Int64, Invalid: []float64{999}}), "999\r\n", "none bad invalid"},
		{"a range", match(`^(?P<a>\d+)$`, Point{Field: "a", Type: Int64, Range: &Range{Raw: [2]float64{4000, 20000}, To: [2]float64{0, 100}}}), "12000\r\n", "50"},
		{"the unit of the point", match(`^(?P<a>\d+)(?P<u>\w)$`, Point{Field: "a", Type: Int64, UnitFrom: "u"}), "12g\r\n", "12"},
		{"not the unit of the point", match(`^(?P<a>\d+)(?P<u>\w)$`, Point{Field: "a", Type: Int64, UnitFrom: "u"}), "12k\r\n", "none bad other-unit"},
	} {
		got, ok := read(t, c.d, c.frame)
		if got != c.want || ok != (c.want != "") {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestWrongDevices(t *testing.T) {
	frame := Frame{End: []byte("\n")}
	for _, d := range []Device{
		{},
		{Frame: Frame{End: []byte("\n"), Escape: []byte("ab")}},
		{Frame: Frame{Length: 10, Max: 5}},
		{Frame: Frame{LengthAt: &LengthAt{Size: 3}}},
		{Frame: frame, Points: []Point{{}}},
		{Frame: frame, Points: []Point{{Field: "a"}}},
		{Frame: frame, Points: []Point{{Column: 1}}},
		{Frame: frame, Points: []Point{{Chars: [2]int{3, 1}}}},
		{Frame: frame, Points: []Point{{Chars: [2]int{1, 3}, Type: BCD8}}},
		{Frame: frame, Points: []Point{{At: ptr(1), Type: Degrees}}},
		{Frame: frame, Points: []Point{{At: ptr(1), Type: String}}},
		{Frame: frame, Points: []Point{{At: ptr(1), Type: Int24, Order: CDAB}}},
		{Frame: frame, Points: []Point{{At: ptr(1), Type: Float32, Bits: []Bit{{0, "a"}}}}},
		{Frame: frame, Points: []Point{{Chars: [2]int{1, 3}, Column: 1}}},
	} {
		d.Device = &adapters.Device{Name: "d"}
		for i := range d.Points {
			d.Points[i].Point = &adapters.Point{Name: "p"}
		}
		if _, err := newDevice(&d); err == nil {
			t.Errorf("%+v is accepted", d)
		}
	}
}

// What is composed is read back as what it was made of.
func TestCompose(t *testing.T) {
	f := Frame{Start: []byte("\x02"), End: []byte("\x03"), Escape: []byte("\x10")}
	f.Check = NewCheck(CRC16, false, &f)
	for typ := Int8; typ <= BCD64; typ++ {
		for _, order := range []Order{ABCD, CDAB, BADC, DCBA} {
			d := Device{Device: &adapters.Device{Name: "d"}, Frame: f, Points: []Point{{Point: &adapters.Point{Name: "p"}, At: ptr(1), Type: typ, Order: order}}}
			dev, err := newDevice(&d)
			if err != nil {
				continue // an order that the type has not
			}
			for _, raw := range []float64{0, 2, 3, 16, 99} {
				whole, err := d.Compose("\x02\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00", func(string) float64 { return raw })
				if err != nil {
					t.Fatal(err)
				}
				dev.framer.reset(false)
				dev.framer.add(whole)
				frame, o := dev.framer.next(false)
				if o != found || !dev.fits(frame) {
					t.Fatalf("%s %d: % x: %v % x", typ, order, whole, o, frame)
				}
				p := dev.plans[0]
				p.take(p.readers, p.samples)
				if got, _ := p.samples[0].Value.Float64(); got != raw {
					t.Errorf("%s %d: % x: %v, want %v", typ, order, whole, p.samples[0], raw)
				}
			}
		}
	}
}

// Whatever a device says, a value is good and then a number that is one and text that
// is UTF-8, or it is none and there is a reason.
func FuzzExtract(f *testing.F) {
	f.Add([]byte("S S     100.00 g"), byte(0))
	f.Add([]byte("a,1.5,-7,on,4807.038,N,FF"), byte(3))
	f.Add([]byte("\x68\x78\x56\x34\x12\xFF\xFE\xFE\xFF\xFF\x42\xF6\xE9\x79\x81"), byte(1))
	scaled := func(p Point) Point {
		p.Scale, p.Decimals, p.Range = 0.1, ptr(2), &Range{Raw: [2]float64{0, 10}, To: [2]float64{5, -5}}
		return p
	}
	var devices []*device
	for _, d := range []Device{
		{Match: regexp.MustCompile(`^(?P<a>.*?)[ ,](?P<b>.*?)(?:[ ,](?P<c>.*))?$`), Points: []Point{
			{Field: "a"}, {Field: "b", Type: Float64}, scaled(Point{Field: "b", Type: Float64}), {Field: "c", Type: Degrees}, {Field: "c", Type: Int64, Enum: map[int64]string{7: "x"}},
			{Field: "a", When: "S"}, {Field: "b", Type: Hex, Bits: []Bit{{3, "x"}}}, {Field: "b", Type: Float64, UnitFrom: "c", Units: map[string]float64{"g": 2}}}},
		{Split: ",", Points: []Point{{Column: 1}, {Column: 2, Type: Float64}, {Column: 3, Type: Bool}, {Column: 2, Type: Float64, UnitFrom: "1"}}},
		{Points: []Point{{Chars: [2]int{1, 3}, Type: Int64}, {Chars: [2]int{4, 9}, Type: Float64}}},
	} {
		devices = append(devices, fuzzDevice(f, d))
	}
	d := Device{Holds: []Hold{{-1, []byte("\n")}}}
	for typ := range types {
		d.Points = append(d.Points, Point{At: ptr(typ % 5), Type: Type(typ), Bytes: 5, Order: Order(typ) % 2 * DCBA}, scaled(Point{At: ptr(-3), Type: Type(typ), Bytes: 2}))
	}
	kept := d.Points[:0]
	for _, p := range d.Points {
		if p.size() > 0 {
			kept = append(kept, p)
		}
	}
	d.Points = kept
	devices = append(devices, fuzzDevice(f, d))
	f.Fuzz(func(t *testing.T, message []byte, n byte) {
		dev := devices[int(n)%len(devices)]
		frame := append(bytes.Clone(message), '\n')
		if !dev.fits(frame) {
			return
		}
		p := dev.plans[0]
		p.take(p.readers, p.samples)
		for _, s := range p.samples {
			none := s.Value.Kind() == adapters.KindNone
			if none != (s.Quality == adapters.Bad) || (s.Reason == "") != (s.Quality == adapters.Good) {
				t.Fatalf("%q: %+v", message, s)
			}
			if x, ok := s.Value.Float64(); ok && (math.IsNaN(x) || math.IsInf(x, 0)) || !utf8.ValidString(s.Value.Text()) {
				t.Fatalf("%q: %+v", message, s)
			}
		}
	})
}

func fuzzDevice(f *testing.F, d Device) *device {
	d.Device, d.Frame = &adapters.Device{Name: "d"}, Frame{End: []byte("\n")}
	for i := range d.Points {
		d.Points[i].Point = &adapters.Point{Name: fmt.Sprint(i), Unit: "g"}
	}
	dev, err := newDevice(&d)
	if err != nil {
		f.Fatal(err)
	}
	return dev
}
