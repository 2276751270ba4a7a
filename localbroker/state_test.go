package localbroker

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/buffer/rows"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

func expires(seconds uint32) func(*packet.Publish) {
	return func(p *packet.Publish) { p.HasExpiry, p.Expiry = true, seconds }
}

// A change that came with a message holds also when that has expired before
// state.db has it.
func TestChangesDoNotExpire(t *testing.T) {
	dir := t.TempDir()
	h := openHouse(t, dir, houseOptions{idle: true})
	pub, _ := keep(t, h.Broker, packet.V5, "pub")
	pub.publish("status", "old", 1, 1, retain)
	pub.expectAck(1)
	if err := h.state.drain(); err != nil {
		t.Fatal(err)
	}
	pub.publish("status", "new", 1, 2, retain, expires(1))
	pub.expectAck(2)
	pub.publish("once", "x", 2, 3, retain, expires(1))
	pub.expect(packet.PUBREC, 3)
	h = openHouse(t, h.crashed(), houseOptions{later: time.Minute})
	if n := h.Stats().RetainedMessages; n != 0 {
		t.Errorf("%d messages are retained that have expired or were replaced", n)
	}
	sub := connect(t, h.Broker, packet.V5, "sub")
	sub.sub("#")
	pub, _ = keep(t, h.Broker, packet.V5, "pub")
	pub.publish("once", "x", 2, 3, func(p *packet.Publish) { p.Dup = true })
	pub.expect(packet.PUBREC, 3)
	sub.nothing()
}

