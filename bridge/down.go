package bridge

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/fieldferry/fieldferry/buffer"
)

// Downward is what comes from the upstream, and where it goes.
type Downward struct {
	Filters []Filter

	// Deliver takes a message. r, which must not block, is told once when it is durable
	// or not to be kept, or that it failed; with an error it is told nothing. Messages
	// are given one at a time, in the order in which they came. One with QoS 2 is given
	// once, also over a crash, if its Copy is appended in the record that makes it
	// durable.
	Deliver func(ctx context.Context, m *Inbound, r buffer.Receipt) error

	// Taken is what remembers those over a restart; nil does not.
	Taken *Taken
}

// Filter is a subscription at the upstream.
type Filter struct {
	Topic string // filter
	QoS   byte
}

// Inbound is a message from the upstream. Its bytes are not used again.
type Inbound struct {
	Topic   string // upstream's
	Payload []byte
	Props   []byte // as those of a buffer.Message
	QoS     byte
	Retain  bool          // it is a retained one, or was published so
	Expiry  time.Duration // from now; 0 is never

	// Copy is the copy that belongs into the record of this message, for the class that
	// it has; nil if there is none.
	Copy func(buffer.Class) buffer.Copy
}

const (
	idSubscribe = 2
	maxInFlight = 64  // announced as our Receive Maximum
	maxWaiting  = 256 // messages with QoS 0 beyond half of that are lost
)

// inbox is what is known of messages with QoS 1 and 2 that the upstream has sent and
// not released. It outlives the connection.
type inbox struct {
	mu   sync.Mutex // guards what follows
	conn *conn      // that answers
	// By id, what came with QoS 2 and was not released.
	ids   map[uint16]*arrival
	queue []*arrival // to be answered in this order [MQTT-4.6.0-2], [MQTT-4.6.0-3]
	freed []uint16   // for the committer: what is to be noted before the answer goes
}

// arrival is a message from the upstream.
type arrival struct {
	id     uint16
	qos    byte
	ended  bool // it was stored or refused
	code   byte // of the answer
	queued bool // in the queue of the connection
}

// begin empties the inbox of a new session, or has it go on with another connection.
func (in *inbox) begin(c *conn, known []uint16, fresh bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.conn, in.queue, in.freed = c, nil, nil
	if in.ids == nil || fresh {
		in.ids = make(map[uint16]*arrival)
		for _, id := range known {
			in.ids[id] = &arrival{id: id, qos: 2, ended: true}
		}
	}
	for _, a := range in.ids {
		a.queued = false
	}
}

// subscribe asks the upstream for what is to come down.
func (c *conn) subscribe() error {
	p := packets.Subscribe{PacketID: idSubscribe, Properties: &packets.Properties{}}
	for _, f := range c.b.filters() {
		// Retained messages come with a new subscription only; ours never.
		p.Subscriptions = append(p.Subscriptions, packets.SubOptions{Topic: f.Topic, QoS: f.QoS, NoLocal: true, RetainAsPublished: true, RetainHandling: 1})
	}
	if c.b.o.Canary != "" {
		p.Subscriptions = append(p.Subscriptions, c.canaryFilter())
	}
	if len(p.Subscriptions) == 0 {
		return nil
	}
	_, err := p.WriteTo(c.w)
	return err
}

// filters are those of what is to come down.
func (b *Bridge) filters() []Filter {
	if b.o.Down == nil {
		return nil
	}
	return b.o.Down.Filters
}

func (c *conn) subscribed(p *packets.Suback) {
	filters := c.b.filters()
	for i, code := range p.Reasons {
		switch {
		case i == len(filters) && c.b.o.Canary != "":
			c.canarySubscribed(code)
		case code >= codeRefused && i < len(filters):
			c.b.log.Error("upstream refused a subscription: nothing comes down for it", "filter", filters[i].Topic, "reason", refusal(code, ""))
		}
	}
}

// arrived takes a message from the upstream.
func (c *conn) arrived(p *packets.Publish) error {
	if c.canaryCame(p) {
		return nil
	}
	if c.b.o.Down == nil {
		return c.decline(p)
	}
	m := &Inbound{Topic: p.Topic, Payload: p.Payload, Props: appendInbound(nil, p.Properties), QoS: p.QoS, Retain: p.Retain}
	if e := p.Properties.MessageExpiry; e != nil {
		m.Expiry = max(time.Duration(*e)*time.Second, 1)
	}
	if p.QoS == 0 {
		if len(c.down) < maxWaiting/2 {
			c.down <- delivery{m, &arrival{}}
		} else {
			c.b.lostDown.Add(1)
		}
		return nil
	}
	in := &c.b.inbox
	in.mu.Lock()
	a, again := in.ids[p.PacketID]
	again = again && p.QoS == 2
	if !again {
		a = &arrival{id: p.PacketID, qos: p.QoS}
		if p.QoS == 2 {
			in.ids[p.PacketID] = a
		}
	}
	if !a.queued {
		a.queued = true
		in.queue = append(in.queue, a)
	}
	in.answer()
	in.mu.Unlock()
	if !again {
		if t := c.b.taken(); t != nil && p.QoS == 2 {
			number, id := c.number, a.id
			m.Copy = func(class buffer.Class) buffer.Copy { return t.copyFor(class, number, id) }
		}
		// Mosquitto 2.0 counts a QoS 2 message as done at its PUBREC, and sends more than
		// our Receive Maximum. So what is too much waits in the socket.
		select {
		case c.down <- delivery{m, a}:
		case <-c.over:
			in.forget(a)
		}
	}
	return nil
}

