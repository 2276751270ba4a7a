// Package client is a small MQTT client, versions 3.1.1 and 5, for commands,
// checks and tests. It keeps one connection and nothing beyond it: it neither
// reconnects nor stores anything. So QoS 2 is exactly once while the connection
// lasts; who resumes a session may get again what was under way when it broke.
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// ErrClosed is the end of a connection by Close.
var ErrClosed = errors.New("client is closed")

// outSize is how much may wait to be written before a publish waits, in bytes.
const outSize = 256 << 10

// Options of a client. The zero value, but for Address, connects with version
// 5, a clean session and a client id that the broker assigns.
type Options struct {
	Address        string                                  // host:port
	Dial           func(context.Context) (net.Conn, error) // nil is TCP to Address
	Version        packet.Version                          // 0 is packet.V5
	ClientID       string
	Resume         bool // continue the session there is; false starts a clean one
	SessionExpiry  time.Duration
	KeepAlive      time.Duration // 0 is 30 s
	Username       string
	Password       []byte // nil is none
	Will           *Message
	ReceiveMaximum int // unacknowledged messages that the broker may send; 0 is 65,535
	MaxPacket      int // bytes of a packet that the broker may send; 0 is 1 MiB
	MaxInflight    int // publishes with QoS 1 and 2 under way at a time; 0 is what the broker takes
	// Handler gets every message, one at a time and in order. While it runs
	// nothing else is received, so it must not wait for the broker's answers. Nil drops them.
	Handler func(*Message)
	// ManualAck leaves it to the handler, or to whom it gives the message, to call Ack.
	ManualAck bool
}

// Message is a message to or from the broker.
type Message struct {
	Topic           string
	Payload         []byte
	QoS             byte
	Retain          bool
	Dup             bool
	Props           packet.Properties // version 5, without expiry and subscription identifiers
	Expiry          time.Duration     // version 5, in whole seconds; 0 is none
	SubscriptionIDs []uint32          // of what was received

	ack func()
}

// Ack acknowledges a message that was received with Options.ManualAck. It may
// be called later and from any goroutine, once.
func (m *Message) Ack() {
	if m.ack != nil {
		m.ack()
	}
}

// Client is a connection to a broker. Its methods may be called concurrently.
type Client struct {
	o       Options
	nc      net.Conn
	reader  *packet.Reader
	connack packet.Connack
	most    int           // bytes of a packet that the broker takes
	window  chan struct{} // holds one token for each unacknowledged publish
	wake    chan struct{}
	room    chan struct{}
	done    chan struct{} // closed when the connection has ended
	workers sync.WaitGroup

	mu       sync.Mutex          // guards what follows
	out      []byte              // to be written
	answers  map[uint16]*request // what waits for an answer, by packet identifier
	last     uint16              // packet identifier
	received map[uint16]bool     // of QoS 2 that the broker has not released: whether it was acknowledged
	unacked  int                 // messages of the broker that use up its window
	pings    []chan<- error      // who waits for a PINGRESP, in order; nil is nobody
	err      error               // why the connection ended
}

// request is a packet with an identifier that waits for an answer.
type request struct {
	want packet.Type  // of the answer
	tell func(answer) // called once, must not block
}

// answer is what the broker answered to a packet with an identifier.
type answer struct {
	reasons []packet.Reason
	why     string
	err     error
}

