// Package dial opens the way to an upstream: over TCP, TLS or WebSocket, directly or
// through an HTTP proxy. What goes wrong on it, or is refused by the other side, it
// puts into one sentence that says what to check.
//
// It knows nothing of what is said on a connection once there is one, and reads no
// files: whoever has certificates hands them over for each connection.
package dial

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"sync/atomic"
	"time"
)

// ports are those of the schemes.
var ports = map[string]string{"mqtt": "1883", "mqtts": "8883", "ws": "80", "wss": "443"}

// Supported reports whether there is a way to URLs with a scheme.
func Supported(scheme string) bool { return ports[scheme] != "" }

// Secure reports whether a scheme is one with TLS.
func Secure(scheme string) bool { return scheme == "mqtts" || scheme == "wss" }

// Dialer opens connections. The zero value does so directly, and trusts the authorities
// of the system. It is safe for concurrent use.
type Dialer struct {
	// TLS is asked for each connection with TLS and must not change what it has given.
	// The name of the server and the pins are added to a copy.
	TLS func() *tls.Config

	// Pins are sha256/ and the SHA-256 of a public key (SubjectPublicKeyInfo) in base64.
	// Where there are any, one must be that of a certificate in a chain that was verified:
	// the server's own, or one of those that lead to its root.
	Pins []string

	// Proxy is where CONNECT is asked for (RFC 9110 §9.3.6), as http://user:password@host:port
	// or https://…; nil is none. It looks up the upstream's name.
	Proxy *url.URL
}

// Dial connects to an upstream. What it returns sends each Write at one stroke, also
// where TLS and WebSocket cut it into pieces.
func (d *Dialer) Dial(ctx context.Context, u *url.URL) (net.Conn, error) {
	nc, err := d.dial(ctx, u)
	if err != nil {
		return nil, Explain(u, err)
	}
	return nc, nil
}

func (d *Dialer) dial(ctx context.Context, u *url.URL) (net.Conn, error) {
	if !Supported(u.Scheme) {
		return nil, fmt.Errorf("%s:// is no way to an upstream; write mqtt, mqtts, ws or wss", u.Scheme)
	}
	nc, err := d.reach(ctx, Address(u))
	if err != nil {
		return nil, err
	}
	if Secure(u.Scheme) {
		if nc, err = d.secure(ctx, nc, u.Hostname()); err != nil {
			return nil, err
		}
		if t := nc.(*tlsConn); u.Scheme == "mqtts" && t.ConnectionState().Version >= tls.VersionTLS13 {
			t.whyNot = func() error {
				ctx, cancel := context.WithTimeout(context.Background(), whyNotTimeout)
				defer cancel()
				return d.Probe(ctx, u)
			}
		}
	}
	if u.Scheme == "ws" || u.Scheme == "wss" {
		return upgrade(ctx, nc, u)
	}
	return nc, nil
}

// Probe makes a connection, waits for what the other side says to our certificate, and
// ends it. It returns nil if that was nothing.
func (d *Dialer) Probe(ctx context.Context, u *url.URL) error {
	began := time.Now()
	nc, err := d.dial(ctx, u)
	if err != nil {
		return Explain(u, err)
	}
	defer nc.Close()
	t, ok := nc.(*tlsConn)
	if !ok { // over WebSocket it has answered; without TLS it has nothing to say
		return nil
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	// With TLS 1.3 a server looks at it when we think that all is done. As long as we say
	// nothing, what it has against us is not lost. One that has nothing against us is
	// silent, and closes when we do.
	listen := 2*time.Since(began) + probeSilence
	if err := t.SetReadDeadline(time.Now().Add(listen)); err != nil {
		return Explain(u, err)
	}
	from := io.LimitReader(t.Conn, maxProbe)
	_, err = io.Copy(io.Discard, from)
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
		if err = errors.Join(t.SetReadDeadline(time.Time{}), t.CloseWrite()); err == nil {
			if _, err = io.Copy(io.Discard, from); err == nil || silent(err) && ctx.Err() == nil {
				return nil
			}
		}
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return Explain(u, cmp.Or(err, io.EOF)) // it closed before we did
}

const (
	maxProbe     = 64 << 10               // bytes that a server may say to somebody who asks nothing
	probeSilence = 500 * time.Millisecond // how long one is listened to, beside twice the time that it took to connect
)

// Address is the host and port of a URL, with the port of its scheme if it has none.
func Address(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = ports[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// reach opens a TCP connection, or one through the proxy.
func (d *Dialer) reach(ctx context.Context, address string) (net.Conn, error) {
	if d.Proxy != nil {
		return d.throughProxy(ctx, address)
	}
	var nd net.Dialer
	return nd.DialContext(ctx, "tcp", address)
}

// secure agrees on TLS. When it fails, nc is closed.
func (d *Dialer) secure(ctx context.Context, nc net.Conn, host string) (net.Conn, error) {
	var c *tls.Config
	if d.TLS != nil {
		c = d.TLS()
	}
	if c = c.Clone(); c == nil {
		c = new(tls.Config)
	}
	c.ServerName = host
	// Smaller records for a quick first byte cost more than they bring here.
	c.DynamicRecordSizingDisabled = true
	if len(d.Pins) > 0 {
		c.VerifyConnection = func(s tls.ConnectionState) error { return checkPins(d.Pins, &s) }
	}
	return handshake(ctx, nc, c)
}

func handshake(ctx context.Context, nc net.Conn, c *tls.Config) (net.Conn, error) {
	under := &gather{Conn: nc}
	ahead := &ahead{Conn: under, r: bufio.NewReaderSize(nc, readAhead)}
	t := tls.Client(ahead, c)
	if err := t.HandshakeContext(ctx); err != nil {
		nc.Close()
		return nil, err
	}
	return &tlsConn{Conn: t, under: under, ahead: ahead}, nil
}

// tlsConn hands the records of one Write to the socket together, and returns with a
// Read what there is: a server that answers each message sends a record for each answer.
//
// With TLS 1.3 a server that does not take our certificate says so while we write
// already. It then closes with what we wrote unread, and TCP throws away what it said. So
// a connection that ends before anything has come is asked about with another one.
type tlsConn struct {
	*tls.Conn
	under  *gather
	ahead  *ahead
	whyNot func() error // nil: there is no need
	heard  atomic.Bool  // something has come
}

const whyNotTimeout = 5 * time.Second

func (c *tlsConn) Read(p []byte) (n int, err error) {
	n, err = c.Conn.Read(p)
	if n == 0 {
		return 0, c.why(err)
	}
	c.heard.Store(true)
	c.ahead.noWait = true
	for n < len(p) && err == nil && c.ahead.r.Buffered() > 0 {
		var more int
		more, err = c.Conn.Read(p[n:])
		n += more
	}
	c.ahead.noWait = false
	return n, nil // an error that is one comes again with the next Read
}

func (c *tlsConn) Write(p []byte) (n int, err error) {
	n, err = c.under.together(func() (int, error) { return c.Conn.Write(p) })
	return n, c.why(err)
}

func (c *tlsConn) why(err error) error {
	if err == nil || c.whyNot == nil || c.heard.Load() || !silent(err) {
		return err
	}
	return cmp.Or(c.whyNot(), err)
}
