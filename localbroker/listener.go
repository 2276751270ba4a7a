package localbroker

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"
)

// accept takes connections until ln is closed.
func (b *Broker) accept(ctx context.Context, ln net.Listener, l Listener) {
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
		c := newConn(b, nc, l)
		if !b.open(c) {
			_ = nc.Close() // told nothing: a flood shall cost little
			b.stats.refusedConnections.Add(1)
			continue
		}
		b.stats.connections.Add(1)
		go func() {
			defer b.connections.Done()
			defer b.closed(c)
			c.serve(ctx)
		}()
	}
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

// addressOf is where a connection comes from, without its port.
func addressOf(nc net.Conn) netip.Addr {
	ap, err := netip.ParseAddrPort(nc.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}