// Connect connects and waits until the broker has accepted. The connection
// lives until Close, whatever ctx does, unless the broker ends it.
func Connect(ctx context.Context, o Options) (*Client, error) {
	if o.Version == 0 {
		o.Version = packet.V5
	}
	if o.KeepAlive <= 0 {
		o.KeepAlive = 30 * time.Second
	}
	if o.MaxPacket <= 0 {
		o.MaxPacket = 1 << 20
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", o.Address)
		}
	}
	nc, err := o.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to MQTT broker: %w", err)
	}
	c := &Client{
		o:        o,
		nc:       nc,
		wake:     make(chan struct{}, 1),
		room:     make(chan struct{}, 1),
		done:     make(chan struct{}),
		answers:  make(map[uint16]*request),
		received: make(map[uint16]bool),
	}
	c.reader = packet.NewReader(c, new(packet.Blocks), o.MaxPacket)
	c.reader.SetVersion(o.Version)
	if err := c.handshake(ctx); err != nil {
		_ = nc.Close() // what it could say comes from the error that there is
		return nil, fmt.Errorf("connect to MQTT broker at %s: %w", nc.RemoteAddr(), err)
	}
	window := 65535
	if v, ok := c.connack.Props.Uint(packet.ReceiveMaximum); ok {
		window = int(v)
	}
	if c.o.MaxInflight > 0 {
		window = min(window, c.o.MaxInflight)
	}
	c.window = make(chan struct{}, window)
	c.most = packet.MaxLength
	if v, ok := c.connack.Props.Uint(packet.MaximumPacketSize); ok {
		c.most = int(min(v, packet.MaxLength))
	}
	if v, ok := c.connack.Props.Uint(packet.ServerKeepAlive); ok {
		c.o.KeepAlive = time.Duration(v) * time.Second
	}
	c.workers.Go(c.read)
	c.workers.Go(c.write)
	return c, nil
}

func (c *Client) handshake(ctx context.Context) error {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = c.nc.SetDeadline(time.Unix(1, 0))
	})
	err := c.login()
	if !stop() {
		<-interrupted
		return context.Cause(ctx)
	}
	return err
}

func (c *Client) login() error {
	p := packet.Connect{
		Version:     c.o.Version,
		ClientID:    c.o.ClientID,
		CleanStart:  !c.o.Resume,
		KeepAlive:   uint16(min(max(c.o.KeepAlive/time.Second, 1), 65535)),
		HasUsername: c.o.Username != "",
		Username:    c.o.Username,
		HasPassword: c.o.Password != nil,
		Password:    c.o.Password,
	}
	if c.o.Version == packet.V5 {
		p.Props = p.Props.AppendUint(packet.MaximumPacketSize, uint32(c.o.MaxPacket))
		if c.o.SessionExpiry > 0 {
			p.Props = p.Props.AppendUint(packet.SessionExpiry, uint32(c.o.SessionExpiry/time.Second))
		}
		if c.o.ReceiveMaximum > 0 {
			p.Props = p.Props.AppendUint(packet.ReceiveMaximum, uint32(c.o.ReceiveMaximum))
		}
	}
	if w := c.o.Will; w != nil {
		p.Will = &packet.Will{Topic: w.Topic, Payload: w.Payload, QoS: w.QoS, Retain: w.Retain, Props: w.Props}
		if w.Expiry > 0 {
			p.Will.Props = append(packet.Properties{}.AppendUint(packet.MessageExpiry, uint32(w.Expiry/time.Second)), w.Props...)
		}
	}
	if _, err := c.nc.Write(p.Append(nil)); err != nil {
		return err
	}
	first, body, err := c.reader.Next()
	if err != nil {
		return err
	}
	if packet.TypeOf(first) != packet.CONNACK {
		return fmt.Errorf("%v in the place of CONNACK", packet.TypeOf(first))
	}
	v := c.o.Version
	if v == packet.V5 && len(body) == 2 { // that of a broker that knows no version 5, 3.1.1 §3.2
		v = packet.V311
	}
	if err := c.connack.Decode(v, body); err != nil {
		return err
	}
	c.connack.Props = append(packet.Properties(nil), c.connack.Props...)
	r := c.connack.Reason
	if r == packet.Success && v != c.o.Version {
		return packet.Errorf(packet.ProtocolError, "CONNACK of MQTT 3.1.1 in answer to version 5")
	}
	if r != packet.Success {
		return refusal(v, r, c.connack.Props.Text(packet.ReasonString))
	}
	return nil
}

// refusal is a CONNACK as an error, with the reason code that version 5 has for
// a return code of 3.1.1.
func refusal(v packet.Version, r packet.Reason, why string) error {
	if v == packet.V311 {
		r = [...]packet.Reason{1: packet.UnsupportedVersion, 2: packet.ClientIDNotValid, 3: packet.ServerUnavailable, 4: packet.BadUserNameOrPassword, 5: packet.NotAuthorized}[r]
	}
	return &packet.Error{Reason: r, Text: "the broker refused the connection" + because(why)}
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return ": " + why
}

