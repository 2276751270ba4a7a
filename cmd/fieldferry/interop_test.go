//go:build interop

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
)

// A peer is a process that a test has started.
type peer struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

func startPeer(t *testing.T, name string, args ...string) *peer {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stderr = os.Stderr
	return launch(t, cmd)
}

func launch(t *testing.T, cmd *exec.Cmd) *peer {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &peer{cmd: cmd, done: make(chan struct{})}
	go func() {
		cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() { p.end(os.Kill) })
	return p
}

// end signals the process and waits for it.
func (p *peer) end(s os.Signal) {
	p.cmd.Process.Signal(s)
	<-p.done
}

// freePort is a TCP port on loopback that was free a moment ago.
func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// awaitPort waits until something listens.
func awaitPort(t *testing.T, port int) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("nothing listens on port %d", port)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// mosquitto is a Mosquitto with persistence that can be stopped and started.
type mosquitto struct {
	t    *testing.T
	conf string
	port int
	*peer
}

func newMosquitto(t *testing.T) *mosquitto {
	t.Helper()
	dir := t.TempDir()
	m := &mosquitto{t: t, conf: filepath.Join(dir, "mosquitto.conf"), port: freePort(t)}
	conf := fmt.Sprintf("listener %d 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location %s/\nmax_queued_messages 0\nmax_inflight_messages 0\nuser root\nlog_type error\n", m.port, dir)
	if err := os.WriteFile(m.conf, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	m.start()
	return m
}

func (m *mosquitto) start() {
	m.peer = startPeer(m.t, "/usr/sbin/mosquitto", "-c", m.conf)
	awaitPort(m.t, m.port)
}

func buildFieldferry(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "fieldferry")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

// arrivals is what mosquitto_sub prints, held against the numbers of the
// messages and the counters in them.
type arrivals struct {
	mu         sync.Mutex // guards what follows
	readings   int
	seen       map[string]map[uint64]bool // by topic and boot
	high       map[string]uint64
	counter    map[string]uint64 // by topic: the highest that arrived
	disordered []string
	duplicates int
}

func (a *arrivals) read(p *bufio.Scanner) {
	for p.Scan() {
		a.line(p.Text())
	}
}

// line takes "topic|gateway:… seq:origin.boot.n|payload".
func (a *arrivals) line(line string) {
	parts := strings.SplitN(line, "|", 3)
	if len(parts) != 3 {
		return
	}
	_, seq, ok := strings.Cut(parts[1], "seq:")
	if !ok {
		return // the gateway's own status
	}
	seq, _, _ = strings.Cut(seq, " ")
	i := strings.LastIndexByte(seq, '.') + 1
	n, err := strconv.ParseUint(seq[i:], 10, 64)
	if err != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	key := parts[0] + " " + seq[:i]
	if a.seen[key] == nil {
		a.seen[key] = make(map[uint64]bool)
	}
	if a.seen[key][n] {
		if strings.HasSuffix(parts[0], "/telemetry") {
			a.duplicates++
		}
		return
	}
	a.seen[key][n] = true
	if n < a.high[key] {
		a.disordered = append(a.disordered, fmt.Sprintf("%s: %d after %d", key, n, a.high[key]))
	}
	a.high[key] = max(a.high[key], n)
	var reading struct {
		Count *uint64 `json:"count"`
	}
	if json.Unmarshal([]byte(parts[2]), &reading) != nil || reading.Count == nil {
		return
	}
	a.readings++
	if *reading.Count <= a.counter[parts[0]] {
		a.disordered = append(a.disordered, fmt.Sprintf("%s: counter %d after %d", parts[0], *reading.Count, a.counter[parts[0]]))
	}
	a.counter[parts[0]] = *reading.Count
}

func (a *arrivals) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.readings
}

// distinct is how many different messages have arrived, and how many are missing
// between them.
func (a *arrivals) distinct() (n, missing uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, numbers := range a.seen {
		n += uint64(len(numbers))
		missing += a.high[key] - uint64(len(numbers))
	}
	return n, missing
}

