package buffer

import (
	"time"

	"github.com/fieldferry/fieldferry/buffer/log"
)

// MarshalText is String, for JSON.
func (c Class) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Rejecting returns the classes that refuse messages because there is no room.
func (b *Buffer) Rejecting() []Class {
	var full []Class
	for class, c := range b.chains {
		if c.full.Load() {
			full = append(full, Class(class))
		}
	}
	return full
}

// Believes reports whether a time of the machine's clock, such as time.Now gives, can
// be believed. If not, nothing that is stored now ages or expires by it either, but
// by the uptime.
func (b *Buffer) Believes(t time.Time) bool { return b.clock.believes(t) }

// OldestAge is how long ago the oldest copy that is not settled became durable,
// of the outboxes that are wanted; false if there is none. Where the clock is not
// believed it is what is certain. It reads the headers of at most one generation for
// each outbox.
func (b *Buffer) OldestAge(wanted func(*Outbox) bool) (age time.Duration, ok bool) {
	for _, o := range b.Outboxes() {
		if !wanted(o) {
			continue
		}
		if block := o.oldest(); block != nil {
			age, ok = max(age, b.clock.age(block.Boot, block.Uptime)), true
		}
	}
	return age, ok
}

// oldest is the block that holds the oldest copy that is not settled, nil if there
// is none or it cannot be read.
func (o *Outbox) oldest() *log.Block {
	o.mu.Lock()
	open := o.unsettled()
	var from log.Seq
	if len(o.pins) > 0 {
		from = log.Seq(o.pins[0].gen.id.First)
	}
	o.mu.Unlock()
	if len(open) == 0 || from == 0 {
		return nil
	}
	block, err := o.chain.log.After(from-1, func(_ *log.Header, dir []byte) bool {
		s, ok := findSpan(dir, o.id)
		return ok && s.last >= open[0].first
	})
	if err != nil {
		return nil // the reader meets it too, and tells of it
	}
	return block
}
