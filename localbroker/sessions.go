package localbroker

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker/packet"
	"github.com/fieldferry/fieldferry/localbroker/topic"
)

// expired reports whether the client was away too long. Nobody else may be about to
// begin or end the session.
func (s *session) expired(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over(now)
}

// over is expired with s.mu held. What has ended is over, though it may not be stored
// yet that it has.
func (s *session) over(now time.Time) bool {
	return s.ended || s.kept != nil && !s.leftAt.IsZero() && now.Sub(s.leftAt) >= s.kept.expiry
}

// record notes a change that nobody waits for.
func (b *Broker) record(c change) {
	err := b.options.State.record(context.Background(), buffer.Local, c.kind, c.payload, noReceipt{})
	if err != nil {
		b.log.Error("a change of a session could not be stored", "kind", string(rune(c.kind)), "err", err)
	}
}

// change is what the state has of a session that is kept, and of whether its client
// has left.
func (s *session) change(expiry time.Duration, left bool) change {
	ago := time.Duration(0)
	if s.mu.Lock(); left && !s.leftAt.IsZero() {
		ago = time.Since(s.leftAt)
	}
	s.mu.Unlock()
	one := savedSession{client: s.id, id: s.kept.id, expiry: expiry, left: left, since: s.b.options.State.buffer.Stamp(ago)}
	return change{changeSession, one.append(appendText(nil, s.id))}
}

// giveBackSession leaves a session as it was before a connection that wanted it and
// was never let in.
func (b *Broker) giveBackSession(s *session, c *conn) {
	b.record(s.change(s.kept.expiry, true))
	c.will.takeBack(c)
	s.mu.Lock()
	earlier := s.will
	s.mu.Unlock()
	if earlier != nil { // what was stored of it may be gone
		b.record(earlier.change(s.id))
	}
}

// leaveSession keeps a session for when its client comes back.
func (b *Broker) leaveSession(ctx context.Context, s *session, c *conn) {
	s.detach(c)
	b.record(s.change(s.kept.expiry, true))
	w := c.will
	switch {
	case w == nil:
	case w.delay == 0:
		c.publishWill(ctx)
	default:
		s.mu.Lock()
		s.will = &pendingWill{will: w, at: time.Now().Add(min(w.delay, s.kept.expiry))}
		s.mu.Unlock()
	}
}

// endSession ends a session for good. Only the one who has claimed its client id, or
// its last connection, calls it. With an error, which is logged, it has to be ended again.
// Until it is stored that it has ended, a restart would bring it back, so it is kept as
// it is.
func (b *Broker) endSession(ctx context.Context, s *session) (err error) {
	for filter := range s.subscriptions {
		share, _ := topic.SplitShared(filter)
		s.shared = s.shared || share != ""
	}
	if s.kept == nil {
		s.end()
	} else if err = s.kept.finish(ctx, s.shared); err != nil {
		b.log.Error("the end of a session could not be stored", "client", s.id, "err", err)
		return err
	}
	b.mu.Lock()
	if b.sessions[s.id] == s {
		delete(b.sessions, s.id)
	}
	b.mu.Unlock()
	b.publishPending(ctx, s)
	return nil
}

// finish makes it durable that the session has ended, and removes what waits for it.
func (k *kept) finish(ctx context.Context, shared bool) error {
	st := k.s.b.options.State
	end := change{changeEnd, binary.AppendUvarint(appendText(nil, k.s.id), k.id)}
	if shared {
		// It is over, also after a restart, but what it has is for others first.
		if err := st.store(ctx, k.s.change(0, true)); err != nil {
			return err
		}
		k.s.end()
		if err := k.passOn(ctx); err != nil {
			return err
		}
	}
	if err := st.store(ctx, end); err != nil {
		return err
	}
	k.s.end()
	k.reading.Lock()
	k.owner = nil
	if k.reader != nil {
		k.reader.Close()
	}
	k.reading.Unlock()
	if err := st.buffer.Remove(k.end()...); err != nil {
		k.s.b.log.Error("what waited for a session could not be removed; the next start does it", "client", k.s.id, "err", err)
	}
	return nil
}

