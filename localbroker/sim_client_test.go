package localbroker

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// The clients of TestSimulation. They keep the rules of both standards, and hold the
// broker to them.

// simClient is a client with all that it remembers.
type simClient struct {
	w       *simWorld
	id      string
	version packet.Version
	keeps   bool   // it asks for a session that outlives the connection
	expiry  uint32 // s
	window  int    // its Receive Maximum

	session  *simSession
	mayExist bool // the broker may have a session that the client does not know of
	unclean  bool // an attempt to begin anew is not answered yet
	got      map[int]int
	once     map[int]*simSession // in which it came with QoS 2 last

	// Of its session, on its side.
	out  []*simFlight           // publishes that are not settled, in order
	ops  map[uint16]*simOp      // SUBSCRIBE and UNSUBSCRIBE that are not answered
	ids  uint16                 // the last packet identifier that it gave
	recv map[uint16]*simArrival // QoS 2 messages it has, until their PUBREL

	// Of the connection.
	link      *simLink
	reader    *packet.Reader
	budget    int // bytes it reads
	attempt   simAttempt
	connected bool
	parting   bool // a DISCONNECT was sent that takes the will back
	most      int  // publishes that the broker takes at a time
	acks      []simAck
	manner    simManner
	incoming  map[uint16]byte // packet identifiers that the broker has in use, with their QoS
	aliases   map[uint16]string
	drained   time.Time // when nothing was under way to it
}

// simAttempt is a CONNECT.
type simAttempt struct {
	clean  bool
	expiry uint32
	at     time.Time
	will   *simWill
}

// simFlight is a publish on its way to the broker.
type simFlight struct {
	p        *simPublish
	id       uint16
	received bool     // PUBREC came
	on       *simLink // that it was sent on last
	released bool     // PUBREL was sent on it
}

// simOp is a SUBSCRIBE, or an UNSUBSCRIBE.
type simOp struct {
	at      int
	grants  []*simGrant // of a SUBSCRIBE
	filters []string
}

// simArrival is a QoS 2 message that came.
type simArrival struct {
	payload string
	topic   string
}

// simAck is an acknowledgement that was not sent yet.
type simAck struct {
	t  packet.Type
	id uint16
}

// simManner is how a client acknowledges.
type simManner int

const (
	simPrompt   simManner = iota
	simLate               // now and then, in order
	simShuffled           // now and then, out of order
	simNever
)

func newSimClient(w *simWorld, i int) *simClient {
	c := &simClient{
		w: w, id: fmt.Sprintf("c%d", i), version: packet.V5, keeps: w.dice.IntN(4) > 0,
		expiry: []uint32{3, 30, 3000}[w.dice.IntN(3)], window: 1 + w.dice.IntN(10), got: make(map[int]int), once: make(map[int]*simSession),
	}
	if w.one(2) {
		c.version = packet.V311
	}
	if c.version == packet.V311 {
		c.expiry = uint32(w.limits.SessionExpiry / time.Second)
		c.window = w.limits.ReceiveMaximum
	}
	if i == 0 { // the watcher
		c.version, c.keeps, c.expiry, c.window = packet.V5, true, 3600, 100
	}
	c.forget()
	return c
}

// forget is the end of the client's side of a session.
func (c *simClient) forget() {
	c.out, c.ops, c.recv = nil, make(map[uint16]*simOp), make(map[uint16]*simArrival)
}

// slack is how long something may have been under way to the client.
func (c *simClient) slack() time.Duration { return time.Since(c.drained) }

// connect begins a connection. One that the client has is left to itself.
func (c *simClient) connect() {
	w := c.w
	w.counts[simConnects]++
	if c.link != nil {
		w.counts[simTakeovers]++
		if !c.connected {
			w.settle() // or the older CONNECT might come after the newer
		}
		old := c.link
		switch w.dice.IntN(3) {
		case 0:
			w.strays = append(w.strays, old)
			if c.session != nil {
				c.session.stray = true
			}
		case 1:
			old.close()
		case 2:
			old.cut(w.dice.IntN(1 + old.up.underWay()))
		}
		c.lost()
	}
	a := simAttempt{at: time.Now()}
	p := packet.Connect{Version: c.version, ClientID: c.id}
	if c.keeps {
		a.expiry = c.expiry
	}
	switch {
	case c.unclean, !c.keeps && c.version == packet.V311:
		a.clean = true
	case !c.keeps:
		a.clean = w.one(2)
	case c != w.watcher:
		a.clean = w.one(8)
	}
	p.CleanStart = a.clean
	if c.version == packet.V5 {
		p.Props = p.Props.AppendUint(packet.ReceiveMaximum, uint32(c.window))
		if a.expiry > 0 {
			p.Props = p.Props.AppendUint(packet.SessionExpiry, a.expiry)
		}
		if w.one(2) {
			p.Props = p.Props.AppendUint(packet.TopicAliasMaximum, 3)
		}
	} else if a.clean {
		a.expiry = 0
	}
	a.will = w.newWill(c, &p)
	c.attempt = a
	if a.clean {
		c.unclean = true
		if c.session != nil {
			c.session.doubt = true
		}
	} else if s := c.session; s != nil {
		s.least, s.most = min(s.least, time.Duration(a.expiry)*time.Second), max(s.most, time.Duration(a.expiry)*time.Second)
	}
	c.link = w.net.dial([]int{200, 2000, 1 << 20}[w.dice.IntN(3)])
	c.reader = packet.NewReader(simSource{c}, new(packet.Blocks), packet.MaxLength)
	c.reader.SetVersion(c.version)
	c.manner = simManner(w.dice.IntN(4))
	if c == w.watcher {
		c.manner = simPrompt
	}
	c.incoming, c.aliases, c.acks, c.parting = make(map[uint16]byte), make(map[uint16]string), nil, false
	c.drained = time.Now()
	w.note("%s connects, clean %t, expiry %d", c.id, a.clean, a.expiry)
	c.link.write(p.Append(nil))
}

