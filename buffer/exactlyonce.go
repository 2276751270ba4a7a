package buffer

import "github.com/fieldferry/fieldferry/buffer/rows"

// What a destination that takes each copy exactly once (QoS 2) has to know after a
// crash: which copies may have been sent, and for which it has a PUBREC. That it has
// a PUBCOMP too is that the copy is settled. For others none of this is called, and
// costs nothing.

// reserveAhead is how many copies Reserve makes durable beyond the one it was
// asked for, so that it writes to the disk once for as many.
const reserveAhead = 1024

// Marks are how far an outbox is. Each holds for all copies up to an ordinal.
type Marks struct {
	Settled  uint64 // settled, with whatever outcome
	Sent     uint64 // may have been sent; reserved ahead
	Received uint64 // a PUBREC came, in the session that the destination has now
}

// Marks returns how far the outbox is. After Open they are what was durable.
func (o *Outbox) Marks() Marks {
	o.mu.Lock()
	defer o.mu.Unlock()
	return Marks{Settled: o.cursor, Sent: max(o.sent, o.taken, o.dupTo), Received: o.rec}
}

// Reserve makes durable that the copies up to an ordinal may have been sent. It is
// called before a copy is sent that must not be sent twice: a copy beyond
// Marks.Sent of a reopened buffer was never sent. Mostly it returns at once.
func (o *Outbox) Reserve(ordinal uint64) error {
	o.mu.Lock()
	if ordinal <= o.reserved {
		o.mu.Unlock()
		return nil
	}
	o.sent = max(o.sent, ordinal+reserveAhead)
	sent := o.sent
	o.touch()
	o.mu.Unlock()
	if err := o.Flush(); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.reserved = max(o.reserved, sent)
	return nil
}

// Received notes that a PUBREC came for all copies up to an ordinal. Like Settle it
// does no I/O; Flush makes it durable at once.
func (o *Outbox) Received(upTo uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if upTo > o.rec {
		o.rec = upTo
		o.touch()
	}
}

// Forget notes that the destination has lost its session: what it had received and
// is not settled, it has not. Flush makes it durable, or SetNote.
func (o *Outbox) Forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rec = 0
	o.session++
	o.touch()
}

// Note is the text that SetNote has kept for the outbox's destination, "" if there
// is none. All its outboxes share it.
func (o *Outbox) Note() (string, error) { return o.chain.buffer.meta.note(o.name) }

// SetNote keeps a short text with the outbox's destination, in one write with all
// that is known of these outboxes. It is durable on return.
func (o *Outbox) SetNote(text string, with ...*Outbox) error {
	return o.chain.buffer.meta.saveOutboxes(with, func(tx rows.Tx) error { return putNote(tx, o.name, text) })
}

// Flush makes all that is known of the outbox durable, and of others in the same
// write: what was settled and received.
func (o *Outbox) Flush(others ...*Outbox) error {
	return o.chain.buffer.Flush(append(others, o)...)
}

// Flush is Outbox.Flush for several outboxes in one write.
func (b *Buffer) Flush(outboxes ...*Outbox) error {
	dirty := make([]*Outbox, 0, len(outboxes))
	for _, o := range outboxes {
		o.mu.Lock()
		if o.dirty && !o.removed {
			dirty = append(dirty, o)
		}
		o.mu.Unlock()
	}
	if len(dirty) == 0 {
		return nil
	}
	return b.meta.saveOutboxes(dirty, nil)
}

// unreserve gives back what was reserved and not used, when the buffer is closed. What
// an earlier process had reserved stays: of that more may have been sent than is left,
// if the disk was damaged.
func (o *Outbox) unreserve() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if used := max(o.taken, o.dupTo, o.began); o.sent > used {
		o.sent, o.reserved = used, used
		o.touch()
	}
}