// Connack is what the broker said when it accepted.
func (c *Client) Connack() packet.Connack { return c.connack }

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is why the connection ended; nil while it is open.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close says goodbye, so that the will is not published, and returns when the
// connection is closed. The handler must not call it.
func (c *Client) Close() error {
	var d packet.Disconnect
	c.fail(ErrClosed, d.Append(nil, c.o.Version, packet.DISCONNECT))
	c.workers.Wait()
	return nil
}

// Abort cuts the connection, so that the broker publishes the will, and
// returns when it is closed. The handler must not call it.
func (c *Client) Abort() {
	c.fail(ErrClosed, nil)
	c.workers.Wait()
}

// fail ends the connection, after goodbye is written.
func (c *Client) fail(err error, goodbye []byte) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	c.out = append(c.out, goodbye...)
	if goodbye == nil {
		c.out = nil
	}
	waiting, pings := c.answers, c.pings
	c.answers, c.pings = nil, nil
	close(c.done)
	c.mu.Unlock()
	for _, r := range waiting {
		r.tell(answer{err: err})
	}
	for _, p := range pings {
		if p != nil {
			p <- err
		}
	}
	deadline := time.Now().Add(time.Second)
	if goodbye == nil {
		deadline = time.Unix(1, 0)
	}
	_ = c.nc.SetWriteDeadline(deadline)
	_ = c.nc.SetReadDeadline(time.Unix(1, 0))
}

// Read is what the packet reader reads with.
func (c *Client) Read(p []byte) (int, error) {
	if c.window != nil { // connected
		if err := c.nc.SetReadDeadline(time.Now().Add(c.o.KeepAlive + c.o.KeepAlive/2)); err != nil {
			return 0, err
		}
		select {
		case <-c.done: // fail's deadline may have come before this one
			return 0, net.ErrClosed
		default:
		}
	}
	return c.nc.Read(p)
}

// read is the goroutine that receives.
func (c *Client) read() {
	defer c.reader.Close()
	for {
		first, body, err := c.reader.Next()
		if err == nil {
			err = c.handle(first, body)
		}
		if err != nil {
			if err == io.EOF {
				err = errors.New("the broker closed the connection")
			}
			c.fail(err, nil)
			return
		}
	}
}

// send queues what append makes.
func (c *Client) send(append func([]byte) []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	return c.put(append)
}

// put is send under the lock, of a connection that is open. What is larger than
// the broker takes is an error [MQTT-3.2.2-15].
func (c *Client) put(append func([]byte) []byte) error {
	before := len(c.out)
	c.out = append(c.out)
	if n := len(c.out) - before; n > c.most {
		c.out = c.out[:before]
		return packet.Errorf(packet.PacketTooLarge, "a packet of %d bytes, the most there may be is %d", n, c.most)
	}
	c.signal(c.wake)
	return nil
}

func (c *Client) signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// shut closes the connection. Closing it with unread bytes resets it, and the
// broker might lose the goodbye.
func (c *Client) shut() {
	if half, ok := c.nc.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		_ = c.nc.SetReadDeadline(time.Now().Add(time.Second))
		_, _ = io.CopyN(io.Discard, c.nc, 1<<20)
	}
	_ = c.nc.Close()
}

// write is the goroutine that sends, and pings while there is nothing to send.
func (c *Client) write() {
	defer c.shut()
	ping := time.NewTicker(max(c.o.KeepAlive/2, time.Millisecond))
	defer ping.Stop()
	var buf []byte
	for {
		select {
		case <-c.wake:
		case <-c.done:
		case <-ping.C:
			_ = c.ping(nil)
		}
		c.mu.Lock()
		buf, c.out = c.out, buf[:0]
		ended := c.err != nil
		c.mu.Unlock()
		c.signal(c.room)
		if len(buf) > 0 {
			if _, err := c.nc.Write(buf); err != nil {
				c.fail(err, nil)
				return
			}
		}
		if ended {
			return
		}
	}
}
