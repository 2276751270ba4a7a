package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/bridge"
	"github.com/fieldferry/fieldferry/gateway/alarm"
	"github.com/fieldferry/fieldferry/gateway/certs/certstest"
	"github.com/fieldferry/fieldferry/gateway/config"
)

// front is TLS before an upstream, which sees who has which certificate.
type front struct {
	config *tls.Config

	mu    sync.Mutex // guards names
	names []string   // common names of those that were let in
}

func (f *front) seen() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.names)
}

// frontOf puts TLS before an upstream until the test ends.
func frontOf(t *testing.T, url string, c *tls.Config) (*front, string) {
	t.Helper()
	f := &front{config: c}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { f.carry(nc, strings.TrimPrefix(url, "mqtt://")) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return f, "mqtts://" + ln.Addr().String()
}

func (f *front) carry(nc net.Conn, to string) {
	defer nc.Close()
	c := tls.Server(nc, f.config)
	// As long as nothing is said, nobody has connected: a trial says nothing.
	first := make([]byte, 1)
	if _, err := io.ReadFull(c, first); err != nil {
		return
	}
	up, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer up.Close()
	f.mu.Lock()
	for _, cert := range c.ConnectionState().PeerCertificates[:1] {
		f.names = append(f.names, cert.Subject.CommonName)
	}
	f.mu.Unlock()
	if _, err := up.Write(first); err != nil {
		return
	}
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(c, up)
		nc.Close()
	})
	_, _ = io.Copy(up, c)
	up.Close()
	back.Wait()
}

// Certificates are replaced while the gateway runs: good ones are taken with the same
// session; those that are half written, or that the upstream does not take, are not, and
// the connection that there is stays.
func TestCertificatesAreReplaced(t *testing.T) {
	up, url := upstreamAt(t)
	ca, other := certstest.New(t, "ca"), certstest.New(t, "other")
	dir := t.TempDir()
	pool := x509.NewCertPool()
	pool.AddCert(ca.Cert)
	serverCert, serverKey := ca.Issue("server", nil)
	pair, err := tls.X509KeyPair(serverCert, serverKey)
	if err != nil {
		t.Fatal(err)
	}
	f, secure := frontOf(t, url, &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert})
	put := func(of *certstest.CA, name string) {
		cert, key := of.Issue(name, nil)
		certstest.Write(t, dir, map[string][]byte{"cert": cert, "key": key})
	}
	put(ca, "first")
	certstest.Write(t, dir, map[string][]byte{"ca": ca.PEM})
	g, stop := start(t, site(t, `
gateway: {id: gw-1, org: acme, site: works, zone: hall-1, data_dir: %q}
broker: {listeners: [{name: main, listen: "127.0.0.1:0"}]}
adapters: {talkers: {mqtt: local, devices: {"d-{1..12}": {type: meter}}}}
bridges:
  cloud:
    upstream: [%q]
    connections: 2
    backoff: {first: 10ms, max: 50ms}
    tls: {ca: %q, cert: %q, key: %q}
    data: {telemetry: {qos: 2}}
buffer: {min_free: 1MiB}
`, filepath.Join(dir, "data"), secure, filepath.Join(dir, "ca"), filepath.Join(dir, "cert"), filepath.Join(dir, "key")))
	count := func(name string) (n int) {
		for _, s := range f.seen() {
			if s == name {
				n++
			}
		}
		return n
	}
	n := 0
	flow := func() {
		t.Helper()
		publishAll(t, g, n+1, n+1)
		n++
		waitFor(t, "delivered", func() bool { return g.Bridges()[0].Ledger.Stored == 0 })
	}
	problem := func() string {
		if err := g.bridges[0].way.problem(); err != nil {
			return err.Error()
		}
		return ""
	}
	waitFor(t, "connected", func() bool { return g.Bridges()[0].Connected })
	flow()
	put(ca, "second")
	waitFor(t, "both connections are the second's", func() bool { return count("second") == 2 && g.Bridges()[0].Connected })
	flow()
	// Half written: the third has no key yet.
	cert, key := ca.Issue("third", nil)
	certstest.Write(t, dir, map[string][]byte{"cert": cert})
	waitFor(t, "they do not fit", func() bool { return strings.Contains(problem(), "does not match") })
	flow()
	certstest.Write(t, dir, map[string][]byte{"key": key})
	waitFor(t, "both connections are the third's", func() bool { return count("third") == 2 && g.Bridges()[0].Connected })
	if problem() != "" {
		t.Errorf("still a problem: %s", problem())
	}
	before := g.Bridges()[0].Connections
	put(other, "stranger")
	waitFor(t, "a refusal", func() bool { return strings.Contains(problem(), "authority of our certificate") })
	flow()
	if got := g.Bridges()[0].Connections; got != before {
		t.Errorf("%d connections were made for certificates that are refused", got-before)
	}
	// A connection that breaks now comes back with what the upstream takes.
	up.Cut()
	waitFor(t, "connected again", func() bool { return g.Bridges()[0].Connections >= before+2 && g.Bridges()[0].Connected })
	if problem() == "" || count("stranger") != 0 || count("third") < 4 {
		t.Errorf("problem %q, seen %q", problem(), f.seen())
	}
	flow()
	put(ca, "fourth")
	waitFor(t, "both connections are the fourth's", func() bool { return count("fourth") == 2 && g.Bridges()[0].Connected })
	flow()
	// Authorities that do not know the upstream: it stays connected.
	certstest.Write(t, dir, map[string][]byte{"ca": other.PEM})
	waitFor(t, "an authority is not known", func() bool { return strings.Contains(problem(), `signed by "CN=ca", which is not trusted`) })
	flow()
	wantSeries(t, up, n)
	clean := 0
	for _, c := range up.Connects() {
		if c.Packet != nil && c.Packet.CleanStart {
			clean++
		}
	}
	if clean != 2 {
		t.Errorf("%d sessions were begun by 2 connections", clean)
	}
	stop()
}

