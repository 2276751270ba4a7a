package buffer

import "time"

// A Stamp is a moment that keeps its meaning over restarts, whatever the wall clock
// does: the time since a boot of the machine.
type Stamp struct {
	Boot   uint64
	Uptime time.Duration // negative if it was before that boot
}

// Stamp is the moment that was so long ago.
func (b *Buffer) Stamp(ago time.Duration) Stamp {
	return Stamp{b.clock.boot, b.clock.up() - ago}
}

// Age is how long ago a moment was, at the least: of one in another boot it is
// known to be before this one if the clocks of both are not believed.
func (b *Buffer) Age(s Stamp) time.Duration { return b.clock.age(s.Boot, s.Uptime) }

// Age is how long ago the message was enqueued.
func (d *Delivery) Age() time.Duration {
	return max(d.Outbox.chain.buffer.clock.raw.Now().Sub(d.Enqueued), 0)
}
