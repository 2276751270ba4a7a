package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestSecret(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "token", "canary-one\n")
	write(t, dir, "site.yaml", `
broker: {jwt: {algorithms: HS256, secret: "key-${env:KEY}"}, password_file: passwd}
http: {tokens: {admin: "${file:token}", viewer: plain-canary}}
`)
	env := func(string) (string, bool) { return "canary-env", true }
	c, ps := Load(filepath.Join(dir, "site.yaml"), Options{Getenv: env})
	if c == nil {
		t.Fatal(problems(ps))
	}
	tokens := c.HTTP.Tokens
	want(t, "from a file", tokens.Admin.Value(), "canary-one")
	want(t, "from the environment", c.Broker.JWT.Secret.Value(), "key-canary-env")
	want(t, "is there", tokens.Operator.IsZero(), true)

	// what prints a secret does not show it
	var log bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		slog.New(h).Info("secrets", "admin", tokens.Admin, "all", tokens, "pointer", &tokens.Viewer)
	}
	data, err := json.Marshal(map[string]any{"config": c, "secret": tokens.Admin})
	if err != nil {
		t.Fatal(err)
	}
	text := log.String() + string(data) + fmt.Sprintf("%v %+v %#v %s %q %x %d", tokens, tokens, tokens, tokens.Admin, tokens.Admin, tokens.Admin, tokens.Admin) +
		fmt.Sprintf("%+v %#v", *c, c.HTTP) + tokens.Viewer.String()
	if strings.Contains(text, "canary") {
		t.Errorf("a secret is shown in: %s", text)
	}
	if !strings.Contains(log.String(), hidden) {
		t.Errorf("logged: %s", log.String())
	}

	// one from a file is read afresh
	write(t, dir, "token", "canary-two\n\n")
	if s, err := tokens.Admin.Read(); s != "canary-two" || err != nil {
		t.Errorf("%q, %v", s, err)
	}
	if s, err := tokens.Viewer.Read(); s != "plain-canary" || err != nil {
		t.Errorf("%q, %v", s, err)
	}
	write(t, dir, "token", "")
	if _, err := tokens.Admin.Read(); err == nil {
		t.Error("an empty file is a secret")
	}
}

func TestReferences(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "zone.txt", "zone-7\r\n")
	write(t, dir, "site.yaml", `
vars: {plc: 10.0.0.1, port: 1502, env: "${env:NAME}"}
gateway: {id: "gw-${env:NAME}", org: "${env:NONE:-acme}", site: "${var:env}", zone: "${file:zone.txt}"}
commands: {enabled: "${env:FLAG}", max_age: "${env:NONE:-5}s"}
adapters:
  a:
    modbus: tcp://${var:plc}:${var:port}
    retries: "${env:SEVEN}"
    devices: {d: {unit_id: "${env:SEVEN}", tags: {t: "a$${x}b${var:plc}$$"}, points: {t: {input: "${var:port}", as: int16}}}}
`)
	env := func(name string) (string, bool) {
		s, ok := map[string]string{"NAME": "berlin", "FLAG": "false", "SEVEN": "007"}[name]
		return s, ok
	}
	c, ps := Load(filepath.Join(dir, "site.yaml"), Options{Getenv: env})
	if c == nil {
		t.Fatal(problems(ps))
	}
	want(t, "id", c.Gateway.ID, "gw-berlin")
	want(t, "org", c.Gateway.Org, "acme")
	want(t, "site", c.Gateway.Site, "berlin")
	want(t, "zone", c.Gateway.Zone, "zone-7")
	want(t, "enabled", c.Commands.Enabled, false)
	want(t, "max_age", c.Commands.MaxAge, 5*time.Second)
	want(t, "address", c.Adapters[0].Modbus.Address, "10.0.0.1:1502")
	want(t, "retries", c.Adapters[0].Modbus.Retries, 7)
	want(t, "$${", c.Adapters[0].Devices[0].Tags["t"], "a${x}b10.0.0.1$$")
	want(t, "unit", c.Adapters[0].Devices[0].UnitID, 7)
	want(t, "files", c.Files, []string{filepath.Join(dir, "site.yaml"), filepath.Join(dir, "zone.txt")})
}

