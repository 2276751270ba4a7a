package localbroker

// fanout is the memory that one goroutine at a time routes with.
type fanout struct {
	subs  []*subscription
	seen  map[*session]int // where a session is in merged; used when it may come twice
	out   []delivery
	to    []*session
	wakes []*session // have something to send and were not told yet
}

// route hands m to every session that subscribed to it, and keeps it if it is
// to be retained. from is the publisher's session, nil for the gateway. The
// sessions in f.wakes are left for the caller to wake. It returns how many got it.
func (b *Broker) route(m *Message, from *session, f *fanout) int {
	if m.Retain {
		b.retained.set(m)
	}
	subs, several := b.index.match(f.subs[:0], m.Topic)
	f.subs = subs
	if len(subs) == 0 {
		return 0
	}
	f.out, f.to = f.out[:0], f.to[:0]
	if several {
		clear(f.seen)
		if f.seen == nil {
			f.seen = make(map[*session]int)
		}
	}
	for _, sub := range subs {
		s := sub.session
		if sub.noLocal && s == from || !s.mayReceive(m.Topic) {
			continue
		}
		d := delivery{m: m, qos: min(m.QoS, sub.qos), retain: m.Retain && sub.retainAsPublished, ids: sub.ids, group: sub.group}
		if several && sub.group == nil {
			// One copy for all subscriptions of a client that match, with
			// their highest QoS and all their identifiers [MQTT-3.3.4-3], [MQTT-3.3.4-4].
			if i, ok := f.seen[s]; ok {
				o := &f.out[i]
				o.qos, o.retain = max(o.qos, d.qos), o.retain || d.retain
				o.ids = append(o.ids[:len(o.ids):len(o.ids)], d.ids...)
				continue
			}
			f.seen[s] = len(f.out)
		}
		f.out, f.to = append(f.out, d), append(f.to, s)
	}
	for i, s := range f.to {
		wake, taken := s.enqueue(f.out[i])
		if wake {
			f.wakes = append(f.wakes, s)
		}
		if !taken && f.out[i].group != nil {
			b.redirect(f.out[i], f)
		}
	}
	n := len(f.to)
	clear(f.out) // hold no message longer than its queues do
	clear(f.subs)
	clear(f.to)
	return n
}

// redirect gives a delivery of a shared subscription whose member has left to
// another one, if there is one.
func (b *Broker) redirect(d delivery, f *fanout) {
	for {
		sub := b.index.another(d.group)
		if sub == nil {
			return
		}
		s := sub.session
		if !s.mayReceive(d.m.Topic) {
			return
		}
		d.ids, d.qos, d.retain = sub.ids, min(d.m.QoS, sub.qos), d.m.Retain && sub.retainAsPublished
		wake, taken := s.enqueue(d)
		if wake {
			f.wakes = append(f.wakes, s)
		}
		if taken {
			return
		}
	}
}

// wake tells the sessions that were left to wake.
func (f *fanout) wake() {
	for i, s := range f.wakes {
		s.wake()
		f.wakes[i] = nil
	}
	f.wakes = f.wakes[:0]
}
