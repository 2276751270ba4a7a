//go:build interop

package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// numbered publishes numbered messages at a rate until it is told to stop.
type numbered struct {
	stop chan bool
	n    chan int // how many were published and acknowledged
}

// feed publishes to a local broker with QoS 1.
func feed(t *testing.T, port, perSecond int, topic string) *numbered {
	t.Helper()
	pub := exec.Command("mosquitto_pub", "-h", "127.0.0.1", "-p", fmt.Sprint(port), "-i", "feeder", "-q", "1", "-l", "-t", topic)
	in, err := pub.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := launch(t, pub)
	f := &numbered{stop: make(chan bool), n: make(chan int, 1)}
	go func() {
		n := 0
		w := bufio.NewWriter(in)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for stopped := false; !stopped; {
			select {
			case <-tick.C:
				for range perSecond / 50 {
					n++
					fmt.Fprintf(w, "%d %s\n", n, strings.Repeat("x", 150))
				}
				if w.Flush() != nil {
					stopped = true
				}
			case <-f.stop:
				stopped = true
			}
		}
		in.Close()
		<-p.done // it ends when all are acknowledged
		f.n <- n
	}()
	return f
}

// end stops publishing and returns how many there were.
func (f *numbered) end() int {
	close(f.stop)
	return <-f.n
}

// counted is what a subscriber got of numbered messages.
type counted struct {
	mu  sync.Mutex // guards got
	got []int
}

// count subscribes at an upstream. QoS 0 leaves nothing of the subscriber's unread in an
// upstream that is killed, so that TCP brings all that it sent.
func (c *counted) count(t *testing.T, port, qos int, topic string) *peer {
	t.Helper()
	sub := exec.Command("mosquitto_sub", "-h", "127.0.0.1", "-p", fmt.Sprint(port), "-V", "5", "-q", fmt.Sprint(qos), "-t", topic, "-F", "%p")
	pipe, err := sub.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	ready := exec.Command("mosquitto_pub", "-h", "127.0.0.1", "-p", fmt.Sprint(port), "-t", topic, "-r", "-m", "0 ready")
	if out, err := ready.CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_pub: %v\n%s", err, out)
	}
	p := launch(t, sub)
	began := make(chan bool)
	go func() {
		once := sync.OnceFunc(func() { close(began) })
		for s := bufio.NewScanner(pipe); s.Scan(); {
			var n int
			if fmt.Sscan(s.Text(), &n); n == 0 { // the retained one: the subscription is there
				once()
				continue
			}
			c.mu.Lock()
			c.got = append(c.got, n)
			c.mu.Unlock()
		}
	}()
	select {
	case <-began:
	case <-time.After(20 * time.Second):
		t.Fatal("the subscriber gets nothing")
	}
	return p
}

// result says how many different numbers up to n came, how many twice, and how many
// after a higher one.
func (c *counted) result(n int) (distinct, twice, disorder int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen, last := make(map[int]bool), 0
	for _, m := range c.got {
		switch {
		case m < 1 || m > n:
		case seen[m]:
			twice++
		default:
			if m < last {
				disorder++
			}
			seen[m], last = true, max(last, m)
		}
	}
	return len(seen), twice, disorder
}

// awaitAll waits until all of n have come, and a little for more of them.
func (c *counted) awaitAll(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if distinct, _, _ := c.result(n); distinct == n {
			break
		}
	}
	time.Sleep(time.Second) // for one too many
}

// drained waits until nothing is stored, ends the gateway, and holds its ledger against
// what was published.
func drained(t *testing.T, g *peer, data string, n int) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		if l := bridgeLedger(t, data); l.Stored == 0 || time.Now().After(deadline) {
			break
		}
	}
	g.end(os.Interrupt)
	l := bridgeLedger(t, data)
	t.Logf("ledger %+v", l)
	if l.Difference() != 0 || l.Accepted < uint64(n) || l.Stored != 0 || l.Uncertain != 0 || l.Parked != 0 {
		t.Errorf("ledger %+v of %d", l, n)
	}
}

