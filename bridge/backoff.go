package bridge

import (
	"math/rand/v2"
	"time"
)

// Backoff paces attempts to connect. The first attempt after a stable connection
// was lost is made at once. The n-th after it waits a random time between First
// and First × 2^n, at most Max: never less than First, so that an upstream that
// takes our connections and drops them is not hammered, and spread, so that a
// thousand gateways do not come back together.
type Backoff struct {
	First time.Duration // default 1 s
	Max   time.Duration // default 60 s
}

func (b Backoff) withDefaults() Backoff {
	if b.First <= 0 {
		b.First = time.Second
	}
	if b.Max <= 0 {
		b.Max = time.Minute
	}
	b.Max = max(b.Max, b.First)
	return b
}

// delay is the wait before the n-th attempt, counted from 0.
func (b Backoff) delay(n int) time.Duration {
	if n <= 0 {
		return 0
	}
	top := b.Max
	if n < 32 && b.First<<n>>n == b.First { // no overflow
		top = min(top, b.First<<n)
	}
	return b.First + rand.N(top-b.First+1)
}
