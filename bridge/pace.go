package bridge

import (
	"math"
	"time"
)

// Limit is what the upstream, or whoever is paid for the link, allows. A zero is no
// limit. In any second no more goes than that and a tenth.
type Limit struct {
	Messages float64 // PUBLISH packets a second
	Bytes    float64 // of those packets, a second
}

// pace keeps a limit over all connections of a bridge. Only the writer uses it.
type pace struct {
	messages, bytes bucket
}

// bucket fills with time, and what is sent is taken out. It may go below zero: a
// message that is larger than it ever holds goes all the same, and the next waits.
type bucket struct {
	rate, most, level float64 // a second; at the most; now
	at                time.Time
}

func newPace(l Limit) *pace {
	return &pace{newBucket(l.Messages), newBucket(l.Bytes)}
}

func newBucket(rate float64) bucket {
	most := max(rate/10, 1)
	return bucket{rate: rate, most: most, level: most}
}

// limited reports whether there is a limit at all.
func (p *pace) limited() bool { return p.messages.rate > 0 || p.bytes.rate > 0 }

// allowed is how many messages may go now, and if none, how long to wait. Where bytes
// are limited it is one at a time: nobody knows how large the next are.
func (p *pace) allowed(now time.Time) (n int, wait time.Duration) {
	n = math.MaxInt
	if b := &p.messages; b.rate > 0 {
		b.fill(now)
		n = int(b.level)
		if n < 1 {
			wait = b.until(1)
		}
	}
	if b := &p.bytes; b.rate > 0 {
		b.fill(now)
		n = min(n, 1)
		if b.level <= 0 {
			wait = max(wait, b.until(1))
		}
	}
	if wait > 0 {
		return 0, wait
	}
	return n, 0
}

func (p *pace) sent(size int) {
	p.messages.level--
	p.bytes.level -= float64(size)
}

func (b *bucket) fill(now time.Time) {
	if !b.at.IsZero() {
		b.level = min(b.most, b.level+b.rate*now.Sub(b.at).Seconds())
	}
	b.at = now
}

// until is how long it takes to a level.
func (b *bucket) until(level float64) time.Duration {
	return time.Duration(math.Ceil((level-b.level)/b.rate*1e6)) * time.Microsecond
}
