package localbroker

import (
	"testing"
	"time"

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
