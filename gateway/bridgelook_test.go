package gateway

import (
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/bridge"
	"github.com/fieldferry/fieldferry/gateway/alarm"
)

func TestBridgeAlarms(t *testing.T) {
	began := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	var s bridge.Status
	look := &bridgeLook{name: "cloud", status: func() bridge.Status { return s }, taken: []uint64{0}}
	engine, err := alarm.New(alarm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var raised []string
	cancel := engine.Listen(func(e alarm.Event) { raised = append(raised, e.Kind.String()+" "+e.Name+" "+e.Severity.String()) })
	defer cancel()
	for i := range 240 { // looks, 20 minutes
		now := began.Add(time.Duration(i) * alarmEvery)
		s.Connected, s.Since = true, began
		switch {
		case i >= 2 && i < 6: // a twin
			s.TakenOver++
		case i == 30: // one refused
			s.Parked++
		case i >= 40 && i < 230:
			s.Connected, s.Since = false, began.Add(40*alarmEvery)
		}
		engine.Observe(now, look.samples(now)...)
	}
	want := []string{
		"raised bridge-twin critical", "cleared bridge-twin critical",
		"raised bridge-parked warning", "cleared bridge-parked warning",
		"raised bridge-down warning", "escalated bridge-down critical", "cleared bridge-down critical",
	}
	if len(raised) != len(want) {
		t.Fatalf("alarms %q", raised)
	}
	for i := range want {
		if raised[i] != want[i] {
			t.Errorf("alarms %q, want %q", raised, want)
		}
	}
}
