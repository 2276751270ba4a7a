package buffer

import (
	"cmp"
	"context"
	"path/filepath"
	"slices"
	"time"

	"github.com/fieldferry/fieldferry/buffer/log"
)

// Verified is what a recount of the disk has found.
type Verified struct {
	Blocks   uint64    `json:"blocks"`
	Records  uint64    `json:"records"`
	Bytes    int64     `json:"bytes"`
	Outboxes []Recount `json:"outboxes"`
	Damaged  uint64    `json:"damaged"` // places that cannot be read or contradict themselves
	Damage   []Damage  `json:"damage"`  // the first hundred of them
}

// Recount is one outbox, as its ledger has it and as the disk has it.
type Recount struct {
	Name    string `json:"name"`
	Class   Class  `json:"class"`
	Ledger  Ledger `json:"ledger"`
	Found   uint64 `json:"found"`   // copies that are not settled and can be read from the disk; the ledger says Stored
	Missing uint64 `json:"missing"` // copies that are not settled and cannot
}

// Difference is by how many copies the ledger and the disk disagree, 0 when all is
// well.
func (r *Recount) Difference() int64 {
	if d := int64(r.Ledger.Stored) - int64(r.Found); d != 0 {
		return d
	}
	return r.Ledger.Difference()
}

// Damage is a place on the disk that is damaged.
type Damage struct {
	File   string `json:"file"`            // in the buffer's folder
	Block  string `json:"block,omitempty"` // the number of its first record
	Reason string `json:"reason"`
}

// Differences is the sum over the outboxes, whatever their signs.
func (v *Verified) Differences() (n uint64) {
	for i := range v.Outboxes {
		d := v.Outboxes[i].Difference()
		n += uint64(max(d, -d))
	}
	return n
}

const maxDamage = 100

// recount counts the copies that blocks hold.
type recount struct {
	Verified
	found  map[uint32]runs   // by outbox
	counts map[uint32]uint64 // of the block at hand: copies in its records
	spans  map[uint32]uint64 // and in its directory
}

func newRecount() *recount {
	return &recount{found: make(map[uint32]runs), counts: make(map[uint32]uint64), spans: make(map[uint32]uint64)}
}

func (r *recount) damaged(d Damage) {
	r.Damaged++
	if len(r.Damage) < maxDamage {
		r.Damage = append(r.Damage, d)
	}
}

// block counts one.
func (r *recount) block(class Class, c *log.Checked) {
	r.Bytes += int64(c.Bytes)
	damaged := func(reason string) {
		r.damaged(Damage{filepath.Join(class.String(), c.Generation.String()+".db"), c.First.String(), reason})
	}
	if c.Err != nil {
		damaged(c.Err.Error())
		return
	}
	r.Blocks++
	dir, ok := parseDirectory(c.Block.Directory)
	if !ok {
		damaged("its directory is malformed")
		return
	}
	clear(r.counts)
	records := 0
	for _, rec := range c.Block.Records() {
		// An empty one is left of copies that nobody needs any more.
		if len(rec) > 0 && copiesOf(rec, func(outbox uint32) { r.counts[outbox]++ }) != nil {
			break
		}
		records++
	}
	r.Records += uint64(records)
	if records != c.Block.Count {
		damaged("its records end too early")
	}
	clear(r.spans)
	for _, s := range dir.spans {
		// What the records do not hold is at the end of the last span.
		have := min(s.last-s.first+1, r.counts[s.outbox]-r.spans[s.outbox])
		if have > 0 {
			r.found[s.outbox] = r.found[s.outbox].add(run{s.first, s.first + have - 1})
		}
		r.spans[s.outbox] += have
		if have < s.last-s.first+1 {
			damaged("its directory promises more copies than its records hold")
		}
	}
	for id, n := range r.counts {
		if n != r.spans[id] {
			damaged("its records hold copies that its directory does not know")
		}
	}
}

// outbox compares what was counted with an outbox as it is now. Copies with
// ordinals from below on came after the count began and are taken as they are.
func (r *recount) outbox(o *Outbox, below uint64) Recount {
	o.mu.Lock()
	open, ledger := o.unsettled(), o.ledger()
	o.mu.Unlock()
	missing := open.below(below).without(r.found[o.id]).len()
	return Recount{Name: o.name, Class: o.class, Ledger: ledger, Found: open.len() - missing, Missing: missing}
}

// ledger is Ledger while o.mu is held.
func (o *Outbox) ledger() Ledger {
	l := Ledger{Accepted: o.next - 1, Stored: o.stored, Dropped: make(map[string]uint64)}
	for out := Delivered; out < numOutcomes; out++ {
		l.count(out, o.outcomes[out]+o.ahead[out])
	}
	return l
}

// result is the report.
func (r *recount) result(outboxes []Recount) *Verified {
	slices.SortFunc(outboxes, func(a, b Recount) int {
		return cmp.Or(cmp.Compare(a.Class, b.Class), cmp.Compare(a.Name, b.Name))
	})
	r.Outboxes = append([]Recount{}, outboxes...) // not null in JSON
	r.Damage = append([]Damage{}, r.Damage...)
	return &r.Verified
}

// Verify recounts the disk: it reads every block there is at a byte rate (0 is as
// fast as it goes), checks it, and compares the copies that are not settled with
// the ledger. It works beside everything else, and takes as long as it takes; an
// error is only that ctx has ended. The buffer must not be closed before it
// returns.
//
// A copy counts as missing only if it was accepted before Verify began, is not
// settled when it ends, and was met nowhere in between: no append, settlement or
// removal that falls into that time can make a difference.
func (b *Buffer) Verify(ctx context.Context, bytesPerSecond int64) (*Verified, error) {
	r := newRecount()
	var all []Recount
	p := pace{rate: bytesPerSecond, began: time.Now()}
	for class, c := range b.chains {
		outboxes := c.all()
		below := make([]uint64, len(outboxes))
		for i, o := range outboxes {
			o.mu.Lock()
			below[i] = o.next
			o.mu.Unlock()
		}
		for checked := range c.log.Check(0, c.log.End()) {
			r.block(Class(class), &checked)
			if err := p.wait(ctx, checked.Bytes); err != nil {
				return nil, err
			}
		}
		for i, o := range outboxes {
			all = append(all, r.outbox(o, below[i]))
		}
	}
	return r.result(all), nil
}

// pace keeps to a byte rate.
type pace struct {
	rate  int64
	began time.Time
	bytes int64
}

func (p *pace) wait(ctx context.Context, bytes int) error {
	p.bytes += int64(bytes)
	if p.rate > 0 {
		ahead := time.Duration(float64(p.bytes)/float64(p.rate)*1e9) - time.Since(p.began)
		if ahead > time.Millisecond {
			t := time.NewTimer(ahead)
			defer t.Stop()
			select {
			case <-t.C:
			case <-ctx.Done():
			}
		}
	}
	return context.Cause(ctx)
}
