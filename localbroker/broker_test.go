package localbroker

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

func TestDelivery(t *testing.T) {
	both(t, func(t *testing.T, v packet.Version) {
		b := start(t, Options{})
		sub, pub := connect(t, b, v, "sub"), connect(t, b, v, "pub")
		if r := sub.subscribe(packet.Subscription{Filter: "zero/#"}, packet.Subscription{Filter: "one/+", QoS: 1}, packet.Subscription{Filter: "two/#", QoS: 2}, packet.Subscription{Filter: "+/all"}); fmt.Sprint(r) != "[success granted QoS 1 granted QoS 2 success]" {
			t.Fatalf("granted %v", r)
		}
		for _, topic := range []string{"zero/a", "one/a", "two/a", "none", "zero", "one/a/b", "two/all"} {
			pub.publish(topic, "q0", 0, 0)
			pub.publish(topic, "q1", 1, 5)
			if r := pub.expectAck(5); r.Failed() || v == packet.V5 && (r == packet.NoMatchingSubscribers) != (topic == "none" || topic == "one/a/b") {
				t.Errorf("%s: acknowledged with %v", topic, r)
			}
		}
		sub.want("zero/a=q0 q0", "zero/a=q1 q0", "one/a=q0 q0", "one/a=q1 q1", "two/a=q0 q0", "two/a=q1 q1", "zero=q0 q0", "zero=q1 q0",
			"two/all=q0 q0", "two/all=q1 q1") // once, with the highest QoS of the two
		sub.send((&packet.Unsubscribe{PacketID: 3, Filters: []string{"two/#", "never"}}).Append(nil, v))
		first, body := sub.receive()
		var ack packet.Suback
		if packet.TypeOf(first) != packet.UNSUBACK || ack.Decode(v, packet.UNSUBACK, body) != nil || v == packet.V5 && (ack.Reasons[0] != 0 || ack.Reasons[1] != packet.NoSubscriptionExisted) {
			t.Errorf("%v %+v", packet.TypeOf(first), ack)
		}
		pub.publish("two/a", "q1", 1, 6)
		pub.expectAck(6)
		sub.nothing()
	})
}

func TestHiddenTopics(t *testing.T) {
	b := start(t, Options{})
	sub, pub := connect(t, b, packet.V5, "sub"), connect(t, b, packet.V5, "pub")
	sub.sub("#", "+/x", "$other/#")
	pub.publish("$SYS/x", "forged", 1, 1)
	if r := pub.expectAck(1); r != packet.NotAuthorized {
		t.Errorf("a publish to $SYS: %v", r)
	}
	pub.publish("$hidden/x", "", 1, 2)
	pub.expectAck(2)
	if err := b.Publish(t.Context(), &Message{Topic: "$SYS/x"}, nil); err != nil {
		t.Error(err)
	}
	pub.publish("$other/x", "seen", 1, 3)
	pub.expectAck(3)
	sub.want("$other/x=seen q1")
	sub.nothing()
}

func TestRetained(t *testing.T) {
	both(t, func(t *testing.T, v packet.Version) {
		b := start(t, Options{})
		early, pub := connect(t, b, v, "early"), connect(t, b, v, "pub")
		early.sub("#")
		pub.publish("a/1", "old", 1, 1, retain)
		pub.publish("a/1", "new", 1, 2, retain)
		pub.publish("a/2", "gone", 1, 3, retain)
		pub.publish("a/2", "", 1, 4, retain)
		pub.publish("a/3", "not kept", 1, 5)
		pub.publish("b", "other", 0, 0, retain)
		for id := range uint16(5) {
			pub.expectAck(id + 1)
		}
		pub.nothing()
		early.want("a/1=old q1", "a/1=new q1", "a/2=gone q1", "a/2= q1", "a/3=not kept q1", "b=other q0") // live: RETAIN is 0
		late := connect(t, b, v, "late")
		late.sub("a/#")
		late.want("a/1=new q1 r")
		late.sub("a/#") // subscribing again sends them again
		late.want("a/1=new q1 r")
		late.subscribe(packet.Subscription{Filter: "+"})
		late.want("b=other q0 r")
		late.nothing()
	})
}

