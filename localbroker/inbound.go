package localbroker

import (
	"context"
	"encoding/binary"
	"strings"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker/packet"
	"github.com/fieldferry/fieldferry/localbroker/topic"
)

// handlePublish takes a PUBLISH. Its acknowledgement follows when it is safe.
func (c *conn) handlePublish(ctx context.Context, first byte, body []byte) error {
	p := &c.in
	if err := p.Decode(c.version, first, body); err != nil {
		return err
	}
	if len(p.SubscriptionIDs) > 0 { // [MQTT-3.3.4-6]
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
	if err := c.admitPublish(ctx, p); err != nil {
		return err
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
			Username: c.username,
		},
		c:        c,
		packetID: p.PacketID,
	}
	if p.HasExpiry {
		m.Expiry = expiryOf(p.Expiry)
	}
	c.b.stats.publishesIn.Add(1)
	c.b.stats.payloadIn.Add(uint64(len(p.Payload)))
	if p.QoS == 2 && c.session.beginInbound(p.PacketID) {
		m.kind = isAgain
		c.submit(m)
		return nil
	}
	c.accept(ctx, m)
	return nil
}

// admitPublish waits until there is room for a publish, and refuses it if the client
// must not have sent it.
func (c *conn) admitPublish(ctx context.Context, p *packet.Publish) error {
	over := false
	limit := c.b.limits.ReceiveMaximum
	open := 0
	if p.QoS > 0 && c.version == packet.V5 { // only version 5 knows a Receive Maximum
		open = c.session.openInbound(p.PacketID, p.QoS)
	}
	err := c.await(ctx, func() bool {
		over = p.QoS > 0 && c.version == packet.V5 && c.unacked+open >= limit
		return over || len(c.control) < controlSize && c.waiting < limit && !c.cut
	})
	if err == nil && over { // §3.3.4
		err = packet.Errorf(packet.ReceiveMaximumExceeded, "more than %d publishes without acknowledgement", limit)
	}
	return err
}

// beginInbound puts the packet identifier of a QoS 2 publish into use. It reports
// true if it is already.
func (s *session) beginInbound(id uint16) (again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, again := s.inbound[id]
	if !again && s.inbound == nil {
		s.inbound = make(map[uint16]inbound)
	}
	if e.turn != s.turn {
		e.turn = s.turn
		s.open++
	}
	s.inbound[id] = e
	return again
}

// openInbound is how many QoS 2 publishes the client has open on this connection,
// the one with this identifier not counted.
func (s *session) openInbound(id uint16, qos byte) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.inbound[id]; qos == 2 && e.turn == s.turn {
		return s.open - 1
	}
	return s.open
}

// endInbound makes a packet identifier free again.
func (s *session) endInbound(id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inbound[id].turn == s.turn {
		s.open--
	}
	delete(s.inbound, id)
}

// handlePubrel takes a PUBREL: the packet identifier is free again when that is
// durable.
func (c *conn) handlePubrel(ctx context.Context, body []byte) error {
	var p packet.Ack
	if err := p.Decode(c.version, packet.PUBREL, body); err != nil {
		return err
	}
	if err := c.await(ctx, func() bool { return len(c.control) < controlSize && c.waiting < c.b.limits.ReceiveMaximum }); err != nil {
		return err
	}
	m := &publish{c: c, packetID: p.PacketID, kind: isRelease}
	s := c.session
	s.mu.Lock()
	e, known := s.inbound[p.PacketID]
	m.class = e.class
	s.mu.Unlock()
	switch {
	case !known:
		m.err = packet.Errorf(packet.PacketIDNotFound, "no publish with packet identifier %d", p.PacketID)
	case e.durable:
		c.wait(m)
		record := binary.AppendUvarint(binary.AppendUvarint(nil, s.kept.id), uint64(p.PacketID))
		if err := c.b.options.State.record(ctx, m.class, changeRelease, record, m); err != nil {
			c.publisher.settle(m, err)
		}
		return nil
	}
	c.submit(m)
	return nil
}

