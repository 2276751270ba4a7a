package buffer

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"slices"

	"github.com/fieldferry/fieldferry/buffer/log"
)

// Generations are rewritten where that saves more than it costs: many small
// neighbours, as a crash loop leaves them, become one; and one of which most is
// settled, but which a destination that is far behind still pins, is rewritten
// without what is settled.

const (
	mergeAtLeast = 4   // small neighbours make one
	mergeAtMost  = 256 // at a time
	mergeAtOpen  = 64  // as many small neighbours are not left for later
)

var errStopped = errors.New("the buffer is being closed")

// tidyAtOpen keeps the number of generations bounded also where no process lives
// long enough to come to tidy.
func (b *Buffer) tidyAtOpen() {
	if err := b.tidy(mergeAtOpen); err != nil {
		b.logger.Error("generations could not be merged", "err", err)
	}
}

// tidy rewrites at most one group of generations in each class; neighbours are
// merged if they are so many. It is called when no generation can be removed at
// the same time.
func (b *Buffer) tidy(atLeast int) error {
	var errs []error
	for _, c := range b.chains {
		// One may have ended without its seal being durable yet.
		sealed := slices.DeleteFunc(c.log.Generations(), func(i log.GenerationInfo) bool { return !c.sealed(i.ID) })
		ids := c.mergeable(sealed, atLeast)
		if ids == nil {
			ids = c.shrinkable(sealed)
		}
		if ids != nil {
			errs = append(errs, c.rewrite(ids))
		}
	}
	return errors.Join(errs...)
}

func (c *chain) sealed(id log.GenID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.gens[id]
	return g != nil && g.sealed.Load()
}

// mergeable returns neighbours that are small, none larger than all the others
// together: so a record is rewritten a few times in its life, not each time.
func (c *chain) mergeable(gens []log.GenerationInfo, atLeast int) (ids []log.GenID) {
	maxAge := c.buffer.limits.MaxAge[c.class]
	for i := 0; i+atLeast <= len(gens); i++ {
		var sum, largest int64
		ids = ids[:0]
		for _, g := range gens[i:min(i+mergeAtMost, len(gens))] {
			if sum+g.Bytes > c.buffer.generationBytes/2 || maxAge > 0 && g.Newest.Sub(gens[i].Newest).Abs() > maxAge/8 {
				break
			}
			sum, largest = sum+g.Bytes, max(largest, g.Bytes)
			ids = append(ids, g.ID)
		}
		for len(ids) >= atLeast { // the more the better
			if _, ok := c.needs(ids); ok && largest <= sum/2 {
				return ids
			}
			last := gens[i+len(ids)-1]
			ids = ids[:len(ids)-1]
			sum, largest = sum-last.Bytes, 0
			for _, g := range gens[i : i+len(ids)] {
				largest = max(largest, g.Bytes)
			}
		}
	}
	return nil
}

// shrinkable returns a generation of which less than half is needed, and not by
// a reader that is at it: nothing of it was settled since tidy last looked.
func (c *chain) shrinkable(gens []log.GenerationInfo) []log.GenID {
	needed := c.needed()
	var found []log.GenID
	for _, info := range gens {
		c.mu.Lock()
		g := c.gens[info.ID]
		c.mu.Unlock()
		n := needed[g]
		still := n > 0 && n == g.needed
		g.needed = n
		// A record may have several copies, so this is the most that is needed.
		if found == nil && still && 2*int64(n) < info.Records {
			found = []log.GenID{info.ID}
		}
	}
	return found
}

// needed counts the copies in each generation that are not settled.
func (c *chain) needed() map[*generation]uint64 {
	needed := make(map[*generation]uint64)
	for _, o := range c.all() {
		o.mu.Lock()
		for _, p := range o.pins {
			needed[p.gen] += p.last + 1 - max(p.first, o.cursor+1)
		}
		o.mu.Unlock()
	}
	return needed
}

// need is what an outbox needs of some generations: all from first to last, if
// that is not 0.
type need struct {
	first, last uint64
	marks       marks
}

// needs returns what the outboxes need of neighbouring generations, and how far
// they are. It reports false if something in between was dropped: a generation's
// copies have no gaps.
func (c *chain) needs(ids []log.GenID) (needs map[uint32]need, ok bool) {
	in := make(map[*generation]bool)
	c.mu.Lock()
	for _, id := range ids {
		if g := c.gens[id]; g != nil {
			in[g] = true
		}
	}
	c.mu.Unlock()
	needs = make(map[uint32]need)
	for _, o := range c.all() {
		o.mu.Lock()
		m, _ := o.durable()
		n := need{first: math.MaxUint64, marks: m}
		ok := true
		for _, p := range o.pins {
			if !in[p.gen] {
				continue
			}
			if n.last == 0 {
				n.first = max(p.first, o.cursor+1)
			} else if p.first != n.last+1 {
				ok = false
			}
			n.last = p.last
		}
		o.mu.Unlock()
		if !ok {
			return nil, false
		}
		needs[o.id] = n
	}
	return needs, true
}

