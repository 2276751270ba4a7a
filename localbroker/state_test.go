package localbroker

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
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
}

// What has a name that is longer than a key may be outlives the process, too.
func TestLongNamesAreKept(t *testing.T) {
	long := func(last string) string { return strings.Repeat("long", 16_000) + last }
	h := openHouse(t, t.TempDir(), houseOptions{})
	sub, _ := keep(t, h.Broker, packet.V5, "sub")
	for _, last := range []string{"a", "b", "c"} {
		sub.sub(long(last))
	}
	sub.send((&packet.Unsubscribe{PacketID: 1, Filters: []string{long("c")}}).Append(nil, sub.v))
	sub.expect(packet.UNSUBACK, 1)
	sub.goodbye()
	pub, _ := keep(t, h.Broker, packet.V5, "pub", withWill(long("w")[60_000:], 0))
	for i, last := range []string{"r", "s", "t"} {
		pub.publish(long(last), last, 1, uint16(i+1), retain)
		pub.expectAck(uint16(i + 1))
	}
	pub.publish(long("t"), "", 1, 9, retain)
	pub.expectAck(9)
	pub.goodbye()
	if err := h.state.drain(); err != nil {
		t.Fatal(err)
	}
	h = openHouse(t, h.crashed(), houseOptions{})
	if s := h.Stats(); s.RetainedMessages != 2 || s.Subscriptions != 2 {
		t.Errorf("%d retained messages and %d subscriptions, want 2 and 2", s.RetainedMessages, s.Subscriptions)
	}
	sub, _ = keep(t, h.Broker, packet.V5, "sub")
	for _, last := range []string{"a", "b"} {
		if err := h.Publish(t.Context(), &Message{Topic: long(last), Payload: []byte(last), QoS: 1}, nil); err != nil {
			t.Fatal(err)
		}
		if p := sub.expectPublish(); p.Topic != long(last) || string(p.Payload) != last {
			t.Errorf("%s in the place of %s", p.Payload, last)
		}
	}
	other := connect(t, h.Broker, packet.V5, "other")
	other.sub("#")
	seen := ""
	for range 2 {
		p := other.expectPublish()
		if p.Topic != long(string(p.Payload)) {
			t.Errorf("a topic of %d bytes with %s", len(p.Topic), p.Payload)
		}
		seen += string(p.Payload)
	}
	if seen != "rs" && seen != "sr" {
		t.Errorf("retained are %s", seen)
	}
}
