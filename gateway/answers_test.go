package gateway

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/adapters/simulate"
	"github.com/fieldferry/fieldferry/bridge/upstreamtest"
	"github.com/fieldferry/fieldferry/gateway/command"
	"github.com/fieldferry/fieldferry/localbroker"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

const heaterSite = `
gateway: {id: gw-1, org: acme, site: works, zone: hall-1, data_dir: %q}
broker: {listeners: [{name: plain, listen: "127.0.0.1:0"}]%s}
adapters:
  line:
    modbus: "tcp://%s"
    devices: {h-1: {type: heater, unit_id: 1, every: 100ms, points: {setpoint: {holding: 100, as: int16, write: {min: 10, max: 30}}}}}
  talkers: {mqtt: local, devices: {ts-1: {type: sensor}, "tx-*": {type: sensor}}}
%s
buffer: {min_free: 1MiB}
`

// Where an answer may go is no more than who asked may do.
func TestWhereAnswersMayGo(t *testing.T) {
	dir := t.TempDir()
	acl := filepath.Join(dir, "acl")
	if err := os.WriteFile(acl, []byte("topic readwrite plant/#\ntopic write devices/+/commands\ntopic read other/#\npattern read responses/%c/#\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, address := devices(t)
	g, _ := start(t, site(t, heaterSite, dir, fmt.Sprintf(", acl_file: %q", acl), address, ""))
	local, upstream := &envelope{from: command.Issuer{Client: "app"}}, &envelope{from: command.Issuer{Bridge: "cloud"}}
	for name, want := range map[string][2]bool{ // from a local client, from the upstream
		"responses/app/1":                {true, true},
		"responses/another/1":            {false, true},
		"plant/answers":                  {true, false},
		"other/answers":                  {false, false}, // it may read there, and no more
		"secret":                         {false, false},
		"devices/h-1/commands":           {false, false},
		"devices/h-1/telemetry":          {false, false},
		"requests/h-1/rpc":               {false, false},
		"$SYS/broker/alarms/bridge-down": {false, false},
		"responses/#":                    {false, false},
		"":                               {false, false},
	} {
		if got := [2]bool{g.command.mayAnswer(local, name), g.command.mayAnswer(upstream, name)}; got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
}

// What is published on topics of commands goes to the device's queue, unless the device
// takes it itself.
func TestWhoTakesCommands(t *testing.T) {
	_, address := devices(t)
	g, stop := start(t, site(t, heaterSite, t.TempDir(), "", address, ""))
	for _, tt := range []struct {
		topic  string
		retain bool
		want   string
	}{
		{"devices/h-1/commands", false, "commands/h-1"},
		{"devices/h-1/commands", true, ""},
		{"requests/h-1/rpc", false, "commands/h-1"},
		{"devices/none/commands", false, "commands"},
		{"devices/ts-1/commands", false, ""},
		{"devices/tx-17/commands", false, ""},
		{"requests/tx-17/rpc", false, ""},
		{"devices/h-1/commands/response", false, ""},
		{"devices/h-1/config", false, ""},
		{"devices//commands", false, ""},
		{"devices/a/b/commands", false, ""},
		{"commands", false, ""},
		{"requests/rpc", false, ""},
	} {
		c, ok := g.command.copyFor(&localbroker.Message{Topic: tt.topic, Retain: tt.retain, ClientID: "app", Username: "bob"})
		got := ""
		if ok {
			got = c.Outbox.Name()
			e, ok := parseEnvelope(c.Topic)
			if !ok || e.from != (command.Issuer{Client: "app", Username: "bob"}) || !strings.Contains(tt.topic, e.device) {
				t.Errorf("%s: envelope %+v", tt.topic, e)
			}
		}
		if got != tt.want {
			t.Errorf("%s, retain %t: goes to %q, want %q", tt.topic, tt.retain, got, tt.want)
		}
	}
	stop()
}

// Whoever sends a retained command waits for an answer in vain, and finds out why in the
// log, which no flood of them fills.
func TestRetainedCommandsAreLogged(t *testing.T) {
	_, address := devices(t)
	var lines lockedLines
	g, stop := startWith(t, site(t, heaterSite, t.TempDir(), "", address, ""), Options{Logger: slog.New(slog.NewTextHandler(&lines, nil))})
	for range 3 {
		for _, topic := range []string{"devices/h-1/commands", "devices/ts-1/commands", "devices/h-1/config"} {
			g.command.copyFor(&localbroker.Message{Topic: topic, Retain: true, ClientID: "app"})
		}
	}
	stop()
	if text := lines.String(); strings.Count(text, "a retained command is ignored") != 1 || !strings.Contains(text, "topic=devices/h-1/commands") {
		t.Errorf("the log is\n%s", text)
	}
}

// lockedLines takes what a logger writes.
type lockedLines struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

func (l *lockedLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// A command of the upstream is carried out and answered, there and here.
func TestCommandsFromTheUpstream(t *testing.T) {
	field, address := devices(t)
	field.Unit(1).Set(simulate.Holding, 100, 20)
	up := upstreamtest.New()
	defer up.Close()
	url, err := up.Listen()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	g, _ := start(t, site(t, heaterSite, dir, "", address, fmt.Sprintf("bridges: {cloud: {upstream: %q}}", url)))
	waitFor(t, "a reading", func() bool { _, known := g.field.last("h-1", "setpoint"); return known })
	answers := subscribe(t, g, "devices/h-1/commands/response")
	waitFor(t, "bridge up", func() bool { return g.Bridges()[0].Connected })
	const topic = "acme/works/hall-1/heater/h-1/commands"
	for i, tt := range []struct{ payload, status string }{
		{`{"id":"1","action":"write","values":{"setpoint":25}}`, `"executed","values":{"setpoint":25}`},
		{`{"id":"2","action":"write","values":{"setpoint":40}}`, `"rejected","error":"setpoint: 40 is above its limit 30"`},
		{`{"id":"1","action":"write","values":{"setpoint":25}}`, `"executed","values":{"setpoint":25}`},
	} {
		up.Send(upstreamtest.Message{Topic: topic, Payload: tt.payload, QoS: byte(1 + i%2)})
		m := receive(t, answers, func(*localbroker.Message) bool { return true })
		if !strings.Contains(string(m.Payload), tt.status) {
			t.Errorf("%s is answered %s", tt.payload, m.Payload)
		}
	}
	waitFor(t, "answered upstream", func() bool {
		n := 0
		for _, p := range up.Publishes() {
			if p.Topic == topic+"/response" {
				n++
			}
		}
		return n == 3
	})
	audit, err := os.ReadFile(filepath.Join(dir, "audit.log"))
	if err != nil || !strings.Contains(string(audit), `"event":"started","device":"h-1","from":{"bridge":"cloud"},"id":"1","action":"write","before":{"setpoint":20}}`) {
		t.Errorf("the audit log does not say what was there before: %v\n%s", err, audit)
	}
	waitFor(t, "taken by the upstream", func() bool { return up.Unanswered() == 0 })
}

// Commands that are turned off are answered, also where their MQTT 5 properties say.
func TestCommandsTurnedOff(t *testing.T) {
	_, address := devices(t)
	g, _ := start(t, site(t, heaterSite, t.TempDir(), "", address, "commands: {enabled: false}"))
	answers := subscribe(t, g, "responses/#")
	props := packet.Properties(nil).AppendText(packet.ResponseTopic, "responses/x").AppendText(packet.CorrelationData, "c-1")
	publish(t, g, &localbroker.Message{Topic: "devices/h-1/commands", Payload: []byte(`{"action":"read"}`), Props: props, QoS: 1, Urgent: true, ClientID: "app"})
	m := receive(t, answers, func(*localbroker.Message) bool { return true })
	if want := `{"commandId":"c-1","status":"rejected","error":"commands are turned off; commands: {enabled: true} in the site file turns them on"`; !strings.HasPrefix(string(m.Payload), want) {
		t.Errorf("answered %s", m.Payload)
	}
	if c := m.Props.Text(packet.CorrelationData); c != "c-1" {
		t.Errorf("correlation data %q", c)
	}
}

// A command that a bridge carries as well, whatever class that gives it, is one record.
func TestCommandsThatABridgeCarriesToo(t *testing.T) {
	_, address := devices(t)
	g, _ := start(t, site(t, heaterSite, t.TempDir(), "", address, `
commands: {enabled: false}
bridges:
  cloud:
    upstream: "mqtt://127.0.0.1:1"
    data: {commands: {direction: up, class: alert}}
    forward: [{local: "#", upstream: "all/{#}", class: telemetry}]
`))
	for _, name := range []string{"devices/h-1/commands", "requests/h-1/rpc"} {
		before := g.Bridges()[0].Ledger.Accepted
		publish(t, g, &localbroker.Message{Topic: name, Payload: []byte(`{"id":"1","action":"read","method":"read"}`), QoS: 1, Urgent: true, ClientID: "app"})
		if n := g.Bridges()[0].Ledger.Accepted - before; n < 1 {
			t.Errorf("%s: the bridge has %d copies", name, n)
		}
	}
	waitFor(t, "both are answered", func() bool {
		l := g.command.queues["h-1"].outbox.Ledger()
		return l.Accepted == 2 && l.Delivered == 2
	})
}

// A flood of commands for one device loses none and holds up no other device.
func TestFloodOfCommands(t *testing.T) {
	const flood = 20_000
	field, address := devices(t)
	for unit := range uint8(2) {
		field.Unit(unit+1).Set(simulate.Holding, 100, 0)
	}
	c := site(t, `
gateway: {data_dir: %q}
broker: {listeners: [{name: plain, listen: "127.0.0.1:0"}]}
commands: {max_age: 500ms}
adapters:
  line:
    modbus: "tcp://%s"
    devices: {"h-{1..2}": {unit_id: "{1..2}", every: 1s, points: {v: {holding: 100, as: uint16, write: {}}}}}
buffer: {min_free: 1MiB}
`, t.TempDir(), address)
	g, _ := start(t, c)
	waitFor(t, "devices are online", func() bool {
		for _, d := range g.Devices() {
			if !d.Online {
				return false
			}
		}
		return true
	})
	told := make(chan error, flood)
	for i := range flood {
		m := &localbroker.Message{Topic: "devices/h-1/commands", Payload: fmt.Appendf(nil, `{"id":"f-%d","action":"write","values":{"v":1}}`, i), QoS: 1, Urgent: true, ClientID: "flood"}
		if err := g.Broker().Publish(t.Context(), m, stored(told)); err != nil {
			t.Fatal(err)
		}
	}
	for range flood {
		if err := <-told; err != nil {
			t.Fatal(err)
		}
	}
	other := subscribe(t, g, "devices/h-2/commands/response")
	publish(t, g, &localbroker.Message{Topic: "devices/h-2/commands", Payload: fmt.Appendf(nil, `{"id":"o","action":"write","values":{"v":7},"expires":%d}`, time.Now().Add(time.Hour).UnixMilli()), QoS: 1, Urgent: true, ClientID: "app"})
	m := receive(t, other, func(*localbroker.Message) bool { return true })
	if !strings.Contains(string(m.Payload), `"status":"executed"`) {
		t.Errorf("the other device's is answered %s", m.Payload)
	}
	q := g.command.queues["h-1"].outbox
	for deadline := time.Now().Add(2 * time.Minute); q.Stored() > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d wait", q.Stored())
		}
	}
	l := q.Ledger()
	if l.Accepted != flood || l.Delivered+l.Dropped["expired"] != flood || l.Dropped["expired"] == 0 || l.Delivered == 0 {
		t.Errorf("ledger %+v", l)
	}
}
