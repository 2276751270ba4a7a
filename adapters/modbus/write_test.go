package modbus

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/simulate"
)

func limit(f float64) *float64 { return &f }

// What is encoded is read back as the same value, in every type and order.
func TestEncodeIsTheInverse(t *testing.T) {
	values := map[Type][]adapters.Value{
		Bool:    {adapters.Bool(true), adapters.Bool(false)},
		Int16:   {adapters.Int(-32768), adapters.Int(32767)},
		Uint16:  {adapters.Int(0), adapters.Int(65535)},
		Int32:   {adapters.Int(-1 << 31), adapters.Int(1<<31 - 1)},
		Uint32:  {adapters.Int(1<<32 - 1), adapters.Int(0x01020304)},
		Int64:   {adapters.Int64(-1 << 63), adapters.Int64(1<<53 + 1)},
		Uint64:  {adapters.Uint64(1<<64 - 1), adapters.Uint64(0x0102030405060708)},
		Float16: {adapters.Float32(65504), adapters.Float32(-0.5), adapters.Float32(1.0 / (1 << 24)), adapters.Float32(0)},
		Float32: {adapters.Float32(23.4), adapters.Float32(-1e30)},
		Float64: {adapters.Float64(23.4), adapters.Float64(-1e300)},
		BCD16:   {adapters.Int(9876)},
		BCD32:   {adapters.Int(98765432)},
		String:  {adapters.String("abcde"), adapters.String("")},
	}
	for typ, all := range values {
		for order := ABCD; order <= DCBA; order++ {
			for _, v := range all {
				p := Point{Type: typ, Order: order, Write: &Write{}}
				if typ == String {
					p.Bytes = 5
				}
				e, err := p.encode(v, 0)
				if err != nil {
					t.Errorf("%s %s %s: %v", typ, order, v, err)
					continue
				}
				c, err := p.converter()
				if err != nil {
					t.Fatal(err)
				}
				if got, q, reason := c.value(e.raw, 0); q != adapters.Good || got.Kind() != v.Kind() || got.String() != v.String() {
					t.Errorf("%s %s %s: % x is %s, %s", typ, order, v, e.raw, got, reason)
				}
			}
		}
	}
	for u := range uint16(31744) { // all numbers of 16 bits
		if f := float64(fromFloat16(u)); toFloat16(f) != u || toFloat16(-f) != u|1<<15 {
			t.Fatalf("%v is %#x, want %#x", f, toFloat16(f), u)
		}
	}
}