// TestInteropRotation replaces the gateway's certificate twenty times under load: every
// time the connection is made anew with the same session, nothing is lost and with QoS 2
// nothing comes twice.
func TestInteropRotation(t *testing.T) {
	const rotations = 20
	bin := buildFieldferry(t)
	p := newPKI(t, "site ca")
	p.issue("server", thisHost)
	renew := func(i int) {
		p.issue(fmt.Sprintf("gw-%d", i), thisHost, "-days", fmt.Sprint(40+i))
		for _, ext := range []string{".crt", ".key"} { // not at one stroke
			text, err := os.ReadFile(p.path(fmt.Sprintf("gw-%d%s", i, ext)))
			if err != nil {
				t.Fatal(err)
			}
			p.write("gw"+ext, string(text))
		}
	}
	renew(0)
	m := mosquittoWith(t, fmt.Sprintf("per_listener_settings true\nlistener %d 127.0.0.1\nallow_anonymous true\nmax_inflight_messages 0\nmax_queued_messages 0\n%s", freePort(t), p.secured("server")))
	plain := plainPort(t, m)
	const topic = "acme/works/hall-1/meter/m-1/telemetry"
	got := &counted{}
	got.count(t, plain, 1, topic)
	local := freePort(t)
	data := t.TempDir()
	g, log := runSite(t, bin, fmt.Sprintf(`
gateway: {id: gw-1, org: acme, site: works, zone: hall-1, data_dir: %q}
broker: {listeners: [{name: main, listen: "127.0.0.1:%d"}]}
adapters: {talkers: {mqtt: local, devices: {m-1: {type: meter}}}}
bridges:
  cloud:
    upstream: "mqtts://127.0.0.1:%d"
    tls: {ca: %q, cert: %q, key: %q, min_version: "1.3"}
    data: {telemetry: {qos: 2}}
`, data, local, m.port, p.path("ca.crt"), p.path("gw.crt"), p.path("gw.key")))
	awaitPort(t, local)
	log.await(t, "upstream connected")
	f := feed(t, local, 500, "devices/m-1/telemetry")
	connected := func() int { return strings.Count(log.String(), "upstream connected") }
	for i := 1; i <= rotations; i++ {
		before := connected()
		renew(i)
		for deadline := time.Now().Add(30 * time.Second); connected() == before; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("rotation %d is not taken:\n%s", i, log)
			}
		}
	}
	n := f.end()
	got.awaitAll(t, n)
	distinct, twice, disorder := got.result(n)
	kept := strings.Count(log.String(), "session_present=true")
	t.Logf("%d of %d came, %d twice, %d out of order; %d connections, %d with the session kept", distinct, n, twice, disorder, connected(), kept)
	if distinct != n || twice != 0 || disorder != 0 || kept != connected()-1 || kept < rotations {
		t.Errorf("%d of %d came, %d twice, %d out of order; %d of %d connections had the session", distinct, n, twice, disorder, kept, connected())
	}
	drained(t, g, filepath.Join(data, "buffer"), n)
}

// plainPort is that of the first listener of a Mosquitto.
func plainPort(t *testing.T, m *mosquitto) (port int) {
	t.Helper()
	text, err := os.ReadFile(m.conf)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "listener ")
	if _, err := fmt.Sscan(rest, &port); err != nil {
		t.Fatal(err)
	}
	awaitPort(t, port)
	return port
}

// TestInteropWebSocket: the bridge reaches Mosquitto over WebSocket, with TLS and
// without, and over two connections.
func TestInteropWebSocket(t *testing.T) {
	bin := buildFieldferry(t)
	p := newPKI(t, "site ca")
	p.issue("server", thisHost)
	p.issue("gw", thisHost)
	for _, scheme := range []string{"ws", "wss"} {
		t.Run(scheme, func(t *testing.T) {
			listener := "listener {port} 127.0.0.1\nallow_anonymous true\nprotocol websockets\n"
			keys := ""
			if scheme == "wss" {
				listener = p.secured("server") + "protocol websockets\n"
				keys = fmt.Sprintf("tls: {ca: %q, cert: %q, key: %q}", p.path("ca.crt"), p.path("gw.crt"), p.path("gw.key"))
			}
			m := mosquittoWith(t, fmt.Sprintf("per_listener_settings true\nlistener %d 127.0.0.1\nallow_anonymous true\nmax_inflight_messages 0\nmax_queued_messages 0\n%s", freePort(t), listener))
			got := &counted{}
			got.count(t, plainPort(t, m), 1, "acme/works/hall-1/meter/m-1/telemetry")
			local := freePort(t)
			data := t.TempDir()
			g, log := runSite(t, bin, fmt.Sprintf(`
gateway: {id: gw-1, org: acme, site: works, zone: hall-1, data_dir: %q}
broker: {listeners: [{name: main, listen: "127.0.0.1:%d"}]}
adapters: {talkers: {mqtt: local, devices: {m-1: {type: meter}}}}
bridges:
  cloud:
    upstream: "%s://127.0.0.1:%d/mqtt?x=y"
    connections: 2
    data: {telemetry: {qos: 2}}
    %s
`, data, local, scheme, m.port, keys))
			awaitPort(t, local)
			log.await(t, "upstream connected")
			f := feed(t, local, 2000, "devices/m-1/telemetry")
			time.Sleep(3 * time.Second) // of load
			n := f.end()
			got.awaitAll(t, n)
			distinct, twice, disorder := got.result(n)
			t.Logf("%d of %d came, %d twice, %d out of order", distinct, n, twice, disorder)
			if distinct != n || twice != 0 || disorder != 0 {
				t.Errorf("%d of %d came, %d twice, %d out of order", distinct, n, twice, disorder)
			}
			drained(t, g, filepath.Join(data, "buffer"), n)
		})
	}
}

