package log

import (
	"context"
	"runtime"
	"sync"
	"time"
)

// queue holds the entries that wait for a commit.
type queue struct {
	limit    int           // bytes that may wait
	maxN     int           // entries that a block takes
	maxBytes int           // and their bytes
	wake     chan struct{} // something was pushed; one is enough for many
	closedC  chan struct{}

	mu      sync.Mutex // guards what follows
	room    sync.Cond  // bytes fell below limit, or closed
	entries []Entry
	bytes   int
	urgent  bool // an entry among entries is
	since   time.Time
	closed  bool
}

func (q *queue) init(limit, maxN, maxBytes int) {
	q.limit, q.maxN, q.maxBytes = limit, maxN, maxBytes
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
	wake := len(q.entries) == 0 || e.Urgent && !q.urgent
	if len(q.entries) == 0 {
		q.since = time.Now()
	}
	full := q.full()
	q.entries = append(q.entries, e)
	q.bytes += len(e.Data)
	q.urgent = q.urgent || e.Urgent
	wake = wake || q.full() && !full
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

// full reports whether a whole block waits. q.mu is held.
func (q *queue) full() bool { return len(q.entries) >= q.maxN || q.bytes >= q.maxBytes }

// waiting is how many entries wait for a block that is neither whole nor the last.
func (q *queue) waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.full() || q.closed {
		return -1
	}
	return len(q.entries)
}

// awaitWhole waits until a whole block is there or the queue is closed, and
// returns nil, or until a commit ends.
func (q *queue) awaitWhole(ended <-chan *ending) *ending {
	for q.waiting() >= 0 {
		select {
		case e := <-ended:
			return e
		case <-q.wake:
		case <-q.closedC:
		}
	}
	return nil
}

// gather lets those come back whom the last commit has answered: a commit takes
// about as long for many as for few. It waits no longer than until.
func (q *queue) gather(told <-chan struct{}, until time.Time) {
	left := time.Until(until)
	if left <= 0 || q.waiting() < 0 {
		return
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-told:
	case <-timer.C:
		return
	}
	const idle = 2 // one may have gone by while they were about to come
	for seen, same := -1, 0; same < idle && time.Now().Before(until); runtime.Gosched() {
		n := q.waiting()
		if n < 0 {
			return
		}
		if same++; n != seen {
			seen, same = n, 0
		}
	}
}

// take waits for entries, lets those that are not urgent wait for company up to
// linger, and moves what a block holds into dst, one entry at the least.
// It returns nothing once the queue is closed and empty.
func (q *queue) take(dst []Entry, linger time.Duration) []Entry {
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
		if n > 0 && (q.urgent || q.closed || wait <= 0 || q.full()) {
			dst = q.move(dst)
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

// move takes the oldest entries out, in exchange for dst, which is empty. What remains
// is as urgent as it was: the loop is about to come back for it.
func (q *queue) move(dst []Entry) []Entry {
	n, bytes := 0, 0
	for n < len(q.entries) && n < q.maxN {
		size := len(q.entries[n].Data)
		if n > 0 && bytes+size > q.maxBytes {
			break
		}
		bytes += size
		n++
	}
	rest := len(q.entries) - n
	dst = append(dst, q.entries[n:]...)
	clear(q.entries[n:])
	dst, q.entries = q.entries[:n], dst
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