// simSource is what a client reads its packets from.
type simSource struct{ c *simClient }

func (s simSource) Read(p []byte) (int, error) {
	c := s.c
	if c.budget <= 0 {
		return 0, os.ErrDeadlineExceeded
	}
	n, err := c.link.Read(p[:min(len(p), c.budget)])
	c.budget -= n
	return n, err
}

// pump takes what has arrived, up to some bytes, and reports whether that was
// anything.
func (c *simClient) pump(bytes int) (any bool) {
	if c.link == nil {
		return false
	}
	c.budget = bytes
	for c.link != nil {
		first, body, err := c.reader.Next()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			c.w.note("%s: %v", c.id, err)
			c.lost()
			return true
		}
		any = true
		c.take(first, body)
	}
	if c.link != nil && c.connected && c.manner == simPrompt {
		c.acknowledge(len(c.acks), false)
	}
	return any
}

// arrive is pump for a client whose connection is about to be lost: it answers
// nothing any more.
func (c *simClient) arrive(bytes int) {
	if c.link != nil {
		c.manner = simNever
		c.pump(bytes)
	}
}

// cut loses the connection somewhere in between.
func (c *simClient) cut() {
	c.w.counts[simCuts]++
	c.link.cut(c.w.dice.IntN(1 + c.link.up.underWay()))
	if c.w.one(2) {
		c.arrive(c.w.dice.IntN(1 + c.link.down.underWay()))
	}
	c.lose()
}

// lose loses the connection, if there is one.
func (c *simClient) lose() {
	if c.link != nil {
		c.link.close()
		c.lost()
	}
}

// lost notes that there is no connection any more.
func (c *simClient) lost() {
	w := c.w
	w.note("%s has no connection", c.id)
	if !c.connected {
		w.maybeBack(c)
	}
	if will := c.attempt.will; will != nil {
		will.lost(c.parting)
	}
	clear(c.ops) // nobody will know
	at := c.link.ended()
	if s := c.session; s != nil {
		s.seen, s.leftIn = time.Now(), w.lifeNo
		if c.connected {
			s.left = at
		} else {
			s.ghost = s.ghost || c.attempt.expiry > 0 && !s.surely()
		}
		if c.connected && !s.kept {
			c.endSession()
		}
	}
	c.mayExist = c.mayExist || !c.connected && c.attempt.expiry > 0
	c.link, c.reader, c.connected, c.acks, c.attempt.will = nil, nil, false, nil, nil
}

// endSession notes that the broker has forgotten the session.
func (c *simClient) endSession() {
	if s := c.session; s != nil {
		c.w.counts[simEnded]++
		c.w.endShares(s)
		c.w.drops += max(s.drops, s.ledger)
		s.end()
	}
	c.session = nil
}

// disconnect says goodbye.
func (c *simClient) disconnect() {
	w := c.w
	w.settle()
	if c.link == nil || c.link.over() {
		return
	}
	p := packet.Disconnect{}
	withWill, d := false, time.Duration(-1)
	if c.version == packet.V5 {
		if withWill = w.one(4); withWill {
			p.Reason = packet.DisconnectWithWill
		}
		if s := c.session; s != nil && s.kept && c.attempt.expiry > 0 && w.one(3) && c != w.watcher {
			n := []uint32{0, 2, 100}[w.dice.IntN(3)]
			p.Props = p.Props.AppendUint(packet.SessionExpiry, n)
			d = time.Duration(n) * time.Second
			s.least, s.most = min(s.least, d), max(s.most, d)
			s.doubt = s.doubt || n == 0
			w.note("%s sets its expiry to %d", c.id, n)
		}
	}
	w.note("%s disconnects, with will %t", c.id, withWill)
	failures := w.machine.Failures()
	idle := len(c.out)+len(c.ops) == 0 // what fails before the goodbye ends the connection
	c.link.write(p.Append(nil, c.version, packet.DISCONNECT))
	if w.settle(); w.one(2) {
		time.Sleep(200 * time.Millisecond)
		w.settle()
	}
	if c.link.over() && !w.machine.Off() && idle { // the broker has read it
		if c.attempt.will != nil && !withWill {
			c.attempt.will.takeBack(w.machine.Failures() == failures)
			c.attempt.will = nil
		}
		if d >= 0 {
			c.session.most = d
		}
	}
	c.parting = !withWill
	c.arrive(1 << 20)
	c.lose()
}