func TestSubscriptionOptions(t *testing.T) {
	b := start(t, Options{})
	c := connect(t, b, packet.V5, "c")
	other := connect(t, b, packet.V5, "other")
	other.publish("kept/1", "k", 1, 1, retain)
	other.expectAck(1)
	id := func(n uint32) packet.Properties { return packet.Properties{}.AppendUint(packet.SubscriptionID, n) }

	c.subscribeWith(id(1), packet.Subscription{Filter: "kept/#", QoS: 1, RetainHandling: 2})
	c.nothing()
	c.subscribeWith(id(1), packet.Subscription{Filter: "kept/#", QoS: 1, RetainHandling: 1}) // is there already
	c.nothing()
	c.subscribeWith(id(268435455), packet.Subscription{Filter: "kept/+", QoS: 1, RetainHandling: 1})
	c.want("kept/1=k q1 r #268435455")

	c.subscribe(packet.Subscription{Filter: "mine/#", QoS: 1, NoLocal: true}, packet.Subscription{Filter: "rap/#", QoS: 1, RetainAsPublished: true})
	c.publish("mine/1", "echo", 1, 1)
	c.expectAck(1)
	other.publish("mine/1", "theirs", 0, 0)
	other.publish("rap/1", "x", 0, 0, retain)
	other.publish("rap/1", "y", 0, 0)
	other.publish("kept/2", "both", 1, 2)
	c.want("mine/1=theirs q0", "rap/1=x q0 r", "rap/1=y q0")
	p := c.expectPublish()
	if len(p.SubscriptionIDs) != 2 || p.SubscriptionIDs[0]+p.SubscriptionIDs[1] != 268435456 {
		t.Errorf("subscription identifiers %v", p.SubscriptionIDs)
	}
}

// What goes with a message arrives unchanged and in its order; nothing is added.
func TestProperties(t *testing.T) {
	b := start(t, Options{})
	sub, sub311, pub := connect(t, b, packet.V5, "sub"), connect(t, b, packet.V311, "sub311"), connect(t, b, packet.V5, "pub")
	sub.sub("#")
	sub311.sub("#")
	props := packet.Properties{}.AppendUint(packet.PayloadFormat, 1).AppendText(packet.ContentType, "text/plain").AppendText(packet.ResponseTopic, "re/ply").
		AppendText(packet.CorrelationData, "\x00\x01").AppendUser("b", "1").AppendUser("a", "2").AppendUser("b", "3")
	pub.publish("t", "x", 1, 1, func(p *packet.Publish) { p.Props = props })
	pub.publish("t", "y", 1, 2, func(p *packet.Publish) { p.HasExpiry, p.Expiry = true, 60 })
	pub.publish("t", "z", 1, 3, func(p *packet.Publish) { p.HasExpiry = true }) // expires at once
	p := sub.expectPublish()
	if string(p.Props) != string(props) || p.HasExpiry {
		t.Errorf("properties % x, expiry %v; sent % x", []byte(p.Props), p.HasExpiry, []byte(props))
	}
	if p = sub.expectPublish(); !p.HasExpiry || p.Expiry != 60 || len(p.Props) > 0 {
		t.Errorf("%+v", p)
	}
	sub.nothing()
	sub311.want("t=x q1", "t=y q1")
	sub311.nothing()
}