func TestInclude(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "site.yaml", `
include: [fleet/a.yaml, fleet/b.yaml]
vars: {plc: 10.0.0.9}
gateway: {site: here}
adapters:
  line: {timeout: 2s, devices: {own: {profile: m}}}
`)
	write(t, dir, "fleet/a.yaml", `
include: deeper/c.yaml
vars: {plc: 10.0.0.1}
gateway: {org: a, site: a, zone: a, data_dir: data}
adapters:
  line: {modbus: "tcp://${var:plc}:502", timeout: 1s, retries: 3}
profiles: {m: {points: {one: {input: 1, as: int16}}}}
`)
	write(t, dir, "fleet/b.yaml", `
gateway: {org: b}
profiles: {m: {points: {two: {input: 2, as: int16}}, points_file: points.csv}}
`)
	write(t, dir, "fleet/points.csv", "name,input,as\nzero,0,int16\n")
	write(t, dir, "fleet/deeper/c.yaml", "gateway: {org: c, zone: c}\nbroker: {password_file: passwd}\nbuffer: {page_size: 4KiB}\n")
	c, ps := Load(filepath.Join(dir, "site.yaml"), Options{Hostname: "host"})
	if c == nil {
		t.Fatal(problems(ps))
	}
	g := c.Gateway
	want(t, "the including file wins, and the later of two", []string{g.Org, g.Site, g.Zone}, []string{"b", "here", "a"})
	want(t, "a path starts at its own file", g.DataDir, filepath.Join(dir, "fleet/data"))
	want(t, "and one level deeper", c.Broker.PasswordFile, filepath.Join(dir, "fleet/deeper/passwd"))
	want(t, "page size", c.Buffer.PageSize, 4096)
	m := c.Adapters[0].Modbus
	want(t, "modbus", []any{m.Address, m.Timeout, m.Retries}, []any{"10.0.0.9:502", 2 * time.Second, 3})
	d := c.Adapters[0].Devices[0]
	var names []string
	for _, p := range d.Points {
		names = append(names, p.Name)
	}
	want(t, "points", names, []string{"zero", "one", "two"})
	want(t, "the place of a table's point", d.Points[0].Pos, Pos{filepath.Join(dir, "fleet/points.csv"), 2, 1})
	at, ok := c.Position("broker", "password_file")
	want(t, "the place of an included key", at, Pos{filepath.Join(dir, "fleet/deeper/c.yaml"), 2, 10})
	want(t, "files", len(c.Files), 5)
	_ = ok
}

func TestPointsFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "points.csv", "\ufeffname;holding;as;unit;scale;bits;write\r\n"+
		"# comment\r\n"+
		"temp;10;int16;°C;0.1;;{min: 10, max: 30}\r\n"+
		"\"i-{1..3}\";20;float32;A;{ct};;\r\n"+
		"state;30;uint16;;;{0: run, 3: fault};\r\n")
	write(t, dir, "site.yaml", `
profiles: {m: {params: {ct: {as: float}}, points_file: points.csv, points: {temp: {every: 5s}, extra: {coil: 1}}}}
adapters: {a: {modbus: tcp://10.0.0.1:502, devices: {d: {profile: m, with: {ct: 2.5}, points: {i-2: {unit: mA}}}}}}
`)
	c, ps := Load(filepath.Join(dir, "site.yaml"), Options{Hostname: "host"})
	if c != nil || !strings.Contains(problems(ps), `the point "temp" is there already, at `+filepath.Join(dir, "points.csv:3:1")) {
		t.Fatalf("a point that is in the table and in points: %s", problems(ps))
	}
	write(t, dir, "site.yaml", `
profiles: {m: {params: {ct: {as: float}}, points_file: points.csv, points: {extra: {coil: 1}}}}
adapters: {a: {modbus: tcp://10.0.0.1:502, devices: {d: {profile: m, with: {ct: 2.5}, points: {i-2: {unit: mA}, temp: {every: 5s}}}}}}
`)
	if c, ps = Load(filepath.Join(dir, "site.yaml"), Options{Hostname: "host"}); c == nil {
		t.Fatal(problems(ps))
	}
	_, d := device(t, c, "d")
	want(t, "points", len(d.Points), 6)
	temp := point(t, d, "temp")
	want(t, "temp", []any{temp.Modbus.Address, temp.Unit, temp.Scale, *temp.Write.Max, temp.Every}, []any{uint16(10), "°C", 0.1, 30.0, 5 * time.Second})
	i2 := point(t, d, "i-2")
	want(t, "i-2, of which the device changes the unit", []any{i2.Modbus.Address, i2.Unit, i2.Scale}, []any{uint16(22), "mA", 2.5})
	want(t, "state", point(t, d, "state").Bits, []Bit{{0, "run"}, {3, "fault"}})
}

func TestAddressing(t *testing.T) {
	c := mustParse(t, `
adapters:
  a:
    modbus: tcp://10.0.0.1:502
    devices:
      one: {unit_id: 1, addressing: one, points: {a: {holding: 1, as: int16}, b: {holding: 65536, as: int16}, c: {coil: 5}}}
      modicon:
        unit_id: 2
        addressing: modicon
        points:
          a: {holding: 40001, as: int16}
          b: {holding: 49999, as: int16}
          c: {holding: 400001, as: int16}
          d: {holding: 465536, as: int16}
          e: {input: 30010, as: int16}
          f: {discrete: 10001}
          g: {coil: 1}
          h: {coil: 9999}
          i: {coil: "010001"}
          j: {discrete: 100017}
          "k-{1..3}": {input: 30101, as: float32}
          "l-{1..3}": {input: "{30201..30203}", as: int16}
      hex: {unit_id: 3, points: {a: {holding: 0x1F40, as: int16}}}
`)
	for id, addresses := range map[string]map[string]uint16{
		"one": {"a": 0, "b": 65535, "c": 4},
		"modicon": {"a": 0, "b": 9998, "c": 0, "d": 65535, "e": 9, "f": 0, "g": 0, "h": 9998, "i": 10000, "j": 16,
			"k-1": 100, "k-2": 102, "k-3": 104, "l-3": 202},
		"hex": {"a": 8000},
	} {
		_, d := device(t, c, id)
		for name, address := range addresses {
			if got := point(t, d, name).Modbus.Address; got != address {
				t.Errorf("%s, %s: %d, want %d", id, name, got, address)
			}
		}
	}
}

