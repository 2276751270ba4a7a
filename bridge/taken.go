package bridge

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/fieldferry/fieldferry/buffer"
)

// Taken knows over a crash which QoS 2 messages from the upstream are durable here
// and not released. Whoever stores one adds a copy for it to the record, so that one
// commit makes the message durable and its packet id known. The note of the session
// follows when ids are released, and says up to which copy it goes.
type Taken struct {
	outboxes [buffer.NumClasses]*buffer.Outbox
	reader   *buffer.Reader
	space    [64]buffer.Delivery
	read     []copyID // what the next note accounts for
}

// takenOutbox begins the names of the outboxes.
const takenOutbox = "$down "

// TakenBy is the name that an outbox was opened under, if it is one of OpenTaken's.
func TakenBy(o *buffer.Outbox) (name string, ok bool) {
	return strings.CutPrefix(o.Name(), takenOutbox)
}

// OpenTaken opens what is known of one upstream, or begins it. The buffer does not
// count it as a destination. Close lets go of it.
func OpenTaken(b *buffer.Buffer, name string) (*Taken, error) {
	t := &Taken{}
	for class := range t.outboxes {
		var err error
		if t.outboxes[class], err = b.Outbox(takenOutbox+name, buffer.Class(class)); err != nil {
			return nil, err
		}
	}
	var err error
	t.reader, err = b.ReaderFunc(func() {}, t.outboxes[:]...)
	return t, err
}

// Rewind lets another Bridge use it, after HandOver and when the first has ended: what
// that has not noted comes again.
func (t *Taken) Rewind() {
	t.reader.Rewind()
	t.read = t.read[:0]
}

// Close lets go of the outboxes.
func (t *Taken) Close() { t.reader.Close() }

// copyFor is the copy that goes with a message: docs/format-buffer.md has its topic.
func (t *Taken) copyFor(class buffer.Class, session uint64, id uint16) buffer.Copy {
	topic := binary.BigEndian.AppendUint64([]byte{0}, session)
	return buffer.Copy{Outbox: t.outboxes[class], Topic: string(binary.BigEndian.AppendUint16(topic, id))}
}

// parseTaken is the inverse of copyFor.
func parseTaken(topic string) (session uint64, id uint16, ok bool) {
	b := []byte(topic)
	if len(b) != 11 || b[0] != 0 {
		return 0, 0, false
	}
	return binary.BigEndian.Uint64(b[1:]), binary.BigEndian.Uint16(b[9:]), true
}

// addTo brings a session up to what is durable. What it adds holds for the next
// process only when the session was saved.
func (t *Taken) addTo(s *session) error {
	for {
		n, err := t.reader.TryNext(t.space[:])
		if err != nil {
			return fmt.Errorf("read what came down: %w", err)
		}
		if n == 0 {
			return nil
		}
		for i := range t.space[:n] {
			d := &t.space[i]
			t.read = append(t.read, copyID{d.Outbox, d.Ordinal})
			class := d.Outbox.Class()
			if d.Ordinal <= s.Noted[class] {
				continue // a crash came between the note and the outbox's mark
			}
			s.Noted[class] = d.Ordinal
			number, id, ok := parseTaken(d.Topic)
			if ok && number == s.Number && !slices.Contains(s.Inbound, id) {
				s.Inbound = append(s.Inbound, id)
			}
		}
		clear(t.space[:n])
	}
}

// saved lets go of what the session's note accounts for.
func (t *Taken) saved() {
	for _, c := range t.read {
		c.outbox.Settle(c.ordinal, buffer.Delivered)
	}
	t.read = t.read[:0]
}
