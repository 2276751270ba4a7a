package buffer

import (
	"encoding/binary"
	"errors"
	"math"
	"math/bits"
	"time"
)

// A Message is one publish and the destinations it goes to.
type Message struct {
	Topic    string // as published on the local broker
	Payload  []byte // not changed until the receipt was told
	Props    []byte // MQTT 5 PUBLISH properties as on the wire, without their length, the expiry interval, topic alias and subscription ids
	QoS      byte   // of the publish
	Retain   bool
	Enqueued time.Time     // zero is when it is committed
	Expiry   time.Duration // from Enqueued; 0 is never; kept in ms
	Urgent   bool          // commit at once with whatever is waiting, do not linger
	Copies   []Copy        // one for each destination, or several, which are told apart by their order; of one class
}

// A Copy is a message on its way to one destination.
type Copy struct {
	Outbox *Outbox
	Topic  string   // at the destination; "" is the message's own
	Props  []byte   // after those of the message
	Number Numberer // nil: none
	QoS    byte
	Retain bool
}

// A Numberer numbers the messages of a stream. Append calls it in the order of
// the appends, so that no number is given to a message that is refused at once.
type Numberer interface {
	// Number returns the properties, as for Copy.Props, that carry the next number.
	Number() []byte
	// Undo takes the last number back: its message was not queued.
	Undo()
}

// A Delivery is a copy as its destination gets it. Payload and Props must not be
// changed and stay valid.
type Delivery struct {
	Outbox   *Outbox
	Ordinal  uint64 // of the copy in its outbox, from 1, without gaps
	Topic    string
	Payload  []byte
	Props    []byte
	QoS      byte
	Retain   bool
	Dup      bool          // may have been handed out before
	Enqueued time.Time     // by the wall clock of now, whatever it said then
	Expiry   time.Duration // from Enqueued; 0 is never
}

// The bytes of a record; docs/format-buffer.md shows them.
//
//	flags    u8: bits 0-1 QoS, 2 retain, 3 expiry follows, 4 properties follow
//	age      uvarint, ms before the commit
//	expiry   uvarint, ms after it was enqueued
//	topic    uvarint length, bytes
//	props    uvarint length, bytes
//	copies   uvarint count, each:
//	         outbox uvarint
//	         flags  u8: bits 0-1 QoS, 2 retain, 3 topic follows, 4 properties follow
//	         topic  uvarint length, bytes
//	         props  uvarint length, bytes
//	payload  the rest
const (
	flagQoS    = 0x03
	flagRetain = 0x04
	flagExtra  = 0x08 // message: expiry; copy: topic
	flagProps  = 0x10
)

var errRecord = errors.New("record is malformed")

func appendRecord(dst []byte, m *Message, age time.Duration) []byte {
	dst = append(dst, flags(m.QoS, m.Retain, m.Expiry > 0, len(m.Props) > 0))
	dst = binary.AppendUvarint(dst, uint64(age.Milliseconds()))
	if m.Expiry > 0 {
		dst = binary.AppendUvarint(dst, uint64(max(m.Expiry.Milliseconds(), 1)))
	}
	dst = appendString(dst, m.Topic)
	if len(m.Props) > 0 {
		dst = appendString(dst, m.Props)
	}
	dst = binary.AppendUvarint(dst, uint64(len(m.Copies)))
	for i := range m.Copies {
		c := &m.Copies[i]
		dst = binary.AppendUvarint(dst, uint64(c.Outbox.id))
		dst = append(dst, flags(c.QoS, c.Retain, c.Topic != "", len(c.Props) > 0))
		if c.Topic != "" {
			dst = appendString(dst, c.Topic)
		}
		if len(c.Props) > 0 {
			dst = appendString(dst, c.Props)
		}
	}
	return append(dst, m.Payload...)
}

// recordSize is how many bytes appendRecord appends.
func recordSize(m *Message, age time.Duration) int {
	n := 1 + uvarintSize(uint64(age.Milliseconds())) + stringSize(len(m.Topic))
	if m.Expiry > 0 {
		n += uvarintSize(uint64(max(m.Expiry.Milliseconds(), 1)))
	}
	if len(m.Props) > 0 {
		n += stringSize(len(m.Props))
	}
	n += uvarintSize(uint64(len(m.Copies)))
	for i := range m.Copies {
		c := &m.Copies[i]
		n += uvarintSize(uint64(c.Outbox.id)) + 1
		if c.Topic != "" {
			n += stringSize(len(c.Topic))
		}
		if len(c.Props) > 0 {
			n += stringSize(len(c.Props))
		}
	}
	return n + len(m.Payload)
}

func uvarintSize(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }

func stringSize(n int) int { return uvarintSize(uint64(n)) + n }

