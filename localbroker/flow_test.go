package localbroker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/client"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// The client's Receive Maximum is never exceeded, and acknowledgements in any
// order let more come.
func TestReceiveMaximumOfTheClient(t *testing.T) {
	b := start(t, Options{})
	sub := connect(t, b, packet.V5, "sub", func(p *packet.Connect) { p.Props = p.Props.AppendUint(packet.ReceiveMaximum, 10) })
	sub.sub("#")
	const n = 200
	for i := range n {
		if err := b.Publish(t.Context(), &Message{Topic: "t", Payload: fmt.Append(nil, i), QoS: 1}, nil); err != nil {
			t.Fatal(err)
		}
	}
	var open []uint16
	for i := range n {
		if len(open) == 10 {
			if i == 10 {
				sub.nothing()
				sub.ack(4711) // not in use
				sub.nothing()
			}
			k := rand.IntN(len(open))
			sub.ack(open[k])
			open = append(open[:k], open[k+1:]...)
		}
		p := sub.expectPublish()
		if string(p.Payload) != fmt.Sprint(i) {
			t.Fatalf("message %d is %s", i, p.Payload)
		}
		for _, id := range open {
			if id == p.PacketID {
				t.Fatalf("packet identifier %d is in use", id)
			}
		}
		open = append(open, p.PacketID)
	}
	sub.nothing()
}

// Both sides may use the same packet identifiers at the same time.
func TestPacketIDsAreApart(t *testing.T) {
	b := start(t, Options{})
	c := connect(t, b, packet.V5, "c")
	c.sub("in/#")
	for i := range 5 {
		if err := b.Publish(t.Context(), &Message{Topic: fmt.Sprint("in/", i), QoS: 1}, nil); err != nil {
			t.Fatal(err)
		}
	}
	var ids []uint16
	for range 5 {
		ids = append(ids, c.expectPublish().PacketID)
	}
	for _, id := range ids {
		c.publish("out", "x", 1, id)
		if r := c.expectAck(id); r != packet.NoMatchingSubscribers {
			t.Errorf("publish with identifier %d: %v", id, r)
		}
	}
	for _, id := range ids {
		c.ack(id)
	}
	c.sub("other") // with identifier 9
	c.nothing()
}

// Packet identifiers go round without 0, however long the first is not acknowledged.
func TestPacketIDsGoRound(t *testing.T) {
	b := New(Options{})
	s := &session{b: b, window: 65535}
	c := &conn{b: b, closed: true} // writes nothing
	s.conn.Store(c)
	space := make([]outgoing, 0, 1)
	send := func() (id uint16) {
		s.enqueue(delivery{m: &Message{Topic: "t"}, qos: 1})
		if out, _, _ := s.take(c, space, 1); len(out) == 1 {
			id = out[0].packetID
		}
		return id
	}
	if id := send(); id != 1 {
		t.Fatalf("first identifier %d", id)
	}
	for i := 2; i <= 65534; i++ {
		if id := send(); int(id) != i {
			t.Fatalf("identifier %d in the place of %d", id, i)
		}
		s.puback(uint16(i))
	}
	if id := send(); id != 0 {
		t.Fatalf("identifier %d while the first may come round", id)
	}
	if !s.puback(1) {
		t.Fatal("there is room again, and nobody is woken")
	}
	if out, _, _ := s.take(c, space, 1); len(out) != 1 || out[0].packetID != 65535 {
		t.Fatalf("after the round: %+v", out)
	}
	if id := send(); id != 1 {
		t.Fatalf("identifier %d after the last", id)
	}
}

