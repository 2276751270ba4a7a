package buffer

// OutboxLimit bounds what one outbox holds. A zero is no limit, but for Window.
type OutboxLimit struct {
	Messages uint64 // copies that are not settled
	Bytes    int64  // about what those take
	Window   uint64 // copies handed out and not settled, from the oldest on; 1 to 65,535, which 0 stands for
	// Dropped is told how many copies were dropped for the limit. It is called while
	// locks of the buffer are held: it must neither block nor call the buffer.
	Dropped func(n uint64)
	// KeepExpired hands out what has expired all the same, and keeps it until then: its
	// destination tells the sender. Set it before anything is appended.
	KeepExpired bool
}

// keepsExpired reports whether what has expired is to be handed out.
func (o *Outbox) keepsExpired() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.limit.KeepExpired
}

// SetLimit sets the outbox's limit. When it holds more than that, its oldest copies
// are settled as DroppedOldest, but none that may have been handed out.
func (o *Outbox) SetLimit(l OutboxLimit) {
	if l.Window == 0 || l.Window > maxWindow {
		l.Window = maxWindow
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.limit = l
	o.trim()
}

// trim drops what is over the limit. o.mu is held.
func (o *Outbox) trim() {
	over := uint64(0)
	if o.limit.Messages > 0 && o.stored > o.limit.Messages {
		over = o.stored - o.limit.Messages
	}
	if o.limit.Bytes > 0 && o.stored > 0 {
		if bytes := o.bytes(); bytes > o.limit.Bytes {
			each := max(float64(bytes)/float64(o.stored), 1)
			over = max(over, min(uint64(float64(bytes-o.limit.Bytes)/each)+1, o.stored-1))
		}
	}
	if over == 0 {
		return
	}
	first := max(o.taken, o.dupTo) + 1 // before that, what may have been handed out
	for i := 0; over > 0 && first < o.next; {
		for i < len(o.voids) && o.voids[i].last < first {
			i++
		}
		if i < len(o.voids) && o.voids[i].first <= first {
			first = o.voids[i].last + 1
			continue
		}
		last := min(first+over-1, o.next-1)
		if i < len(o.voids) {
			last = min(last, o.voids[i].first-1)
		}
		dropped := o.void(first, last, DroppedOldest)
		if o.limit.Dropped != nil && dropped > 0 {
			o.limit.Dropped(dropped)
		}
		over -= min(over, max(dropped, 1))
		first = last + 1
	}
	o.unpinVoids()
	o.advance()
}

// bytes is about what the copies take that are not settled. o.mu is held.
func (o *Outbox) bytes() (n int64) {
	next := o.cursor + 1
	for _, p := range o.pins {
		if first := max(p.first, next); first <= p.last {
			left := p.last - first + 1 - o.voided(first, p.last)
			n += int64(float64(p.bytes) * float64(left) / float64(p.last-p.first+1))
		}
	}
	return n
}

// voided is how many copies from first to last were dropped before the cursor came
// to them. o.mu is held.
func (o *Outbox) voided(first, last uint64) (n uint64) {
	for _, v := range o.voids {
		if a, b := max(first, v.first), min(last, v.last); a <= b {
			n += b - a + 1
		}
	}
	return n
}

// unpinVoids lets go of the generations of which everything was dropped. o.mu is
// held.
func (o *Outbox) unpinVoids() {
	kept := o.pins[:0]
	v := 0
	for _, p := range o.pins {
		for v < len(o.voids) && o.voids[v].last < p.first {
			v++
		}
		if v < len(o.voids) && o.voids[v].first <= p.first && p.last <= o.voids[v].last {
			o.chain.unpin(p.gen)
			continue
		}
		kept = append(kept, p)
	}
	clear(o.pins[len(kept):])
	o.pins = kept
}
