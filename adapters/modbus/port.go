package modbus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// netGap is for how long nothing comes between two frames of a line that is behind
// a network connection.
const netGap = 2 * time.Millisecond

// netPort is a line behind a network connection. A datagram is read in pieces if
// need be.
type netPort struct {
	conn net.Conn
}

func dialPort(ctx context.Context, network, address string) (port, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &netPort{conn}, nil
}

func (p *netPort) read(b []byte, until time.Time) (int, error) {
	if err := p.conn.SetReadDeadline(until); err != nil {
		return 0, err
	}
	n, err := p.conn.Read(b)
	if os.IsTimeout(err) {
		err = nil
	}
	return n, err
}

func (p *netPort) write(b []byte) error {
	if err := p.conn.SetWriteDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	_, err := p.conn.Write(b)
	return err
}

func (p *netPort) close() error { return p.conn.Close() }

// dialIn takes the connections of a modem that dials in. The newest counts: one
// that broke without a sign is not waited for.
type dialIn struct {
	address  string
	patience time.Duration // for a modem
	listener *net.TCPListener
}

var errNobody = errors.New("nobody has dialed in")

func (d *dialIn) accept(ctx context.Context) (port, error) {
	if d.listener == nil {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", d.address)
		if err != nil {
			return nil, err
		}
		d.listener = l.(*net.TCPListener)
	}
	var newest net.Conn
	until := time.Now().Add(d.patience)
	for {
		if err := d.listener.SetDeadline(until); err != nil {
			return nil, err
		}
		conn, err := d.listener.Accept()
		switch {
		case err == nil:
			if newest != nil {
				newest.Close()
			}
			newest = conn
			until = time.Now().Add(time.Millisecond) // there may be another one
		case newest != nil:
			return &netPort{newest}, nil
		case os.IsTimeout(err):
			return nil, fmt.Errorf("%s: %w", d.listener.Addr(), errNobody)
		default:
			return nil, err
		}
	}
}

func (d *dialIn) end() {
	if d.listener != nil {
		d.listener.Close()
		d.listener = nil
	}
}
