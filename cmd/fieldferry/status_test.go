package main

import (
	"strings"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/gateway"
	"github.com/fieldferry/fieldferry/gateway/health"
)

// What is not connected says why, and nothing stands there of what is not known.
func TestPrintStatus(t *testing.T) {
	now := time.UnixMilli(1790000000000)
	s := &gateway.Status{
		Gateway: "gw-1", Started: now.Add(-time.Minute), Health: &health.Report{Status: health.Healthy},
		Adapters: []gateway.AdapterState{
			{Name: "line-1", LinkCounts: &gateway.LinkCounts{LastError: "connection refused", Polls: 3, Failed: 3, Offline: 1}},
			{Name: "line-2", LinkCounts: &gateway.LinkCounts{Connected: true, Polls: 2, Online: 1}},
		},
		Devices: []gateway.DeviceState{{ID: "em-1", State: "unknown"}},
	}
	var out strings.Builder
	if err := printStatus(&out, s, now); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"line-1     not connected; 3 polls, 3 failed, 0 late; 0 online, 1 offline\n                    connection refused\n",
		"line-2     connected; 2 polls, 0 failed, 0 late; 1 online, 0 offline\ndevice",
		"em-1       unknown; 0 readings, last never\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}
