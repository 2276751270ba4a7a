package client_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fieldferry/fieldferry/localbroker"
	"github.com/fieldferry/fieldferry/localbroker/client"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 5 * time.Second

// broker runs a broker for the time of the test and returns its address.
func broker(t *testing.T) string {
	t.Helper()
	b := localbroker.New(localbroker.Options{Listeners: []localbroker.Listener{{Name: "plain", Addr: "127.0.0.1:0", AllowAnonymous: true}}})
	if err := b.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return b.Addr("plain").String()
}

func connect(t *testing.T, o client.Options) *client.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := client.Connect(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Abort)
	return c
}

func receive[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatal("nothing comes")
		panic("unreachable")
	}
}

func TestPublishAndSubscribe(t *testing.T) {
	addr := broker(t)
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		t.Run(v.String(), func(t *testing.T) {
			got := make(chan *client.Message, 10)
			sub := connect(t, client.Options{Address: addr, Version: v, Handler: func(m *client.Message) { got <- m }})
			reasons, err := sub.Subscribe(t.Context(), packet.Subscription{Filter: "a/+"}, packet.Subscription{Filter: "b/#", QoS: 1})
			if err != nil || fmt.Sprint(reasons) != "[success granted QoS 1]" {
				t.Fatalf("subscribe: %v, %v", reasons, err)
			}
			pub := connect(t, client.Options{Address: addr, Version: v})
			props := packet.Properties(nil)
			if v == packet.V5 {
				props = props.AppendUser("k", "v")
			}
			for qos := range byte(2) {
				if err := pub.Publish(t.Context(), &client.Message{Topic: "b/x", Payload: []byte("hello"), QoS: qos, Props: props, Expiry: 60 * time.Second}); err != nil {
					t.Fatal(err)
				}
				m := receive(t, got)
				if m.Topic != "b/x" || string(m.Payload) != "hello" || m.QoS != qos || string(m.Props) != string(props) || (m.Expiry == time.Minute) != (v == packet.V5) {
					t.Errorf("received %+v", m)
				}
			}
			if err := pub.Publish(t.Context(), &client.Message{Topic: "b/x", QoS: 3}); packet.ReasonOf(err) != packet.QoSNotSupported {
				t.Errorf("QoS 3: %v", err)
			}
			if reasons, err := sub.Unsubscribe(t.Context(), "b/#", "c"); err != nil || v == packet.V5 && fmt.Sprint(reasons) != "[success no subscription existed]" {
				t.Errorf("unsubscribe: %v, %v", reasons, err)
			}
			if v == packet.V5 {
				if _, err := sub.SubscribeID(t.Context(), 77, packet.Subscription{Filter: "id", QoS: 1}); err != nil {
					t.Fatal(err)
				}
				if err := pub.Publish(t.Context(), &client.Message{Topic: "id", QoS: 1}); err != nil {
					t.Fatal(err)
				}
				if m := receive(t, got); len(m.SubscriptionIDs) != 1 || m.SubscriptionIDs[0] != 77 {
					t.Errorf("identifiers %v", m.SubscriptionIDs)
				}
			}
			if err := sub.Close(); err != nil || !errors.Is(sub.Err(), client.ErrClosed) {
				t.Errorf("close: %v, %v", err, sub.Err())
			}
			if err := sub.Publish(t.Context(), &client.Message{Topic: "b/x"}); !errors.Is(err, client.ErrClosed) {
				t.Errorf("publish after close: %v", err)
			}
			if _, err := sub.Subscribe(t.Context(), packet.Subscription{Filter: "x"}); !errors.Is(err, client.ErrClosed) {
				t.Errorf("subscribe after close: %v", err)
			}
		})
	}
}

func TestManualAck(t *testing.T) {
	addr := broker(t)
	got := make(chan *client.Message, 10)
	connect(t, client.Options{Address: addr, ManualAck: true, ReceiveMaximum: 2, Handler: func(m *client.Message) { got <- m }}).
		Subscribe(t.Context(), packet.Subscription{Filter: "#", QoS: 1})
	pub := connect(t, client.Options{Address: addr})
	for range 4 {
		if err := pub.Publish(t.Context(), &client.Message{Topic: "t", QoS: 1}); err != nil {
			t.Fatal(err)
		}
	}
	first, second := receive(t, got), receive(t, got)
	if err := pub.Publish(t.Context(), &client.Message{Topic: "t", QoS: 1}); err != nil || len(got) > 0 {
		t.Errorf("%d more than the window, %v", len(got), err)
	}
	second.Ack()
	first.Ack()
	receive(t, got)
	receive(t, got)
}

