package localbroker

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/buffer/log"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// house is a broker with its state on a real buffer.
type house struct {
	*Broker
	t     testing.TB
	dir   string
	buf   *buffer.Buffer
	state *State
	gate  *gate
	stop  func() // everything, in good order; may be called again
}

// houseOptions are what a test changes; the zero value works.
type houseOptions struct {
	Options
	buffer buffer.Options
	idle   bool          // state.db does not follow the log
	later  time.Duration // by the clock of the machine
	panics bool          // are to be expected
	routed bool          // by byClass
}

// openHouse opens a data folder and runs a broker on it for the time of the test.
func openHouse(t testing.TB, dir string, o houseOptions) *house {
	t.Helper()
	h := &house{t: t, dir: dir, gate: newGate()}
	h.gate.later = o.later
	o.buffer.Clock = h.gate
	if testing.Verbose() && os.Getenv("BROKER_LOG") != "" {
		o.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
		o.buffer.Logger = o.Logger
	}
	var err error
	if h.buf, err = buffer.Open(filepath.Join(dir, "buffer"), o.buffer); err != nil {
		t.Fatal(err)
	}
	if h.state, err = OpenState(filepath.Join(dir, "state.db"), h.buf, o.Logger); err != nil {
		t.Fatal(err)
	}
	o.Buffer, o.State = h.buf, h.state
	if o.routed {
		o.Router = byClass{h.buf}
	}
	if o.Listeners == nil {
		o.Listeners = []Listener{{Name: "plain", Addr: "127.0.0.1:0", AllowAnonymous: true}}
	}
	h.Broker = New(o.Options)
	if err := h.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, stopBroker := context.WithCancel(context.Background())
	sctx, stopState := context.WithCancel(context.Background())
	var broker, state sync.WaitGroup
	broker.Go(func() {
		if err := h.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	if !o.idle {
		state.Go(func() { _ = h.state.Run(sctx) })
	}
	var once sync.Once
	h.stop = func() {
		once.Do(func() {
			h.gate.open()
			stopBroker()
			broker.Wait()
			stopState()
			state.Wait()
			if err := h.state.Close(); err != nil {
				t.Errorf("close the state: %v", err)
			}
			if err := h.buf.Close(); err != nil {
				t.Errorf("close the buffer: %v", err)
			}
			if n := h.Stats().Panics; n > 0 && !o.panics {
				t.Errorf("%d panics", n)
			}
		})
	}
	t.Cleanup(h.stop)
	return h
}

// crashed is a copy of the data folder as it is now, as a crash would leave it.
// Nothing may be on its way to the disk.
func (h *house) crashed() string {
	h.t.Helper()
	to := h.t.TempDir()
	if err := os.CopyFS(to, os.DirFS(h.dir)); err != nil {
		h.t.Fatal(err)
	}
	return to
}

// gate is a clock that holds commits up: a block is made with the time it has.
type gate struct {
	log.SystemClock
	mu      sync.Mutex
	shut    bool
	waiting int
	cond    sync.Cond
	later   time.Duration
}

func newGate() *gate {
	g := new(gate)
	g.cond.L = &g.mu
	return g
}

func (g *gate) Uptime() (time.Duration, uint64) {
	g.mu.Lock()
	for g.shut && packing() {
		g.waiting++
		g.cond.Wait()
		g.waiting--
	}
	g.mu.Unlock()
	up, boot := g.SystemClock.Uptime()
	return up + g.later, boot
}

func (g *gate) close() {
	g.mu.Lock()
	g.shut = true
	g.mu.Unlock()
}

func (g *gate) open() {
	g.mu.Lock()
	g.shut = false
	g.mu.Unlock()
	g.cond.Broadcast()
}

// await waits until a commit is held up.
func (g *gate) await(t testing.TB) {
	t.Helper()
	eventually(t, "nothing is to be committed", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.waiting > 0
	})
}

func packing() bool {
	var pcs [16]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, ".pack") {
			return true
		}
		if !more {
			return false
		}
	}
}

// stay makes a client's session outlive its connection.
func stay(p *packet.Connect) {
	p.CleanStart = false
	if p.Version == packet.V5 {
		p.Props = p.Props.AppendUint(packet.SessionExpiry, 3600)
	}
}

// keep connects with a session that stays.
func keep(t testing.TB, b *Broker, v packet.Version, id string, change ...func(*packet.Connect)) (w *wire, present bool) {
	t.Helper()
	w = dial(t, b, v)
	ack := w.connect(id, append([]func(*packet.Connect){stay}, change...)...)
	if ack.Reason != packet.Success {
		t.Fatalf("%s is not let in: %v", id, ack.Reason)
	}
	return w, ack.SessionPresent
}

