package dial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/coder/websocket"
)

// UpgradeError says that a server did not agree on MQTT over WebSocket.
type UpgradeError struct {
	Status int   // of its answer; 101 if it took another subprotocol; 0 if there was none
	Err    error // why, if there was no answer
}

func (e *UpgradeError) Error() string {
	switch e.Status {
	case 0:
		return fmt.Sprintf("WebSocket: %v", e.Err)
	case http.StatusSwitchingProtocols:
		return "WebSocket: the server did not agree on the subprotocol mqtt"
	}
	return fmt.Sprintf("WebSocket: the server answered %d %s", e.Status, http.StatusText(e.Status))
}

func (e *UpgradeError) Unwrap() error { return e.Err }

// upgrade makes a connection one of MQTT over WebSocket (MQTT 5 §6). When it fails,
// nc is closed.
func upgrade(ctx context.Context, nc net.Conn, u *url.URL) (net.Conn, error) {
	under := &gather{Conn: nc}
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return under, nil }}
	to := *u
	to.Scheme = "ws" // TLS, if there is any, is below
	to.User = nil
	ws, resp, err := websocket.Dial(ctx, to.String(), &websocket.DialOptions{
		HTTPClient: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		Subprotocols:    []string{"mqtt"}, // [MQTT-6.0.0-3]
		CompressionMode: websocket.CompressionDisabled,
	})
	switch {
	case err != nil && resp != nil && resp.StatusCode != 0:
		err = &UpgradeError{Status: resp.StatusCode, Err: err}
	case err != nil:
		err = &UpgradeError{Err: err}
	case ws.Subprotocol() != "mqtt":
		_ = ws.CloseNow()
		err = &UpgradeError{Status: http.StatusSwitchingProtocols}
	}
	if err != nil {
		transport.CloseIdleConnections()
		nc.Close()
		return nil, err
	}
	ws.SetReadLimit(-1) // packets have their limit, and a message need not be one
	return &wsConn{ws: ws, under: under}, nil
}

// wsConn is a connection over WebSocket. Its deadlines are those of the socket: when
// one is missed, the connection is of no use any more.
type wsConn struct {
	ws     *websocket.Conn
	under  *gather
	reader io.Reader // of the message that is being read; nil between two
}

func (c *wsConn) Read(p []byte) (int, error) {
	for {
		if c.reader == nil {
			kind, r, err := c.ws.Reader(context.Background())
			if err != nil {
				return 0, closed(err)
			}
			if kind != websocket.MessageBinary { // [MQTT-6.0.0-1]
				_ = c.ws.CloseNow()
				return 0, errors.New("the upstream sent text over WebSocket, where MQTT is binary")
			}
			c.reader = r
		}
		n, err := c.reader.Read(p)
		if errors.Is(err, io.EOF) {
			c.reader, err = nil, nil
			if n == 0 {
				continue
			}
		}
		return n, closed(err)
	}
}

// closed makes the end that a peer has announced an ordinary one.
func closed(err error) error {
	switch websocket.CloseStatus(err) {
	case websocket.StatusNormalClosure, websocket.StatusGoingAway, websocket.StatusNoStatusRcvd:
		return io.EOF
	}
	return err
}

func (c *wsConn) Write(p []byte) (int, error) {
	return c.under.together(func() (int, error) {
		if err := c.ws.Write(context.Background(), websocket.MessageBinary, p); err != nil {
			return 0, err
		}
		return len(p), nil
	})
}

// Close does not wait for the other side's goodbye: MQTT has said its own.
func (c *wsConn) Close() error { return c.ws.CloseNow() }

func (c *wsConn) LocalAddr() net.Addr                { return c.under.LocalAddr() }
func (c *wsConn) RemoteAddr() net.Addr               { return c.under.RemoteAddr() }
func (c *wsConn) SetDeadline(t time.Time) error      { return c.under.SetDeadline(t) }
func (c *wsConn) SetReadDeadline(t time.Time) error  { return c.under.SetReadDeadline(t) }
func (c *wsConn) SetWriteDeadline(t time.Time) error { return c.under.SetWriteDeadline(t) }
