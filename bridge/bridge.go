// Package bridge carries copies of messages from the buffer to an upstream MQTT 5
// broker and settles them there as the upstream acknowledges them.
//
// A Bridge is one upstream session. It keeps the order of each outbox, has as
// many messages under way as the upstream's Receive Maximum allows, obeys every
// other limit of the CONNACK, and after a lost connection sends again what was not
// acknowledged. What the upstream refuses for good is parked, so that one message
// never stops the line. A Mapper says which local publishes have a copy for the
// bridge, under which topic and in which class.
//
// A copy with QoS 2 arrives exactly once, over lost connections and crashes, as long
// as the upstream keeps our session: its packet id follows from its ordinal, and
// what was sent and what was received is durable in its outbox before the next step.
// When the upstream has lost the session, nobody can know what it delivered; such
// copies are counted, and sent again or not as Options say.
//
// The package reads only the buffer: it does not know the local broker beyond how
// topics are written, and it does not make messages durable; whoever appends them
// does. What comes down is handed over, and acknowledged when it is durable there.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fieldferry/fieldferry/bridge/dial"
	"github.com/fieldferry/fieldferry/buffer"
)

// Options configure a Bridge. Only Upstream is required. A link that gives no sign
// of life is left within 1.5 × Keepalive, and one on which messages are under way
// and none is acknowledged after 2 × Keepalive.
type Options struct {
	Upstream      []string // as mqtts://host:port, tried in turn; mqtt, mqtts, ws or wss
	ClientID      string   // "" lets the upstream assign one
	Username      string
	Password      func() (string, error) // asked for each connection
	Keepalive     time.Duration          // default 30 s, from 1 s to 65,535 s, unless the upstream sets another
	SessionExpiry time.Duration          // how long the upstream keeps our session; default 7 days
	Backoff       Backoff
	Window        int // messages under way, default 1,000, at most 16,384
	Presence      *Presence

	// DropLost settles the QoS 2 copies as uncertain that an upstream may have had that
	// has lost our session. Otherwise they are sent again, and may arrive twice.
	DropLost bool

	Limit Limit

	Down *Downward // nil: nothing is subscribed, and what comes all the same is declined

	Canary string // topic for Probe; "" is none

	// Dial opens the connection; nil is that of an empty dial.Dialer. It must look the
	// name up each time and end when ctx does.
	Dial func(ctx context.Context, u *url.URL) (net.Conn, error)

	// Attempted, if not nil, is told how each attempt to connect has ended: nil if the
	// upstream let us in. It must not block.
	Attempted func(u *url.URL, err error)

	Logger *slog.Logger // default discards
}

// Presence tells the upstream whether the gateway is there: retained, as the will
// and after each CONNACK, and before a stop that was asked for.
type Presence struct {
	Topic   string
	Payload func(online bool, reason string, at time.Time) []byte // reason is "" when online; at is zero in the will: nobody knows when that is published
}

// Status is how a Bridge stands. The counts are of this process.
type Status struct {
	Connected      bool
	URL            string    // connected to, or last tried; without password
	Since          time.Time // of Connected; zero before the first attempt has ended
	SessionPresent bool      // the upstream still had our session
	LastError      string    // of the last attempt or connection that failed
	Connections    uint64
	TakenOver      uint64 // connections that ended because another client used our id
	InFlight       int    // messages sent and not acknowledged

	Sent      uint64 // PUBLISH packets, repeated ones too
	Delivered uint64 // copies
	Parked    uint64 // copies
	Expired   uint64 // copies that became too old after the buffer had handed them out, before they were first sent
	Refused   uint64 // times the upstream said "quota exceeded"
	Down      uint64 // messages that came from the upstream
	DownLost  uint64 // of those with QoS 0, what came too fast
	DownFail  uint64 // messages from the upstream that were not taken
	Uncertain uint64 // QoS 2 copies that an upstream may have had that has lost our session; they were dropped or sent again
}

// Add adds what another Bridge counts.
func (s *Status) Add(o Status) {
	s.Connections += o.Connections
	s.TakenOver += o.TakenOver
	s.InFlight += o.InFlight
	s.Sent += o.Sent
	s.Delivered += o.Delivered
	s.Parked += o.Parked
	s.Expired += o.Expired
	s.Refused += o.Refused
	s.Down += o.Down
	s.DownLost += o.DownLost
	s.DownFail += o.DownFail
	s.Uncertain += o.Uncertain
}

// Source is the bridge's end of its outboxes: a *buffer.Reader, whose contract it
// has.
type Source interface {
	Next(ctx context.Context, dst []buffer.Delivery) (int, error)
	Rewind()
}

