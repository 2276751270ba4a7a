package buffer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/fieldferry/fieldferry/buffer/log"
)

// Limits bound what a buffer keeps; a zero is no limit.
type Limits struct {
	MaxBytes int64                     // of disk, for all classes together
	MinFree  int64                     // bytes to leave free on the disk
	MaxAge   [NumClasses]time.Duration // since the commit
	Reserve  [NumClasses]int64         // bytes of MaxBytes that other classes leave alone
	// RejectNew refuses messages when there is no room. Otherwise the oldest
	// generation of the least class makes room, up to the class that needs it.
	RejectNew bool
}

// room is how the disk is used.
type room struct {
	used  [NumClasses]int64
	total int64 // with meta.db
	free  int64
}

func (b *Buffer) measure() (room, error) {
	r := room{total: b.meta.db.DiskBytes()}
	for class, c := range b.chains {
		for _, g := range c.log.Generations() {
			r.used[class] += g.DiskBytes
		}
		r.total += r.used[class]
	}
	var err error
	r.free, err = b.free()
	return r, err
}

// missing is how many bytes are wanting for a class to have room.
func (b *Buffer) missing(r *room, class Class) int64 {
	var over int64
	if b.limits.MaxBytes > 0 {
		limit := b.limits.MaxBytes
		for other, reserve := range b.limits.Reserve {
			if Class(other) != class {
				limit -= max(0, reserve-r.used[other])
			}
		}
		over = r.total - limit
	}
	if b.limits.MinFree > 0 {
		over = max(over, b.limits.MinFree-r.free)
	}
	return over
}

// keepRoom applies the limits: it drops what is too old, makes room or lets
// appends be refused, for each class that is being written.
func (b *Buffer) keepRoom() error {
	if err := b.dropOld(); err != nil {
		return err
	}
	for class := range NumClasses {
		c := b.chains[class]
		full, err := b.makeRoom(class)
		c.roomMade(false)
		if err != nil {
			return err
		}
		if c.full.Swap(full) != full {
			b.logger.Warn("room for a class has changed", "class", class.String(), "full", full)
		}
	}
	return nil
}

// makeRoom drops generations until a class has room, unless nothing wants in.
// It reports whether the class has to refuse messages.
func (b *Buffer) makeRoom(class Class) (full bool, err error) {
	starved := 2 * b.chains[class].starved() // a commit takes more than its block
	for {
		r, err := b.measure()
		if err != nil {
			return false, err
		}
		if starved <= 0 && b.missing(&r, class) <= 0 {
			return false, nil
		}
		if b.limits.RejectNew {
			return true, nil
		}
		if !b.chains[class].wanted() && starved <= 0 {
			return false, nil // with the next append it will be
		}
		freed, err := b.dropOldest(class, &r)
		if err != nil || freed == 0 {
			return true, err
		}
		starved -= freed
	}
}

// dropOldest drops one generation of the least class that has more than its
// reserve, but none above the class that needs the room. It returns how many
// bytes that frees.
func (b *Buffer) dropOldest(above Class, r *room) (freed int64, err error) {
	for class := NumClasses; class > above; {
		class--
		if class != above && r.used[class] <= b.limits.Reserve[class] {
			continue
		}
		c := b.chains[class]
		if g, bytes := c.oldestToDrop(); g != nil {
			return max(bytes, 1), b.dropGeneration(c, g, DroppedOldest)
		}
	}
	return 0, nil
}

// dropOld drops the generations whose every message has expired, or is older
// than its class keeps them.
func (b *Buffer) dropOld() error {
	for class, c := range b.chains {
		age := b.limits.MaxAge[class]
		for _, info := range c.log.Generations() {
			var out Outcome
			old := b.clock.age(info.Boot, info.Uptime)
			switch lasts := c.lasts(info.ID); {
			case info.Blocks == 0:
				continue
			case lasts > 0 && old > lasts:
				out = DroppedExpired
			case age > 0 && old > age:
				out = DroppedAge
			default:
				continue
			}
			if g := c.droppable(info.ID); g != nil {
				if err := b.dropGeneration(c, g, out); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// lasts is how long after its last commit the last copy of a sealed generation
// expires, or 0.
func (c *chain) lasts(id log.GenID) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if g := c.gens[id]; g != nil && g.sealed.Load() {
		return g.lasts
	}
	return 0
}

// dropGeneration settles all that outboxes have in a generation and removes it.
func (b *Buffer) dropGeneration(c *chain, g *generation, out Outcome) error {
	if !g.sealed.Load() {
		if err := c.log.Rotate(context.Background()); err != nil {
			return err
		}
	}
	var copies uint64
	for _, o := range c.all() {
		copies += o.drop(g, out)
	}
	b.logger.Warn("messages were dropped", "class", c.class.String(), "reason", reasons[out], "copies", copies, "generation", g.id.String())
	if g.pins.Load() > 0 { // something of it was handed out just now
		return errors.Join(fmt.Errorf("generation %s is in use again", g.id), b.save(true))
	}
	return b.sweep()
}

func (c *chain) all() []*Outbox {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*Outbox, 0, len(c.outboxes))
	for _, o := range c.outboxes {
		all = append(all, o)
	}
	return all
}

// oldestToDrop is the oldest generation of which no copy is under way, and its
// bytes of disk.
func (c *chain) oldestToDrop() (*generation, int64) {
	for _, info := range c.log.Generations() {
		if info.Blocks == 0 {
			continue
		}
		if g := c.droppable(info.ID); g != nil {
			return g, info.DiskBytes
		}
	}
	return nil, 0
}

// droppable returns a generation if none of its copies is under way: what may
// have been sent is sent again unchanged.
func (c *chain) droppable(id log.GenID) *generation {
	c.mu.Lock()
	g := c.gens[id]
	c.mu.Unlock()
	if g == nil || slices.ContainsFunc(c.all(), func(o *Outbox) bool { return o.underWayIn(g) }) {
		return nil
	}
	return g
}

// wanted reports whether anything was appended since it was asked last.
func (c *chain) wanted() bool { return c.tried.Swap(false) }
