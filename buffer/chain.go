package buffer

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fieldferry/fieldferry/buffer/log"
)

// chain is the log of one class and what the outboxes of that class know about
// it. It is the log's owner.
type chain struct {
	buffer   *Buffer
	class    Class
	log      *log.Log
	receipts chan ended // commits, in order

	nameless []uint32 // outboxes that were removed, while the chain is opened

	numbering sync.Mutex // makes numbers rise in the order of the appends

	rejected atomic.Uint64 // appends that failed
	tried    atomic.Bool   // something was appended since room was last made
	full     atomic.Bool   // appends are refused

	// Of the goroutine that writes directories.
	touched []*Outbox // have copies in the block being made
	spans   []span

	// Of the committing goroutine.
	writing *generation

	mu       sync.Mutex // guards what follows
	outboxes map[uint32]*Outbox
	gens     map[log.GenID]*generation
	starving starving
	retired  retired
}

// ended is a commit whose receipts are to be told.
type ended struct {
	*appends
	err  error
	told chan struct{} // closed when they are
}

// starving is a commit that waits for room.
type starving struct {
	need int64         // bytes that are missing, 0 if nothing waits
	made chan struct{} // to be closed
	over bool          // nobody makes room any more
}

// generation counts the outboxes that need a generation of the log.
type generation struct {
	id     log.GenID
	pins   atomic.Int64
	sealed atomic.Bool

	// Until it is sealed, of the committing goroutine:
	spans   map[uint32]span // what it holds of each outbox
	expires time.Duration   // uptime when the last of its copies expires; 0 if one never does

	lasts  time.Duration // once it is sealed: after its last commit until the last copy expires; 0 if one never does
	needed uint64        // copies, when tidy last looked

	size, records int64 // of one that was there before this process: of its blocks, and in them
}

// bytes is about what some of its copies take, in one that was there before this
// process.
func (g *generation) bytes(s span) int64 {
	return int64(float64(g.size) * float64(s.last-s.first+1) / float64(max(g.records, 1)))
}

// appends are those of one block.
type appends struct {
	list     []pending
	outboxes []*Outbox // of their copies, one after the other
}

// pending is an append on its way.
type pending struct {
	receipt Receipt
	lasts   uint64 // ms until it expires; 0 is never
}

var batches = sync.Pool{New: func() any { return new(appends) }}

// NewBatch makes room for the appends of a block.
func (c *chain) NewBatch() any { return batches.Get() }

func (c *chain) pin(g *generation) { g.pins.Add(1) }

func (c *chain) unpin(g *generation) {
	if g.pins.Add(-1) == 0 {
		c.buffer.kickFlusher()
	}
}

// Directory gives ordinals to the copies of a block.
func (c *chain) Directory(dst []byte, batch any, fresh, again bool) []byte {
	if again || fresh {
		c.mu.Lock()
		for _, o := range c.outboxes {
			if fresh {
				o.enc.named = false
			}
			if again {
				o.mu.Lock()
				o.enc.next = o.next
				o.mu.Unlock()
			}
		}
		c.mu.Unlock()
	}
	c.touched = c.touched[:0]
	lasts, never := uint64(0), false
	a := batch.(*appends)
	for i := range a.list {
		p := &a.list[i]
		lasts, never = max(lasts, p.lasts), never || p.lasts == 0
	}
	for _, o := range a.outboxes {
		if o.enc.count == 0 {
			o.enc.first = o.enc.next
			c.touched = append(c.touched, o)
		}
		o.enc.count++
		o.enc.next++
	}
	unnamed := 0
	c.spans = c.spans[:0]
	for _, o := range c.touched {
		c.spans = append(c.spans, span{o.id, o.enc.first, o.enc.next - 1})
		o.enc.count = 0
		if !o.enc.named {
			unnamed++
		}
	}
	if never {
		lasts = 0
	}
	dst = binary.AppendUvarint(dst, lasts)
	dst = binary.AppendUvarint(dst, uint64(unnamed))
	for _, o := range c.touched {
		if !o.enc.named {
			o.enc.named = true
			dst = appendName(dst, o.id, o.name)
		}
	}
	dst = appendSpans(dst, c.spans)
	// The marks of the outboxes that get something travel along for nothing.
	now := time.Now()
	dst = binary.AppendUvarint(dst, uint64(len(c.touched)))
	for _, o := range c.touched {
		o.mu.Lock()
		m, _ := o.durable()
		o.since = now // give the block time to get there before meta.db is written
		o.mu.Unlock()
		dst = binary.AppendUvarint(dst, uint64(o.id))
		dst = appendMarks(dst, &m)
	}
	return dst
}