// rewrite puts one generation in the place of neighbours.
func (c *chain) rewrite(ids []log.GenID) error {
	ids = slices.Clone(ids)
	needs, ok := c.needs(ids)
	if !ok {
		return nil
	}
	// What is left out must stay settled, whatever happens.
	if err := c.buffer.save(true); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	w := rewriter{chain: c, needs: needs, named: make(map[uint32]bool)}
	stop := c.buffer.stop
	return c.log.Rewrite(ctx, ids, func(b *log.Block) ([]byte, []bool) {
		select {
		case <-stop:
			cancel(errStopped)
		default:
		}
		return w.shrink(b)
	}, func(s log.Seal) error { return c.replace(ids, s, needs) })
}

// rewriter leaves out of blocks what is settled.
type rewriter struct {
	chain *chain
	needs map[uint32]need
	named map[uint32]bool // outboxes that the new generation names
}

// shrink returns which records of a block stay, and the directory they get. The
// copies of an outbox that it needs are the last of its span. So the copies that
// stay get the last ordinals of the span: those that are needed keep their own,
// and settled ones that stay with the record of another get such as are settled.
func (w *rewriter) shrink(b *log.Block) (directory []byte, stays []bool) {
	dir, ok := parseDirectory(b.Directory)
	if !ok {
		return nil, nil
	}
	next := make(map[uint32]uint64, len(dir.spans)) // ordinal of the next copy
	for _, s := range dir.spans {
		next[s.outbox] = s.first
	}
	kept := make(map[uint32]uint64)
	for _, rec := range b.Records() {
		stay := false
		var outboxes []uint32
		err := copiesOf(rec, func(outbox uint32) {
			outboxes = append(outboxes, outbox)
			n := w.needs[outbox]
			stay = stay || n.first <= next[outbox] && next[outbox] <= n.last
			next[outbox]++
		})
		if err != nil {
			return b.Directory, slices.Repeat([]bool{true}, b.Count) // as it is
		}
		if stay {
			for _, outbox := range outboxes {
				kept[outbox]++
			}
		}
		stays = append(stays, stay)
	}
	dir.spans = slices.DeleteFunc(dir.spans, func(s span) bool { return kept[s.outbox] == 0 })
	if len(dir.spans) == 0 {
		return nil, nil
	}
	directory = binary.AppendUvarint(nil, dir.lasts)
	var names []uint32
	for i := range dir.spans {
		s := &dir.spans[i]
		s.first = s.last + 1 - kept[s.outbox]
		if !w.named[s.outbox] {
			w.named[s.outbox] = true
			names = append(names, s.outbox)
		}
	}
	directory = binary.AppendUvarint(directory, uint64(len(names)))
	for _, id := range names {
		name := removedName
		if o := w.chain.outbox(id); o != nil {
			name = o.name
		}
		directory = appendName(directory, id, name)
	}
	directory = appendSpans(directory, dir.spans)
	directory = binary.AppendUvarint(directory, uint64(len(dir.spans)))
	for _, s := range dir.spans {
		m := w.needs[s.outbox].marks
		directory = binary.AppendUvarint(directory, uint64(s.outbox))
		directory = appendMarks(directory, &m)
	}
	return directory, stays
}

func (c *chain) outbox(id uint32) *Outbox {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.outboxes[id]
}

// replace makes a rewritten generation count: durably, and for the outboxes.
func (c *chain) replace(ids []log.GenID, s log.Seal, needs map[uint32]need) error {
	g := &generation{id: s.ID}
	g.sealed.Store(true)
	never := false
	old := make(map[*generation]bool)
	c.mu.Lock()
	for _, id := range ids {
		o := c.gens[id]
		old[o] = true
		never = never || o.lasts == 0
		g.lasts = max(g.lasts, o.lasts) // after the newest commit of all: not too early
	}
	c.mu.Unlock()
	if never {
		g.lasts = 0
	}
	var spans []span
	for id, n := range needs {
		if n.last > 0 {
			spans = append(spans, span{id, n.first, n.last})
		}
	}
	if err := c.buffer.meta.replace(c, ids, s, g.lasts, spans); err != nil {
		return err
	}
	c.mu.Lock()
	for _, id := range ids {
		delete(c.gens, id)
	}
	c.gens[g.id] = g
	c.mu.Unlock()
	for _, o := range c.all() {
		o.repin(old, g)
	}
	return nil
}

// repin notes that one generation holds what others held.
func (o *Outbox) repin(old map[*generation]bool, g *generation) {
	o.mu.Lock()
	defer o.mu.Unlock()
	i := slices.IndexFunc(o.pins, func(p pin) bool { return old[p.gen] })
	if i < 0 {
		return
	}
	j := i
	for j+1 < len(o.pins) && old[o.pins[j+1].gen] {
		j++
	}
	bytes := int64(0)
	for _, p := range o.pins[i : j+1] {
		bytes += p.bytes
	}
	o.pins = slices.Replace(o.pins, i, j+1, pin{g, o.pins[i].first, o.pins[j].last, bytes})
	o.chain.pin(g)
}
