// Package localbroker is an MQTT broker, versions 3.1.1 and 5, that
// acknowledges a publish only when it is safe: durable in the buffer if it has
// durable destinations there, and in any case in the queues of those who
// subscribed to it here.
//
// With a State, sessions outlive their connections and the process, and so do
// retained messages and wills. Without one, all that ends with the process, and
// sessions with their connections: clients are told so where their version has words
// for it.
package localbroker

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// Options of a broker; the zero value is one without listeners and without
// durable destinations.
type Options struct {
	Listeners []Listener
	Limits    Limits
	Buffer    Appender     // where copies for durable destinations go; nil if Router and State are
	State     *State       // what outlives the process, on the same buffer; nil is nothing
	Router    Router       // which durable destinations a publish has; nil is none
	Access    Access       // who may do what; nil leaves it to the listeners' AllowAnonymous
	Logger    *slog.Logger // nil discards

	SysInterval time.Duration // of $SYS; 0 is none
	Version     string        // as in $SYS
}

// Listener is an address to listen on.
type Listener struct {
	Name           string // as in logs and for Addr
	Addr           string // host:port
	AllowAnonymous bool   // without Access: anybody may connect and do anything
	TLS            *tls.Config
	Identity       func(*x509.Certificate) string // the user name that a verified certificate proves; nil: none
	WebSocket      string                         // the path of MQTT over WebSocket; empty is MQTT itself
	Origins        []string                       // of pages that browsers may connect from, beside those of the same host
}

// Appender makes messages durable; *buffer.Buffer is one. The receipt is told
// once how a successful Append ended, must not be told from within Append, and
// does not block.
type Appender interface {
	Append(ctx context.Context, class buffer.Class, m *buffer.Message, r buffer.Receipt) error
}

// Router says which durable destinations a publish has.
type Router interface {
	// Route appends the copies of m for its durable destinations to dst and
	// returns the class they have in common. It is called concurrently and must not
	// block. It keeps neither m nor dst.
	Route(m *Message, dst []buffer.Copy) (buffer.Class, []buffer.Copy)
}

// Access decides who may connect.
type Access interface {
	// Authenticate returns what the client may do. The reason code of a
	// *packet.Error is told to the client, that of any other error is NotAuthorized.
	// It is called concurrently and may take until ctx ends.
	Authenticate(ctx context.Context, l *Login) (Rights, error)
}

// Recaller is an Access that knows what clients may do also when they are not
// connected. Without it, the will of a client that was connected when the process
// died is published only where there is no Access at all.
type Recaller interface {
	// Recall returns what the client that logged in with this user name may do, nil if
	// everything.
	Recall(username, clientID string) Rights
}

// Login is what a client says of itself when it connects.
type Login struct {
	Listener    string
	Remote      net.Addr
	Version     packet.Version
	ClientID    string // assigned by the broker if the client left it empty
	Username    string
	HasUsername bool
	Password    []byte // valid until Authenticate returns
	HasPassword bool
	Certificate bool // it has shown a certificate that the listener's authority has signed
	Verified    bool // Username is proved by a certificate; what the client said it is called does not count
}

// Rights are what one client may do. The methods are called concurrently and
// must not block.
type Rights interface {
	MayPublish(topic string) bool
	MaySubscribe(filter string) bool // without its share
	MayReceive(topic string) bool
}

// Broker is an MQTT broker.
type Broker struct {
	limits  Limits
	options Options
	log     *slog.Logger

	index      index
	retained   retained
	retaining  retaining
	stats      counters
	blocks     packet.Blocks
	buffers    sync.Pool // of *[]byte, for writes
	deliveries sync.Pool // of *[takeAtOnce]buffer.Delivery
	fanouts    sync.Pool // of *fanout, for publishes of the gateway itself

	stamps     atomic.Uint64 // given to publishes in the order in which they became durable
	marker     marker
	drops      drops
	left       []*session // whose clients were connected when the process died; until Run
	background background // goroutines beside those of connections

	making sync.Mutex // held over the write that makes outboxes of sessions durable

	mu        sync.Mutex // guards what follows
	listeners []net.Listener
	sessions  map[string]*session // by client id; of clients that are connected, or whose session is kept
	claims    map[string]*conn    // of clients that are connected or about to be, by client id
	bereft    []*session          // have just a will that is due
	gone      []goneWill          // wills of which it is not stored yet that they are gone
	conns     map[*conn]struct{}  // open connections
	addresses map[netip.Addr]int  // how many of them come from an address
	closing   bool

	connections sync.WaitGroup // the goroutines of connections
}

