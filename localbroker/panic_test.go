package localbroker

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// fragile are the rights of a client that panic when they are asked about a topic.
type fragile struct{ id string }

func (fragile) Authenticate(_ context.Context, l *Login) (Rights, error) {
	return fragile{l.ClientID}, nil
}
func (fragile) Recall(_, id string) Rights { return fragile{id} }

func (f fragile) ask(what, name string) bool {
	if strings.HasSuffix(name, "no-"+what) {
		panic("on purpose")
	}
	return true
}
func (f fragile) MayPublish(name string) bool     { return f.ask("publish", name) }
func (f fragile) MaySubscribe(filter string) bool { return f.ask("subscribe", filter) }
func (f fragile) MayReceive(name string) bool     { return f.ask("receive", name) }

// brittle panics when it is to route a topic.
type brittle struct{}

func (brittle) Route(m *Message, dst []buffer.Copy) (buffer.Class, []buffer.Copy) {
	if strings.HasSuffix(m.Topic, "no-route") {
		panic("on purpose")
	}
	return buffer.Local, dst
}

// A panic where a packet is handled ends that connection, of whatever kind it is, and
// the others go on.
func TestPanicInHandlers(t *testing.T) {
	b, dial, alice := secured(t, Options{Access: fragile{}, Router: brittle{}})
	good := connect(t, b, packet.V5, "good")
	good.sub("#")
	want := uint64(0)
	for _, listener := range []string{"plain", "tls", "mutual", "ws", "wss"} {
		for name, p := range map[string][]byte{
			"publish":   (&packet.Publish{Topic: "no-publish", QoS: 2, PacketID: 1}).Append(nil, packet.V5),
			"route":     (&packet.Publish{Topic: "no-route", QoS: 1, PacketID: 1}).Append(nil, packet.V5),
			"subscribe": (&packet.Subscribe{PacketID: 1, Subscriptions: []packet.Subscription{{Filter: "no-subscribe"}}}).Append(nil, packet.V5),
		} {
			w := dial(listener, alice)
			w.connect("bad")
			w.send(p)
			w.closed(packet.ImplementationSpecific)
			if want++; b.Stats().Panics != want {
				t.Fatalf("%s, %s: %d panics, want %d", listener, name, b.Stats().Panics, want)
			}
		}
		w := dial(listener, alice) // its client id is free again
		w.connect("bad")
		w.publish("t", listener, 0, 0)
		good.want("t=" + listener + " q0")
	}
}

// failing is a connection that panics instead of writing.
type failing struct{ net.Conn }

func (failing) Write([]byte) (int, error) { panic("on purpose") }

func TestPanicInWriter(t *testing.T) {
	b := start(t, Options{})
	good := connect(t, b, packet.V5, "good")
	good.sub("t")
	near, far := net.Pipe()
	defer far.Close()
	c := b.take(failing{near}, Listener{AllowAnonymous: true}, nil, time.Now())
	go b.serve(t.Context(), c)
	if _, err := far.Write((&packet.Connect{Version: packet.V5, ClientID: "bad", CleanStart: true}).Append(nil)); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, far); n != 0 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	waitUntil(t, func() bool { return b.Stats().Connections == 1 })
	if n := b.Stats().Panics; n == 0 {
		t.Error("nothing has panicked")
	}
	good.publish("t", "x", 0, 0)
	good.want("t=x q0")
}

// What the certificates come from may fail as badly as it likes.
func TestPanicInTLS(t *testing.T) {
	bad := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { panic("on purpose") }}
	b := start(t, Options{Listeners: []Listener{
		{Name: "plain", Addr: "127.0.0.1:0", AllowAnonymous: true},
		{Name: "tls", Addr: "127.0.0.1:0", AllowAnonymous: true, TLS: bad},
		{Name: "wss", Addr: "127.0.0.1:0", AllowAnonymous: true, TLS: bad, WebSocket: "/mqtt"},
	}})
	for _, listener := range []string{"tls", "wss"} {
		if err := tls.Client(rawDial(t, b, listener), &tls.Config{InsecureSkipVerify: true}).Handshake(); err == nil {
			t.Errorf("%s: a handshake", listener)
		}
	}
	connect(t, b, packet.V5, "good").sub("t")
}

// A WebSocket library that panics ends the connection that it reads.
func TestPanicInWebSocket(t *testing.T) {
	c := newWSConn(t.Context(), nil, io.NopCloser(nil), nil, wsAddr("x")) // reading from nothing panics
	if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "panic") {
		t.Errorf("read: %v", err)
	}
	c.cancel()
}

// A panic in a receipt reaches neither the disk's goroutine nor those who publish.
func TestPanicInReceipts(t *testing.T) {
	h := openHouse(t, t.TempDir(), houseOptions{Options: Options{Access: fragile{}}, panics: true})
	good, _ := keep(t, h.Broker, packet.V5, "good")
	good.sub("#")
	for i := range 3 {
		r := make(told, 1)
		err := h.Publish(t.Context(), &Message{Topic: "no-receive", Payload: []byte("x"), QoS: byte(i % 2), Retain: true, Urgent: true}, r)
		if err == nil {
			err = <-r
		}
		if err != nil && !errors.Is(err, errPanicked) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if n := h.Stats().Panics; n == 0 {
		t.Error("nothing has panicked")
	}
	good.publish("fine", "x", 0, 0)
	good.want("fine=x q0")
}

// The sweeper goes on with the other sessions.
func TestPanicInSweeper(t *testing.T) {
	h := openHouse(t, t.TempDir(), houseOptions{Options: Options{Access: fragile{}, Router: brittle{}}, panics: true})
	var published atomic.Int32
	cancel, err := h.Subscribe("+/will", 1, func(*Message) { published.Add(1) })
	if err != nil {
		t.Fatal(err)
	}
	defer cancel()
	for _, id := range []string{"a", "bad", "c"} {
		topic := id + "/will"
		if id == "bad" {
			topic = "no-route"
		}
		w, _ := keep(t, h.Broker, packet.V5, id, withWill(topic, 1))
		w.nc.Close()
	}
	waitUntil(t, func() bool { return published.Load() == 2 && h.Stats().Panics == 1 })
	if w, present := keep(t, h.Broker, packet.V5, "bad"); !present {
		t.Error("the session is gone")
	} else {
		w.sub("t")
	}
}

// One who subscribes inside of the process may panic, too.
func TestPanicInSubscriber(t *testing.T) {
	b := start(t, Options{})
	var seen atomic.Int32
	cancel, err := b.Subscribe("t", 0, func(*Message) {
		if seen.Add(1) == 1 {
			panic("on purpose")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer cancel()
	for range 3 {
		if err := b.Publish(t.Context(), &Message{Topic: "t"}, nil); err != nil {
			t.Fatal(err)
		}
	}
	waitUntil(t, func() bool { return seen.Load() == 3 })
	if n := b.Stats().Panics; n != 1 {
		t.Errorf("%d panics", n)
	}
}
