//go:build interop

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/gateway"
	"github.com/fieldferry/fieldferry/gateway/health"
)

// TestInteropStatus stops Mosquitto in its tracks: the connection stays, nothing comes
// back over it, and that is seen; so is that it goes on.
func TestInteropStatus(t *testing.T) {
	bin := buildFieldferry(t)
	up := newMosquitto(t)
	local := freePort(t)
	dir := t.TempDir()
	site := filepath.Join(dir, "site.yaml")
	text := fmt.Sprintf(`
gateway: {id: gw-1, org: acme, site: works, zone: hall, data_dir: data}
broker: {listeners: [{name: main, listen: "127.0.0.1:%d"}]}
bridges: {cloud: {upstream: "mqtt://127.0.0.1:%d", keepalive: 5m}}
`, local, up.port)
	if err := os.WriteFile(site, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	startPeer(t, bin, "run", site)
	awaitPort(t, local)

	// status asks until the gateway stands so.
	status := func(want health.Status) (s gateway.Status, code int) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
			cmd := exec.Command(bin, "status", "--json", site)
			out, err := cmd.Output()
			if cmd.ProcessState == nil {
				t.Fatal(err)
			}
			if jerr := json.Unmarshal(out, &s); jerr == nil && s.Health.Status == want {
				return s, cmd.ProcessState.ExitCode()
			}
			if time.Now().After(deadline) {
				t.Fatalf("never %s: %v\n%s", want, err, out)
			}
		}
	}
	if s, code := status(health.Healthy); code != 0 || !s.Bridges[0].Connected || s.Health.LatencyMs <= 0 {
		t.Errorf("exit code %d: %+v", code, s)
	}
	up.cmd.Process.Signal(syscall.SIGSTOP)
	s, code := status(health.Down)
	d := s.Health.Details["bridge cloud"]
	if code != exitNo || s.Health.LatencyMs != health.DownMs || !s.Bridges[0].Connected || !strings.HasPrefix(d.Error, "connected, and nothing comes back") {
		t.Errorf("frozen: exit code %d: %+v", code, s)
	}
	if local := s.Health.Details["local"]; local.Status == health.Down {
		t.Errorf("frozen: local %+v", local)
	}
	up.cmd.Process.Signal(syscall.SIGCONT)
	if s, code := status(health.Healthy); code != 0 || s.Bridges[0].Connections != 1 {
		t.Errorf("going on: exit code %d: %+v", code, s)
	}
}
