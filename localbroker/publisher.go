package localbroker

import (
	"errors"
	"sync"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// publisher keeps the publishes of one client in order while some of them wait
// for the disk: none is acknowledged or routed before those in front of it.
// When a client is taken over, its next connection goes on with it.
type publisher struct {
	mu        sync.Mutex // guards what follows
	first     *publish
	last      *publish
	releasing bool // a goroutine is at work on the front; it owns fanout
	fanout    fanout
}

// publish is a message from its arrival to its acknowledgement, or another packet
// whose answer must not overtake those.
type publish struct {
	Message
	next     *publish
	p        *publisher
	c        *conn // that it came through
	packetID uint16
	kind     publishKind
	class    buffer.Class
	direct   []receiver    // sessions that are kept and get it from memory
	crowd    *crowd        // of the retained publishes that are under way; nil if it is none
	waits    bool          // it is in its publisher's queue, for the disk or behind others
	done     bool          // nothing keeps it there but those in front of it
	kept     bool          // it has durable destinations
	expected bool          // as retained.expect was told
	released chan struct{} // closed when it is; nil if nobody waits
	err      error         // why it was not accepted
}

type publishKind uint8

const (
	isPublish publishKind = iota
	isWill                // nobody is there to acknowledge it to
	isAgain               // a QoS 2 publish that came before: it is answered, and no more
	isRelease             // a PUBREL
)

// Stored is the buffer's receipt.
func (m *publish) Stored(err error) {
	if m.Retain {
		m.expected = true
		m.c.b.retained.expect()
	}
	m.stamp = m.c.b.stamps.Add(1)
	m.p.settle(m, err)
}

// tellReleased tells who waits for that.
func (m *publish) tellReleased() {
	if m.released != nil {
		close(m.released)
		m.released = nil
	}
}

// idle reports whether nothing waits, so that what comes now need not, either.
// It is for the goroutine that calls push.
func (p *publisher) idle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.first == nil && !p.releasing
}

// push puts m at the end.
func (p *publisher) push(m *publish) {
	m.p, m.waits = p, true
	p.mu.Lock()
	if p.last == nil {
		p.first = m
	} else {
		p.last.next = m
	}
	p.last = m
	p.mu.Unlock()
}

// settle says that m need not wait any more, and how it ended, and releases
// what is at the front and need not wait, either.
func (p *publisher) settle(m *publish, err error) {
	p.mu.Lock()
	m.done, m.err = true, err
	if p.releasing {
		p.mu.Unlock()
		return // whoever is at it comes to m, too
	}
	p.releasing = true
	for m := p.first; m != nil && m.done; m = p.first {
		if p.first = m.next; p.first == nil {
			p.last = nil
		}
		m.next = nil
		p.mu.Unlock()
		m.c.releaseNext(m, &p.fanout)
		p.mu.Lock()
	}
	p.releasing = false
	p.mu.Unlock()
}

// refusal is the reason code for a publish that could not be made durable.
func refusal(err error) packet.Reason {
	switch {
	case errors.Is(err, buffer.ErrFull), errors.Is(err, buffer.ErrTooLarge):
		return packet.QuotaExceeded
	case errors.Is(err, buffer.ErrFailed), errors.Is(err, buffer.ErrClosed):
		return packet.ImplementationSpecific
	}
	return packet.ReasonOf(err)
}
