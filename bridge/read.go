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
			err = c.arrived(p.content.(*packets.Publish))
		case packets.PUBREL:
			err = c.freed(p.id)
		case packets.PUBREC:
			err = c.received(p)
		case packets.PUBCOMP:
			err = c.completed(p)
		case packets.SUBACK:
			c.subscribed(p.content.(*packets.Suback))
		case packets.PINGRESP:
			c.b.pong()
		case packets.UNSUBACK:
			// a sign of life
		case packets.DISCONNECT:
			r := &ReasonError{Packet: "DISCONNECT", Code: p.code, Reason: p.reason}
			if d, ok := p.content.(*packets.Disconnect); ok {
				r.Server = d.Properties.ServerReference
			}
			return r
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
		if _, ok := c.window.acked(p.id, 1, p.code < codeRefused); ok && p.code >= codeRefused {
			pause := time.Duration(0)
			if p.code == codeQuotaExceeded || p.code == codeIDInUse {
				c.statusPause = min(max(firstPause, 2*c.statusPause), maxPause)
				pause = c.statusPause
				c.mu.Lock()
				c.statusDue = time.Now().Add(pause)
				c.mu.Unlock()
				c.wakeWriter()
			}
			c.b.log.Warn("upstream refused the gateway's status", "topic", c.b.o.Presence.Topic, "reason", refusal(p.code, p.reason), "again_in", pause)
		}
		return nil
	}
	if p.code >= codeRefused {
		return c.refused(p, 1)
	}
	if d, ok := c.window.acked(p.id, 1, true); ok {
		c.deliver(copyID{d.Outbox, d.Ordinal})
	}
	return nil
}

// received notes a PUBREC; the committer goes on with it.
func (c *conn) received(p packet) error {
	switch {
	case p.code == codeIDInUse && c.window.repeated(p.id):
		// It has the message from before; some brokers say so with this code.
	case p.code >= codeRefused:
		return c.refused(p, 2)
	}
	c.recs = c.window.received(p.id) || c.recs
	return nil
}

// refused ends or repeats a message that was not taken.
func (c *conn) refused(p packet, qos byte) error {
	if p.code == codeQuotaExceeded || p.code == codeIDInUse {
		ok, pause := c.window.refuse(p.id, qos, time.Now())
		if ok {
			c.b.refused.Add(1)
		}
		if ok && qos == 2 && p.code == codeIDInUse {
			// The id is of a message that is not ours any more: set it free.
			if err := c.owe(packets.PUBREL, p.id, 0); err != nil {
				return err
			}
		}
		if pause > 0 {
			c.b.log.Warn("upstream cannot take more now", "reason", refusal(p.code, p.reason), "pause", pause)
		}
		return nil
	}
	if d, ok := c.window.acked(p.id, qos, false); ok {
		return c.b.park(&d, refusal(p.code, p.reason))
	}
	return nil
}

// completed settles the QoS 2 message that a PUBCOMP is for. One whose id the
// upstream does not know was completed before, unless there is doubt.
func (c *conn) completed(p packet) error {
	d, out, ok := c.window.completed(p.id)
	if ok && out == buffer.Delivered {
		if lane := c.b.out.lane(d.Outbox); c.doubt.about(lane, d.Ordinal) {
			c.judge(c.doubt.answered(lane, copyID{d.Outbox, d.Ordinal}, p.code != codeIDNotFound))
			return nil
		}
	}
	switch {
	case !ok || out == 0:
	case out == buffer.Delivered:
		c.deliver(copyID{d.Outbox, d.Ordinal})
	default:
		d.Outbox.Settle(d.Ordinal, out)
	}
	return nil
}

func (c *conn) deliver(id copyID) {
	id.outbox.Settle(id.ordinal, buffer.Delivered)
	c.b.delivered.Add(1)
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
	head := kind << 4
	if kind == packets.PUBREL {
		head |= 2 // MQTT 5 §3.6.1
	}
	c.owed = append(c.owed, head, 3)
	c.owed = binary.BigEndian.AppendUint16(c.owed, id)
	c.owed = append(c.owed, code)
	tooMuch := len(c.owed) > maxOwed
	c.mu.Unlock()
	if tooMuch {
		return errors.New("upstream sends faster than it takes our answers")
	}
	return nil
}
