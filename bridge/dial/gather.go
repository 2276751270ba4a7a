package dial

import (
	"net"
	"sync"
)

// gather is a connection that writes together what a layer above it writes in pieces,
// as TLS does its records and WebSocket its buffers: each write to a socket costs more
// than the bytes in it.
type gather struct {
	net.Conn

	mu   sync.Mutex // guards what follows
	open bool       // what is written waits
	wait []byte
}

// maxKept is how much of a buffer is kept for the next time.
const maxKept = 128 << 10

// together calls write, and then writes what that has written here. An error of either
// means that nothing of it is known to have gone.
func (g *gather) together(write func() (int, error)) (int, error) {
	g.mu.Lock()
	g.open = true
	g.mu.Unlock()
	n, err := write()
	g.mu.Lock()
	wait := g.wait
	g.open, g.wait = false, nil
	g.mu.Unlock()
	if len(wait) > 0 {
		if _, werr := g.Conn.Write(wait); werr != nil {
			return 0, werr
		}
	}
	g.mu.Lock()
	if g.wait == nil && cap(wait) <= maxKept {
		g.wait = wait[:0]
	}
	g.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return n, nil
}

// Write keeps what is written while together is at it.
func (g *gather) Write(p []byte) (int, error) {
	g.mu.Lock()
	if g.open {
		g.wait = append(g.wait, p...)
		g.mu.Unlock()
		return len(p), nil
	}
	g.mu.Unlock()
	return g.Conn.Write(p)
}
