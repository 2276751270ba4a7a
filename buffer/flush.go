package buffer

import (
	"context"
	"errors"
	"time"

	"github.com/fieldferry/fieldferry/buffer/log"
)

const (
	flushEvery = time.Second      // marks wait this long for a block to travel with
	sealIdle   = 5 * time.Second  // a generation that nobody needs is kept this long for the next append
	tidyEvery  = 10 * time.Second // generations are looked at for what may be rewritten
)

// hurry has the flusher save the marks that a reader waits for.
func (b *Buffer) hurry() {
	b.waits.Store(true)
	b.kickFlusher()
}

func (b *Buffer) kickFlusher() {
	select {
	case b.kick <- struct{}{}:
	default:
	}
}

// flush is the goroutine that makes marks durable and removes what nobody needs.
func (b *Buffer) flush() {
	defer func() {
		for _, c := range b.chains {
			c.roomMade(true)
		}
	}()
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	idle := make([]int, NumClasses)
	for ticks := 1; ; {
		select {
		case <-b.stop:
			return
		case <-b.kick:
			if err := b.keepRoom(); err != nil {
				b.logger.Error("room in the buffer could not be kept", "err", err)
			}
			if b.waits.Swap(false) {
				if err := b.save(false); err != nil {
					b.logger.Error("marks could not be saved; readers wait for them", "err", err)
				}
			}
		case <-tick.C:
			b.clock.observe()
			for i, c := range b.chains {
				if !c.idle() {
					idle[i] = 0
					continue
				}
				if idle[i]++; idle[i] >= int(sealIdle/flushEvery) {
					idle[i] = 0
					if err := c.log.Rotate(context.Background()); err != nil {
						b.logger.Error("generation could not be sealed", "class", c.class.String(), "err", err)
					}
				}
			}
			if err := b.keepRoom(); err != nil {
				b.logger.Error("room in the buffer could not be kept", "err", err)
			}
			if err := b.save(false); err != nil {
				b.logger.Error("marks could not be saved; if the process dies now, copies come twice", "err", err)
				continue
			}
			if ticks++; ticks%int(tidyEvery/flushEvery) == 0 {
				if err := b.tidy(mergeAtLeast); err != nil && !errors.Is(err, errStopped) {
					b.logger.Error("generations could not be rewritten", "err", err)
				}
			}
		}
		if err := b.sweep(); err != nil {
			b.logger.Error("generations that are not needed could not be removed", "err", err)
		}
	}
}

// save makes the marks durable that no block has carried for a while, or all.
func (b *Buffer) save(all bool) error {
	var dirty []*Outbox
	for _, o := range b.Outboxes() {
		o.mu.Lock()
		if o.dirty && (all || time.Since(o.since) >= flushEvery || o.urgent()) {
			dirty = append(dirty, o)
		}
		o.mu.Unlock()
	}
	if len(dirty) == 0 && !all && !b.clock.unsaved() {
		return nil
	}
	return b.meta.save(dirty, b.rejected(), b.clock)
}

func (b *Buffer) rejected() (n [NumClasses]uint64) {
	for class, c := range b.chains {
		n[class] = c.rejected.Load()
	}
	return n
}

// sweep removes the generations that no outbox needs. The marks that say so are
// durable before the first file goes.
func (b *Buffer) sweep() error {
	for _, c := range b.chains {
		gens := c.drained()
		if len(gens) == 0 {
			continue
		}
		if err := b.save(true); err != nil {
			return err
		}
		ids := make([]log.GenID, len(gens))
		for i, g := range gens {
			ids[i] = g.id
			if err := c.log.Remove(g.id); err != nil {
				return err
			}
		}
		if err := b.meta.forget(c.class, ids); err != nil {
			return err
		}
		c.mu.Lock()
		for _, id := range ids {
			delete(c.gens, id)
		}
		c.mu.Unlock()
	}
	return nil
}
