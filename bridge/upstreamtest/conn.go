package upstreamtest

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// conn is one connection. Its goroutine reads; a second one writes, so that a
// client that does not read cannot stop the reading.
type conn struct {
	s      *Server
	n      int // which, from 0
	nc     net.Conn
	script Script
	closed chan struct{} // when the connection is

	keepalive time.Duration
	session   *session
	began     bool // this connection began it
	aliases   map[uint16]string
	unacked   map[uint16]bool // the reader's and, through release, the test's: guarded by mu

	mu    sync.Mutex // guards what follows, and unacked
	held  []Publish
	out   []byte
	last  bool          // close when out is written
	mute  bool          // write no more
	ready chan struct{} // out, last or mute changed
}

func newConn(s *Server, nc net.Conn, n int, script Script) *conn {
	c := &conn{s: s, n: n, script: script, closed: make(chan struct{}), unacked: map[uint16]bool{}, ready: make(chan struct{}, 1)}
	c.nc = &cutter{Conn: nc, in: script.CutReceived, out: script.CutSent, closed: c.closed}
	return c
}

// cutter closes the connection at a byte.
type cutter struct {
	net.Conn
	in, out int // bytes until the cut, 0 for none
	once    sync.Once
	closed  chan struct{}
}

func (c *cutter) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

func (c *cutter) Read(p []byte) (int, error) {
	if c.in == 0 {
		return c.Conn.Read(p)
	}
	n, err := c.Conn.Read(p[:min(len(p), c.in)])
	if c.in -= n; c.in == 0 && n > 0 {
		c.Close()
	}
	return n, err
}

func (c *cutter) Write(p []byte) (int, error) {
	if c.out == 0 {
		return c.Conn.Write(p)
	}
	n, err := c.Conn.Write(p[:min(len(p), c.out)])
	if c.out -= n; c.out == 0 && n > 0 {
		c.Close()
	}
	return n, err
}

func (c *conn) run() {
	var wg sync.WaitGroup
	wg.Go(c.write)
	c.read()
	c.nc.Close()
	wg.Wait()
}

func (c *conn) write() {
	for {
		c.mu.Lock()
		out, last, mute := c.out, c.last, c.mute
		c.out = nil
		c.mu.Unlock()
		if len(out) > 0 && !mute {
			if _, err := c.nc.Write(out); err != nil {
				return
			}
		}
		if last {
			c.nc.Close()
			return
		}
		select {
		case <-c.ready:
		case <-c.closed:
			return
		}
	}
}

// send queues packets; with last the connection is closed behind them.
func (c *conn) send(last bool, list ...io.WriterTo) {
	var b bytes.Buffer
	for _, p := range list {
		p.WriteTo(&b) // a bytes.Buffer takes all
	}
	c.mu.Lock()
	c.out = append(c.out, b.Bytes()...)
	c.last = c.last || last
	c.mu.Unlock()
	select {
	case c.ready <- struct{}{}:
	default:
	}
}

func (c *conn) disconnect(code byte) {
	c.send(true, &packets.Disconnect{ReasonCode: code, Properties: &packets.Properties{ServerReference: c.script.Server}})
}

// counter counts what is taken out of a bufio.Reader.
type counter struct {
	*bufio.Reader
	n int
}

func (r *counter) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.n += n
	return n, err
}

