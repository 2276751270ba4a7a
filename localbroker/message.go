package localbroker

import (
	"math"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// Message is a publish on its way through the broker. Once it was published it
// never changes, its bytes neither: all who get it share them.
type Message struct {
	Topic    string
	Payload  []byte
	Props    packet.Properties // MQTT 5: those that go with the message, in their order; no expiry, alias or subscription identifier
	QoS      byte
	Retain   bool          // as it was published
	Expiry   time.Duration // from Received; 0 is never
	Received time.Time     // by the broker; zero is now
	Urgent   bool          // make it durable at once; false may wait for company
	ClientID string        // of the publisher; empty is the gateway itself
	Username string        // of the publisher; proved if the broker's Access asks for proof

	// Also is one more durable destination, for the class that the message has; nil is
	// none.
	Also func(buffer.Class) buffer.Copy

	stamp uint64 // orders retained messages of one topic as the log does
}

// expiresAt is when a message that expires does.
func (m *Message) expiresAt() time.Time { return m.Received.Add(m.Expiry) }

// expiresIn is the message expiry interval that is left at now, MQTT 5
// §3.3.2.3.3. ok is false if the message has expired.
func (m *Message) expiresIn(now time.Time) (seconds uint32, has, ok bool) {
	if m.Expiry == 0 {
		return 0, false, true
	}
	left := m.Expiry - now.Sub(m.Received)
	if left <= 0 {
		return 0, true, false
	}
	return uint32(min((left+time.Second-1)/time.Second, math.MaxUint32)), true, true
}

// size is what the message counts for in queues, in bytes.
func (m *Message) size() int { return len(m.Topic) + len(m.Payload) + len(m.Props) + 128 }

// expiryOf is an expiry interval as a duration. One of 0 s has passed at once.
func expiryOf(seconds uint32) time.Duration {
	return max(time.Duration(seconds)*time.Second, 1)
}

// durable fills dst with what the buffer keeps of m.
func (m *Message) durable(dst *buffer.Message, copies []buffer.Copy) {
	*dst = buffer.Message{
		Topic:    m.Topic,
		Payload:  m.Payload,
		Props:    m.Props,
		QoS:      m.QoS,
		Retain:   m.Retain,
		Enqueued: m.Received,
		Expiry:   m.Expiry,
		Urgent:   m.Urgent,
		Copies:   copies,
	}
}
