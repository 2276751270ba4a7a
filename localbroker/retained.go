package localbroker

import (
	"sync"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/topic"
)

// retained holds the last message of each topic that was published with
// retain, MQTT 5 §3.3.1.3.
type retained struct {
	mu    sync.RWMutex // guards what follows
	names topic.Names[*Message]
	bytes int
}

// set keeps m in the place of its topic's last message, or, if it is empty,
// nothing.
func (r *retained) set(m *Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.names.Get(m.Topic); ok {
		r.bytes -= old.size()
	}
	if len(m.Payload) == 0 { // [MQTT-3.3.1-6]
		r.names.Delete(m.Topic)
		return
	}
	r.names.Set(m.Topic, m)
	r.bytes += m.size()
}

// full reports whether one more topic than limit would be kept if m were.
func (r *retained) full(m *Message, limit int) bool {
	if !m.Retain || len(m.Payload) == 0 {
		return false
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.names.Len() < limit {
		return false
	}
	_, ok := r.names.Get(m.Topic)
	return !ok
}

// match returns the messages whose topic matches filter. Those that have
// expired are not among them and not kept any longer. begin is called at
// the moment from which on none is set.
func (r *retained) match(filter string, begin func()) []*Message {
	r.mu.RLock()
	begin()
	found := r.names.AppendMatches(nil, filter)
	r.mu.RUnlock()
	at := time.Now()
	valid := found[:0]
	var expired []*Message
	for _, m := range found {
		if _, _, ok := m.expiresIn(at); ok {
			valid = append(valid, m)
		} else {
			expired = append(expired, m)
		}
	}
	if len(expired) > 0 {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, m := range expired {
			if kept, _ := r.names.Get(m.Topic); kept == m {
				r.names.Delete(m.Topic)
				r.bytes -= m.size()
			}
		}
	}
	return valid
}

func (r *retained) count() (messages, bytes int) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.names.Len(), r.bytes
}