// TestInteropHAProxy: two Mosquittos with TLS stand behind HAProxy, which passes TLS on.
// One after the other is killed under load; nothing is lost.
func TestInteropHAProxy(t *testing.T) {
	bin := buildFieldferry(t)
	p := newPKI(t, "site ca")
	p.issue("server", thisHost)
	p.issue("gw", thisHost)
	const topic = "acme/works/hall-1/meter/m-1/telemetry"
	got := &counted{}
	var nodes []*mosquitto
	var plain []int
	var subs []*peer
	for range 2 {
		m := mosquittoWith(t, fmt.Sprintf("per_listener_settings true\nlistener %d 127.0.0.1\nallow_anonymous true\nmax_inflight_messages 0\nmax_queued_messages 0\n%s", freePort(t), p.secured("server")))
		nodes, plain = append(nodes, m), append(plain, plainPort(t, m))
		subs = append(subs, got.count(t, plain[len(plain)-1], 0, topic))
	}
	front := freePort(t)
	conf := filepath.Join(t.TempDir(), "haproxy.cfg")
	text := fmt.Sprintf(`
global
  maxconn 100
defaults
  mode tcp
  timeout connect 2s
  timeout client 60s
  timeout server 60s
listen mqtt
  bind 127.0.0.1:%d
  balance first
  option redispatch
  server a 127.0.0.1:%d check inter 200ms fall 2 rise 2 on-marked-down shutdown-sessions
  server b 127.0.0.1:%d check inter 200ms fall 2 rise 2 on-marked-down shutdown-sessions
`, front, nodes[0].port, nodes[1].port)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/sbin/haproxy", "-db", "-f", conf)
	cmd.Stderr = io.Discard
	launch(t, cmd)
	awaitPort(t, front)
	local := freePort(t)
	data := t.TempDir()
	site := fmt.Sprintf(`
gateway: {id: gw-1, org: acme, site: works, zone: hall-1, data_dir: %q}
broker: {listeners: [{name: main, listen: "127.0.0.1:%d"}]}
adapters: {talkers: {mqtt: local, devices: {m-1: {type: meter}}}}
bridges:
  cloud:
    upstream: "mqtts://localhost:%d"
    backoff: {first: 100ms, max: 500ms}
    tls: {ca: %q, cert: %q, key: %q}
`, data, local, front, p.path("ca.crt"), p.path("gw.crt"), p.path("gw.key"))
	g, log := runSite(t, bin, site)
	awaitPort(t, local)
	log.await(t, "upstream connected")
	f := feed(t, local, 1000, "devices/m-1/telemetry")
	connected := func() int { return strings.Count(log.String(), "upstream connected") }
	for _, victim := range []int{0, 1} {
		time.Sleep(2 * time.Second) // of load
		before := connected()
		nodes[victim].end(os.Kill)
		for deadline := time.Now().Add(30 * time.Second); connected() == before; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("no connection after node %d was killed:\n%s", victim, log)
			}
		}
		if victim == 0 { // it is back before the other is killed
			subs[0].end(os.Kill) // or it comes back as well
			nodes[0].start()
			got.count(t, plain[0], 0, topic)
			time.Sleep(time.Second)
		}
	}
	time.Sleep(2 * time.Second) // of load
	n := f.end()
	got.awaitAll(t, n)
	distinct, twice, _ := got.result(n)
	t.Logf("%d of %d came, %d twice; %d connections", distinct, n, twice, connected())
	if distinct != n {
		t.Errorf("%d of %d came", distinct, n)
	}
	drained(t, g, filepath.Join(data, "buffer"), n)
	// Independent nodes under several URLs cannot give exactly once, and check says so.
	several := strings.Replace(site, `"mqtts://localhost:`, `["mqtts://127.0.0.1:8883", "mqtts://localhost:`, 1)
	several = strings.Replace(several, fmt.Sprintf("%d\"\n    backoff", front), fmt.Sprintf("%d\"]\n    backoff", front), 1)
	path := filepath.Join(t.TempDir(), "site.yaml")
	if err := os.WriteFile(path, []byte(several), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(bin, "check", path).CombinedOutput()
	if err != nil || !slices.ContainsFunc(strings.Split(string(out), "\n"), func(s string) bool {
		return strings.Contains(s, "warning: several upstreams must be nodes of one cluster") && strings.Contains(s, "cannot give exactly once")
	}) {
		t.Errorf("check: %v\n%s", err, out)
	}
}

