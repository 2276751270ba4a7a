package gateway

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/bridge/upstreamtest"
	"github.com/fieldferry/fieldferry/localbroker"
)

// freePort is a port that was free a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Two gateways have each other for upstream, and carry the same topics up and down.
// Each way that a message can take it takes once, and then it is at rest.
func TestTwoGatewaysDoNotLoop(t *testing.T) {
	a, b := freePort(t), freePort(t)
	for name, rules := range map[string]string{
		"up":          `[{local: "plant/#", upstream: "plant/{#}", qos: 2}]`,
		"up and down": `[{local: "plant/#", upstream: "plant/{#}"}, {local: "plant/#", upstream: "plant/{#}", direction: down}]`,
	} {
		t.Run(name, func(t *testing.T) {
			gateway := func(id, listen, upstream string) *Gateway {
				g, _ := start(t, site(t, `
gateway: {id: %s, data_dir: %q}
broker: {listeners: [{name: main, listen: %q}]}
bridges:
  other:
    upstream: "mqtt://%s"
    topic: "{gateway}/{device}/{data}"
    backoff: {first: 50ms, max: 200ms}
    forward: %s
`, id, t.TempDir(), listen, upstream, rules))
				return g
			}
			ga, gb := gateway("gw-a", a, b), gateway("gw-b", b, a)
			for _, g := range []*Gateway{ga, gb} {
				waitFor(t, "bridge up", func() bool { return g.Bridges()[0].Connected })
			}
			atA, atB := subscribe(t, ga, "plant/#"), subscribe(t, gb, "plant/#")
			const n = 20
			for i := range n {
				publish(t, ga, &localbroker.Message{Topic: "plant/x", Payload: fmt.Append(nil, i), QoS: 1, Urgent: true})
			}
			waitFor(t, "at the other", func() bool { return len(atB) >= n })
			still, last := 0, 0
			waitFor(t, "rest", func() bool {
				if now := len(atA) + len(atB); now != last {
					last, still = now, 0
				}
				still++
				return still > 40
			})
			if len(atB) > 3*n || len(atA) > 3*n {
				t.Errorf("%d messages came to a, %d to b, of %d", len(atA), len(atB), n)
			}
			for _, g := range []*Gateway{ga, gb} {
				if l := g.Bridges()[0].Ledger; l.Difference() != 0 || l.Stored != 0 {
					t.Errorf("ledger %+v", l)
				}
			}
		})
	}
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
	}
}

type done chan error

func (d done) Stored(err error) { d <- err }

func publish(t *testing.T, g *Gateway, m *localbroker.Message) {
	t.Helper()
	stored := make(done, 1)
	if err := g.Broker().Publish(context.Background(), m, stored); err != nil {
		t.Fatal(err)
	}
	if err := <-stored; err != nil {
		t.Fatal(err)
	}
}

// What comes down is published under its local topic, and goes nowhere else.
func TestDownToTheLocalBroker(t *testing.T) {
	up := upstreamtest.New()
	defer up.Close()
	url, err := up.Listen()
	if err != nil {
		t.Fatal(err)
	}
	g, _ := start(t, site(t, `
gateway: {id: gw-1, org: acme, site: berlin, zone: zone-a, data_dir: %q}
broker: {listeners: [{name: main, listen: "127.0.0.1:0"}]}
adapters:
  talkers:
    mqtt: local
    devices:
      ts-1: {type: sensor, zone: zone-b}
bridges:
  cloud:
    upstream: %s
    forward:
      - {local: "recipes/+/#", upstream: "{org}/recipes/{#}/for/{1}", direction: down, qos: 2}
      - {local: "#", upstream: "{org}/{site}/all/{#}", direction: up}
`, t.TempDir(), url))
	waitFor(t, "bridge up", func() bool { return g.Bridges()[0].Connected })
	all := subscribe(t, g, "#")
	for _, m := range []struct {
		topic, want string
		retain      bool
	}{
		{"acme/berlin/zone-b/sensor/ts-1/commands", "devices/ts-1/commands", false},
		{"acme/berlin/zone-b/sensor/ts-1/config", "devices/ts-1/config", false},
		{"acme/berlin/zone-b/sensor/ts-1/config", "devices/ts-1/config", true},
		{"acme/berlin/zone-b/sensor/ts-1/commands", "", true},
		{"acme/recipes/a/b/for/mixer", "recipes/mixer/a/b", false},
		{"acme/berlin/zone-x/sensor/ts-1/commands", "", false},   // another zone
		{"acme/berlin/zone-b/sensor/ts-2/commands", "", false},   // no such device
		{"acme/berlin/zone-b/sensor/ts-1/telemetry", "", false},  // goes up
		{"acme/berlin/zone-a/gateway/gw-1/telemetry", "", false}, // nobody's
		{"acme/recipes/for/mixer", "recipes/mixer", false},       // {#} may be nothing
		{"acme/berlin/zone-b/sensor/ts-1/firmware", "devices/ts-1/firmware", false},
	} {
		up.Send(upstreamtest.Message{Topic: m.topic, Payload: m.topic, QoS: 1, Retain: m.retain})
		waitFor(t, "answered", func() bool { return up.Unanswered() == 0 })
		var got string
		for len(all) > 0 {
			if x := <-all; string(x.Payload) == m.topic {
				got = x.Topic
			}
		}
		if got != m.want {
			t.Errorf("%s came as %q, want %q", m.topic, got, m.want)
		}
	}
	for _, d := range up.Delivered() {
		if d.Topic != "acme/berlin/zone-a/gateway/gw-1/status" {
			t.Errorf("went up again: %+v", d)
		}
	}
}
