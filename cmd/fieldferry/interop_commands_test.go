//go:build interop

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
)

const commandSite = `
gateway: {id: gw-1, org: acme, site: works, zone: hall-1, data_dir: data}
broker: {listeners: [{name: plain, listen: "127.0.0.1:%d"}]}
profiles:
  heater:
    type: heater
    every: 200ms
    points:
      value:    {holding: 50, as: uint16, write: {}}
      setpoint: {holding: 100, as: int16, scale: 0.1, unit: "°C", write: {min: 10, max: 30}}
      energy:   {holding: 200, as: float64, order: CDAB, write: {}}
      curve:    {holding: 300, as: int16, count: 3, write: {}}
      mode:     {holding: 11, as: uint16, enum: {0: "off", 1: auto, 2: manual}}
      level:    {holding: 12, as: uint16, enum: {0: low, 1: high}, write: {}}
      name:     {holding: 210, as: string, bytes: 8, write: {}}
      pump:     {coil: 3, write: {}}
      start:    {coil: 4, write: {values: [1], pulse: 300ms}}
    actions:
      recalibrate: [{write: {mode: 2}}, {wait: 100ms}, {write: {mode: 1}}]
      slowly: [{write: {mode: 2}}, {wait: 1h}, {write: {mode: 1}}]
adapters:
  line: {modbus: "tcp://127.0.0.1:%d", timeout: 2s, devices: {h-1: {unit_id: 1, profile: heater}}}
commands: {max_age: 10m}
bridges:
  cloud:
    upstream: ["mqtt://127.0.0.1:%d"]
    backoff: {first: 50ms, max: 200ms}
    forward:
      - {local: "requests/+/rpc", upstream: "acme/rpc/{1}", direction: down, qos: 2}
      - {local: "responses/#", upstream: "acme/responses/{#}", direction: up, qos: 1, class: command}
buffer: {min_free: 1MiB}
`

// commandRig is a gateway with a heater behind it and a Mosquitto above.
type commandRig struct {
	t        *testing.T
	bin      string
	dir      string
	site     string
	local    int
	up       *mosquitto
	device   *peer
	gateway  *peer
	writeLog string

	mu   sync.Mutex // guards what follows
	came []upLine
}

// upLine is what came to the upstream: topic, correlation data and payload.
type upLine struct{ topic, correlation, payload string }

func newCommandRig(t *testing.T, before, after int) *commandRig {
	t.Helper()
	r := &commandRig{t: t, bin: buildFieldferry(t), dir: t.TempDir(), local: freePort(t)}
	field := freePort(t)
	r.writeLog = filepath.Join(r.dir, "writes")
	r.device = startPeer(t, "/usr/bin/python3", "testdata/pymodbus_writes.py", fmt.Sprint(field), r.writeLog, fmt.Sprint(before), fmt.Sprint(after))
	awaitPort(t, field)
	r.up = newMosquitto(t)
	r.site = filepath.Join(r.dir, "site.yaml")
	if err := os.WriteFile(r.site, fmt.Appendf(nil, commandSite, r.local, field, r.up.port), 0o600); err != nil {
		t.Fatal(err)
	}
	sub := exec.Command("/usr/bin/stdbuf", "-oL", "/usr/bin/mosquitto_sub", "-p", fmt.Sprint(r.up.port), "-V", "5", "-c", "-x", "3600", "-i", "recorder", "-q", "1",
		"-t", "acme/works/+/+/+/commands/response", "-t", "acme/responses/#", "-t", "answers/#", "-t", "acme/works/hall-1/gateway/gw-1/status", "-F", "%t\x1f%D\x1f%p")
	out, err := sub.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	sub.Stderr = os.Stderr
	launch(t, sub)
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			if p := strings.SplitN(s.Text(), "\x1f", 3); len(p) == 3 {
				r.mu.Lock()
				r.came = append(r.came, upLine{p[0], p[1], p[2]})
				r.mu.Unlock()
			}
		}
	}()
	r.start()
	r.await("the gateway is online upstream", func() bool {
		return len(r.find(func(l upLine) bool { return strings.Contains(l.payload, `"online"`) })) > 0
	})
	return r
}

