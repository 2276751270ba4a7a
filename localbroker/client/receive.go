package client

import (
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// handle takes one packet of the broker.
func (c *Client) handle(first byte, body []byte) error {
	switch t := packet.TypeOf(first); t {
	case packet.PUBLISH:
		return c.receive(first, body)
	case packet.PUBACK, packet.PUBREC, packet.PUBREL, packet.PUBCOMP:
		var p packet.Ack
		if err := p.Decode(c.o.Version, t, body); err != nil {
			return err
		}
		switch t {
		case packet.PUBREC:
			return c.pubrec(&p)
		case packet.PUBREL:
			return c.pubrel(&p)
		}
		return c.answered(t, p.PacketID, answer{reasons: []packet.Reason{p.Reason}, why: p.Props.Text(packet.ReasonString)})
	case packet.SUBACK, packet.UNSUBACK:
		var p packet.Suback
		if err := p.Decode(c.o.Version, t, body); err != nil {
			return err
		}
		return c.answered(t, p.PacketID, answer{reasons: p.Reasons, why: p.Props.Text(packet.ReasonString)})
	case packet.PINGRESP:
		c.pong()
		return packet.CheckEmpty(first, body)
	case packet.DISCONNECT:
		var p packet.Disconnect
		if err := p.Decode(c.o.Version, t, body); err != nil {
			return err
		}
		return &packet.Error{Reason: p.Reason, Text: "the broker disconnected" + because(p.Props.Text(packet.ReasonString))}
	default:
		return packet.Errorf(packet.ProtocolError, "%v from a broker", t)
	}
}

// answered tells who waits for an answer. One that nobody waits for is passed over.
func (c *Client) answered(t packet.Type, id uint16, a answer) error {
	c.mu.Lock()
	r := c.answers[id]
	if r != nil && r.want == t {
		delete(c.answers, id)
	}
	c.mu.Unlock()
	switch {
	case r == nil:
	case r.want != t:
		return packet.Errorf(packet.ProtocolError, "%v in answer to packet %d, which waits for %v", t, id, r.want)
	default:
		r.tell(a)
	}
	return nil
}

// pubrec takes the broker's half of a message with QoS 2: it has the message,
// or refuses it. The identifier stays in use until PUBCOMP, MQTT 5 §4.3.3.
func (c *Client) pubrec(p *packet.Ack) error {
	if p.Reason.Failed() {
		return c.answered(packet.PUBREC, p.PacketID, answer{reasons: []packet.Reason{p.Reason}, why: p.Props.Text(packet.ReasonString)})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	release := packet.Ack{PacketID: p.PacketID}
	switch r := c.answers[p.PacketID]; {
	case c.err != nil:
		return nil
	case r == nil: // of a connection before
		release.Reason = packet.PacketIDNotFound
	case r.want == packet.PUBREC:
		r.want = packet.PUBCOMP
	case r.want != packet.PUBCOMP:
		return packet.Errorf(packet.ProtocolError, "PUBREC in answer to packet %d, which waits for %v", p.PacketID, r.want)
	}
	return c.put(func(dst []byte) []byte { return release.Append(dst, c.o.Version, packet.PUBREL) })
}

// pong tells who has waited longest for a PINGRESP.
func (c *Client) pong() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pings) == 0 {
		return
	}
	if c.pings[0] != nil {
		c.pings[0] <- nil
	}
	c.pings = c.pings[1:]
}

// receive takes a message.
func (c *Client) receive(first byte, body []byte) error {
	var p packet.Publish
	if err := p.Decode(c.o.Version, first, body); err != nil {
		return err
	}
	if p.Alias > 0 { // was never asked for
		return packet.Errorf(packet.ProtocolError, "PUBLISH with topic alias %d", p.Alias)
	}
	m := &Message{Topic: p.Topic, Payload: p.Payload, QoS: p.QoS, Retain: p.Retain, Dup: p.Dup, Props: p.Props, SubscriptionIDs: p.SubscriptionIDs}
	if p.HasExpiry {
		m.Expiry = time.Duration(p.Expiry) * time.Second
	}
	if p.QoS > 0 {
		again, err := c.admit(&p)
		if err != nil || again {
			return err
		}
		m.ack = func() { c.acknowledge(p.QoS, p.PacketID) }
	}
	if c.o.Handler != nil {
		c.o.Handler(m)
	}
	if !c.o.ManualAck {
		m.Ack()
	}
	return nil
}

// admit counts a message with QoS 1 or 2 against the window, which is up to the
// broker to keep, MQTT 5 §4.9. Again: it was received before, and is not to be
// handed on a second time.
func (c *Client) admit(p *packet.Publish) (again bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.QoS == 2 {
		if acked, again := c.received[p.PacketID]; again {
			if !acked || c.err != nil {
				return true, nil
			}
			return true, c.put(func(dst []byte) []byte { return appendAck(dst, c.o.Version, packet.PUBREC, p.PacketID) })
		}
		c.received[p.PacketID] = false
	}
	c.unacked++
	if c.o.Version == packet.V5 && c.o.ReceiveMaximum > 0 && c.unacked > c.o.ReceiveMaximum { // §3.3.4
		return false, packet.Errorf(packet.ReceiveMaximumExceeded, "the broker has sent more than %d messages without acknowledgement", c.o.ReceiveMaximum)
	}
	return false, nil
}

func (c *Client) acknowledge(qos byte, id uint16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	t := packet.PUBREC
	if qos == 1 {
		t = packet.PUBACK
		c.unacked--
	} else {
		c.received[id] = true
	}
	_ = c.put(func(dst []byte) []byte { return appendAck(dst, c.o.Version, t, id) }) // every broker takes 4 bytes
}

// pubrel takes the broker's release of a message with QoS 2: it will not be sent again.
func (c *Client) pubrel(p *packet.Ack) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	acked, known := c.received[p.PacketID]
	complete := packet.Ack{PacketID: p.PacketID}
	switch {
	case c.err != nil:
		return nil
	case !known: // of a connection before
		complete.Reason = packet.PacketIDNotFound
	case !acked:
		return packet.Errorf(packet.ProtocolError, "PUBREL of packet %d before PUBREC", p.PacketID)
	default:
		delete(c.received, p.PacketID)
		c.unacked--
	}
	return c.put(func(dst []byte) []byte { return complete.Append(dst, c.o.Version, packet.PUBCOMP) })
}

func appendAck(dst []byte, v packet.Version, t packet.Type, id uint16) []byte {
	a := packet.Ack{PacketID: id}
	return a.Append(dst, v, t)
}
