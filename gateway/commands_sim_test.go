package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/buffer/simulated"
	"github.com/fieldferry/fieldferry/gateway/command"
	"github.com/fieldferry/fieldferry/gateway/config"
	"github.com/fieldferry/fieldferry/gateway/payload"
	"github.com/fieldferry/fieldferry/localbroker"
)

var (
	commandSeeds = flag.Int("seeds", 200, "how many seeds TestCommandsSimulation runs")
	commandSeed  = flag.Uint64("seed", 0, "run TestCommandsSimulation with this seed only")
)

// TestCommandsSimulation sends commands through the broker to devices that are slow and
// fail, on a machine on which everything fails that can and that dies before and after
// every write. Whatever happens, a register is written at most once for each command,
// every command that was accepted is answered, and the audit log has it all.
func TestCommandsSimulation(t *testing.T) {
	first, n := uint64(1), uint64(*commandSeeds)
	if testing.Short() {
		n = min(n, 50)
	}
	if *commandSeed != 0 {
		first, n = *commandSeed, 1
	}
	sum := map[string]int{}
	for s := first; s < first+n; s++ {
		synctest.Test(t, func(t *testing.T) {
			w := newCommandWorld(t, s)
			w.run()
			for k, v := range w.counts {
				sum[k] += v
			}
		})
		if t.Failed() {
			t.Fatalf("seed %d failed: run again with -seed %d", s, s)
		}
	}
	if n >= 50 {
		for _, k := range []string{"crashes", "executed", "rejected", "expired", "failed", "unknown", "answered again", "sent again"} {
			if sum[k] == 0 {
				t.Errorf("the simulation does nothing of: %s", k)
			}
		}
	}
	t.Logf("%d seeds: %v", n, sum)
}

type commandWorld struct {
	t       *testing.T
	seed    uint64
	dice    *rand.Rand
	machine *simulated.Machine
	life    *simulated.Life
	counts  map[string]int

	b      *buffer.Buffer
	k      *commands
	broker *localbroker.Broker
	cancel context.CancelFunc
	ended  chan error

	sink       *buffer.Outbox // where the answers go
	sinkReader *buffer.Reader

	next int

	mu       sync.Mutex // guards what follows
	taken    uint64     // answers up to here are noted
	linkDice *rand.Rand
	acked    map[string]bool
	sent     map[string]string   // payload
	writes   map[string]int      // of the value that a command writes
	statuses map[string][]string // by id
	audit    map[string]map[string]bool
}

func newCommandWorld(t *testing.T, seed uint64) *commandWorld {
	return &commandWorld{
		t: t, seed: seed, machine: simulated.New(seed), dice: rand.New(rand.NewPCG(seed, 1)), linkDice: rand.New(rand.NewPCG(seed, 2)),
		counts: map[string]int{}, acked: map[string]bool{}, sent: map[string]string{}, writes: map[string]int{}, statuses: map[string][]string{}, audit: map[string]map[string]bool{},
	}
}

