package bridge

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/fieldferry/fieldferry/bridge/upstreamtest"
	"github.com/fieldferry/fieldferry/buffer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a bridge between a real buffer and a scripted upstream. It is used in a
// synctest bubble, so time passes when nothing else is to be done.
type rig struct {
	t      *testing.T
	name   string
	dir    string
	buffer *buffer.Buffer
	out    Outboxes
	reader *buffer.Reader
	up     *upstreamtest.Server
	bridge *Bridge
	cancel context.CancelFunc // nil while the bridge does not run
	ended  chan error
}

func newRig(t *testing.T, o Options, scripts ...upstreamtest.Script) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), ended: make(chan error, 1)}
	r.open()
	t.Cleanup(func() {
		r.stop()
		r.reader.Close()
		if err := r.buffer.Close(); err != nil {
			t.Errorf("close buffer: %v", err)
		}
	})
	r.next("", o, scripts...)
	return r
}

func (r *rig) open() {
	r.t.Helper()
	var err error
	if r.buffer, err = buffer.Open(r.dir, buffer.Options{}); err != nil {
		r.t.Fatal(err)
	}
	if r.out, err = OpenOutboxes(r.buffer, "bridge/test/0"); err != nil {
		r.t.Fatal(err)
	}
	if r.reader, err = r.buffer.Reader(r.out[:]...); err != nil {
		r.t.Fatal(err)
	}
}

// reopen closes the buffer, lets something happen to its folder, and opens it.
func (r *rig) reopen(meanwhile func(dir string)) {
	r.t.Helper()
	r.reader.Close()
	if err := r.buffer.Close(); err != nil {
		r.t.Fatal(err)
	}
	meanwhile(r.dir)
	r.open()
}

// next replaces bridge and upstream; the buffer stays.
func (r *rig) next(name string, o Options, scripts ...upstreamtest.Script) {
	r.t.Helper()
	r.stop()
	r.up = upstreamtest.New(scripts...)
	r.make(name, o)
}

// restart replaces the bridge, and goes on with these scripts; buffer and upstream
// stay.
func (r *rig) restart(name string, o Options, scripts ...upstreamtest.Script) {
	r.t.Helper()
	r.halt()
	r.up.Cut()
	if len(scripts) > 0 {
		r.up.Go(scripts...)
	}
	r.make(name, o)
}

func (r *rig) make(name string, o Options) {
	r.t.Helper()
	r.name = name
	if o.Upstream == nil {
		o.Upstream = []string{"mqtt://upstream"}
	}
	if o.ClientID == "" {
		o.ClientID = "gw-1"
	}
	o.Dial = r.up.Dial
	o.Logger = slog.New(slog.NewTextHandler(r.t.Output(), nil))
	var err error
	if r.bridge, err = New(r.reader, r.out, o); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) start() {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() { r.ended <- r.bridge.Run(ctx) }()
}

// stop ends the bridge and its upstream, and checks what must hold at any time.
func (r *rig) stop() {
	r.t.Helper()
	r.halt()
	if r.up == nil {
		return
	}
	r.up.Close()
	for _, v := range r.up.Violations() {
		r.t.Errorf("%s: violation: %s", r.name, v)
	}
}

// halt ends the bridge.
func (r *rig) halt() {
	r.t.Helper()
	if r.cancel != nil {
		r.cancel()
		r.cancel = nil
		if err := <-r.ended; err != nil {
			r.t.Errorf("%s: Run: %v", r.name, err)
		}
	}
	for class, out := range r.out {
		if l := out.Ledger(); l.Difference() != 0 {
			r.t.Errorf("%s: the ledger of %s is out by %d: %+v", r.name, buffer.Class(class), l.Difference(), l)
		}
	}
}

type receipt chan error

func (r receipt) Stored(err error) { r <- err }

// put appends messages for one outbox and waits until they are durable.
func (r *rig) put(class buffer.Class, c buffer.Copy, list ...buffer.Message) {
	r.t.Helper()
	c.Outbox = r.out[class]
	stored := make(receipt, len(list))
	for i := range list {
		list[i].Copies = []buffer.Copy{c}
		list[i].Urgent = true
		if err := r.buffer.Append(context.Background(), class, &list[i], stored); err != nil {
			r.t.Fatal(err)
		}
	}
	for range list {
		if err := <-stored; err != nil {
			r.t.Fatal(err)
		}
	}
}

func message(payload string) buffer.Message {
	return buffer.Message{Topic: "t", Payload: []byte(payload)}
}

// fill appends n telemetry messages t-1, t-2, … with QoS 1.
func (r *rig) fill(n int) {
	r.t.Helper()
	r.fillQoS(1, n)
}

func (r *rig) fillQoS(qos byte, n int) {
	r.t.Helper()
	var list []buffer.Message
	for _, p := range series(1, n, "") {
		list = append(list, message(p))
	}
	r.put(buffer.Telemetry, buffer.Copy{QoS: qos}, list...)
}

// until lets time pass until cond is true, ten minutes at most.
func (r *rig) until(what string, cond func() bool) {
	r.t.Helper()
	for range 6_000 {
		synctest.Wait()
		if cond() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	r.t.Fatalf("%s: never: %s; status %+v", r.name, what, r.bridge.Status())
}

func (r *rig) untilEmpty() {
	r.t.Helper()
	r.until("outboxes empty", func() bool { return r.out.Ledger().Stored == 0 })
}

// payloads are those of all PUBLISH packets, a DUP with a * behind.
func (r *rig) payloads() []string {
	var list []string
	for _, p := range r.up.Publishes() {
		if p.Dup {
			p.Payload += "*"
		}
		list = append(list, p.Payload)
	}
	return list
}

func (r *rig) wantPayloads(want ...string) {
	r.t.Helper()
	if got := r.payloads(); !slices.Equal(got, want) {
		r.t.Errorf("the upstream got %q, want %q", got, want)
	}
}

// series is t-from … t-to, each followed by mark.
func series(from, to int, mark string) []string {
	var list []string
	for i := from; i <= to; i++ {
		list = append(list, fmt.Sprintf("t-%d%s", i, mark))
	}
	return list
}

func ptr[T any](v T) *T { return &v }
