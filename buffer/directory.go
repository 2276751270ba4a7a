package buffer

import (
	"encoding/binary"
	"math"
)

// The directory of a block says which ordinals its records take in which outbox,
// and how far outboxes were settled when it was written:
//
//	lasts   uvarint: ms after the commit when the last of its copies expires, 0 if one never does
//	names   uvarint count, each: outbox uvarint, name uvarint length, bytes
//	spans   uvarint count, each: outbox uvarint, first ordinal uvarint, copies uvarint
//	marks   uvarint count, each: outbox uvarint, marks (see appendMarks)
//
// Within a block, the copies of an outbox take the ordinals of its span in the
// order of the records. A name stands in the first block of a generation that
// has copies for the outbox, so that a generation explains itself.

// span is the ordinals an outbox has in a block or in a generation.
type span struct {
	outbox      uint32
	first, last uint64
}

// marks is how far an outbox is settled. Every copy up to cursor is settled with
// the outcomes counted.
type marks struct {
	cursor   uint64
	sent     uint64 // copies up to here may have been handed out
	rec      uint64 // an exactly-once destination told us of a PUBREC up to here
	session  uint64 // how often such a destination has lost what rec says
	outcomes [numOutcomes]uint64
}

func appendMarks(dst []byte, m *marks) []byte {
	for _, v := range [...]uint64{m.cursor, m.sent, m.rec, m.session, uint64(len(m.outcomes))} {
		dst = binary.AppendUvarint(dst, v)
	}
	for _, v := range m.outcomes {
		dst = binary.AppendUvarint(dst, v)
	}
	return dst
}

func (d *decoder) marks() (m marks) {
	m.cursor, m.sent, m.rec, m.session = d.uvarint(), d.uvarint(), d.uvarint(), d.uvarint()
	for i, n := uint64(0), d.uvarint(); i < n && !d.bad; i++ {
		v := d.uvarint()
		if i < uint64(len(m.outcomes)) {
			m.outcomes[i] = v
		}
	}
	return m
}

// directory is a parsed directory.
type directory struct {
	lasts uint64 // ms after the commit; 0 is never
	names map[uint32]string
	spans []span
	marks map[uint32]marks
}

func parseDirectory(p []byte) (dir directory, ok bool) {
	d := decoder{p: p}
	dir.lasts = d.uvarint()
	if n := d.uvarint(); n > 0 {
		dir.names = make(map[uint32]string)
		for ; n > 0 && !d.bad; n-- {
			id := d.outbox()
			dir.names[id] = string(d.bytes())
		}
	}
	dir.spans = d.spans(nil)
	if n := d.uvarint(); n > 0 {
		dir.marks = make(map[uint32]marks)
		for ; n > 0 && !d.bad; n-- {
			id := d.outbox()
			dir.marks[id] = d.marks()
		}
	}
	return dir, !d.bad
}

func (d *decoder) spans(dst []span) []span {
	for n := d.uvarint(); n > 0 && !d.bad; n-- {
		if s, ok := d.span(); ok {
			dst = append(dst, s)
		}
	}
	return dst
}

// span is one that has copies.
func (d *decoder) span() (s span, ok bool) {
	id, first, count := d.outbox(), d.uvarint(), d.uvarint()
	if count-1 > math.MaxUint64-first && count > 0 { // there are no such ordinals
		d.bad = true
		d.p = nil
	}
	return span{id, first, first + count - 1}, count > 0 && !d.bad
}

func appendName(dst []byte, id uint32, name string) []byte {
	dst = binary.AppendUvarint(dst, uint64(id))
	return appendString(dst, name)
}

func appendSpans(dst []byte, spans []span) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(spans)))
	for _, s := range spans {
		dst = binary.AppendUvarint(dst, uint64(s.outbox))
		dst = binary.AppendUvarint(dst, s.first)
		dst = binary.AppendUvarint(dst, s.last-s.first+1)
	}
	return dst
}

// spansOf passes over what stands before the spans in a directory.
func spansOf(p []byte) decoder {
	d := decoder{p: p}
	d.uvarint()
	for n := d.uvarint(); n > 0 && !d.bad; n-- {
		d.uvarint()
		d.bytes()
	}
	return d
}

// findSpan looks for one outbox in a directory, without allocating.
func findSpan(p []byte, outbox uint32) (span, bool) {
	d := spansOf(p)
	for n := d.uvarint(); n > 0 && !d.bad; n-- {
		if s, ok := d.span(); ok && s.outbox == outbox {
			return s, true
		}
	}
	return span{}, false
}