func TestWill(t *testing.T) {
	addr := broker(t)
	got := make(chan *client.Message, 10)
	connect(t, client.Options{Address: addr, Handler: func(m *client.Message) { got <- m }}).Subscribe(t.Context(), packet.Subscription{Filter: "#"})
	will := func(payload string) *client.Message {
		return &client.Message{Topic: "will", Payload: []byte(payload), Expiry: time.Minute, Props: packet.Properties{}.AppendText(packet.ContentType, "t")}
	}
	if err := connect(t, client.Options{Address: addr, Will: will("closed")}).Close(); err != nil {
		t.Error(err)
	}
	connect(t, client.Options{Address: addr, Will: will("aborted")}).Abort()
	if m := receive(t, got); string(m.Payload) != "aborted" || m.Expiry != time.Minute || m.Props.Text(packet.ContentType) != "t" {
		t.Errorf("will %+v", m)
	}
}

// script is a broker that does what a test says after CONNECT.
func script(t *testing.T, do func(nc net.Conn, r *packet.Reader)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		r := packet.NewReader(nc, new(packet.Blocks), 1<<20)
		if _, _, err := r.Next(); err == nil {
			do(nc, r)
		}
	})
	t.Cleanup(func() {
		ln.Close()
		work.Wait()
	})
	return ln.Addr().String()
}

func accept(nc net.Conn, props packet.Properties) {
	_, _ = nc.Write((&packet.Connack{Props: props}).Append(nil, packet.V5))
}

