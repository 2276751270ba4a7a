package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A load is publishers and subscribers of MQTT 3.1.1 that do as little as they can
// beside: packets are made once, and several are written at a time.
type load struct {
	Publishers  int
	Subscribers int // each gets everything
	QoS         byte
	Payload     int
	Window      int  // unacknowledged publishes of a publisher
	Kept        bool // sessions of subscribers are kept
	Stuck       int  // subscribers beside that read nothing
	Topic       string
	Warm        time.Duration
	For         time.Duration
}

// ahead is how many messages may be under way to each subscriber: more would fill
// queues, and measure those.
const ahead = 4000

// loaded is what a load has brought.
type loaded struct {
	Delivered float64 // messages a second, of all subscribers together
	CPU       float64 // µs of the broker for each
}

// traffic is a load while it runs.
type traffic struct {
	load
	published atomic.Int64
	delivered atomic.Int64
	mu        sync.Mutex // guards done, and wakes publishers
	room      sync.Cond
	done      bool
	err       error
	conns     []net.Conn
	workers   sync.WaitGroup
}

// run puts a load on a broker. cpu reads how much processor time the broker has
// used.
func (l load) run(ctx context.Context, addr string, cpu func() time.Duration) (loaded, error) {
	t := &traffic{load: l}
	t.room.L = &t.mu
	defer t.stop(nil)
	for i := range l.Subscribers + l.Stuck {
		id := fmt.Sprintf("bench-sub-%d", i)
		c, err := dialMQTT(ctx, addr, id, true)
		if err == nil && l.Kept { // now there is no session of an earlier turn
			c.Close()
			c, err = dialMQTT(ctx, addr, id, false)
		}
		if err != nil {
			return loaded{}, err
		}
		t.conns = append(t.conns, c)
		if err := c.subscribe(l.Topic, l.QoS); err != nil {
			return loaded{}, err
		}
		if i < l.Subscribers {
			t.workers.Go(func() { t.stop(t.receive(c)) })
		}
	}
	for i := range l.Publishers {
		c, err := dialMQTT(ctx, addr, fmt.Sprintf("bench-pub-%d", i), true)
		if err != nil {
			return loaded{}, err
		}
		t.conns = append(t.conns, c)
		p := &loadPublisher{t: t, c: c, window: l.Window}
		t.workers.Go(func() { t.stop(p.answers()) })
		t.workers.Go(func() { t.stop(p.publish()) })
	}
	if err := sleep(ctx, l.Warm); err != nil {
		return loaded{}, err
	}
	began, n, used := time.Now(), t.delivered.Load(), cpu()
	if err := sleep(ctx, l.For); err != nil {
		return loaded{}, err
	}
	took, n, used := time.Since(began), t.delivered.Load()-n, cpu()-used
	t.stop(nil)
	t.workers.Wait()
	if t.err != nil {
		return loaded{}, t.err
	}
	if n == 0 {
		return loaded{}, errors.New("nothing was delivered")
	}
	return loaded{Delivered: float64(n) / took.Seconds(), CPU: float64(used.Microseconds()) / float64(n)}, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// stop ends the traffic; the first error is why.
func (t *traffic) stop(err error) {
	t.mu.Lock()
	if !t.done {
		t.done, t.err = true, err
		t.room.Broadcast()
		for _, c := range t.conns {
			c.Close()
		}
	}
	t.mu.Unlock()
}

// mqttConn is a connection that is logged in.
type mqttConn struct {
	net.Conn
	r *bufio.Reader
}

func dialMQTT(ctx context.Context, addr, id string, clean bool) (*mqttConn, error) {
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &mqttConn{nc, bufio.NewReaderSize(nc, 64<<10)}
	flags := byte(0)
	if clean {
		flags = 2
	}
	p := append([]byte{0x10, byte(12 + len(id)), 0, 4, 'M', 'Q', 'T', 'T', 4, flags, 0, 0, 0, byte(len(id))}, id...)
	if _, err := c.Write(p); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	first, body, err := c.packet()
	if err == nil && (first != 0x20 || len(body) != 2 || body[1] != 0) {
		err = fmt.Errorf("%s answers CONNECT with %x %x", addr, first, body)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *mqttConn) subscribe(filter string, qos byte) error {
	p := append([]byte{0x82, byte(5 + len(filter)), 0, 1, 0, byte(len(filter))}, filter...)
	if _, err := c.Write(append(p, qos)); err != nil {
		return err
	}
	first, body, err := c.packet()
	if err == nil && (first != 0x90 || len(body) != 3 || body[2] != qos) {
		err = fmt.Errorf("SUBSCRIBE is answered with %x %x", first, body)
	}
	return err
}

// packet returns the next packet; body is valid until the next call.
func (c *mqttConn) packet() (first byte, body []byte, err error) {
	if first, err = c.r.ReadByte(); err != nil {
		return 0, nil, err
	}
	n, err := binary.ReadUvarint(c.r) // the same encoding
	if err != nil {
		return 0, nil, err
	}
	if body, err = c.r.Peek(int(n)); err == nil {
		_, err = c.r.Discard(int(n))
	}
	return first, body, err
}

// ended turns the end of a connection that we closed into none.
func (t *traffic) ended(err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return errors.New("the broker has closed a connection")
	}
	return err
}

// receive is a subscriber: it counts and acknowledges.
func (t *traffic) receive(c *mqttConn) error {
	out := make([]byte, 0, 64<<10)
	counted := int64(0)
	for {
		if c.r.Buffered() < 2 {
			t.arrived(counted)
			counted = 0
			if len(out) > 0 {
				if _, err := c.Write(out); err != nil {
					return t.ended(err)
				}
				out = out[:0]
			}
		}
		first, body, err := c.packet()
		if err != nil {
			return t.ended(err)
		}
		switch first >> 4 {
		case 3:
			counted++
			if qos := first >> 1 & 3; qos > 0 {
				at := 2 + int(binary.BigEndian.Uint16(body))
				out = append(out, 0x40+0x10*(qos-1), 2, body[at], body[at+1])
			}
		case 6:
			out = append(out, 0x70, 2, body[0], body[1])
		}
	}
}

func (t *traffic) arrived(n int64) {
	if n == 0 {
		return
	}
	t.delivered.Add(n)
	t.mu.Lock()
	t.room.Broadcast()
	t.mu.Unlock()
}

// loadPublisher publishes as fast as it may.
type loadPublisher struct {
	t      *traffic
	c      *mqttConn
	window int
	open   int    // guarded by t.mu
	rels   []byte // PUBRELs to be sent; guarded by t.mu
}

func (p *loadPublisher) publish() error {
	t := p.t
	one := []byte{0x30 | t.QoS<<1}
	length := 2 + len(t.Topic) + t.Payload
	if t.QoS > 0 {
		length += 2
	}
	one = binary.AppendUvarint(one, uint64(length))
	one = append(one, 0, byte(len(t.Topic)))
	one = append(one, t.Topic...)
	id := len(one)
	if t.QoS > 0 {
		one = append(one, 0, 0)
	}
	for i := range t.Payload {
		one = append(one, byte('a'+i%26))
	}
	next := uint16(0)
	var out []byte
	for {
		out = out[:0]
		t.mu.Lock()
		n := 0
		for {
			n = min(p.window-p.open, 64)
			if left := ahead - int(t.published.Load()) + int(t.delivered.Load())/t.Subscribers; left < n {
				n = left
			}
			if n > 0 || len(p.rels) > 0 || t.done {
				break
			}
			t.room.Wait()
		}
		n = max(n, 0)
		if t.done {
			t.mu.Unlock()
			return nil
		}
		out = append(out, p.rels...)
		p.rels = p.rels[:0]
		if t.QoS > 0 {
			p.open += n
		}
		t.published.Add(int64(n))
		t.mu.Unlock()
		for range n {
			at := len(out)
			out = append(out, one...)
			if t.QoS > 0 {
				if next++; next == 0 {
					next = 1
				}
				binary.BigEndian.PutUint16(out[at+id:], next)
			}
		}
		if _, err := p.c.Write(out); err != nil {
			return t.ended(err)
		}
	}
}

// answers takes the acknowledgements.
func (p *loadPublisher) answers() error {
	t := p.t
	done := 0
	var rels []byte
	for {
		if p.c.r.Buffered() < 2 && (done > 0 || len(rels) > 0) {
			t.mu.Lock()
			p.open -= done
			p.rels = append(p.rels, rels...)
			t.room.Broadcast()
			t.mu.Unlock()
			done, rels = 0, rels[:0]
		}
		first, body, err := p.c.packet()
		if err != nil {
			return t.ended(err)
		}
		switch first >> 4 {
		case 4, 7:
			done++
		case 5:
			rels = append(rels, 0x62, 2, body[0], body[1])
		}
	}
}