func TestEncodeUndoesArithmetic(t *testing.T) {
	for raw := range 1 << 16 {
		for _, p := range []Point{
			{Type: Int16, Scale: 0.1}, {Type: Int16, Scale: 0.01, Offset: -40}, {Type: Uint16, Range: &Range{Raw: [2]float64{4000, 20000}, To: [2]float64{0, 100}}},
			{Type: Int16, Scale: -3, Offset: 7}, {Type: Uint16, ScaleBy: "sf"},
		} {
			p.Write = &Write{}
			c, err := p.converter()
			if err != nil {
				t.Fatal(err)
			}
			const exp = -2
			v, _, _ := c.value([]byte{byte(raw >> 8), byte(raw)}, exp)
			if e, err := p.encode(v, exp); err != nil || int(e.raw[0])<<8|int(e.raw[1]) != raw {
				t.Fatalf("%+v: %d is %s, and back % x %v", p, raw, v, e.raw, err)
			}
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	flags := &adapters.FlagNames{"run"}
	for want, test := range map[string]struct {
		point Point
		value adapters.Value
	}{
		"may not be written":               {Point{Type: Int16}, adapters.Int(1)},
		"40 is above its limit 30":         {Point{Type: Int16, Scale: 0.1, Write: &Write{Max: limit(30)}}, adapters.Int(40)},
		"-1 is below its limit 0":          {Point{Type: Int16, Write: &Write{Min: limit(0)}}, adapters.Int(-1)},
		"2 is not among the values":        {Point{Type: Int16, Write: &Write{Values: []float64{1}}}, adapters.Int(2)},
		"0 is not among the values":        {Point{Table: Coil, Write: &Write{Values: []float64{1}}}, adapters.Bool(false)},
		"takes an integer, not 1.5":        {Point{Type: Int16, Write: &Write{}}, adapters.Float64(1.5)},
		"70000 is beyond what a uint16":    {Point{Type: Uint16, Write: &Write{}}, adapters.Int(70000)},
		"-1 is beyond what a uint64":       {Point{Type: Uint64, Write: &Write{}}, adapters.Int(-1)},
		"32768 is beyond what an int16":    {Point{Type: Int16, Write: &Write{}}, adapters.Int(32768)},
		"40000 is beyond":                  {Point{Type: Int16, Scale: 0.1, Write: &Write{}}, adapters.Int(4000)},
		"10000 is beyond what a bcd16":     {Point{Type: BCD16, Write: &Write{}}, adapters.Int(10000)},
		"1e+39 is beyond what a float32":   {Point{Type: Float32, Write: &Write{}}, adapters.Float64(1e39)},
		"takes a number, not on":           {Point{Type: Int16, Write: &Write{}}, adapters.String("on")},
		"takes a number, not true":         {Point{Type: Int16, Write: &Write{}}, adapters.Bool(true)},
		"takes true or false, not 2":       {Point{Table: Coil, Write: &Write{}}, adapters.Int(2)},
		"takes a text of at most 2 bytes":  {Point{Type: String, Bytes: 2, Write: &Write{}}, adapters.String("abc")},
		"takes a list of 2":                {Point{Type: Int16, Count: 2, Write: &Write{}}, adapters.Int(1)},
		"turbo is none of its values":      {Point{Type: Uint16, Enum: map[int64]string{1: "auto"}, Write: &Write{}}, adapters.String("turbo")},
		"9 is none of its values":          {Point{Type: Uint16, Enum: map[int64]string{1: "auto"}, Write: &Write{}}, adapters.Int(9)},
		"has no bit run":                   {Point{Type: Uint16, Bits: []Bit{{3, "fault"}}, Write: &Write{}}, adapters.Flags(flags, 1)},
		"takes bits by their names":        {Point{Type: Uint16, Bits: []Bit{{3, "fault"}}, Write: &Write{}}, adapters.Int(8)},
		"65535 stands for an invalid":      {Point{Type: Uint16, Invalid: []adapters.Value{adapters.Int(65535)}, Write: &Write{}}, adapters.Int(65535)},
		"table input, which cannot":        {Point{Table: Input, Type: Int16, Write: &Write{}}, adapters.Int(1)},
		"takes 124 registers, and a":       {Point{Type: Int16, Count: 124, Write: &Write{}}, adapters.List(make([]adapters.Value, 124))},
		"is above its limit 1e+308":        {Point{Type: Float64, Write: &Write{Max: limit(1e308)}}, adapters.Float64(math.MaxFloat64)},
		"18446744073709551615 is beyond w": {Point{Type: Int64, Write: &Write{}}, adapters.Uint64(1<<64 - 1)},
	} {
		if test.point.Count == 124 {
			for i := range test.value.List() {
				test.value.List()[i] = adapters.Int(1)
			}
		}
		if _, err := test.point.encode(test.value, 0); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// writable is a device with points that may be written.
func writable() Device {
	at := func(name string, p Point) Point {
		p.Point = &adapters.Point{Name: name}
		if p.Write == nil {
			p.Write = &Write{}
		}
		return p
	}
	return Device{Device: &adapters.Device{Name: "dev"}, UnitID: 1, Every: 20 * time.Millisecond, Points: []Point{
		at("setpoint", Point{Address: 100, Type: Int16, Scale: 0.1, Write: &Write{Min: limit(10), Max: limit(30)}}),
		at("flow", Point{Address: 110, Type: Float64, Order: CDAB}),
		at("mode", Point{Address: 120, Type: Uint16, Enum: map[int64]string{0: "off", 1: "auto"}}),
		at("state", Point{Address: 121, Type: Uint16, Bits: []Bit{{0, "run"}, {3, "reset"}}}),
		at("name", Point{Address: 130, Type: String, Bytes: 6}),
		at("curve", Point{Address: 140, Type: Int16, Count: 3}),
		at("pump", Point{Table: Coil, Address: 3}),
		at("valves", Point{Table: Coil, Address: 10, Count: 9}),
		at("start", Point{Table: Coil, Address: 4, Write: &Write{Values: []float64{1}, Pulse: 50 * time.Millisecond}}),
		at("power", Point{Address: 150, Type: Int16, ScaleBy: "sf"}),
		at("sf", Point{Address: 151, Type: Int16}),
	}}
}

func setUp(s *simulate.Server) *simulate.Unit {
	u := s.Unit(1)
	u.Set(simulate.Holding, 100, make([]uint16, 60)...)
	u.Set(simulate.Coil, 0, make([]uint16, 30)...)
	u.Set(simulate.Holding, 121, 0xFF00)
	u.Set(simulate.Holding, 151, 0xFFFE)
	return u
}

var sink = sinkFunc(func(adapters.Reading) {})

type sinkFunc func(adapters.Reading)

func (f sinkFunc) Emit(_ context.Context, r adapters.Reading) error {
	f(r)
	return nil
}
func (f sinkFunc) Status(context.Context, adapters.Status) error { return nil }

// runLink runs a link until stop is called.
func runLink(t *testing.T, l *Link) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, sink) }()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		done <- nil
	}
	t.Cleanup(stop)
	return stop
}