func TestExpiry(t *testing.T) {
	m := &Message{Received: time.Unix(1000, 0), Expiry: 10 * time.Second}
	for _, c := range []struct {
		after time.Duration
		left  uint32
		ok    bool
	}{{0, 10, true}, {3500 * time.Millisecond, 7, true}, {9999 * time.Millisecond, 1, true}, {10 * time.Second, 0, false}} {
		if left, has, ok := m.expiresIn(m.Received.Add(c.after)); left != c.left || ok != c.ok || !has {
			t.Errorf("after %v: %d, %v, %v", c.after, left, has, ok)
		}
	}
	b := New(Options{})
	if err := b.Publish(t.Context(), &Message{Topic: "t", Payload: []byte("x"), Retain: true, Received: time.Now().Add(-time.Minute), Expiry: 30 * time.Second}, nil); err != nil {
		t.Fatal(err)
	}
	got := make(chan *Message, 1)
	cancel, err := b.Subscribe("#", 1, func(m *Message) { got <- m })
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	b.retained.expire(time.Now())
	if s := b.Stats(); len(got) != 0 || s.RetainedMessages != 0 || s.RetainedBytes != 0 {
		t.Errorf("an expired retained message: %d received, %d kept, %d bytes", len(got), s.RetainedMessages, s.RetainedBytes)
	}
}

func TestTopicAlias(t *testing.T) {
	b := start(t, Options{Limits: Limits{TopicAliases: 3}})
	sub, pub := connect(t, b, packet.V5, "sub"), connect(t, b, packet.V5, "pub")
	sub.sub("#")
	alias := func(n uint16) func(*packet.Publish) { return func(p *packet.Publish) { p.Alias = n } }
	pub.publish("long/topic", "1", 0, 0, alias(3))
	pub.publish("", "2", 0, 0, alias(3))
	pub.publish("other", "3", 0, 0, alias(3))
	pub.publish("", "4", 0, 0, alias(3))
	sub.want("long/topic=1 q0", "long/topic=2 q0", "other=3 q0", "other=4 q0")
	pub.publish("", "5", 0, 0, alias(2))
	pub.closed(packet.ProtocolError)
	pub = connect(t, b, packet.V5, "pub")
	pub.publish("x", "5", 0, 0, alias(4))
	pub.closed(packet.TopicAliasInvalid)
	sub.nothing()
}

func TestConnack(t *testing.T) {
	b := start(t, Options{Limits: Limits{Keepalive: 100 * time.Second, ReceiveMaximum: 7, PacketSize: 5000, TopicAliases: 9}})
	w := dial(t, b, packet.V5)
	ack := w.connect("", func(p *packet.Connect) {
		p.KeepAlive = 43691
		p.Props = p.Props.AppendUint(packet.SessionExpiry, 100)
	})
	for id, want := range map[packet.Property]uint32{packet.ServerKeepAlive: 100, packet.ReceiveMaximum: 7, packet.MaximumPacketSize: 5000, packet.TopicAliasMaximum: 9, packet.SessionExpiry: 0} {
		if v, ok := ack.Props.Uint(id); !ok || v != want {
			t.Errorf("CONNACK has %d, %v for property %#x, want %d", v, ok, byte(id), want)
		}
	}
	if ack.SessionPresent || len(ack.Props.Text(packet.AssignedClientID)) < 10 {
		t.Errorf("session %v, assigned id %q", ack.SessionPresent, ack.Props.Text(packet.AssignedClientID))
	}
	w.nothing()
	w = dial(t, b, packet.V5)
	if ack := w.connect("own", func(p *packet.Connect) { p.KeepAlive = 50 }); ack.Props.Text(packet.AssignedClientID) != "" {
		t.Error("an id is assigned to a client that has one")
	} else if _, ok := ack.Props.Uint(packet.ServerKeepAlive); ok {
		t.Error("another keepalive in the place of one that is allowed")
	}
	connect(t, b, packet.V311, "", func(p *packet.Connect) { p.KeepAlive = 65535 }).nothing()
}