func (c *conn) read() {
	r := &counter{Reader: bufio.NewReader(c.nc)}
	first, err := packets.ReadPacket(r)
	if err != nil {
		return
	}
	connect, ok := first.Content.(*packets.Connect)
	if !ok {
		c.s.violation(c.n, "%s before CONNECT", first.PacketType())
		return
	}
	if !c.connect(connect) {
		io.Copy(io.Discard, r)
		return
	}
	for {
		r.n = 0
		if c.keepalive > 0 {
			c.nc.SetReadDeadline(time.Now().Add(c.keepalive * 3 / 2)) // MQTT 5 §3.1.2.10
		}
		if head, _ := r.Peek(2); bytes.Equal(head, []byte{packets.DISCONNECT << 4, 0}) { // MQTT 5 §3.14.2.1: code 0; packets calls it EOF
			c.s.update(func() { c.s.connects[c.n].Goodbye = true })
			return
		}
		p, err := packets.ReadPacket(r)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.s.violation(c.n, "nothing for 1.5 × keepalive")
			return
		}
		if err != nil {
			return
		}
		if c.began {
			c.s.update(func() { c.session.met = true })
		}
		switch p := p.Content.(type) {
		case *packets.Publish:
			if !c.publish(p, r.n) {
				c.nc.SetReadDeadline(time.Time{})
				io.Copy(io.Discard, r)
				return
			}
		case *packets.Pingreq:
			c.s.update(func() { c.s.connects[c.n].Pings++ })
			c.send(false, &packets.Pingresp{})
		case *packets.Puback:
			c.answered(packets.PUBACK, p.PacketID, p.ReasonCode)
		case *packets.Pubrec:
			c.answered(packets.PUBREC, p.PacketID, p.ReasonCode)
		case *packets.Pubcomp:
			c.answered(packets.PUBCOMP, p.PacketID, p.ReasonCode)
		case *packets.Subscribe:
			c.subscribe(p)
		case *packets.Pubrel:
			if !c.pubrel(p.PacketID) {
				c.nc.SetReadDeadline(time.Time{})
				io.Copy(io.Discard, r)
				return
			}
		case *packets.Disconnect:
			c.s.update(func() {
				c.s.connects[c.n].Goodbye = p.ReasonCode == 0
				if e := p.Properties.SessionExpiryInterval; e != nil && *e == 0 {
					c.s.end(c.session)
				}
			})
			return
		default:
			c.s.violation(c.n, "packet of type %T", p)
		}
	}
}

// connect answers CONNECT. It reports false if nothing more is to be said.
func (c *conn) connect(p *packets.Connect) bool {
	limits := c.script.Limits
	id := p.ClientID
	var present bool
	c.s.update(func() {
		c.s.connects[c.n].Packet = p
		if id == "" {
			id = "assigned"
			limits.AssignedClientID = id
		}
		if c.script.Code >= 0x80 {
			return
		}
		present = c.s.sessions[id] != nil && !p.CleanStart && !c.script.LoseSession
		if !present {
			c.s.begun++
			c.s.sessions[id] = &session{n: c.s.begun, half: map[uint16]*Publish{}}
		}
		c.session, c.began = c.s.sessions[id], !present
	})
	if c.script.Mute {
		return false
	}
	refused := c.script.Code >= 0x80
	if refused {
		limits.ServerReference = c.script.Server
	}
	c.send(refused, &packets.Connack{ReasonCode: c.script.Code, SessionPresent: present, Properties: &limits})
	if refused {
		return false
	}
	c.keepalive = time.Duration(p.KeepAlive) * time.Second
	if k := limits.ServerKeepAlive; k != nil {
		c.keepalive = time.Duration(*k) * time.Second
	}
	c.s.update(func() {
		c.session.conn = c
		c.session.resend()
	})
	if c.script.Disconnect != 0 {
		c.disconnect(c.script.Disconnect)
		return false
	}
	return true
}

// publish records a PUBLISH and answers it. It reports false if nothing more is to
// be said.
func (c *conn) publish(p *packets.Publish, size int) bool {
	rec := Publish{
		Conn: c.n, At: time.Now(), Topic: p.Topic, Payload: string(p.Payload), QoS: p.QoS, Dup: p.Duplicate,
		Retain: p.Retain, ID: p.PacketID, Expiry: p.Properties.MessageExpiry, User: p.Properties.User, Size: size,
	}
	c.alias(&rec, p.Properties.TopicAlias)
	c.check(&rec)
	if c.script.Publish != nil {
		rec.Answer = c.script.Publish(rec)
	}
	if rec.Answer.Do == Hold { // before the record shows it, so that Release finds it
		c.mu.Lock()
		c.held = append(c.held, rec)
		c.mu.Unlock()
	}
	c.s.update(func() {
		if p.QoS == 2 && rec.Answer.Do == Ack && rec.Answer.Code >= 0x80 && c.session.half[p.PacketID] != nil {
			rec.Answer.Code = 0 // it has the message already
		}
		c.s.publishes = append(c.s.publishes, rec)
		if rec.Taken() {
			c.take(&rec)
		}
	})
	switch rec.Answer.Do {
	case Ack:
		c.ack(rec)
	case Inject:
		c.inject()
		c.ack(rec)
	}
	return c.goOn(rec.Answer)
}

