package localbroker

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// errDisconnected is the end of a connection as the client wished it.
var errDisconnected = errors.New("the client disconnected")

// conn is a connection. One goroutine reads from it and answers for as long as
// it is open; another writes, but only while there is something to write.
type conn struct {
	b        *Broker
	nc       net.Conn
	address  netip.Addr
	listener Listener
	identity *x509.Certificate // of the client, verified; nil is none
	claimed  string            // the client id
	reader   *packet.Reader
	ended    chan struct{} // closed when the session has ended and its will is on its way

	// Set when the client is let in, and not changed after that.
	version   packet.Version
	asked     uint32 // the session expiry of CONNECT
	session   *session
	publisher *publisher
	maxPacket int    // the client's Maximum Packet Size; 0 is none
	maxAlias  uint16 // the client's Topic Alias Maximum
	keepalive time.Duration
	connected bool // CONNACK said so
	resumes   bool // the session was there before

	outAliases    map[string]uint16 // by topic; for the writing goroutine alone
	outAliasBytes int               // of those topics; likewise

	// For the reading goroutine alone.
	username   string
	will       *will
	aliases    []string // of topics, from 1 on
	aliasBytes int      // of those topics
	in         packet.Publish
	fanout     fanout
	copies     []buffer.Copy
	durable    buffer.Message
	now        time.Time // of the last read
	last       time.Time // of the last packet
	hurried    bool      // the read deadline is for giving the buffer back
	due        time.Time // when the next publish may come at Limits.MessagesPerSecond
	crowd      *crowd    // of the publish that is at hand, until it is on its way

	cancel context.CancelCauseFunc // ends the connection
	room   chan struct{}           // something that the reading goroutine may wait for has changed

	mu      sync.Mutex // guards what follows
	control []byte     // encoded and to be written before anything of the session
	writing bool       // the writing goroutine exists
	again   bool       // it shall look at the session again
	closed  bool       // it shall not be started again
	timeout time.Duration
	waiting int  // publishes that wait for the disk or behind such
	unacked int  // those of them with QoS 1
	cut     bool // a publish was refused that cannot be answered: the connection is about to end

	writers sync.WaitGroup
}

func newConn(b *Broker, nc net.Conn, l Listener) *conn {
	c := &conn{
		b:        b,
		nc:       nc,
		address:  addressOf(nc),
		listener: l,
		ended:    make(chan struct{}),
		room:     make(chan struct{}, 1),
		timeout:  writeTimeout,
		last:     time.Now(),
	}
	c.reader = packet.NewReader(c, &b.blocks, unauthenticatedSize)
	c.cancel = func(error) {}
	return c
}

// end makes the connection end for the reason that err carries.
func (c *conn) end(err error) {
	c.mu.Lock()
	cancel := c.cancel
	c.mu.Unlock()
	cancel(err)
	if c.nc != nil {
		_ = c.nc.SetReadDeadline(time.Unix(1, 0)) // wakes the reading goroutine
	}
}

// serve is the life of a connection. A panic ends this one and no other.
func (c *conn) serve(ctx context.Context) {
	broker := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.mu.Lock()
	c.cancel = cancel
	c.mu.Unlock()
	err := c.guard(func() error { return c.run(ctx) })
	switch {
	case errors.Is(err, errDisconnected):
	case broker.Err() != nil:
		err = packet.Errorf(packet.ServerShuttingDown, "the broker stops")
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	cancel(err)
	c.b.retaining.leave(c.crowd) // there was a panic
	// What a client leaves behind is for others, so it outlives the context.
	_ = c.guard(func() error { c.leave(context.WithoutCancel(broker)); return nil })
	c.unclaim()
	close(c.ended)
	c.part(err)
}

// guard turns a panic into an error.
func (c *conn) guard(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = c.panicked(r)
		}
	}()
	return f()
}

func (c *conn) panicked(r any) error {
	c.b.stats.panics.Add(1)
	c.b.log.Error("connection ended by a panic", "client", c.clientID(), "panic", r, "stack", string(debug.Stack()))
	return packet.Errorf(packet.ImplementationSpecific, "internal error")
}

// guard keeps a panic in f, which belongs to no connection, from ending the process:
// the next round may go better. It returns an error if there was one.
func (b *Broker) guard(part string, f func()) (err error) {
	defer func() {
		if r := recover(); r != nil {
			b.stats.panics.Add(1)
			b.log.Error("panic", "in", part, "panic", r, "stack", string(debug.Stack()))
			err = errPanicked
		}
	}()
	f()
	return nil
}