func (w *wire) goodbye() {
	w.t.Helper()
	w.send((&packet.Disconnect{}).Append(nil, w.v, packet.DISCONNECT))
	w.closed(0)
	w.nc.Close()
}

func withWill(topic string, delay uint32) func(p *packet.Connect) {
	return func(p *packet.Connect) {
		p.Will = &packet.Will{Topic: topic, Payload: []byte("gone"), QoS: 1}
		if delay > 0 {
			p.Will.Props = p.Will.Props.AppendUint(packet.WillDelay, delay)
		}
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

// Sanity.
func TestOfflineCopies(t *testing.T) {
	both(t, func(t *testing.T, v packet.Version) {
		h := openHouse(t, t.TempDir(), houseOptions{})
		sub, _ := keep(t, h.Broker, v, "sub")
		sub.sub("#")
		sub.goodbye()
		pub := connect(t, h.Broker, v, "pub")
		pub.publish("a", "1", 1, 1)
		pub.expectAck(1)
		h = openHouse(t, h.crashed(), houseOptions{})
		sub, present := keep(t, h.Broker, v, "sub")
		if !present {
			t.Error("the session is gone")
		}
		sub.want("a=1 q1")
	})
}

// A connection that is taken over before it has its CONNACK leaves the session as it
// was.
func TestTakeoverWhileConnecting(t *testing.T) {
	both(t, func(t *testing.T, v packet.Version) {
		h := openHouse(t, t.TempDir(), houseOptions{})
		sub, _ := keep(t, h.Broker, v, "sub")
		sub.sub("#")
		sub.goodbye()
		pub := connect(t, h.Broker, v, "pub")
		pub.publish("a", "1", 1, 1)
		pub.expectAck(1)

		h.gate.close()
		first := dial(t, h.Broker, v)
		p := packet.Connect{Version: v, ClientID: "sub"}
		stay(&p)
		withWill("will", 0)(&p)
		first.send(p.Append(nil))
		h.gate.await(t)
		second := dial(t, h.Broker, v)
		second.send(p.Append(nil))
		eventually(t, "no takeover", func() bool { return h.Stats().Takeovers == 1 })
		h.gate.open()
		first.closed(packet.Success)
		_, body := second.receive()
		var ack packet.Connack
		second.check(ack.Decode(v, body))
		if !ack.SessionPresent {
			t.Error("the session is gone")
		}
		second.want("a=1 q1")
	})
}

// expect returns the reason of the next packet, which is to be of a type.
func (w *wire) expect(want packet.Type, id uint16) packet.Reason {
	w.t.Helper()
	first, body := w.receive()
	var p packet.Ack
	if packet.TypeOf(first) != want || p.Decode(w.v, want, body) != nil || p.PacketID != id {
		w.t.Fatalf("%v % x in the place of %v %d", packet.TypeOf(first), body, want, id)
	}
	return p.Reason
}

// A message that a shared subscription gets goes to one member, whoever joins or
// leaves while it is made durable.
func TestSharedWhileMembersCome(t *testing.T) {
	const filter = "$share/g/t"
	for _, leaves := range []bool{false, true} {
		h := openHouse(t, t.TempDir(), houseOptions{})
		slow, _ := keep(t, h.Broker, packet.V5, "slow") // for it the message is made durable
		slow.sub("t")
		live, pub := connect(t, h.Broker, packet.V5, "live"), connect(t, h.Broker, packet.V5, "pub")
		live.sub(filter, "end")
		kept, _ := keep(t, h.Broker, packet.V5, "kept")
		kept.sub("end")
		if leaves {
			kept.sub(filter)
		}
		for n := range 2 { // whoever's turn it is
			payload := fmt.Sprint(n)
			h.gate.close()
			pub.publish("t", payload, 1, 1)
			h.gate.await(t)
			if leaves {
				kept.send((&packet.Unsubscribe{PacketID: 9, Filters: []string{filter}}).Append(nil, kept.v))
				eventually(t, "it does not leave", func() bool { return h.Stats().Subscriptions == 4 })
			} else {
				kept.send((&packet.Subscribe{PacketID: 9, Subscriptions: []packet.Subscription{{Filter: filter, QoS: 1}}}).Append(nil, kept.v))
				eventually(t, "it does not join", func() bool { return h.Stats().Subscriptions == 5 })
			}
			h.gate.open()
			pub.expectAck(1)
			pub.publish("end", "", 1, 1)
			pub.expectAck(1)
			got := 0
			for _, w := range []*wire{live, kept} {
				for {
					first, body := w.receive()
					var p packet.Publish
					if packet.TypeOf(first) != packet.PUBLISH {
						continue // the answer of above
					}
					w.check(p.Decode(w.v, first, body))
					w.ack(p.PacketID)
					if p.Topic == "end" {
						break
					}
					got++
				}
			}
			if got != 1 {
				t.Errorf("leaves: %v: message %d came %d times", leaves, n, got)
			}
			if leaves {
				kept.sub(filter)
			} else {
				kept.send((&packet.Unsubscribe{PacketID: 9, Filters: []string{filter}}).Append(nil, kept.v))
				if first, _ := kept.receive(); packet.TypeOf(first) != packet.UNSUBACK {
					t.Fatal(packet.TypeOf(first))
				}
			}
		}
	}
}

// received are the payloads that come until a message to the topic end does.
func (w *wire) received() (payloads []string) {
	w.t.Helper()
	for {
		p := w.expectPublish()
		if p.QoS == 1 {
			w.ack(p.PacketID)
		}
		if p.Topic == "end" {
			return payloads
		}
		payloads = append(payloads, string(p.Payload))
	}
}

// A retained message that is published while a client subscribes comes to it once, and
// none comes behind a newer one.
func TestRetainedWhileSubscribing(t *testing.T) {
	for _, newer := range []bool{false, true} {
		h := openHouse(t, t.TempDir(), houseOptions{})
		sub, _ := keep(t, h.Broker, packet.V5, "sub")
		sub.sub("end")
		pub, other := connect(t, h.Broker, packet.V5, "pub"), connect(t, h.Broker, packet.V5, "other")
		h.gate.close()
		pub.publish("t", "1", 1, 1, retain)
		h.gate.await(t)
		sub.send((&packet.Subscribe{PacketID: 9, Subscriptions: []packet.Subscription{{Filter: "t", QoS: 1}}}).Append(nil, sub.v))
		eventually(t, "it does not subscribe", func() bool { return h.Stats().Subscriptions == 2 })
		if newer {
			other.publish("t", "2", 1, 1, retain)
			other.nothing()
		}
		h.gate.open()
		pub.expectAck(1)
		if newer {
			other.expectAck(1)
		}
		if first, _ := sub.receive(); packet.TypeOf(first) != packet.SUBACK {
			t.Fatal(packet.TypeOf(first))
		}
		pub.publish("end", "", 1, 1)
		pub.expectAck(1)
		want := "[1]"
		if newer {
			want = "[2]"
		}
		if got := fmt.Sprint(sub.received()); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// The same, if the client has another subscription that the message matches: one stands
// for both then, whichever is found first.
func TestRetainedWhileSubscribingAgain(t *testing.T) {
	for _, filters := range [][2]string{{"+", "t"}, {"t", "+"}} {
		h := openHouse(t, t.TempDir(), houseOptions{})
		sub, _ := keep(t, h.Broker, packet.V5, "sub")
		sub.sub("end", filters[0])
		pub, other := connect(t, h.Broker, packet.V5, "pub"), connect(t, h.Broker, packet.V5, "other")
		h.gate.close()
		pub.publish("t", "1", 1, 1, retain)
		h.gate.await(t)
		sub.send((&packet.Subscribe{PacketID: 9, Subscriptions: []packet.Subscription{{Filter: filters[1], QoS: 1}}}).Append(nil, sub.v))
		eventually(t, "it does not subscribe", func() bool { return h.Stats().Subscriptions == 3 })
		other.publish("t", "2", 1, 1, retain)
		other.nothing()
		h.gate.open()
		pub.expectAck(1)
		other.expectAck(1)
		var got []string
		for end := false; !end; {
			first, body := sub.receive()
			switch packet.TypeOf(first) {
			case packet.SUBACK:
				pub.publish("end", "", 1, 1)
			case packet.PUBLISH:
				var p packet.Publish
				sub.check(p.Decode(sub.v, first, body))
				if end = p.Topic == "end"; !end {
					got = append(got, string(p.Payload))
				}
			}
		}
		if fmt.Sprint(got) != "[1 2]" {
			t.Errorf("%v: got %v", filters, got)
		}
	}
}

// A PUBREL is not lost between two connections, whichever of them a PUBREC was durable
// on.
func TestPubrelAcrossTakeovers(t *testing.T) {
	h := openHouse(t, t.TempDir(), houseOptions{})
	sub, _ := keep(t, h.Broker, packet.V5, "sub")
	sub.subscribe(packet.Subscription{Filter: "t", QoS: 2})
	pub := connect(t, h.Broker, packet.V5, "pub")
	for range 100 {
		pub.publish("t", "x", 1, 1)
		pub.publish("t", "x", 2, 2)
		pub.expectAck(1)
		pub.expect(packet.PUBREC, 2)
		pub.send((&packet.Ack{PacketID: 2}).Append(nil, pub.v, packet.PUBREL))
		pub.expect(packet.PUBCOMP, 2)
		sub.ack(sub.expectPublish().PacketID)
		id := sub.expectPublish().PacketID
		sub.send((&packet.Ack{PacketID: id}).Append(nil, sub.v, packet.PUBREC))
		sub, _ = keep(t, h.Broker, packet.V5, "sub")
		for {
			first, body := sub.receive()
			if packet.TypeOf(first) == packet.PUBREL {
				break
			}
			var p packet.Publish // the PUBREC was too late for its connection
			if packet.TypeOf(first) != packet.PUBLISH || p.Decode(sub.v, first, body) != nil {
				t.Fatal(packet.TypeOf(first))
			}
			if p.QoS == 1 {
				sub.ack(p.PacketID)
			} else {
				sub.send((&packet.Ack{PacketID: id}).Append(nil, sub.v, packet.PUBREC))
			}
		}
		sub.send((&packet.Ack{PacketID: id}).Append(nil, sub.v, packet.PUBCOMP))
		sub.nothing()
	}
}

// What a session keeps of a connection does not keep the connection.
func TestConnectionsAreForgotten(t *testing.T) {
	h := openHouse(t, t.TempDir(), houseOptions{})
	topic := strings.Repeat("x", 45_000) // aliases may stand for 100 KB
	used := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := used()
	for i := range uint16(300) {
		c, _ := keep(t, h.Broker, packet.V5, "c")
		for alias := range uint16(2) {
			c.publish(topic, "", 0, 0, func(p *packet.Publish) { p.Alias = alias + 1 })
		}
		c.publish("t", "", 2, i+1)
		c.expect(packet.PUBREC, i+1)
		c.nc.Close()
	}
	keep(t, h.Broker, packet.V5, "c")
	if after := used(); after > before+12<<20 {
		t.Errorf("%d MB were kept", (after-before)>>20)
	}
}

// Copies that are large come all, too.
func TestLargeCopies(t *testing.T) {
	h := openHouse(t, t.TempDir(), houseOptions{})
	sub, _ := keep(t, h.Broker, packet.V5, "sub")
	sub.sub("#")
	sub.goodbye()
	for i := range 20 {
		r := make(told, 1)
		if err := h.Publish(t.Context(), &Message{Topic: fmt.Sprint(i), Payload: make([]byte, 600<<10), QoS: 1, Urgent: true}, r); err != nil || <-r != nil {
			t.Fatal(err)
		}
	}
	sub, _ = keep(t, h.Broker, packet.V5, "sub")
	for i := range 20 {
		if p := sub.expectPublish(); p.Topic != fmt.Sprint(i) {
			t.Errorf("%s, want %d", p.Topic, i)
		}
	}
}

// What a session that ends has through a shared subscription goes to another member,
// in order, and all at once.
func TestSharedGoesOn(t *testing.T) {
	const messages = 3000
	h := openHouse(t, t.TempDir(), houseOptions{})
	a, _ := keep(t, h.Broker, packet.V5, "a")
	a.sub("$share/g/t")
	a.goodbye()
	r := make(told, messages)
	for i := range messages {
		if err := h.Publish(t.Context(), &Message{Topic: "t", Payload: []byte(fmt.Sprint(i)), QoS: 1, Urgent: true}, r); err != nil {
			t.Fatal(err)
		}
	}
	for range messages {
		if err := <-r; err != nil {
			t.Fatal(err)
		}
	}
	b, _ := keep(t, h.Broker, packet.V5, "b")
	b.sub("$share/g/t")
	b.goodbye()
	begin := time.Now()
	connect(t, h.Broker, packet.V5, "a")
	t.Logf("given to another member in %v", time.Since(begin))
	b, _ = keep(t, h.Broker, packet.V5, "b")
	for i := range messages {
		if got, want := b.got(), fmt.Sprintf("t=%d q1", i); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	if l := h.buf.Stats().Ledger; l.Dropped["moved"] != messages || l.Difference() != 0 {
		t.Errorf("%+v", l)
	}
}

// A client that has a subscription of its own and a share of another gets a message
// through both.
func TestSharedBesideOwn(t *testing.T) {
	both(t, func(t *testing.T, v packet.Version) {
		h := openHouse(t, t.TempDir(), houseOptions{})
		sub, _ := keep(t, h.Broker, v, "sub")
		sub.sub("t", "$share/g/t", "$share/h/t")
		pub := connect(t, h.Broker, v, "pub")
		for i := range 10 {
			pub.publish("t", fmt.Sprint(i), 1, 1)
			pub.expectAck(1)
		}
		for i := range 10 {
			line := fmt.Sprintf("t=%d q1", i)
			sub.want(line, line, line)
		}
		sub.nothing()
		if l := h.buf.Stats().Ledger; l.Delivered != 30 || l.Difference() != 0 {
			t.Errorf("%+v", l)
		}
	})
}
