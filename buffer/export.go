package buffer

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"
	"path/filepath"
	"time"

	"github.com/fieldferry/fieldferry/buffer/log"
	"github.com/fieldferry/fieldferry/buffer/rows"
)

// Stored yields the copies in the folder that are not settled, class by class and
// in the order in which they were appended. A place that cannot be read is an
// error; the copies behind it still come.
func (f *Folder) Stored() iter.Seq2[Delivery, error] {
	return func(yield func(Delivery, error) bool) {
		for class, l := range f.logs {
			wanted := make(map[uint32]*wantedCopies)
			for _, o := range f.b.chains[class].outboxes {
				if open := o.unsettled(); len(open) > 0 {
					wanted[o.id] = &wantedCopies{outbox: o, open: open}
				}
			}
			for c := range l.Check() {
				if c.Block == nil {
					err := fmt.Errorf("%s, block %s: %w", filepath.Join(Class(class).String(), c.Generation.String()+".db"), c.First, c.Err)
					if !yield(Delivery{}, err) {
						return
					}
				} else if !yieldBlock(c.Block, wanted, yield) {
					return
				}
			}
		}
	}
}

// wantedCopies is what is wanted of an outbox, and where a block stands in it.
type wantedCopies struct {
	outbox *Outbox
	open   runs
	spans  []span // of the block at hand, what is left of them
}

func yieldBlock(b *log.Block, wanted map[uint32]*wantedCopies, yield func(Delivery, error) bool) bool {
	dir, ok := parseDirectory(b.Directory)
	if !ok {
		return yield(Delivery{}, fmt.Errorf("block %s: its directory is malformed", b.First))
	}
	var here []*wantedCopies
	for _, s := range dir.spans {
		if w := wanted[s.outbox]; w != nil {
			if len(w.spans) == 0 {
				here = append(here, w)
			}
			w.spans = append(w.spans, s)
		}
	}
	for _, rec := range b.Records() {
		for _, w := range here {
			for nth := 0; len(w.spans) > 0; nth++ {
				d := Delivery{Outbox: w.outbox}
				if copies, err := parseRecord(rec, w.outbox.id, nth, b.Wall, &d); err != nil || nth >= copies {
					break
				}
				d.Ordinal = w.spans[0].first
				if w.spans[0].first++; w.spans[0].first > w.spans[0].last {
					w.spans = w.spans[1:]
				}
				if !w.open.has(d.Ordinal) {
					continue
				}
				w.open = w.open.without(runs{{d.Ordinal, d.Ordinal}}) // it may stand in two generations
				if !yield(d, nil) {
					return false
				}
			}
		}
	}
	for _, w := range here {
		w.spans = w.spans[:0]
	}
	return true
}

// ParkedCopy is a copy that its destination has refused for good.
type ParkedCopy struct {
	Delivery
	Parked time.Time
	Reason string
}

// Parked yields the parked copies in the folder, those of an outbox in the order
// of their ordinals.
func (f *Folder) Parked() iter.Seq2[ParkedCopy, error] {
	return func(yield func(ParkedCopy, error) bool) {
		if f.meta == nil {
			yield(ParkedCopy{}, fmt.Errorf("meta.db cannot be read: %w", f.damage))
			return
		}
		byID := make(map[uint32]*Outbox)
		for _, o := range f.b.outboxes {
			byID[o.id] = o
		}
		err := f.meta.db.View(func(tx rows.Tx) error {
			for k, v := range tx.Rows(bucketParked, nil) {
				p, ok := parseParked(k, bytes.Clone(v), byID)
				var err error
				if !ok {
					err = fmt.Errorf("parked copy %x: %w", k, errRows)
				}
				if !yield(p, err) {
					break
				}
			}
			return nil
		})
		if err != nil {
			yield(ParkedCopy{}, err)
		}
	}
}

// parseParked takes apart what park has put together.
func parseParked(k, v []byte, outboxes map[uint32]*Outbox) (p ParkedCopy, ok bool) {
	if len(k) != 12 {
		return p, false
	}
	p.Outbox, p.Ordinal = outboxes[binary.BigEndian.Uint32(k)], binary.BigEndian.Uint64(k[4:])
	d := decoder{p: v}
	p.Parked = time.UnixMilli(int64(d.uvarint()))
	p.Reason = string(d.bytes())
	f := d.byte()
	p.QoS, p.Retain = f&flagQoS, f&flagRetain != 0
	p.Enqueued = time.UnixMilli(int64(d.uvarint()))
	p.Topic = string(d.bytes())
	if f&flagProps != 0 {
		p.Props = d.bytes()
	}
	p.Payload = d.p
	return p, !d.bad && p.Outbox != nil
}