// goOn does what an answer asks for beside an acknowledgement. It reports false if
// nothing more is to be said.
func (c *conn) goOn(a Answer) bool {
	switch a.Do {
	case Cut:
		c.nc.Close()
	case Disconnect:
		c.disconnect(a.Code)
	case Freeze:
		c.stop()
		<-c.closed
	case Swallow:
		c.stop()
	default:
		return true
	}
	return false
}

// take delivers a message that was taken. c.s.mu is held.
func (c *conn) take(p *Publish) {
	if p.QoS == 2 {
		if _, again := c.session.half[p.ID]; again {
			if c.script.InUse {
				p.Answer.Code = 0x91
			}
			return
		}
		half := *p
		c.session.half[p.ID] = &half
		if c.script.AtRelease {
			return
		}
	}
	c.deliver(p)
}

// deliver is called with c.s.mu held.
func (c *conn) deliver(p *Publish) {
	c.s.delivered = append(c.s.delivered, Delivered{p.Payload, p.Topic, p.QoS, c.session.n, !c.session.met})
}

// pubrel ends a QoS 2 flow. It reports false if nothing more is to be said.
func (c *conn) pubrel(id uint16) bool {
	var a Answer
	if c.script.Pubrel != nil {
		a = c.script.Pubrel(id)
	}
	if (a.Do == Ack || a.Do == Hold) && a.Code < 0x80 {
		known := false
		c.s.update(func() {
			var p *Publish
			if p, known = c.session.half[id]; known && c.script.AtRelease {
				c.deliver(p)
			}
			delete(c.session.half, id)
		})
		if !known && !c.script.Lenient {
			a.Code = 0x92
		}
	}
	if a.Do == Ack {
		c.mu.Lock()
		delete(c.unacked, id)
		c.mu.Unlock()
		if a.Code == 0 { // in its short form (MQTT 5 §3.7.2.1)
			c.send(false, bytes.NewReader([]byte{packets.PUBCOMP << 4, 2, byte(id >> 8), byte(id)}))
			return true
		}
		c.send(false, &packets.Pubcomp{PacketID: id, ReasonCode: a.Code, Properties: &packets.Properties{}})
	}
	return c.goOn(a)
}

// alias finds the topic that an alias stands for (MQTT 5 §3.3.2.3.4).
func (c *conn) alias(p *Publish, alias *uint16) {
	if alias == nil {
		if p.Topic == "" {
			c.s.violation(c.n, "%s: neither topic nor alias", p.Payload)
		}
		return
	}
	p.Alias = *alias
	if most := c.script.Limits.TopicAliasMaximum; *alias == 0 || most == nil || *alias > *most {
		c.s.violation(c.n, "%s: alias %d", p.Payload, *alias)
	}
	if p.Topic == "" {
		if p.Topic = c.aliases[*alias]; p.Topic == "" {
			c.s.violation(c.n, "%s: alias %d is of no topic", p.Payload, *alias)
		}
		return
	}
	if c.aliases == nil {
		c.aliases = map[uint16]string{}
	}
	c.aliases[*alias] = p.Topic
}

// inject sends messages that nobody asked for, and acknowledgements of messages
// that were never sent.
func (c *conn) inject() {
	none := &packets.Properties{}
	c.send(false,
		&packets.Publish{Topic: "nobody/asked", QoS: 0, Properties: none},
		&packets.Publish{Topic: "nobody/asked", QoS: 1, PacketID: 60_001, Properties: none},
		&packets.Publish{Topic: "nobody/asked", QoS: 2, PacketID: 60_002, Properties: none},
		&packets.Pubrel{PacketID: 60_003, Properties: none},
		&packets.Puback{PacketID: 1, ReasonCode: 0x87, Properties: none},
		&packets.Puback{PacketID: 60_000, ReasonCode: 0x97, Properties: none},
		&packets.Pubrec{PacketID: 40_000, Properties: none},
		&packets.Pubcomp{PacketID: 40_000, Properties: none},
	)
}

