package localbroker

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker/packet"
	"github.com/fieldferry/fieldferry/localbroker/topic"
)

// Publish sends a message of the gateway itself the way a client's goes: into
// the buffer if it has durable destinations, and then to the subscribers. r,
// which may be nil, is told once when it is there, or that it failed; it must
// not block. If m has no durable destination r is told before Publish returns.
// With an error, r is told nothing. Publish blocks only while the buffer has no room in
// memory. Messages of one class are delivered in the order of the calls, those of
// different classes, and those without durable destinations, are not held up by each other.
// m, its payload and its properties must not be changed afterwards.
func (b *Broker) Publish(ctx context.Context, m *Message, r buffer.Receipt) error {
	if err := topic.CheckName(m.Topic, b.limits.TopicLevels); err != nil {
		return fmt.Errorf("publish to %q: %w", m.Topic, err)
	}
	if err := m.Props.CheckPublish(); err != nil {
		return fmt.Errorf("publish to %q: %w", m.Topic, err)
	}
	if what := b.retained.full(m, &b.limits); what != "" {
		return packet.Errorf(packet.QuotaExceeded, "publish to %q: %s", m.Topic, what)
	}
	p := &ownPublish{publish: publish{Message: *m}, b: b, receipt: r}
	if p.Received.IsZero() {
		p.Received = time.Now()
	}
	if p.Retain && p.QoS > 0 && b.options.State != nil {
		p.crowd = b.retaining.enter()
	}
	f := b.fanouts.Get().(*fanout)
	p.class = buffer.Local
	var copies []buffer.Copy
	var err error
	if panicked := b.guard("publish", func() { copies, err = b.destinations(&p.publish, f, nil) }); panicked != nil {
		err, f = panicked, new(fanout) // what f was about is not known
	}
	b.fanouts.Put(f)
	if err != nil {
		b.retaining.leave(p.crowd)
		b.stats.refused.Add(1)
		return fmt.Errorf("publish to %q: %w", m.Topic, err)
	}
	// What the broker says of itself is of this process.
	if st := b.options.State; st != nil && m.Retain && !ownTopic(m.Topic) {
		k := mark{flags: markRetain, topic: m.Topic}
		copies = append(copies, buffer.Copy{Outbox: st.outboxes[p.class], Topic: k.copyTopic(), QoS: m.QoS, Retain: true})
	}
	if len(copies) == 0 {
		p.Stored(nil)
		return nil
	}
	var d buffer.Message
	p.durable(&d, copies)
	if err := b.options.Buffer.Append(ctx, p.class, &d, p); err != nil {
		b.retaining.leave(p.crowd)
		b.stats.refused.Add(1)
		return fmt.Errorf("publish to %q: %w", m.Topic, err)
	}
	return nil
}

// ownPublish is a publish of the gateway itself. Receipts come in the order of
// their class, so it needs no queue.
type ownPublish struct {
	publish
	b       *Broker
	receipt buffer.Receipt
}

// Stored is the buffer's receipt.
func (p *ownPublish) Stored(err error) {
	if err != nil {
		p.b.stats.refused.Add(1)
	} else {
		_ = p.b.guard("fan-out", p.route)
	}
	p.b.retaining.leave(p.crowd)
	p.crowd = nil
	if p.receipt != nil {
		p.receipt.Stored(err)
		p.receipt = nil
	}
}

func (p *ownPublish) route() {
	f := p.b.fanouts.Get().(*fanout)
	p.stamp = p.b.stamps.Add(1)
	p.b.route(&p.Message, p.direct, f)
	f.wake()
	p.b.fanouts.Put(f)
}

// handler is a subscriber inside of the process.
type handler struct {
	s  *session
	do func(*Message)

	mu      sync.Mutex // guards what follows
	again   bool
	running bool
	closed  bool
	done    sync.WaitGroup
}

// Subscribe has h called for every message whose topic filter matches, for the
// retained ones first, one at a time and in order. h must not change what it is
// given and may take its time: beyond the limits of a client's queue, messages are
// lost to it as to a slow client. cancel ends that and returns when h does; h must not call
// it. A retained message that was there before has Retain set as one that
// is published with retain has.
func (b *Broker) Subscribe(filter string, qos byte, h func(*Message)) (cancel func(), err error) {
	if err := topic.CheckFilter(filter, b.limits.TopicLevels); err != nil {
		return nil, fmt.Errorf("subscribe to %q: %w", filter, err)
	}
	s := &session{b: b, id: filter, subscriptions: make(map[string]*subscription)}
	s.handler = &handler{s: s, do: h}
	sub := &subscription{session: s, filter: filter, qos: qos}
	s.subscriptions[filter] = sub
	s.beginReplay()
	b.index.replace(nil, sub)
	var replay []replayed
	if share, inner := topic.SplitShared(filter); share == "" {
		replay, _ = sub.replay(inner)
	}
	s.endReplay(replay)
	return s.handler.cancel, nil
}

func (h *handler) cancel() {
	h.s.end()
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.done.Wait()
}

// wake has the goroutine look at the session; there is one only while there
// is something to do.
func (h *handler) wake() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.again = true
	if !h.running && !h.closed {
		h.running = true
		h.done.Go(h.run)
	}
}

func (h *handler) run() {
	var space [64]outgoing
	for {
		h.mu.Lock()
		if !h.again {
			h.running = false
			h.mu.Unlock()
			return
		}
		h.again = false
		h.mu.Unlock()
		for more := true; more; {
			var batch []outgoing
			batch, more, _ = h.s.take(nil, space[:0], writeSize) // it is not a kept one
			for _, o := range batch {
				_ = h.s.b.guard("subscriber inside of the process", func() { h.do(o.m) })
			}
		}
	}
}