// Bridge is one session with an upstream. Status may be called at any time.
type Bridge struct {
	o      Options
	urls   []*url.URL
	source Source
	out    Outboxes
	log    *slog.Logger

	// What follows is used by Run, and by the writer of the connection it waits for.
	clientID  string
	loaded    bool
	pace      *pace
	session   session
	unsaved   bool // a session has begun that is not durable
	will      will
	maxPacket int // bytes, learned from a DISCONNECT; 0 is unknown
	progress  [len(Outboxes{})]progress

	sent, delivered, parked, expired, refused, uncertain atomic.Uint64
	cameDown, lostDown, refusedDown                      atomic.Uint64

	inbox  inbox
	canary canary
	up     atomic.Bool // connected

	mu     sync.Mutex // guards what follows
	status Status
	conn   *conn
}

// progress is how far an outbox has come in this process.
type progress struct {
	began    uint64 // written, when this process began
	seen     uint64 // highest ordinal the buffer has given
	written  uint64 // highest ordinal that may have been on the wire, also in an earlier process
	reusable uint64 // settled up to here, and that is durable
	counted  uint64 // QoS 2 copies up to here were counted as uncertain since a session was lost

	open map[uint64]bool // QoS 2 copies whose id the upstream may have in use, and which the buffer must bring again
}

const (
	// stableAfter is how long a connection must have lasted for the next attempt to
	// be made at once.
	stableAfter = 10 * time.Second

	// twinPause is between attempts while another client takes the session again and
	// again, however short Backoff is.
	twinPause = time.Second

	defaultKeepalive     = 30 * time.Second
	maxKeepalive         = math.MaxUint16 * time.Second
	defaultSessionExpiry = 7 * 24 * time.Hour
	defaultWindow        = 1000
	maxWindow            = 2 * idBlock
	liveWindows          = 4 // so many windows of telemetry may wait and be called live
)