// sendOut sends a message to the client. c.s.mu is held.
func (c *conn) sendOut(o *outgoing) {
	if o.received {
		c.send(false, &packets.Pubrel{PacketID: o.id, Properties: &packets.Properties{}})
		return
	}
	p := &packets.Publish{Topic: o.Topic, Payload: []byte(o.Payload), QoS: o.QoS, Retain: o.Retain, PacketID: o.id, Duplicate: o.sent, Properties: &packets.Properties{User: o.User}}
	if o.Expiry > 0 {
		p.Properties.MessageExpiry = &o.Expiry
	}
	o.sent = true
	c.send(false, p)
}

// answered takes the client's answer to a message of Send, or to one of Inject.
func (c *conn) answered(kind byte, id uint16, code byte) {
	found := false
	c.s.update(func() {
		for i, o := range c.session.out {
			if o.id != id {
				continue
			}
			found = true
			if kind == packets.PUBREC && code < 0x80 {
				o.received = true
				c.sendOut(o)
				return
			}
			c.session.out = slices.Delete(c.session.out, i, i+1)
			return
		}
	})
	if !found || code >= 0x80 {
		c.refused(code)
	}
}

func (c *conn) subscribe(p *packets.Subscribe) {
	ack := &packets.Suback{PacketID: p.PacketID, Properties: &packets.Properties{}}
	c.s.update(func() {
		for _, sub := range p.Subscriptions {
			c.session.filters = append(c.session.filters, sub.Topic)
			ack.Reasons = append(ack.Reasons, sub.QoS)
		}
	})
	c.send(false, ack)
}

func (c *conn) refused(code byte) {
	c.s.update(func() {
		r := &c.s.connects[c.n].Refused
		*r = append(*r, code)
	})
}

func (c *conn) stop() {
	c.mu.Lock()
	c.mute = true
	c.mu.Unlock()
}

// check notes what the client must not have done.
func (c *conn) check(p *Publish) {
	l := c.script.Limits
	if l.MaximumPacketSize != nil && p.Size > int(*l.MaximumPacketSize) {
		c.s.violation(c.n, "%s: packet of %d bytes", p.Payload, p.Size)
	}
	if l.MaximumQOS != nil && p.QoS > *l.MaximumQOS {
		c.s.violation(c.n, "%s: QoS %d", p.Payload, p.QoS)
	}
	if l.RetainAvailable != nil && *l.RetainAvailable == 0 && p.Retain {
		c.s.violation(c.n, "%s: retained", p.Payload)
	}
	if p.QoS == 0 {
		if p.Dup {
			c.s.violation(c.n, "%s: DUP with QoS 0", p.Payload) // MQTT 5 §3.3.1.1
		}
		return
	}
	c.mu.Lock()
	used := c.unacked[p.ID]
	c.unacked[p.ID] = true
	unacked := len(c.unacked)
	c.mu.Unlock()
	if used || p.ID == 0 {
		c.s.violation(c.n, "%s: packet id %d in use", p.Payload, p.ID)
	}
	if l.ReceiveMaximum != nil && unacked > int(*l.ReceiveMaximum) {
		c.s.violation(c.n, "%s: %d unacknowledged", p.Payload, unacked)
	}
}

func (c *conn) ack(p Publish) {
	if p.QoS == 0 {
		return
	}
	kind, taken := byte(packets.PUBACK), p.Answer.Code < 0x80 || p.Answer.Code == 0x91 && c.script.InUse
	if p.QoS == 2 {
		kind = packets.PUBREC
	}
	if p.QoS == 1 || !taken {
		c.mu.Lock()
		delete(c.unacked, p.ID)
		c.mu.Unlock()
	}
	ack := []byte{kind << 4, 2, byte(p.ID >> 8), byte(p.ID)} // in its short form (MQTT 5 §3.4.2.1)
	if p.Answer.Code != 0 {
		ack = []byte{kind << 4, 3, byte(p.ID >> 8), byte(p.ID), p.Answer.Code}
	}
	if p.QoS == 2 && c.script.Repeat {
		ack = append(ack, ack...)
	}
	c.send(false, bytes.NewReader(ack))
}

func (c *conn) release() {
	c.mu.Lock()
	held := c.held
	c.held = nil
	c.mu.Unlock()
	for _, p := range held {
		c.ack(p)
	}
}
