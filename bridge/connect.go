package bridge

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/fieldferry/fieldferry/bridge/dial"
)

const (
	connectTimeout = 15 * time.Second // to reach the upstream and to get its CONNACK
	maxConnack     = 64 << 10         // bytes
	maxInbound     = 1 << 20          // bytes, announced as our Maximum Packet Size

	readBuffer  = 16 << 10
	writeBuffer = 64 << 10
)

// limits are what the upstream allows this connection (MQTT 5 §3.2.2.3).
type limits struct {
	window         int  // messages unanswered: Receive Maximum, or our own if that is less
	packet         int  // bytes of a whole packet: Maximum Packet Size
	qos            byte // Maximum QoS, or ours
	retain         bool // Retain Available
	aliases        int  // Topic Alias Maximum
	keepalive      time.Duration
	sessionPresent bool
	sessionExpiry  time.Duration // how long the upstream keeps our session
}

// will is what the upstream accepts of our will. Some refuse a CONNECT over it
// (MQTT 5 §3.1.2.6, §3.1.2.7) and are then asked for less.
type will struct {
	qos    byte
	retain bool
}

// connect dials an upstream, by name each time, and logs in.
func (b *Bridge) connect(ctx context.Context, u *url.URL) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	nc, err := b.o.Dial(ctx, u)
	if err != nil {
		return nil, explained(u, fmt.Errorf("connect: %w", err))
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	c, err := b.login(nc, sessionURL(u))
	if !stop() && err == nil { // the time was up in this moment
		err = context.Cause(ctx)
	}
	if err != nil {
		nc.Close()
		return nil, explained(u, err) // with TLS 1.3 a server looks at our certificate now
	}
	return c, nil
}

// explained says what to check about an error, in place of all that led to it.
func explained(u *url.URL, err error) error {
	err = dial.Explain(u, err)
	var r *dial.Refusal
	if errors.As(err, &r) {
		return r
	}
	return err
}

// sessionURL is what of a URL says which upstream it is.
func sessionURL(u *url.URL) string { return u.Scheme + "://" + u.Host + u.Path }

func (b *Bridge) login(nc net.Conn, url string) (*conn, error) {
	connect, err := b.connectPacket()
	if err != nil {
		return nil, err
	}
	connect.CleanStart = !b.resumable(url)
	unsure := b.session.Unsure
	if !connect.CleanStart {
		if err := b.connecting(); err != nil {
			return nil, err
		}
	}
	ln := &line{Conn: nc, silence: connectTimeout, stall: connectTimeout}
	c := newConn(b, ln)
	if _, err := connect.WriteTo(c.w); err != nil {
		return nil, err
	}
	if err := c.w.Flush(); err != nil {
		return nil, err
	}
	head, err := c.r.Peek(2)
	if err == nil {
		err = dial.Recognise(head)
	}
	var p packet
	if err == nil {
		p, err = readPacket(c.r, maxConnack)
	}
	if err != nil {
		return nil, fmt.Errorf("wait for CONNACK: %w", err)
	}
	ack, ok := p.content.(*packets.Connack)
	if !ok {
		return nil, fmt.Errorf("packet of type %d instead of CONNACK", p.kind)
	}
	if p.code >= codeRefused {
		b.session.Unsure = unsure // it has made no session
		switch p.code {
		case codeRetain:
			b.will.retain = false
		case codeQoS:
			b.will.qos = 0
		}
		return nil, &ReasonError{Packet: "CONNACK", Code: p.code, Reason: p.reason, Server: ack.Properties.ServerReference}
	}
	if id := ack.Properties.AssignedClientID; id != "" {
		b.clientID = id // the session is under it
	}
	c.limits = b.limitsOf(ack)
	if c.limits.window == 0 {
		return nil, fmt.Errorf("protocol error: Receive Maximum is 0") // MQTT 5 §3.2.2.3.3
	}
	c.window = newWindow(c.limits.window, &b.out)
	c.aliases.most = c.limits.aliases
	if connect.CleanStart {
		c.limits.sessionPresent = false
	}
	if c.limits.sessionPresent {
		err = c.resumeSession(unsure)
	} else {
		err = c.beginSession(url)
	}
	if err != nil {
		return nil, err
	}
	c.number = b.session.Number
	b.inbox.begin(c, b.session.Inbound, !c.limits.sessionPresent)
	// Bytes are asked for by PINGREQ at 3/4 of keepalive at the latest, so a
	// silence of 5/4 means that nobody is there.
	ln.silence = c.limits.keepalive * 5 / 4
	ln.stall = c.limits.keepalive / 2
	return c, nil
}

func (b *Bridge) connectPacket() (*packets.Connect, error) {
	expiry := uint32(min(b.o.SessionExpiry/time.Second, math.MaxUint32-1)) // the largest is "never" (MQTT 5 §3.1.2.11.2)
	largest, most := uint32(maxInbound), uint16(maxInFlight)
	p := &packets.Connect{
		ProtocolName:    "MQTT",
		ProtocolVersion: 5,
		ClientID:        b.clientID,
		KeepAlive:       uint16(b.o.Keepalive / time.Second),
		UsernameFlag:    b.o.Username != "",
		Username:        b.o.Username,
		Properties:      &packets.Properties{SessionExpiryInterval: &expiry, MaximumPacketSize: &largest, ReceiveMaximum: &most},
	}
	if b.o.Password != nil {
		password, err := b.o.Password()
		if err != nil {
			return nil, fmt.Errorf("read password: %w", err)
		}
		p.PasswordFlag, p.Password = true, []byte(password)
	}
	if s := b.o.Presence; s != nil {
		p.WillFlag = true
		p.WillTopic, p.WillMessage = s.Topic, s.Payload(false, "connection lost", time.Time{})
		p.WillQOS, p.WillRetain = b.will.qos, b.will.retain
		p.WillProperties = &packets.Properties{}
	}
	return p, nil
}

func (b *Bridge) limitsOf(ack *packets.Connack) limits {
	p := ack.Properties
	l := limits{
		window:         b.o.Window,
		packet:         1 + 4 + maxRemaining,
		qos:            2,
		retain:         p.RetainAvailable == nil || *p.RetainAvailable == 1,
		keepalive:      b.o.Keepalive,
		sessionPresent: ack.SessionPresent,
		sessionExpiry:  b.o.SessionExpiry,
	}
	if p.SessionExpiryInterval != nil {
		l.sessionExpiry = min(l.sessionExpiry, time.Duration(*p.SessionExpiryInterval)*time.Second)
	}
	if p.ReceiveMaximum != nil {
		l.window = min(l.window, int(*p.ReceiveMaximum))
	}
	if p.MaximumPacketSize != nil {
		l.packet = int(min(*p.MaximumPacketSize, uint32(l.packet)))
	}
	if b.maxPacket > 0 {
		l.packet = min(l.packet, b.maxPacket)
	}
	if p.TopicAliasMaximum != nil {
		l.aliases = int(*p.TopicAliasMaximum)
	}
	if p.MaximumQOS != nil {
		l.qos = min(l.qos, *p.MaximumQOS)
	}
	if p.ServerKeepAlive != nil && *p.ServerKeepAlive > 0 { // 0 is that the upstream does not check
		l.keepalive = time.Duration(*p.ServerKeepAlive) * time.Second
	}
	return l
}
