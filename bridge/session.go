package bridge

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
)

// session is what must be known of the upstream session after a restart. It is
// kept as the note of the outboxes.
type session struct {
	URL      string // of the last CONNACK
	ClientID string

	// Unsure says that a CONNECT went out without a CONNACK that told what became of
	// the session. One that is there the next time may be new.
	Unsure bool `json:",omitempty"`

	// Lost is up to where a session that is gone took copies with it, by lane.
	Lost [len(Outboxes{})]uint64

	// Number is random for each session. What came down in another one has ids that
	// mean other messages.
	Number uint64 `json:",omitempty"`

	// Inbound are the ids of QoS 2 messages from the upstream that are stored, and that
	// it has not released, as far as the copies in Taken go that are Noted, by class.
	Inbound []uint16                  `json:",omitempty"`
	Noted   [buffer.NumClasses]uint64 // ordinals
}

// retryDisk is how long to wait when a disk does not take what must be durable.
const retryDisk = time.Second

// load reads the session and the marks, once in the life of a bridge.
func (b *Bridge) load() error {
	if b.loaded || b.out[0] == nil {
		return nil
	}
	note, err := b.out[0].Note()
	if err != nil {
		return &bufferError{err}
	}
	if note != "" {
		if err := json.Unmarshal([]byte(note), &b.session); err != nil {
			b.log.Error("what was known of the upstream session cannot be read; it begins anew", "error", err)
			b.session = session{}
		}
	}
	for lane, o := range b.out {
		at := &b.progress[lane]
		m := o.Marks()
		at.written, at.began, at.reusable = m.Sent, m.Sent, m.Settled
	}
	if b.clientID == "" {
		b.clientID = b.session.ClientID
	}
	if t := b.taken(); t != nil {
		if err := t.addTo(&b.session); err != nil {
			return &bufferError{err}
		}
	}
	b.loaded = true
	return nil
}

// saveSession makes the session durable, with all that is known of the outboxes.
func (b *Bridge) saveSession() error {
	if b.out[0] == nil {
		return nil
	}
	text, err := json.Marshal(b.session)
	if err == nil {
		err = b.out[0].SetNote(string(text), b.out[:]...)
	}
	if err != nil {
		return fmt.Errorf("keep what is known of the session: %w", err)
	}
	if t := b.taken(); t != nil {
		t.saved()
	}
	return nil
}

// taken is what knows which messages came down before; nil if nothing does.
func (b *Bridge) taken() *Taken {
	if b.o.Down == nil {
		return nil
	}
	return b.o.Down.Taken
}

// resumable reports whether the session of the last CONNACK is to be asked for. An
// upstream that is another one may have a session of ours from long ago, whose ids
// mean other messages.
func (b *Bridge) resumable(url string) bool {
	return !b.unsaved && b.session.URL == url && (b.session.ClientID == b.clientID || b.session.ClientID == "")
}

// halfway reports whether there are copies with a PUBREC and without a PUBCOMP:
// they depend on the session.
func (b *Bridge) halfway() bool {
	for _, o := range b.out {
		if o == nil {
			continue
		}
		if m := o.Marks(); m.Received > m.Settled {
			return true
		}
	}
	return false
}

// connecting is called before a CONNECT that asks for the session goes out.
func (b *Bridge) connecting() error {
	if b.session.Unsure || !b.halfway() {
		return nil
	}
	b.session.Unsure = true
	return b.saveSession()
}

// resumed takes up the session that the upstream still has. unsure says that it may
// be one that we know nothing of.
func (c *conn) resumeSession(unsure bool) error {
	b := c.b
	unsure = unsure && b.halfway()
	if !unsure && b.session.Unsure {
		b.session.Unsure = false
		if err := b.saveSession(); err != nil {
			return err
		}
	}
	for lane, o := range b.out {
		if o == nil {
			continue
		}
		c.resumed[lane] = o.Marks().Received
		if unsure {
			c.doubt.begin(lane, c.resumed[lane])
		}
	}
	return nil
}

// beginSession is called when the upstream has no session of ours from before. What
// it may have had of QoS 2 is lost, in both senses: nobody knows whether it was
// delivered. That is durable before anything is sent.
func (c *conn) beginSession(url string) error {
	b := c.b
	for lane, o := range b.out {
		if o == nil {
			continue
		}
		at := &b.progress[lane]
		b.session.Lost[lane] = at.written
		at.counted = 0
		clear(at.open)
		o.Forget()
	}
	b.session.URL, b.session.ClientID, b.session.Unsure = url, b.clientID, false
	b.session.Number, b.session.Inbound = rand.Uint64(), nil
	if t := b.taken(); t != nil { // what came in the last one is of no use any more
		if err := t.addTo(&b.session); err != nil {
			return err
		}
	}
	b.unsaved = true // until it is: nothing may be sent in it
	if err := b.saveSession(); err != nil {
		return err
	}
	b.unsaved = false
	return nil
}

