package localbroker

import (
	"context"
	"strings"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
	"github.com/fieldferry/fieldferry/localbroker/topic"
)

// login lets the client in, or tells it why not.
func (c *conn) login(ctx context.Context) error {
	var first byte
	var err error
	for { // what is no CONNECT is not even read
		if first, err = c.reader.Header(); err == nil {
			break
		}
		if err = c.resume(ctx, err); err != nil {
			return err
		}
	}
	if packet.TypeOf(first) != packet.CONNECT { // [MQTT-3.1.0-1]
		return packet.Errorf(packet.ProtocolError, "%v before CONNECT", packet.TypeOf(first))
	}
	_, body, err := c.next(ctx)
	if err != nil {
		return err
	}
	var p packet.Connect
	err = p.Decode(body)
	c.version = p.Version
	if err == nil {
		err = c.admit(ctx, &p)
	}
	if err != nil && !c.connected {
		c.refuse(err)
	}
	return err
}

// refuse answers a CONNECT that is not accepted. A malformed one of 3.1.1 gets
// no answer, 3.1.1 §3.1.4.
func (c *conn) refuse(err error) {
	reason := packet.ReasonOf(err)
	var p packet.Connack
	switch {
	case c.version == packet.V5 || c.version > packet.V5 && c.version < 0x80:
		c.version = packet.V5
		p.Reason = reason
	case reason == packet.Malformed || reason == packet.ProtocolError:
		return
	default:
		c.version = packet.V311
		p.Reason = reason.ReturnCode()
	}
	c.mu.Lock()
	c.control = p.Append(c.control, c.version)
	c.mu.Unlock()
}

// admit takes over from an older connection of the client, and answers with CONNACK.
func (c *conn) admit(ctx context.Context, p *packet.Connect) error {
	limits := &c.b.limits
	s := &session{b: c.b, id: p.ClientID, conn: c, window: limits.ReceiveMaximum, subscriptions: make(map[string]*subscription)}
	assigned := s.id == ""
	switch {
	case len(s.id) > clientIDSize:
		return packet.Errorf(packet.ClientIDNotValid, "a client id of more than %d bytes", clientIDSize)
	case assigned && p.Version == packet.V311 && !p.CleanStart: // 3.1.1 [MQTT-3.1.3-8]
		return packet.Errorf(packet.ClientIDNotValid, "no client id, but a session to be kept")
	case assigned:
		s.id = newClientID()
	}
	if _, ok := p.Props.Bytes(packet.AuthMethod); ok {
		return packet.Errorf(packet.BadAuthenticationMethod, "enhanced authentication is not supported")
	}
	will, err := c.takeWill(p, s)
	if err != nil {
		return err
	}
	if s.rights, err = c.authenticate(ctx, p, s.id); err != nil {
		return err
	}
	if will != nil && s.rights != nil && !s.rights.MayPublish(will.Topic) {
		return packet.Errorf(packet.NotAuthorized, "its will may not be published to %s", will.Topic)
	}

	if n, ok := p.Props.Uint(packet.ReceiveMaximum); ok {
		s.window = min(s.window, int(n))
	}
	n, _ := p.Props.Uint(packet.MaximumPacketSize)
	c.maxPacket = int(n)
	keepalive := time.Duration(p.KeepAlive) * time.Second
	if keepalive == 0 || keepalive > limits.Keepalive {
		keepalive = limits.Keepalive
	}
	c.will = will
	c.publisher = new(publisher)
	if err := c.takeOver(ctx, s); err != nil {
		return err
	}

	var ack packet.Connack
	if p.Version == packet.V5 {
		ack.Props = c.capabilities(p, s.id, assigned, keepalive)
	}
	c.mu.Lock()
	c.control = ack.Append(c.control, c.version)
	c.mu.Unlock()
	c.connected = true
	c.keepalive = keepalive + keepalive/2 // [MQTT-3.1.2-22]
	c.reader.SetLimit(limits.PacketSize)
	c.reader.SetVersion(p.Version)
	c.b.log.Debug("client connected", "client", s.id, "address", c.nc.RemoteAddr().String(), "version", p.Version.String())
	return c.alive(ctx)
}

