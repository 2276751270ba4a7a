package buffer

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/fieldferry/fieldferry/buffer/log"
)

const (
	// fewOutboxes are found soon enough by looking through a block.
	fewOutboxes = 8

	// maxPlaces bounds the memory that the places of a block take, 12 bytes each.
	maxPlaces = 1 << 18
)

// crowded is where the copies of each outbox are in a block in memory that has many:
// otherwise each of them would look at the copies of all.
type crowded struct {
	spans []span // by outbox

	once   sync.Once
	begins []int // of the places of each span
	places []place
}

// place is that of a copy: offsets of its record in the block, and in that of what
// follows the copy's outbox, and of the payload.
type place struct{ record, copy, payload uint32 }

// crowdedOf is what is known of a block, nil if it has few outboxes or comes from its
// file: that is read by one.
func crowdedOf(h *log.Header, dir []byte) *crowded {
	if h.Memo == nil {
		return nil
	}
	return h.Memo.Do(func() any {
		d := spansOf(dir)
		spans := d.spans(nil)
		if len(spans) < fewOutboxes {
			return (*crowded)(nil)
		}
		slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.outbox, b.outbox) })
		return &crowded{spans: spans}
	}).(*crowded)
}

// find is where the span of an outbox is.
func (c *crowded) find(outbox uint32) (int, bool) {
	return slices.BinarySearchFunc(c.spans, outbox, func(s span, outbox uint32) int { return cmp.Compare(s.outbox, outbox) })
}

// of returns the places of an outbox's copies, in order. It reports false if the block
// has to be looked through.
func (c *crowded) of(outbox uint32, b *log.Block) ([]place, bool) {
	c.once.Do(func() { c.survey(b) })
	i, ok := c.find(outbox)
	if !ok || c.places == nil {
		return nil, false
	}
	return c.places[c.begins[i]:c.begins[i+1]], true
}

// survey looks through the block, once for all.
func (c *crowded) survey(b *log.Block) {
	begins := make([]int, len(c.spans)+1)
	for i, s := range c.spans {
		begins[i+1] = begins[i] + int(min(s.last-s.first+1, maxPlaces))
		if begins[i+1] > maxPlaces {
			return
		}
	}
	places, ends := make([]place, begins[len(c.spans)]), slices.Clone(begins)
	for off := 0; ; {
		rec, next := b.RecordAt(off)
		if rec == nil {
			break
		}
		head, n := beginCopies(rec)
		tail := head
		for k := n; k > 0 && !tail.bad; k-- {
			tail.outbox()
			tail.fields()
		}
		if tail.bad {
			return
		}
		at := place{record: uint32(off), payload: uint32(len(rec) - len(tail.p))}
		i := 0 // most often copies come in the order of the spans
		for d := head; n > 0; n-- {
			outbox := d.outbox()
			at.copy = uint32(len(rec) - len(d.p))
			d.fields()
			if i >= len(c.spans) || c.spans[i].outbox != outbox {
				var ok bool
				if i, ok = c.find(outbox); !ok {
					return
				}
			}
			if ends[i] == begins[i+1] {
				return // more than the directory has
			}
			places[ends[i]] = at
			ends[i]++
			i++
		}
		off = next
	}
	if !slices.Equal(ends[:len(c.spans)], begins[1:]) {
		return
	}
	c.begins, c.places = begins, places
}

// readCopy is parseRecord for a copy whose place is known.
func readCopy(b *log.Block, at place, committed time.Time, out *Delivery) (bytes int) {
	rec, _ := b.RecordAt(int(at.record))
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
	d = decoder{p: rec[at.copy:]}
	c := d.fields()
	out.set(topic, props, &c, rec[at.payload:], age, expiry, committed)
	return len(rec)
}
