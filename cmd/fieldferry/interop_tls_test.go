//go:build interop

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// pki is a folder of certificates made by openssl.
type pki struct {
	t   *testing.T
	dir string
}

func newPKI(t *testing.T, name string) *pki {
	t.Helper()
	p := &pki{t: t, dir: t.TempDir()}
	p.openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN="+name, "-days", "30",
		"-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
	p.write("index.txt", "")
	p.write("crlnumber", "01\n")
	p.write("serial", "1000\n")
	p.write("ca.cnf", `
[ca]
default_ca = our
[our]
dir = `+p.dir+`
database = $dir/index.txt
new_certs_dir = $dir
certificate = $dir/ca.crt
private_key = $dir/ca.key
serial = $dir/serial
crlnumber = $dir/crlnumber
default_md = sha256
default_days = 20
default_crl_days = 20
policy = any
unique_subject = no
copy_extensions = copy
[any]
commonName = supplied
`)
	p.openssl("ca", "-config", "ca.cnf", "-gencrl", "-out", "crl.pem")
	return p
}

func (p *pki) path(name string) string { return filepath.Join(p.dir, name) }

func (p *pki) write(name, text string) {
	p.t.Helper()
	if err := os.WriteFile(p.path(name), []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pki) openssl(args ...string) string {
	p.t.Helper()
	cmd := exec.Command("openssl", args...)
	cmd.Dir = p.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		p.t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// issue makes NAME.crt and NAME.key; more are options of openssl ca.
func (p *pki) issue(name, san string, more ...string) {
	p.t.Helper()
	p.openssl("req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", name+".key", "-out", name+".csr", "-subj", "/CN="+name,
		"-addext", "subjectAltName="+san, "-addext", "extendedKeyUsage=serverAuth,clientAuth")
	p.openssl(append([]string{"ca", "-config", "ca.cnf", "-batch", "-notext", "-in", name + ".csr", "-out", name + ".crt"}, more...)...)
}

func (p *pki) revoke(name string) {
	p.t.Helper()
	p.openssl("ca", "-config", "ca.cnf", "-revoke", name+".crt")
	p.openssl("ca", "-config", "ca.cnf", "-gencrl", "-out", "crl.pem")
}

const (
	thisHost = "DNS:localhost,IP:127.0.0.1"
	longAgo  = "20200101000000Z"
	lastYear = "20210101000000Z"
)

// mosquittoWith runs a Mosquitto with a configuration in which {port} is replaced.
func mosquittoWith(t *testing.T, conf string) *mosquitto {
	t.Helper()
	m := &mosquitto{t: t, conf: filepath.Join(t.TempDir(), "mosquitto.conf"), port: freePort(t)}
	conf = strings.ReplaceAll(conf, "{port}", fmt.Sprint(m.port)) + "\nuser root\nlog_type none\n"
	if err := os.WriteFile(m.conf, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	m.start()
	return m
}

// secured is the configuration of a listener that wants certificates of clients.
func (p *pki) secured(server string) string {
	return fmt.Sprintf("listener {port} 127.0.0.1\nallow_anonymous true\ncafile %s\ncertfile %s\nkeyfile %s\ncrlfile %s\nrequire_certificate true\n",
		p.path("ca.crt"), p.path(server+".crt"), p.path(server+".key"), p.path("crl.pem"))
}

// output is what a process prints.
type output struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// runSite runs a gateway until the test ends, or its peer is ended.
func runSite(t *testing.T, bin, text string) (*peer, *output) {
	t.Helper()
	site := filepath.Join(t.TempDir(), "site.yaml")
	if err := os.WriteFile(site, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "run", "-c", site)
	log := &output{}
	cmd.Stderr = log
	return launch(t, cmd), log
}

// await waits until what a gateway logs says something.
func (o *output) await(t *testing.T, want string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(o.String(), want); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the gateway never says %q, but:\n%s", want, o)
		}
	}
}

// TestInteropRefusals: whatever Mosquitto has against us, or we against it, is told in a
// sentence that says what to check.
func TestInteropRefusals(t *testing.T) {
	bin := buildFieldferry(t)
	p, other := newPKI(t, "site ca"), newPKI(t, "other ca")
	for _, name := range []string{"server", "gw", "revoked"} {
		p.issue(name, thisHost)
	}
	p.issue("old", thisHost, "-startdate", longAgo, "-enddate", lastYear)
	p.issue("early", thisHost, "-startdate", "20400101000000Z", "-enddate", "20410101000000Z")
	p.issue("elsewhere", "DNS:broker.example.com")
	other.issue("gw", thisHost)
	p.revoke("revoked")
	// What this program makes, Mosquitto takes as well.
	made := t.TempDir()
	for _, args := range [][]string{{"ca"}, {"server", "localhost", "127.0.0.1"}, {"client", "gw-made"}} {
		if out, err := exec.Command(bin, append([]string{"certs", args[0], "--dir", made}, args[1:]...)...).CombinedOutput(); err != nil {
			t.Fatalf("certs %s: %v\n%s", args[0], err, out)
		}
	}
	at := func(name string) string { return filepath.Join(made, name) }
	good := mosquittoWith(t, p.secured("server"))
	ours := mosquittoWith(t, fmt.Sprintf("listener {port} 127.0.0.1\nallow_anonymous true\ncafile %s\ncertfile %s\nkeyfile %s\nrequire_certificate true\n", at("ca.crt"), at("server.crt"), at("server.key")))
	passwords := filepath.Join(t.TempDir(), "passwd")
	if out, err := exec.Command(bin, "passwd", "-c", passwords, "bob", "-b", "right").CombinedOutput(); err != nil {
		t.Fatalf("passwd: %v\n%s", err, out)
	}
	guarded := mosquittoWith(t, "listener {port} 127.0.0.1\nallow_anonymous false\npassword_file "+passwords+"\n")
	serverPin := pinOf(t, bin, p.path("server.crt"), p.path("ca.crt"))
	tls := func(ca, cert string, more ...string) string {
		s := fmt.Sprintf("tls: {ca: %q", ca)
		if cert != "" {
			s += fmt.Sprintf(", cert: %q, key: %q", cert, strings.TrimSuffix(cert, ".crt")+".key")
		}
		return s + strings.Join(more, "") + "}"
	}
	mine := tls(p.path("ca.crt"), p.path("gw.crt"))
	for _, tt := range []struct {
		name, scheme string
		up           *mosquitto
		keys         string
		want         string // that it says
	}{
		{"good", "mqtts", good, mine, "upstream connected"},
		{"good, with TLS 1.3 and pins", "mqtts", good, tls(p.path("ca.crt"), p.path("gw.crt"), `, min_version: "1.3", pins: ["sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "`, serverPin, `"]`), "upstream connected"},
		{"good, made by fieldferry certs", "mqtts", ours, tls(at("ca.crt"), at("gw-made.crt")), "upstream connected"},
		{"an authority that we do not know", "mqtts", good, tls(other.path("ca.crt"), p.path("gw.crt")), "is signed by \\\"CN=site ca\\\", which is not trusted: check that tls.ca"},
		{"the system's authorities", "mqtts", good, "", "which is not trusted"},
		{"expired", "mqtts", mosquittoWith(t, p.secured("old")), mine, "expired on 2021-01-01 00:00 UTC"},
		{"not yet valid", "mqtts", mosquittoWith(t, p.secured("early")), mine, "is not valid before 2040-01-01 00:00 UTC"},
		{"another host", "mqtts", mosquittoWith(t, p.secured("elsewhere")), mine, "is for broker.example.com and not for 127.0.0.1"},
		{"another key", "mqtts", good, tls(p.path("ca.crt"), p.path("gw.crt"), `, pins: ["sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]`), "its own key is " + serverPin},
		{"an authority that Mosquitto does not know", "mqtts", good, tls(p.path("ca.crt"), other.path("gw.crt")), "does not know the authority of our certificate"},
		{"our certificate has expired", "mqtts", good, tls(p.path("ca.crt"), p.path("old.crt")), "our certificate has expired"},
		{"our certificate was revoked", "mqtts", good, tls(p.path("ca.crt"), p.path("revoked.crt")), "our certificate was revoked"},
		{"no certificate", "mqtts", good, tls(p.path("ca.crt"), ""), "wants a certificate of us: give it in tls.cert"},
		{"TLS to a plain port", "mqtts", guarded, mine, "check whether that port speaks TLS"},
		{"a port with TLS", "mqtt", good, "", "TLS"},
		{"a wrong password", "mqtt", guarded, "username: bob, password: wrong", "not authorised"},
		{"no password", "mqtt", guarded, "", "not authorised"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.keys != "" {
				tt.keys = ", " + tt.keys
			}
			g, log := runSite(t, bin, fmt.Sprintf(`
gateway: {id: gw-1, org: acme, site: works, zone: hall-1, data_dir: %q}
broker: {listeners: [{name: main, listen: "127.0.0.1:0"}]}
bridges: {cloud: {upstream: "%s://127.0.0.1:%d"%s}}
`, t.TempDir(), tt.scheme, tt.up.port, tt.keys))
			log.await(t, tt.want)
			g.end(os.Interrupt)
			for line := range strings.Lines(log.String()) {
				if strings.Contains(line, "upstream connection failed") {
					t.Log(line)
				}
			}
		})
	}
}

// pinOf asks the command for the pin of a certificate.
func pinOf(t *testing.T, bin, cert, ca string) string {
	t.Helper()
	out, err := exec.Command(bin, "certs", "check", cert, ca).CombinedOutput()
	if err != nil {
		t.Fatalf("certs check: %v\n%s", err, out)
	}
	_, rest, _ := strings.Cut(string(out), "pin    ")
	pin, _, _ := strings.Cut(rest, "\n")
	return pin
}