func (r *commandRig) start() {
	r.t.Helper()
	r.gateway = startPeer(r.t, r.bin, "run", "-c", r.site)
	awaitPort(r.t, r.local)
}

func (r *commandRig) await(what string, cond func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatal("never: " + what)
		}
	}
}

func (r *commandRig) find(fits func(upLine) bool) (all []upLine) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.came {
		if fits(l) {
			all = append(all, l)
		}
	}
	return all
}

// send publishes to the upstream, which takes it whatever the gateway does.
func (r *commandRig) send(topic, payload string, more ...string) {
	r.t.Helper()
	args := append([]string{"-p", fmt.Sprint(r.up.port), "-V", "5", "-q", "2", "-t", topic, "-m", payload}, more...)
	if out, err := exec.Command("/usr/bin/mosquitto_pub", args...).CombinedOutput(); err != nil {
		r.t.Fatalf("mosquitto_pub: %v\n%s", err, out)
	}
}

// sendLocal publishes to the gateway with QoS 1, again until that says that it has it.
func (r *commandRig) sendLocal(topic, payload string, more ...string) {
	r.t.Helper()
	args := append([]string{"-p", fmt.Sprint(r.local), "-V", "5", "-q", "1", "-i", "operator", "-t", topic, "-m", payload}, more...)
	r.await("the gateway takes a command", func() bool { return exec.Command("/usr/bin/mosquitto_pub", args...).Run() == nil })
}

const commandsUp, responseUp = "acme/works/hall-1/heater/h-1/commands", "acme/works/hall-1/heater/h-1/commands/response"

// writes are those that the device has noted, each with how often.
func (r *commandRig) writes() map[string]int {
	r.t.Helper()
	text, err := os.ReadFile(r.writeLog)
	if err != nil {
		r.t.Fatal(err)
	}
	all := map[string]int{}
	for line := range strings.Lines(string(text)) {
		all[strings.TrimSpace(line)]++
	}
	return all
}

