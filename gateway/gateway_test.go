package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/adapters/simulate"
	"github.com/fieldferry/fieldferry/bridge/upstreamtest"
	"github.com/fieldferry/fieldferry/gateway/alarm"
	"github.com/fieldferry/fieldferry/gateway/config"
	"github.com/fieldferry/fieldferry/localbroker"
)

// site parses a site file that must be good.
func site(t *testing.T, format string, args ...any) *config.Config {
	t.Helper()
	text := fmt.Sprintf(format, args...)
	c, problems := config.Parse("site.yaml", []byte(text), config.Options{Hostname: "gw-test"})
	if c == nil {
		t.Fatalf("problems %v in\n%s", problems, text)
	}
	return c
}

// start runs a gateway until stop is called or the test ends.
func start(t *testing.T, c *config.Config) (g *Gateway, stop func()) {
	t.Helper()
	return startWith(t, c, Options{})
}

func startWith(t *testing.T, c *config.Config, o Options) (g *Gateway, stop func()) {
	t.Helper()
	g, err := Open(c, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if err := g.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	t.Cleanup(stop)
	return g, stop
}

// devices serves simulated units until the test ends.
func devices(t *testing.T) (*simulate.Server, string) {
	t.Helper()
	s := simulate.New()
	if err := s.Open("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, s.Addr().String()
}

// receive waits for a message that fits.
func receive(t *testing.T, from <-chan *localbroker.Message, fits func(*localbroker.Message) bool) *localbroker.Message {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case m := <-from:
			if fits(m) {
				return m
			}
		case <-timeout:
			t.Fatal("no such message came")
		}
	}
}

func subscribe(t *testing.T, g *Gateway, filter string) <-chan *localbroker.Message {
	t.Helper()
	messages := make(chan *localbroker.Message, 1000)
	cancel, err := g.Broker().Subscribe(filter, 1, func(m *localbroker.Message) { messages <- m })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cancel)
	return messages
}

func TestOneDeviceAndNothingElse(t *testing.T) {
	field, address := devices(t)
	field.Unit(1).Set(simulate.Holding, 0, 42)
	c := site(t, `
gateway: {data_dir: %q}
broker: {listeners: [{name: plain, listen: "127.0.0.1:0"}]}
adapters: {line: {modbus: "tcp://%s", devices: {em-1: {unit_id: 1, every: 20ms, points: {count: {holding: 0, as: uint16}}}}}}
`, t.TempDir(), address)
	g, stop := start(t, c)
	messages := subscribe(t, g, "devices/#")
	status := receive(t, messages, func(m *localbroker.Message) bool { return m.Topic == "devices/em-1/status" })
	if !strings.HasPrefix(string(status.Payload), `{"status":"online"`) || !status.Retain {
		t.Errorf("status %s, retain %v", status.Payload, status.Retain)
	}
	telemetry := receive(t, messages, func(m *localbroker.Message) bool { return m.Topic == "devices/em-1/telemetry" })
	var reading struct{ Count, Timestamp int64 }
	if err := json.Unmarshal(telemetry.Payload, &reading); err != nil || reading.Count != 42 || time.Since(time.UnixMilli(reading.Timestamp)).Abs() > time.Minute {
		t.Errorf("telemetry %s: %v", telemetry.Payload, err)
	}
	stop()
	if l := g.Buffer().Stats().Ledger; l.Accepted != 0 {
		t.Errorf("without a bridge nothing is durable, but the ledger is %+v", l)
	}
}

// upstreamAt runs an unkind upstream, at its kindest, until the test ends.
func upstreamAt(t *testing.T) (*upstreamtest.Server, string) {
	t.Helper()
	up := upstreamtest.New()
	url, err := up.Listen()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(up.Close)
	return up, url
}