const crossingSite = `
gateway: {id: gw-1, org: acme, site: works, zone: hall-1, data_dir: data}
broker: {listeners: [{name: plain, listen: "127.0.0.1:%d"}]}
adapters:
  line:
    modbus: "tcp://127.0.0.1:%d"
    devices:
      "counter-{1..3}":
        unit_id: "{1..3}"
        type: counter
        every: 10ms
        points:
          count: {holding: 0, as: uint32}
          ten:   {holding: 10, as: uint16}
bridges:
  cloud:
    upstream: ["mqtt://127.0.0.1:%d"]
    backoff: {first: 100ms, max: 500ms}
buffer: {linger: 50ms, min_free: 1MiB}
`

// TestInteropCrossing carries 10,000 readings of three pymodbus units to a
// Mosquitto, while the gateway is killed five times and the Mosquitto stopped
// twice. What was accepted arrives, each device in order.
func TestInteropCrossing(t *testing.T) {
	const readings, kills, stops = 10_000, 5, 2
	bin := buildFieldferry(t)
	fieldPort, brokerPort := freePort(t), freePort(t)
	startPeer(t, "/usr/bin/python3", "testdata/pymodbus_server.py", strconv.Itoa(fieldPort))
	awaitPort(t, fieldPort)
	upstream := newMosquitto(t)

	sub := exec.Command("/usr/bin/stdbuf", "-oL", "/usr/bin/mosquitto_sub", "-p", strconv.Itoa(upstream.port), "-V", "mqttv5",
		"-c", "-x", "3600", "-i", "recorder", "-q", "1", "-t", "acme/#", "-F", "%t|%P|%p")
	out, err := sub.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	sub.Stderr = os.Stderr
	launch(t, sub)
	a := &arrivals{seen: map[string]map[uint64]bool{}, high: map[string]uint64{}, counter: map[string]uint64{}}
	go a.read(bufio.NewScanner(out))

	dir := t.TempDir()
	site := filepath.Join(dir, "site.yaml")
	if err := os.WriteFile(site, fmt.Appendf(nil, crossingSite, brokerPort, fieldPort, upstream.port), 0o600); err != nil {
		t.Fatal(err)
	}
	start := func() *peer { return startPeer(t, bin, "run", "-c", site) }
	gateway := start()
	await := func(n int) {
		t.Helper()
		deadline := time.Now().Add(3 * time.Minute)
		for a.count() < n {
			if time.Now().After(deadline) {
				t.Fatalf("%d of %d readings arrived", a.count(), n)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	// What happens, evenly over the way.
	events := []func(){}
	kill := func() {
		gateway.end(os.Kill)
		gateway = start()
	}
	stop := func() {
		upstream.end(syscall.SIGTERM)
		time.Sleep(3 * time.Second) // the outage itself
		upstream.start()
	}
	killInOutage := func() {
		upstream.end(syscall.SIGTERM)
		time.Sleep(1500 * time.Millisecond)
		kill()
		time.Sleep(1500 * time.Millisecond)
		upstream.start()
	}
	events = append(events, kill, stop, kill, kill, killInOutage, kill)
	for i, event := range events {
		await((i + 1) * readings / (len(events) + 1))
		event()
	}
	await(readings)
	gateway.end(syscall.SIGTERM)
	select {
	case <-gateway.done:
	case <-time.After(15 * time.Second):
		t.Fatal("the gateway did not stop")
	}

	// What is still stored comes when the gateway runs once more; without the
	// field, so that nothing is added but statuses.
	l := ledgerOf(t, dir)
	if l.Stored > 0 {
		gateway = start()
		deadline := time.Now().Add(30 * time.Second)
		for {
			n, _ := a.distinct()
			if n >= l.Accepted {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d of %d messages arrived", n, l.Accepted)
			}
			time.Sleep(50 * time.Millisecond)
		}
		gateway.end(syscall.SIGTERM)
		l = ledgerOf(t, dir)
	}
	deadline := time.Now().Add(15 * time.Second)
	n, missing := a.distinct()
	for n < l.Accepted-l.Stored && time.Now().Before(deadline) {
		time.Sleep(50 * time.Millisecond)
		n, missing = a.distinct()
	}
	t.Logf("%d kills, %d stops: %d readings arrived, %d messages in all, %d duplicates; ledger %+v", kills, stops, a.count(), n, a.duplicates, l)
	if missing != 0 {
		t.Errorf("%d messages are missing between those that arrived", missing)
	}
	if n < l.Delivered || n > l.Accepted { // an acknowledgement may have been under way at the stop
		t.Errorf("%d messages arrived: ledger %+v", n, l)
	}
	if l.Difference() != 0 || len(l.Dropped) > 0 && sum(l.Dropped) > 0 || l.Parked != 0 {
		t.Errorf("ledger %+v", l)
	}
	if len(a.disordered) > 0 {
		t.Errorf("%d out of order, first %s", len(a.disordered), a.disordered[0])
	}
}

// ledgerOf reads the ledger of a gateway that is stopped: of its destinations. What
// the broker stores for itself, retained messages among it, is in no total.
func ledgerOf(t *testing.T, dir string) (l buffer.Ledger) {
	t.Helper()
	b, err := buffer.Open(filepath.Join(dir, "data", "buffer"), buffer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, class := range b.Stats().Classes {
		l.Add(class.Ledger)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	return l
}

// TestInteropClients lets Mosquitto's clients talk over the local broker.
func TestInteropClients(t *testing.T) {
	bin := buildFieldferry(t)
	port := freePort(t)
	dir := t.TempDir()
	site := filepath.Join(dir, "site.yaml")
	if err := os.WriteFile(site, fmt.Appendf(nil, "broker: {listeners: [{name: plain, listen: \"127.0.0.1:%d\"}]}\n", port), 0o600); err != nil {
		t.Fatal(err)
	}
	startPeer(t, bin, "run", site)
	awaitPort(t, port)
	for _, version := range []string{"mqttv311", "mqttv5"} {
		t.Run(version, func(t *testing.T) {
			topic := "plant/" + version
			pub := func(args ...string) {
				t.Helper()
				args = append([]string{"-p", strconv.Itoa(port), "-V", version, "-q", "1", "-t", topic}, args...)
				if out, err := exec.Command("/usr/bin/mosquitto_pub", args...).CombinedOutput(); err != nil {
					t.Fatalf("mosquitto_pub: %v\n%s", err, out)
				}
			}
			pub("-r", "-m", "kept")
			sub := exec.Command("/usr/bin/mosquitto_sub", "-p", strconv.Itoa(port), "-V", version, "-q", "1", "-t", "plant/+", "-T", "plant/other", "-C", "101", "-W", "20", "-F", "%t %r %p")
			out, err := sub.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			p := launch(t, sub)
			lines := bufio.NewScanner(out)
			next := func() string {
				if !lines.Scan() {
					t.Fatal("mosquitto_sub ended early")
				}
				return lines.Text()
			}
			for { // the other version's may be retained too
				if got := next(); got == topic+" 1 kept" {
					break
				}
			}
			input := exec.Command("/usr/bin/mosquitto_pub", "-p", strconv.Itoa(port), "-V", version, "-q", "1", "-t", topic, "-l")
			var text strings.Builder
			for i := range 99 {
				fmt.Fprintf(&text, "line %d\n", i)
			}
			input.Stdin = strings.NewReader(text.String())
			if out, err := input.CombinedOutput(); err != nil {
				t.Fatalf("mosquitto_pub -l: %v\n%s", err, out)
			}
			for i := range 99 {
				if got, want := next(), fmt.Sprintf("%s 0 line %d", topic, i); got != want {
					t.Fatalf("got %q, want %q", got, want)
				}
			}
			p.end(syscall.SIGTERM)
			pub("-r", "-n") // nothing is retained any more
			err = exec.Command("/usr/bin/mosquitto_sub", "-p", strconv.Itoa(port), "-V", version, "-t", topic, "-C", "1", "-W", "1").Run()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 27 { // mosquitto_sub(1): timed out
				t.Errorf("a message is retained still: %v", err)
			}
		})
	}
}