// submit sends m, which waits for nothing but what the client sent before, on its way.
func (c *conn) submit(m *publish) {
	if c.publisher.idle() {
		c.release(m, &c.fanout)
		return
	}
	c.wait(m)
	c.publisher.settle(m, m.err)
}

// wait puts m behind what the client sent before.
func (c *conn) wait(m *publish) {
	c.fanout.wake() // this may take its time
	c.mu.Lock()
	c.waiting++
	if m.kind == isPublish && m.QoS == 1 {
		c.unacked++
	}
	if len(c.control) > 0 {
		c.startWriting()
	}
	c.mu.Unlock()
	c.publisher.push(m)
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
		if c.aliases[a] == p.Topic {
			return nil
		}
		c.aliasBytes += len(p.Topic) - len(c.aliases[a])
		if limit := c.b.limits.aliasBytes(); c.aliasBytes > limit {
			return packet.Errorf(packet.QuotaExceeded, "topic aliases for more than %d bytes of topics", limit)
		}
		c.aliases[a] = strings.Clone(p.Topic) // it outlives the packet
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
	case ownTopic(m.Topic), !c.session.mayPublish(m.Topic):
		return packet.Errorf(packet.NotAuthorized, "no right to publish to %s", m.Topic)
	}
	if what := c.b.retained.full(m, &c.b.limits); what != "" {
		return packet.Errorf(packet.QuotaExceeded, "%s", what)
	}
	return nil
}

// accept sends m on its way: into the buffer if it has durable destinations,
// and behind what the client published before.
func (c *conn) accept(ctx context.Context, m *publish) {
	m.err = c.refused(&m.Message)
	c.copies = c.copies[:0]
	m.class = buffer.Local
	if m.err == nil {
		if m.Retain && m.QoS > 0 && c.b.options.State != nil {
			m.crowd = c.b.retaining.enter()
			c.crowd = m.crowd
		}
		if c.copies, m.err = c.b.destinations(m, &c.fanout, c.copies); m.err == nil {
			c.mark(m)
		}
		c.crowd = nil
	}
	if m.err != nil || len(c.copies) == 0 {
		c.submit(m)
		return
	}
	c.wait(m)
	m.durable(&c.durable, c.copies)
	err := c.b.options.Buffer.Append(ctx, m.class, &c.durable, m)
	clear(c.copies)
	if err != nil {
		c.publisher.settle(m, err)
	}
}

// destinations appends to dst the copies for the durable destinations of m.
func (b *Broker) destinations(m *publish, f *fanout, dst []buffer.Copy) (copies []buffer.Copy, err error) {
	if r := b.options.Router; r != nil {
		var class buffer.Class
		if class, dst = r.Route(&m.Message, dst); len(dst) > 0 {
			m.class = class
		}
	}
	if m.QoS > 0 && b.index.keeps.Load() {
		dst, m.direct, err = b.copies(&m.Message, m.class, f, dst)
	}
	if m.Also != nil && err == nil {
		dst = append(dst, m.Also(m.class))
		m.Also = nil // once
	}
	m.kept = len(dst) > 0
	return dst, err
}

// mark adds the copy for the broker's state, if m changes that.
func (c *conn) mark(m *publish) {
	st := c.b.options.State
	if st == nil {
		return
	}
	k := mark{topic: m.Topic, client: m.ClientID}
	if m.Retain {
		k.flags |= markRetain | markClient
	}
	if m.QoS == 2 && m.kind == isPublish && c.session.kept != nil && (m.kept || m.Retain) {
		// Without a durable destination, a publish that comes again after a crash
		// is new to everybody who gets it.
		k.flags |= markID
		k.session, k.packetID = c.session.kept.id, m.packetID
		c.session.mu.Lock()
		if e, known := c.session.inbound[m.packetID]; known {
			e.class, e.durable = m.class, true
			c.session.inbound[m.packetID] = e
		}
		c.session.mu.Unlock()
	}
	if k.flags != 0 {
		c.copies = append(c.copies, buffer.Copy{Outbox: st.outboxes[m.class], Topic: k.copyTopic(), QoS: m.QoS, Retain: m.Retain})
	}
}

