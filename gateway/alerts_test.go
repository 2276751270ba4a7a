package gateway

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/simulate"
	"github.com/fieldferry/fieldferry/gateway/config"
	"github.com/fieldferry/fieldferry/localbroker"
)

func TestAlertChanges(t *testing.T) {
	f := func(f float64) *float64 { return &f }
	for _, test := range []struct {
		name   string
		alert  config.Alert
		values []float64 // one a second
		want   []int     // at which it changes
	}{
		{"above", config.Alert{Above: f(10), Clear: 10}, []float64{10, 11, 12, 10, 11, 5}, []int{1, 3, 4, 5}},
		{"above, with a distance", config.Alert{Above: f(10), Clear: 8}, []float64{11, 9, 11, 8, 10, 11}, []int{0, 3, 5}},
		{"below", config.Alert{Below: f(2), Clear: 3}, []float64{2, 1, 2, 2.9, 3, 1}, []int{1, 4, 5}},
		{"for a while", config.Alert{Above: f(10), Clear: 10, For: 2 * time.Second}, []float64{11, 11, 9, 11, 11, 11, 11, 9}, []int{5, 7}},
	} {
		a := &deviceAlert{Alert: &test.alert}
		var got []int
		for i, v := range test.values {
			if a.changes(adapters.Float64(v), time.Unix(int64(i), 0)) {
				a.raised, a.beyond = !a.raised, time.Time{}
				got = append(got, i)
			}
		}
		if len(got) != len(test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
			continue
		}
		for i := range got {
			if got[i] != test.want[i] {
				t.Errorf("%s: %v, want %v", test.name, got, test.want)
				break
			}
		}
	}
	list := adapters.List([]adapters.Value{adapters.Int(3), adapters.Int(9), adapters.Int(1)})
	if high, _ := extreme(list, true); high != 9 {
		t.Errorf("the highest is %v", high)
	}
	if low, _ := extreme(list, false); low != 1 {
		t.Errorf("the lowest is %v", low)
	}
}

// An alert is told once when it begins and once when it ends, whatever restarts
// lie between.
func TestAlertsOverRestarts(t *testing.T) {
	field, address := devices(t)
	unit := field.Unit(1)
	unit.Set(simulate.Holding, 0, 100)
	up, url := upstreamAt(t)
	dir := t.TempDir()
	open := func() *config.Config {
		return site(t, `
gateway: {id: gw-1, org: acme, site: works, zone: hall-1, data_dir: %q}
broker: {listeners: [{name: plain, listen: "127.0.0.1:0"}]}
bridges: {cloud: {upstream: [%q]}}
adapters:
  line:
    modbus: "tcp://%s"
    devices:
      em-1:
        type: meter
        every: 10ms
        points: {power: {holding: 0, as: uint16}}
        alerts: {overload: {point: power, above: 9000, clear: 8500, severity: critical, message: "overload, {value} W"}}
`, dir, url, address)
	}
	type alert struct {
		Type, Message, Severity, State string
		Value                          float64
	}
	// run runs the gateway until it has read the value often, and returns what it told.
	run := func(watts uint16) (told []alert) {
		t.Helper()
		unit.Set(simulate.Holding, 0, watts)
		g, stop := start(t, open())
		messages := subscribe(t, g, "devices/em-1/+")
		readings := 0
		receive(t, messages, func(m *localbroker.Message) bool {
			if m.Topic == "devices/em-1/alerts" {
				var a alert
				if err := json.Unmarshal(m.Payload, &a); err != nil || m.Retain {
					t.Errorf("%s: %v", m.Payload, err)
				}
				told = append(told, a)
			}
			if m.Topic == "devices/em-1/telemetry" {
				readings++
			}
			return readings >= 10
		})
		stop()
		return told
	}
	raised := alert{"overload", "overload, 9100 W", "critical", "raised", 9100}
	cleared := alert{"overload", "overload, 8400 W", "critical", "cleared", 8400}
	for i, step := range []struct {
		watts uint16
		want  []alert
	}{{100, nil}, {9100, []alert{raised}}, {9100, nil}, {8600, nil}, {8400, []alert{cleared}}, {8400, nil}, {9100, []alert{raised}}} {
		got := run(step.watts)
		// The first reading may have been told before we subscribed.
		if len(got) != len(step.want) && !(len(step.want) == 1 && len(got) == 0) || len(got) == 1 && got[0] != step.want[0] {
			t.Errorf("run %d with %d W: told %v, want %v", i, step.watts, got, step.want)
		}
	}
	// All of them have gone upstream or wait for it, each once.
	g, _ := start(t, open())
	deadline := time.Now().Add(20 * time.Second)
	for g.Bridges()[0].Ledger.Stored > 0 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	n := map[string]int{}
	for _, m := range up.Publishes() {
		if m.Topic == "acme/works/hall-1/meter/em-1/alerts" && !m.Dup {
			var a alert
			if err := json.Unmarshal([]byte(m.Payload), &a); err != nil {
				t.Error(err)
			}
			n[a.State]++
		}
	}
	if n["raised"] != 2 || n["cleared"] != 1 {
		t.Errorf("upstream: %v, want 2 raised and 1 cleared", n)
	}
}
