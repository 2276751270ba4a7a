//go:build interop

package conformance

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// authority is a folder with what openssl has made in it: ca.pem, and pairs.
type authority struct {
	t   *testing.T
	dir string
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t, t.TempDir()}
	a.openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30", "-subj", "/CN=test ca", "-keyout", "ca.key", "-out", "ca.pem")
	return a
}

func (a *authority) openssl(args ...string) {
	a.t.Helper()
	cmd := exec.Command("openssl", args...)
	cmd.Dir = a.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		a.t.Fatalf("openssl %q: %v\n%s", args, err, out)
	}
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

// issue makes file.pem and file.key for a name.
func (a *authority) issue(file, name string) {
	a.t.Helper()
	if err := os.WriteFile(a.path("ext"), []byte("subjectAltName=DNS:localhost,IP:127.0.0.1\n"), 0o600); err != nil {
		a.t.Fatal(err)
	}
	a.openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN="+name, "-keyout", file+".key", "-out", file+".csr")
	a.openssl("x509", "-req", "-in", file+".csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30", "-extfile", "ext", "-out", file+".pem")
}

// secure runs a broker with a listener of each kind, and returns their ports.
func secure(t *testing.T, a *authority) map[string]int {
	t.Helper()
	ports := make(map[string]int)
	var listeners strings.Builder
	server := fmt.Sprintf("cert: %q, key: %q", a.path("server.pem"), a.path("server.key"))
	mutual := server + fmt.Sprintf(", client_ca: %q, require_client_cert: true, identity: cn", a.path("ca.pem"))
	for _, l := range []struct{ name, more string }{
		{"tls", "tls: {" + server + "}"},
		{"mtls", "tls: {" + mutual + "}"},
		{"ws", "websocket: /mqtt"},
		{"wss", "websocket: /mqtt, tls: {" + server + "}"},
		{"mwss", "websocket: /mqtt, tls: {" + mutual + "}"},
	} {
		port, err := freePort()
		if err != nil {
			t.Fatal(err)
		}
		ports[l.name] = port
		fmt.Fprintf(&listeners, "    - {name: %s, listen: \"127.0.0.1:%d\", %s}\n", l.name, port, l.more)
	}
	dir := t.TempDir()
	site := filepath.Join(dir, "site.yaml")
	text := "gateway: {id: secure, data_dir: data, log: {level: warn}}\nbroker:\n  allow_anonymous: true\n  listeners:\n" + listeners.String()
	if err := os.WriteFile(site, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd := exec.Command(fieldferry, "run", site)
	cmd.Stdout, cmd.Stderr = &said, &said
	dieWithParent(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("what the broker said:\n%s", said.String())
		}
	})
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		nc, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports["mwss"]))
		if err == nil {
			_ = nc.Close()
			return ports
		}
		if time.Now().After(deadline) {
			t.Fatal("the broker does not listen")
		}
	}
}

