package localbroker

import (
	"bytes"
	"context"
	"encoding/binary"
	"strings"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
	"github.com/fieldferry/fieldferry/localbroker/topic"
)

// will is what is published when the client goes without a word.
type will struct {
	m     *Message
	delay time.Duration
	user  string
	id    uint64 // in the state; 0 if it is not there
}

// takeWill makes the will into the message it will be.
func (c *conn) takeWill(p *packet.Connect, id string) (*will, error) {
	w := p.Will
	if w == nil {
		return nil, nil
	}
	if err := topic.CheckName(w.Topic, c.b.limits.TopicLevels); err != nil {
		return nil, packet.Errorf(packet.TopicNameInvalid, "will: %v", err)
	}
	if ownTopic(w.Topic) {
		return nil, packet.Errorf(packet.NotAuthorized, "its will may not be published to %s", w.Topic)
	}
	m := &Message{Topic: strings.Clone(w.Topic), Payload: bytes.Clone(w.Payload), QoS: w.QoS, Retain: w.Retain, Urgent: true, ClientID: id}
	m.Props = w.Props.Without(packet.WillDelay, packet.MessageExpiry)
	if v, ok := w.Props.Uint(packet.MessageExpiry); ok {
		m.Expiry = expiryOf(v)
	}
	delay, _ := w.Props.Uint(packet.WillDelay)
	return &will{m: m, delay: time.Duration(delay) * time.Second, user: p.Username}, nil
}

// pendingWill is a will that is to be published at a time.
type pendingWill struct {
	*will
	at time.Time
}

// leaveWill makes the will of the connection durable, and takes back that of an
// earlier one.
func (c *conn) leaveWill(ctx context.Context, w *will) error {
	st, s := c.b.options.State, c.session
	s.mu.Lock()
	earlier := s.will
	s.mu.Unlock()
	c.will = w
	switch {
	case st == nil:
	case w != nil:
		w.id = newSessionID()
		if err := st.store(ctx, changeWill, w.record(s.id)); err != nil {
			return packet.Errorf(refusal(err), "the will could not be stored: %v", err)
		}
	case earlier != nil:
		c.b.willIsDone(s.id, earlier.id)
	}
	return nil
}

// record is the will as a change has it.
func (w *will) record(client string) []byte {
	saved := savedMessage{Message: *w.m, delay: w.delay, user: w.user, id: w.id}
	return saved.append(appendText(nil, client))
}

// takeBack ends the will of a client that has said goodbye.
func (w *will) takeBack(c *conn) {
	if w != nil {
		c.b.willIsDone(c.session.id, w.id)
	}
}

// willIsDone notes in the state that a will was published or taken back.
func (b *Broker) willIsDone(client string, id uint64) {
	if st := b.options.State; st != nil && id != 0 {
		b.record(changeNoWill, binary.AppendUvarint(appendText(nil, client), id))
	}
}

// willWasPublished is willIsDone for a will that was published or could not be. One
// that could not is as any other publish that is refused.
func (b *Broker) willWasPublished(client string, id uint64, err error) {
	if err != nil {
		b.log.Error("a will could not be published", "client", client, "err", err)
	}
	b.willIsDone(client, id)
}

// publishWill sends the will, if the client did not take it back.
func (c *conn) publishWill(ctx context.Context) {
	w := c.will
	if w == nil || !c.connected || !c.session.mayPublish(w.m.Topic) {
		w.takeBack(c)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	released := make(chan struct{})
	m := &publish{Message: *w.m, c: c, kind: isWill, released: released}
	c.will = nil
	m.Received = time.Now()
	client := c.session.id
	// Not when it is released: an append may wait for what that is a part of.
	c.b.background.begin(func() {
		<-released
		c.b.willWasPublished(client, w.id, m.err)
	})
	c.accept(ctx, m)
}

// publishPending publishes the will of a session whose client has not come back. The
// client id is claimed, or nobody has it.
func (b *Broker) publishPending(ctx context.Context, s *session) {
	s.mu.Lock()
	w := s.will
	s.will = nil
	s.mu.Unlock()
	if w == nil {
		return
	}
	if !s.mayPublish(w.m.Topic) {
		b.willIsDone(s.id, w.id)
		return
	}
	m := *w.m
	m.Received = time.Time{}
	stored := await{make(chan error, 1)}
	if err := b.Publish(ctx, &m, stored); err != nil {
		stored.done <- err
	}
	b.background.begin(func() { b.willWasPublished(s.id, w.id, <-stored.done) })
}

// publishDue is publishPending if the time has come.
func (b *Broker) publishDue(ctx context.Context, s *session, now time.Time) {
	s.mu.Lock()
	due := s.will != nil && !now.Before(s.will.at)
	s.mu.Unlock()
	if due {
		b.publishPending(ctx, s)
	}
}
