package bridge

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
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
	// once, unless the process dies between its being durable and the note of that.
	Deliver func(ctx context.Context, m *Inbound, r buffer.Receipt) error
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
	// For the committer: what is to be noted before the answer goes.
	stored, freed []uint16
}

// arrival is a message from the upstream.
type arrival struct {
	id     uint16
	qos    byte
	ended  bool // it was stored or refused
	code   byte // of the answer
	noted  bool // QoS 2: its id is durable
	queued bool // in the queue of the connection
}

// begin empties the inbox of a new session, or has it go on with another connection.
func (in *inbox) begin(c *conn, known []uint16, fresh bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.conn, in.queue, in.stored, in.freed = c, nil, nil, nil
	if in.ids == nil || fresh {
		in.ids = make(map[uint16]*arrival)
		for _, id := range known {
			in.ids[id] = &arrival{id: id, qos: 2, ended: true, noted: true}
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
	tooMany := len(in.queue) >= maxInFlight
	if !a.queued && !tooMany {
		a.queued = true
		in.queue = append(in.queue, a)
	}
	in.answer()
	c.recs = c.recs || len(in.stored) > 0
	in.mu.Unlock()
	if tooMany {
		return fmt.Errorf("protocol error: more than our Receive Maximum of %d", maxInFlight)
	}
	if !again {
		c.down <- delivery{m, a} // has room for as many
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
			if d.a.qos == 2 && in.ids[d.a.id] == d.a {
				delete(in.ids, d.a.id)
			}
		default:
			return
		}
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
	s.a.ended = true
	switch {
	case errors.Is(err, buffer.ErrFull):
		s.a.code = codeQuotaExceeded
	case err != nil:
		s.a.code = codeImplementation
	}
	if s.a.code != 0 && s.a.qos == 2 && in.ids[s.a.id] == s.a {
		delete(in.ids, s.a.id)
	}
	in.answer()
	c := in.conn
	in.mu.Unlock()
	if c != nil {
		c.wakeCommitter()
		c.wakeWriter()
	}
}

// answer answers what has ended, in order, or hands it to the committer. in.mu is
// held.
func (in *inbox) answer() {
	for len(in.queue) > 0 && in.queue[0].ended {
		a := in.queue[0]
		in.queue = in.queue[1:]
		a.queued = false
		switch {
		case a.qos == 1:
			in.conn.owe(packets.PUBACK, a.id, a.code)
		case a.code != 0 || a.noted:
			in.conn.owe(packets.PUBREC, a.id, a.code)
		default:
			in.stored = append(in.stored, a.id)
		}
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

// commitDown notes the ids of QoS 2 messages that are stored, or released, before
// the upstream is told. It reports false if the connection ended.
func (c *conn) commitDown(ctx context.Context) bool {
	in := &c.b.inbox
	in.mu.Lock()
	stored, freed := in.stored, in.freed
	in.stored, in.freed = nil, nil
	in.mu.Unlock()
	if len(stored) == 0 && len(freed) == 0 {
		return true
	}
	known := slices.Clone(c.b.session.Inbound)
	for _, id := range stored {
		if !slices.Contains(known, id) {
			known = append(known, id)
		}
	}
	c.b.session.Inbound = slices.DeleteFunc(known, func(id uint16) bool { return slices.Contains(freed, id) })
	for {
		err := c.b.saveSession()
		if err == nil {
			break
		}
		c.b.log.Error("what came down could not be noted; the upstream waits", "error", err)
		if !sleep(ctx, retryDisk) {
			return false
		}
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, id := range stored {
		if a := in.ids[id]; a != nil {
			a.noted = true
		}
		c.owe(packets.PUBREC, id, 0)
	}
	for _, id := range freed {
		delete(in.ids, id)
		c.owe(packets.PUBCOMP, id, 0)
	}
	c.wakeWriter()
	return true
}

// noteDown notes what was stored when a connection has ended: it must not come again
// after a restart.
func (b *Bridge) noteDown() {
	in := &b.inbox
	var fresh []*arrival
	in.mu.Lock()
	for _, a := range in.ids {
		if a.ended && !a.noted {
			fresh = append(fresh, a)
		}
	}
	in.mu.Unlock()
	if len(fresh) == 0 {
		return
	}
	for _, a := range fresh {
		if !slices.Contains(b.session.Inbound, a.id) {
			b.session.Inbound = append(b.session.Inbound, a.id)
		}
	}
	if err := b.saveSession(); err != nil {
		b.log.Error("what came down could not be noted", "error", err)
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, a := range fresh {
		a.noted = true
	}
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
