package modbus_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/modbus"
	"github.com/fieldferry/fieldferry/adapters/simulate"
)

// at returns a point of one register.
func at(t modbus.Table, address int) modbus.Point {
	return modbus.Point{Point: &adapters.Point{Name: fmt.Sprint(t, "-", address)}, Table: t, Address: uint16(address)}
}

func device(unit uint8, points ...modbus.Point) modbus.Device {
	return modbus.Device{
		Device: &adapters.Device{Name: fmt.Sprint("dev-", unit)}, UnitID: unit,
		Every: 10 * time.Millisecond, Points: points,
	}
}

func TestRequests(t *testing.T) {
	long := modbus.Point{Point: &adapters.Point{Name: "long"}, Type: modbus.Float32, Count: 62}
	next := long
	next.Address = 124
	tests := []struct {
		name   string
		config modbus.Config
		device modbus.Device
		want   uint64
	}{
		{"touching", modbus.Config{}, device(1, at(modbus.Holding, 1), at(modbus.Holding, 2), at(modbus.Holding, 0)), 1},
		{"apart", modbus.Config{}, device(1, at(modbus.Holding, 0), at(modbus.Holding, 2)), 2},
		{"a gap that pays", modbus.Config{MaxGap: 1}, device(1, at(modbus.Holding, 0), at(modbus.Holding, 2)), 1},
		{"tables", modbus.Config{MaxGap: 9}, device(1, at(modbus.Holding, 0), at(modbus.Input, 0), at(modbus.Coil, 0), at(modbus.Discrete, 0)), 4},
		{"125 registers", modbus.Config{}, device(1, long, at(modbus.Holding, 124)), 1},
		{"no value divided", modbus.Config{}, device(1, long, next), 2},
		{"fewer registers", modbus.Config{MaxRegisters: 2}, device(1, at(modbus.Holding, 1), at(modbus.Holding, 2), at(modbus.Holding, 0)), 2},
		{"fewer bits", modbus.Config{MaxBits: 1}, device(1, at(modbus.Coil, 1), at(modbus.Coil, 2), at(modbus.Coil, 0)), 3},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := simulate.New()
			u := s.Unit(1)
			for _, table := range []simulate.Table{simulate.Coil, simulate.Discrete, simulate.Holding, simulate.Input} {
				u.Set(table, 0, make([]uint16, 300)...)
			}
			for _, sample := range readOnce(t, s, test.device, test.config).Samples {
				if sample.Quality != adapters.Good {
					t.Errorf("%s: %s", sample.Point.Name, sample.Reason)
				}
			}
			if n := u.Reads(); n != test.want {
				t.Errorf("%d requests, want %d", n, test.want)
			}
		})
	}
}

// Registers that do not exist inside of a request are found and left out.
func TestHoles(t *testing.T) {
	s := simulate.New()
	u := s.Unit(1)
	var points []modbus.Point
	missing := map[string]bool{}
	for a := range 60 {
		if a%20 == 3 || a == 40 {
			missing[fmt.Sprint(modbus.Holding, "-", a)] = a != 23 // nobody wants 23
		} else {
			u.Set(simulate.Holding, uint16(a), uint16(a))
		}
		if a != 23 {
			points = append(points, at(modbus.Holding, a))
		}
	}
	c := modbus.Config{MaxGap: 10, Address: freeAddress(t), Devices: []modbus.Device{device(1, points...)}}
	defer serve(t, s, c.Address)()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	polls, before, asked := 0, uint64(0), uint64(0)
	newLink(t, c).Run(ctx, sink(func(r adapters.Reading) {
		for _, s := range r.Samples {
			if missing[s.Point.Name] {
				if s.Quality != adapters.Bad || s.Reason != "exception-2" {
					t.Errorf("%s: %v %s", s.Point.Name, s.Quality, s.Reason)
				}
			} else if f, _ := s.Value.Float64(); s.Quality != adapters.Good || s.Point.Name != fmt.Sprint(modbus.Holding, "-", f) {
				t.Errorf("%s: %v %v %s", s.Point.Name, s.Value, s.Quality, s.Reason)
			}
		}
		asked, before = u.Reads()-before, u.Reads()
		if polls++; polls == 3 {
			cancel()
		}
	}))
	if polls != 3 || asked != 8 {
		t.Errorf("%d requests in poll %d: what was learned is forgotten", asked, polls)
	}
}