var errPanicked = errors.New("internal error")

func (c *conn) clientID() string {
	if c.session == nil {
		return ""
	}
	return c.session.id
}

// run reads packets until the connection ends, and returns why.
func (c *conn) run(ctx context.Context) error {
	c.now = time.Now()
	c.keepalive = c.b.limits.ConnectTimeout
	if err := c.handshake(ctx); err != nil {
		return err
	}
	if err := c.alive(ctx); err != nil {
		return err
	}
	if err := c.login(ctx); err != nil {
		return err
	}
	for {
		first, body, err := c.next(ctx)
		if err != nil {
			return err
		}
		if err := c.handle(ctx, first, body); err != nil {
			return err
		}
	}
}

// next returns the next packet.
func (c *conn) next(ctx context.Context) (first byte, body []byte, err error) {
	for {
		first, body, err = c.reader.Next()
		if err == nil {
			c.last = c.now
			return first, body, nil
		}
		if err := c.resume(ctx, err); err != nil {
			return 0, nil, err
		}
	}
}

// resume returns nil if err is a deadline after which reading goes on.
func (c *conn) resume(ctx context.Context, err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return c.alive(ctx)
	}
	return err
}

// alive sets the next read deadline, or says that the time is up. Deadlines are
// moved only when they have passed, because that is cheaper than at every packet.
func (c *conn) alive(ctx context.Context) error {
	now := time.Now()
	deadline := c.last.Add(c.keepalive)
	if !now.Before(deadline) {
		return packet.Errorf(packet.KeepAliveTimeout, "no packet for %v", c.keepalive)
	}
	if c.hurried = false; c.reader.Busy() && now.Sub(c.now) < idleAfter {
		c.hurried, deadline = true, now.Add(idleAfter)
	} else {
		c.reader.Idle()
	}
	if err := c.nc.SetReadDeadline(deadline); err != nil {
		return err
	}
	return context.Cause(ctx) // end may have come in between
}

// Read is what the packet reader reads with. It is called when all packets
// that have arrived are handled, so what they led to is written now.
func (c *conn) Read(p []byte) (int, error) {
	c.fanout.wake()
	c.mu.Lock()
	if len(c.control) > 0 {
		c.startWriting()
	}
	c.mu.Unlock()
	if c.reader.Busy() && !c.hurried {
		c.hurried = true
		if err := c.nc.SetReadDeadline(time.Now().Add(idleAfter)); err != nil {
			return 0, err
		}
	}
	n, err := c.nc.Read(p)
	if n > 0 {
		c.now = time.Now()
		c.b.stats.bytesIn.Add(uint64(n))
	}
	return n, err
}

// handle does what one packet asks for. An error ends the connection.
func (c *conn) handle(ctx context.Context, first byte, body []byte) error {
	c.b.stats.packetsIn.Add(1)
	switch t := packet.TypeOf(first); t {
	case packet.PUBLISH:
		return c.handlePublish(ctx, first, body)
	case packet.PUBACK:
		var p packet.Ack
		if err := p.Decode(c.version, t, body); err != nil {
			return err
		}
		if c.session.puback(p.PacketID) {
			c.session.wake()
		}
		return nil
	case packet.PUBREC:
		return c.handlePubrec(ctx, body)
	case packet.PUBREL:
		return c.handlePubrel(ctx, body)
	case packet.PUBCOMP:
		var p packet.Ack
		if err := p.Decode(c.version, t, body); err != nil {
			return err
		}
		if c.session.pubcomp(p.PacketID) {
			c.session.wake()
		}
		return nil
	case packet.SUBSCRIBE:
		return c.handleSubscribe(ctx, body)
	case packet.UNSUBSCRIBE:
		return c.handleUnsubscribe(ctx, body)
	case packet.PINGREQ:
		if err := packet.CheckEmpty(first, body); err != nil {
			return err
		}
		return c.answer(ctx, func(dst []byte) []byte { return packet.AppendPingresp(dst) })
	case packet.DISCONNECT:
		return c.handleDisconnect(ctx, body)
	default:
		return packet.Errorf(packet.ProtocolError, "%v has no place here", t)
	}
}

