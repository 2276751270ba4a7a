package localbroker

import (
	"context"

	"github.com/fieldferry/fieldferry/buffer"
)

// fanout is the memory that one goroutine at a time routes with.
type fanout struct {
	subs  []*subscription
	seen  map[*session]int // where a session is in out; used when it may come twice
	out   []delivery
	to    []*subscription // whose delivery it is
	wakes []*session      // have something to send and were not told yet
}

// receiver is a delivery that a session gets from memory, though the rest of the
// message's way is through the log.
type receiver struct {
	delivery
	s *session
}

// match fills f.out and f.to with what sessions get of m: those that are kept, or
// the others.
func (b *Broker) match(m *Message, kept bool, f *fanout) {
	subs, several := b.index.match(f.subs[:0], m.Topic, kept)
	f.subs = subs
	f.out, f.to = f.out[:0], f.to[:0]
	if len(subs) == 0 {
		return
	}
	if several {
		clear(f.seen)
		if f.seen == nil {
			f.seen = make(map[*session]int)
		}
	}
	for _, sub := range subs {
		s := sub.session
		if !sub.wants(m) {
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
		f.out, f.to = append(f.out, d), append(f.to, sub)
	}
}

// forget lets go of what match has found: no message is held longer than its queues do.
func (f *fanout) forget() {
	clear(f.out)
	clear(f.subs)
	clear(f.to)
}

// route hands m to every session that subscribed to it and does not get it from the
// log, and keeps it if it is to be retained. direct are those among the sessions that
// are kept. The sessions in f.wakes are left for the caller to wake. It returns how
// many got it.
func (b *Broker) route(m *Message, direct []receiver, f *fanout) (n int) {
	if m.Retain {
		b.retained.set(m)
	}
	b.match(m, false, f)
	n = b.hand(f)
	if m.QoS == 0 && b.index.keeps.Load() {
		b.match(m, true, f)
		n += b.hand(f)
	}
	for _, r := range direct {
		b.enqueue(r.s, r.delivery, f)
	}
	return n + len(direct)
}

// hand enqueues what match has found.
func (b *Broker) hand(f *fanout) int {
	for i, sub := range f.to {
		b.enqueue(sub.session, f.out[i], f)
	}
	n := len(f.to)
	f.forget()
	return n
}

func (b *Broker) enqueue(s *session, d delivery, f *fanout) {
	wake, taken := s.enqueue(d)
	if wake {
		f.wakes = append(f.wakes, s)
	}
	if !taken && d.group != nil {
		b.redirect(d, f)
	}
}

// redirect gives a delivery of a shared subscription whose member has left to
// another one, if there is one.
func (b *Broker) redirect(d delivery, f *fanout) {
	filter := d.group.all.filter
	for range 16 { // members may come and go meanwhile, but not for ever
		sub := b.index.another(filter)
		if sub == nil {
			return
		}
		s := sub.session
		if !s.mayReceive(d.m.Topic) {
			return
		}
		d.ids, d.qos, d.retain = sub.ids, min(d.m.QoS, sub.qos), d.m.Retain && sub.retainAsPublished
		if s.kept != nil && d.qos > 0 {
			b.sendLate(d.m, []receiver{{d, s}})
			return
		}
		wake, taken := s.enqueue(d)
		if wake {
			f.wakes = append(f.wakes, s)
		}
		if taken {
			return
		}
	}
}

// copies appends to dst the copies of m for the sessions that are kept and get it
// with QoS 1 or 2, of a class. direct are those that get it with QoS 0, or from
// memory because their turn of a shared subscription has come.
func (b *Broker) copies(m *Message, class buffer.Class, f *fanout, dst []buffer.Copy) (copies []buffer.Copy, direct []receiver, err error) {
	b.match(m, true, f)
	var without []*kept
	for i, sub := range f.to {
		if k := sub.session.kept; k != nil && f.out[i].qos > 0 && k.lanes[class].Load() == nil {
			without = append(without, k)
		}
	}
	if err := b.makeLanes(class, without...); err != nil {
		f.forget()
		return dst, nil, err
	}
	if m.Retain {
		for _, sub := range f.subs { // also those that another one of the session stands for
			if r := sub.replaying.Load(); r != nil && sub.wants(m) {
				r.newer(m.Topic)
			}
		}
	}
	for i, sub := range f.to {
		d, s := f.out[i], sub.session
		if d.qos == 0 || s.kept == nil {
			direct = append(direct, receiver{d, s})
			continue
		}
		c, err := s.kept.copy(&d, class)
		if err != nil { // it has ended: another member of its group may get it
			direct = append(direct, receiver{d, s})
			continue
		}
		dst = append(dst, c)
	}
	f.forget()
	return dst, direct, nil
}

// sendLate has a message that was published already made durable for sessions that
// get it in addition. It does not wait.
func (b *Broker) sendLate(m *Message, to []receiver) {
	b.background.begin(func() { _ = b.guard("late message", func() { b.storeLate(m, to) }) })
}

func (b *Broker) storeLate(m *Message, to []receiver) {
	class, _ := b.classOf(m)
	d := new(buffer.Message)
	var copies []buffer.Copy
	for _, r := range to {
		c, err := r.s.kept.copy(&r.delivery, class)
		if err != nil {
			b.log.Error("message could not be stored for a session", "client", r.s.id, "err", err)
			continue
		}
		copies = append(copies, c)
	}
	if len(copies) == 0 {
		return
	}
	m.durable(d, copies)
	if err := b.options.Buffer.Append(context.Background(), class, d, noReceipt{}); err != nil {
		b.log.Error("message could not be stored for sessions", "err", err)
	}
}

// classOf is the class that a message has in the log, and whether a durable
// destination outside of the broker gives it that.
func (b *Broker) classOf(m *Message) (buffer.Class, []buffer.Copy) {
	if b.options.Router == nil {
		return buffer.Local, nil
	}
	class, copies := b.options.Router.Route(m, nil)
	if len(copies) == 0 {
		class = buffer.Local
	}
	return class, copies
}

// wake tells the sessions that were left to wake.
func (f *fanout) wake() {
	for i, s := range f.wakes {
		s.wake()
		f.wakes[i] = nil
	}
	f.wakes = f.wakes[:0]
}
