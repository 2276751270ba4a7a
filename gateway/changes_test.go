package gateway

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/simulate"
	"github.com/fieldferry/fieldferry/gateway/config"
	"github.com/fieldferry/fieldferry/localbroker"
)

func TestChanges(t *testing.T) {
	good := func(v adapters.Value) adapters.Sample { return adapters.Sample{Value: v} }
	bad := func(reason string) adapters.Sample {
		return adapters.Sample{Quality: adapters.Bad, Reason: reason}
	}
	num := func(f float64) adapters.Sample { return good(adapters.Float64(f)) }
	flags := &adapters.FlagNames{"a", "b"}
	list := func(l ...adapters.Value) adapters.Sample { return good(adapters.List(l)) }
	for _, test := range []struct {
		name    string
		point   config.Point
		samples []adapters.Sample // one a second
		want    []int             // which of them are sent
	}{
		{"no deadband", config.Point{}, []adapters.Sample{num(1), num(1), num(1.1), num(1.1), num(1)}, []int{0, 2, 4}},
		{"absolute, from what was sent", config.Point{Deadband: 5}, []adapters.Sample{num(100), num(104), num(105), num(106), num(101), num(100)}, []int{0, 3, 5}},
		{"percent of what was sent", config.Point{Deadband: 0.1, Relative: true}, []adapters.Sample{num(-100), num(-110), num(-111), num(-100), num(-99)}, []int{0, 2, 4}},
		{"percent of nothing", config.Point{Deadband: 0.1, Relative: true}, []adapters.Sample{num(0), num(0), num(0.001)}, []int{0, 2}},
		{"heartbeat", config.Point{Deadband: 5, Heartbeat: 3 * time.Second}, []adapters.Sample{num(1), num(2), num(3), num(4), num(5), num(10), num(5)}, []int{0, 3, 5}},
		{"quality", config.Point{Deadband: 5}, []adapters.Sample{num(1), bad("timeout"), bad("timeout"), bad("exception-2"), num(1), num(1)}, []int{0, 1, 3, 4}},
		{"words", config.Point{}, []adapters.Sample{good(adapters.String("a")), good(adapters.String("a")), good(adapters.String("b"))}, []int{0, 2}},
		{"booleans", config.Point{}, []adapters.Sample{good(adapters.Bool(true)), good(adapters.Bool(true)), good(adapters.Bool(false))}, []int{0, 2}},
		{"flags", config.Point{}, []adapters.Sample{good(adapters.Flags(flags, 1)), good(adapters.Flags(flags, 1)), good(adapters.Flags(flags, 3))}, []int{0, 2}},
		{"lists", config.Point{Deadband: 1}, []adapters.Sample{list(adapters.Int(1), adapters.Int(5)), list(adapters.Int(2), adapters.Int(4)), list(adapters.Int(2), adapters.Int(7))}, []int{0, 2}},
		{"64 bits", config.Point{}, []adapters.Sample{good(adapters.Int64(1<<53 + 1)), good(adapters.Int64(1 << 53))}, []int{0, 1}},
	} {
		p := &adapters.Point{Name: "x"}
		c := newChanges(&config.Device{Points: []config.Point{test.point}}, []*adapters.Point{p})
		var got []int
		for i, s := range test.samples {
			s.Point = p
			r := adapters.Reading{Time: time.Unix(int64(i), 0), Samples: []adapters.Sample{s}}
			if kept := c.since(r); len(kept) > 0 {
				got = append(got, i)
				c.took(kept, r.Time)
			}
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: sent %v, want %v", test.name, got, test.want)
		}
	}
}

// What could not be stored is sent again, changed or not, and the elements of a
// list are not those that the link writes over.
func TestChangesForgetWhatWasLost(t *testing.T) {
	p := &adapters.Point{Name: "x"}
	c := newChanges(&config.Device{Points: []config.Point{{}}}, []*adapters.Point{p})
	elements := []adapters.Value{adapters.Int(1)}
	r := adapters.Reading{Time: time.Unix(1, 0), Samples: []adapters.Sample{{Point: p, Value: adapters.List(elements)}}}
	c.took(c.since(r), r.Time)
	if n := len(c.since(r)); n != 0 {
		t.Errorf("%d samples, none of which changed", n)
	}
	c.stored(errors.New("full"))
	if n := len(c.since(r)); n != 1 {
		t.Errorf("%d samples after one was lost", n)
	}
	c.took(r.Samples, r.Time)
	elements[0] = adapters.Int(2)
	if n := len(c.since(r)); n != 1 {
		t.Error("the change of a list was not seen")
	}
}

func TestSendsOnlyWhatChanged(t *testing.T) {
	field, address := devices(t)
	field.Unit(1).Set(simulate.Holding, 0, 100, 7)
	c := site(t, `
gateway: {data_dir: %q}
broker: {listeners: [{name: plain, listen: "127.0.0.1:0"}]}
payload: {send: changed}
adapters:
  line:
    modbus: "tcp://%s"
    devices:
      em-1:
        every: 10ms
        points: {power: {holding: 0, as: uint16, deadband: 5}, level: {holding: 1, as: uint16, deadband: "10%%"}}
`, t.TempDir(), address)
	if problems := Unsupported(c); len(problems) > 0 {
		t.Fatal(problems)
	}
	g, _ := start(t, c)
	messages := subscribe(t, g, "devices/em-1/telemetry")
	want := func(text string) {
		t.Helper()
		m := receive(t, messages, func(m *localbroker.Message) bool { return true })
		var values map[string]float64
		if err := json.Unmarshal(m.Payload, &values); err != nil {
			t.Fatal(err)
		}
		delete(values, "timestamp")
		if got, _ := json.Marshal(values); string(got) != text {
			t.Fatalf("got %s, want %s", got, text)
		}
	}
	want(`{"level":7,"power":100}`)
	readings := g.Readings()
	field.Unit(1).Set(simulate.Holding, 0, 103)
	for g.Readings() < readings+5 {
		time.Sleep(time.Millisecond)
	}
	field.Unit(1).Set(simulate.Holding, 0, 106)
	want(`{"power":106}`)
	field.Unit(1).Set(simulate.Holding, 1, 8)
	want(`{"level":8}`)
}

func TestIdleDeadbandIsTold(t *testing.T) {
	text := `
adapters: {line: {modbus: "tcp://127.0.0.1:1", devices: {"em-{1..3}": {unit_id: "{1..3}", points: {power: {holding: 0, as: uint16, deadband: 5}}}}}}
payload: {send: %s}
`
	for send, want := range map[string]int{"all": 1, "changed": 0} {
		n := 0
		for _, p := range Check(site(t, text, send)) {
			if p.Warning && strings.Contains(p.Text, "points.power: deadband") {
				n++
			}
		}
		if n != want {
			t.Errorf("send: %s: %d warnings, want %d", send, n, want)
		}
	}
}
