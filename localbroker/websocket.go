package localbroker

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// The names of the subprotocol that a client must offer: MQTT 5 [MQTT-6.0.0-3], and
// what clients before the standard called it.
var subprotocols = []string{"mqtt", "mqttv3.1"}

// serveWebSocket takes MQTT over WebSocket, MQTT 5 §6, until ln is closed.
func (b *Broker) serveWebSocket(ctx context.Context, ln net.Listener, l Listener) {
	var upgrading sync.WaitGroup
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+l.WebSocket, func(w http.ResponseWriter, r *http.Request) {
		if c := b.upgrade(ctx, w, r, l, &upgrading); c != nil {
			b.serve(ctx, c)
		}
	})
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: b.limits.ConnectTimeout,
		MaxHeaderBytes:    upgradeSize,
		ConnContext:       withBounded,
		ErrorLog:          slog.NewLogLogger(b.log.Handler(), slog.LevelDebug),
	}
	server.SetKeepAlivesEnabled(false) // who is not upgraded need not stay
	if err := server.Serve(ln); err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		b.log.Error("WebSocket listener failed", "listener", l.Name, "err", err)
	}
	_ = server.Close() // connections that are not upgraded; the others end as all do
	upgrading.Wait()
}

// upgrade makes a connection of a request, or refuses it.
func (b *Broker) upgrade(ctx context.Context, w http.ResponseWriter, r *http.Request, l Listener, upgrading *sync.WaitGroup) *conn {
	upgrading.Add(1)
	defer upgrading.Done()
	if !slices.ContainsFunc(subprotocols, func(p string) bool { return offers(r, p) }) {
		http.Error(w, "this is an MQTT broker: the WebSocket subprotocol must be mqtt", http.StatusBadRequest)
		return nil
	}
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols:    subprotocols,
		OriginPatterns:  originHosts(l.Origins),
		CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		b.stats.refusedConnections.Add(1)
		b.log.Info("WebSocket refused", "listener", l.Name, "address", r.RemoteAddr, "err", err)
		return nil // Accept has answered
	}
	bounded := r.Context().Value(boundedKey{}).(*boundedConn)
	bounded.upgrade()
	ws.SetReadLimit(-1) // packets bound what is kept, and frames need not be packets
	var identity *x509.Certificate
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		identity = r.TLS.PeerCertificates[0]
	}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	nc := newWSConn(ctx, ws, bounded, local, wsAddr(r.RemoteAddr))
	return b.take(nc, l, identity, bounded.began)
}

// offers reports whether a request offers a subprotocol.
func offers(r *http.Request, name string) bool {
	for _, line := range r.Header.Values("Sec-WebSocket-Protocol") {
		for p := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(p), name) {
				return true
			}
		}
	}
	return false
}

// originHosts are the origins as the library has them: with their scheme, or just a host.
func originHosts(origins []string) (patterns []string) {
	for _, o := range origins {
		patterns = append(patterns, strings.TrimSuffix(o, "/"))
	}
	return patterns
}

type wsAddr string

func (wsAddr) Network() string  { return "tcp" }
func (a wsAddr) String() string { return string(a) }

// wsConn is a WebSocket as a net.Conn. A read deadline that passes does not end it,
// as one of the library's would.
type wsConn struct {
	ws     *websocket.Conn
	under  io.Closer // what carries it
	local  net.Addr
	remote net.Addr
	ctx    context.Context // ends with the connection: the library asks for it at each read
	cancel context.CancelFunc

	chunks chan []byte   // from the goroutine that reads
	free   chan struct{} // the last chunk was taken
	rest   []byte
	done   chan struct{} // closed when that has ended, and why is set
	why    error

	mu       sync.Mutex // guards what follows
	deadline time.Time
	moved    chan struct{} // closed when deadline is
	writeBy  time.Time
}