func TestMaximumPacketSizeOfTheClient(t *testing.T) {
	b := start(t, Options{})
	sub := connect(t, b, packet.V5, "sub", func(p *packet.Connect) {
		p.Props = p.Props.AppendUint(packet.MaximumPacketSize, 100).AppendUint(packet.ReceiveMaximum, 1)
	})
	sub.sub("#")
	for _, size := range []int{10, 93, 200, 92, 5} { // 8 bytes are not payload
		if err := b.Publish(t.Context(), &Message{Topic: "t", Payload: make([]byte, size), QoS: 1}, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []int{10, 92, 5} {
		p := sub.expectPublish()
		if len(p.Payload) != want {
			t.Errorf("%d bytes, want %d", len(p.Payload), want)
		}
		sub.ack(p.PacketID)
	}
	sub.nothing()
	if d := b.Stats().MessagesDropped; d != 2 {
		t.Errorf("%d dropped, want 2", d)
	}
}

// A queue that is full loses the oldest with QoS 1 and the newest with QoS 0.
func TestQueueLimits(t *testing.T) {
	b := start(t, Options{Limits: Limits{QueuedMessages: 5}})
	sub := connect(t, b, packet.V5, "sub", func(p *packet.Connect) { p.Props = p.Props.AppendUint(packet.ReceiveMaximum, 1) })
	sub.sub("#")
	publish := func(qos byte, payload string) {
		t.Helper()
		if err := b.Publish(t.Context(), &Message{Topic: "t", Payload: []byte(payload), QoS: qos}, nil); err != nil {
			t.Fatal(err)
		}
	}
	publish(1, "sent")
	p := sub.expectPublish()
	for i := range 8 {
		publish(1, fmt.Sprint(i))
	}
	publish(0, "no room")
	sub.nothing()
	sub.ack(p.PacketID)
	sub.want("t=3 q1", "t=4 q1", "t=5 q1", "t=6 q1", "t=7 q1")
	sub.nothing()
	if d := b.Stats().MessagesDropped; d != 4 {
		t.Errorf("%d dropped, want 4", d)
	}
	b = New(Options{Limits: Limits{QueuedBytes: 1000}})
	s := &session{b: b, window: 1}
	s.conn.Store(&conn{b: b, closed: true})
	for range 10 {
		s.enqueue(delivery{m: &Message{Topic: "t", Payload: make([]byte, 200)}, qos: 1})
	}
	if s.bytes > 1000 || s.queue.len() != 3 {
		t.Errorf("%d messages of %d bytes wait", s.queue.len(), s.bytes)
	}
	if s.enqueue(delivery{m: &Message{Topic: "t", Payload: make([]byte, 2000)}, qos: 1}); s.queue.len() != 0 || s.bytes != 0 {
		t.Errorf("a message larger than the queue: %d messages of %d bytes wait", s.queue.len(), s.bytes)
	}
}

func TestManyRetained(t *testing.T) {
	b := start(t, Options{})
	const n = 20000
	for i := range n {
		if err := b.Publish(t.Context(), &Message{Topic: fmt.Sprint("r/", i), Payload: []byte("x"), QoS: 1, Retain: true}, nil); err != nil {
			t.Fatal(err)
		}
	}
	seen := make(map[string]bool)
	all := make(chan struct{})
	c := open(t, b, client.Options{Handler: func(m *client.Message) {
		seen[m.Topic] = m.Retain
		if len(seen) == n {
			close(all)
		}
	}})
	if _, err := c.Subscribe(t.Context(), packet.Subscription{Filter: "#", QoS: 1}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-all:
	case <-time.After(patience):
		c.Abort()
		t.Errorf("%d of %d arrived", len(seen), n)
	}
}

// What is published while retained messages are on their way comes after them.
func TestReplayComesFirst(t *testing.T) {
	b := start(t, Options{})
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				_ = b.Publish(context.Background(), &Message{Topic: "t", Payload: fmt.Append(nil, i), Retain: true}, nil)
			}
		}
	}()
	for i := range 50 {
		last := -1
		enough := make(chan struct{})
		c := open(t, b, client.Options{Handler: func(m *client.Message) {
			var n int
			if _, err := fmt.Sscan(string(m.Payload), &n); err != nil || n < last {
				t.Errorf("%s after %d", m.Payload, last)
			}
			if last = n; !m.Retain {
				select {
				case <-enough:
				default:
					close(enough)
				}
			}
		}})
		if _, err := c.Subscribe(t.Context(), packet.Subscription{Filter: "t"}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-enough:
		case <-time.After(patience):
			t.Fatalf("round %d: nothing arrives", i)
		}
		_ = c.Close()
	}
	close(stop)
	<-done
}