// passOn gives what the session has through shared subscriptions, and has not sent,
// to other members: MQTT 5 §4.8.2. What was sent with QoS 2 must not go to them
// [MQTT-4.8.2-5].
func (k *kept) passOn(ctx context.Context) error {
	b := k.s.b
	k.reading.Lock()
	k.owner = nil // nobody else reads from now on
	k.reading.Unlock()
	if k.reader == nil {
		r, err := b.options.State.buffer.ReaderFunc(func() {})
		if err != nil {
			return err
		}
		k.reader = r
	}
	k.mu.Lock()
	added := k.added
	k.added = nil
	k.mu.Unlock()
	for _, l := range added {
		if err := k.reader.Add(l.outbox); err != nil {
			return err
		}
	}
	k.reader.Rewind()
	ctx = context.WithoutCancel(ctx) // whoever ends the session, others get what is theirs
	var space [takeAtOnce]buffer.Delivery
	for {
		n, err := k.reader.TryNext(space[:])
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		// All of them are appended before the first is waited for.
		var passed [takeAtOnce]passed
		for i := range space[:n] {
			d := &space[i]
			passed[i].out = buffer.DroppedEnded
			if len(d.Topic) > 0 && d.Topic[0] == 0 && !(d.Dup && d.QoS == 2) {
				passed[i] = k.pass(ctx, d)
			}
		}
		for i := range space[:n] {
			if err := passed[i].wait(); err != nil {
				return err
			}
			space[i].Outbox.Settle(space[i].Ordinal, passed[i].out)
			space[i] = buffer.Delivery{}
		}
	}
}

// passed is what became of a copy that was to go to another member of its shared
// subscription.
type passed struct {
	out    buffer.Outcome
	stored *await // nil: it need not be stored
	err    error
}

func (p *passed) wait() error {
	if p.err == nil && p.stored != nil {
		p.err = <-p.stored.done
	}
	return p.err
}

// pass gives one copy to another member of its shared subscription, if there is one
// that takes it.
func (k *kept) pass(ctx context.Context, d *buffer.Delivery) passed {
	b := k.s.b
	filter, name := splitShare(d.Topic)
	sub := b.index.another(filter)
	if sub == nil || !sub.session.mayReceive(name) {
		return passed{out: buffer.DroppedEnded}
	}
	m := &Message{Topic: name, Payload: d.Payload, Props: packet.Properties(d.Props).Without(packet.SubscriptionID), QoS: d.QoS, Retain: d.Retain, Expiry: d.Expiry, Received: time.Now().Add(-d.Age()), Urgent: true}
	next := delivery{m: m, qos: min(d.QoS, sub.qos), retain: d.Retain && sub.retainAsPublished, ids: sub.ids, group: sub.group}
	if s := sub.session; s.kept == nil || next.qos == 0 {
		wake, taken := s.enqueue(next)
		if wake {
			s.wake()
		}
		if taken {
			return passed{out: buffer.Moved}
		}
		return passed{out: buffer.DroppedEnded}
	}
	c, err := sub.session.kept.copy(&next, d.Outbox.Class())
	if err != nil {
		return passed{err: err}
	}
	var out buffer.Message
	m.durable(&out, []buffer.Copy{c})
	stored := &await{make(chan error, 1)}
	return passed{out: buffer.Moved, stored: stored, err: b.options.Buffer.Append(ctx, d.Outbox.Class(), &out, *stored)}
}

// tidyEvery is how often sessions and retained messages are looked at that expire.
const tidyEvery = time.Second

// tidy ends what has expired, until ctx ends.
func (b *Broker) tidy(ctx context.Context) {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			_ = b.guard("sessions that expire", func() {
				b.publishBereft(ctx)
				b.forgetWills()
				b.tidySessions(ctx, now)
			})
			topics := b.retained.expire(now)
			if st := b.options.State; st != nil && len(topics) > 0 {
				if err := st.forgetRetained(topics); err != nil {
					b.log.Error("retained messages that have expired could not be removed from state.db", "err", err)
				}
			}
		}
	}
}