// audit is what the log says of each command: events with their status.
func (r *commandRig) audit() map[string][]string {
	r.t.Helper()
	f, err := os.Open(filepath.Join(r.dir, "data", "audit.log"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	all := map[string][]string{}
	for s := bufio.NewScanner(f); s.Scan(); {
		var l struct{ ID, Event, Status string }
		if err := json.Unmarshal(s.Bytes(), &l); err != nil {
			continue // cut off by a kill
		}
		all[l.ID] = append(all[l.ID], strings.TrimSpace(l.Event+" "+l.Status))
	}
	return all
}

// Every form of a command, over Mosquitto and pymodbus.
func TestInteropCommandForms(t *testing.T) {
	r := newCommandRig(t, 0, 0)
	for _, tt := range []struct {
		topic, payload string
		more           []string
		local          bool
		answers        []upLine // without the timestamp
		writes         []string
	}{
		{topic: commandsUp, payload: `{"id":"w","action":"write","values":{"setpoint":24.5,"energy":123.25,"curve":[1,-2,3],"level":"high","name":"abc","pump":true}}`,
			answers: []upLine{{responseUp, "", `{"commandId":"w","status":"executed","values":{"setpoint":24.5,"energy":123.25,"curve":[1,-2,3],"level":"high","name":"abc","pump":true}}`}},
			writes:  []string{"holding 100 245", "holding 200 0 0 53248 16478", "holding 300 1 65534 3", "holding 12 1", "holding 210 24930 25344 0 0", "coil 3 1"}},
		{topic: commandsUp, payload: `{"id":"r","action":"read","points":["setpoint","mode","level"]}`, more: []string{"-D", "publish", "response-topic", "answers/me", "-D", "publish", "correlation-data", "c-1"},
			answers: []upLine{{responseUp, "c-1", `{"commandId":"r","status":"executed","values":{"setpoint":24.5,"mode":"off","level":"high"}}`}, {"answers/me", "c-1", `{"commandId":"r","status":"executed","values":{"setpoint":24.5,"mode":"off","level":"high"}}`}}},
		{topic: commandsUp, payload: `{"action":"write","values":{"level":"low"}}`, more: []string{"-D", "publish", "correlation-data", "c-2", "-D", "publish", "response-topic", "acme/works/hall-1/heater/h-1/status"},
			answers: []upLine{{responseUp, "c-2", `{"commandId":"c-2","status":"executed","values":{"level":"low"}}`}}, writes: []string{"holding 12 0"}},
		{topic: commandsUp, payload: `{"id":"a","action":"recalibrate"}`,
			answers: []upLine{{responseUp, "", `{"commandId":"a","status":"executed","values":{"mode":"auto"}}`}}, writes: []string{"holding 11 2", "holding 11 1"}},
		{topic: commandsUp, payload: `{"id":"w","action":"write","values":{"setpoint":24.5,"energy":123.25,"curve":[1,-2,3],"level":"high","name":"abc","pump":true}}`,
			answers: []upLine{{responseUp, "", `{"commandId":"w","status":"executed","values":{"setpoint":24.5,"energy":123.25,"curve":[1,-2,3],"level":"high","name":"abc","pump":true}}`}}},
		{topic: commandsUp, payload: `{"id":"hot","action":"write","values":{"setpoint":40}}`,
			answers: []upLine{{responseUp, "", `{"commandId":"hot","status":"rejected","error":"setpoint: 40 is above its limit 30"}`}}},
		{topic: commandsUp, payload: `{"id":"late","action":"write","values":{"setpoint":20},"expires":1700000000000}`,
			answers: []upLine{{responseUp, "", `{"commandId":"late","status":"expired","error":"it came too late to be carried out"}`}}},
		{topic: commandsUp, payload: `{"id":"kept","action":"write","values":{"setpoint":21}}`, more: []string{"-r"}},
		{topic: commandsUp, payload: `{"id":"p","action":"write","values":{"start":true}}`,
			answers: []upLine{{responseUp, "", `{"commandId":"p","status":"executed","values":{"start":true}}`}}, writes: []string{"coil 4 1", "coil 4 0"}},
		{topic: "acme/rpc/h-1", payload: `{"id":7,"method":"read","params":{"points":["setpoint"]},"replyTo":"responses/app"}`,
			answers: []upLine{{"acme/responses/app", "", `{"id":7,"result":{"setpoint":24.5}}`}}},
		{topic: "acme/rpc/h-1", payload: `{"id":8,"method":"write","params":{"setpoint":19.5},"replyTo":"responses/app"}`,
			answers: []upLine{{"acme/responses/app", "", `{"id":8,"result":{"setpoint":19.5}}`}}, writes: []string{"holding 100 195"}},
		{topic: "acme/rpc/h-1", payload: `{"id":9,"method":"write","params":{"setpoint":45},"replyTo":"responses/app"}`,
			answers: []upLine{{"acme/responses/app", "", `{"id":9,"error":{"message":"setpoint: 45 is above its limit 30","status":"rejected"}}`}}},
		{topic: "devices/h-1/commands", local: true, payload: `{"id":"l","action":"write","values":{"setpoint":18.5}}`,
			answers: []upLine{{responseUp, "", `{"commandId":"l","status":"executed","values":{"setpoint":18.5}}`}}, writes: []string{"holding 100 185"}},
	} {
		r.mu.Lock()
		r.came = nil
		r.mu.Unlock()
		before := r.writes()
		if tt.local {
			r.sendLocal(tt.topic, tt.payload, tt.more...)
		} else {
			r.send(tt.topic, tt.payload, tt.more...)
		}
		want := func() bool {
			return len(r.find(func(upLine) bool { return true })) >= len(tt.answers) && written(before, r.writes()) >= len(tt.writes)
		}
		r.await("answer to "+tt.payload, want)
		time.Sleep(200 * time.Millisecond) // for what must not come
		var got []upLine
		for _, l := range r.find(func(upLine) bool { return true }) {
			l.payload = withoutTimestamp(t, l.payload)
			got = append(got, l)
		}
		for i := range tt.answers {
			if !slices.Contains(got, tt.answers[i]) {
				t.Errorf("%s\n got %q\nwant %q", tt.payload, got, tt.answers[i])
			}
		}
		if len(got) != len(tt.answers) {
			t.Errorf("%s: answers %q", tt.payload, got)
		}
		after := r.writes()
		for _, w := range tt.writes {
			if after[w] != before[w]+1 {
				t.Errorf("%s: %q was written %d times", tt.payload, w, after[w]-before[w])
			}
		}
		if n := written(before, after); n != len(tt.writes) {
			t.Errorf("%s: %d writes, want %d: %v", tt.payload, n, len(tt.writes), after)
		}
	}
}

// written is how many writes came between.
func written(before, after map[string]int) (n int) {
	for w, times := range after {
		n += times - before[w]
	}
	return n
}

func withoutTimestamp(t *testing.T, payload string) string {
	t.Helper()
	i := strings.LastIndex(payload, `,"timestamp":`)
	if i < 0 {
		return payload
	}
	return payload[:i] + "}"
}

// TestInteropCommandsKilled sends commands of every form while the gateway is killed again
// and again, with a device that takes its time, so that the kills fall before, during and
// after a write.
func TestInteropCommandsKilled(t *testing.T) {
	const commands, kills = 240, 25
	r := newCommandRig(t, 25, 25)
	done := make(chan struct{})
	var killing sync.WaitGroup
	killing.Go(func() {
		for range kills {
			select {
			case <-done:
				return
			case <-time.After(time.Duration(100+rand.IntN(700)) * time.Millisecond):
			}
			r.gateway.end(os.Kill)
			r.start()
		}
	})
	ids := map[string]int{} // the value that each writes
	for i := 1; i <= commands; i++ {
		id := fmt.Sprint("c-", i)
		ids[id] = i
		write := fmt.Sprintf(`{"id":%q,"action":"write","values":{"value":%d}}`, id, i)
		switch i % 4 {
		case 0:
			r.send(commandsUp, write)
		case 1:
			r.send(commandsUp, write, "-D", "publish", "response-topic", "answers/"+id, "-D", "publish", "correlation-data", id)
		case 2:
			r.send("acme/rpc/h-1", fmt.Sprintf(`{"id":%q,"method":"write","params":{"value":%d},"replyTo":"responses/%s"}`, id, i, id))
		case 3:
			r.sendLocal("devices/h-1/commands", write)
		}
	}
	killing.Wait()
	close(done)
	answers := func() map[string]map[string]bool {
		all := map[string]map[string]bool{}
		for _, l := range r.find(func(upLine) bool { return true }) {
			var command struct{ CommandID, Status string }
			var call struct {
				ID     string
				Result json.RawMessage
				Error  struct{ Status string }
			}
			id, status := "", ""
			if json.Unmarshal([]byte(l.payload), &command) == nil && command.CommandID != "" {
				id, status = command.CommandID, command.Status
			} else if json.Unmarshal([]byte(l.payload), &call) == nil && call.ID != "" {
				if id, status = call.ID, call.Error.Status; call.Result != nil {
					status = "executed"
				}
			} else {
				continue // the gateway's status
			}
			if all[id] == nil {
				all[id] = map[string]bool{}
			}
			all[id][status] = true
		}
		return all
	}
	r.await("all answered", func() bool { return len(answers()) >= commands })
	r.await("none waits", func() bool { return commandsStored(t, r.dir) == 0 })
	got, writes, audit := answers(), r.writes(), r.audit()
	count := map[string]int{}
	for id, value := range ids {
		if len(got[id]) != 1 {
			t.Errorf("%s was answered %v", id, got[id])
		}
		times := writes[fmt.Sprint("holding 50 ", value)]
		for status := range got[id] {
			count[status]++
			switch {
			case times > 1:
				t.Errorf("%s was written %d times", id, times)
			case status == "executed" && times != 1, status != "executed" && status != "unknown":
				t.Errorf("%s is said to be %s, and was written %d times", id, status, times)
			}
			if status == "unknown" && times == 1 {
				count["unknown and written"]++
			}
			if a := audit[id]; !slices.Contains(a, "accepted") || !slices.Contains(a, "answered "+status) || !slices.Contains(a, "started") {
				t.Errorf("%s was %s; the audit log says %v", id, status, a)
			}
		}
	}
	t.Logf("%d commands, %d kills: %v", commands, kills, count)
}

// TestInteropCommandSteps kills the gateway at each step of a command, which the paused
// device or upstream holds up.
func TestInteropCommandSteps(t *testing.T) {
	r := newCommandRig(t, 0, 0)
	says := func(id, event string) func() bool {
		return func() bool { return slices.Contains(r.audit()[id], event) }
	}
	answer := func(id string) func() bool {
		return func() bool {
			return len(r.find(func(l upLine) bool { return strings.Contains(l.payload, fmt.Sprintf(`"commandId":%q`, id)) })) > 0
		}
	}
	status := func(id, want string, times int, write string) {
		t.Helper()
		r.await(id+" is answered", answer(id))
		for _, l := range r.find(func(l upLine) bool { return strings.Contains(l.payload, fmt.Sprintf(`"commandId":%q`, id)) }) {
			if !strings.Contains(l.payload, fmt.Sprintf(`"status":%q`, want)) {
				t.Errorf("%s: %s, want %s", id, l.payload, want)
			}
		}
		if n := r.writes()[write]; n != times {
			t.Errorf("%s: written %d times, want %d", id, n, times)
		}
		if !says(id, "answered "+want)() {
			t.Errorf("%s: the audit log says %v", id, r.audit()[id])
		}
	}
	command := func(id string, value int) {
		r.send(commandsUp, fmt.Sprintf(`{"id":%q,"action":"write","values":{"value":%d}}`, id, value))
	}

	// Started, and the request waits at the device; behind it one that is only accepted.
	r.device.cmd.Process.Signal(syscall.SIGSTOP)
	command("during", 1)
	r.await("it is started", says("during", "started"))
	command("behind", 2)
	r.await("it is accepted", func() bool { return commandsStored(t, r.dir) >= 2 })
	r.gateway.end(os.Kill)
	r.device.cmd.Process.Signal(syscall.SIGCONT)
	r.start()
	r.await("it is answered", answer("during"))
	written := r.writes()["holding 50 1"] // the device got the request, or did not: nobody here knows
	if written > 1 {
		t.Errorf("written %d times", written)
	}
	status("during", "unknown", written, "holding 50 1")
	status("behind", "executed", 1, "holding 50 2")

	// Carried out and answered, but the upstream does not take the answer.
	command("after", 3)
	r.await("it is written", func() bool { return r.writes()["holding 50 3"] == 1 })
	r.up.peer.cmd.Process.Signal(syscall.SIGSTOP)
	r.gateway.end(os.Kill)
	r.up.peer.cmd.Process.Signal(syscall.SIGCONT)
	r.start()
	r.await("it is answered", answer("after"))
	if n := r.writes()["holding 50 3"]; n != 1 {
		t.Errorf("written %d times", n)
	}

	// A stop that is asked for in the middle of an action.
	r.send(commandsUp, `{"id":"halfway","action":"slowly"}`)
	r.await("its first step is done", func() bool { return r.writes()["holding 11 2"] == 1 })
	r.gateway.end(syscall.SIGTERM)
	r.start()
	status("halfway", "unknown", 1, "holding 11 2")
	if n := r.writes()["holding 11 1"]; n != 0 {
		t.Errorf("the rest of an action was done %d times after a stop", n)
	}
}

// commandsStored is how many commands wait.
func commandsStored(t *testing.T, dir string) (n uint64) {
	t.Helper()
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
		if strings.HasPrefix(o.Name, "commands") {
			n += o.Ledger.Stored
		}
	}
	return n
}