// Committed hands a durable block's copies to their outboxes, and tells everyone
// who waits.
func (c *chain) Committed(b *log.Block, id log.GenID, batch any, err error) <-chan struct{} {
	reason := err
	if log.NoSpace(err) {
		reason = ErrFull
	} else if err != nil {
		reason = ErrFailed
	}
	a := batch.(*appends)
	if err == nil {
		c.accept(b, id)
	} else {
		c.rejected.Add(uint64(len(a.list)))
		c.buffer.logger.Error("messages could not be stored", "class", c.class.String(), "count", len(a.list), "err", err)
	}
	told := make(chan struct{})
	c.receipts <- ended{a, reason, told}
	return told
}

func (c *chain) accept(b *log.Block, id log.GenID) {
	g := c.writing
	if g == nil || g.id != id {
		g = &generation{id: id, spans: make(map[uint32]span)}
		c.writing = g
		c.mu.Lock()
		c.gens[id] = g
		c.mu.Unlock()
	}
	dir, _ := parseDirectory(b.Directory)
	c.mu.Lock()
	outboxes := make([]*Outbox, len(dir.spans))
	for i, s := range dir.spans {
		outboxes[i] = c.outboxes[s.outbox]
	}
	c.mu.Unlock()
	g.add(&b.Header, dir.lasts)
	for i, s := range dir.spans {
		g.extend(s)
		// A fair share of the block, whatever else is in it.
		bytes := int64(float64(b.Size()) * float64(s.last-s.first+1) / float64(b.Count))
		if o := outboxes[i]; o == nil || !o.committed(s, g, bytes) {
			c.ended(s.last - s.first + 1)
		}
	}
}

// add counts in the expiry of one more block; extend comes after.
func (g *generation) add(h *log.Header, lasts uint64) {
	switch expires := h.Uptime + time.Duration(lasts)*time.Millisecond; {
	case lasts == 0:
		g.expires = 0
	case len(g.spans) == 0 || g.expires > 0:
		g.expires = max(g.expires, expires)
	}
}

func (g *generation) extend(s span) {
	if have, ok := g.spans[s.outbox]; ok {
		s.first = have.first
	}
	g.spans[s.outbox] = s
}

// Sealed makes durable what a generation holds, and how far the outboxes of the
// class are settled.
func (c *chain) Sealed(s log.Seal) error {
	c.mu.Lock()
	g := c.gens[s.ID]
	c.mu.Unlock()
	lasts := time.Duration(0)
	if g.expires > 0 {
		lasts = max(g.expires-s.Uptime, time.Millisecond)
	}
	if err := c.buffer.meta.seal(c, s, g, lasts); err != nil {
		return err
	}
	g.spans = nil
	g.lasts = lasts
	g.sealed.Store(true)
	if c.writing == g {
		c.writing = nil
	}
	c.buffer.kickFlusher() // it may be over a limit now, or needed by nobody
	return nil
}

// MakeRoom lets the flusher make room for a commit.
func (c *chain) MakeRoom(need int) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	made := make(chan struct{})
	if c.starving.over {
		close(made)
		return made
	}
	c.starving.need, c.starving.made = int64(need), made
	c.buffer.kickFlusher()
	return made
}

// starved is how many bytes a commit waits for.
func (c *chain) starved() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.starving.need
}

// roomMade lets a commit that waited for room try again. With over, none will
// wait from now on.
func (c *chain) roomMade(over bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.starving.made != nil {
		close(c.starving.made)
	}
	c.starving = starving{over: over}
}

// notify tells receipts how their appends ended, in the order of the commits.
func (c *chain) notify() {
	for e := range c.receipts {
		for i := range e.list {
			e.list[i].receipt.Stored(e.err)
		}
		close(e.told)
		clear(e.list)
		clear(e.outboxes)
		e.list, e.outboxes = e.list[:0], e.outboxes[:0]
		batches.Put(e.appends)
	}
}

// drained returns the sealed generations that no outbox needs.
func (c *chain) drained() []*generation {
	c.mu.Lock()
	defer c.mu.Unlock()
	var gens []*generation
	for _, g := range c.gens {
		if g.sealed.Load() && g.pins.Load() == 0 {
			gens = append(gens, g)
		}
	}
	return gens
}

// idle reports whether the generation that is being written holds nothing that
// anyone needs.
func (c *chain) idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, g := range c.gens {
		if !g.sealed.Load() {
			return g.pins.Load() == 0
		}
	}
	return false
}