// releaseNext is release for a goroutine that is not the connection's own: a
// panic must not reach it.
func (c *conn) releaseNext(m *publish, f *fanout) {
	defer func() {
		if r := recover(); r != nil {
			c.end(c.panicked(r))
			f.wake() // those it came to before
			c.b.retaining.leave(m.crowd)
			m.tellReleased()
		}
		if m.expected {
			c.b.retained.done()
		}
	}()
	c.release(m, f)
}

// release routes m, which is durable if it has to be, and acknowledges it.
func (c *conn) release(m *publish, f *fanout) {
	answer, t, cut := c.outcome(m, f)
	c.b.retaining.leave(m.crowd)
	m.crowd = nil
	if m.waits {
		f.wake() // otherwise Read does
	}
	c.mu.Lock()
	if m.waits {
		c.waiting--
		if m.kind == isPublish && m.QoS == 1 {
			c.unacked--
		}
	}
	if t != 0 && !cut && !c.cut {
		c.control = answer.Append(c.control, c.version, t)
		c.b.stats.packetsOut.Add(1)
		if m.waits {
			c.startWriting()
		}
	}
	cut = cut && !c.cut
	c.cut = c.cut || cut // nothing behind it may be acknowledged [MQTT-4.6.0-2]
	c.mu.Unlock()
	if m.waits {
		c.signal()
	}
	if cut {
		err := m.err
		time.AfterFunc(cutAfter, func() { c.end(err) })
	}
	m.c, m.p, m.direct = nil, nil, nil // the message may live on
	m.tellReleased()
}

// outcome does what m asks for, and says what to answer: a packet of type t, or
// nothing if that is 0. If cut is true the connection has to end.
func (c *conn) outcome(m *publish, f *fanout) (answer packet.Ack, t packet.Type, cut bool) {
	answer.PacketID = m.packetID
	if m.err != nil {
		answer.Reason = refusal(m.err)
	}
	s := c.session
	switch m.kind {
	case isRelease:
		if answer.Reason.Failed() && answer.Reason != packet.PacketIDNotFound {
			return answer, 0, true // if it were told, the identifier could be used again
		}
		s.endInbound(m.packetID)
		return answer, packet.PUBCOMP, false
	case isAgain:
		s.mu.Lock()
		if _, known := s.inbound[m.packetID]; !known {
			answer.Reason = packet.ImplementationSpecific // it was refused when it came first
		}
		s.mu.Unlock()
	default:
		if m.err != nil {
			c.b.stats.refused.Add(1)
			break
		}
		if m.stamp == 0 {
			m.stamp = c.b.stamps.Add(1)
		}
		if c.b.route(&m.Message, m.direct, f) == 0 && !m.kept {
			answer.Reason = packet.NoMatchingSubscribers
		}
	}
	switch {
	case m.kind == isWill:
		return answer, 0, false
	case m.QoS == 2:
		t = packet.PUBREC
	case m.QoS == 1:
		t = packet.PUBACK
	default:
		return answer, 0, false
	}
	if c.version == packet.V311 {
		// 3.1.1 cannot be told that it must not publish there; that it may go on
		// is one of the two answers it has, 3.1.1 [MQTT-3.3.5-2].
		cut = answer.Reason.Failed() && answer.Reason != packet.NotAuthorized
		answer.Reason = packet.Success
	}
	if m.QoS == 2 && (answer.Reason.Failed() || cut) {
		s.endInbound(m.packetID)
	}
	return answer, t, cut
}