func flags(qos byte, retain, extra, props bool) byte {
	f := qos & flagQoS
	if retain {
		f |= flagRetain
	}
	if extra {
		f |= flagExtra
	}
	if props {
		f |= flagProps
	}
	return f
}

func appendString[T string | []byte](dst []byte, s T) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// decoder takes a record apart. A read past the end sets bad and yields zeros.
type decoder struct {
	p   []byte
	bad bool
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.p)
	if n <= 0 {
		d.bad = true
		d.p = nil
		return 0
	}
	d.p = d.p[n:]
	return v
}

// outbox is the id of one.
func (d *decoder) outbox() uint32 {
	v := d.uvarint()
	if v > math.MaxUint32 {
		d.bad = true
		d.p = nil
		return 0
	}
	return uint32(v)
}

func (d *decoder) byte() byte {
	if len(d.p) == 0 {
		d.bad = true
		return 0
	}
	b := d.p[0]
	d.p = d.p[1:]
	return b
}

// uint64 is big endian.
func (d *decoder) uint64() uint64 {
	if len(d.p) < 8 {
		d.bad = true
		d.p = nil
		return 0
	}
	v := binary.BigEndian.Uint64(d.p)
	d.p = d.p[8:]
	return v
}

// bytes returns the next n bytes of the record itself.
func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.p)) {
		d.bad = true
		d.p = nil
		return nil
	}
	b := d.p[:n:n]
	d.p = d.p[n:]
	return b
}

// beginCopies passes over what stands before the copies in a record, and returns how
// many there are.
func beginCopies(rec []byte) (d decoder, n uint64) {
	if len(rec) == 0 {
		return d, 0
	}
	d.p = rec
	f := d.byte()
	d.uvarint()
	if f&flagExtra != 0 {
		d.uvarint()
	}
	d.bytes()
	if f&flagProps != 0 {
		d.bytes()
	}
	return d, d.uvarint()
}

// copiesOf calls fn with the outbox of each copy in a record. One without any
// bytes, which a rewriting has left, has none.
func copiesOf(rec []byte, fn func(outbox uint32)) error {
	if len(rec) == 0 {
		return nil
	}
	d, n := beginCopies(rec)
	for ; n > 0 && !d.bad; n-- {
		id := d.outbox()
		d.fields()
		fn(id)
	}
	if d.bad {
		return errRecord
	}
	return nil
}

// parseRecord finds the nth copy for one outbox, from 0, in a record that was committed
// at a time. It returns how many there are; if that is not more than nth, out is not
// set.
func parseRecord(rec []byte, outbox uint32, nth int, committed time.Time, out *Delivery) (copies int, err error) {
	if len(rec) == 0 {
		return 0, nil // a rewriting has left it
	}
	d := decoder{p: rec}
	f := d.byte()
	age := d.uvarint()
	var expiry uint64
	if f&flagExtra != 0 {
		expiry = d.uvarint()
	}
	topic := d.bytes()
	var props []byte
	if f&flagProps != 0 {
		props = d.bytes()
	}
	var found copyFields
	for n := d.uvarint(); n > 0 && !d.bad; n-- {
		id, c := d.outbox(), d.fields()
		if id == outbox {
			if copies == nth {
				found = c
			}
			copies++
		}
	}
	if d.bad {
		return 0, errRecord
	}
	if copies <= nth {
		return copies, nil
	}
	out.set(topic, props, &found, d.p, age, expiry, committed)
	return copies, nil
}

// copyFields is what a record says of one copy.
type copyFields struct {
	flags        byte
	topic, props []byte // nil and empty are none
}

func (out *Delivery) set(topic, props []byte, c *copyFields, payload []byte, age, expiry uint64, committed time.Time) {
	if c.topic != nil {
		topic = c.topic
	}
	switch {
	case len(c.props) == 0:
	case len(props) == 0:
		props = c.props
	default:
		props = append(props, c.props...) // cap ends at len: a new slice
	}
	if string(topic) != out.Topic { // else out was used before, for one with the same topic
		out.Topic = string(topic)
	}
	out.Payload = payload
	out.Props = props
	out.QoS = c.flags & flagQoS
	out.Retain = c.flags&flagRetain != 0
	out.Enqueued = committed
	if age > 0 {
		out.Enqueued = committed.Add(-time.Duration(age) * time.Millisecond)
	}
	out.Expiry = time.Duration(expiry) * time.Millisecond
}

// fields reads what follows a copy's outbox.
func (d *decoder) fields() (c copyFields) {
	c.flags = d.byte()
	if c.flags&flagExtra != 0 {
		c.topic = d.bytes()
	}
	if c.flags&flagProps != 0 {
		c.props = d.bytes()
	}
	return c
}
