package localbroker

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 5 * time.Second

// start runs a broker with one listener for the time of the test.
func start(t testing.TB, o Options) *Broker {
	t.Helper()
	if o.Listeners == nil {
		o.Listeners = []Listener{{Name: "plain", Addr: "127.0.0.1:0", AllowAnonymous: true}}
	}
	b := New(o)
	if err := b.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if n := b.Stats().Panics; n > 0 && !strings.Contains(t.Name(), "Panic") {
			t.Errorf("%d panics", n)
		}
	})
	return b
}

// wire is a client that says and hears packets, and keeps no rules.
type wire struct {
	t  testing.TB
	v  packet.Version
	nc net.Conn
	r  *packet.Reader
}

func dial(t testing.TB, b *Broker, v packet.Version) *wire {
	t.Helper()
	nc, err := net.Dial("tcp", b.Addr("plain").String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	w := &wire{t: t, v: v, nc: nc, r: packet.NewReader(nc, new(packet.Blocks), packet.MaxLength)}
	w.r.SetVersion(v)
	return w
}

// client connects with a clean session.
func connect(t testing.TB, b *Broker, v packet.Version, id string, change ...func(*packet.Connect)) *wire {
	t.Helper()
	w := dial(t, b, v)
	if ack := w.connect(id, change...); ack.Reason != packet.Success {
		t.Fatalf("%s is not let in: %v", id, ack.Reason)
	}
	return w
}

func (w *wire) connect(id string, change ...func(*packet.Connect)) packet.Connack {
	w.t.Helper()
	p := packet.Connect{Version: w.v, ClientID: id, CleanStart: true}
	for _, f := range change {
		f(&p)
	}
	w.send(p.Append(nil))
	first, body := w.receive()
	var ack packet.Connack
	if packet.TypeOf(first) != packet.CONNACK {
		w.t.Fatalf("%v in the place of CONNACK", packet.TypeOf(first))
	}
	w.check(ack.Decode(w.v, body))
	ack.Props = bytes.Clone(ack.Props)
	return ack
}

func (w *wire) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *wire) send(raw []byte) {
	w.t.Helper()
	w.check(w.nc.SetWriteDeadline(time.Now().Add(patience)))
	_, err := w.nc.Write(raw)
	w.check(err)
}

// receive returns the next packet.
func (w *wire) receive() (byte, []byte) {
	w.t.Helper()
	first, body, err := w.read(patience)
	if err != nil {
		w.t.Fatalf("while waiting for a packet: %v", err)
	}
	return first, body
}

func (w *wire) read(d time.Duration) (byte, []byte, error) {
	_ = w.nc.SetReadDeadline(time.Now().Add(d))
	return w.r.Next()
}

func (w *wire) publish(topic, payload string, qos byte, id uint16, change ...func(*packet.Publish)) {
	w.t.Helper()
	p := packet.Publish{Topic: topic, Payload: []byte(payload), QoS: qos, PacketID: id}
	for _, f := range change {
		f(&p)
	}
	w.send(p.Append(nil, w.v))
}

func retain(p *packet.Publish) { p.Retain = true }

// expectPublish returns the next packet, which is to be a PUBLISH.
func (w *wire) expectPublish() packet.Publish {
	w.t.Helper()
	first, body := w.receive()
	if packet.TypeOf(first) != packet.PUBLISH {
		w.t.Fatalf("%v % x in the place of PUBLISH", packet.TypeOf(first), body)
	}
	var p packet.Publish
	w.check(p.Decode(w.v, first, body))
	return p
}

// got is a PUBLISH in one line.
func (w *wire) got() string {
	w.t.Helper()
	p := w.expectPublish()
	s := fmt.Sprintf("%s=%s q%d", p.Topic, p.Payload, p.QoS)
	if p.Retain {
		s += " r"
	}
	for _, id := range p.SubscriptionIDs {
		s += fmt.Sprintf(" #%d", id)
	}
	if p.QoS > 0 {
		w.ack(p.PacketID)
	}
	return s
}

func (w *wire) want(lines ...string) {
	w.t.Helper()
	for _, want := range lines {
		if got := w.got(); got != want {
			w.t.Errorf("got %q, want %q", got, want)
		}
	}
}

func (w *wire) ack(id uint16) {
	w.t.Helper()
	w.send((&packet.Ack{PacketID: id}).Append(nil, w.v, packet.PUBACK))
}

