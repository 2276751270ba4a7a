package localbroker

import (
	"context"
	"math"
	"strings"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
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
	if err != nil && !c.connected && ctx.Err() == nil { // CONNACK has no words for a takeover
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

// admit takes over from an older connection of the client, finds or makes its
// session, and answers with CONNACK.
func (c *conn) admit(ctx context.Context, p *packet.Connect) error {
	limits := &c.b.limits
	id := p.ClientID
	assigned := id == ""
	switch {
	case len(id) > clientIDSize:
		return packet.Errorf(packet.ClientIDNotValid, "a client id of more than %d bytes", clientIDSize)
	case assigned && p.Version == packet.V311 && !p.CleanStart: // 3.1.1 [MQTT-3.1.3-8]
		return packet.Errorf(packet.ClientIDNotValid, "no client id, but a session to be kept")
	case assigned:
		id = newClientID()
	}
	if _, ok := p.Props.Bytes(packet.AuthMethod); ok {
		return packet.Errorf(packet.BadAuthenticationMethod, "enhanced authentication is not supported")
	}
	will, err := c.takeWill(p, id)
	if err != nil {
		return err
	}
	rights, err := c.authenticate(ctx, p, id)
	if err != nil {
		return err
	}
	if will != nil && rights != nil && !rights.MayPublish(will.m.Topic) {
		return packet.Errorf(packet.NotAuthorized, "its will may not be published to %s", will.m.Topic)
	}

	window := limits.ReceiveMaximum
	if n, ok := p.Props.Uint(packet.ReceiveMaximum); ok {
		window = min(window, int(n))
	}
	n, _ := p.Props.Uint(packet.MaximumPacketSize)
	c.maxPacket = int(n)
	n, _ = p.Props.Uint(packet.TopicAliasMaximum)
	c.maxAlias = uint16(min(n, uint32(limits.TopicAliases)))
	keepalive := time.Duration(p.KeepAlive) * time.Second
	if keepalive == 0 || keepalive > limits.Keepalive {
		keepalive = limits.Keepalive
	}
	c.asked, _ = p.Props.Uint(packet.SessionExpiry)
	if p.Version == packet.V311 && !p.CleanStart {
		c.asked = math.MaxUint32 // MQTT 5 §3.1.2.11.2
	}
	expiry := limits.expiry(c.asked)
	if c.b.options.State == nil {
		expiry = 0 // there is nowhere to keep it
	}

	if err := c.claim(ctx, id); err != nil {
		return err
	}
	present, err := c.begin(ctx, id, p.CleanStart, expiry > 0)
	if err != nil {
		return err
	}
	s := c.session
	c.b.publishDue(ctx, s, time.Now())
	s.setRights(rights)
	if err := c.moveIn(ctx, will, expiry); err != nil {
		return err
	}

	ack := packet.Connack{SessionPresent: present}
	if p.Version == packet.V5 {
		ack.Props = c.capabilities(p, id, assigned, keepalive, expiry)
	}
	c.mu.Lock()
	c.control = ack.Append(c.control, c.version)
	c.mu.Unlock()
	c.connected = true
	c.b.stats.connects.Add(1)
	c.b.stats.packetsOut.Add(1)
	c.keepalive = keepalive + keepalive/2 // [MQTT-3.1.2-22]
	c.reader.SetLimit(limits.PacketSize)
	c.reader.SetVersion(p.Version)
	c.b.log.Debug("client connected", "client", id, "address", c.nc.RemoteAddr().String(), "version", p.Version.String(), "session", present)
	if err := s.attach(c, window); err != nil {
		return packet.Errorf(packet.ImplementationSpecific, "the session cannot be read: %v", err)
	}
	c.wake()
	return c.alive(ctx)
}

// capabilities are the properties of CONNACK: what the client may not take for granted.
func (c *conn) capabilities(p *packet.Connect, id string, assigned bool, keepalive, expiry time.Duration) packet.Properties {
	limits := &c.b.limits
	props := packet.Properties{}.
		AppendUint(packet.ReceiveMaximum, uint32(limits.ReceiveMaximum)).
		AppendUint(packet.MaximumPacketSize, uint32(limits.PacketSize)).
		AppendUint(packet.TopicAliasMaximum, uint32(limits.TopicAliases))
	if seconds := uint32(expiry / time.Second); seconds != c.asked {
		props = props.AppendUint(packet.SessionExpiry, seconds)
	}
	if assigned {
		props = props.AppendText(packet.AssignedClientID, id)
	}
	if seconds := uint32(keepalive / time.Second); seconds != uint32(p.KeepAlive) {
		props = props.AppendUint(packet.ServerKeepAlive, seconds)
	}
	return props
}

func (c *conn) authenticate(ctx context.Context, p *packet.Connect, id string) (Rights, error) {
	user, verified, err := c.user()
	if err != nil {
		return nil, err
	}
	if c.b.options.Access == nil {
		if !c.listener.AllowAnonymous && c.identity == nil {
			return nil, packet.Errorf(packet.NotAuthorized, "listener %q lets nobody in without authentication, and there is none", c.listener.Name)
		}
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.b.limits.ConnectTimeout)
	defer cancel()
	if verified {
		p.Username, p.HasUsername = user, true
	}
	rights, err := c.b.options.Access.Authenticate(ctx, &Login{
		Listener:    c.listener.Name,
		Remote:      c.nc.RemoteAddr(),
		Version:     p.Version,
		ClientID:    id,
		Username:    p.Username,
		HasUsername: p.HasUsername,
		Password:    p.Password,
		HasPassword: p.HasPassword,
		Certificate: c.identity != nil,
		Verified:    verified,
	})
	if err == nil {
		c.username = p.Username
	}
	if err != nil && packet.ReasonOf(err) == packet.Unspecified {
		err = packet.Errorf(packet.NotAuthorized, "%v", err)
	}
	return rights, err
}

// claim makes c the only connection of a client id. An older one ends first, with
// its will if that is due, so that nothing of it comes after what the new connection
// does [MQTT-3.1.4-3].
func (c *conn) claim(ctx context.Context, id string) error {
	b := c.b
	b.mu.Lock()
	prev := b.claims[id]
	if prev == nil && len(b.claims) >= b.limits.Clients {
		b.mu.Unlock()
		return packet.Errorf(packet.QuotaExceeded, "more than %d clients", b.limits.Clients)
	}
	b.claims[id] = c
	c.claimed = id
	highest := uint64(len(b.claims))
	b.mu.Unlock()
	b.stats.clientsMaximum.raise(highest)
	if prev != nil {
		b.stats.takeovers.Add(1)
		prev.end(packet.Errorf(packet.SessionTakenOver, "another connection has the same client id"))
		<-prev.ended
		c.publisher = prev.publisher
	}
	return context.Cause(ctx) // another one may have come meanwhile
}

// unclaim lets the next connection of the client id begin.
func (c *conn) unclaim() {
	b := c.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.claims[c.claimed] == c {
		delete(b.claims, c.claimed)
	}
}

// begin gives the connection its session: the one there is, or a new one, which is
// kept or not. The client id is claimed.
func (c *conn) begin(ctx context.Context, id string, clean, keep bool) (present bool, err error) {
	b := c.b
	b.mu.Lock()
	s := b.sessions[id]
	b.mu.Unlock()
	if s != nil && (clean || s.expired(time.Now())) {
		if err := b.endSession(ctx, s); err != nil {
			return false, notStored(ctx, "the end of the earlier session", err)
		}
		s = nil
	}
	c.resumes = s != nil
	if !c.resumes {
		if s, err = b.newSession(id, keep); err != nil {
			return false, err
		}
	}
	if c.publisher == nil {
		c.publisher = s.publisher
	}
	s.publisher = c.publisher
	c.session = s
	return c.resumes, nil
}

// moveIn makes durable that the session has its client, and the will of the connection,
// or none, in the place of an earlier one.
func (c *conn) moveIn(ctx context.Context, w *will, expiry time.Duration) error {
	b, s := c.b, c.session
	s.mu.Lock()
	earlier := s.will
	s.mu.Unlock()
	c.will = w
	if st := b.options.State; st != nil {
		var changes []change
		if s.kept != nil {
			changes = append(changes, s.change(expiry, false))
		}
		switch {
		case w != nil:
			w.id = newSessionID()
			changes = append(changes, w.change(s.id))
		case earlier != nil:
			changes = append(changes, noWill(s.id, earlier.id))
		}
		if err := st.store(ctx, changes...); err != nil {
			return notStored(ctx, "the session or its will", err)
		}
	}
	if s.kept != nil {
		s.kept.expiry = expiry
	}
	return nil
}

// notStored is the end of a connection for which something could not be stored.
func notStored(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil { // nobody waits for it any more
		return context.Cause(ctx)
	}
	return packet.Errorf(refusal(err), "%s could not be stored: %v", what, err)
}

// newSession makes a session for a client id that has none.
func (b *Broker) newSession(id string, keep bool) (*session, error) {
	s := &session{b: b, id: strings.Clone(id), subscriptions: make(map[string]*subscription), publisher: new(publisher)}
	if keep {
		s.kept = &kept{s: s, id: newSessionID()}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if keep && len(b.sessions) >= 2*b.limits.Clients {
		return nil, packet.Errorf(packet.QuotaExceeded, "more than %d sessions", 2*b.limits.Clients)
	}
	b.sessions[s.id] = s
	return s, nil
}

// ownTopic reports whether only the broker itself publishes to name.
func ownTopic(name string) bool { return strings.HasPrefix(name, "$SYS/") || name == "$SYS" }