func TestRefusedConnections(t *testing.T) {
	b := start(t, Options{Listeners: []Listener{{Name: "plain", Addr: "127.0.0.1:0", AllowAnonymous: true}, {Name: "closed", Addr: "127.0.0.1:0"}}})
	for _, c := range []struct {
		name, hex, want string
	}{
		{"not CONNECT", "c000", ""},
		{"PUBLISH first", "30 03 0001 61", ""},
		{"type 0", "00 00", ""},
		{"MQTT 3.1", "10 0f 0006 4d5149736470 03 02 003c 0001 63", "20 02 00 01"},
		{"level 3", "10 0d 0004 4d515454 03 02 003c 0001 63", "20 02 00 01"},
		{"level 6", "10 0e 0004 4d515454 06 02 003c 00 0001 63", "20 03 00 84 00"},
		{"level of a bridge", "10 0d 0004 4d515454 84 02 003c 0001 63", "20 02 00 01"},
		{"other protocol", "10 0d 0004 4d515458 04 02 003c 0001 63", "20 02 00 01"},
		{"reserved flag, 3.1.1", "10 0d 0004 4d515454 04 03 003c 0001 63", ""},
		{"reserved flag, 5", "10 0e 0004 4d515454 05 03 003c 00 0001 63", "20 03 00 81 00"},
		{"receive maximum 0", "10 11 0004 4d515454 05 02 003c 03 210000 0001 63", "20 03 00 82 00"},
		{"no client id, session kept, 3.1.1", "10 0c 0004 4d515454 04 00 003c 0000", "20 02 00 02"},
		{"will with wildcard, 5", "10 14 0004 4d515454 05 06 003c 00 0001 63 00 0001 23 0000", "20 03 00 90 00"},
		{"authentication method", "10 12 0004 4d515454 05 02 003c 04 15 0001 6d 0001 63", "20 03 00 8c 00"},
		{"claims 256 MB", "10 ff ff ff 7f", ""},
		{"length of 5 bytes", "10 80 80 80 80 01", ""},
	} {
		w := dial(t, b, packet.V5)
		w.send(unhex(t, c.hex))
		if got := readAll(t, w.nc); got != strings.ReplaceAll(c.want, " ", "") {
			t.Errorf("%s: answered with %s, want %s", c.name, got, c.want)
		}
	}
	nc, err := net.Dial("tcp", b.Addr("closed").String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.Write((&packet.Connect{Version: packet.V5, ClientID: "c"}).Append(nil)); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, nc); got != "2003008700" {
		t.Errorf("anonymous where it is not allowed: %s", got)
	}
}

func readAll(t *testing.T, nc net.Conn) string {
	t.Helper()
	var all []byte
	buf := make([]byte, 1000)
	_ = nc.SetReadDeadline(time.Now().Add(patience))
	for {
		n, err := nc.Read(buf)
		all = append(all, buf[:n]...)
		if err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Error("the connection stays open")
			}
			return fmt.Sprintf("%x", all)
		}
	}
}