func (w *wire) expectAck(id uint16) packet.Reason {
	w.t.Helper()
	first, body := w.receive()
	if packet.TypeOf(first) != packet.PUBACK {
		w.t.Fatalf("%v % x in the place of PUBACK %d", packet.TypeOf(first), body, id)
	}
	var p packet.Ack
	w.check(p.Decode(w.v, packet.PUBACK, body))
	if p.PacketID != id {
		w.t.Fatalf("PUBACK %d, want %d", p.PacketID, id)
	}
	return p.Reason
}

func (w *wire) subscribe(subs ...packet.Subscription) []packet.Reason {
	w.t.Helper()
	return w.subscribeWith(nil, subs...)
}

func (w *wire) subscribeWith(props packet.Properties, subs ...packet.Subscription) []packet.Reason {
	w.t.Helper()
	w.send((&packet.Subscribe{PacketID: 9, Props: props, Subscriptions: subs}).Append(nil, w.v))
	first, body := w.receive()
	var p packet.Suback
	if packet.TypeOf(first) != packet.SUBACK {
		w.t.Fatalf("%v in the place of SUBACK", packet.TypeOf(first))
	}
	w.check(p.Decode(w.v, packet.SUBACK, body))
	if p.PacketID != 9 || len(p.Reasons) != len(subs) {
		w.t.Fatalf("SUBACK %+v", p)
	}
	return p.Reasons
}

// sub subscribes to filters with QoS 1, all of which are to be granted.
func (w *wire) sub(filters ...string) {
	w.t.Helper()
	var subs []packet.Subscription
	for _, f := range filters {
		subs = append(subs, packet.Subscription{Filter: f, QoS: 1})
	}
	for i, r := range w.subscribe(subs...) {
		if r != packet.GrantedQoS1 {
			w.t.Fatalf("subscription to %s: %v", filters[i], r)
		}
	}
}

// nothing checks that no packet comes before the answer to a ping.
func (w *wire) nothing() {
	w.t.Helper()
	w.send(packet.AppendPingreq(nil))
	if first, body := w.receive(); packet.TypeOf(first) != packet.PINGRESP {
		w.t.Errorf("%v %q where nothing was to come", packet.TypeOf(first), body)
	}
}

// closed checks that the connection ends: with version 5 by a DISCONNECT with a reason,
// unless reason is Success.
func (w *wire) closed(reason packet.Reason) {
	w.t.Helper()
	told := packet.Success
	for {
		first, body, err := w.read(patience)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			w.t.Fatal("the connection stays open")
		}
		if err != nil {
			break
		}
		if packet.TypeOf(first) == packet.DISCONNECT {
			var p packet.Disconnect
			w.check(p.Decode(w.v, packet.DISCONNECT, body))
			told = p.Reason
		}
	}
	if w.v == packet.V5 && told != reason {
		w.t.Errorf("closed with %v, want %v", told, reason)
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	raw, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// both runs a test in both versions.
func both(t *testing.T, f func(t *testing.T, v packet.Version)) {
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		t.Run("MQTT "+v.String(), func(t *testing.T) { f(t, v) })
	}
}

// disk is an Appender whose commits the test decides on.
type disk struct {
	mu       sync.Mutex // guards what follows
	appended []buffer.Receipt
	topics   []string
	fail     error // what Append returns
	changed  chan struct{}
}

func newDisk() *disk { return &disk{changed: make(chan struct{}, 1)} }

func (d *disk) Append(_ context.Context, _ buffer.Class, m *buffer.Message, r buffer.Receipt) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		return d.fail
	}
	d.appended = append(d.appended, r)
	d.topics = append(d.topics, m.Topic)
	select {
	case d.changed <- struct{}{}:
	default:
	}
	return nil
}

// await waits until n messages were appended in all.
func (d *disk) await(t testing.TB, n int) {
	t.Helper()
	deadline := time.After(patience)
	for {
		d.mu.Lock()
		have := len(d.appended)
		d.mu.Unlock()
		if have >= n {
			return
		}
		select {
		case <-d.changed:
		case <-deadline:
			t.Fatalf("%d messages appended, want %d", have, n)
		}
	}
}

// commit tells the i-th receipt.
func (d *disk) commit(i int, err error) {
	d.mu.Lock()
	r := d.appended[i]
	d.mu.Unlock()
	r.Stored(err)
}

// routes sends everything below a topic to a class.
type routes map[string]buffer.Class

func (r routes) Route(m *Message, dst []buffer.Copy) (buffer.Class, []buffer.Copy) {
	for prefix, class := range r {
		if strings.HasPrefix(m.Topic, prefix) {
			return class, append(dst, buffer.Copy{})
		}
	}
	return 0, dst
}