// resume deals with a QoS 2 copy that the upstream may have. done says that it needs
// no PUBLISH; ok is false if it has to wait.
func (c *conn) resume(d *buffer.Delivery, at *progress) (done, ok bool) {
	lane := c.b.out.lane(d.Outbox)
	delete(at.open, d.Ordinal)
	if d.Ordinal <= c.resumed[lane] {
		id := packetID(lane, d.Ordinal)
		if !c.window.release(d, id, buffer.Delivered) {
			return true, false
		}
		if c.doubt.about(lane, d.Ordinal) {
			c.doubt.sent(lane)
		}
		c.w.Write(appendPubrel(nil, id))
		return true, true
	}
	if d.Ordinal <= c.b.session.Lost[lane] && d.Ordinal > at.counted {
		at.counted = d.Ordinal
		c.b.uncertain.Add(1)
		if c.b.o.DropLost {
			c.end(d, buffer.Uncertain)
			return true, true
		}
	}
	return false, false
}

// releaseOnly sets a copy's id free at the upstream and settles the copy. It reports
// false if that has to wait.
func (c *conn) releaseOnly(d *buffer.Delivery, out buffer.Outcome) bool {
	id := packetID(c.b.out.lane(d.Outbox), d.Ordinal)
	if !c.window.release(d, id, out) {
		return false
	}
	c.w.Write(appendPubrel(nil, id))
	return true
}

// closeGap sets ids free of copies that were sent with QoS 2, maybe by an earlier
// process, and that the buffer does not bring again, because they are on a damaged
// part of the disk: otherwise the upstream would take the next with the same id for
// a repeat. It reports false if that has to wait.
func (c *conn) closeGap(lane int, ordinal uint64) bool {
	at := &c.b.progress[lane]
	gap := c.next[lane] < ordinal
	for last := min(ordinal-1, at.written); c.next[lane] <= last; c.next[lane]++ {
		n := c.next[lane]
		unseen := n > at.seen && n <= at.began
		if !unseen && !at.open[n] || !c.limits.sessionPresent {
			continue
		}
		if !c.releaseOnly(&buffer.Delivery{Outbox: c.b.out[lane], Ordinal: n}, 0) {
			return false
		}
		delete(at.open, n)
	}
	if gap && ordinal-1 > c.resumed[lane] {
		c.window.pass(c.b.out[lane], ordinal-1)
	}
	c.next[lane] = max(c.next[lane], ordinal+1)
	return true
}

// end settles a copy that does not go.
func (c *conn) end(d *buffer.Delivery, out buffer.Outcome) {
	if d.QoS == 2 {
		c.window.pass(d.Outbox, d.Ordinal)
	}
	d.Outbox.Settle(d.Ordinal, out)
}

// reusable reports whether the id of a copy is free for good: the copy that had it
// before is settled, and a crash does not bring it back.
func (c *conn) reusable(d *buffer.Delivery, at *progress) bool {
	share := idShare(c.b.out.lane(d.Outbox))
	if d.Ordinal <= at.reusable+share {
		return true
	}
	settled := d.Outbox.Marks().Settled
	if d.Ordinal > settled+share {
		return false
	}
	if err := d.Outbox.Flush(); err != nil {
		c.b.log.Error("marks could not be saved; the line waits", "error", err)
		return false
	}
	at.reusable = settled
	return true
}

// reserve makes durable that copies may have been sent, before they are. It reports
// false if the connection ended.
func (c *conn) reserve(ctx context.Context, batch []buffer.Delivery) bool {
	var last [len(Outboxes{})]*buffer.Delivery
	for i := range batch {
		if d := &batch[i]; d.QoS == 2 {
			last[c.b.out.lane(d.Outbox)] = d
		}
	}
	for _, d := range last {
		for d != nil {
			err := d.Outbox.Reserve(d.Ordinal)
			if err == nil {
				break
			}
			c.b.log.Error("marks could not be saved; the line waits", "error", err)
			if !sleep(ctx, retryDisk) {
				return false
			}
		}
	}
	return true
}

// commit makes PUBRECs durable, as many at once as have come, and has the PUBRELs
// sent, until the connection ends.
func (c *conn) commit(ctx context.Context) {
	for {
		select {
		case <-c.pubrecs:
		case <-ctx.Done():
			return
		}
		for {
			batch := c.window.toCommit()
			if len(batch.ids) == 0 && batch.upTo == [len(Outboxes{})]uint64{} {
				break
			}
			if !c.makeDurable(ctx, batch) {
				return
			}
			c.mu.Lock()
			c.rels = c.window.committed(batch, c.rels)
			c.mu.Unlock()
			c.wakeWriter()
		}
		if !c.commitDown(ctx) {
			return
		}
		c.settleDoubt()
	}
}

// settleDoubt notes that all that was in doubt is settled.
func (c *conn) settleDoubt() {
	if c.settled {
		return
	}
	ever, settled := c.doubt.settled(&c.b.out)
	if !settled {
		return
	}
	if c.settled = true; !ever {
		return
	}
	c.b.session.Unsure = false
	if err := c.b.saveSession(); err != nil {
		c.b.session.Unsure = true
		c.b.log.Error("the next restart may count what is certain as uncertain", "error", err)
	}
}

func (c *conn) makeDurable(ctx context.Context, batch commit) bool {
	var first *buffer.Outbox
	var others []*buffer.Outbox
	for lane, upTo := range batch.upTo {
		if upTo == 0 {
			continue
		}
		o := c.b.out[lane]
		o.Received(upTo)
		if first == nil {
			first = o
		} else {
			others = append(others, o)
		}
	}
	for first != nil {
		err := first.Flush(others...)
		if err == nil {
			break
		}
		c.b.log.Error("marks could not be saved; the line waits", "error", err)
		if !sleep(ctx, retryDisk) {
			return false
		}
	}
	return true
}
