package localbroker

import (
	"math"
	"time"
)

// Limits bound what clients can make the broker keep and do. In the zero value
// each has the default that its comment names.
type Limits struct {
	Clients                int           // connected at a time; 10,000
	ClientsPerAddress      int           // connections from one address; 1,000
	ConnectTimeout         time.Duration // from the connection to the end of CONNECT; 10 s
	PacketSize             int           // bytes of a packet, header included; 1 MiB
	ReceiveMaximum         int           // unacknowledged QoS 1 and 2 messages of a client, each way, 1 to 65,535; 1,000
	QueuedMessages         int           // waiting for one client; 100,000
	QueuedBytes            int           // waiting for one client or sent and not acknowledged; 64 MiB
	RetainedMessages       int           // 100,000
	RetainedBytes          int           // of all of them; 2 KiB for each of RetainedMessages, at least 16 MiB
	SubscriptionsPerClient int           // 1,000
	TopicLevels            int           // of names and filters; 32
	TopicAliases           int           // that a client may set, to 65,535; 100
	Keepalive              time.Duration // longest; clients that ask for a longer one or none get this; 10 min
	MessagesPerSecond      int           // published by one client, above it is slowed down; 0 is no limit
	SessionExpiry          time.Duration // longest that a session is kept after its client has left; 7 d
}

// expiry is the session expiry that a client gets which asks for so many seconds.
func (l *Limits) expiry(seconds uint32) time.Duration {
	return min(time.Duration(seconds)*time.Second, l.SessionExpiry)
}

func (l Limits) withDefaults() Limits {
	set := func(v *int, to, highest int) {
		if *v <= 0 {
			*v = to
		}
		*v = min(*v, highest)
	}
	set(&l.Clients, 10_000, math.MaxInt)
	set(&l.ClientsPerAddress, 1000, math.MaxInt)
	set(&l.PacketSize, 1<<20, 268435455+5) // MQTT 5 §2.1.4
	set(&l.ReceiveMaximum, 1000, 65535)
	set(&l.QueuedMessages, 100_000, math.MaxInt)
	set(&l.QueuedBytes, 64<<20, math.MaxInt)
	set(&l.RetainedMessages, 100_000, math.MaxInt)
	set(&l.RetainedBytes, together(l.RetainedMessages, 2<<10, 16<<20), math.MaxInt)
	set(&l.SubscriptionsPerClient, 1000, math.MaxInt)
	set(&l.TopicLevels, 32, math.MaxInt)
	set(&l.TopicAliases, 100, 65535)
	if l.ConnectTimeout <= 0 {
		l.ConnectTimeout = 10 * time.Second
	}
	if l.Keepalive <= 0 {
		l.Keepalive = 10 * time.Minute
	}
	if l.SessionExpiry <= 0 {
		l.SessionExpiry = 7 * 24 * time.Hour
	}
	l.SessionExpiry = min(max(l.SessionExpiry.Truncate(time.Second), time.Second), math.MaxUint32*time.Second)
	l.Keepalive = min(max(l.Keepalive.Truncate(time.Second), time.Second), 65535*time.Second)
	return l
}

// together is what n things that clients make us keep may take, in bytes: each may be
// as long as the protocol allows, but not all of them.
func together(n, average, least int) int {
	if n > math.MaxInt/average {
		return math.MaxInt
	}
	return max(n*average, least)
}

// subscriptionBytes is what the filters of one client may take.
func (l *Limits) subscriptionBytes() int { return together(l.SubscriptionsPerClient, 1<<10, 64<<10) }

// aliasBytes is what the topics may take that one client's aliases stand for, each way.
func (l *Limits) aliasBytes() int { return together(l.TopicAliases, 1<<10, 64<<10) }

const (
	// unauthenticatedSize is the longest packet before a client is let in.
	unauthenticatedSize = 16 << 10
	// upgradeSize is the longest header of a request for a WebSocket, to which net/http
	// adds 4 KiB of its own.
	upgradeSize = 4 << 10
	// spareSockets are connections beyond Limits.Clients, so that a client that
	// is too many is told so.
	spareSockets = 64
	// clientIDSize is the longest client id that is accepted, in bytes.
	clientIDSize = 1024
	// writeSize is what is written at a time, in bytes.
	writeSize = 32 << 10
	// writeTimeout is how long a client may take nothing of what is written to it.
	writeTimeout = time.Minute
	// partingTimeout is how long a connection that ends may take for what is left.
	partingTimeout = 500 * time.Millisecond
	// cutAfter is how long a client of version 3.1.1 waits whose publish cannot be
	// stored until it is cut: it comes back at once, and publishes it again.
	cutAfter = time.Second
	// idleAfter is how long a connection without traffic keeps its read buffer.
	idleAfter = time.Second
	// controlSize is how much of acknowledgements and answers may wait for a client
	// before nothing more is read from it, in bytes.
	controlSize = 64 << 10
)