func TestConnectFails(t *testing.T) {
	for _, c := range []struct {
		name  string
		v     packet.Version
		reply []byte
		want  packet.Reason
	}{
		{"refused", packet.V5, (&packet.Connack{Reason: packet.Banned, Props: packet.Properties{}.AppendText(packet.ReasonString, "why")}).Append(nil, packet.V5), packet.Banned},
		{"refused, 3.1.1", packet.V311, (&packet.Connack{Reason: 4}).Append(nil, packet.V311), packet.BadUserNameOrPassword},
		{"no version 5", packet.V5, []byte{0x20, 2, 0, 1}, packet.UnsupportedVersion},
		{"accepted as 3.1.1", packet.V5, []byte{0x20, 2, 0, 0}, packet.ProtocolError},
		{"malformed", packet.V5, []byte{0x20, 1, 0}, packet.Malformed},
		{"other packet", packet.V5, []byte{0xd0, 0}, packet.Unspecified},
		{"closed", packet.V5, nil, packet.Unspecified},
	} {
		addr := script(t, func(nc net.Conn, _ *packet.Reader) { _, _ = nc.Write(c.reply) })
		if _, err := client.Connect(t.Context(), client.Options{Address: addr, Version: c.v}); err == nil || packet.ReasonOf(err) != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	hang := script(t, func(_ net.Conn, r *packet.Reader) { _, _, _ = r.Next() })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := client.Connect(ctx, client.Options{Address: hang}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no CONNACK: %v", err)
	}
}

// Whoever waits is told how the connection ended.
func TestConnectionEnds(t *testing.T) {
	for _, c := range []struct {
		name  string
		reply []byte
		want  packet.Reason
	}{
		{"DISCONNECT", (&packet.Disconnect{Reason: packet.SessionTakenOver}).Append(nil, packet.V5, packet.DISCONNECT), packet.SessionTakenOver},
		{"closed", nil, packet.Unspecified},
		{"garbage", []byte{0x00}, packet.Malformed},
		{"SUBSCRIBE", (&packet.Subscribe{PacketID: 1, Subscriptions: []packet.Subscription{{Filter: "a"}}}).Append(nil, packet.V5), packet.ProtocolError},
		{"alias", (&packet.Publish{Topic: "a", Alias: 1}).Append(nil, packet.V5), packet.ProtocolError},
		{"SUBACK of a publish", (&packet.Suback{PacketID: 1, Reasons: []packet.Reason{0}}).Append(nil, packet.V5, packet.SUBACK), packet.ProtocolError},
		{"PUBREC of QoS 1", (&packet.Ack{PacketID: 1}).Append(nil, packet.V5, packet.PUBREC), packet.ProtocolError},
		{"PUBCOMP of QoS 1", (&packet.Ack{PacketID: 1}).Append(nil, packet.V5, packet.PUBCOMP), packet.ProtocolError},
		{"too large", []byte{0x30, 0xff, 0xff, 0xff, 0x7f}, packet.PacketTooLarge},
	} {
		addr := script(t, func(nc net.Conn, r *packet.Reader) {
			accept(nc, nil)
			_, _, _ = r.Next() // the publish
			_, _ = nc.Write(c.reply)
		})
		cl := connect(t, client.Options{Address: addr})
		err := cl.Publish(t.Context(), &client.Message{Topic: "t", QoS: 1})
		if err == nil || packet.ReasonOf(err) != c.want {
			t.Errorf("%s: publish says %v, want %v", c.name, err, c.want)
		}
		receive(t, cl.Done())
		if packet.ReasonOf(cl.Err()) != c.want {
			t.Errorf("%s: %v", c.name, cl.Err())
		}
	}
}

func TestRefusals(t *testing.T) {
	addr := script(t, func(nc net.Conn, r *packet.Reader) {
		accept(nc, nil)
		for {
			first, body, err := r.Next()
			if err != nil {
				return
			}
			switch packet.TypeOf(first) {
			case packet.PUBLISH:
				var p packet.Publish
				_ = p.Decode(packet.V5, first, body)
				_, _ = nc.Write((&packet.Ack{PacketID: p.PacketID, Reason: packet.QuotaExceeded}).Append(nil, packet.V5, packet.PUBACK))
			case packet.SUBSCRIBE:
				var p packet.Subscribe
				_ = p.Decode(packet.V5, body)
				_, _ = nc.Write((&packet.Suback{PacketID: p.PacketID, Reasons: []packet.Reason{0, packet.NotAuthorized}}).Append(nil, packet.V5, packet.SUBACK))
			}
		}
	})
	c := connect(t, client.Options{Address: addr})
	if err := c.Publish(t.Context(), &client.Message{Topic: "t", QoS: 1}); packet.ReasonOf(err) != packet.QuotaExceeded {
		t.Errorf("publish: %v", err)
	}
	if reasons, err := c.Subscribe(t.Context(), packet.Subscription{Filter: "a"}, packet.Subscription{Filter: "b"}); packet.ReasonOf(err) != packet.NotAuthorized || len(reasons) != 2 {
		t.Errorf("subscribe: %v, %v", reasons, err)
	}
}

// No more publishes are on their way than the broker takes, and a wait for that ends with its context.
func TestReceiveMaximum(t *testing.T) {
	for name, limit := range map[string]struct {
		props packet.Properties
		most  int
	}{
		"of the broker":         {packet.Properties{}.AppendUint(packet.ReceiveMaximum, 1), 0},
		"of the client":         {nil, 1},
		"the lower, the broker": {packet.Properties{}.AppendUint(packet.ReceiveMaximum, 1), 5},
		"the lower, the client": {packet.Properties{}.AppendUint(packet.ReceiveMaximum, 5), 1},
	} {
		t.Run(name, func(t *testing.T) { receiveMaximum(t, limit.props, limit.most) })
	}
}

func receiveMaximum(t *testing.T, props packet.Properties, most int) {
	release := make(chan struct{})
	addr := script(t, func(nc net.Conn, r *packet.Reader) {
		accept(nc, props)
		for {
			first, body, err := r.Next()
			if err != nil {
				return
			}
			if packet.TypeOf(first) == packet.PUBLISH {
				<-release
				var p packet.Publish
				_ = p.Decode(packet.V5, first, body)
				_, _ = nc.Write((&packet.Ack{PacketID: p.PacketID}).Append(nil, packet.V5, packet.PUBACK))
			}
		}
	})
	c := connect(t, client.Options{Address: addr, MaxInflight: most})
	one, err := c.Start(t.Context(), &client.Message{Topic: "t", QoS: 1})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Start(ctx, &client.Message{Topic: "t", QoS: 1}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second publish: %v", err)
	}
	close(release)
	if err := receive(t, one); err != nil {
		t.Error(err)
	}
	if err := c.Publish(t.Context(), &client.Message{Topic: "t", QoS: 1}); err != nil {
		t.Error(err)
	}
}

// A ping is answered behind all that was sent before, and told how the connection ends.
func TestPing(t *testing.T) {
	release := make(chan struct{})
	addr := script(t, func(nc net.Conn, r *packet.Reader) {
		accept(nc, nil)
		for n := 0; ; {
			first, _, err := r.Next()
			if err != nil {
				return
			}
			switch packet.TypeOf(first) {
			case packet.PUBLISH:
				n++
			case packet.PINGREQ:
				if n != 100 {
					t.Errorf("PINGREQ after %d messages", n)
				}
				<-release
				_, _ = nc.Write(packet.AppendPingresp(nil))
			}
		}
	})
	c := connect(t, client.Options{Address: addr})
	for range 100 {
		if err := c.Publish(t.Context(), &client.Message{Topic: "t"}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without an answer: %v", err)
	}
	close(release)
	if err := c.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Ping(t.Context()); !errors.Is(err, client.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

// The client pings in time, and gives up on a broker that is silent.
func TestKeepAlive(t *testing.T) {
	pinged := make(chan struct{})
	addr := script(t, func(nc net.Conn, r *packet.Reader) {
		accept(nc, packet.Properties{}.AppendUint(packet.ServerKeepAlive, 1))
		for {
			first, _, err := r.Next()
			if err != nil {
				return
			}
			if packet.TypeOf(first) == packet.PINGREQ {
				select {
				case <-pinged:
				default:
					close(pinged)
				}
			}
		}
	})
	began := time.Now()
	c := connect(t, client.Options{Address: addr, KeepAlive: time.Hour})
	receive(t, pinged)
	receive(t, c.Done())
	if d := time.Since(began); d < 1400*time.Millisecond || d > 20*time.Second {
		t.Errorf("gave up after %v", d)
	}
}