// A device that refuses everything is not taken to pieces.
func TestRefusesEverything(t *testing.T) {
	s := simulate.New()
	u := s.Unit(1)
	u.Set(simulate.Holding, 0, make([]uint16, 49)...) // the last one does not exist
	u.SetFault(simulate.Fault{Exception: 2})
	var points []modbus.Point
	for a := range 50 {
		points = append(points, at(modbus.Holding, a))
	}
	c := modbus.Config{Address: freeAddress(t), Devices: []modbus.Device{device(1, points...)}}
	defer serve(t, s, c.Address)()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	polls, well, before, asked := 0, 0, uint64(0), uint64(0)
	newLink(t, c).Run(ctx, sink(func(r adapters.Reading) {
		asked, before = u.Reads()-before, u.Reads()
		polls++
		switch bad := r.Samples[7].Quality == adapters.Bad; {
		case polls == 3:
			if asked != 1 {
				t.Errorf("%d requests to one that refuses all", asked)
			}
			u.SetFault(simulate.Fault{})
		case !bad && well < 2:
			well++
		case !bad:
			if asked != 2 || r.Samples[49].Reason != "exception-2" {
				t.Errorf("%d requests to one that is well again", asked)
			}
			cancel()
		}
	}))
	if well != 2 {
		t.Errorf("it was not well again after %d polls", polls)
	}
}

func TestRatesHaveReadingsOfTheirOwn(t *testing.T) {
	s := simulate.New()
	s.Unit(1).Set(simulate.Holding, 0, 1, 2, 3)
	fast, slow, hidden := at(modbus.Holding, 0), at(modbus.Holding, 1), at(modbus.Holding, 2)
	slow.Every = 35 * time.Millisecond
	hidden.Hidden = true
	c := modbus.Config{Address: freeAddress(t), Devices: []modbus.Device{device(1, slow, fast, hidden)}}
	defer serve(t, s, c.Address)()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	n := map[string]int{}
	newLink(t, c).Run(ctx, sink(func(r adapters.Reading) {
		if len(r.Samples) != 1 {
			t.Errorf("%v", r.Samples)
		}
		if n[r.Samples[0].Point.Name]++; n["holding-1"] == 4 {
			cancel()
		}
	}))
	if n["holding-0"] < 7 || n["holding-2"] != 0 {
		t.Errorf("readings: %v", n)
	}
}

// A device's exception costs neither the connection nor the other requests; a
// gateway's 11 says that the device is away.
func TestExceptions(t *testing.T) {
	for _, test := range []struct {
		code   byte
		online bool
	}{{1, true}, {4, true}, {5, true}, {6, true}, {7, true}, {8, true}, {10, false}, {11, false}, {99, true}} {
		t.Run(fmt.Sprint(test.code), func(t *testing.T) {
			s := simulate.New()
			s.Unit(1).SetFault(simulate.Fault{Exception: test.code})
			s.Unit(2).Set(simulate.Holding, 0, 7)
			c := modbus.Config{Address: freeAddress(t), Devices: []modbus.Device{device(1, at(modbus.Holding, 0)), device(2, at(modbus.Holding, 0))}}
			defer serve(t, s, c.Address)()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			link := newLink(t, c)
			want, n := fmt.Sprint("exception-", test.code), map[string]int{}
			link.Run(ctx, sink(func(r adapters.Reading) {
				if s := r.Samples[0]; r.Device.Name == "dev-1" && s.Reason != want || r.Device.Name == "dev-2" && s.Quality != adapters.Good {
					t.Errorf("%s: %v %s", r.Device.Name, s.Quality, s.Reason)
				}
				if n[r.Device.Name]++; n["dev-1"] >= 3 && n["dev-2"] >= 8 {
					cancel()
				}
			}))
			if s := link.Stats(); s.Connects != 1 || (s.Offline == 0) != test.online {
				t.Errorf("%+v", s)
			}
		})
	}
}

