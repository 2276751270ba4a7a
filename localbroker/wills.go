package localbroker

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
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
	m := &Message{Topic: strings.Clone(w.Topic), Payload: bytes.Clone(w.Payload), QoS: w.QoS, Retain: w.Retain, Urgent: true, ClientID: id, Username: c.username}
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

// change is what the state has of the will.
func (w *will) change(client string) change {
	saved := savedMessage{Message: *w.m, delay: w.delay, user: w.user, id: w.id}
	return change{changeWill, saved.append(appendText(nil, client))}
}

// takeBack ends the will of a client that has said goodbye.
func (w *will) takeBack(c *conn) {
	if w != nil {
		c.b.willIsDone(c.session.id, w.id)
	}
}

// takeBackWill ends the will of a client that says goodbye. The connection is closed
// when that is stored, so that the client can know.
func (c *conn) takeBackWill(ctx context.Context) {
	w := c.will
	c.will = nil
	if w == nil || w.id == 0 {
		return
	}
	if c.b.options.State.store(ctx, noWill(c.session.id, w.id)) != nil {
		w.takeBack(c) // once more, and again later
	}
}

// noWill is the change that a will was published or taken back.
func noWill(client string, id uint64) change {
	return change{changeNoWill, binary.AppendUvarint(appendText(nil, client), id)}
}

// willIsDone notes in the state that a will was published or taken back.
func (b *Broker) willIsDone(client string, id uint64) {
	st := b.options.State
	if st == nil || id == 0 {
		return
	}
	gone, c := goneWill{b, client, id}, noWill(client, id)
	if err := st.record(context.Background(), buffer.Local, c.kind, c.payload, gone); err != nil {
		gone.Stored(err)
	}
}

// goneWill is the receipt for that a will was published or taken back. Until it is
// stored, a restart would publish the will.
type goneWill struct {
	b      *Broker
	client string
	id     uint64
}

func (g goneWill) Stored(err error) {
	if err == nil || errors.Is(err, buffer.ErrClosed) {
		return
	}
	g.b.mu.Lock()
	defer g.b.mu.Unlock()
	g.b.gone = append(g.b.gone, g)
}

// forgetWills stores what could not be stored before.
func (b *Broker) forgetWills() {
	b.mu.Lock()
	gone := b.gone
	b.gone = nil
	b.mu.Unlock()
	for _, g := range gone {
		b.willIsDone(g.client, g.id)
	}
}

// willWasPublished is willIsDone for the will of a session that was published or could
// not be. It was accepted with its connection, so what the disk did not take waits until
// it does; one that nobody takes is as any other publish that is refused.
func (b *Broker) willWasPublished(s *session, w *will, err error) {
	if err != nil {
		b.log.Error("a will could not be published", "client", s.id, "err", err)
	}
	if !errors.Is(err, buffer.ErrFull) && !errors.Is(err, buffer.ErrFailed) {
		b.willIsDone(s.id, w.id)
		return
	}
	left := &session{b: b, id: s.id, will: &pendingWill{will: w}}
	left.rights.Store(s.rights.Load())
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bereft = append(b.bereft, left)
}

// publishBereft publishes the wills that are all that is left of a session.
func (b *Broker) publishBereft(ctx context.Context) {
	b.mu.Lock()
	bereft := b.bereft
	b.bereft = nil
	b.mu.Unlock()
	for _, s := range bereft {
		b.publishPending(ctx, s)
	}
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
	s := c.session
	// Not when it is released: an append may wait for what that is a part of.
	c.b.background.begin(func() {
		<-released
		c.b.willWasPublished(s, w, m.err)
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
	b.background.begin(func() { b.willWasPublished(s, w.will, <-stored.done) })
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
