package localbroker

import (
	"context"
	"slices"
	"sync"
)

// retaining knows of the retained publishes that are on their way: it is looked up who
// gets them, and they are not retained yet. A subscription that comes in between
// gets such a one neither as what is published nor as what is retained, unless it
// waits for that. The zero value is ready.
type retaining struct {
	mu     sync.Mutex // guards what follows
	crowds []*crowd   // who comes now belongs to the last
}

// crowd is publishes that are waited for together.
type crowd struct {
	n    int
	gone chan struct{} // to be closed when n gets to 0; nil while nobody waits, and others may join
}

// enter notes a publish before its receivers are looked up.
func (r *retaining) enter() *crowd {
	r.mu.Lock()
	defer r.mu.Unlock()
	last := len(r.crowds) - 1
	if last < 0 || r.crowds[last].gone != nil {
		r.crowds = append(r.crowds, new(crowd))
		last++
	}
	r.crowds[last].n++
	return r.crowds[last]
}

// leave notes that a publish is retained, or never will be. c may be nil.
func (r *retaining) leave(c *crowd) {
	if c == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.n--; c.n == 0 && c.gone != nil {
		close(c.gone)
		r.crowds = slices.DeleteFunc(r.crowds, func(o *crowd) bool { return o == c })
	}
}

// wait returns when all that have entered have left.
func (r *retaining) wait(ctx context.Context) error {
	var gone []chan struct{}
	r.mu.Lock()
	for _, c := range r.crowds {
		if c.n == 0 {
			continue
		}
		if c.gone == nil {
			c.gone = make(chan struct{})
		}
		gone = append(gone, c.gone)
	}
	r.mu.Unlock()
	for _, g := range gone {
		select {
		case <-g:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// replaying keeps the order between retained messages that a new subscription of a
// kept session gets and those that are published meanwhile: the older must not come
// behind the newer.
type replaying struct {
	mu   sync.Mutex
	seen map[string]struct{} // topics of which something newer is on its way
}

// newer notes that a retained message is about to be appended for the subscription.
func (r *replaying) newer(topic string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen == nil {
		r.seen = make(map[string]struct{})
	}
	r.seen[topic] = struct{}{}
}

// unless calls append, which appends an older message of a topic, unless a newer
// one was appended or is about to be. The lock is held over the call: none may come
// in between.
func (r *replaying) unless(topic string, append func() error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.seen[topic]; ok {
		return nil
	}
	return append()
}