// Whatever goes wrong on the wire, a value that is shown as good is the one of
// its register.
func TestFaultsNeverShowWrongValues(t *testing.T) {
	const wait, enough = 20 * time.Millisecond, 500
	s := simulate.New()
	var devices []modbus.Device
	unitOf := map[string]uint8{}
	for id := range uint8(2) {
		var points []modbus.Point
		for a := range 12 { // in four requests
			address := a + a/3*10
			s.Unit(id+1).Set(simulate.Holding, uint16(address), uint16(1000*int(id+1)+address))
			points = append(points, at(modbus.Holding, address))
		}
		d := device(id+1, points...)
		d.Every = 2 * time.Millisecond
		devices = append(devices, d)
		unitOf[d.Device.Name] = d.UnitID
	}
	faults := []simulate.Fault{
		{Late: true, Delay: wait + wait/4},
		{Late: true, Delay: wait - wait/4},
		{Delay: 2 * wait},
		{Dead: true},
		{WrongUnit: true},
		{WrongTransaction: true},
		{WrongFunction: true},
		{Duplicate: true},
		{Truncate: 3},
		{Truncate: 8},
		{Truncate: 10, Hangup: true},
		{Hangup: true},
		{Dead: true, Hangup: true},
		{Exception: 6},
	}
	c := modbus.Config{Address: freeAddress(t), Timeout: wait, Devices: devices}
	defer serve(t, s, c.Address)()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	random := rand.New(rand.NewPCG(1, 2))
	good, bad, reasons := 0, 0, map[string]int{}
	newLink(t, c).Run(ctx, sink(func(r adapters.Reading) {
		for _, s := range r.Samples {
			if s.Quality != adapters.Good {
				bad++
				reasons[s.Reason]++
				continue
			}
			good++
			var address int
			fmt.Sscanf(s.Point.Name, "holding-%d", &address)
			if f, _ := s.Value.Float64(); int(f) != 1000*int(unitOf[r.Device.Name])+address {
				t.Errorf("%s %s: %v shown as good", r.Device.Name, s.Point.Name, f)
			}
		}
		if bad > enough && good > enough {
			cancel()
			return
		}
		if r.Samples[len(r.Samples)-1].Quality == adapters.Good { // or it would go offline
			fault := faults[random.IntN(len(faults))]
			fault.Times = 1
			s.Unit(unitOf[r.Device.Name]).SetFault(fault)
		}
	}))
	if bad <= enough || good <= enough {
		t.Errorf("%d good values, %d bad ones", good, bad)
	}
	for _, reason := range []string{adapters.ReasonTimeout, adapters.ReasonConnection, adapters.ReasonProtocol, "exception-6"} {
		if reasons[reason] == 0 {
			t.Errorf("no %s among %v", reason, reasons)
		}
	}
}

// A peer that speaks anything but Modbus ends neither the link nor the program.
func TestGarbage(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := byte(0); ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			// The right transaction, a length, and what a device never sends.
			conn.Write([]byte{0, 1, 0, 0, 0, n, 1, 3 + n%3, n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12})
			conn.Close()
		}
	}()
	defer func() {
		l.Close()
		<-done
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	d := device(1, at(modbus.Holding, 0), at(modbus.Holding, 1))
	n := 0
	c := modbus.Config{Address: l.Addr().String(), Devices: []modbus.Device{d}, Timeout: timeout, Retries: 40}
	newLink(t, c).Run(ctx, sink(func(r adapters.Reading) {
		if s := r.Samples[0]; s.Quality == adapters.Good {
			// n == 7 is a proper answer of two registers, but for its contents.
			if f, _ := s.Value.Float64(); f != 0x0102 {
				t.Errorf("%v shown as good", s.Value)
			}
		}
		if n++; n == 3 {
			cancel()
		}
	}))
	if n != 3 {
		t.Errorf("%d readings", n)
	}
}

