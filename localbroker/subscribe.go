package localbroker

import (
	"context"
	"encoding/binary"
	"strings"

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
	ack := packet.Suback{PacketID: p.PacketID}
	var replay []replayed
	var durable []*subscription // that get their retained messages from the log
	var record []byte
	s := c.session
	s.beginReplay()
	for _, o := range p.Subscriptions {
		reason, sub, found := c.subscribe(o, ids, len(replay))
		if sub != nil && s.kept != nil {
			record = sub.appendRecord(record)
			if sub.replaying.Load() != nil {
				durable = append(durable, sub)
			}
		}
		if c.version == packet.V311 && reason.Failed() {
			reason = packet.Unspecified // 3.1.1 §3.9.3
		}
		ack.Reasons = append(ack.Reasons, reason)
		replay = append(replay, found...)
	}
	err := c.keep(ctx, changeSubscribe, record)
	if err == nil {
		err = c.answer(ctx, func(dst []byte) []byte { return ack.Append(dst, c.version, packet.SUBACK) })
	}
	s.endReplay(replay)
	for _, sub := range durable {
		if err == nil {
			err = c.replayDurably(ctx, sub)
		}
		c.b.index.coming.replayed(sub)
	}
	return err
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
// same filter. It returns the retained messages to send from memory; more of them
// wait already.
func (c *conn) subscribe(o packet.Subscription, ids []uint32, more int) (packet.Reason, *subscription, []replayed) {
	s, limits := c.session, &c.b.limits
	share, filter := topic.SplitShared(o.Filter)
	old := s.subscriptions[o.Filter]
	switch {
	case topic.Levels(filter) > limits.TopicLevels:
		return packet.TopicFilterInvalid, nil, nil
	case !s.maySubscribe(filter):
		return packet.NotAuthorized, nil, nil
	case old == nil && len(s.subscriptions) >= limits.SubscriptionsPerClient:
		return packet.QuotaExceeded, nil, nil
	}
	sub := &subscription{session: s, filter: strings.Clone(o.Filter), qos: o.QoS, noLocal: o.NoLocal, retainAsPublished: o.RetainAsPublished, ids: ids}
	replays := share == "" && o.RetainHandling != 2 && (o.RetainHandling == 0 || old == nil) // §3.3.1.3, §4.8.2
	if replays && s.kept != nil && sub.qos > 0 {
		sub.replaying.Store(new(replaying))
	}
	s.subscriptions[sub.filter] = sub
	c.b.index.replace(old, sub)
	if !replays {
		return packet.Reason(sub.qos), sub, nil
	}
	replay := sub.replay(filter)
	if waits := more + s.replayWaits(); waits > 0 && waits+len(replay) > limits.RetainedMessages {
		delete(s.subscriptions, o.Filter)
		c.b.index.replace(sub, nil)
		return packet.QuotaExceeded, nil, nil
	}
	return packet.Reason(sub.qos), sub, replay
}

// replay is what a new subscription gets of the retained messages from memory: all,
// or with a session that is kept those of QoS 0.
func (sub *subscription) replay(filter string) []replayed {
	s := sub.session
	var place uint64
	found := s.b.retained.match(filter, func() { place = s.place() })
	out := make([]replayed, 0, len(found))
	for _, m := range found {
		d := sub.retainedDelivery(m)
		if s.kept != nil && d.qos > 0 || !sub.wants(m) {
			continue
		}
		out = append(out, replayed{delivery: d, after: place})
	}
	return out
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
func (c *conn) replayDurably(ctx context.Context, sub *subscription) error {
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
			err = r.unless(m, func() error {
				m.durable(&c.durable, []buffer.Copy{copied})
				c.durable.Urgent = true
				return c.b.options.Buffer.Append(ctx, class, &c.durable, noReceipt{})
			})
		}
		if err != nil {
			return packet.Errorf(refusal(err), "retained messages could not be stored for the session: %v", err)
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
	var record []byte
	for _, filter := range p.Filters {
		if err := topic.CheckFilter(filter, 0); err != nil {
			return packet.Errorf(packet.Malformed, "UNSUBSCRIBE: %v", err)
		}
		reason := packet.NoSubscriptionExisted
		if sub := c.session.subscriptions[filter]; sub != nil {
			delete(c.session.subscriptions, filter)
			c.b.index.replace(sub, nil)
			reason = packet.Success
			if c.session.kept != nil {
				record = appendText(record, filter)
			}
		}
		ack.Reasons = append(ack.Reasons, reason)
	}
	if err := c.keep(ctx, changeUnsubscribe, record); err != nil {
		return err
	}
	return c.answer(ctx, func(dst []byte) []byte { return ack.Append(dst, c.version, packet.UNSUBACK) })
}
