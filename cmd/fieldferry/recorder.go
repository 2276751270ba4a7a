package main

import (
	"context"
	"strconv"
	"strings"
	"sync"

	"github.com/fieldferry/fieldferry/localbroker/client"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// recorder subscribes upstream and holds what arrives against the numbers that
// gateways give their messages: seq is origin.boot.n, n without gaps for each
// topic and boot.
type recorder struct {
	*client.Client

	mu         sync.Mutex // guards what follows
	streams    map[string]*stream
	distinct   uint64
	duplicates uint64
}

// stream is one topic of one boot of one gateway.
type stream struct {
	next  uint64          // all below have arrived
	ahead map[uint64]bool // arrived above next
	high  uint64
}

func newRecorder(ctx context.Context, address, filter string) (*recorder, error) {
	r := &recorder{streams: make(map[string]*stream)}
	c, err := client.Connect(ctx, client.Options{Address: address, ClientID: "recorder", Handler: r.take})
	if err != nil {
		return nil, err
	}
	r.Client = c
	if _, err := c.Subscribe(ctx, packet.Subscription{Filter: filter, QoS: 1}); err != nil {
		c.Abort()
		return nil, err
	}
	return r, nil
}

// take counts one message. One without a number is not a reading: the gateway's
// own status.
func (r *recorder) take(m *client.Message) {
	seq := ""
	for key, value := range m.Props.User() {
		if key == "seq" {
			seq = value
		}
	}
	if seq != "" {
		r.count(m.Topic, seq)
	}
}

// count takes the number of a message on a topic.
func (r *recorder) count(topic, seq string) {
	i := strings.LastIndexByte(seq, '.') + 1
	n, err := strconv.ParseUint(seq[i:], 10, 64)
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	key := topic + " " + seq[:i]
	s := r.streams[key]
	if s == nil {
		s = &stream{next: 1, ahead: make(map[uint64]bool)}
		r.streams[key] = s
	}
	if n < s.next || s.ahead[n] {
		r.duplicates++
		return
	}
	r.distinct++
	s.high = max(s.high, n)
	s.ahead[n] = true
	for s.ahead[s.next] {
		delete(s.ahead, s.next)
		s.next++
	}
}

// Distinct is how many different messages have arrived.
func (r *recorder) Distinct() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.distinct
}

// Duplicates is how many have arrived again.
func (r *recorder) Duplicates() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.duplicates
}

// Missing is how many numbers are absent between those that have arrived.
func (r *recorder) Missing() (n uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.streams {
		n += s.high + 1 - s.next - uint64(len(s.ahead))
	}
	return n
}
