package localbroker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// accept takes connections until ln is closed.
func (b *Broker) accept(ctx context.Context, ln net.Listener, l Listener) {
	if l.WebSocket != "" {
		ln = &boundedListener{Listener: ln, b: b}
		if l.TLS != nil {
			ln = tls.NewListener(ln, l.TLS)
		}
		b.serveWebSocket(ctx, ln, l)
		return
	}
	wait := time.Duration(0)
	for {
		nc, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // too many open files, perhaps: it passes
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			b.log.Warn("connection could not be accepted", "listener", l.Name, "err", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
			continue
		}
		wait = 0
		if c := b.take(nc, l, nil, time.Now()); c != nil {
			go b.serve(ctx, c)
		}
	}
}

// take makes a connection of nc, which began at a time, or closes it if the limits want
// that. identity is the client's certificate, if it was verified already.
func (b *Broker) take(nc net.Conn, l Listener, identity *x509.Certificate, began time.Time) *conn {
	if l.TLS != nil && l.WebSocket == "" {
		nc = tls.Server(nc, l.TLS)
	}
	c := newConn(b, nc, l)
	c.identity = identity
	c.last = began
	if !b.open(c) {
		_ = closeNow(nc) // told nothing: a flood shall cost little
		b.stats.refusedConnections.Add(1)
		return nil
	}
	b.stats.connections.Add(1)
	return c
}

// serve is the life of a connection.
func (b *Broker) serve(ctx context.Context, c *conn) {
	defer b.connections.Done()
	defer b.closed(c)
	c.serve(ctx)
}

// closeNow closes a connection without the goodbye of TLS.
func closeNow(nc net.Conn) error {
	if t, ok := nc.(*tls.Conn); ok {
		return t.NetConn().Close()
	}
	return nc.Close()
}

// handshake is TLS's, if the connection has that.
func (c *conn) handshake(ctx context.Context) error {
	t, ok := c.nc.(*tls.Conn)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithDeadline(ctx, c.last.Add(c.b.limits.ConnectTimeout))
	defer cancel()
	if err := t.HandshakeContext(ctx); err != nil {
		c.b.stats.refusedConnections.Add(1)
		c.b.log.Info("TLS handshake failed", "listener", c.listener.Name, "address", c.nc.RemoteAddr().String(), "err", err)
		return err
	}
	if state := t.ConnectionState(); len(state.VerifiedChains) > 0 {
		c.identity = state.PeerCertificates[0]
	}
	return nil // c.last stays: CONNECT has what is left of the time
}

// user is the name that the client's certificate proves, if it counts.
func (c *conn) user() (name string, ok bool, err error) {
	if c.listener.Identity == nil || c.identity == nil {
		return "", false, nil
	}
	if name = c.listener.Identity(c.identity); name == "" {
		return "", false, packet.Errorf(packet.NotAuthorized, "the client's certificate holds no name")
	}
	return name, true, nil
}

// open counts c in if the limits allow it.
func (b *Broker) open(c *conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closing || len(b.conns) >= b.limits.Clients+spareSockets || b.addresses[c.address] >= b.limits.ClientsPerAddress {
		return false
	}
	b.conns[c] = struct{}{}
	b.addresses[c.address]++
	b.connections.Add(1)
	return true
}

// closed counts c out.
func (b *Broker) closed(c *conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.conns, c)
	if b.addresses[c.address]--; b.addresses[c.address] == 0 {
		delete(b.addresses, c.address)
	}
}

// addressOf is what a connection counts for in Limits.ClientsPerAddress: the address
// that it comes from, with IPv6 the network of 64 bits, since who has one address there
// has all of it. An IPv4 address is the same in its IPv6 form.
func addressOf(nc net.Conn) netip.Addr {
	ap, err := netip.ParseAddrPort(nc.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	a := ap.Addr().Unmap()
	if !a.Is6() {
		return a
	}
	network, _ := a.WithZone("").Prefix(64) // fails only beyond the address's bits
	return network.Addr()
}

// boundedListener applies the limits to connections that are no MQTT yet.
type boundedListener struct {
	net.Listener
	b *Broker

	mu        sync.Mutex // guards what follows
	open      int
	addresses map[netip.Addr]int
}

// Accept closes what is beyond the limits.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from, limits := addressOf(nc), &l.b.limits
		l.mu.Lock()
		ok := l.open < limits.Clients+spareSockets && l.addresses[from] < limits.ClientsPerAddress
		if ok {
			if l.addresses == nil {
				l.addresses = make(map[netip.Addr]int)
			}
			l.open++
			l.addresses[from]++
		}
		l.mu.Unlock()
		if ok {
			c := &boundedConn{Conn: nc, l: l, from: from, began: time.Now()}
			if err := c.SetDeadline(time.Time{}); err == nil {
				return c, nil
			}
			_ = c.Close()
			continue
		}
		l.b.stats.refusedConnections.Add(1)
		_ = nc.Close()
	}
}

// boundedConn is one of them. Until it is upgraded, all that it does together has to
// end in the connect timeout, whatever deadlines HTTP and TLS set.
type boundedConn struct {
	net.Conn
	l     *boundedListener
	from  netip.Addr
	began time.Time
	once  sync.Once

	upgraded atomic.Bool
}

// until is t, or the end of the connect timeout if that comes first.
func (c *boundedConn) until(t time.Time) time.Time {
	if c.upgraded.Load() {
		return t
	}
	if end := c.began.Add(c.l.b.limits.ConnectTimeout); t.IsZero() || end.Before(t) {
		return end
	}
	return t
}

func (c *boundedConn) SetDeadline(t time.Time) error { return c.Conn.SetDeadline(c.until(t)) }

func (c *boundedConn) SetReadDeadline(t time.Time) error { return c.Conn.SetReadDeadline(c.until(t)) }

func (c *boundedConn) SetWriteDeadline(t time.Time) error {
	return c.Conn.SetWriteDeadline(c.until(t))
}

// upgrade leaves the deadlines to what the connection is from now on.
func (c *boundedConn) upgrade() {
	c.upgraded.Store(true)
	_ = c.SetDeadline(time.Time{}) // what failed here fails where it is read
}

func (c *boundedConn) Close() error {
	c.once.Do(func() {
		c.l.mu.Lock()
		defer c.l.mu.Unlock()
		c.l.open--
		if c.l.addresses[c.from]--; c.l.addresses[c.from] == 0 {
			delete(c.l.addresses, c.from)
		}
	})
	return c.Conn.Close()
}

type boundedKey struct{}

// withBounded lets the requests of a connection find it.
func withBounded(ctx context.Context, nc net.Conn) context.Context {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	return context.WithValue(ctx, boundedKey{}, nc)
}