func newWSConn(ctx context.Context, ws *websocket.Conn, under io.Closer, local, remote net.Addr) *wsConn {
	c := &wsConn{ws: ws, under: under, local: local, remote: remote, chunks: make(chan []byte), free: make(chan struct{}), done: make(chan struct{}), moved: make(chan struct{})}
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx)) // the broker says goodbye first
	go c.read()
	return c
}

// read reads frames, a piece at a time.
func (c *wsConn) read() {
	defer close(c.done)
	defer func() { // what a client sends may be more than the library can stand
		if r := recover(); r != nil {
			c.why = fmt.Errorf("reading a WebSocket: panic: %v\n%s", r, debug.Stack())
		}
	}()
	buf := make([]byte, 4<<10)
	for c.why == nil {
		kind, r, err := c.ws.Reader(c.ctx)
		if err == nil && kind != websocket.MessageBinary { // [MQTT-6.0.0-1]
			err = errors.New("a text frame, and MQTT is binary")
			_ = c.ws.Close(websocket.StatusUnsupportedData, err.Error())
		}
		if err != nil {
			c.why = ended(err)
			return
		}
		for more := true; more && c.why == nil; {
			n, err := r.Read(buf)
			if n > 0 {
				c.why = c.hand(buf[:n])
			}
			if more = err == nil; !more && !errors.Is(err, io.EOF) {
				c.why = ended(err)
			}
		}
	}
}

// hand gives a piece to Read and waits until it was taken.
func (c *wsConn) hand(piece []byte) error {
	select {
	case c.chunks <- piece:
	case <-c.ctx.Done():
		return net.ErrClosed
	}
	select {
	case <-c.free:
		return nil
	case <-c.ctx.Done():
		return net.ErrClosed
	}
}

// ended is io.EOF if the client has closed the connection as it should.
func ended(err error) error {
	switch websocket.CloseStatus(err) {
	case websocket.StatusNormalClosure, websocket.StatusGoingAway, websocket.StatusNoStatusRcvd:
		return io.EOF
	}
	return err
}

// Read returns os.ErrDeadlineExceeded after a deadline; more can be read then.
func (c *wsConn) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		c.mu.Lock()
		deadline, moved := c.deadline, c.moved
		c.mu.Unlock()
		var passed <-chan time.Time
		if !deadline.IsZero() {
			wait := time.Until(deadline)
			if wait <= 0 {
				return 0, os.ErrDeadlineExceeded
			}
			t := time.NewTimer(wait)
			defer t.Stop()
			passed = t.C
		}
		select {
		case c.rest = <-c.chunks:
		case <-c.done:
			return 0, c.why
		case <-passed:
		case <-moved:
		}
	}
	n := copy(p, c.rest)
	if c.rest = c.rest[n:]; len(c.rest) == 0 {
		select {
		case c.free <- struct{}{}:
		case <-c.done:
		}
	}
	return n, nil
}

// Write writes p as one frame.
func (c *wsConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	by := c.writeBy
	c.mu.Unlock()
	ctx := c.ctx
	if !by.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, by)
		defer cancel()
	}
	if err := c.ws.Write(ctx, websocket.MessageBinary, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close closes the connection. The handshake of RFC 6455 §7 is over by then or takes too
// long: the library would wait for it, so what carries it goes first.
func (c *wsConn) Close() error {
	err := c.under.Close()
	_ = c.ws.CloseNow() // has nothing left to close, and says so
	c.cancel()
	<-c.done
	return err
}

// CloseWrite says that nothing more is written, and gives the client the time to
// answer that until Close.
func (c *wsConn) CloseWrite() error {
	go func() { _ = c.ws.Close(websocket.StatusNormalClosure, "") }()
	return nil
}

func (c *wsConn) LocalAddr() net.Addr  { return c.local }
func (c *wsConn) RemoteAddr() net.Addr { return c.remote }

func (c *wsConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *wsConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	close(c.moved)
	c.moved = make(chan struct{})
	return nil
}

func (c *wsConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writeBy = t
	return nil
}