func (c *conn) handleDisconnect(ctx context.Context, body []byte) error {
	var p packet.Disconnect
	if err := p.Decode(c.version, packet.DISCONNECT, body); err != nil {
		return err
	}
	if v, ok := p.Props.Uint(packet.SessionExpiry); ok {
		switch k := c.session.kept; {
		case c.asked == 0 && v != 0: // §3.14.2.2.2
			return packet.Errorf(packet.ProtocolError, "DISCONNECT: a session expiry where there was none")
		case k != nil:
			k.expiry = c.b.limits.expiry(v)
		}
	}
	switch p.Reason { // those that a client may send, §3.14.2.1
	case packet.Success:
		c.takeBackWill(ctx) // [MQTT-3.14.4-3]
	case packet.DisconnectWithWill, packet.Unspecified, packet.Malformed, packet.ProtocolError, packet.ImplementationSpecific,
		packet.TopicNameInvalid, packet.ReceiveMaximumExceeded, packet.TopicAliasInvalid, packet.PacketTooLarge,
		packet.MessageRateTooHigh, packet.QuotaExceeded, packet.AdministrativeAction, packet.PayloadFormatInvalid:
	default:
		return packet.Errorf(packet.ProtocolError, "DISCONNECT: reason %v is the server's", p.Reason)
	}
	return errDisconnected
}

// handlePubrec takes a PUBREC, and answers unless that has to be durable first.
func (c *conn) handlePubrec(ctx context.Context, body []byte) error {
	var p packet.Ack
	if err := p.Decode(c.version, packet.PUBREC, body); err != nil {
		return err
	}
	rel, answer, wake := c.session.pubrec(p.PacketID, p.Reason)
	if wake {
		c.session.wake()
	}
	if !answer {
		return nil
	}
	return c.answer(ctx, func(dst []byte) []byte { return rel.Append(dst, c.version, packet.PUBREL) })
}

// leave ends the session, or leaves it for the client to come back to, and publishes
// the will.
func (c *conn) leave(ctx context.Context) {
	c.reader.Close()
	s := c.session
	if s == nil {
		return
	}
	switch {
	case c.resumes && !c.connected:
		c.b.giveBackSession(s, c)
	case s.kept != nil && c.connected && s.kept.expiry > 0:
		c.b.leaveSession(ctx, s, c)
	default:
		if s.kept != nil {
			s.detach(c)
		}
		_ = c.b.endSession(ctx, s) // it is tried again until it is stored
		c.publishWill(ctx)
	}
	c.fanout.wake()
}

// part tells the client why the connection ends, if there is something to
// tell, and closes it.
func (c *conn) part(err error) {
	c.logEnd(err)
	var told *packet.Error
	telling := errors.As(err, &told)
	c.mu.Lock()
	if telling && c.version == packet.V5 && c.connected { // [MQTT-3.14.0-1]
		d := packet.Disconnect{Reason: told.Reason, Props: packet.Properties{}.AppendText(packet.ReasonString, told.Text)}
		if c.maxPacket > 0 && len(told.Text)+12 > c.maxPacket {
			d.Props = nil // [MQTT-3.14.2-3]
		}
		c.control = d.Append(c.control, c.version, packet.DISCONNECT)
	}
	c.timeout = partingTimeout
	if len(c.control) > 0 {
		c.startWriting()
	}
	c.closed = true
	c.mu.Unlock()
	_ = c.nc.SetWriteDeadline(time.Now().Add(partingTimeout))
	c.writers.Wait()
	// A close with unread bytes resets the connection, and the client might
	// lose what it was told.
	if half, ok := c.nc.(interface{ CloseWrite() error }); ok && telling && half.CloseWrite() == nil {
		_ = c.nc.SetReadDeadline(time.Now().Add(partingTimeout))
		_, _ = io.CopyN(io.Discard, c.nc, 1<<20)
	}
	_ = c.nc.Close()
}

func (c *conn) logEnd(err error) {
	var told *packet.Error
	switch {
	case errors.Is(err, errDisconnected), errors.Is(err, io.EOF):
		c.b.log.Debug("client disconnected", "client", c.clientID(), "address", c.nc.RemoteAddr().String())
	case errors.As(err, &told) && told.Reason != packet.ServerShuttingDown:
		c.b.log.Info("connection closed", "client", c.clientID(), "address", c.nc.RemoteAddr().String(), "reason", told.Reason.String(), "err", told.Text)
	default:
		c.b.log.Debug("connection lost", "client", c.clientID(), "address", c.nc.RemoteAddr().String(), "err", err)
	}
}