// What ends a connection, and only that one.
func TestProtocolErrors(t *testing.T) {
	b := start(t, Options{Limits: Limits{PacketSize: 100}})
	bystander := connect(t, b, packet.V5, "bystander")
	for _, c := range []struct {
		name, hex string
		v         packet.Version
		want      packet.Reason
	}{
		{"second CONNECT", "10 0e 0004 4d515454 05 02 003c 00 0001 63", packet.V5, packet.ProtocolError},
		{"CONNACK", "20 03 00 00 00", packet.V5, packet.ProtocolError},
		{"SUBACK", "90 04 0001 00 00", packet.V5, packet.ProtocolError},
		{"PINGRESP", "d0 00", packet.V5, packet.ProtocolError},
		{"AUTH", "f0 00", packet.V5, packet.ProtocolError},
		{"QoS 3", "36 06 0001 61 0001 00", packet.V5, packet.Malformed},
		{"wildcard in a name", "30 04 0001 23 00", packet.V5, packet.TopicNameInvalid},
		{"wildcard in a name, 3.1.1", "30 03 0001 2b", packet.V311, 0},
		{"subscription identifier from a client", "30 06 0001 61 02 0b01", packet.V5, packet.ProtocolError},
		{"null in a name", "30 04 0001 00 00", packet.V5, packet.Malformed},
		{"name is not UTF-8", "30 04 0001 ff 00", packet.V5, packet.Malformed},
		{"empty filter", "82 06 0001 00 0000 00", packet.V5, packet.Malformed},
		{"the 7 bytes", "82 05 3030 00 00 00", packet.V311, 0},
		{"filter a#", "82 08 0001 00 0002 6123 00", packet.V5, packet.Malformed},
		{"empty share name", "82 0f 0001 00 0009 2473686172652f2f61 00", packet.V5, packet.Malformed},
		{"unsubscribe from a+", "a2 07 0001 00 0002 612b", packet.V5, packet.Malformed},
		{"too large", "30 65", packet.V5, packet.PacketTooLarge},
		{"PINGREQ with a body", "c0 01 00", packet.V5, packet.Malformed},
		{"length longer than need be", "c0 80 00", packet.V5, packet.Malformed},
		{"DISCONNECT that makes the session last", "e0 07 00 05 11 00000001", packet.V5, packet.ProtocolError},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := connect(t, b, c.v, "wrong")
			w.send(unhex(t, c.hex))
			w.closed(c.want)
		})
	}
	bystander.nothing()
}

func TestLimits(t *testing.T) {
	b := start(t, Options{Limits: Limits{Clients: 3, SubscriptionsPerClient: 2, TopicLevels: 3, RetainedMessages: 2}})
	c := connect(t, b, packet.V5, "c")
	if r := c.subscribe(packet.Subscription{Filter: "a/b/c/d"}, packet.Subscription{Filter: "1"}, packet.Subscription{Filter: "2"}, packet.Subscription{Filter: "3"}, packet.Subscription{Filter: "1", QoS: 1}, packet.Subscription{Filter: "$share/g/a/b/c"}); fmt.Sprint(r) !=
		"[topic filter invalid success success quota exceeded granted QoS 1 quota exceeded]" {
		t.Errorf("subscriptions: %v", r)
	}
	for i, want := range []packet.Reason{0x10, 0x10, packet.QuotaExceeded, packet.TopicNameInvalid} {
		c.publish([]string{"r/1", "r/2", "r/3", "a/b/c/d"}[i], "x", 1, 1, retain)
		if r := c.expectAck(1); r != want {
			t.Errorf("publish %d: %v, want %v", i, r, want)
		}
	}
	c.publish("r/1", "again", 1, 1, retain)
	if r := c.expectAck(1); r.Failed() {
		t.Errorf("a retained message in the place of another: %v", r)
	}
	c311 := connect(t, b, packet.V311, "c311")
	if r := c311.subscribe(packet.Subscription{Filter: "a/b/c/d"}); r[0] != packet.Unspecified {
		t.Errorf("too many levels in 3.1.1: %v", r)
	}
	c311.publish("r/3", "x", 1, 1, retain)
	c311.closed(0)
	waitFor(t, func() bool { return b.Stats().Clients == 1 })
	connect(t, b, packet.V5, "2")
	connect(t, b, packet.V5, "3")
	if ack := dial(t, b, packet.V5).connect("4"); ack.Reason != packet.QuotaExceeded {
		t.Errorf("one client too many: %v", ack.Reason)
	}
	if ack := dial(t, b, packet.V311).connect("4"); ack.Reason != 3 {
		t.Errorf("one client too many in 3.1.1: %v", ack.Reason)
	}
	connect(t, b, packet.V5, "2") // takes over, so it is none more

	b = start(t, Options{Limits: Limits{ClientsPerAddress: 2}})
	one, _ := connect(t, b, packet.V5, "1"), connect(t, b, packet.V5, "2")
	dial(t, b, packet.V5).closed(0)
	one.send((&packet.Disconnect{}).Append(nil, packet.V5, packet.DISCONNECT))
	one.closed(0)
	waitFor(t, func() bool { return b.Stats().Connections == 1 })
	connect(t, b, packet.V5, "3")
}