// New makes a bridge that empties its own outboxes, by OpenOutboxes, which from
// reads. Nobody else may use from while Run does.
func New(from Source, out Outboxes, o Options) (*Bridge, error) {
	if len(o.Upstream) == 0 {
		return nil, errors.New("bridge: no upstream")
	}
	b := &Bridge{source: from, out: out, clientID: o.ClientID, will: will{qos: 1, retain: true}}
	for i, s := range o.Upstream {
		u, err := url.Parse(s)
		var parse *url.Error
		switch {
		case errors.As(err, &parse): // without the URL, which may hold a password
			return nil, fmt.Errorf("upstream %d: %w", i+1, parse.Err)
		case err != nil:
			return nil, fmt.Errorf("upstream %d: %w", i+1, err)
		case u.Hostname() == "":
			return nil, fmt.Errorf("upstream %q: no host", u.Redacted())
		case o.Dial == nil && !dial.Supported(u.Scheme):
			return nil, fmt.Errorf("upstream %q: %s is not supported, use mqtt, mqtts, ws or wss", u.Redacted(), u.Scheme)
		}
		b.urls = append(b.urls, u)
	}
	if o.Keepalive <= 0 {
		o.Keepalive = defaultKeepalive
	}
	o.Keepalive = min(max(o.Keepalive, time.Second), maxKeepalive)
	if o.SessionExpiry <= 0 {
		o.SessionExpiry = defaultSessionExpiry
	}
	if o.Window <= 0 {
		o.Window = defaultWindow
	}
	o.Window = min(o.Window, maxWindow)
	o.Backoff = o.Backoff.withDefaults()
	if o.Dial == nil {
		o.Dial = new(dial.Dialer).Dial
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	b.o, b.log, b.pace = o, o.Logger, newPace(o.Limit)
	return b, nil
}

// Run keeps the bridge connected until ctx ends, then tells the upstream and
// returns nil. It waits for nothing that is under way: that comes again. It
// returns an error only if the buffer cannot be read any more.
func (b *Bridge) Run(ctx context.Context) error {
	if err := b.load(); err != nil {
		return err
	}
	var twin bool // the last connection ended because another client has our id
	for attempt, at := 0, 0; sleep(ctx, b.pause(attempt, twin)); attempt++ {
		for range b.urls {
			u := b.urls[at]
			lasted, err := b.serve(ctx, u)
			if ctx.Err() != nil {
				return nil
			}
			if failed := (*bufferError)(nil); errors.As(err, &failed) {
				return err
			}
			if errors.Is(err, errRenew) {
				attempt = -1 // the same session, at once
				break
			}
			next, err := b.nextAfter(at, err)
			twin = b.failed(u, err)
			if lasted >= stableAfter {
				attempt = -1 // the session is there: again at once
				if next != at && elsewhere(err) {
					at = next
				}
				break
			}
			at = next
			if lasted > 0 {
				break // not the next at once, or an upstream that drops us is hammered
			}
		}
	}
	return nil
}

// pause is how long to wait before an attempt.
func (b *Bridge) pause(attempt int, twin bool) time.Duration {
	d := b.o.Backoff.delay(attempt)
	if twin && attempt > 0 {
		d = max(d, twinPause)
	}
	return d
}

// sleep reports whether ctx is still going on after d.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// serve makes one attempt and serves the connection until it ends. It returns how
// long that was up, 0 if it never was.
func (b *Bridge) serve(ctx context.Context, u *url.URL) (time.Duration, error) {
	c, err := b.connect(ctx, u)
	if b.o.Attempted != nil && ctx.Err() == nil {
		b.o.Attempted(u, err)
	}
	if err != nil {
		return 0, err
	}
	c.rewind()
	began := time.Now()
	b.connected(u, c)
	err = c.run(ctx)
	b.disconnected()
	defer c.keepOpen()
	var r *ReasonError
	if errors.As(err, &r) && r.Code == codePacketTooLarge {
		if perr := c.parkLargest(); perr != nil {
			err = errors.Join(err, perr)
		}
	}
	return max(time.Since(began), 1), err
}

// rewind has all come again that is not settled.
func (c *conn) rewind() {
	c.b.source.Rewind()
	for lane, o := range c.b.out {
		if o != nil {
			c.next[lane] = o.Marks().Settled + 1
		}
	}
}

// keepOpen notes the ids that the upstream may have in use when the connection has
// ended.
func (c *conn) keepOpen() {
	c.settleDoubt()
	c.abandon()
	c.window.open(func(lane int, ordinal uint64) {
		at := &c.b.progress[lane]
		if at.open == nil {
			at.open = make(map[uint64]bool)
		}
		at.open[ordinal] = true
	})
}

func (b *Bridge) connected(u *url.URL, c *conn) {
	b.log.Info("upstream connected", "url", u.Redacted(), "session_present", c.limits.sessionPresent,
		"window", c.limits.window, "keepalive", c.limits.keepalive)
	if kept := c.limits.sessionExpiry; kept < b.o.SessionExpiry {
		b.log.Warn("upstream keeps our session for less than session_expiry: what is halfway in a longer outage becomes uncertain", "kept", kept)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conn = c
	b.up.Store(true)
	b.status.Connected, b.status.URL, b.status.Since = true, u.Redacted(), time.Now()
	b.status.SessionPresent = c.limits.sessionPresent
	b.status.Connections++
}

func (b *Bridge) disconnected() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conn = nil
	b.up.Store(false)
	b.status.Connected, b.status.Since = false, time.Now()
}

// failed notes how a connection ended, or why there was none, and reports whether
// another client has taken the session.
func (b *Bridge) failed(u *url.URL, err error) (taken bool) {
	var r *ReasonError
	taken = errors.As(err, &r) && r.Packet == "DISCONNECT" && r.Code == codeTakenOver
	b.log.Warn("upstream connection failed", "url", u.Redacted(), "error", err)
	b.mu.Lock()
	defer b.mu.Unlock()
	if taken {
		b.status.TakenOver++
	}
	if b.status.Since.IsZero() {
		b.status.Since = time.Now()
	}
	b.status.URL, b.status.LastError = u.Redacted(), err.Error()
	return taken
}

// Renew ends the connection, if there is one, and makes another at once with the same
// session and what Dial has new. The upstream hears that nothing is wrong.
func (b *Bridge) Renew() {
	b.mu.Lock()
	c := b.conn
	b.mu.Unlock()
	if c != nil {
		select {
		case c.renew <- struct{}{}:
		default:
		}
	}
}

// Live reports whether new telemetry can be sent soon: the bridge is connected, and
// not far behind. It may be called at any time.
func (b *Bridge) Live() bool {
	return b.up.Load() && b.out[buffer.Telemetry].Stored() < uint64(liveWindows*b.o.Window)
}

// Status tells how the bridge stands.
func (b *Bridge) Status() Status {
	b.mu.Lock()
	s, c := b.status, b.conn
	b.mu.Unlock()
	if c != nil {
		s.InFlight = c.window.inFlight()
	}
	s.Sent, s.Delivered, s.Parked = b.sent.Load(), b.delivered.Load(), b.parked.Load()
	s.Expired, s.Refused, s.Uncertain = b.expired.Load(), b.refused.Load(), b.uncertain.Load()
	s.Down, s.DownLost, s.DownFail = b.cameDown.Load(), b.lostDown.Load(), b.refusedDown.Load()
	return s
}

// bufferError is that of a buffer that cannot be read.
type bufferError struct{ err error }

func (e *bufferError) Error() string { return "read buffer: " + e.err.Error() }
func (e *bufferError) Unwrap() error { return e.err }
