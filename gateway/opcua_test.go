package gateway

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/opcua"
	"github.com/fieldferry/fieldferry/gateway/alarm"
	"github.com/fieldferry/fieldferry/gateway/config"
)

// dated is a link with certificates.
type dated struct {
	adapters.Link
	name  string
	certs []*x509.Certificate
}

func (d dated) String() string                    { return d.name }
func (d dated) Certificates() []*x509.Certificate { return d.certs }

func TestLinkCertificateAlarms(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	day := 24 * time.Hour
	engine, err := alarm.New(alarm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var raised []string
	cancel := engine.Listen(func(e alarm.Event) {
		raised = append(raised, e.Kind.String()+" "+e.Name+" "+e.Subject+" "+e.Severity.String())
	})
	defer cancel()
	link := func(ours, theirs time.Duration) []adapters.Link {
		return []adapters.Link{dated{name: "press", certs: []*x509.Certificate{{NotAfter: now.Add(ours)}, {NotAfter: now.Add(theirs)}}}, dated{name: "never connected"}}
	}
	for _, l := range [][]adapters.Link{link(400*day, 200*day), link(400*day, 20*day), link(day, 20*day), link(-day, 20*day), link(400*day, 200*day)} {
		for _, look := range linkCertificates(l) {
			engine.Observe(now, look.samples(now)...)
		}
	}
	want := []string{"raised certificate-expiry adapter/press warning", "escalated certificate-expiry adapter/press critical", "cleared certificate-expiry adapter/press critical"}
	if d := cmp.Diff(want, raised); d != "" {
		t.Error(d)
	}
}

// TestOPCUAConfig has every key of the site file that is of OPC UA.
func TestOPCUAConfig(t *testing.T) {
	c := site(t, `
gateway: {id: gw-1, data_dir: %q}
broker: {listeners: [{name: plain, listen: "127.0.0.1:0"}]}
adapters:
  press:
    opcua: opc.tcp://192.168.10.7:4840/plc
    security: {policy: Basic256Sha256, mode: Sign, cert: ua.crt, key: ua.key, trust: trusted}
    user: {name: gateway, password: secret}
    read: poll
    devices:
      press-1:
        type: press
        tags: {line: "7"}
        base: "nsu=urn:acme:press;s=Press."
        sampling: 100ms
        every: 500ms
        points:
          force: {node: Force, unit: kN, deadband: 0.5, heartbeat: 10s, scale: 0.1, offset: 2, decimals: 1}
          state: {node: "ns=2;s=State", every: 2s, enum: {1: run}, deadband: "2%%"}
          start: {node: Start, publish: false, write: {min: 0, max: 1, values: [0, 1], pulse: 1s}}
          reset: {call: Reset, object: "ns=2;s=Press"}
`, t.TempDir())
	var shown []string
	got := OPCUAConfig(c, &c.Adapters[0], func(_ *config.Device, d *opcua.Device) { shown = append(shown, d.Device.Name) })
	if _, err := opcua.New(got); err != nil {
		t.Fatal(err)
	}
	password, err := got.User.Password()
	if err != nil || password != "secret" || got.User.Name != "gateway" {
		t.Errorf("user %q, password %q, %v", got.User.Name, password, err)
	}
	a := c.Adapters[0].OPCUA
	one, zero := 1.0, 0.0
	digits := 1
	want := opcua.Config{
		Name: "press", Gateway: "gw-1", Endpoint: "opc.tcp://192.168.10.7:4840/plc", Policy: "Basic256Sha256", Mode: "Sign",
		Cert: a.Cert, Key: a.Key, Trust: opcua.Trust{Folder: a.Trust}, Poll: true,
		Devices: []opcua.Device{{
			Device: &adapters.Device{Name: "press-1", Type: "press", Tags: map[string]string{"line": "7"}}, Every: 500 * time.Millisecond, Sampling: 100 * time.Millisecond,
			Points: []opcua.Point{
				{Point: &adapters.Point{Name: "force", Unit: "kN"}, Node: "nsu=urn:acme:press;s=Press.Force", Every: 500 * time.Millisecond, Scale: 0.1, Offset: 2, Decimals: &digits, Deadband: 0.5, Heartbeat: 10 * time.Second},
				{Point: &adapters.Point{Name: "state"}, Node: "ns=2;s=State", Every: 2 * time.Second, Scale: 1, Enum: map[int64]string{1: "run"}, Deadband: 0.02, Relative: true},
				{Point: &adapters.Point{Name: "start"}, Node: "nsu=urn:acme:press;s=Press.Start", Every: 500 * time.Millisecond, Scale: 1, Hidden: true, Write: &opcua.Write{Min: &zero, Max: &one, Values: []float64{0, 1}, Pulse: time.Second}},
				{Point: &adapters.Point{Name: "reset"}, Call: "nsu=urn:acme:press;s=Press.Reset", Object: "ns=2;s=Press", Every: 500 * time.Millisecond, Scale: 1},
			},
		}},
	}
	got.User = nil
	if d := cmp.Diff(want, got, cmpopts.IgnoreUnexported(opcua.Config{})); d != "" {
		t.Error(d)
	}
	if len(shown) != 1 || shown[0] != "press-1" {
		t.Errorf("shown %v", shown)
	}
}
