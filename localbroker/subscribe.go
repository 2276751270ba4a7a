package localbroker

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"sync"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker/packet"
	"github.com/fieldferry/fieldferry/localbroker/topic"
)

// handleSubscribe takes a SUBSCRIBE, each of its filters by itself, and sends
// the retained messages behind its SUBACK.
func (c *conn) handleSubscribe(ctx context.Context, body []byte) error {
	var p packet.Subscribe
	if err := p.Decode(c.version, body); err != nil {
		return err
	}
	for _, o := range p.Subscriptions {
		if err := topic.CheckFilter(o.Filter, 0); err != nil { // [MQTT-4.7.1-1] to [MQTT-4.7.3-3], [MQTT-4.8.2-1], [MQTT-4.8.2-2]
			return packet.Errorf(packet.Malformed, "SUBSCRIBE: %v", err)
		}
	}
	var ids []uint32
	if id, ok := p.Props.Uint(packet.SubscriptionID); ok {
		ids = []uint32{id}
	}
	var replay []replayed
	grants := make([]grant, len(p.Subscriptions))
	waits := c.session.replayWaits()
	c.session.beginReplay()
	defer func() { c.session.endReplay(replay) }()
	for i, o := range p.Subscriptions {
		var found []replayed
		var n int
		grants[i], found, n = c.subscribe(o, ids, waits)
		waits += n
		replay = append(replay, found...)
	}
	if err := c.keepSubscriptions(ctx, grants); err != nil {
		return err
	}
	ack := packet.Suback{PacketID: p.PacketID}
	for _, g := range grants {
		if c.version == packet.V311 && g.reason.Failed() {
			g.reason = packet.Unspecified // 3.1.1 §3.9.3
		}
		ack.Reasons = append(ack.Reasons, g.reason)
	}
	return c.answer(ctx, func(dst []byte) []byte { return ack.Append(dst, c.version, packet.SUBACK) })
}

// grant is the answer to one filter of a SUBSCRIBE.
type grant struct {
	reason   packet.Reason
	sub, old *subscription // sub is nil if it was refused
}

// keepSubscriptions makes the subscriptions of a session that is kept durable, and
// before that the retained messages that they get: what has its SUBACK has those,
// too.
func (c *conn) keepSubscriptions(ctx context.Context, grants []grant) error {
	if c.session.kept == nil {
		return nil
	}
	var replaying []*grant
	for i := range grants {
		if sub := grants[i].sub; sub != nil && sub.replaying.Load() != nil {
			replaying = append(replaying, &grants[i])
			defer sub.replaying.Store(nil)
		}
	}
	if len(replaying) > 0 {
		if err := c.b.retaining.wait(ctx); err != nil {
			return err
		}
	}
	stored := tally{done: make(chan struct{}, 1)}
	for _, g := range replaying {
		err := c.replayDurably(ctx, g.sub, &stored)
		if errors.Is(err, buffer.ErrFull) {
			c.withdraw(g)
		} else if err != nil {
			return packet.Errorf(refusal(err), "retained messages could not be stored for the session: %v", err)
		}
	}
	if _, err := stored.wait(ctx); err != nil {
		return packet.Errorf(refusal(err), "retained messages could not be stored for the session: %v", err)
	}
	var record []byte
	for _, g := range grants {
		if g.sub != nil {
			record = g.sub.appendRecord(record)
		}
	}
	return c.keep(ctx, changeSubscribe, record)
}

// withdraw takes a subscription away again that the client cannot have.
func (c *conn) withdraw(g *grant) {
	s := c.session
	if s.subscriptions[g.sub.filter] == g.sub {
		delete(s.subscriptions, g.sub.filter)
		if g.old != nil {
			s.subscriptions[g.sub.filter] = g.old
		} else {
			s.filterBytes -= len(g.sub.filter)
		}
		c.b.index.replace(g.sub, g.old)
	}
	*g = grant{reason: packet.QuotaExceeded}
}

// tally is the receipt of several appends that are waited for together.
type tally struct {
	mu   sync.Mutex // guards what follows
	n    int        // that were not told yet
	err  error      // the first
	some bool       // was told since wait last returned
	done chan struct{}
}

// add notes that there is one more.
func (t *tally) add(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n += n
}

// Stored is the buffer's receipt.
func (t *tally) Stored(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		t.err = err
	}
	t.some = true
	if t.n--; t.n == 0 {
		select {
		case t.done <- struct{}{}:
		default:
		}
	}
}

// wait returns when all were told, with the first error. It reports whether any was
// told since it was called last.
func (t *tally) wait(ctx context.Context) (some bool, err error) {
	for {
		t.mu.Lock()
		n, err := t.n, t.err
		some := t.some
		if n == 0 {
			t.some = false
		}
		t.mu.Unlock()
		if n == 0 {
			return some, err
		}
		select {
		case <-t.done:
		case <-ctx.Done():
			return some, context.Cause(ctx)
		}
	}
}

// keep makes a change of the session's subscriptions durable; record is what has
// changed.
func (c *conn) keep(ctx context.Context, kind byte, record []byte) error {
	if len(record) == 0 {
		return nil
	}
	record = append(binary.AppendUvarint(nil, c.session.kept.id), record...)
	if err := c.b.options.State.store(ctx, change{kind, record}); err != nil {
		return notStored(ctx, "the subscription", err)
	}
	return nil
}

// appendRecord appends the subscription as a change has it.
func (sub *subscription) appendRecord(dst []byte) []byte {
	saved := savedSubscription{filter: sub.filter, flags: sub.qos}
	if sub.noLocal {
		saved.flags |= 4
	}
	if sub.retainAsPublished {
		saved.flags |= 8
	}
	if len(sub.ids) > 0 {
		saved.id = sub.ids[0]
	}
	return saved.append(appendText(dst, saved.filter))
}