// tidySessions ends the sessions that have expired, and publishes the wills that are
// due.
func (b *Broker) tidySessions(ctx context.Context, now time.Time) {
	b.mu.Lock()
	var due []*session
	for id, s := range b.sessions {
		if s.kept == nil || b.claims[id] != nil {
			continue
		}
		s.mu.Lock()
		if s.over(now) || s.will != nil && !now.Before(s.will.at) {
			due = append(due, s)
		}
		s.mu.Unlock()
	}
	b.mu.Unlock()
	for _, s := range due {
		c := &conn{b: b, claimed: s.id, ended: make(chan struct{}), cancel: func(error) {}}
		b.mu.Lock()
		free := b.claims[s.id] == nil && b.sessions[s.id] == s
		if free {
			b.claims[s.id] = c
		}
		b.mu.Unlock()
		if !free {
			continue // the client has come back
		}
		b.tidySession(ctx, s, now)
		b.mu.Lock()
		if b.claims[s.id] == c {
			delete(b.claims, s.id)
		}
		b.mu.Unlock()
		close(c.ended)
	}
}

// tidySession ends a session or publishes its will. Its client id is claimed.
func (b *Broker) tidySession(ctx context.Context, s *session, now time.Time) {
	_ = b.guard("session that expires", func() {
		if s.expired(now) {
			b.log.Debug("session expired", "client", s.id)
			b.stats.sessionsExpired.Add(1)
			_ = b.endSession(ctx, s) // it is tried again until it is stored
		} else {
			b.publishDue(ctx, s, now)
		}
	})
}

// restore makes what was saved.
func (b *Broker) restore(all saved) {
	st := b.options.State
	now := time.Now()
	for i := range all.retained {
		m := &all.retained[i].Message
		m.ClientID = all.retained[i].user // for those who do not want their own
		m.Received = now.Add(-st.buffer.Age(all.retained[i].since))
		if _, _, ok := m.expiresIn(now); ok {
			b.retained.set(m)
		}
	}
	outboxes := st.sessionOutboxes()
	for _, one := range all.sessions {
		s := &session{b: b, id: one.client, subscriptions: make(map[string]*subscription), publisher: new(publisher), leftAt: now}
		s.kept = &kept{s: s, id: one.id, expiry: min(one.expiry, b.limits.SessionExpiry)}
		if one.left {
			s.leftAt = now.Add(-st.buffer.Age(one.since))
		} else {
			b.left = append(b.left, s)
		}
		for _, o := range outboxes[outboxName(s.id, one.id)] {
			s.kept.add(o)
		}
		for _, r := range all.received[one.id] {
			if l := s.kept.lanes[r.class].Load(); l != nil {
				l.outOfTurn[r.ordinal] = true
			}
		}
		for _, saved := range all.subs[one.id] {
			sub := &subscription{session: s, filter: saved.filter, qos: saved.flags & 3, noLocal: saved.flags&4 != 0, retainAsPublished: saved.flags&8 != 0}
			if saved.id != 0 {
				sub.ids = []uint32{saved.id}
			}
			s.subscriptions[sub.filter] = sub
			s.filterBytes += len(sub.filter)
			b.index.replace(nil, sub)
		}
		for id, class := range all.ids[one.id] {
			if s.inbound == nil {
				s.inbound = make(map[uint16]inbound)
			}
			s.inbound[id] = inbound{class: class, durable: true}
		}
		b.sessions[s.id] = s
	}
	for client, w := range all.wills {
		m := w.Message
		m.ClientID, m.Urgent = client, true
		rights, known := b.recall(w.user, client)
		if !known {
			b.log.Warn("a will is not published: who may do what is not known before the client connects", "client", client)
		}
		s := b.sessions[client]
		if s == nil || !known { // it ended with the connection, and that with the process
			s = &session{b: b, id: client}
			b.bereft = append(b.bereft, s)
		}
		s.setRights(rights)
		delay := time.Duration(0)
		if s.kept != nil {
			delay = min(w.delay, s.kept.expiry)
		}
		s.will = &pendingWill{will: &will{m: &m, delay: w.delay, user: w.user, id: w.id}, at: s.leftAt.Add(delay)}
	}
}

// recall is what a client may do that is not connected.
func (b *Broker) recall(user, client string) (Rights, bool) {
	if b.options.Access == nil {
		return nil, true
	}
	if r, ok := b.options.Access.(Recaller); ok {
		return r.Recall(user, client), true
	}
	return noRights{}, false
}

// noRights are those of nobody.
type noRights struct{}

func (noRights) MayPublish(string) bool   { return false }
func (noRights) MaySubscribe(string) bool { return false }
func (noRights) MayReceive(string) bool   { return false }
