//go:build interop

package main

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
)

// TestInteropBridgeKilled lets 20,000 stored messages go to Mosquitto, and kills the
// gateway 20 times meanwhile: none is lost, the first arrivals are in order, and with
// QoS 2 none comes twice.
func TestInteropBridgeKilled(t *testing.T) {
	const messages, kills = 20_000, 20
	bin := buildFieldferry(t)
	for _, qos := range []int{1, 2} {
		t.Run(fmt.Sprintf("QoS %d", qos), func(t *testing.T) {
			up := newMosquitto(t)
			dir := t.TempDir()
			local, nowhere := freePort(t), freePort(t)
			site := filepath.Join(dir, "site.yaml")
			write := func(upstream int) {
				text := fmt.Sprintf(`
gateway: {id: gw-kill, data_dir: %q}
broker: {listeners: [{name: main, listen: "127.0.0.1:%d"}]}
adapters: {talkers: {mqtt: local, devices: {m-1: {type: meter}}}}
bridges:
  cloud:
    upstream: "mqtt://127.0.0.1:%d"
    topic: "up/{device}/{data}"
    backoff: {first: 20ms, max: 50ms}
    limit: {messages_per_second: 3000}
    data: {telemetry: {qos: %d}}
`, filepath.Join(dir, "data"), local, upstream, qos)
				if err := os.WriteFile(site, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			run := func() *peer {
				p := startPeer(t, bin, "run", "-c", site)
				awaitPort(t, local)
				return p
			}
			write(nowhere)
			p := run()
			var lines strings.Builder
			for i := range messages {
				fmt.Fprintf(&lines, "%d %s\n", i+1, strings.Repeat("x", 150))
			}
			pub := exec.Command("mosquitto_pub", "-h", "127.0.0.1", "-p", fmt.Sprint(local), "-q", "1", "-l", "-t", "devices/m-1/telemetry")
			pub.Stdin = strings.NewReader(lines.String())
			if out, err := pub.CombinedOutput(); err != nil {
				t.Fatalf("mosquitto_pub: %v\n%s", err, out)
			}
			p.end(os.Interrupt)

			sub := exec.Command("mosquitto_sub", "-h", "127.0.0.1", "-p", fmt.Sprint(up.port), "-V", "5", "-i", "killed-sub", "-q", "1", "-t", "up/m-1/telemetry", "-F", "%p")
			pipe, err := sub.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			launch(t, sub)
			var mu sync.Mutex // guards got
			var got []int
			go func() {
				for s := bufio.NewScanner(pipe); s.Scan(); {
					var n int
					fmt.Sscan(s.Text(), &n)
					mu.Lock()
					got = append(got, n)
					mu.Unlock()
				}
			}()
			count := func() int {
				mu.Lock()
				defer mu.Unlock()
				return len(got)
			}
			time.Sleep(time.Second) // for SUBSCRIBE, which nothing tells of
			write(up.port)
			p = run()
			for range kills {
				at, most := count(), time.Now().Add(20*time.Second)
				for count() < at+200+rand.IntN(500) && time.Now().Before(most) {
					time.Sleep(5 * time.Millisecond)
				}
				p.end(os.Kill)
				p = run()
			}
			left := count()
			for still := 0; still < 40; still++ { // until nothing has come for 10 s
				time.Sleep(250 * time.Millisecond)
				if n := count(); n != left {
					left, still = n, 0
				}
				if l := bridgeLedger(t, filepath.Join(dir, "data", "buffer")); l.Stored == 0 {
					break
				}
			}
			p.end(os.Interrupt)
			time.Sleep(time.Second) // for what the upstream has still to deliver
			mu.Lock()
			defer mu.Unlock()
			seen, last, duplicates, disorder := map[int]bool{}, 0, 0, 0
			for _, n := range got {
				if seen[n] {
					duplicates++
					continue
				}
				if n < last {
					disorder++
				}
				seen[n], last = true, max(last, n)
			}
			l := bridgeLedger(t, filepath.Join(dir, "data", "buffer"))
			t.Logf("%d of %d came, %d duplicates, %d out of order, ledger %+v", len(seen), messages, duplicates, disorder, l)
			if len(seen) != messages || disorder != 0 || qos == 2 && duplicates != 0 || l.Difference() != 0 {
				t.Errorf("%d of %d came, %d duplicates, %d out of order", len(seen), messages, duplicates, disorder)
			}
			if qos == 2 && l.Uncertain != 0 {
				t.Errorf("ledger %+v", l)
			}
		})
	}
}

// TestInteropDownKilled has Mosquitto send 5,000 messages down with QoS 2, and kills the
// gateway 25 times meanwhile. Each is stored exactly once for a session that is away.
func TestInteropDownKilled(t *testing.T) {
	const messages, kills = 5_000, 25
	bin := buildFieldferry(t)
	up := newMosquitto(t)
	dir := t.TempDir()
	local := freePort(t)
	site := filepath.Join(dir, "site.yaml")
	text := fmt.Sprintf(`
gateway: {id: gw-kill, data_dir: %q}
broker: {listeners: [{name: main, listen: "127.0.0.1:%d"}]}
adapters: {talkers: {mqtt: local, devices: {m-1: {type: meter}}}}
bridges:
  cloud:
    upstream: "mqtt://127.0.0.1:%d"
    topic: "up/{device}/{data}"
    backoff: {first: 20ms, max: 50ms}
buffer: {min_free: 1MiB}
`, filepath.Join(dir, "data"), local, up.port)
	if err := os.WriteFile(site, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func() *peer {
		p := startPeer(t, bin, "run", "-c", site)
		awaitPort(t, local)
		return p
	}
	p := run()
	subscribe := []string{"-h", "127.0.0.1", "-p", fmt.Sprint(local), "-V", "5", "-c", "-x", "3600", "-i", "away", "-q", "2", "-t", "devices/m-1/firmware"}
	if out, err := exec.Command("mosquitto_sub", append(subscribe, "-E")...).CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_sub: %v\n%s", err, out)
	}
	stored := func() (n uint64) {
		f, err := buffer.Inspect(filepath.Join(dir, "data", "buffer"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		s, err := f.Stats()
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range s.Outboxes {
			if strings.HasPrefix(o.Name, "session away") {
				n += o.Ledger.Accepted
			}
		}
		return n
	}
	// The bridge must have subscribed once before the upstream has anything for it.
	for deadline := time.Now().Add(20 * time.Second); stored() == 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing comes down")
		}
		if out, err := exec.Command("mosquitto_pub", "-h", "127.0.0.1", "-p", fmt.Sprint(up.port), "-q", "2", "-t", "up/m-1/firmware", "-m", "0").CombinedOutput(); err != nil {
			t.Fatalf("mosquitto_pub: %v\n%s", err, out)
		}
	}
	time.Sleep(time.Second) // for those of before that are on their way
	first := stored()
	var lines strings.Builder
	for i := range messages {
		fmt.Fprintf(&lines, "%d\n", i+1)
	}
	pub := exec.Command(bin, "pub", "-b", fmt.Sprintf("mqtt://127.0.0.1:%d", up.port), "-q", "2", "-l", "up/m-1/firmware")
	pub.Stdin = strings.NewReader(lines.String())
	publishing := make(chan error, 1)
	go func() { publishing <- pub.Run() }()
	for range kills {
		time.Sleep(time.Duration(20+rand.IntN(150)) * time.Millisecond)
		p.end(os.Kill)
		p = run()
	}
	if err := <-publishing; err != nil {
		t.Fatal(err)
	}
	last := stored()
	for still := 0; still < 12; still++ { // until nothing has come for 3 s
		time.Sleep(250 * time.Millisecond)
		if n := stored(); n != last {
			last, still = n, 0
		}
	}
	// With QoS 1 for this client, as mosquitto_sub stalls with 2.
	subscribe[slices.Index(subscribe, "2")] = "1"
	got, err := exec.Command("mosquitto_sub", append(subscribe, "-C", fmt.Sprint(last), "-W", "60")...).Output()
	if err != nil {
		t.Errorf("mosquitto_sub: %v", err)
	}
	seen := map[string]int{}
	for line := range strings.Lines(string(got)) {
		seen[strings.TrimSpace(line)]++
	}
	delete(seen, "0")
	twice := 0
	for _, n := range seen {
		if n > 1 {
			twice++
		}
	}
	p.end(os.Interrupt)
	t.Logf("%d of %d came, %d twice, over %d kills", len(seen), messages, twice, kills)
	if last-first != messages || len(seen) != messages || twice > 0 {
		t.Errorf("%d are stored, %d of %d came, %d of them twice", last-first, len(seen), messages, twice)
	}
}

// bridgeLedger is that of the buffer in a folder, also of a running gateway.
func bridgeLedger(t *testing.T, dir string) buffer.Ledger {
	t.Helper()
	f, err := buffer.Inspect(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s, err := f.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return s.Ledger
}
