package localbroker

import (
	"sync/atomic"
	"time"
)

// counters count since the broker was made.
type counters struct {
	started            time.Time
	clientsMaximum     highest
	connections        atomic.Uint64
	refusedConnections atomic.Uint64
	takeovers          atomic.Uint64
	panics             atomic.Uint64
	bytesIn            atomic.Uint64
	bytesOut           atomic.Uint64
	packetsIn          atomic.Uint64
	packetsOut         atomic.Uint64 // but publishes
	payloadIn          atomic.Uint64
	payloadOut         atomic.Uint64
	connects           atomic.Uint64
	sessionsExpired    atomic.Uint64
	publishesIn        atomic.Uint64
	publishesOut       atomic.Uint64
	refused            atomic.Uint64
	dropped            atomic.Uint64
	expired            atomic.Uint64
}

// highest is the highest value there was.
type highest struct{ v atomic.Uint64 }

func (h *highest) raise(v uint64) {
	for old := h.v.Load(); v > old; old = h.v.Load() {
		if h.v.CompareAndSwap(old, v) {
			return
		}
	}
}

// Stats is what the broker has seen since New, and what there is now.
type Stats struct {
	Uptime              time.Duration
	Connections         int    // open, clients or not yet
	Clients             int    // connected
	ClientsMaximum      uint64 // ever connected at a time
	Sockets             uint64 // connections that were opened
	RefusedConnections  uint64 // for a limit, before CONNECT
	Takeovers           uint64
	Panics              uint64 // each ended one connection at most
	BytesReceived       uint64
	BytesSent           uint64
	PacketsReceived     uint64
	PacketsSent         uint64
	PayloadReceived     uint64 // bytes of publishes
	PayloadSent         uint64
	Connects            uint64 // clients that were let in
	SessionsKept        int    // that outlive their connection
	SessionsOnline      int    // of those, whose client is connected
	SessionsExpired     uint64
	PublishesReceived   uint64
	PublishesSent       uint64
	PublishesRefused    uint64 // not authorised, no room, or the disk failed
	MessagesDropped     uint64 // subscribers too slow, or packets larger than they take
	MessagesExpired     uint64
	RetainedMessages    int
	RetainedBytes       int
	Subscriptions       int
	SharedSubscriptions int // of those
}

// Stats counts.
func (b *Broker) Stats() Stats {
	c := &b.stats
	s := Stats{
		Uptime:             time.Since(c.started),
		ClientsMaximum:     c.clientsMaximum.v.Load(),
		Sockets:            c.connections.Load(),
		RefusedConnections: c.refusedConnections.Load(),
		Takeovers:          c.takeovers.Load(),
		Panics:             c.panics.Load(),
		BytesReceived:      c.bytesIn.Load(),
		BytesSent:          c.bytesOut.Load(),
		PacketsReceived:    c.packetsIn.Load(),
		PacketsSent:        c.packetsOut.Load() + c.publishesOut.Load(),
		PayloadReceived:    c.payloadIn.Load(),
		PayloadSent:        c.payloadOut.Load(),
		Connects:           c.connects.Load(),
		SessionsExpired:    c.sessionsExpired.Load(),
		PublishesReceived:  c.publishesIn.Load(),
		PublishesSent:      c.publishesOut.Load(),
		PublishesRefused:   c.refused.Load(),
		MessagesDropped:    c.dropped.Load(),
		MessagesExpired:    c.expired.Load(),
	}
	b.mu.Lock()
	s.Connections, s.Clients = len(b.conns), len(b.claims)
	for _, one := range b.sessions {
		if one.kept != nil {
			s.SessionsKept++
			if one.online() {
				s.SessionsOnline++
			}
		}
	}
	b.mu.Unlock()
	s.RetainedMessages, s.RetainedBytes = b.retained.count()
	s.Subscriptions, s.SharedSubscriptions = b.index.count()
	return s
}
