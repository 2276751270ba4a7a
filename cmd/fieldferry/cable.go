package main

import (
	"context"
	"io"
	"net"
	"sync"
	"time"
)

// cable is the way from the demo's gateway to its upstream: TCP that can be cut
// and mended.
type cable struct {
	ln net.Listener
	to string

	mu    sync.Mutex // guards what follows
	cut   bool
	conns map[net.Conn]struct{}
}

func newCable(to string) (*cable, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return &cable{ln: ln, to: to, conns: make(map[net.Conn]struct{})}, nil
}

func (c *cable) addr() string { return c.ln.Addr().String() }

// set cuts the cable, with all connections on it, or mends it.
func (c *cable) set(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
	if cut {
		for conn := range c.conns {
			conn.Close()
		}
	}
}

// add takes a connection, unless the cable is cut.
func (c *cable) add(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut {
		return false
	}
	c.conns[conn] = struct{}{}
	return true
}

func (c *cable) remove(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, conn)
	conn.Close()
}

func (c *cable) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() {
		c.ln.Close()
		c.set(true)
	})
	defer stop()
	for {
		conn, err := c.ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		wg.Go(func() { c.carry(ctx, conn) })
	}
}

// carry copies both ways until either side ends.
func (c *cable) carry(ctx context.Context, near net.Conn) {
	if !c.add(near) {
		near.Close()
		return
	}
	defer c.remove(near)
	d := net.Dialer{Timeout: 5 * time.Second}
	far, err := d.DialContext(ctx, "tcp", c.to)
	if err != nil {
		return
	}
	if !c.add(far) {
		far.Close()
		return
	}
	defer c.remove(far)
	var wg sync.WaitGroup
	wg.Go(func() {
		io.Copy(far, near) // ends when either is closed
		far.Close()
	})
	io.Copy(near, far)
	near.Close()
	wg.Wait()
}