// TestInteropProxy: all four ways lead through an HTTP proxy that wants a password, and
// what that refuses is told.
func TestInteropProxy(t *testing.T) {
	bin := buildFieldferry(t)
	p := newPKI(t, "site ca")
	p.issue("server", thisHost)
	p.issue("gw", thisHost)
	ports := make(map[string]int)
	for scheme, conf := range map[string]string{
		"mqtt":  "listener {port} 127.0.0.1\nallow_anonymous true\n",
		"ws":    "listener {port} 127.0.0.1\nallow_anonymous true\nprotocol websockets\n",
		"mqtts": p.secured("server"),
		"wss":   p.secured("server") + "protocol websockets\n",
	} {
		// With WebSocket alone, Mosquitto 2.0.11 thinks that it has no listener.
		conf = fmt.Sprintf("per_listener_settings true\nlistener %d 127.0.0.1\nallow_anonymous true\n%s", freePort(t), conf)
		ports[scheme] = mosquittoWith(t, conf).port
	}
	gone, closed, at := freePort(t), freePort(t), freePort(t)
	conf := filepath.Join(t.TempDir(), "tinyproxy.conf")
	text := fmt.Sprintf("Port %d\nListen 127.0.0.1\nTimeout 600\nAllow 127.0.0.1\nMaxClients 50\nLogLevel Critical\nBasicAuth bob s3cret\nConnectPort %d\n", at, gone)
	for _, port := range ports {
		text += fmt.Sprintf("ConnectPort %d\n", port)
	}
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("tinyproxy", "-d", "-c", conf)
	launch(t, cmd)
	awaitPort(t, at)
	keys := fmt.Sprintf(", tls: {ca: %q, cert: %q, key: %q}", p.path("ca.crt"), p.path("gw.crt"), p.path("gw.key"))
	for _, tt := range []struct {
		name, url, user, more, want string
	}{
		{"mqtt", fmt.Sprintf("mqtt://localhost:%d", ports["mqtt"]), "bob:s3cret@", "", "upstream connected"},
		{"mqtts", fmt.Sprintf("mqtts://localhost:%d", ports["mqtts"]), "bob:s3cret@", keys, "upstream connected"},
		{"ws", fmt.Sprintf("ws://localhost:%d/mqtt", ports["ws"]), "bob:s3cret@", "", "upstream connected"},
		{"wss", fmt.Sprintf("wss://localhost:%d/mqtt", ports["wss"]), "bob:s3cret@", keys, "upstream connected"},
		{"wrong password", fmt.Sprintf("mqtt://localhost:%d", ports["mqtt"]), "bob:wrong@", "", "does not let us in: give the right user and password"},
		{"no password", fmt.Sprintf("mqtt://localhost:%d", ports["mqtt"]), "", "", "does not let us in: give the right user and password"},
		{"a port that it does not allow", fmt.Sprintf("mqtt://localhost:%d", closed), "bob:s3cret@", "", "does not allow connections to localhost"},
		{"nobody there", fmt.Sprintf("mqtt://localhost:%d", gone), "bob:s3cret@", "", "does not reach localhost"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g, log := runSite(t, bin, fmt.Sprintf(`
gateway: {id: gw-1, org: acme, site: works, zone: hall-1, data_dir: %q}
broker: {listeners: [{name: main, listen: "127.0.0.1:0"}]}
bridges: {cloud: {upstream: %q, proxy: "http://%s127.0.0.1:%d"%s}}
`, t.TempDir(), tt.url, tt.user, at, tt.more))
			log.await(t, tt.want)
			g.end(os.Interrupt)
			if strings.Contains(log.String(), "s3cret") {
				t.Errorf("the log has the password:\n%s", log)
			}
			for line := range strings.Lines(log.String()) {
				if strings.Contains(line, "upstream connection failed") {
					t.Log(line)
				}
			}
		})
	}
}