// A buffer that is full refuses messages, not what clients do to take them.
func TestFullBufferLetsClientsIn(t *testing.T) {
	h := openHouse(t, t.TempDir(), houseOptions{buffer: buffer.Options{Limits: buffer.Limits{MaxBytes: 2 << 20, RejectNew: true}}})
	away, _ := keep(t, h.Broker, packet.V5, "away")
	away.sub("#")
	away.goodbye()
	pub, _ := keep(t, h.Broker, packet.V5, "pub")
	pub.publish("a", "x", 2, 1)
	pub.expect(packet.PUBREC, 1)
	r := make(told, 1)
	if err := h.Publish(context.Background(), &Message{Topic: "r", Payload: []byte("x"), QoS: 1, Retain: true, Urgent: true}, r); err != nil || <-r != nil {
		t.Fatal(err)
	}
	for {
		err := h.Publish(context.Background(), &Message{Topic: "a", Payload: make([]byte, 100_000), QoS: 1, Urgent: true}, r)
		if err == nil {
			err = <-r
		}
		if errors.Is(err, buffer.ErrFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	pub.publish("a", "x", 1, 2)
	if r := pub.expectAck(2); r != packet.QuotaExceeded {
		t.Errorf("a publish into a full buffer: %v", r)
	}
	pub.send((&packet.Ack{PacketID: 1}).Append(nil, pub.v, packet.PUBREL))
	pub.expect(packet.PUBCOMP, 1)
	c, _ := keep(t, h.Broker, packet.V5, "c", withWill("a", 0))
	c.sub("b")
	// What there is no room for is refused by itself.
	if r := c.subscribe(packet.Subscription{Filter: "r", QoS: 1}, packet.Subscription{Filter: "c", QoS: 1}); r[0] != packet.QuotaExceeded || r[1] != packet.GrantedQoS1 {
		t.Errorf("granted %v", r)
	}
}

// The time of a session whose client was connected when the process died goes on over
// any number of restarts.
func TestSessionsEndOverRestarts(t *testing.T) {
	h := openHouse(t, t.TempDir(), houseOptions{})
	c, _ := keep(t, h.Broker, packet.V5, "c")
	c.sub("#")
	dir := h.crashed()
	for _, later := range []time.Duration{0, 40 * time.Minute, 80 * time.Minute} {
		h = openHouse(t, dir, houseOptions{later: later})
		eventually(t, "it is not there, or there for too long", func() bool { return h.Stats().Subscriptions == 1 == (later < time.Hour) })
		eventually(t, "a client is connected", func() bool { return h.Stats().Clients == 0 })
		h.stop()
	}
}

// Retained messages that expire while nothing runs leave nothing behind.
func TestRetainedExpireWhileClosed(t *testing.T) {
	h := openHouse(t, t.TempDir(), houseOptions{})
	pub := connect(t, h.Broker, packet.V5, "pub")
	pub.publish("brief", "x", 1, 1, retain, expires(60))
	pub.publish("long", "x", 1, 2, retain, expires(7200))
	pub.expectAck(1)
	pub.expectAck(2)
	h.stop()
	h = openHouse(t, h.dir, houseOptions{later: time.Hour})
	if n := h.Stats().RetainedMessages; n != 1 {
		t.Errorf("%d retained", n)
	}
	h.stop()
	h = openHouse(t, h.dir, houseOptions{}) // by its own time nothing has expired
	if n := h.Stats().RetainedMessages; n != 1 {
		t.Errorf("%d retained: rows were left", n)
	}
}

// What the broker says of itself ends with it: an alarm that was raised may be none any
// more.
func TestOwnTopicsAreNotKept(t *testing.T) {
	h := openHouse(t, t.TempDir(), houseOptions{})
	for _, topic := range []string{"$SYS/broker/alarms/x", "other"} {
		if err := h.Publish(t.Context(), &Message{Topic: topic, Payload: []byte("raised"), QoS: 1, Retain: true, Urgent: true}, nil); err != nil {
			t.Fatal(err)
		}
	}
	sub := connect(t, h.Broker, packet.V5, "sub")
	sub.sub("$SYS/#", "other")
	sub.want("$SYS/broker/alarms/x=raised q1 r")
	h.stop()
	h = openHouse(t, h.dir, houseOptions{})
	sub = connect(t, h.Broker, packet.V5, "sub")
	sub.sub("$SYS/#", "other")
	sub.want("other=raised q1 r")
}

// Names may be longer than a key of state.db.
func TestLongTopics(t *testing.T) {
	h := openHouse(t, t.TempDir(), houseOptions{})
	c, _ := keep(t, h.Broker, packet.V5, "c")
	for _, n := range []int{32_000, 33_000, 65_000} {
		topic := strings.Repeat("x", n)
		c.publish(topic, "x", 1, 1, retain)
		c.expectAck(1)
		c.sub(topic+"/x", topic+"/y")
		c.send((&packet.Unsubscribe{PacketID: 9, Filters: []string{topic + "/y"}}).Append(nil, c.v))
		if first, _ := c.receive(); packet.TypeOf(first) != packet.UNSUBACK {
			t.Fatal(packet.TypeOf(first))
		}
	}
	h.stop()
	h = openHouse(t, h.dir, houseOptions{})
	if s := h.Stats(); s.RetainedMessages != 3 || s.Subscriptions != 3 {
		t.Errorf("%d retained, %d subscriptions", s.RetainedMessages, s.Subscriptions)
	}
}

// What is known of copies in one buffer says nothing of those in another.
func TestAnotherBuffer(t *testing.T) {
	h := openHouse(t, t.TempDir(), houseOptions{})
	sub, _ := keep(t, h.Broker, packet.V5, "sub")
	sub.subscribe(packet.Subscription{Filter: "t", QoS: 2})
	publish := func(payload string) {
		r := make(told, 1)
		if err := h.Publish(t.Context(), &Message{Topic: "t", Payload: []byte(payload), QoS: 2, Urgent: true}, r); err != nil || <-r != nil {
			t.Fatal(err)
		}
	}
	publish("1")
	publish("2")
	sub.expectPublish()
	id := sub.expectPublish().PacketID
	sub.send((&packet.Ack{PacketID: id}).Append(nil, sub.v, packet.PUBREC)) // out of turn
	sub.expect(packet.PUBREL, id)
	h.stop()
	if err := os.RemoveAll(filepath.Join(h.dir, "buffer")); err != nil {
		t.Fatal(err)
	}
	h = openHouse(t, h.dir, houseOptions{})
	publish("3")
	publish("4")
	h.stop()
	h = openHouse(t, h.dir, houseOptions{})
	sub, _ = keep(t, h.Broker, packet.V5, "sub")
	for _, want := range []string{"3", "4"} {
		if p := sub.expectPublish(); string(p.Payload) != want {
			t.Errorf("got %s, want %s", p.Payload, want)
		}
	}
}

// byClass routes everything below the name of a class to an outbox of that.
type byClass struct{ b *buffer.Buffer }

func (r byClass) Route(m *Message, dst []buffer.Copy) (buffer.Class, []buffer.Copy) {
	name, _, _ := strings.Cut(m.Topic, "/")
	class, ok := buffer.ParseClass(name)
	if !ok {
		return 0, dst
	}
	o, err := r.b.Outbox("cloud", class)
	if err != nil {
		panic(err)
	}
	return class, append(dst, buffer.Copy{Outbox: o, QoS: m.QoS})
}

// A packet identifier is in use until its own release, whatever the classes are of those
// who had it.
func TestPacketIDsOfSeveralClasses(t *testing.T) {
	h := openHouse(t, t.TempDir(), houseOptions{idle: true, routed: true})
	pub, _ := keep(t, h.Broker, packet.V5, "pub")
	for _, topic := range []string{"telemetry/a", "alert/a"} {
		pub.publish(topic, "x", 2, 5)
		pub.expect(packet.PUBREC, 5)
		if topic != "alert/a" {
			pub.send((&packet.Ack{PacketID: 5}).Append(nil, pub.v, packet.PUBREL))
			pub.expect(packet.PUBCOMP, 5)
		}
	}
	h = openHouse(t, h.crashed(), houseOptions{routed: true})
	pub, _ = keep(t, h.Broker, packet.V5, "pub")
	pub.publish("alert/a", "x", 2, 5, func(p *packet.Publish) { p.Dup = true })
	if r := pub.expect(packet.PUBREC, 5); r != packet.Success {
		t.Errorf("PUBREC %v", r)
	}
	cloud, err := h.buf.Outbox("cloud", buffer.Alert)
	if err != nil {
		t.Fatal(err)
	}
	if n := cloud.Ledger().Accepted; n != 1 {
		t.Errorf("it came %d times", n)
	}
}

// A client that answers out of turn does not make state.db grow.
func TestReceivedOutOfTurn(t *testing.T) {
	h := openHouse(t, t.TempDir(), houseOptions{idle: true})
	sub, _ := keep(t, h.Broker, packet.V5, "sub")
	sub.subscribe(packet.Subscription{Filter: "t", QoS: 2})
	for range 50 {
		for range 2 {
			r := make(told, 1)
			if err := h.Publish(t.Context(), &Message{Topic: "t", QoS: 2, Urgent: true}, r); err != nil || <-r != nil {
				t.Fatal(err)
			}
		}
		first, second := sub.expectPublish().PacketID, sub.expectPublish().PacketID
		for _, id := range []uint16{second, first} {
			sub.send((&packet.Ack{PacketID: id}).Append(nil, sub.v, packet.PUBREC))
			sub.expect(packet.PUBREL, id)
			sub.send((&packet.Ack{PacketID: id}).Append(nil, sub.v, packet.PUBCOMP))
		}
	}
	if err := h.state.drain(); err != nil {
		t.Fatal(err)
	}
	n := 0
	_ = h.state.table.View(func(tx rows.Tx) error {
		for range tx.Rows(tableReceived, nil) {
			n++
		}
		return nil
	})
	if n > 1 {
		t.Errorf("%d rows are left", n)
	}
}