func TestNewRefuses(t *testing.T) {
	p := at(modbus.Holding, 0)
	with := func(change func(*modbus.Point)) modbus.Point {
		q := p
		change(&q)
		return q
	}
	tests := []struct {
		want  string
		point modbus.Point
	}{
		{"a coil is a bool, not a float32", with(func(p *modbus.Point) { p.Table, p.Type = modbus.Coil, modbus.Float32 })},
		{"bytes must be 1 to 250", with(func(p *modbus.Point) { p.Type = modbus.String })},
		{"no arrays of strings", with(func(p *modbus.Point) { p.Type, p.Bytes, p.Count = modbus.String, 2, 2 })},
		{"ends past address 65535", with(func(p *modbus.Point) { p.Address, p.Type = 65535, modbus.Int32 })},
		{"takes 126 of holding, and a request may ask for 125", with(func(p *modbus.Point) { p.Count = 126 })},
		{"takes 2001 of coil, and a request may ask for 2000", with(func(p *modbus.Point) { p.Table, p.Count = modbus.Coil, 2001 })},
		{"no arithmetic with a string", with(func(p *modbus.Point) { p.Type, p.Bytes, p.Scale = modbus.String, 2, 2 })},
		{"no arithmetic with a bool", with(func(p *modbus.Point) { p.Type, p.Offset = modbus.Bool, 2 })},
		{"bits and enum are for integers", with(func(p *modbus.Point) { p.Type, p.Enum = modbus.Float32, map[int64]string{} })},
		{"either bits, or an enum, or arithmetic", with(func(p *modbus.Point) { p.Scale, p.Bits = 2, []modbus.Bit{{}} })},
		{"no bit 16 in 16", with(func(p *modbus.Point) { p.Bits = []modbus.Bit{{Bit: 16}} })},
		{"no arrays of bits", with(func(p *modbus.Point) { p.Bits, p.Count = []modbus.Bit{{}}, 2 })},
		{"decimals must be 0 to 15", with(func(p *modbus.Point) { p.Type, p.Decimals = modbus.Float32, decimals(16) })},
		{"two different raw numbers", with(func(p *modbus.Point) { p.Range = &modbus.Range{} })},
		{"70000 is no uint16", with(func(p *modbus.Point) { p.Invalid = []adapters.Value{adapters.Int(70000)} })},
		{"0.5 is no int16", with(func(p *modbus.Point) { p.Type, p.Invalid = modbus.Int16, []adapters.Value{adapters.Float64(0.5)} })},
		{"-1 is no uint64", with(func(p *modbus.Point) { p.Type, p.Invalid = modbus.Uint64, []adapters.Value{adapters.Int(-1)} })},
		{"no point sf to scale by", with(func(p *modbus.Point) { p.ScaleBy = "sf" })},
		{"holding-0 is not a plain integer to scale by", with(func(p *modbus.Point) { p.Type, p.ScaleBy = modbus.Float32, "holding-0" })},
		{"every must not be negative", with(func(p *modbus.Point) { p.Every = -1 })},
	}
	for _, test := range tests {
		_, err := modbus.New(modbus.Config{Address: "127.0.0.1:1", Devices: []modbus.Device{device(1, test.point)}})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v, want %s", err, test.want)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "device dev-1: ") {
			t.Errorf("%v does not name the device", err)
		}
	}
	for _, c := range []modbus.Config{{Timeout: -1}, {Retries: -1}, {MaxGap: -1}, {MaxRegisters: 126}, {MaxBits: -1}} {
		c.Devices = []modbus.Device{device(1, p)}
		if _, err := modbus.New(c); err == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
}