func TestReadingsGoUpstreamOverARestart(t *testing.T) {
	field, address := devices(t)
	field.Unit(1).Drive(simulate.Holding, 0, simulate.Int32(), simulate.Counter())
	up, url := upstreamAt(t)
	dir := t.TempDir()
	text := `
gateway: {id: gw-1, org: acme, site: works, zone: hall-1, data_dir: %q}
broker: {listeners: [{name: plain, listen: "127.0.0.1:0"}]}
adapters: {line: {modbus: "tcp://%s", devices: {em-1: {unit_id: 1, type: meter, every: 20ms, points: {count: {holding: 0, as: uint32}}}}}}
bridges: {cloud: {upstream: [%q], backoff: {first: 10ms, max: 100ms}}}
buffer: {linger: 20ms, min_free: 1MiB}
`
	telemetry := func() (n int) {
		for _, p := range up.Publishes() {
			if p.Topic == "acme/works/hall-1/meter/em-1/telemetry" {
				n++
			}
		}
		return n
	}
	await := func(n int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := up.Await(ctx, func() bool { return telemetry() >= n }); err != nil {
			t.Fatalf("%d of %d readings came: %v", telemetry(), n, err)
		}
	}
	c := site(t, text, dir, address, url)
	_, stop := start(t, c)
	await(5)
	stop()
	before := telemetry()
	g, stop := start(t, c)
	await(before + 5)
	stop()
	l := g.Buffer().Stats().Ledger
	if l.Difference() != 0 || l.Accepted == 0 || l.Delivered == 0 {
		t.Errorf("ledger %+v", l)
	}
	if v := up.Violations(); len(v) > 0 {
		t.Errorf("the upstream complains: %v", v)
	}
}

func TestADeviceThatIsNotInTheFileIsNotBridged(t *testing.T) {
	_, url := upstreamAt(t)
	c := site(t, `
gateway: {id: gw-1, org: acme, site: works, zone: hall-1, data_dir: %q}
broker: {listeners: [{name: plain, listen: "127.0.0.1:0"}]}
adapters: {talkers: {mqtt: local, devices: {ts-1: {type: sensor}}}}
bridges: {cloud: {upstream: [%q]}}
buffer: {min_free: 1MiB}
`, t.TempDir(), url)
	g, _ := start(t, c)
	answers := make(chan error, 2)
	for _, device := range []string{"ts-2", "ts-1"} {
		m := &localbroker.Message{Topic: "devices/" + device + "/telemetry", QoS: 1, Urgent: true}
		if err := g.Broker().Publish(t.Context(), m, stored(answers)); err != nil {
			t.Fatal(err)
		}
		if err := <-answers; err != nil {
			t.Fatal(err)
		}
	}
	if l := g.Buffer().Stats().Ledger; l.Accepted != 1 {
		t.Errorf("ledger %+v, want one accepted", l)
	}
	if s := g.bridges[0].mapper.Stats(); s.Unknown != 1 {
		t.Errorf("%d unknown, want 1", s.Unknown)
	}
	var told string
	waitFor(t, "alarm", func() bool {
		for _, a := range g.alarms.engine.Active() {
			if a.Name == alarm.DeviceUnlisted && a.Subject == "ts-2" {
				told = a.Text
			}
		}
		return told != ""
	})
	if !strings.Contains(told, "device ts-2 publishes and is not in the site file") || !strings.Contains(told, "mqtt: local") || !strings.Contains(told, "ts-2:") {
		t.Errorf("the alarm says %q", told)
	}
}

type stored chan error

func (s stored) Stored(err error) { s <- err }

func TestWhatIsMissingKeepsTheGatewayFromStarting(t *testing.T) {
	for text, want := range map[string]string{
		"broker: {allow_anonymous: false}": "nobody could connect",
		"payload: {format: full}":          "payload.format: full",
		"alarms: {webhook: \"http://x\"}":  "alarms.webhook: ",
	} {
		if !strings.HasPrefix(text, "broker") && !strings.HasPrefix(text, "adapters") {
			text += "\nbroker: {listeners: [{name: plain, listen: \"127.0.0.1:0\"}]}"
		}
		c := site(t, "gateway: {data_dir: %q}\n%s\n", t.TempDir(), text)
		_, err := Open(c, Options{})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "site.yaml:") {
			t.Errorf("%s: error %v, want one with %q and its place", text, err, want)
		}
	}
}