// open connects a client for the time of the test.
func open(t testing.TB, b *Broker, o client.Options) *client.Client {
	t.Helper()
	o.Address = b.Addr("plain").String()
	c, err := client.Connect(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestSharedSubscriptions(t *testing.T) {
	b := start(t, Options{})
	pub := connect(t, b, packet.V5, "pub")
	var members []*wire
	for i := range 3 {
		w := connect(t, b, packet.V5, fmt.Sprint("m", i))
		w.sub("$share/g/t/#")
		members = append(members, w)
	}
	plain := connect(t, b, packet.V5, "plain")
	plain.sub("t/#", "$share/h/t/+")
	for i := range 6 {
		pub.publish("t/x", fmt.Sprint(i), 1, 1)
		if r := pub.expectAck(1); r.Failed() || r == packet.NoMatchingSubscribers {
			t.Error(r)
		}
		plain.want(fmt.Sprintf("t/x=%d q1", i), fmt.Sprintf("t/x=%d q1", i)) // its own and its group's
	}
	for i, w := range members { // in turn
		w.want(fmt.Sprintf("t/x=%d q1", (i+2)%3), fmt.Sprintf("t/x=%d q1", (i+2)%3+3))
		w.nothing()
	}
	if s := b.Stats(); s.Subscriptions != 5 || s.SharedSubscriptions != 4 {
		t.Errorf("%d subscriptions, %d shared", s.Subscriptions, s.SharedSubscriptions)
	}
	// What one that leaves has not acknowledged goes to another.
	pub.publish("t/x", "a", 1, 1)
	pub.publish("t/x", "b", 1, 2)
	pub.publish("t/x", "c", 1, 3)
	var mine string
	p := members[0].expectPublish()
	mine = string(p.Payload)
	members[1].nc.Close()
	waitFor(t, func() bool { return b.Stats().Clients == 4 })
	members[0].ack(p.PacketID)
	members[0].nc.Close()
	waitFor(t, func() bool { return b.Stats().Clients == 3 })
	all := map[string]int{mine: 1}
	for len(all) < 3 {
		p := members[2].expectPublish()
		members[2].ack(p.PacketID)
		all[string(p.Payload)]++
	}
	if all["a"] == 0 || all["b"] == 0 || all["c"] == 0 {
		t.Errorf("got %v", all)
	}
}

// A client that does not read its answers is not read from for ever.
func TestAnswersAreBounded(t *testing.T) {
	b := start(t, Options{})
	w := dial(t, b, packet.V5)
	if tcp, ok := w.nc.(*net.TCPConn); ok {
		w.check(tcp.SetReadBuffer(4096))
	}
	w.connect("w")
	pings := []byte(strings.Repeat(string(packet.AppendPingreq(nil)), 4096))
	_ = w.nc.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	var err error
	for n := 0; err == nil; n++ {
		if n > 10000 {
			t.Fatal("80 MB of pings were read without an answer being read")
		}
		_, err = w.nc.Write(pings)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	if first, _ := w.receive(); packet.TypeOf(first) != packet.PINGRESP { // goes on
		t.Error(first)
	}
}

func TestSlowDown(t *testing.T) {
	b := start(t, Options{Limits: Limits{MessagesPerSecond: 100}})
	c := connect(t, b, packet.V5, "c")
	began := time.Now()
	for id := range uint16(120) {
		c.publish("t", "x", 1, id+1)
	}
	for id := range uint16(120) {
		c.expectAck(id + 1)
	}
	if d := time.Since(began); d < 150*time.Millisecond || d > 20*time.Second { // 100 at once, 20 in 0.2 s
		t.Errorf("120 publishes at 100 a second took %v", d)
	}
}

// Takeovers, a subscriber that never reads, and one that must get everything in
// order, at the same time.
func TestStress(t *testing.T) {
	b := start(t, Options{Limits: Limits{QueuedMessages: 1000000, QueuedBytes: 1 << 30}})
	stuck := connect(t, b, packet.V311, "stuck")
	stuck.sub("#")
	const publishers, each = 4, 2000
	next := make([]int, publishers)
	all := make(chan struct{})
	got := 0
	open(t, b, client.Options{ClientID: "sub", Handler: func(m *client.Message) {
		var p, n int
		if _, err := fmt.Sscanf(string(m.Payload), "%d %d", &p, &n); err != nil || n != next[p] {
			t.Errorf("message %q, want number %d", m.Payload, next[p])
		} else {
			next[p]++
		}
		if got++; got == publishers*each {
			close(all)
		}
	}}).Subscribe(t.Context(), packet.Subscription{Filter: "load/#", QoS: 1})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var work sync.WaitGroup
	var takeovers atomic.Int64
	churn, stopChurn := context.WithCancel(ctx)
	for range 2 {
		work.Go(func() {
			for churn.Err() == nil {
				c, err := client.Connect(churn, client.Options{Address: b.Addr("plain").String(), ClientID: "contested", Will: &client.Message{Topic: "will", Payload: []byte("x")}})
				if err != nil {
					continue
				}
				_, _ = c.Subscribe(churn, packet.Subscription{Filter: "load/+", QoS: 1}, packet.Subscription{Filter: "$share/g/#", QoS: 1})
				select {
				case <-c.Done():
				case <-time.After(time.Duration(rand.IntN(5)) * time.Millisecond):
				}
				takeovers.Add(1)
				c.Abort()
			}
		})
	}
	var load sync.WaitGroup
	for p := range publishers {
		c := open(t, b, client.Options{ClientID: fmt.Sprint("pub", p)})
		load.Go(func() {
			var acks []<-chan error
			for n := range each {
				ack, err := c.Start(ctx, &client.Message{Topic: fmt.Sprint("load/", p), Payload: fmt.Appendf(nil, "%d %d", p, n), QoS: 1})
				if err != nil {
					t.Error(err)
					return
				}
				acks = append(acks, ack)
			}
			for n, ack := range acks {
				if err := <-ack; err != nil {
					t.Errorf("publish %d: %v", n, err)
				}
			}
		})
	}
	load.Wait()
	select {
	case <-all:
	case <-ctx.Done():
		t.Errorf("%d of %d arrived", got, publishers*each)
	}
	stopChurn()
	work.Wait()
	t.Logf("%d connections under load", takeovers.Load())
}

// Whatever a client sends, it ends its own connection at most.
func FuzzConnection(f *testing.F) {
	f.Add(true, []byte{0x82, 5, 0x30, 0x30, 0, 0, 0})
	f.Add(true, []byte{0x30, 3, 0, 1, 'a', 0x32, 6, 0, 1, 'a', 0, 1, 0, 0xc0, 0})
	f.Add(false, (&packet.Subscribe{PacketID: 1, Subscriptions: []packet.Subscription{{Filter: "$share/g/#", QoS: 1}, {Filter: "+/#"}}}).Append(nil, packet.V311))
	f.Add(false, (&packet.Publish{Topic: "a", Payload: []byte("x"), QoS: 1, PacketID: 1, Retain: true}).Append(nil, packet.V311))
	f.Fuzz(func(t *testing.T, five bool, raw []byte) {
		b := New(Options{Limits: Limits{TopicLevels: 8}})
		near, far := net.Pipe()
		p := packet.Connect{Version: packet.V311, ClientID: "c", CleanStart: true, Will: &packet.Will{Topic: "w", Payload: []byte("x")}}
		if five {
			p.Version = packet.V5
		}
		c := newConn(b, near, Listener{AllowAnonymous: true})
		var work sync.WaitGroup
		work.Go(func() { c.serve(context.Background()) })
		work.Go(func() {
			_, _ = io.Copy(io.Discard, far)
		})
		_, err := far.Write(p.Append(nil))
		if err == nil {
			_, _ = far.Write(raw)
		}
		_ = far.Close()
		work.Wait()
		if b.Stats().Panics > 0 {
			t.Fatal("a panic")
		}
		if n, _ := b.index.count(); n != 0 || len(b.sessions) != 0 {
			t.Fatalf("%d subscriptions and %d sessions are left", n, len(b.sessions))
		}
	})
}

func BenchmarkRoute(b *testing.B) {
	for _, n := range []int{0, 1, 100} {
		b.Run(fmt.Sprint(n, " subscribers"), func(b *testing.B) {
			br := New(Options{})
			for i := range 10000 {
				br.index.add(&subscription{session: &session{b: br}, filter: fmt.Sprintf("devices/d-%d/commands", i)})
			}
			var sessions []*session
			c := &conn{b: br, closed: true} // writes nothing
			for range n {
				s := &session{b: br, window: 65535, awake: true}
				s.conn.Store(c)
				br.index.add(&subscription{session: s, filter: "devices/+/telemetry", qos: 1})
				sessions = append(sessions, s)
			}
			m := &Message{Topic: "devices/d-77/telemetry", Payload: make([]byte, 200), QoS: 1}
			var f fanout
			space := make([]outgoing, 0, 1)
			b.ReportAllocs()
			for b.Loop() {
				br.route(m, nil, &f)
				for _, s := range sessions {
					out, _, _ := s.take(c, space, 1)
					s.puback(out[0].packetID)
					s.awake = true
				}
			}
		})
	}
}
