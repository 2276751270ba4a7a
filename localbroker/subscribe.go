package localbroker

import (
	"context"

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
	c.session.beginReplay()
	for _, o := range p.Subscriptions {
		reason, found := c.subscribe(o, ids, len(replay))
		if c.version == packet.V311 && reason.Failed() {
			reason = packet.Unspecified // 3.1.1 §3.9.3
		}
		ack.Reasons = append(ack.Reasons, reason)
		replay = append(replay, found...)
	}
	err := c.answer(ctx, func(dst []byte) []byte { return ack.Append(dst, c.version, packet.SUBACK) })
	c.session.endReplay(replay)
	return err
}

// subscribe adds one subscription, or puts it in the place of the one with the
// same filter. It returns the retained messages to send; more of them wait already.
func (c *conn) subscribe(o packet.Subscription, ids []uint32, more int) (packet.Reason, []replayed) {
	s, limits := c.session, &c.b.limits
	share, filter := topic.SplitShared(o.Filter)
	old := s.subscriptions[o.Filter]
	switch {
	case topic.Levels(filter) > limits.TopicLevels:
		return packet.TopicFilterInvalid, nil
	case s.rights != nil && !s.rights.MaySubscribe(filter):
		return packet.NotAuthorized, nil
	case old == nil && len(s.subscriptions) >= limits.SubscriptionsPerClient:
		return packet.QuotaExceeded, nil
	}
	sub := &subscription{session: s, filter: o.Filter, qos: min(o.QoS, 1), noLocal: o.NoLocal, retainAsPublished: o.RetainAsPublished, ids: ids}
	s.subscriptions[o.Filter] = sub
	c.b.index.replace(old, sub)
	if share != "" || o.RetainHandling == 2 || o.RetainHandling == 1 && old != nil { // §3.3.1.3, §4.8.2
		return packet.Reason(sub.qos), nil
	}
	replay := sub.replay(filter)
	if waits := more + s.replayWaits(); waits > 0 && waits+len(replay) > limits.RetainedMessages {
		delete(s.subscriptions, o.Filter)
		c.b.index.replace(sub, nil)
		return packet.QuotaExceeded, nil
	}
	return packet.Reason(sub.qos), replay
}

// replay is what a new subscription gets of the retained messages.
func (sub *subscription) replay(filter string) []replayed {
	s := sub.session
	var place uint64
	found := s.b.retained.match(filter, func() { place = s.place() })
	out := make([]replayed, 0, len(found))
	for _, m := range found {
		if sub.noLocal && m.ClientID == s.id || !s.mayReceive(m.Topic) {
			continue
		}
		d := delivery{m: m, qos: min(m.QoS, sub.qos), retain: true, ids: sub.ids} // [MQTT-3.3.1-8]
		out = append(out, replayed{delivery: d, after: place})
	}
	return out
}

func (c *conn) handleUnsubscribe(ctx context.Context, body []byte) error {
	var p packet.Unsubscribe
	if err := p.Decode(c.version, body); err != nil {
		return err
	}
	ack := packet.Suback{PacketID: p.PacketID}
	for _, filter := range p.Filters {
		if err := topic.CheckFilter(filter, 0); err != nil {
			return packet.Errorf(packet.Malformed, "UNSUBSCRIBE: %v", err)
		}
		reason := packet.NoSubscriptionExisted
		if sub := c.session.subscriptions[filter]; sub != nil {
			delete(c.session.subscriptions, filter)
			c.b.index.replace(sub, nil)
			reason = packet.Success
		}
		ack.Reasons = append(ack.Reasons, reason)
	}
	return c.answer(ctx, func(dst []byte) []byte { return ack.Append(dst, c.version, packet.UNSUBACK) })
}
