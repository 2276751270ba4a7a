package gateway

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/fieldferry/fieldferry/adapters/simulate"
	"github.com/fieldferry/fieldferry/bridge/upstreamtest"
	"github.com/fieldferry/fieldferry/localbroker"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// unsyncedClock is that of a machine whose clock stands at the right time, but that
// cannot know that until it is synchronised.
type unsyncedClock struct {
	booted time.Time
	synced atomic.Bool
}

func (c *unsyncedClock) Now() time.Time                  { return time.Now() }
func (c *unsyncedClock) Uptime() (time.Duration, uint64) { return time.Since(c.booted), 7 }
func (c *unsyncedClock) Kept() bool                      { return false }
func (c *unsyncedClock) Synced() bool                    { return c.synced.Load() }

// TestPayloadsSayThatTheClockIsNotRight reads devices before and after the clock is
// synchronised, on the local broker and at the upstream.
func TestPayloadsSayThatTheClockIsNotRight(t *testing.T) {
	for _, per := range []string{"device", "point"} {
		t.Run(per, func(t *testing.T) {
			field, address := devices(t)
			field.Unit(1).Set(simulate.Holding, 0, 42)
			up, url := upstreamAt(t)
			c := site(t, `
gateway: {id: gw-1, org: acme, site: works, zone: hall-1, data_dir: %q, time: {unsynced: mark}}
broker: {listeners: [{name: plain, listen: "127.0.0.1:0"}]}
adapters: {line: {modbus: "tcp://%s", devices: {em-1: {unit_id: 1, type: meter, every: 100ms, points: {count: {holding: 0, as: uint16}}}}}}
payload: {per: %s}
bridges: {cloud: {upstream: [%q]}}
buffer: {linger: 20ms, min_free: 1MiB}
`, t.TempDir(), address, per, url)
			clock := &unsyncedClock{booted: time.Now().Add(-time.Hour)}
			g, _ := startWith(t, c, Options{Clock: clock})
			messages := subscribe(t, g, "devices/#")
			isMarked := func(payload []byte) bool {
				var p struct{ Clock string }
				if err := json.Unmarshal(payload, &p); err != nil {
					t.Fatalf("%v: %s", err, payload)
				}
				return p.Clock == "unsynced"
			}
			await := func(marked bool, data string) {
				t.Helper()
				m := receive(t, messages, func(m *localbroker.Message) bool {
					return strings.Contains(m.Topic, data) && isMarked(m.Payload) == marked
				})
				property := false
				for k, v := range m.Props.User() {
					property = property || k == "clock" && v == "unsynced"
				}
				if property != marked || m.Props.Text(packet.ContentType) != "" {
					t.Errorf("%s %s has the properties %q", m.Topic, m.Payload, m.Props)
				}
			}
			await(true, "/status")
			await(true, "/telemetry")
			clock.synced.Store(true)
			await(false, "/telemetry")

			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			upstream := func(marked bool, data string) func() bool {
				return func() bool {
					return slices.ContainsFunc(up.Publishes(), func(p upstreamtest.Publish) bool {
						property := slices.Contains(p.User, packets.User{Key: "clock", Value: "unsynced"})
						return strings.Contains(p.Topic, "/em-1/"+data) && isMarked([]byte(p.Payload)) == marked && property == marked
					})
				}
			}
			for _, fits := range []func() bool{upstream(true, "status"), upstream(true, "telemetry"), upstream(false, "telemetry")} {
				if err := up.Await(ctx, fits); err != nil {
					t.Error(err)
				}
			}
			own := func(p upstreamtest.Publish) bool { return strings.HasSuffix(p.Topic, "/gw-1/status") }
			if i := slices.IndexFunc(up.Publishes(), own); i < 0 || !isMarked([]byte(up.Publishes()[i].Payload)) {
				t.Errorf("the gateway's own status says nothing of the clock")
			}
		})
	}
}

func TestHoldIsRefused(t *testing.T) {
	c := site(t, "gateway: {data_dir: %q, time: {unsynced: hold}}\nbroker: {listeners: [{name: plain, listen: \"127.0.0.1:0\"}]}\n", t.TempDir())
	_, err := Open(c, Options{})
	const want = "gateway.time.unsynced: hold: holding messages back until the clock is right is not in this version; take it out"
	if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "site.yaml:1:") {
		t.Errorf("error %v", err)
	}
}
