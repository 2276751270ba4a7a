package config

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// example copies examples/site.yaml, unchanged, to a folder with what it refers to.
func example(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("../../examples/site.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, dir, "site.yaml", string(data))
	for _, name := range []string{"viewer", "operator", "admin", "ua", "upstream-token"} {
		write(t, dir, "secrets/"+name, "canary-"+name+"\n")
	}
	return filepath.Join(dir, "site.yaml")
}

func write(t testing.TB, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func problems(list []Problem) string {
	var b strings.Builder
	for _, p := range list {
		b.WriteString(p.String() + "\n")
	}
	return b.String()
}

// mustParse parses a file that has to be right.
func mustParse(t *testing.T, text string) *Config {
	t.Helper()
	c, ps := Parse(filepath.Join(t.TempDir(), "site.yaml"), []byte(text), Options{Hostname: "host"})
	if c == nil {
		t.Fatalf("problems:\n%s", problems(ps))
	}
	return c
}

func device(t *testing.T, c *Config, id string) (*Adapter, *Device) {
	t.Helper()
	for i := range c.Adapters {
		for j := range c.Adapters[i].Devices {
			if c.Adapters[i].Devices[j].ID == id {
				return &c.Adapters[i], &c.Adapters[i].Devices[j]
			}
		}
	}
	t.Fatalf("there is no device %s", id)
	return nil, nil
}

func point(t *testing.T, d *Device, name string) *Point {
	t.Helper()
	for i := range d.Points {
		if d.Points[i].Name == name {
			return &d.Points[i]
		}
	}
	t.Fatalf("the device %s has no point %s", d.ID, name)
	return nil
}

func want[T any](t *testing.T, what string, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got %+v, want %+v", what, got, want)
	}
}

func TestExample(t *testing.T) {
	path := example(t)
	dir := filepath.Dir(path)
	c, ps := Load(path, Options{})
	for _, p := range ps {
		if !p.Warning {
			t.Errorf("%s", p)
		}
	}
	if c == nil {
		t.FailNow()
	}
	t.Logf("warnings:\n%s", problems(ps))
	want(t, "id", c.Gateway.ID, "gw-berlin-1")
	want(t, "data dir", c.Gateway.DataDir, filepath.Join(dir, "data"))
	want(t, "time zone", c.Gateway.Time.Zone.String(), "Europe/Berlin")
	want(t, "admin token", c.HTTP.Tokens.Admin.Value(), "canary-admin")
	want(t, "adapters", len(c.Adapters), 6)

	tlsListener := c.Broker.Listeners[1]
	want(t, "identity", tlsListener.TLS.Identity, "cn")
	want(t, "min_version", tlsListener.TLS.MinVersion, uint16(tls.VersionTLS13))
	want(t, "certificate", tlsListener.TLS.Cert, filepath.Join(dir, "certs/server.crt"))
	want(t, "anonymous", tlsListener.AllowAnonymous, false)
	want(t, "origins", c.Broker.Listeners[2].Origins, []string{"https://scada.example.com"})
	want(t, "session expiry", c.Broker.Limits.SessionExpiry, 7*24*time.Hour)
	want(t, "queued bytes", c.Broker.Limits.QueuedBytes, 64<<20)
	want(t, "jwt", c.Broker.JWT.Algorithms, []string{"ES256"})

	var names []string
	for _, a := range c.Adapters {
		names = append(names, a.Name)
	}
	want(t, "the order of the adapters", names, []string{"line-1", "inverters", "bus-7", "press", "scale", "talkers"})
	want(t, "the example's alarms", c.Alarms.Thresholds[1].Critical.Duration, 15*time.Minute)
	want(t, "the example's share", c.Alarms.Thresholds[0].Warning.Share, 0.8)
	want(t, "buffer", c.Buffer.MaxBytes, 4<<30)
	want(t, "the alert class", c.Buffer.Classes[0], ClassBounds{Pos: c.Buffer.Classes[0].Pos, Class: "alert", MaxAge: 90 * 24 * time.Hour, Reserve: 64 << 20})
	want(t, "the telemetry class", c.Buffer.Classes[3], ClassBounds{Class: "telemetry", MaxAge: 7 * 24 * time.Hour})
	want(t, "commands", c.Commands.Remember, 24*time.Hour)
}

func TestExampleModbus(t *testing.T) {
	c, _ := Load(example(t), Options{})
	line, em1 := device(t, c, "em-0001")
	want(t, "address", line.Modbus.Address, "10.4.1.7:502")
	want(t, "timeout", line.Modbus.Timeout, 500*time.Millisecond)
	want(t, "devices", len(line.Devices), 50)
	want(t, "zone", em1.Zone, "zone-a")
	want(t, "type", em1.Type, "energy-meter")
	want(t, "telemetry", *em1.Data[0].QoS, 2)
	want(t, "tags", em1.Tags, map[string]string{"asset": "4711"})
	want(t, "ct by default", point(t, em1, "power").Scale, 1)

	_, em2 := device(t, c, "em-0002")
	want(t, "zone of its own", em2.Zone, "zone-b")
	want(t, "ct", point(t, em2, "power").Scale, 40)

	_, em17 := device(t, c, "em-0017")
	want(t, "unit of em-0017", em17.UnitID, 17)
	want(t, "points are shared", &em17.Points[0] == &em1.Points[0], true)
	want(t, "unit of em-0050", line.Devices[49].UnitID, 50)
	if em17.Pos.Line != line.Devices[49].Pos.Line {
		t.Error("what a range made stands in different lines")
	}

	_, inv := device(t, c, "inv-07")
	want(t, "address of inv-07", inv.Address, "10.0.1.17:502")
	want(t, "unit of inv-07", inv.UnitID, 1)

	var order []string
	for _, p := range em1.Points {
		order = append(order, p.Name)
	}
	want(t, "the order of the points", strings.Join(order, " "), "voltage-l1 power energy state mode level dc-w dc-w-sf serial name curve flow "+
		"i-1 i-2 i-3 i-4 i-5 i-6 i-7 i-8 i-9 i-10 i-11 i-12 setpoint pump start door")
	want(t, "i-12", *point(t, em1, "i-12").Modbus, ModbusPoint{Table: "input", Address: 122, As: "float32", Order: "ABCD"})
	want(t, "name", point(t, em1, "name").Modbus.Bytes, 16)
	want(t, "curve", point(t, em1, "curve").Modbus.Count, 8)
	flow := point(t, em1, "flow")
	want(t, "flow", flow.Modbus.Order, "CDAB")
	want(t, "invalid", flow.Invalid, []Number{"65535", "NaN"})
	want(t, "bits", point(t, em1, "state").Bits, []Bit{{0, "running"}, {3, "fault"}})
	want(t, "enum", point(t, em1, "mode").Enum, map[int64]string{0: "off", 1: "auto", 2: "manual"})
	want(t, "range", *point(t, em1, "level").Range, Range{[2]float64{4000, 20000}, [2]float64{0, 100}})
	want(t, "scale_by", point(t, em1, "dc-w").ScaleBy, "dc-w-sf")
	want(t, "hidden", point(t, em1, "dc-w-sf").Hidden, true)
	want(t, "every", point(t, em1, "energy").Every, time.Minute)
	want(t, "the device's every", point(t, em1, "power").Every, time.Second)
	want(t, "heartbeat", point(t, em1, "power").Heartbeat, time.Minute)
	want(t, "decimals", *point(t, em1, "power").Decimals, 1)
	want(t, "limit", *point(t, em1, "setpoint").Write.Max, 30)
	want(t, "pulse", point(t, em1, "start").Write.Pulse, 500*time.Millisecond)
	want(t, "values", point(t, em1, "start").Write.Values, []float64{1})
	want(t, "door", point(t, em1, "door").Modbus.As, "bool")
	want(t, "alert", *em1.Alerts[0].Above, 9000)
	want(t, "clear", em1.Alerts[0].Clear, 8500)
	want(t, "message", em1.Alerts[0].Message, "overload, {value} W")
	want(t, "action", em1.Actions[0].Steps, []Step{
		{Write: []Assignment{{"mode", int64(2)}}}, {Wait: 2 * time.Second}, {Write: []Assignment{{"mode", int64(1)}}}})

	bus, mot := device(t, c, "mot-0007")
	want(t, "port", bus.Modbus.Address, "/dev/serial/by-id/usb-FTDI_0001")
	want(t, "rs485", bus.Modbus.Line.RS485.After, time.Millisecond)
	want(t, "every of a device", point(t, mot, "rpm").Every, 500*time.Millisecond)
}

func TestExampleOthers(t *testing.T) {
	c, _ := Load(example(t), Options{})
	ua, press := device(t, c, "press-0001")
	want(t, "policy", ua.OPCUA.Policy, "Basic256Sha256")
	want(t, "password", ua.OPCUA.User.Password.Value(), "canary-ua")
	want(t, "sampling", press.Sampling, 100*time.Millisecond)
	want(t, "a node on the base", point(t, press, "force").OPCUA.Node, "nsu=urn:acme:press;s=Press.Force")
	want(t, "a whole node", point(t, press, "state").OPCUA.Node, "ns=2;s=State")
	want(t, "a method", *point(t, press, "reset").OPCUA, OPCUAPoint{Call: "nsu=urn:acme:press;s=Press.Reset", Object: "ns=2;s=Press"})

	port, scale := device(t, c, "scale-0001")
	want(t, "baud", port.Serial.Line.Baud, 9600)
	want(t, "request", scale.Request, "SI\r\n")
	want(t, "end", scale.Frame.End, "\r\n")
	want(t, "match", scale.Match.MatchString("S S 100.00 g"), true)
	want(t, "when", *point(t, scale, "stable").Serial, SerialPoint{Field: "stable", As: "bool", When: "S"})
	want(t, "expect", point(t, scale, "tare").Serial.Expect, "T S")

	talkers, _ := device(t, c, "ts-*")
	want(t, "mqtt", talkers.MQTT, true)

	b := c.Bridges[0]
	want(t, "upstream", b.Upstream[1].String(), "mqtts://mqtt-2.example.com:8883")
	want(t, "topic", b.Topic, defaultTopic)
	want(t, "pins", b.TLS.Pins, []string{"sha256/BASE64"})
	want(t, "replay", b.LiveFirst, false)
	want(t, "data", len(b.Data), 8)
	want(t, "status", b.Data[2], Data{Pos: b.Data[2].Pos, Name: "status", QoS: 1, Class: "status", Retain: true})
	want(t, "firmware", b.Data[7], Data{Pos: b.Data[7].Pos, Name: "firmware", QoS: 2, Down: true})
	want(t, "forward", b.Forward[0].Upstream, "{org}/{site}/raw/{1}/{#}")

	at, ok := c.Position("bridges", "cloud", "upstream", "1")
	want(t, "the place of the second upstream", at.Line == b.Pos.Line+1 && ok, true)
	if _, ok := c.Position("bridges", "cloud", "topics"); ok {
		t.Error("a key that is not there has a place")
	}
}

// The defaults are what examples/site.yaml shows as such.
func TestDefaults(t *testing.T) {
	c := mustParse(t, "adapters: {plc: {modbus: tcp://10.0.0.1:502, devices: {d1: {points: {t: {input: 0, as: int16}}}}}}")
	full, _ := Load(example(t), Options{})

	want(t, "id", c.Gateway.ID, "host")
	want(t, "data dir", filepath.Base(c.Gateway.DataDir), "data")
	want(t, "http", c.HTTP, nil)
	want(t, "listeners", c.Broker.Listeners, []Listener{{Name: "default", Listen: "127.0.0.1:1883", AllowAnonymous: true}})
	limits := full.Broker.Limits
	limits.Pos = Pos{}
	want(t, "limits", c.Broker.Limits, limits)
	want(t, "sys interval", c.Broker.SysInterval, full.Broker.SysInterval)
	payload := full.Payload
	payload.Pos = Pos{}
	want(t, "payload", c.Payload, payload)
	commands := full.Commands
	commands.Pos = Pos{}
	want(t, "commands", c.Commands, commands)
	buffer := full.Buffer
	buffer.Pos, buffer.Classes[0].Pos = Pos{}, Pos{}
	want(t, "buffer", c.Buffer, buffer)
	modbus := *full.Adapters[0].Modbus
	modbus.Pos, modbus.Address = c.Adapters[0].Modbus.Pos, "10.0.0.1:502"
	want(t, "modbus", *c.Adapters[0].Modbus, modbus)
	want(t, "every", c.Adapters[0].Devices[0].Every, time.Second)

	c = mustParse(t, "gateway: {org: o, site: s, zone: z}\nbroker: {}\nbridges: {cloud: {upstream: mqtts://mqtt.example.com}}")
	bridge, def := full.Bridges[0], c.Bridges[0]
	for i := range bridge.Data {
		bridge.Data[i].Pos = Pos{}
	}
	want(t, "data", def.Data, bridge.Data)
	want(t, "topic", def.Topic, bridge.Topic)
	want(t, "client id", def.ClientID, "host")
	want(t, "port", def.Upstream[0].Host, "mqtt.example.com:8883")
	want(t, "keepalive", def.Keepalive, bridge.Keepalive)
	want(t, "session expiry", def.SessionExpiry, bridge.SessionExpiry)
	want(t, "back-off", def.BackoffMax, bridge.BackoffMax)
	want(t, "connections", def.Connections, bridge.Connections)
}

// Who may connect without a name, if the file does not say.
func TestAnonymous(t *testing.T) {
	for _, c := range []struct {
		broker string
		want   []bool
	}{
		{"{}", []bool{true}},
		{"{listeners: [{listen: '127.0.0.1:1'}, {listen: ':2'}, {listen: 'localhost:3'}, {listen: '[::1]:4'}]}", []bool{true, false, true, true}},
		{"{password_file: p}", []bool{false}},
		{"{jwt: {algorithms: RS256, keys: k}}", []bool{false}},
		{"{listeners: [{listen: '127.0.0.1:1'}, {listen: ':2', tls: {cert: c, key: k, client_ca: a}}]}", []bool{false, false}},
		{"{allow_anonymous: true, password_file: p, listeners: [{listen: ':2'}]}", []bool{true}},
		{"{allow_anonymous: false}", []bool{false}},
	} {
		var got []bool
		for _, l := range mustParse(t, "broker: "+c.broker).Broker.Listeners {
			got = append(got, l.AllowAnonymous)
		}
		want(t, c.broker, got, c.want)
	}
}
