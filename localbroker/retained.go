package localbroker

import (
	"container/heap"
	"sync"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/topic"
)

// retained holds the last message of each topic that was published with
// retain, MQTT 5 §3.3.1.3.
type retained struct {
	mu      sync.RWMutex // guards what follows
	names   topic.Names[*Message]
	bytes   int
	own     int      // of the broker, below $SYS: they do not count
	expires expiries // those that expire, some of which may have been replaced
}

// expiries is a heap of messages, the one that expires first in front.
type expiries []*Message

func (e expiries) Len() int           { return len(e) }
func (e expiries) Less(i, j int) bool { return e[i].expiresAt().Before(e[j].expiresAt()) }
func (e expiries) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *expiries) Push(m any)        { *e = append(*e, m.(*Message)) }
func (e *expiries) Pop() any {
	n := len(*e) - 1
	m := (*e)[n]
	(*e)[n] = nil
	*e = (*e)[:n]
	return m
}

// set keeps m in the place of its topic's last message, or, if it is empty,
// nothing. What was published later stays.
func (r *retained) set(m *Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, ok := r.names.Get(m.Topic)
	if ok && old.stamp > m.stamp {
		return
	}
	if ok {
		r.bytes -= old.size()
	}
	if len(m.Payload) == 0 { // [MQTT-3.3.1-6]
		r.names.Delete(m.Topic)
		return
	}
	r.names.Set(m.Topic, m)
	if !ok && ownTopic(m.Topic) {
		r.own++
	}
	r.bytes += m.size()
	if m.Expiry > 0 {
		if len(r.expires) > 2*r.names.Len()+64 { // most were replaced
			r.expires = r.expires[:0]
			for _, m := range r.names.AppendMatches(nil, "#") {
				if m.Expiry > 0 {
					r.expires = append(r.expires, m)
				}
			}
			heap.Init(&r.expires)
		} else {
			heap.Push(&r.expires, m)
		}
	}
}

// full reports whether one more topic than limit would be kept if m were.
func (r *retained) full(m *Message, limit int) bool {
	if !m.Retain || len(m.Payload) == 0 {
		return false
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.names.Len()-r.own < limit {
		return false
	}
	_, ok := r.names.Get(m.Topic)
	return !ok
}

// match returns the messages whose topic matches filter and that have not expired.
// begin is called at the moment from which on none is set.
func (r *retained) match(filter string, begin func()) []*Message {
	r.mu.RLock()
	begin()
	found := r.names.AppendMatches(nil, filter)
	r.mu.RUnlock()
	at := time.Now()
	valid := found[:0]
	for _, m := range found {
		if _, _, ok := m.expiresIn(at); ok {
			valid = append(valid, m)
		}
	}
	return valid
}

// expire takes out what has expired, and returns the topics.
func (r *retained) expire(now time.Time) (topics []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.expires) > 0 && !now.Before(r.expires[0].expiresAt()) {
		m := heap.Pop(&r.expires).(*Message)
		if kept, _ := r.names.Get(m.Topic); kept == m {
			r.names.Delete(m.Topic)
			r.bytes -= m.size()
			topics = append(topics, m.Topic)
		}
	}
	return topics
}

func (r *retained) count() (messages, bytes int) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.names.Len(), r.bytes
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
