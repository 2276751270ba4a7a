package localbroker

import (
	"math"
	"sync"
)

// replaying has a new subscription of a session that is kept get each retained message
// once, and none behind a newer one of its topic, though some are published meanwhile.
type replaying struct {
	mu   sync.Mutex
	seen map[string]uint64 // by topic, the stamp of what has come
}

// newer notes that a retained message is about to be appended for the subscription
// that is newer than those that are there.
func (r *replaying) newer(topic string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.see(topic, math.MaxUint64)
}

// see notes what has come. r.mu is held.
func (r *replaying) see(topic string, stamp uint64) {
	if r.seen == nil {
		r.seen = make(map[string]uint64)
	}
	r.seen[topic] = stamp
}

// unless calls append, which appends m, unless that or something newer was appended or
// is about to be. The lock is held over the call: nothing may come in between.
func (r *replaying) unless(m *Message, append func() error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if stamp, ok := r.seen[m.Topic]; ok && stamp >= m.stamp {
		return nil
	}
	if err := append(); err != nil {
		return err
	}
	r.see(m.Topic, m.stamp)
	return nil
}

// coming are the retained publishes that are under way: some who get them were looked
// up already, others subscribe before they are retained.
type coming struct {
	mu    sync.Mutex      // guards what follows
	n     map[uint64]int  // by how many subscriptions there had been
	young []*subscription // that may be late for some of them, and have got all that were there
}

// begin notes that a retained publish is about to be looked up. It returns what end is to
// be called with.
func (x *index) begin() (changes uint64) {
	x.mu.RLock() // a subscription that is added later knows of it
	defer x.mu.RUnlock()
	x.coming.mu.Lock()
	defer x.coming.mu.Unlock()
	x.coming.add(x.changes)
	return x.changes
}

// add is begin for one that goes on. c.mu is held.
func (c *coming) add(changes uint64) {
	if c.n == nil {
		c.n = make(map[uint64]int)
	}
	c.n[changes]++
}

// again is begin for a part of the same publish.
func (c *coming) again(changes uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(changes)
}

// end notes that it is retained, and has come to those who were late for it.
func (c *coming) end(changes uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n[changes]--; c.n[changes] == 0 {
		delete(c.n, changes)
	}
	c.release()
}

// replayed notes that a subscription has got all retained messages that were there.
func (c *coming) replayed(sub *subscription) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.young = append(c.young, sub)
	c.release()
}

// release lets go of what subscriptions have seen that are late for nothing any more.
// c.mu is held.
func (c *coming) release() {
	oldest := uint64(math.MaxUint64)
	for changes := range c.n {
		oldest = min(oldest, changes)
	}
	kept := c.young[:0]
	for _, sub := range c.young {
		if sub.since <= oldest {
			sub.replaying.Store(nil)
		} else {
			kept = append(kept, sub)
		}
	}
	clear(c.young[len(kept):])
	c.young = kept
}
