//go:build interop

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// uaPeer is an OPC UA server on node-opcua.
type uaPeer struct {
	*peer
	options string
}

func startUA(t *testing.T, options string) *uaPeer {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("node", "../../adapters/opcua/testdata/nodeopcua_server.js", options)
	cmd.Env = append(os.Environ(), "NODE_PATH="+filepath.Join(cache, "fieldferry", "opcua-peers", "node_modules"))
	if _, err := cmd.StdinPipe(); err != nil { // it ends with us
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := launch(t, cmd)
	for r := bufio.NewScanner(out); r.Scan(); {
		if r.Text() == "ready" {
			return &uaPeer{p, options}
		}
	}
	t.Fatal("the server does not start; .ci/peers installs it")
	return nil
}

// TestInteropOPCUA does what an operator does: browses a server, pastes the profile,
// runs the gateway, trusts the server, reads, writes by command, and has the server
// killed and started again.
func TestInteropOPCUA(t *testing.T) {
	bin, dir := buildFieldferry(t), t.TempDir()
	uaPort, brokerPort := freePort(t), freePort(t)
	options := fmt.Sprintf(`{"port":%d,"pki":%q}`, uaPort, filepath.Join(dir, "pki"))
	server := startUA(t, options)
	endpoint := fmt.Sprintf("opc.tcp://127.0.0.1:%d", uaPort)
	fieldferry := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(bin, args...).Output()
		if err != nil {
			t.Fatalf("fieldferry %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	profile := fieldferry("browse", endpoint, "--node", "nsu=urn:acme:press;s=Press", "--yaml")
	profile = strings.Replace(profile, `setpoint: {node: "Setpoint"}`, `setpoint: {node: "Setpoint", write: {max: 30}}`, 1)
	profile = strings.Replace(profile, "      # add: ", "      add: ", 1)
	site := filepath.Join(dir, "site.yaml")
	text := fmt.Sprintf(`gateway: {id: gw-ua}
broker: {listeners: [{name: plain, listen: "127.0.0.1:%d"}]}
adapters:
  press:
    opcua: %s
    security: {policy: Aes256_Sha256_RsaPss, mode: SignAndEncrypt, cert: ua/own.crt, key: ua/own.key, trust: ua/trusted}
    user: {name: gateway, password: secret}
    devices: {press-1: {profile: server}}
%s`, brokerPort, endpoint, profile)
	if err := os.WriteFile(site, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	fieldferry("check", site)
	gateway := startPeer(t, bin, "run", site)
	awaitPort(t, brokerPort)
	broker := fmt.Sprintf("mqtt://127.0.0.1:%d", brokerPort)
	tail := exec.Command(bin, "tail", "-b", broker, "--json", "devices/#")
	out, err := tail.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	launch(t, tail)
	lines := make(chan string, 10_000)
	go func() { // ends with the process
		for r := bufio.NewScanner(out); r.Scan(); {
			lines <- r.Text()
		}
	}()
	var seen []string
	mark := 0 // what came before it does not count
	await := func(what string, fits func(string) bool) {
		t.Helper()
		deadline := time.After(60 * time.Second)
		for i := mark; ; i++ {
			for i >= len(seen) {
				select {
				case l := <-lines:
					seen = append(seen, l)
				case <-deadline:
					t.Fatalf("waited in vain for %s; last came %q", what, seen[max(0, len(seen)-3):])
				}
			}
			if fits(seen[i]) {
				return
			}
		}
	}
	has := func(words ...string) func(string) bool {
		return func(line string) bool {
			for _, w := range words {
				if !strings.Contains(line, w) {
					return false
				}
			}
			return true
		}
	}
	await("the device to be offline, as its server is not trusted", has("devices/press-1/status", "offline", "certificate-untrusted"))
	var shown []struct{ Fingerprint, State string }
	if err := json.Unmarshal([]byte(fieldferry("opcua", "trust", site, "--json")), &shown); err != nil || len(shown) != 1 || shown[0].State != "not trusted" {
		t.Fatalf("%+v, %v", shown, err)
	}
	fieldferry("opcua", "trust", site, "press", "--fingerprint", shown[0].Fingerprint)
	await("the device to be online", has("devices/press-1/status", "online"))
	await("values", has("devices/press-1/telemetry", "int64", "9223372036854775807", "grüße"))
	command := func(payload string, answer ...string) {
		t.Helper()
		fieldferry("pub", "-b", broker, "-q", "1", "devices/press-1/commands", payload)
		await("the answer to "+payload, has(append(answer, "devices/press-1/commands/response")...))
	}
	command(`{"id":"a","action":"write","values":{"setpoint":24.5}}`, "executed", "24.5")
	command(`{"id":"b","action":"write","values":{"setpoint":31}}`, "rejected", "above its limit 30")
	command(`{"id":"c","action":"write","values":{"add":[2,40]}}`, "executed", "42")
	command(`{"id":"d","action":"write","values":{"double":1}}`, "rejected")
	mark = len(seen)
	server.end(os.Kill)
	await("all points to be bad", has("devices/press-1/telemetry", "bad", "counter", "connection-lost"))
	await("the device to be offline", has("devices/press-1/status", "offline"))
	mark = len(seen)
	startUA(t, options)
	await("the device to be online again", has("devices/press-1/status", "online"))
	await("values again", has("devices/press-1/telemetry", "counter"))
	gateway.end(os.Interrupt)
	if code := gateway.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("the gateway ended with %d", code)
	}
}
