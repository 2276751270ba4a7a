//go:build interop

package main

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestInteropConnectionsChange starts the gateway again and again with another number of
// connections, kills it each time while messages of six devices are stored and on their
// way with QoS 2, and wants all of them once and in the order of their device.
func TestInteropConnectionsChange(t *testing.T) {
	const rounds, devices, perRound = 12, 6, 400
	bin := buildFieldferry(t)
	up := newMosquitto(t)
	dir := t.TempDir()
	local := freePort(t)
	site := filepath.Join(dir, "site.yaml")
	run := func(connections int) *peer {
		text := fmt.Sprintf(`
gateway: {id: gw-spread, data_dir: %q}
broker: {listeners: [{name: main, listen: "127.0.0.1:%d"}]}
adapters: {talkers: {mqtt: local, devices: {"m-{1..%d}": {type: meter}}}}
bridges:
  cloud:
    upstream: "mqtt://127.0.0.1:%d"
    topic: "up/{device}/{data}"
    connections: %d
    backoff: {first: 20ms, max: 50ms}
    limit: {messages_per_second: 1500}
    data: {telemetry: {qos: 2}}
`, filepath.Join(dir, "data"), local, devices, up.port, connections)
		if err := os.WriteFile(site, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		p := startPeer(t, bin, "run", "-c", site)
		awaitPort(t, local)
		return p
	}
	sub := exec.Command("mosquitto_sub", "-h", "127.0.0.1", "-p", fmt.Sprint(up.port), "-V", "5", "-i", "spread-sub", "-q", "1", "-t", "up/+/telemetry", "-F", "%t %p")
	pipe, err := sub.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	launch(t, sub)
	var mu sync.Mutex // guards got
	got := make(map[string][]int)
	go func() {
		for s := bufio.NewScanner(pipe); s.Scan(); {
			var topic string
			var n int
			fmt.Sscan(s.Text(), &topic, &n)
			mu.Lock()
			got[topic] = append(got[topic], n)
			mu.Unlock()
		}
	}()
	count := func() (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, list := range got {
			n += len(list)
		}
		return n
	}
	time.Sleep(time.Second) // for SUBSCRIBE, which nothing tells of
	var g *peer
	var numbers []int
	for round := range rounds {
		connections := 1 + rand.IntN(3)
		numbers = append(numbers, connections)
		g = run(connections)
		var publishers sync.WaitGroup
		for d := 1; d <= devices; d++ {
			var lines strings.Builder
			for i := range perRound {
				fmt.Fprintf(&lines, "%d %s\n", round*perRound+i+1, strings.Repeat("x", 100))
			}
			pub := exec.Command("mosquitto_pub", "-h", "127.0.0.1", "-p", fmt.Sprint(local), "-q", "1", "-l", "-t", fmt.Sprintf("devices/m-%d/telemetry", d))
			pub.Stdin = strings.NewReader(lines.String())
			publishers.Go(func() {
				if out, err := pub.CombinedOutput(); err != nil {
					t.Errorf("mosquitto_pub: %v\n%s", err, out)
				}
			})
		}
		publishers.Wait() // all are acknowledged
		time.Sleep(time.Duration(rand.IntN(1500)) * time.Millisecond)
		g.end(os.Kill)
	}
	g = run(2)
	const all = rounds * perRound * devices
	for deadline, last, still := time.Now().Add(2*time.Minute), 0, 0; time.Now().Before(deadline) && still < 40; time.Sleep(250 * time.Millisecond) {
		if n := count(); n != last {
			last, still = n, 0
		}
		if still++; count() >= all && bridgeLedger(t, filepath.Join(dir, "data", "buffer")).Stored == 0 {
			break
		}
	}
	g.end(os.Interrupt)
	time.Sleep(time.Second) // for what the upstream has still to deliver
	l := bridgeLedger(t, filepath.Join(dir, "data", "buffer"))
	mu.Lock()
	defer mu.Unlock()
	lost, twice, disorder := 0, 0, 0
	for d := 1; d <= devices; d++ {
		seen, last := make(map[int]bool), 0
		for _, n := range got[fmt.Sprintf("up/m-%d/telemetry", d)] {
			if seen[n] {
				twice++
				continue
			}
			if n < last {
				disorder++
			}
			seen[n], last = true, max(last, n)
		}
		lost += rounds*perRound - len(seen)
	}
	t.Logf("connections %v: of %d, %d lost, %d twice, %d out of order; ledger %+v", numbers, all, lost, twice, disorder, l)
	if lost != 0 || twice != 0 || disorder != 0 || l.Difference() != 0 || l.Uncertain != 0 || l.Stored != 0 {
		t.Errorf("connections %v: of %d, %d lost, %d twice, %d out of order; ledger %+v", numbers, all, lost, twice, disorder, l)
	}
}
