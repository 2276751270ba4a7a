package modbus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/fieldferry/fieldferry/adapters/serial/port"
)

// netGap is for how long nothing comes between two frames of a line that is behind
// a network connection.
const netGap = 2 * time.Millisecond

// dialIn takes the connections of a modem that dials in. The newest counts: one
// that broke without a sign is not waited for.
type dialIn struct {
	address  string
	patience time.Duration // for a modem
	listener *net.TCPListener
}

var errNobody = errors.New("nobody has dialed in")

func (d *dialIn) accept(ctx context.Context) (port.Port, error) {
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
			return port.OfConn(newest), nil
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