// A password that changes is used for the next connection.
func TestPasswordIsReadAfresh(t *testing.T) {
	up, url := upstreamAt(t)
	secret := filepath.Join(t.TempDir(), "token")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(secret, []byte(s+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	g, stop := start(t, site(t, `
gateway: {id: gw-1, org: acme, site: works, zone: hall-1, data_dir: %q}
broker: {listeners: [{name: main, listen: "127.0.0.1:0"}]}
bridges: {cloud: {upstream: [%q], username: gw, password: "${file:%s}", backoff: {first: 10ms, max: 50ms}}}
`, t.TempDir(), url, secret))
	for i, token := range []string{"one", "two", "three"} {
		write(token)
		if i > 0 {
			up.Cut()
		}
		waitFor(t, "a connection", func() bool { return len(up.Connects()) > i && g.Bridges()[0].Connections > uint64(i) })
	}
	stop()
	var got []string
	for _, c := range up.Connects() {
		if c.Packet != nil {
			got = append(got, string(c.Packet.Password))
		}
	}
	if len(got) < 3 || got[0] != "one" || got[len(got)-1] != "three" || !slices.Contains(got, "two") {
		t.Errorf("passwords %q", got)
	}
}

// What was chosen and what came of it, without a network.
func TestWayOutChooses(t *testing.T) {
	dir := t.TempDir()
	ca := certstest.New(t, "ca")
	put := func(name string) {
		cert, key := ca.Issue(name, nil)
		certstest.Write(t, dir, map[string][]byte{"cert": cert, "key": key, "ca": ca.PEM})
	}
	put("old")
	c := site(t, `
gateway: {id: gw-1, org: acme, site: works, zone: hall-1}
broker: {listeners: [{name: main, listen: "127.0.0.1:0"}]}
bridges: {cloud: {upstream: ["mqtts://up:8883"], tls: {ca: %q, cert: %q, key: %q}}}
`, filepath.Join(dir, "ca"), filepath.Join(dir, "cert"), filepath.Join(dir, "key"))
	w, err := openWayOut(&c.Bridges[0], discard)
	if err != nil {
		t.Fatal(err)
	}
	u := c.Bridges[0].Upstream[0]
	p := &passage{way: w}
	use := func() string {
		p.used = w.choose()
		cert, err := x509.ParseCertificate(p.used.Certificates[0].Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return cert.Subject.CommonName
	}
	expect := func(want string) {
		t.Helper()
		if got := use(); got != want {
			t.Fatalf("%q is tried, want %q", got, want)
		}
	}
	expect("old")
	p.attempted(u, refused87)
	expect("old") // there is no other
	p.attempted(u, nil)
	put("new")
	waitFor(t, "the new one", func() bool { return use() == "new" })
	p.attempted(u, io.EOF) // says nothing of it
	expect("new")
	p.attempted(u, refused87)
	expect("old")
	if w.problem() == nil {
		t.Error("nothing is said")
	}
	p.attempted(u, refused87) // not that one either
	expect("new")
	p.attempted(u, refused87)
	expect("old")
	p.attempted(u, nil)
	expect("old")
	if w.problem() == nil {
		t.Error("nothing is said any more")
	}
	p.attempted(u, refused87)
	expect("new")
	p.attempted(u, nil)
	expect("new")
	if err := w.problem(); err != nil {
		t.Error(err)
	}
}

func TestCertificateAlarms(t *testing.T) {
	ca := certstest.New(t, "ca")
	now := time.Now()
	parse := func(left time.Duration) *x509.Certificate {
		text, key := ca.Issue("gw", func(c *x509.Certificate) { c.NotAfter = now.Add(left) })
		pair, err := tls.X509KeyPair(text, key)
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf
	}
	const day = 24 * time.Hour
	engine, err := alarm.New(alarm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	defer engine.Listen(func(e alarm.Event) { told = append(told, e.Kind.String()+" "+e.Severity.String()+": "+e.Text) })()
	for _, tt := range []struct {
		left    time.Duration
		problem error
		want    string
	}{
		{100 * day, nil, ""},
		{29 * day, nil, `raised warning: the certificate of bridge/cloud expires: "CN=gw" in 29 days`},
		{6 * day, nil, `escalated critical: the certificate of bridge/cloud expires: "CN=gw" in 6 days`},
		{30 * time.Hour, nil, ""},
		{-time.Hour, nil, ""},
		{100 * day, nil, "cleared critical"},
		{100 * day, io.ErrUnexpectedEOF, ""}, // it may be half written
		{100 * day, io.ErrUnexpectedEOF, "raised critical: the certificates of bridge/cloud have changed and are not used"},
		{100 * day, nil, "cleared critical"},
	} {
		now = now.Add(time.Minute)
		look := certLook{"bridge/cloud", func() error { return tt.problem }, func() []*x509.Certificate {
			return []*x509.Certificate{parse(200 * day), parse(tt.left + time.Hour)}
		}}
		told = nil
		engine.Observe(now, look.samples(now)...)
		if got := strings.Join(told, "; "); tt.want == "" && got != "" || !strings.HasPrefix(got, tt.want) {
			t.Errorf("%v: %q, want %q", tt.left, got, tt.want)
		}
	}
}

// check tells of what is wrong with certificates before the gateway runs.
func TestCheckWayOut(t *testing.T) {
	dir := t.TempDir()
	ca := certstest.New(t, "ca")
	issue := func(name string, change func(*x509.Certificate)) {
		cert, key := ca.Issue(name, change)
		certstest.Write(t, dir, map[string][]byte{name + ".crt": cert, name + ".key": key})
	}
	issue("good", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(90 * 24 * time.Hour) })
	issue("old", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Hour) })
	issue("early", func(c *x509.Certificate) {
		c.NotBefore = time.Now().Add(time.Hour)
		c.NotAfter = time.Now().Add(99 * 24 * time.Hour)
	})
	issue("server", func(c *x509.Certificate) {
		c.NotAfter = time.Now().Add(90 * 24 * time.Hour)
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	certstest.Write(t, dir, map[string][]byte{"ca": ca.PEM})
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, tt := range []struct {
		name, bridge, want string
		mistake            bool
	}{
		{"good", `upstream: ["mqtts://up:8883"], tls: {ca: "` + at("ca") + `", cert: "` + at("good.crt") + `", key: "` + at("good.key") + `"}`, "", false},
		{"no files at all", `upstream: ["wss://up/mqtt"]`, "", false},
		{"another key", `upstream: ["mqtts://up:8883"], tls: {cert: "` + at("good.crt") + `", key: "` + at("old.key") + `"}`, "does not match", true},
		{"missing", `upstream: ["mqtts://up:8883"], tls: {ca: "` + at("none") + `"}`, "does not start without it", false},
		{"no authority", `upstream: ["mqtts://up:8883"], tls: {ca: "` + at("good.key") + `"}`, "holds no certificate", true},
		{"expired", `upstream: ["mqtts://up:8883"], tls: {cert: "` + at("old.crt") + `", key: "` + at("old.key") + `"}`, `"CN=old" has expired on`, false},
		{"not yet", `upstream: ["mqtts://up:8883"], tls: {cert: "` + at("early.crt") + `", key: "` + at("early.key") + `"}`, "is not valid before", false},
		{"for servers", `upstream: ["mqtts://up:8883"], tls: {cert: "` + at("server.crt") + `", key: "` + at("server.key") + `"}`, "clientAuth", false},
		{"proxy", `upstream: ["mqtt://up:1883"], proxy: "http://bob:secret@proxy:3128"`, "the password goes to the proxy proxy:3128 without encryption", false},
		{"mixed", `upstream: ["mqtts://up:8883", "mqtt://up:1883"], tls: {pins: ["sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]}`, "is without TLS", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []config.Problem
			for _, p := range Check(site(t, "gateway: {id: gw-1, org: acme, site: works, zone: hall-1}\nbroker: {listeners: [{name: main, listen: \"127.0.0.1:0\"}]}\nbridges:\n  cloud: {%s}\n", tt.bridge)) {
				if p.Pos.IsZero() || p.Line != 4 {
					t.Errorf("%v: where?", p)
				}
				got = append(got, p)
			}
			switch {
			case tt.want == "" && len(got) == 0:
			case len(got) != 1 || tt.want == "" || !strings.Contains(got[0].Text, tt.want) || got[0].Warning == tt.mistake:
				t.Errorf("problems %v, want %q", got, tt.want)
			case strings.Contains(got[0].Text, "secret"):
				t.Errorf("%q has the password", got[0].Text)
			}
		})
	}
}

var (
	refused87 = &bridge.ReasonError{Packet: "CONNACK", Code: 0x87}
	discard   = slog.New(slog.DiscardHandler)
)