// subscribe adds one subscription, or puts it in the place of the one with the
// same filter. It returns the retained messages to send from memory, and how many there
// are, those to be sent from the log included; waits is how many wait already.
func (c *conn) subscribe(o packet.Subscription, ids []uint32, waits int) (g grant, replay []replayed, n int) {
	s, limits := c.session, &c.b.limits
	share, filter := topic.SplitShared(o.Filter)
	old := s.subscriptions[o.Filter]
	replays := share == "" && o.RetainHandling != 2 && (o.RetainHandling == 0 || old == nil) // §3.3.1.3, §4.8.2
	switch {
	case topic.Levels(filter) > limits.TopicLevels:
		return grant{reason: packet.TopicFilterInvalid}, nil, 0
	case !s.maySubscribe(filter):
		return grant{reason: packet.NotAuthorized}, nil, 0
	case old == nil && (len(s.subscriptions) >= limits.SubscriptionsPerClient || s.filterBytes+len(o.Filter) > limits.subscriptionBytes()):
		return grant{reason: packet.QuotaExceeded}, nil, 0
	case replays && waits > 0 && waits >= limits.RetainedMessages:
		return grant{reason: packet.QuotaExceeded}, nil, 0 // without a look at what there is: it may be asked for very often
	}
	sub := &subscription{session: s, filter: strings.Clone(o.Filter), qos: o.QoS, noLocal: o.NoLocal, retainAsPublished: o.RetainAsPublished, ids: ids}
	if replays && s.kept != nil && sub.qos > 0 {
		sub.replaying.Store(new(replaying))
	}
	c.b.index.replace(old, sub)
	if s.subscriptions[sub.filter] = sub; old == nil {
		s.filterBytes += len(sub.filter)
	}
	g = grant{reason: packet.Reason(sub.qos), sub: sub, old: old}
	if replays {
		if replay, n = sub.replay(filter); waits > 0 && waits+n > limits.RetainedMessages {
			c.withdraw(&g)
			return g, nil, 0
		}
	}
	return g, replay, n
}

// replay is what a new subscription gets of the retained messages from memory: all,
// or with a session that is kept those of QoS 0; n counts all.
func (sub *subscription) replay(filter string) (out []replayed, n int) {
	s := sub.session
	var place uint64
	found := s.b.retained.match(filter, func() { place = s.place() })
	out = make([]replayed, 0, len(found))
	for _, m := range found {
		if !sub.wants(m) {
			continue
		}
		n++
		if d := sub.retainedDelivery(m); s.kept == nil || d.qos == 0 {
			out = append(out, replayed{delivery: d, after: place})
		}
	}
	return out, n
}

// wants reports whether a message is for the subscription: none of the client's own
// where that is not wanted, whichever session it was published in [MQTT-3.8.3-3].
func (sub *subscription) wants(m *Message) bool {
	return !(sub.noLocal && m.ClientID == sub.session.id) && sub.session.mayReceive(m.Topic)
}

// retainedDelivery is a retained message as a new subscription gets it [MQTT-3.3.1-8].
func (sub *subscription) retainedDelivery(m *Message) delivery {
	return delivery{m: m, qos: min(m.QoS, sub.qos), retain: true, ids: sub.ids}
}

// replayDurably gives a new subscription of a session that is kept the retained
// messages of QoS 1 and 2: as copies in the log, each of the class that its topic has,
// so that none comes behind a newer one.
func (c *conn) replayDurably(ctx context.Context, sub *subscription, stored *tally) error {
	_, filter := topic.SplitShared(sub.filter)
	r := sub.replaying.Load()
	for _, m := range c.b.retained.match(filter, func() {}) {
		d := sub.retainedDelivery(m)
		if d.qos == 0 || !sub.wants(m) {
			continue
		}
		class, _ := c.b.classOf(m)
		copied, err := c.session.kept.copy(&d, class)
		if err == nil {
			err = r.unless(m.Topic, func() error {
				m.durable(&c.durable, []buffer.Copy{copied})
				c.durable.Urgent = true
				stored.add(1)
				err := c.b.options.Buffer.Append(ctx, class, &c.durable, stored)
				if err != nil {
					stored.add(-1)
				}
				return err
			})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *conn) handleUnsubscribe(ctx context.Context, body []byte) error {
	var p packet.Unsubscribe
	if err := p.Decode(c.version, body); err != nil {
		return err
	}
	ack := packet.Suback{PacketID: p.PacketID}
	s := c.session
	var record []byte
	var ended []*subscription
	for _, filter := range p.Filters {
		if err := topic.CheckFilter(filter, 0); err != nil {
			return packet.Errorf(packet.Malformed, "UNSUBSCRIBE: %v", err)
		}
		reason := packet.NoSubscriptionExisted
		if sub := s.subscriptions[filter]; sub != nil {
			delete(s.subscriptions, filter)
			s.filterBytes -= len(filter)
			c.b.index.replace(sub, nil)
			ended = append(ended, sub)
			reason = packet.Success
			if s.kept != nil {
				record = appendText(record, filter)
			}
		}
		ack.Reasons = append(ack.Reasons, reason)
	}
	if err := c.keep(ctx, changeUnsubscribe, record); err != nil {
		// The client asks again, and must not be told then that there is none: it would
		// be there after a restart.
		for _, sub := range ended {
			s.subscriptions[sub.filter] = sub
			s.filterBytes += len(sub.filter)
			c.b.index.replace(nil, sub)
		}
		return err
	}
	return c.answer(ctx, func(dst []byte) []byte { return ack.Append(dst, c.version, packet.UNSUBACK) })
}