// Anchors, aliases and merge keys mean what they do in YAML.
func TestAliases(t *testing.T) {
	c := mustParse(t, `
adapters:
  a:
    modbus: tcp://10.0.0.1:502
    devices:
      d1: &base
        unit_id: 1
        every: 5s
        points: &points {t: {input: 0, as: int16}}
      d2: {<<: *base, unit_id: 2, type: meter}
      d3: {<<: [{unit_id: 3}, *base], every: 7s}
      d4: {unit_id: 4, points: *points}
`)
	for id, every := range map[string]time.Duration{"d1": 5 * time.Second, "d2": 5 * time.Second, "d3": 7 * time.Second, "d4": time.Second} {
		_, d := device(t, c, id)
		want(t, id, []any{d.Every, int(d.UnitID), len(d.Points)}, []any{every, int(id[1] - '0'), 1})
	}
}

// A file without the part that a bridge's topic has a level for is right as long as
// no bridge does.
func TestNamesNotNeeded(t *testing.T) {
	c := mustParse(t, `
broker: {}
adapters: {talkers: {mqtt: local, devices: {ts-1: {}, "ts-*": {}}}}
bridges: {b: {upstream: mqtts://u.example.com, topic: "up/{gateway}/{device}/{data}"}}
`)
	want(t, "devices", len(c.Adapters[0].Devices), 2)
}

func TestLoadMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "site.yaml")
	c, ps := Load(path, Options{})
	if c != nil || len(ps) != 1 || ps[0].String() != path+":1:1: the file is not there" {
		t.Errorf("%v", ps)
	}
}

// The bound that was hit is named.
func TestBoundNamed(t *testing.T) {
	for text, first := range map[string]string{
		strings.Repeat("[", 200_000):                     "1:1: the file has more than 150000 lines, brackets, commas, colons and other marks; " + shorter,
		strings.Repeat("[", 10_000):                      "1:49: more than 48 maps and lists inside each other",
		"a:\n" + strings.Repeat("  - x\n", 460_000/6):    "75001:1: the file has more than 150000 lines, brackets, commas, colons and other marks; " + shorter,
		"a: [" + strings.Repeat("word, ", 460_000/6):     "1:239997: the file has more than 80000 tokens, which are keys, values, brackets, commas and hyphens; " + shorter,
		numbered(5_000, "k%: 1\n"):                       "4001:6: more than 4000 keys in one map; use ranges, or more than one adapter",
		strings.Repeat("# a long line\n", maxFile/14+10): "1:1: the file is larger than 512 KiB",
	} {
		c, ps := Parse("f", []byte(text), Options{})
		if c != nil || len(ps) != 1 {
			t.Errorf("%d problems: %s", len(ps), problems(ps))
			continue
		}
		want(t, text[:10], ps[0].String(), "f:"+first)
	}
}

// numbered is a text for each number, with % for it.
func numbered(n int, text string) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.ReplaceAll(text, "%", fmt.Sprint(i)))
	}
	return b.String()
}

func TestHostName(t *testing.T) {
	for name, id := range map[string]string{"Edge-7.example.com": "edge-7", "a b": "a-b", "-x-": "x", "": "", "status": "gateway", "ÄÖ": "gateway"} {
		if got := hostName(name); got != id && name != "" || nameError(got, "id") != "" {
			t.Errorf("%q: %q", name, got)
		}
	}
}

// A file that an editor of another system wrote is read like any other.
func TestLineEnds(t *testing.T) {
	path := example(t)
	plain, _ := Load(path, Options{})
	data, err := readFile(path, maxFile, false)
	if err != nil {
		t.Fatal(err)
	}
	other := "\ufeff" + strings.TrimRight(strings.ReplaceAll(string(data), "\n", "\r\n"), "\r\n")
	c, ps := Parse(path, []byte(other), Options{})
	if c == nil {
		t.Fatal(problems(ps))
	}
	want(t, "the last place", c.Buffer.Pos, plain.Buffer.Pos)
	_, scale := device(t, c, "scale-0001")
	_, same := device(t, plain, "scale-0001")
	want(t, "the request", scale.Request, same.Request)
	want(t, "the place of a point", point(t, scale, "tare").Pos, point(t, same, "tare").Pos)
}
