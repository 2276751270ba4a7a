package buffer

import (
	"github.com/fieldferry/fieldferry/buffer/rows"

	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// removedName stands in a rewritten generation where an outbox was removed whose
// copies stay with those of others.
const removedName = "\x00"

// retired counts what outboxes had that were removed. Its cursor is what they had
// accepted.
type retired struct{ marks }

// storedRetired is what meta.db knows of outboxes that were removed.
type storedRetired struct {
	nextID  uint32 // that no outbox had yet; 0 is unknown
	classes [NumClasses]retired
}

// Remove ends outboxes for good: their destination does not exist any more. Copies
// that are not settled are settled as DroppedEnded, now or when their append is
// committed. Their readers must be closed. After an error they are gone for this
// process, and may be there again when the buffer is opened.
func (b *Buffer) Remove(outboxes ...*Outbox) error {
	if len(outboxes) == 0 {
		return nil
	}
	b.mu.Lock()
	for _, o := range outboxes {
		if key := (outboxKey{o.name, o.class}); b.outboxes[key] == o {
			delete(b.outboxes, key)
		}
	}
	b.mu.Unlock()
	for _, o := range outboxes {
		o.chain.remove(o)
	}
	b.kickFlusher() // generations may be free now
	if err := b.meta.remove(b, outboxes); err != nil {
		return fmt.Errorf("remove outbox %s: %w", outboxes[0].name, err)
	}
	return nil
}

// remove ends an outbox and counts what it had.
func (c *chain) remove(o *Outbox) {
	o.mu.Lock()
	gone := o.removed
	o.removed = true
	o.end()
	accepted, outcomes := o.next-1, o.outcomes
	o.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if gone {
		return
	}
	delete(c.outboxes, o.id)
	c.retired.cursor += accepted
	for out, n := range outcomes {
		c.retired.outcomes[out] += n
	}
}

// end settles all copies there are, and lets go of everything. o.mu is held.
func (o *Outbox) end() {
	for out, n := range o.ahead {
		o.outcomes[out] += n
	}
	o.outcomes[DroppedEnded] += o.stored
	o.stored, o.cursor, o.taken = 0, o.next-1, o.next-1
	o.ahead, o.window, o.seen, o.voids = [numOutcomes]uint64{}, nil, nil, nil
	for _, p := range o.pins {
		o.chain.unpin(p.gen)
	}
	o.pins = nil
	o.rd = readerSide{}
	o.dirty = false
}

// ended counts copies that were committed for an outbox that is gone.
func (c *chain) ended(n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retired.cursor += n
	c.retired.outcomes[DroppedEnded] += n
}

// retiredLedger is the ledger of the outboxes that were removed.
func (c *chain) retiredLedger() Ledger {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := Ledger{Accepted: c.retired.cursor, Dropped: make(map[string]uint64)}
	for out := Delivered; out < numOutcomes; out++ {
		l.count(out, c.retired.outcomes[out])
	}
	return l
}

// gone reports whether an outbox that a block has copies for was removed: it is not
// in meta.db, though ids as high as its own were given before.
func (c *chain) gone(id uint32, names map[uint32]string) bool {
	if id < c.buffer.knownIDs || slices.Contains(c.nameless, id) {
		return true
	}
	if names[id] == removedName {
		c.nameless = append(c.nameless, id)
		return true
	}
	return false
}

// remove takes outboxes out of meta.db and puts what they had to the retired ones.
func (m *meta) remove(b *Buffer, outboxes []*Outbox) error {
	return m.db.Update(func(tx rows.Tx) error {
		var errs []error
		for _, o := range outboxes {
			errs = append(errs, tx.Delete(bucketOutboxes, binary.BigEndian.AppendUint32(nil, o.id)))
		}
		return errors.Join(append(errs, putRetired(tx, b))...)
	})
}

func putRetired(tx rows.Tx, b *Buffer) error {
	for class, c := range b.chains {
		c.mu.Lock()
		r := c.retired.marks
		c.mu.Unlock()
		if r.cursor == 0 {
			continue
		}
		if err := tx.Put(bucketRetired, []byte{byte(class)}, appendMarks(nil, &r)); err != nil {
			return err
		}
	}
	return nil
}

// retired returns what is known of outboxes that were removed.
func (m *meta) retired() (s storedRetired, err error) {
	err = m.db.View(func(tx rows.Tx) error {
		if v := tx.Get(bucketAbout, keyNext); len(v) == 4 {
			s.nextID = binary.BigEndian.Uint32(v)
		}
		for k, v := range tx.Rows(bucketRetired, nil) {
			d := decoder{p: v}
			r := retired{d.marks()}
			if len(k) != 1 || Class(k[0]) >= NumClasses || d.bad {
				return fmt.Errorf("retired outboxes %x: %w", k, errRows)
			}
			s.classes[k[0]] = r
		}
		return nil
	})
	return s, err
}