// write writes one point, as soon as the link is there.
func write(t *testing.T, w adapters.Writer, point string, v adapters.Value) ([]adapters.Sample, error) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		samples, err := w.Write(t.Context(), "dev", []adapters.Assignment{{Point: point, Value: v}})
		if !errors.Is(err, adapters.ErrNotRunning) && !errors.Is(err, adapters.ErrNotConnected) || time.Now().After(deadline) {
			return samples, err
		}
	}
}

func TestLinkWrites(t *testing.T) {
	for _, transport := range []string{"tcp", "rtu"} {
		t.Run(transport, func(t *testing.T) {
			s := simulate.New()
			u := setUp(s)
			c := reach(t, s, transport, time.Second)
			c.Devices = []Device{writable()}
			l, err := New(c)
			if err != nil {
				t.Fatal(err)
			}
			stop := runLink(t, l)
			var _ adapters.Writer = l
			run := adapters.FlagNames{"reset"}
			for _, test := range []struct {
				point string
				value adapters.Value
				want  string
				at    uint16
				words []uint16
			}{
				{"setpoint", adapters.Float64(24.5), "24.5", 100, []uint16{245}},
				{"flow", adapters.Float64(1.5), "1.5", 110, []uint16{0, 0, 0, 0x3FF8}},
				{"mode", adapters.String("auto"), "auto", 120, []uint16{1}},
				{"state", adapters.Flags(&run, 1), "{reset}", 121, []uint16{0xFF08}},
				{"name", adapters.String("pump"), "pump", 130, []uint16{0x7075, 0x6D70, 0}},
				{"curve", adapters.List([]adapters.Value{adapters.Int(-1), adapters.Int(2), adapters.Int(3)}), "[-1 2 3]", 140, []uint16{0xFFFF, 2, 3}},
				{"power", adapters.Float64(12.34), "12.34", 150, []uint16{1234}},
			} {
				for _, lacks := range []bool{false, true} { // it may lack functions 6 and 22
					u.Set(simulate.Holding, test.at, make([]uint16, len(test.words))...)
					if test.point == "state" {
						u.Set(simulate.Holding, 121, 0xFF00)
					}
					if lacks && (test.point == "setpoint" || test.point == "state") {
						u.SetFault(simulate.Fault{Exception: 1, Times: 1})
					}
					samples, err := write(t, l, test.point, test.value)
					if lacks && test.point == "setpoint" && exceptionOf(err) != 1 && err != nil {
						t.Error(err)
					}
					if err != nil && !lacks || err == nil && (len(samples) != 1 || samples[0].Value.String() != test.want || samples[0].Quality != adapters.Good) {
						t.Errorf("%s: %v %v", test.point, samples, err)
					}
					if err != nil {
						continue // a poll had the exception
					}
					for i, w := range test.words {
						if got, _ := u.Word(simulate.Holding, test.at+uint16(i)); got != w {
							t.Errorf("%s: register %d holds %#x, want %#x", test.point, int(test.at)+i, got, w)
						}
					}
				}
			}
			valves := []adapters.Value{}
			for i := range 9 {
				valves = append(valves, adapters.Bool(i%2 == 0))
			}
			if samples, err := write(t, l, "valves", adapters.List(valves)); err != nil || samples[0].Value.String() != fmt.Sprint(adapters.List(valves)) {
				t.Errorf("valves: %v %v", samples, err)
			}
			if samples, err := write(t, l, "pump", adapters.Int(1)); err != nil || !samples[0].Value.Bool() {
				t.Errorf("pump: %v %v", samples, err)
			}
			if _, err := write(t, l, "setpoint", adapters.Int(31)); err == nil || err.Error() != "setpoint: 31 is above its limit 30" {
				t.Errorf("%v", err)
			}
			if w, _ := u.Word(simulate.Holding, 100); w != 245 {
				t.Errorf("a value beyond its limit came through: %d", w)
			}
			samples, err := l.Read(t.Context(), "dev", []string{"pump", "setpoint"})
			if err != nil || len(samples) != 2 || samples[1].Value.String() != "24.5" {
				t.Errorf("%v %v", samples, err)
			}
			// A pulse ends by itself, and with the link.
			for _, early := range []bool{false, true} {
				samples, err := write(t, l, "start", adapters.Bool(true))
				if err != nil || !samples[0].Value.Bool() {
					t.Errorf("start: %v %v", samples, err)
				}
				if early {
					stop()
					if w, _ := u.Word(simulate.Coil, 4); w != 0 {
						t.Error("the link ended, and the pulse did not")
					}
					break
				}
				for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
					if w, _ := u.Word(simulate.Coil, 4); w == 0 {
						break
					}
					if time.Now().After(deadline) {
						t.Fatal("the pulse does not end")
					}
				}
			}
		})
	}
}

