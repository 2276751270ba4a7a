package localbroker

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/fieldferry/fieldferry/localbroker/topic"
)

// subscription is what a client has subscribed to with one filter, or what a
// group has. It never changes; another one takes its place.
type subscription struct {
	session           *session
	filter            string // as the client wrote it
	qos               byte
	noLocal           bool
	retainAsPublished bool
	ids               []uint32 // the subscription identifier; empty is none
	group             *group   // of a shared subscription
}

// group is a shared subscription with its members, MQTT 5 §4.8.2.
type group struct {
	filter  string // without the share
	all     *subscription
	members []*subscription // guarded by index.mu
	turn    atomic.Uint32
}

// pick returns the member whose turn it is.
func (g *group) pick() *subscription {
	return g.members[int(g.turn.Add(1)%uint32(len(g.members)))]
}

// index finds the subscriptions that match a topic.
type index struct {
	mu      sync.RWMutex // guards what follows
	filters topic.Filters[*subscription]
	groups  map[string]*group // by the whole filter, share included
	shared  int               // members of all groups
}

// replace puts sub in the place of old; either may be nil. No publish sees
// neither or both.
func (x *index) replace(old, sub *subscription) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if sub != nil {
		x.add(sub)
	}
	if old != nil {
		x.remove(old)
	}
}

func (x *index) add(sub *subscription) {
	share, filter := topic.SplitShared(sub.filter)
	if share == "" {
		x.filters.Add(filter, sub)
		return
	}
	g := x.groups[sub.filter]
	if g == nil {
		g = &group{filter: filter}
		g.all = &subscription{group: g, filter: sub.filter}
		if x.groups == nil {
			x.groups = make(map[string]*group)
		}
		x.groups[sub.filter] = g
		x.filters.Add(filter, g.all)
	}
	sub.group = g
	g.members = append(g.members, sub)
	x.shared++
}

func (x *index) remove(sub *subscription) {
	g := sub.group
	if g == nil {
		x.filters.Remove(sub.filter, sub)
		return
	}
	i := slices.Index(g.members, sub)
	g.members = slices.Delete(g.members, i, i+1)
	x.shared--
	if len(g.members) == 0 {
		x.filters.Remove(g.filter, g.all)
		delete(x.groups, sub.filter)
	}
}

// count is the number of subscriptions, and of those that are shared.
func (x *index) count() (all, shared int) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.filters.Len() - len(x.groups) + x.shared, x.shared
}

// match appends the subscriptions that get a publish to name. A session can be
// there twice only if several is true.
func (x *index) match(dst []*subscription, name string) (subs []*subscription, several bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	subs, filters := x.filters.AppendMatches(dst, name)
	for i, sub := range subs {
		if sub.group != nil {
			subs[i] = sub.group.pick()
		}
	}
	return subs, filters > 1
}

// another returns the member of a group that takes over what one that left has
// not acknowledged; nil if there is none.
func (x *index) another(g *group) *subscription {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if len(g.members) == 0 {
		return nil
	}
	return g.pick()
}
