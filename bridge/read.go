package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/fieldferry/fieldferry/buffer"
)

// read takes the upstream's packets until the connection fails.
func (c *conn) read() error {
	for {
		p, err := readPacket(c.r, maxInbound)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return fmt.Errorf("no sign of life from the upstream for %v", c.line.silence)
			}
			return fmt.Errorf("receive: %w", err)
		}
		switch p.kind {
		case packets.PUBACK:
			err = c.answered(p)
		case packets.PUBLISH:
			err = c.decline(p.content.(*packets.Publish))
		case packets.PUBREL:
			err = c.owe(packets.PUBCOMP, p.id, codeIDNotFound)
		case packets.PUBREC, packets.PUBCOMP, packets.SUBACK, packets.UNSUBACK, packets.PINGRESP:
			// of a session from before, or a sign of life
		case packets.DISCONNECT:
			return &ReasonError{Packet: "DISCONNECT", Code: p.code, Reason: p.reason}
		default:
			err = fmt.Errorf("protocol error: packet of type %d", p.kind)
		}
		if err != nil {
			return err
		}
	}
}

// answered settles the message that a PUBACK is for. MQTT 5 §3.4.2.1: a reason
// code from 0x80 on ends the flow as well, and the message was not taken.
func (c *conn) answered(p packet) error {
	if p.id == idPresence {
		if _, ok := c.window.done(p.id, p.code < codeRefused); ok && p.code >= codeRefused {
			c.b.log.Warn("upstream refused the gateway's status", "topic", c.b.o.Presence.Topic, "reason", refusal(p.code, p.reason))
		}
		return nil
	}
	switch {
	case p.code < codeRefused:
		if d, ok := c.window.done(p.id, true); ok {
			d.Outbox.Settle(d.Ordinal, buffer.Delivered)
			c.b.delivered.Add(1)
		}
	case p.code == codeQuotaExceeded, p.code == codeIDInUse:
		ok, pause := c.window.refuse(p.id, time.Now())
		if ok {
			c.b.refused.Add(1)
		}
		if pause > 0 {
			c.b.log.Warn("upstream cannot take more now", "reason", refusal(p.code, p.reason), "pause", pause)
		}
	default:
		if d, ok := c.window.done(p.id, false); ok {
			return c.b.park(&d, refusal(p.code, p.reason))
		}
	}
	return nil
}

// decline answers a message that nothing asked for, of subscriptions that a
// session from before still has.
func (c *conn) decline(p *packets.Publish) error {
	if !c.declined {
		c.declined = true
		c.b.log.Warn("upstream sent a message that was not asked for", "topic", p.Topic)
	}
	switch p.QoS {
	case 1:
		return c.owe(packets.PUBACK, p.PacketID, codeImplementation)
	case 2:
		return c.owe(packets.PUBREC, p.PacketID, codeImplementation)
	}
	return nil
}

// owe has the writer send an acknowledgement with a reason code, before the reader
// waits again.
func (c *conn) owe(kind byte, id uint16, code byte) error {
	c.mu.Lock()
	c.owed = append(c.owed, kind<<4, 3)
	c.owed = binary.BigEndian.AppendUint16(c.owed, id)
	c.owed = append(c.owed, code)
	tooMuch := len(c.owed) > maxOwed
	c.mu.Unlock()
	if tooMuch {
		return errors.New("upstream sends faster than it takes our answers")
	}
	return nil
}