// waitFor waits for what is bound to become true.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not come to that")
		}
	}
}

func TestTimeouts(t *testing.T) {
	b := start(t, Options{Limits: Limits{ConnectTimeout: 50 * time.Millisecond}})
	silent := dial(t, b, packet.V5)
	slow := dial(t, b, packet.V5)
	slow.send([]byte{0x10, 0x20, 0})
	quiet := connect(t, b, packet.V5, "quiet", func(p *packet.Connect) { p.KeepAlive = 1 })
	trickle := connect(t, b, packet.V5, "trickle", func(p *packet.Connect) { p.KeepAlive = 1 })
	trickle.send([]byte{0x30, 0x20, 0})
	began := time.Now()
	silent.closed(0)
	slow.closed(0)
	if d := time.Since(began); d > time.Second {
		t.Errorf("connections without CONNECT stay for %v", d)
	}
	quiet.closed(packet.KeepAliveTimeout)
	trickle.closed(packet.KeepAliveTimeout) // half a packet is none
	if d := time.Since(began); d < 1200*time.Millisecond || d > 3*time.Second {
		t.Errorf("keepalive of 1 s ended after %v", d)
	}
}

func TestStop(t *testing.T) {
	b := New(Options{Listeners: []Listener{{Name: "plain", Addr: "127.0.0.1:0", AllowAnonymous: true}}})
	if err := b.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	wills := make(chan string, 2)
	cancel, err := b.Subscribe("will/+", 1, func(m *Message) { wills <- m.Topic })
	if err != nil {
		t.Fatal(err)
	}
	defer cancel()
	c := connect(t, b, packet.V5, "c", func(p *packet.Connect) { p.Will = &packet.Will{Topic: "will/c"} })
	half := dial(t, b, packet.V5)
	half.send([]byte{0x10})
	waitFor(t, func() bool { return b.Stats().Connections == 2 })
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	c.closed(packet.ServerShuttingDown)
	half.closed(0)
	if w := <-wills; w != "will/c" {
		t.Error(w)
	}
	if s := b.Stats(); s.Connections+s.Clients+s.Subscriptions != 1 { // that of this test
		t.Errorf("%+v", s)
	}
}

func TestListenErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	b := New(Options{Listeners: []Listener{{Name: "free", Addr: "127.0.0.1:0"}, {Name: "plain", Addr: taken.Addr().String()}}})
	if err := b.Listen(); err == nil || !strings.Contains(err.Error(), taken.Addr().String()) || !strings.Contains(err.Error(), `"plain"`) {
		t.Errorf("error %v", err)
	}
	if b.Addr("free") != nil {
		t.Error("the other listener is bound")
	}
}

// panics is an Access that fails badly.
type panics struct{}

func (panics) Authenticate(_ context.Context, l *Login) (Rights, error) {
	if l.ClientID == "bad" {
		panic("on purpose")
	}
	return panics{}, nil
}
func (panics) MayPublish(string) bool   { return true }
func (panics) MaySubscribe(string) bool { return true }
func (panics) MayReceive(topic string) bool {
	if strings.HasSuffix(topic, "bad") {
		panic("on purpose")
	}
	return true
}

