package log

import (
	"context"
	"sync"
	"time"
)

// queue holds the entries that wait for a commit.
type queue struct {
	limit   int
	wake    chan struct{} // something was pushed; one is enough for many
	closedC chan struct{}

	mu      sync.Mutex // guards what follows
	room    sync.Cond  // bytes fell below limit, or closed
	entries []Entry
	bytes   int
	urgent  bool // an entry among entries is
	since   time.Time
	closed  bool
}

func (q *queue) init(limit int) {
	q.limit = limit
	q.room.L = &q.mu
	q.wake = make(chan struct{}, 1)
	q.closedC = make(chan struct{})
}

func (q *queue) push(ctx context.Context, e Entry) error {
	q.mu.Lock()
	if q.bytes >= q.limit && !q.closed {
		stop := context.AfterFunc(ctx, func() {
			q.mu.Lock()
			defer q.mu.Unlock()
			q.room.Broadcast()
		})
		for q.bytes >= q.limit && !q.closed && ctx.Err() == nil {
			q.room.Wait()
		}
		stop()
		if ctx.Err() != nil {
			q.mu.Unlock()
			return context.Cause(ctx)
		}
	}
	if q.closed {
		q.mu.Unlock()
		return ErrClosed
	}
	wake := len(q.entries) == 0 || e.Urgent && !q.urgent || q.bytes+len(e.Data) >= q.limit
	if len(q.entries) == 0 {
		q.since = time.Now()
	}
	q.entries = append(q.entries, e)
	q.bytes += len(e.Data)
	q.urgent = q.urgent || e.Urgent
	q.mu.Unlock()
	if wake {
		select {
		case q.wake <- struct{}{}:
		default:
		}
	}
	return nil
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		q.closed = true
		close(q.closedC)
		q.room.Broadcast()
	}
}

// take waits for entries, lets those that are not urgent wait for company up to
// linger, and moves up to maxN entries or maxBytes into dst, one at the least.
// It returns nothing once the queue is closed and empty.
func (q *queue) take(dst []Entry, linger time.Duration, maxN, maxBytes int) []Entry {
	var timer *time.Timer
	defer func() {
		if timer != nil {
			timer.Stop()
		}
	}()
	for {
		q.mu.Lock()
		n := len(q.entries)
		wait := linger
		if n > 0 {
			wait -= time.Since(q.since)
		}
		if n > 0 && (q.urgent || q.closed || wait <= 0 || n >= maxN || q.bytes >= maxBytes) {
			dst = q.move(dst, maxN, maxBytes)
			q.mu.Unlock()
			return dst
		}
		closed := q.closed
		q.mu.Unlock()
		if n == 0 {
			if closed {
				return dst
			}
			select {
			case <-q.wake:
			case <-q.closedC:
			}
			continue
		}
		if timer == nil {
			timer = time.NewTimer(wait)
		} else {
			timer.Reset(wait)
		}
		select {
		case <-q.wake:
		case <-timer.C:
		case <-q.closedC:
		}
	}
}

// move takes the oldest entries out. What remains is as urgent as it was: the
// loop is about to come back for it.
func (q *queue) move(dst []Entry, maxN, maxBytes int) []Entry {
	n, bytes := 0, 0
	for n < len(q.entries) && n < maxN {
		size := len(q.entries[n].Data)
		if n > 0 && bytes+size > maxBytes {
			break
		}
		bytes += size
		n++
	}
	dst = append(dst, q.entries[:n]...)
	rest := copy(q.entries, q.entries[n:])
	clear(q.entries[rest:])
	q.entries = q.entries[:rest]
	full := q.bytes >= q.limit
	q.bytes -= bytes
	if rest == 0 {
		q.urgent = false
	}
	if full && q.bytes < q.limit {
		q.room.Broadcast()
	}
	return dst
}
