package localbroker

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/fieldferry/fieldferry/buffer/simulated"
)

// The network of TestSimulation.

// simListener is what a broker accepts connections on, for one life of the machine.
type simListener struct {
	life    *simulated.Life
	pending chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

func newSimListener(life *simulated.Life) *simListener {
	return &simListener{life: life, pending: make(chan net.Conn, 64), closed: make(chan struct{})}
}

func (l *simListener) Accept() (net.Conn, error) {
	select {
	case nc := <-l.pending:
		return nc, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *simListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *simListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1883} }

// dial connects. window is how many bytes may be on their way to the client before
// the broker has to wait.
func (l *simListener) dial(window int) *simLink {
	k := &simLink{up: newSimPipe(nil, 0), down: newSimPipe(l.life, window)}
	l.pending <- simConn{k}
	return k
}

// simLink is a connection as the client has it, who never waits.
type simLink struct{ up, down *simPipe }

// Read returns what has arrived, or os.ErrDeadlineExceeded if that is nothing.
func (k *simLink) Read(p []byte) (int, error) { return k.down.take(p) }

func (k *simLink) write(p []byte) { k.up.add(p) }

// over reports whether the broker has closed the connection.
func (k *simLink) over() bool { return k.down.isClosed() }

// ended is when the broker has closed it, or now.
func (k *simLink) ended() time.Time {
	k.down.mu.Lock()
	defer k.down.mu.Unlock()
	if k.down.err == nil {
		return time.Now()
	}
	return k.down.at
}

// close ends it from the client's side; what is under way to the broker arrives.
func (k *simLink) close() {
	k.up.end(io.EOF)
	k.down.end(syscall.EPIPE)
}

// cut ends it somewhere in between: of what is under way to the broker, n bytes
// arrive. Those that have come to the client are there to be read.
func (k *simLink) cut(n int) {
	k.up.cut(n, syscall.ECONNRESET)
	k.down.end(syscall.ECONNRESET)
}

// simConn is the connection as the broker has it.
type simConn struct{ k *simLink }

func (c simConn) Read(p []byte) (int, error)         { return c.k.up.read(p) }
func (c simConn) Write(p []byte) (int, error)        { return c.k.down.write(p) }
func (c simConn) SetReadDeadline(t time.Time) error  { return c.k.up.setDeadline(t) }
func (c simConn) SetWriteDeadline(t time.Time) error { return c.k.down.setDeadline(t) }
func (c simConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}
func (c simConn) LocalAddr() net.Addr  { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1883} }
func (c simConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 40000} }

func (c simConn) CloseWrite() error {
	c.k.down.end(io.EOF)
	return nil
}

func (c simConn) Close() error {
	c.k.down.end(io.EOF)
	c.k.up.end(net.ErrClosed)
	return nil
}

// simPipe is one direction of a connection.
type simPipe struct {
	life   *simulated.Life // of the writer, nil for ever
	window int             // bytes that may be under way, 0 is no limit

	mu       sync.Mutex // guards what follows
	changed  sync.Cond
	buf      []byte
	err      error     // after buf
	at       time.Time // when that came
	deadline time.Time
	timer    *time.Timer
}

func newSimPipe(life *simulated.Life, window int) *simPipe {
	p := &simPipe{life: life, window: window}
	p.changed.L = &p.mu
	return p
}

// end is the end of the stream; what is under way arrives before it.
func (p *simPipe) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err, p.at = err, time.Now()
	}
	p.changed.Broadcast()
}

// cut is end, with n bytes left of what is under way.
func (p *simPipe) cut(n int, err error) {
	p.mu.Lock()
	p.buf = p.buf[:min(n, len(p.buf))]
	p.mu.Unlock()
	p.end(err)
}

func (p *simPipe) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err != nil
}

func (p *simPipe) underWay() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.buf)
}

// add writes without waiting.
func (p *simPipe) add(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.buf = append(p.buf, b...)
		p.changed.Broadcast()
	}
}

// take reads without waiting.
func (p *simPipe) take(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.buf) == 0 && p.err == nil {
		return 0, os.ErrDeadlineExceeded
	}
	return p.shift(b)
}

// shift moves what there is to b. p.mu is held.
func (p *simPipe) shift(b []byte) (int, error) {
	if len(p.buf) == 0 {
		return 0, p.err
	}
	n := copy(b, p.buf)
	p.buf = p.buf[n:]
	p.changed.Broadcast()
	return n, nil
}

func (p *simPipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.buf) == 0 && p.err == nil {
		if p.late() {
			return 0, os.ErrDeadlineExceeded
		}
		p.changed.Wait()
	}
	if p.late() {
		return 0, os.ErrDeadlineExceeded
	}
	return p.shift(b)
}

func (p *simPipe) write(b []byte) (n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n < len(b) {
		room := p.window - len(p.buf)
		switch {
		case p.err != nil:
			return n, syscall.EPIPE
		case p.late():
			return n, os.ErrDeadlineExceeded
		case room <= 0:
			p.changed.Wait()
			continue
		}
		part := b[n:min(n+room, len(b))]
		if !p.life.Do(func() { p.buf = append(p.buf, part...) }) {
			return n, syscall.EPIPE // nobody is there to write any more
		}
		n += len(part)
	}
	return n, nil
}

// late reports whether the deadline has passed. p.mu is held.
func (p *simPipe) late() bool { return !p.deadline.IsZero() && !time.Now().Before(p.deadline) }

// setDeadline is of the one side that waits.
func (p *simPipe) setDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil && errors.Is(p.err, net.ErrClosed) {
		return net.ErrClosed
	}
	p.deadline = t
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
	if d := time.Until(t); !t.IsZero() && d > 0 {
		p.timer = time.AfterFunc(d, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.changed.Broadcast()
		})
	}
	p.changed.Broadcast()
	return nil
}