// delivery is a message on its way to where it goes.
type delivery struct {
	m *Inbound
	a *arrival
}

// deliver hands over what came down, until the connection ends.
func (c *conn) deliverDown(ctx context.Context) {
	for {
		select {
		case d := <-c.down:
			c.b.cameDown.Add(1)
			if err := c.b.o.Down.Deliver(ctx, d.m, stored{c.b, d.a}); err != nil {
				stored{c.b, d.a}.Stored(err)
			}
		case <-ctx.Done():
			c.abandon()
			return
		}
	}
}

// abandon forgets what was not handed over: the upstream sends it again.
func (c *conn) abandon() {
	in := &c.b.inbox
	in.mu.Lock()
	defer in.mu.Unlock()
	for {
		select {
		case d := <-c.down:
			in.forgetLocked(d.a)
		default:
			return
		}
	}
}

// forget forgets a message that was not handed over, or whose fate is not known: when it
// comes again, it is taken for a new one.
func (in *inbox) forget(a *arrival) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.forgetLocked(a)
}

func (in *inbox) forgetLocked(a *arrival) {
	if in.ids[a.id] == a {
		delete(in.ids, a.id)
	}
}

// stored is the receipt of a message that came down.
type stored struct {
	b *Bridge
	a *arrival
}

// Stored has the upstream told, after all that came before.
func (s stored) Stored(err error) {
	if err != nil {
		s.b.log.Warn("message from the upstream was not taken", "error", err)
		s.b.refusedDown.Add(1)
	}
	if s.a.qos == 0 {
		return
	}
	in := &s.b.inbox
	in.mu.Lock()
	c := in.conn
	switch {
	case errors.Is(err, buffer.ErrFailed), errors.Is(err, buffer.ErrClosed), errors.Is(err, context.Canceled):
		// It may be there after a crash all the same, with its id. So it is neither
		// refused nor taken: the upstream sends it again on another connection.
		in.forgetLocked(s.a)
		in.mu.Unlock()
		if c != nil {
			c.line.Close()
		}
		return
	case errors.Is(err, buffer.ErrFull):
		s.a.code = codeQuotaExceeded
	case err != nil:
		s.a.code = codeImplementation
	}
	s.a.ended = true
	if s.a.code != 0 {
		in.forgetLocked(s.a)
	}
	in.answer()
	in.mu.Unlock()
	if c != nil {
		c.wakeWriter()
	}
}

// answer answers what has ended, in order. in.mu is held.
func (in *inbox) answer() {
	for len(in.queue) > 0 && in.queue[0].ended {
		a := in.queue[0]
		in.queue = in.queue[1:]
		a.queued = false
		kind := byte(packets.PUBACK)
		if a.qos == 2 {
			kind = packets.PUBREC
		}
		in.conn.owe(kind, a.id, a.code)
	}
}

// freed takes a PUBREL.
func (c *conn) freed(id uint16) error {
	in := &c.b.inbox
	in.mu.Lock()
	defer in.mu.Unlock()
	if c.b.o.Down == nil || in.ids[id] == nil {
		return c.owe(packets.PUBCOMP, id, codeIDNotFound)
	}
	in.freed = append(in.freed, id)
	c.recs = true
	return nil
}

// commitDown notes that messages are released before the upstream is told. It
// reports false if the connection ended.
func (c *conn) commitDown(ctx context.Context) bool {
	in := &c.b.inbox
	in.mu.Lock()
	freed := in.freed
	in.freed = nil
	in.mu.Unlock()
	if len(freed) == 0 {
		return true
	}
	for {
		err := c.b.release(freed)
		if err == nil {
			break
		}
		c.b.log.Error("what the upstream has released could not be noted; it waits", "error", err)
		if !sleep(ctx, retryDisk) {
			return false
		}
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, id := range freed {
		delete(in.ids, id)
		c.owe(packets.PUBCOMP, id, 0)
	}
	c.wakeWriter()
	return true
}

// release makes durable that ids mean nothing any more: a message that comes with one
// of them is another one.
func (b *Bridge) release(ids []uint16) error {
	t := b.taken()
	if t == nil {
		return nil
	}
	// Their copies first, which were there before they were released.
	if err := t.addTo(&b.session); err != nil {
		return err
	}
	b.session.Inbound = slices.DeleteFunc(b.session.Inbound, func(id uint16) bool { return slices.Contains(ids, id) })
	return b.saveSession()
}

// appendInbound appends the properties that go with a message, as on the wire.
func appendInbound(dst []byte, p *packets.Properties) []byte {
	if p.PayloadFormat != nil {
		dst = append(dst, packets.PropPayloadFormat, *p.PayloadFormat)
	}
	if p.ContentType != "" {
		dst = appendString(dst, packets.PropContentType, p.ContentType)
	}
	if p.ResponseTopic != "" {
		dst = appendString(dst, packets.PropResponseTopic, p.ResponseTopic)
	}
	if len(p.CorrelationData) > 0 {
		dst = append(dst, packets.PropCorrelationData)
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(p.CorrelationData)))
		dst = append(dst, p.CorrelationData...)
	}
	for _, u := range p.User {
		dst = appendUser(dst, u.Key, u.Value)
	}
	return dst
}