// TestInteropSecure lets mosquitto_sub and mqtt.js talk over TLS, with certificates of
// their own, and over WebSocket.
func TestInteropSecure(t *testing.T) {
	if *peer != "fieldferry" {
		t.Skip("is about our listeners")
	}
	a := newAuthority(t)
	a.issue("server", "server")
	a.issue("client", "alice")
	ports := secure(t, a)
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		var clients []struct {
			name string
			library
		}
		for _, l := range []struct {
			name, protocol string
			mutual         bool
		}{{"tls", "mqtts", false}, {"mtls", "mqtts", true}, {"ws", "ws", false}, {"wss", "wss", false}, {"mwss", "wss", true}} {
			way := map[string]string{"protocol": l.protocol}
			if l.name != "ws" {
				way["ca"] = a.path("ca.pem")
			}
			if l.mutual {
				way["cert"], way["key"] = a.path("client.pem"), a.path("client.key")
			}
			if strings.HasPrefix(l.protocol, "ws") {
				way["path"] = "/mqtt"
			}
			raw, err := json.Marshal(way)
			if err != nil {
				t.Fatal(err)
			}
			cache, err := os.UserCacheDir()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("node", "testdata/mqttjs_peer.js")
			cmd.Env = append(os.Environ(), "NODE_PATH="+filepath.Join(cache, "fieldferry", "peers", "node_modules"), "MQTTJS_WAY="+string(raw))
			c := command(t, &broker{port: ports[l.name]}, v, cmd)
			if _, err := c.connect("js-"+l.name, false, nil); err != nil {
				t.Fatalf("mqtt.js over %s: %v", l.name, err)
			}
			if err := c.subscribe("secure/#", 2); err != nil {
				t.Fatalf("mqtt.js over %s: %v", l.name, err)
			}
			clients = append(clients, struct {
				name string
				library
			}{l.name, c})
		}
		for qos, from := range clients {
			n := note{Topic: "secure/" + from.name, Payload: strings.Repeat("0123456789", 5_000), QoS: byte(qos % 3)}
			if err := from.publish(n); err != nil {
				t.Fatalf("mqtt.js over %s: %v", from.name, err)
			}
			for _, to := range clients {
				if got, err := to.next(); err != nil || got.Topic != n.Topic || got.Payload != n.Payload || got.QoS != n.QoS {
					t.Errorf("from %s to %s: %d bytes of %s, %v", from.name, to.name, len(got.Payload), got.Topic, err)
				}
			}
		}
		for _, c := range clients {
			if err := c.disconnect(); err != nil {
				t.Errorf("mqtt.js over %s: %v", c.name, err)
			}
		}
		for _, l := range []string{"tls", "mtls"} {
			args := []string{"-h", "localhost", "-p", strconv.Itoa(ports[l]), "-V", map[packet.Version]string{packet.V311: "mqttv311", packet.V5: "mqttv5"}[v], "--cafile", a.path("ca.pem")}
			if l == "mtls" {
				if out, err := exec.Command("/usr/bin/mosquitto_sub", append(args, "-t", "x", "-E")...).CombinedOutput(); err == nil {
					t.Errorf("mosquitto_sub is let in without a certificate: %s", out)
				}
				args = append(args, "--cert", a.path("client.pem"), "--key", a.path("client.key"))
			}
			if out, err := exec.Command("/usr/bin/mosquitto_pub", append(args, "-q", "2", "-r", "-t", "m/"+l, "-m", "over "+l)...).CombinedOutput(); err != nil {
				t.Fatalf("mosquitto_pub over %s: %v\n%s", l, err, out)
			}
			out, err := exec.Command("/usr/bin/mosquitto_sub", append(args, "-q", "2", "-t", "m/"+l, "-C", "1", "-W", "10", "-F", "%q %r %p")...).CombinedOutput()
			if want := "2 1 over " + l + "\n"; err != nil || string(out) != want {
				t.Errorf("mosquitto_sub over %s: %q, %v", l, out, err)
			}
		}
	}
}

// TestInteropCertificatesReplaced replaces the server's certificate while clients are
// connected: nobody is cut, and who comes sees the new one. Half a file changes nothing.
func TestInteropCertificatesReplaced(t *testing.T) {
	if *peer != "fieldferry" {
		t.Skip("is about our listeners")
	}
	a := newAuthority(t)
	a.issue("server", "first")
	ports := secure(t, a)
	ca, err := os.ReadFile(a.path("ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	shown := func(listener string) string {
		t.Helper()
		c, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[listener]), &tls.Config{RootCAs: pool, ServerName: "localhost"})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	sub := exec.Command("/usr/bin/mosquitto_sub", "-h", "localhost", "-p", strconv.Itoa(ports["tls"]), "--cafile", a.path("ca.pem"), "-q", "1", "-t", "t", "-C", "3", "-W", "60")
	var got bytes.Buffer
	sub.Stdout, sub.Stderr = &got, &got
	dieWithParent(sub)
	if err := sub.Start(); err != nil {
		t.Fatal(err)
	}
	publish := func(text string) {
		t.Helper()
		out, err := exec.Command("/usr/bin/mosquitto_pub", "-h", "localhost", "-p", strconv.Itoa(ports["tls"]), "--cafile", a.path("ca.pem"), "-q", "1", "-t", "t", "-r", "-m", text).CombinedOutput()
		if err != nil {
			t.Fatalf("mosquitto_pub: %v\n%s", err, out)
		}
	}
	publish("1") // retained, so it comes whenever the subscriber does
	replace := func(file, with string) {
		t.Helper()
		raw, err := os.ReadFile(a.path(with))
		if err == nil {
			err = os.WriteFile(a.path(file), raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	await := func(listener, want string) {
		t.Helper()
		var last string
		for deadline := time.Now().Add(patience); last != want; time.Sleep(50 * time.Millisecond) {
			if last = shown(listener); last != want && time.Now().After(deadline) {
				t.Fatalf("%s shows %q, want %q", listener, cmp.Or(last, "nothing"), want)
			}
		}
	}
	a.issue("next", "second")
	raw, err := os.ReadFile(a.path("next.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.path("server.pem"), raw[:len(raw)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(2500 * time.Millisecond); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		for _, listener := range []string{"tls", "wss"} { // the files are looked at once a second
			if got := shown(listener); got != "first" {
				t.Fatalf("with half a file %s shows %q", listener, got)
			}
		}
	}
	publish("2")
	replace("server.key", "next.key")
	replace("server.pem", "next.pem")
	await("tls", "second")
	await("wss", "second")
	publish("3")
	if err := sub.Wait(); err != nil || got.String() != "1\n2\n3\n" {
		t.Errorf("the subscriber that was there all the time got %q, %v", got.String(), err)
	}
}
