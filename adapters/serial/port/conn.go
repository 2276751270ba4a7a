package port

import (
	"context"
	"net"
	"os"
	"time"
)

// connWait is how long a connection attempt and a write may take.
const connWait = 5 * time.Second

// conn is a line behind a network connection. A datagram is read in pieces if
// need be.
type conn struct {
	net.Conn
}

// Dial connects to a line behind "tcp" or "udp". A TCP connection whose other end
// died without a sign ends half a minute later.
func Dial(ctx context.Context, network, address string) (Port, error) {
	d := net.Dialer{Timeout: connWait, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 4}}
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return OfConn(c), nil
}

// OfConn makes a port of a connection, which it closes.
func OfConn(c net.Conn) Port { return &conn{c} }

func (c *conn) Read(b []byte, until time.Time) (int, error) {
	if err := c.SetReadDeadline(until); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(b)
	if os.IsTimeout(err) {
		err = nil
	}
	return n, err
}

func (c *conn) Write(b []byte) error {
	if err := c.SetWriteDeadline(time.Now().Add(connWait)); err != nil {
		return err
	}
	_, err := c.Conn.Write(b)
	return err
}