func TestPanic(t *testing.T) {
	d := newDisk()
	b := start(t, Options{Access: panics{}, Buffer: d, Router: routes{"data/": buffer.Telemetry}})
	good := connect(t, b, packet.V5, "good")
	good.sub("#")
	bad := dial(t, b, packet.V5)
	bad.send((&packet.Connect{Version: packet.V5, ClientID: "bad"}).Append(nil))
	bad.closed(0)
	good.nothing()
	worse := connect(t, b, packet.V5, "worse")
	worse.publish("bad", "x", 1, 1)
	worse.closed(packet.ImplementationSpecific)
	worst := connect(t, b, packet.V5, "worst")
	worst.publish("data/bad", "x", 1, 1)
	d.await(t, 1)
	d.commit(0, nil) // the disk's goroutine does not see it
	worst.closed(packet.ImplementationSpecific)
	other := connect(t, b, packet.V5, "other")
	other.publish("data/good", "x", 1, 1)
	d.await(t, 2)
	d.commit(1, nil)
	other.expectAck(1)
	good.want("data/good=x q1")
	if s := b.Stats(); s.Panics != 3 || s.Clients != 2 {
		t.Errorf("%d panics, %d clients", s.Panics, s.Clients)
	}
}

// rights lets clients with the right password publish, subscribe to and
// receive what is not secret.
type rights struct{}

func (rights) Authenticate(_ context.Context, l *Login) (Rights, error) {
	switch {
	case l.Username == "banned":
		return nil, packet.Errorf(packet.Banned, "go away")
	case string(l.Password) != "right":
		return nil, packet.Errorf(packet.BadUserNameOrPassword, "wrong")
	}
	return rights{}, nil
}
func (rights) MayPublish(topic string) bool    { return !strings.HasPrefix(topic, "secret") }
func (rights) MaySubscribe(filter string) bool { return !strings.HasPrefix(filter, "secret") }
func (rights) MayReceive(topic string) bool    { return !strings.HasPrefix(topic, "secret") }

func TestAccess(t *testing.T) {
	b := start(t, Options{Access: rights{}})
	login := func(user, password string) func(*packet.Connect) {
		return func(p *packet.Connect) {
			p.HasUsername, p.HasPassword, p.Username, p.Password = true, true, user, []byte(password)
		}
	}
	for _, c := range []struct {
		user, password string
		v              packet.Version
		want           packet.Reason
	}{{"u", "wrong", packet.V5, packet.BadUserNameOrPassword}, {"u", "wrong", packet.V311, 4}, {"banned", "right", packet.V5, packet.Banned}, {"banned", "right", packet.V311, 5}} {
		if ack := dial(t, b, c.v).connect("c", login(c.user, c.password)); ack.Reason != c.want {
			t.Errorf("%s, %s: %v, want %v", c.user, c.password, ack.Reason, c.want)
		}
	}
	if ack := dial(t, b, packet.V5).connect("c", login("u", "right"), func(p *packet.Connect) { p.Will = &packet.Will{Topic: "secret/will"} }); ack.Reason != packet.NotAuthorized {
		t.Errorf("will to a secret topic: %v", ack.Reason)
	}
	c := connect(t, b, packet.V5, "c", login("u", "right"))
	if r := c.subscribe(packet.Subscription{Filter: "secret/#"}, packet.Subscription{Filter: "#", QoS: 1}, packet.Subscription{Filter: "$share/g/secret/#"}); fmt.Sprint(r) != "[not authorized granted QoS 1 not authorized]" {
		t.Errorf("subscriptions: %v", r)
	}
	for _, topic := range []string{"secret/1", "open"} {
		if err := b.Publish(t.Context(), &Message{Topic: topic, Payload: []byte("x"), Retain: true}, nil); err != nil {
			t.Error(err)
		}
	}
	c.want("open=x q0")
	c.publish("secret/2", "x", 1, 1)
	if r := c.expectAck(1); r != packet.NotAuthorized {
		t.Errorf("publish to a secret topic: %v", r)
	}
	c.subscribe(packet.Subscription{Filter: "+/#"})
	c.want("open=x q0 r")
	c.nothing()
	c311 := connect(t, b, packet.V311, "c311", login("u", "right"))
	c311.publish("secret/2", "x", 1, 1)
	c311.expectAck(1)
	c311.nothing()
}
