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

	_ = tls.VersionTLS13
	_ = time.Second
}
