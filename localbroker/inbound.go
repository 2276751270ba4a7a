package localbroker

import (
	"context"
	"strings"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
	"github.com/fieldferry/fieldferry/localbroker/topic"
)

// handlePublish takes a PUBLISH. Its acknowledgement follows when it is safe.
func (c *conn) handlePublish(ctx context.Context, first byte, body []byte) error {
	p := &c.in
	if err := p.Decode(c.version, first, body); err != nil {
		return err
	}
	switch {
	case p.QoS > 1: // [MQTT-3.2.2-11]; 3.1.1 has no words for it
		return packet.Errorf(packet.QoSNotSupported, "PUBLISH with QoS %d", p.QoS)
	case len(p.SubscriptionIDs) > 0: // [MQTT-3.3.4-6]
		return packet.Errorf(packet.ProtocolError, "PUBLISH with a subscription identifier")
	}
	if p.Topic != "" {
		if err := topic.CheckName(p.Topic, 0); err != nil {
			return packet.Errorf(packet.TopicNameInvalid, "PUBLISH: %v", err)
		}
	}
	if err := c.resolveAlias(p); err != nil {
		return err
	}
	if err := c.slowDown(ctx); err != nil {
		return err
	}
	over := false // only version 5 knows a Receive Maximum
	if err := c.await(ctx, func() bool {
		over = p.QoS > 0 && c.version == packet.V5 && c.unacked >= c.b.limits.ReceiveMaximum
		return over || len(c.control) < controlSize && c.waiting < c.b.limits.ReceiveMaximum
	}); err != nil {
		return err
	}
	if over { // §3.3.4
		return packet.Errorf(packet.ReceiveMaximumExceeded, "more than %d publishes without acknowledgement", c.b.limits.ReceiveMaximum)
	}
	m := &publish{
		Message: Message{
			Topic:    p.Topic,
			Payload:  p.Payload,
			Props:    p.Props,
			QoS:      p.QoS,
			Retain:   p.Retain,
			Received: c.now,
			Urgent:   true,
			ClientID: c.session.id,
		},
		c:        c,
		packetID: p.PacketID,
	}
	if p.HasExpiry {
		m.Expiry = expiryOf(p.Expiry)
	}
	c.b.stats.publishesIn.Add(1)
	c.accept(ctx, m)
	return nil
}

// resolveAlias gives p the topic that its alias stands for, or the alias its
// topic, MQTT 5 §3.3.2.3.4.
func (c *conn) resolveAlias(p *packet.Publish) error {
	a := int(p.Alias)
	switch {
	case a == 0:
		return nil
	case a > c.b.limits.TopicAliases: // [MQTT-3.3.2-9]
		return packet.Errorf(packet.TopicAliasInvalid, "topic alias %d, the maximum is %d", a, c.b.limits.TopicAliases)
	case p.Topic != "":
		if a >= len(c.aliases) {
			c.aliases = append(c.aliases, make([]string, a+1-len(c.aliases))...)
		}
		if c.aliases[a] != p.Topic {
			c.aliases[a] = strings.Clone(p.Topic) // it outlives the packet
		}
	case a >= len(c.aliases) || c.aliases[a] == "":
		return packet.Errorf(packet.ProtocolError, "topic alias %d was never set", a)
	default:
		p.Topic = c.aliases[a]
	}
	return nil
}

// slowDown waits while the client publishes faster than it may; a second's
// worth may come at once.
func (c *conn) slowDown(ctx context.Context) error {
	rate := c.b.limits.MessagesPerSecond
	if rate <= 0 {
		return nil
	}
	now := time.Now()
	if earliest := now.Add(-time.Second); c.due.Before(earliest) {
		c.due = earliest
	}
	c.due = c.due.Add(time.Second / time.Duration(rate))
	if !c.due.After(now) {
		return nil
	}
	c.fanout.wake()
	c.wake()
	select {
	case <-time.After(c.due.Sub(now)):
		c.last = time.Now()
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// refused says why m must not be accepted, if so.
func (c *conn) refused(m *Message) error {
	switch {
	case topic.Levels(m.Topic) > c.b.limits.TopicLevels:
		return packet.Errorf(packet.TopicNameInvalid, "a topic with more than %d levels", c.b.limits.TopicLevels)
	case ownTopic(m.Topic), c.session.rights != nil && !c.session.rights.MayPublish(m.Topic):
		return packet.Errorf(packet.NotAuthorized, "no right to publish to %s", m.Topic)
	case c.b.retained.full(m, c.b.limits.RetainedMessages):
		return packet.Errorf(packet.QuotaExceeded, "more than %d retained messages", c.b.limits.RetainedMessages)
	}
	return nil
}

// accept sends m on its way: into the buffer if it has durable destinations,
// and behind what the client published before.
func (c *conn) accept(ctx context.Context, m *publish) {
	m.err = c.refused(&m.Message)
	c.copies = c.copies[:0]
	if m.err == nil && c.b.options.Router != nil {
		m.class, c.copies = c.b.options.Router.Route(&m.Message, c.copies)
	}
	if len(c.copies) == 0 && c.publisher.idle() {
		c.release(m, &c.fanout)
		return
	}
	c.fanout.wake() // Append may take its time
	c.mu.Lock()
	c.waiting++
	if m.QoS > 0 {
		c.unacked++
	}
	if len(c.control) > 0 {
		c.startWriting()
	}
	c.mu.Unlock()
	c.publisher.push(m)
	if len(c.copies) == 0 {
		c.publisher.settle(m, m.err)
		return
	}
	m.kept = true
	m.durable(&c.durable, c.copies)
	err := c.b.options.Buffer.Append(ctx, m.class, &c.durable, m)
	clear(c.copies)
	if err != nil {
		c.publisher.settle(m, err)
	}
}

// releaseNext is release for a goroutine that is not the connection's own: a
// panic must not reach it.
func (c *conn) releaseNext(m *publish, f *fanout) {
	defer func() {
		if r := recover(); r != nil {
			c.end(c.panicked(r))
			f.wake() // those it came to before
		}
	}()
	c.release(m, f)
}

// release routes m, which is durable if it has to be, and acknowledges it.
func (c *conn) release(m *publish, f *fanout) {
	reason := packet.Success
	if m.err != nil {
		reason = refusal(m.err)
		c.b.stats.refused.Add(1)
	} else if c.b.route(&m.Message, c.session, f) == 0 && !m.kept {
		reason = packet.NoMatchingSubscribers
	}
	if m.waits {
		f.wake() // otherwise Read does
	}
	c.mu.Lock()
	if m.waits {
		c.waiting--
		if m.QoS > 0 {
			c.unacked--
		}
	}
	// 3.1.1 cannot be told that it must not publish there; that it may go on
	// is one of the two answers it has, 3.1.1 [MQTT-3.3.5-2].
	cut := m.QoS > 0 && c.version == packet.V311 && reason.Failed() && reason != packet.NotAuthorized
	if m.QoS > 0 && !m.gone && !cut {
		if c.version == packet.V311 {
			reason = packet.Success
		}
		ack := packet.Ack{PacketID: m.packetID, Reason: reason}
		c.control = ack.Append(c.control, c.version, packet.PUBACK)
		if m.waits {
			c.startWriting()
		}
	}
	c.mu.Unlock()
	if m.waits {
		c.signal()
	}
	if cut {
		c.end(m.err)
	}
	m.c, m.p = nil, nil // the message may live on
}