// take handles a packet.
func (c *simClient) take(first byte, body []byte) {
	w, t := c.w, packet.TypeOf(first)
	if !c.connected && t != packet.CONNACK {
		w.fail("%s gets %v before CONNACK", c.id, t)
	}
	check := func(err error) {
		if err != nil {
			w.fail("%s: %v", c.id, err)
		}
	}
	switch t {
	case packet.CONNACK:
		var p packet.Connack
		check(p.Decode(c.version, body))
		c.takeConnack(&p)
	case packet.PUBLISH:
		var p packet.Publish
		check(p.Decode(c.version, first, body))
		c.takePublish(&p)
	case packet.PUBACK, packet.PUBREC, packet.PUBCOMP:
		var p packet.Ack
		check(p.Decode(c.version, t, body))
		c.takeAck(t, &p)
	case packet.PUBREL:
		var p packet.Ack
		check(p.Decode(c.version, t, body))
		delete(c.recv, p.PacketID)
		if q, ok := c.incoming[p.PacketID]; ok && q != 2 {
			w.fail("%s gets PUBREL %d, which has QoS %d", c.id, p.PacketID, q)
		}
		c.acks = append(c.acks, simAck{packet.PUBCOMP, p.PacketID})
	case packet.SUBACK, packet.UNSUBACK:
		var p packet.Suback
		check(p.Decode(c.version, t, body))
		c.takeSuback(t, &p)
	case packet.DISCONNECT:
		var p packet.Disconnect
		check(p.Decode(c.version, t, body))
		w.note("%s is told: %v %s", c.id, p.Reason, p.Props.Text(packet.ReasonString))
		switch p.Reason {
		case packet.SessionTakenOver, packet.ServerShuttingDown, packet.ImplementationSpecific, packet.QuotaExceeded:
		default:
			w.fail("%s is told %v %s", c.id, p.Reason, p.Props.Text(packet.ReasonString))
		}
	case packet.PINGRESP:
	default:
		w.fail("%s gets %v", c.id, t)
	}
}

func (c *simClient) takeConnack(p *packet.Connack) {
	w, a := c.w, &c.attempt
	if p.Reason != packet.Success {
		w.note("%s is not let in: %v", c.id, p.Reason)
		return // the connection ends
	}
	w.note("%s is let in, session present %t", c.id, p.SessionPresent)
	s := c.session
	known := s != nil // otherwise what the client remembers is of a session that has ended
	switch {
	case p.SessionPresent && a.clean:
		w.fail("%s has a session, and began anew", c.id)
	case p.SessionPresent && s == nil && !c.mayExist:
		w.fail("%s has a session that was never kept", c.id)
	case p.SessionPresent && s != nil && s.hardly(a.at):
		w.fail("%s has a session that ended %v ago", c.id, time.Since(s.left)-s.most)
	case !p.SessionPresent && !a.clean && s != nil && s.surely():
		w.fail("%s has no session, the one it left %v ago was to last for %v", c.id, time.Since(s.left), s.least)
	}
	c.connected, c.unclean, c.mayExist = true, false, false
	c.most = 65535
	expiry := time.Duration(a.expiry) * time.Second
	if c.version == packet.V5 {
		if n, ok := p.Props.Uint(packet.ReceiveMaximum); ok {
			c.most = int(n)
		}
		if n, ok := p.Props.Uint(packet.SessionExpiry); ok {
			expiry = time.Duration(n) * time.Second
		}
	}
	if p.SessionPresent {
		w.counts[simKept]++
		if s != nil && s.ghost {
			s.haunted()
		}
	} else {
		c.endSession()
		s = nil
	}
	if s == nil {
		s = &simSession{c: c, began: w.now(), owed: make(map[int]*simPublish), last: make(map[string]int), newest: make(map[string]int), replays: make(map[int]int)}
		c.session = s
	}
	s.kept, s.doubt, s.stray = expiry > 0, false, false
	s.least, s.most = expiry, expiry
	w.back(c, p.SessionPresent)
	if a.will != nil {
		a.will.armed = true
	}
	c.resend(known && p.SessionPresent)
}
