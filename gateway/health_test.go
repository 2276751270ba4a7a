package gateway

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fieldferry/fieldferry/gateway/health"
)

// get asks a gateway over HTTP.
func get(t *testing.T, g *Gateway, path, token string) (code int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+g.http.listener.Addr().String()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// A message goes through the broker here, and to the upstream, which is a gateway as
// well, and back; when that is gone, it is seen.
func TestHealth(t *testing.T) {
	address := freePort(t)
	_, stopUpstream := start(t, site(t, `
gateway: {id: gw-up, data_dir: %q}
broker: {listeners: [{name: main, listen: %q}]}
`, t.TempDir(), address))
	dir := t.TempDir()
	g, stop := start(t, site(t, `
gateway: {id: gw-1, org: acme, site: works, zone: hall, data_dir: %q}
http: {listen: "127.0.0.1:0", tokens: {viewer: look, admin: all}}
broker: {listeners: [{name: main, listen: "127.0.0.1:0"}]}
bridges: {cloud: {upstream: "mqtt://%s", backoff: {first: 50ms, max: 100ms}}}
`, dir, address))
	waitFor(t, "bridge up", func() bool { return g.Bridges()[0].Connected })

	report := func(token string) (r health.Report) {
		t.Helper()
		code, body := get(t, g, "/health", token)
		if err := json.Unmarshal([]byte(body), &r); err != nil || code != http.StatusOK {
			t.Fatalf("%d %s: %v", code, body, err)
		}
		return r
	}
	// A machine under load may be slow; what must not be is that nothing comes back.
	r := report("look")
	if r.Status == health.Down || r.LatencyMs < 0 || len(r.Details) != 2 || r.Details["local"].Error != "" || r.Details["bridge cloud"].Error != "" {
		t.Errorf("with everything there: %+v", r)
	}
	if r := report(""); r.Details != nil || r.Status == "" {
		t.Errorf("without a token: %+v", r)
	}
	if code, body := get(t, g, "/health", "wrong"); code != http.StatusUnauthorized || strings.Contains(body, "details") {
		t.Errorf("with a wrong token: %d %s", code, body)
	}
	for _, path := range []string{"/livez", "/readyz"} {
		if code, body := get(t, g, path, ""); code != http.StatusOK || body != "ok\n" {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	if code, _ := get(t, g, "/", "all"); code != http.StatusNotFound {
		t.Errorf("/: %d", code)
	}
	if l := g.Buffer().Stats().Ledger; l.Accepted != 0 {
		t.Errorf("the canary is in the ledger: %+v", l)
	}
	if l := g.canary.outbox.Ledger(); l.Accepted == 0 || l.Stored != 0 || l.Difference() != 0 {
		t.Errorf("the canary's own: %+v", l)
	}

	stopUpstream()
	waitFor(t, "bridge down", func() bool { return report("all").Status == health.Down })
	r = report("all")
	if d := r.Details["bridge cloud"]; r.LatencyMs != health.DownMs || d.LatencyMs != health.DownMs || !strings.HasPrefix(d.Error, "not connected: ") {
		t.Errorf("without its upstream: %+v", r)
	}
	if code, _ := get(t, g, "/readyz", ""); code != http.StatusOK { // it goes on collecting
		t.Errorf("/readyz: %d", code)
	}
	s, err := g.Status(t.Context())
	if err != nil || s.Gateway != "gw-1" || len(s.Bridges) != 1 || s.Bridges[0].Connected || s.Bridges[0].LastError == "" || s.PID != os.Getpid() {
		t.Errorf("status %+v, %v", s, err)
	}
	stop()
	if _, err := os.Stat(filepath.Join(dir, "control.sock")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

// A socket that a killed process left is in nobody's way, and one that nobody can
// have keeps no gateway from running.
func TestControlSocket(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(ControlSocket(dir), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	text := "gateway: {data_dir: %q}\nbroker: {listeners: [{name: main, listen: \"127.0.0.1:0\"}]}\n"
	g, stop := start(t, site(t, text, dir))
	if g.control == nil {
		t.Error("there is no socket")
	}
	stop()
	long := filepath.Join(t.TempDir(), strings.Repeat("x", 120))
	g, _ = start(t, site(t, text, long))
	if r, err := g.Health(t.Context()); err != nil || !r.Serves() {
		t.Errorf("%+v, %v", r, err)
	}
}