func (w *commandWorld) run() {
	defer func() {
		if w.t.Failed() {
			w.t.Log(w.machine.Trace())
		}
	}()
	for range 3 + w.dice.IntN(4) {
		w.machine.Faults(2)
		time.Sleep(time.Duration(w.dice.IntN(3000)) * time.Millisecond)
		if !w.start(true) {
			continue
		}
		for range 5 + w.dice.IntN(30) {
			if w.machine.Off() {
				break
			}
			w.step()
		}
		if w.dice.IntN(3) == 0 {
			w.machine.Kill()
		}
		w.stop()
	}
	w.machine.Faults(0)
	w.start(false)
	for range 3_000 {
		if synctest.Wait(); w.b.Stats().Ledger.Stored == 0 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	w.finish()
	w.stop()
}

// simAudit is the audit log on the machine.
type simAudit struct {
	w    *commandWorld
	life *simulated.Life
}

func (a simAudit) Append(lines []byte) error {
	done := a.life.Do(func() {
		a.w.mu.Lock()
		defer a.w.mu.Unlock()
		d := json.NewDecoder(bytes.NewReader(lines))
		for {
			var line struct{ Event, ID, Status string }
			if d.Decode(&line) != nil {
				return
			}
			if a.w.audit[line.ID] == nil {
				a.w.audit[line.ID] = map[string]bool{}
			}
			a.w.audit[line.ID][line.Event+line.Status] = true
		}
	})
	if !done {
		return simulated.ErrOff
	}
	return nil
}

// simLink is the link of the devices, which outlive the machine.
type simLink struct {
	w    *commandWorld
	life *simulated.Life
}

func (l simLink) roll(n int) int {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	return l.w.linkDice.IntN(n)
}

func (l simLink) Write(ctx context.Context, device string, values []adapters.Assignment) (samples []adapters.Sample, err error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	for _, v := range values {
		time.Sleep(time.Duration(l.roll(400)) * time.Millisecond)
		if l.roll(15) == 0 {
			return samples, errors.New(v.Point + ": the device refuses, exception 4")
		}
		p := &adapters.Point{Name: v.Point}
		if !l.life.Do(func() {
			l.w.mu.Lock()
			defer l.w.mu.Unlock()
			l.w.writes[v.Value.String()]++
		}) {
			return samples, simulated.ErrOff
		}
		time.Sleep(time.Duration(l.roll(400)) * time.Millisecond)
		if l.roll(15) == 0 {
			return append(samples, adapters.Sample{Point: p, Quality: adapters.Uncertain, Reason: "timeout"}), errors.New(v.Point + ": timeout")
		}
		samples = append(samples, adapters.Sample{Point: p, Value: v.Value})
	}
	return samples, nil
}

func (l simLink) Read(ctx context.Context, device string, points []string) (samples []adapters.Sample, err error) {
	for _, p := range points {
		samples = append(samples, adapters.Sample{Point: &adapters.Point{Name: p}, Value: adapters.Int(1)})
	}
	return samples, nil
}

func (w *commandWorld) start(faults bool) bool {
	life := w.machine.On()
	w.life = life
	parts := buffer.Parts{Meta: life.Store("meta")}
	for c := range buffer.NumClasses {
		parts.Disks[c] = life.Disk(c.String())
	}
	logger := slog.New(slog.NewTextHandler(w.machine, nil))
	var err error
	w.b, err = buffer.OpenParts(parts, buffer.Options{GenerationBytes: 1 << 10, Limits: buffer.Limits{RejectNew: true}, Clock: w.machine, Logger: logger})
	if err == nil {
		w.k = newCommands(w.b, nil, payload.Config{}, logger)
		for i := range 3 {
			id := fmt.Sprint("d-", i)
			l := simLink{w, life}
			w.k.devices[id] = &command.Device{Name: id, Writer: l, Reader: l, Points: map[string]bool{"a": true}}
		}
		err = w.k.begin(&config.Commands{Enabled: true, MaxAge: 20 * time.Second, Remember: time.Hour}, life.Store("commands"), simAudit{w, life})
	}
	if err == nil {
		w.sink, err = w.b.Outbox("$sink", buffer.Command)
	}
	if err == nil {
		w.sinkReader, err = w.b.Reader(w.sink)
	}
	if err != nil {
		if !faults {
			w.t.Fatalf("seed %d: start: %v", w.seed, err)
		}
		w.stop()
		return false
	}
	w.broker = localbroker.New(localbroker.Options{Buffer: w.b, Router: answersToo{commandRouter{nil, w.k}, w.sink}, Logger: logger})
	w.k.broker = w.broker
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel, w.ended = cancel, make(chan error, 1)
	go func() { w.ended <- w.k.Run(ctx) }()
	return true
}

// answersToo gives answers a durable destination, as a bridge or a session is.
type answersToo struct {
	commandRouter
	sink *buffer.Outbox
}

func (r answersToo) Route(m *localbroker.Message, dst []buffer.Copy) (buffer.Class, []buffer.Copy) {
	if strings.HasSuffix(m.Topic, "/commands/response") {
		return buffer.Command, append(dst, buffer.Copy{Outbox: r.sink})
	}
	return r.commandRouter.Route(m, dst)
}

// take notes the answers.
func (w *commandWorld) take() {
	var space [32]buffer.Delivery
	for {
		n, err := w.sinkReader.TryNext(space[:])
		if err != nil || n == 0 {
			return
		}
		w.mu.Lock()
		for i := range space[:n] {
			d := &space[i]
			var a struct{ CommandID, Status string }
			if err := json.Unmarshal(d.Payload, &a); err != nil {
				w.t.Errorf("answer %s: %v", d.Payload, err)
			}
			if d.Ordinal > w.taken {
				w.taken = d.Ordinal
				w.statuses[a.CommandID] = append(w.statuses[a.CommandID], a.Status)
			}
			d.Outbox.Settle(d.Ordinal, buffer.Delivered)
		}
		w.mu.Unlock()
	}
}

func (w *commandWorld) stop() {
	if w.machine.Off() {
		w.counts["crashes"]++
	}
	if w.cancel != nil {
		w.cancel()
		if err := <-w.ended; err != nil {
			w.t.Errorf("seed %d: Run: %v", w.seed, err)
		}
		w.cancel = nil
	}
	if w.sinkReader != nil {
		w.take()
		w.sinkReader.Close()
		w.sinkReader = nil
	}
	if w.k != nil {
		w.k.close()
		w.k = nil
	}
	if w.b != nil {
		w.b.Close() // fails on a machine that is off
		w.b = nil
	}
	synctest.Wait()
}

func (w *commandWorld) step() {
	switch w.dice.IntN(10) {
	case 0, 1, 2, 3, 4:
		for range 1 + w.dice.IntN(4) {
			w.send()
		}
	case 5, 6:
		time.Sleep(time.Duration(w.dice.IntN(3000)) * time.Millisecond)
	case 7, 8:
		time.Sleep(time.Duration(w.dice.IntN(100)) * time.Millisecond)
	case 9:
		switch w.dice.IntN(6) {
		case 0:
			w.machine.Kill()
		case 1:
			w.machine.Crash()
		case 2:
			time.Sleep(15 * time.Second)
		}
	}
	synctest.Wait()
}

// ackOf is the receipt of a command.
type ackOf struct {
	w    *commandWorld
	life *simulated.Life
	id   string
}

func (a ackOf) Stored(err error) {
	a.life.Do(func() {
		if err == nil {
			a.w.mu.Lock()
			a.w.acked[a.id] = true
			a.w.mu.Unlock()
		}
	})
}

func (w *commandWorld) send() {
	var id, text string
	var device int
	if w.next > 0 && w.dice.IntN(6) == 0 { // again
		n := 1 + w.dice.IntN(w.next)
		id, device = fmt.Sprint("c-", n), n%3
		w.mu.Lock()
		text = w.sent[id]
		w.mu.Unlock()
		w.counts["sent again"]++
	} else {
		w.next++
		id, device = fmt.Sprint("c-", w.next), w.next%3
		point := "a"
		if w.dice.IntN(10) == 0 {
			point = "x"
		}
		text = fmt.Sprintf(`{"id":%q,"action":"write","values":{%q:%d}}`, id, point, w.next)
		w.mu.Lock()
		w.sent[id] = text
		w.mu.Unlock()
	}
	m := &localbroker.Message{Topic: fmt.Sprintf("devices/d-%d/commands", device), Payload: []byte(text), QoS: 1, Urgent: true, ClientID: "client"}
	if err := w.broker.Publish(w.t.Context(), m, ackOf{w, w.life, id}); err != nil && !w.machine.Off() && !errors.Is(err, buffer.ErrFull) {
		w.t.Errorf("seed %d: publish: %v", w.seed, err)
	}
}

func (w *commandWorld) finish() {
	l := w.b.Stats().Ledger
	if l.Stored != 0 || l.Difference() != 0 {
		w.t.Errorf("seed %d: in the end %+v", w.seed, l)
	}
	w.take()
	w.mu.Lock()
	defer w.mu.Unlock()
	for n := 1; n <= w.next; n++ {
		id := fmt.Sprint("c-", n)
		written, statuses := w.writes[fmt.Sprint(n)], w.statuses[id]
		if written > 1 {
			w.t.Errorf("seed %d: %s was written %d times", w.seed, id, written)
		}
		if len(statuses) == 0 {
			if w.acked[id] {
				w.t.Errorf("seed %d: %s was accepted and not answered; audit %v", w.seed, id, w.audit[id])
			}
			continue
		}
		for _, s := range statuses {
			if s != statuses[0] {
				w.t.Errorf("seed %d: %s was answered %v", w.seed, id, statuses)
			}
		}
		w.counts[statuses[0]]++
		if len(statuses) > 1 {
			w.counts["answered again"]++
		}
		switch statuses[0] {
		case "executed":
			if written != 1 {
				w.t.Errorf("seed %d: %s is said to be executed, and was written %d times", w.seed, id, written)
			}
		case "rejected", "expired", "failed":
			if written != 0 {
				w.t.Errorf("seed %d: %s is said to be %s, and was written", w.seed, id, statuses[0])
			}
		}
		if !w.audit[id]["accepted"] || !w.audit[id]["answered"+statuses[0]] || written > 0 && !w.audit[id]["started"] {
			w.t.Errorf("seed %d: %s was %v, and written %d times; audit %v", w.seed, id, statuses, written, w.audit[id])
		}
	}
}
