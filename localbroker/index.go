package localbroker

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/fieldferry/fieldferry/localbroker/topic"
)

// subscription is what a client has subscribed to with one filter, or what a
// group has. It never changes, but for replaying; another one takes its place.
type subscription struct {
	session           *session
	filter            string // as the client wrote it
	qos               byte
	noLocal           bool
	retainAsPublished bool
	ids               []uint32 // the subscription identifier; empty is none
	group             *group   // of a shared subscription

	replaying atomic.Pointer[replaying] // retained messages are being looked for, for a session that is kept
}

// group is a shared subscription with its members, MQTT 5 §4.8.2.
type group struct {
	filter  string // without the share
	all     *subscription
	members []*subscription // guarded by index.mu
	turn    atomic.Uint32
}

// pick returns the member whose turn it is: of those that are connected; if none is,
// of those whose sessions are kept. It returns nil if there is none of these either.
func (g *group) pick() *subscription {
	n := uint32(len(g.members))
	first := g.turn.Add(1)
	var away *subscription
	for i := range n {
		m := g.members[(first+i)%n]
		if m.session.online() {
			return m
		}
		if away == nil && m.session.kept != nil {
			away = m
		}
	}
	return away
}

// index finds the subscriptions that match a topic. Those of sessions that are kept
// stand apart: what matches them with QoS 1 and 2 has to be known before the
// message is made durable. Groups stand with them whoever their members are, so that
// a message meets each once, whoever comes and leaves meanwhile.
type index struct {
	mu     sync.RWMutex // guards what follows
	live   topic.Filters[*subscription]
	kept   topic.Filters[*subscription]
	groups map[string]*group // by the whole filter, share included
	shared int               // members of all groups

	keeps atomic.Bool // kept is not empty
}

// of returns where a subscription, or the one that stands for a group, is.
func (x *index) of(kept bool) *topic.Filters[*subscription] {
	if kept {
		return &x.kept
	}
	return &x.live
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
	x.keeps.Store(x.kept.Len() > 0)
}

func (x *index) add(sub *subscription) {
	share, filter := topic.SplitShared(sub.filter)
	if share == "" {
		x.of(sub.session.kept != nil).Add(filter, sub)
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
		x.kept.Add(filter, g.all)
	}
	sub.group = g
	g.members = append(g.members, sub)
	x.shared++
}

func (x *index) remove(sub *subscription) {
	g := sub.group
	if g == nil {
		x.of(sub.session.kept != nil).Remove(sub.filter, sub)
		return
	}
	i := slices.Index(g.members, sub)
	if i < 0 {
		return
	}
	g.members = slices.Delete(g.members, i, i+1)
	x.shared--
	if len(g.members) == 0 {
		delete(x.groups, sub.filter)
		x.kept.Remove(g.filter, g.all)
	}
}

// count is the number of subscriptions, and of those that are shared.
func (x *index) count() (all, shared int) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.live.Len() + x.kept.Len() - len(x.groups) + x.shared, x.shared
}

// match appends the subscriptions that get a publish to name, of sessions that are
// kept or of the others. A session can be there twice only if several is true.
func (x *index) match(dst []*subscription, name string, kept bool) (subs []*subscription, several bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	subs, filters := x.of(kept).AppendMatches(dst, name)
	n := len(dst)
	for _, sub := range subs[len(dst):] {
		if sub.group != nil {
			if sub = sub.group.pick(); sub == nil {
				continue
			}
		}
		subs[n] = sub
		n++
	}
	return subs[:n], filters > 1
}

// another returns the member of a group that takes over what one that left has
// not acknowledged; nil if there is none.
func (x *index) another(filter string) *subscription {
	x.mu.RLock()
	defer x.mu.RUnlock()
	g := x.groups[filter]
	if g == nil {
		return nil
	}
	return g.pick()
}
