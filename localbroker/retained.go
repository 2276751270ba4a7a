package localbroker

import (
	"container/heap"
	"fmt"
	"sync"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/topic"
)

// retained holds the last message of each topic that was published with
// retain, MQTT 5 §3.3.1.3.
type retained struct {
	mu      sync.RWMutex // guards what follows
	names   topic.Names[*Message]
	bytes   int      // of all, those of the broker included
	own     int      // of the broker, below $SYS: they do not count
	expires expiries // those that expire

	stamped int               // publishes that have a stamp and are about to be set
	gone    map[string]uint64 // topics that have none any more, by the stamp of that: while older ones may come
}

// expiries is a heap of messages, the one that expires first in front. It knows where
// each is, so that one that is replaced is not held until it would have expired.
type expiries struct {
	heap   []*Message
	places map[*Message]int
}

func (e *expiries) Len() int           { return len(e.heap) }
func (e *expiries) Less(i, j int) bool { return e.heap[i].expiresAt().Before(e.heap[j].expiresAt()) }
func (e *expiries) Swap(i, j int) {
	e.heap[i], e.heap[j] = e.heap[j], e.heap[i]
	e.places[e.heap[i]], e.places[e.heap[j]] = i, j
}

func (e *expiries) Push(m any) {
	if e.places == nil {
		e.places = make(map[*Message]int)
	}
	e.places[m.(*Message)] = len(e.heap)
	e.heap = append(e.heap, m.(*Message))
}

func (e *expiries) Pop() any {
	n := len(e.heap) - 1
	m := e.heap[n]
	e.heap[n] = nil
	e.heap = e.heap[:n]
	delete(e.places, m)
	return m
}

func (e *expiries) remove(m *Message) {
	if i, ok := e.places[m]; ok {
		heap.Remove(e, i)
	}
}

// set keeps m in the place of its topic's last message, or, if it is empty,
// nothing. What was published later stays.
func (r *retained) set(m *Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, ok := r.names.Get(m.Topic)
	if ok && old.stamp > m.stamp || r.gone[m.Topic] > m.stamp {
		return
	}
	delete(r.gone, m.Topic)
	if ok {
		r.bytes -= old.size()
		r.expires.remove(old)
	}
	if len(m.Payload) == 0 { // [MQTT-3.3.1-6]
		r.names.Delete(m.Topic)
		if r.stamped > 0 {
			if r.gone == nil {
				r.gone = make(map[string]uint64)
			}
			r.gone[m.Topic] = m.stamp
		}
		return
	}
	r.names.Set(m.Topic, m)
	if !ok && ownTopic(m.Topic) {
		r.own++
	}
	r.bytes += m.size()
	if m.Expiry > 0 {
		heap.Push(&r.expires, m)
	}
}

// expect notes that a publish has got its stamp and is set later, and done that it was.
func (r *retained) expect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stamped++
}

func (r *retained) done() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stamped--; r.stamped == 0 {
		r.gone = nil
	}
}

// full says which limit m would be beyond if it were kept, or nothing. What takes no
// more room than what it replaces is always kept.
func (r *retained) full(m *Message, limits *Limits) string {
	if !m.Retain || len(m.Payload) == 0 {
		return ""
	}
	size := m.size()
	r.mu.RLock()
	defer r.mu.RUnlock()
	many, large := r.names.Len()-r.own >= limits.RetainedMessages, r.bytes+size > limits.RetainedBytes
	if !many && !large {
		return ""
	}
	old, ok := r.names.Get(m.Topic)
	switch {
	case many && !ok:
		return fmt.Sprintf("more than %d retained messages", limits.RetainedMessages)
	case large && (!ok || size > old.size() && r.bytes+size-old.size() > limits.RetainedBytes):
		return fmt.Sprintf("retained messages of more than %d bytes together", limits.RetainedBytes)
	}
	return ""
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
	for len(r.expires.heap) > 0 && !now.Before(r.expires.heap[0].expiresAt()) {
		m := heap.Pop(&r.expires).(*Message)
		r.names.Delete(m.Topic)
		r.bytes -= m.size()
		topics = append(topics, m.Topic)
	}
	return topics
}

func (r *retained) count() (messages, bytes int) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.names.Len(), r.bytes
}