// capabilities are the properties of CONNACK: what the client may not take for granted.
func (c *conn) capabilities(p *packet.Connect, id string, assigned bool, keepalive time.Duration) packet.Properties {
	limits := &c.b.limits
	props := packet.Properties{}.
		AppendUint(packet.ReceiveMaximum, uint32(limits.ReceiveMaximum)).
		AppendUint(packet.MaximumQoS, 1).
		AppendUint(packet.MaximumPacketSize, uint32(limits.PacketSize)).
		AppendUint(packet.TopicAliasMaximum, uint32(limits.TopicAliases))
	if v, _ := p.Props.Uint(packet.SessionExpiry); v != 0 {
		props = props.AppendUint(packet.SessionExpiry, 0)
	}
	if assigned {
		props = props.AppendText(packet.AssignedClientID, id)
	}
	if seconds := uint32(keepalive / time.Second); seconds != uint32(p.KeepAlive) {
		props = props.AppendUint(packet.ServerKeepAlive, seconds)
	}
	return props
}

// takeWill makes the will into the message it will be.
func (c *conn) takeWill(p *packet.Connect, s *session) (*Message, error) {
	w := p.Will
	if w == nil {
		return nil, nil
	}
	if p.Version == packet.V5 && w.QoS > 1 { // §3.2.2.3.4
		return nil, packet.Errorf(packet.QoSNotSupported, "a will with QoS %d", w.QoS)
	}
	if err := topic.CheckName(w.Topic, c.b.limits.TopicLevels); err != nil {
		return nil, packet.Errorf(packet.TopicNameInvalid, "will: %v", err)
	}
	m := &Message{Topic: w.Topic, Payload: w.Payload, QoS: min(w.QoS, 1), Retain: w.Retain, Urgent: true, ClientID: s.id}
	// The session ends with its connection, so a will delay has no effect, §3.1.3.2.2.
	m.Props = w.Props.Without(packet.WillDelay, packet.MessageExpiry)
	if v, ok := w.Props.Uint(packet.MessageExpiry); ok {
		m.Expiry = expiryOf(v)
	}
	return m, nil
}

func (c *conn) authenticate(ctx context.Context, p *packet.Connect, id string) (Rights, error) {
	if c.b.options.Access == nil {
		if !c.listener.AllowAnonymous {
			return nil, packet.Errorf(packet.NotAuthorized, "listener %q lets nobody in without authentication, and there is none", c.listener.Name)
		}
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.b.limits.ConnectTimeout)
	defer cancel()
	rights, err := c.b.options.Access.Authenticate(ctx, &Login{
		Listener:    c.listener.Name,
		Remote:      c.nc.RemoteAddr(),
		Version:     p.Version,
		ClientID:    id,
		Username:    p.Username,
		HasUsername: p.HasUsername,
		Password:    p.Password,
		HasPassword: p.HasPassword,
	})
	if err != nil && packet.ReasonOf(err) == packet.Unspecified {
		err = packet.Errorf(packet.NotAuthorized, "%v", err)
	}
	return rights, err
}

// takeOver makes s the session of its client id. If an older connection has
// one it ends first, with its will, so that nothing of it comes after what the
// new connection does [MQTT-3.1.4-3].
func (c *conn) takeOver(ctx context.Context, s *session) error {
	b := c.b
	b.mu.Lock()
	old := b.sessions[s.id]
	if old == nil && len(b.sessions) >= b.limits.Clients {
		b.mu.Unlock()
		return packet.Errorf(packet.QuotaExceeded, "more than %d clients", b.limits.Clients)
	}
	b.sessions[s.id] = s
	highest := uint64(len(b.sessions))
	b.mu.Unlock()
	b.stats.clientsMaximum.raise(highest)
	c.session = s
	if old == nil {
		return nil
	}
	b.stats.takeovers.Add(1)
	old.conn.end(packet.Errorf(packet.SessionTakenOver, "another connection has the same client id"))
	<-old.conn.ended
	c.publisher = old.conn.publisher
	return context.Cause(ctx)
}

// publishWill sends the will, if the client did not take it back.
func (c *conn) publishWill(ctx context.Context) {
	if c.will == nil || !c.connected || c.session.rights != nil && !c.session.rights.MayPublish(c.will.Topic) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	m := &publish{Message: *c.will, c: c, gone: true}
	c.will = nil
	m.Received = time.Now()
	c.accept(ctx, m)
}

// ownTopic reports whether only the broker itself publishes to name.
func ownTopic(name string) bool { return strings.HasPrefix(name, "$SYS/") || name == "$SYS" }