// New returns a broker that neither listens nor serves yet. Publish and
// Subscribe work at once.
func New(o Options) *Broker {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	b := &Broker{
		limits:    o.Limits.withDefaults(),
		options:   o,
		log:       o.Logger,
		sessions:  make(map[string]*session),
		claims:    make(map[string]*conn),
		conns:     make(map[*conn]struct{}),
		addresses: make(map[netip.Addr]int),
	}
	b.deliveries.New = func() any { return new([takeAtOnce]buffer.Delivery) }
	b.buffers.New = func() any { buf := make([]byte, 0, writeSize); return &buf }
	b.fanouts.New = func() any { return new(fanout) }
	b.stats.started = time.Now()
	b.marker.b = b
	if o.State != nil {
		b.restore(o.State.saved)
		o.State.saved = saved{}
	}
	return b
}

// ListenError says which listener could not be bound.
type ListenError struct {
	Index int // in Options.Listeners
	Listener
	Err error // of net.Listen
}

func (e *ListenError) Error() string {
	return fmt.Sprintf("listen on %s for MQTT listener %q: %v", e.Addr, e.Name, e.Err)
}

func (e *ListenError) Unwrap() error { return e.Err }

// Listen binds all listeners. If one cannot be bound none is, and the error is a
// *ListenError.
func (b *Broker) Listen() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, l := range b.options.Listeners {
		ln, err := net.Listen("tcp", l.Addr)
		if err != nil {
			for _, open := range b.listeners {
				open.Close() // nothing came through it yet
			}
			b.listeners = nil
			return &ListenError{i, l, err}
		}
		b.listeners = append(b.listeners, ln)
	}
	return nil
}

// Addr is the address that the listener of this name is bound to, nil if it is not.
func (b *Broker) Addr(name string) net.Addr {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, ln := range b.listeners {
		if b.options.Listeners[i].Name == name {
			return ln.Addr()
		}
	}
	return nil
}

// Run serves the listeners that Listen has bound until ctx ends; then it closes
// them and every connection and returns nil. Wills are published. A broker
// runs once.
func (b *Broker) Run(ctx context.Context) error {
	b.mu.Lock()
	listeners := b.listeners
	b.mu.Unlock()
	b.publishBereft(ctx)       // before their clients come back
	for _, s := range b.left { // or the next start would think the same
		b.record(s.change(s.kept.expiry, true))
	}
	b.left = nil
	var accepting sync.WaitGroup
	for i, ln := range listeners {
		accepting.Go(func() { b.accept(ctx, ln, b.options.Listeners[i]) })
	}
	accepting.Go(func() { b.tidy(ctx) })
	if b.options.SysInterval > 0 {
		accepting.Go(func() { b.sys(ctx, b.options.SysInterval) })
	}
	<-ctx.Done()
	var err error
	for _, ln := range listeners {
		err = errors.Join(err, ln.Close())
	}
	accepting.Wait()
	b.mu.Lock()
	b.closing = true
	open := slices.Collect(maps.Keys(b.conns))
	b.mu.Unlock()
	for _, c := range open {
		c.end(packet.Errorf(packet.ServerShuttingDown, "the broker stops"))
	}
	b.connections.Wait()
	b.publishBereft(context.WithoutCancel(ctx)) // what could not be stored, for the last time
	b.background.wait()
	b.forgetWills()
	b.mu.Lock()
	b.listeners = nil
	b.mu.Unlock()
	if err != nil {
		return fmt.Errorf("close MQTT listeners: %w", err)
	}
	return nil
}

// newClientID makes the id of a client that has none, MQTT 5 §3.1.3.1.
func newClientID() string { return "auto-" + rand.Text() }