// A write that is refused or not answered says so, and what it did if that can be
// known.
func TestWriteFails(t *testing.T) {
	s := simulate.New()
	u := setUp(s)
	c := reach(t, s, "tcp", 200*time.Millisecond)
	c.Devices = []Device{writable()}
	client, err := Dial(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	values := []adapters.Assignment{{Point: "setpoint", Value: adapters.Int(20)}, {Point: "pump", Value: adapters.Bool(true)}}
	u.SetFault(simulate.Fault{Exception: 4, Times: 1})
	samples, err := client.Write(t.Context(), "dev", values)
	if Exception(errors.Unwrap(errors.Unwrap(err))) != 4 || len(samples) != 0 {
		t.Errorf("refused: %v %v", samples, err)
	}
	u.SetFault(simulate.Fault{Dead: true, Times: 1}) // it is done, and the answer lost
	samples, err = client.Write(t.Context(), "dev", values)
	if err == nil || len(samples) != 1 || samples[0].Value.String() != "20" || samples[0].Quality != adapters.Good {
		t.Errorf("no answer: %v %v", samples, err)
	}
	u.SetFault(simulate.Fault{Dead: true})
	samples, err = client.Write(t.Context(), "dev", values)
	if err == nil || len(samples) != 1 || samples[0].Quality != adapters.Uncertain {
		t.Errorf("dead: %v %v", samples, err)
	}
	if w, _ := u.Word(simulate.Coil, 3); w != 0 {
		t.Error("what came after the write that failed was written")
	}
}

// What is not possible is said before anything is sent.
func TestCheckBeforeWriting(t *testing.T) {
	s := simulate.New()
	u := setUp(s)
	c := reach(t, s, "tcp", time.Second)
	c.Devices = []Device{writable()}
	l, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	var checker adapters.Checker = l // it does not run, and needs not to
	set := func(point string, v adapters.Value) []adapters.Assignment {
		return []adapters.Assignment{{Point: "pump", Value: adapters.Bool(true)}, {Point: point, Value: v}}
	}
	for _, test := range []struct {
		device string
		values []adapters.Assignment
		want   string
	}{
		{"dev", set("setpoint", adapters.Int(20)), ""},
		{"dev", set("power", adapters.Int(20)), ""},
		{"dev", set("setpoint", adapters.Int(40)), "setpoint: 40 is above its limit 30"},
		{"dev", set("setpoint", adapters.String("x")), "setpoint: takes a number, not x"},
		{"dev", set("nothing", adapters.Int(1)), "the device dev has no point nothing"},
		{"dev", set("pump", adapters.Bool(false)), "pump: is to be written twice"},
		{"other", set("pump", adapters.Bool(false)), "there is no device other"},
		{"dev", nil, "there is nothing to write"},
	} {
		switch err := checker.CheckWrite(test.device, test.values); {
		case test.want == "" && err != nil, test.want != "" && (err == nil || !strings.HasPrefix(err.Error(), test.want)):
			t.Errorf("%v: %v, want %q", test.values, err, test.want)
		}
	}
	if err := checker.CheckRead("dev", []string{"pump", "power"}); err != nil {
		t.Error(err)
	}
	if err := checker.CheckRead("dev", []string{"pump", "nothing"}); err == nil {
		t.Error("a point that is not there may be read")
	}
	if n := u.Reads(); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
}

// A write that was begun is finished, whoever has lost patience.
func TestWriteIsFinished(t *testing.T) {
	s := simulate.New()
	u := setUp(s)
	c := reach(t, s, "tcp", time.Second)
	c.Devices = []Device{writable()}
	l, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	runLink(t, l)
	if _, err := write(t, l, "mode", adapters.Int(0)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	u.SetFault(simulate.Fault{Delay: 100 * time.Millisecond})
	done := make(chan error, 1)
	go func() {
		_, err := l.Write(ctx, "dev", []adapters.Assignment{{Point: "mode", Value: adapters.Int(1)}, {Point: "pump", Value: adapters.Bool(true)}})
		done <- err
	}()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if w, _ := u.Word(simulate.Holding, 120); w == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it was not begun")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if w, _ := u.Word(simulate.Coil, 3); w != 1 {
		t.Error("half of it was written")
	}
}

func TestIdentify(t *testing.T) {
	s := simulate.New()
	u := setUp(s)
	u.Identify(map[byte]string{0: strings.Repeat("v", 120), 1: strings.Repeat("p", 120), 2: "1.0\x1b[2J", 4: "Meter", 5: "M 3"})
	client, err := Dial(t.Context(), reach(t, s, "rtuovertcp", time.Second))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	id, err := client.Identify(t.Context(), 1)
	if err != nil || id.Vendor != strings.Repeat("v", 120) || id.Product != strings.Repeat("p", 120) || id.Revision != "1.0[2J" || id.Name != "Meter" || id.Model != "M 3" {
		t.Errorf("%+v %v", id, err)
	}
	u.Identify(nil)
	if _, err := client.Identify(t.Context(), 1); Exception(err) != 1 {
		t.Errorf("%v", err)
	}
}
