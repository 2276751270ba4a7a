package log

import (
	"bytes"
	"context"
	"encoding/binary"
	"runtime"
	"slices"
	"sync"
	"time"
)

// queue holds the records that wait for a commit, in the chunks in which blocks will
// take them.
type queue struct {
	limit    int                   // bytes that may wait
	maxN     int                   // records in a block
	maxBytes int                   // and their bytes
	chunk    func(size int) *chunk // makes one with room for so many bytes
	wake     chan struct{}         // something was pushed; one is enough for many
	closedC  chan struct{}

	mu     sync.Mutex // guards what follows
	room   sync.Cond  // bytes fell below limit, or closed
	chunks []*chunk   // of those but the last, each is a whole block
	n      int        // records in them
	bytes  int        // and their bytes
	usual  int        // bytes in the chunk that was taken last
	closed bool
}

// chunk is the records of a block, one after the other as they stand in it. They are
// not copied any more before they go to the disk.
type chunk struct {
	buf    []byte // headRoom bytes, and the records, each after its length
	n      int
	urgent bool      // one of them is
	since  time.Time // when the first came
	batch  any       // what the owner has to them
}

// headRoom is what is left in front of the records, for the block's header and its
// directory if it is no longer than most.
const headRoom = headerSize + 192

func (c *chunk) size() int { return len(c.buf) - headRoom }

// add appends a record of about so many bytes, which the owner writes.
func (c *chunk) add(size int, urgent bool, write func(batch any, dst []byte) []byte) {
	at := len(c.buf)
	c.buf = binary.AppendUvarint(c.buf, uint64(size))
	start := len(c.buf)
	c.buf = write(c.batch, c.buf)
	if got := len(c.buf) - start; got != size {
		rec := bytes.Clone(c.buf[start:])
		c.buf = append(binary.AppendUvarint(c.buf[:at], uint64(got)), rec...)
	}
	c.n++
	c.urgent = c.urgent || urgent
}

func (q *queue) init(limit, maxN, maxBytes int, chunk func(size int) *chunk) {
	q.limit, q.maxN, q.maxBytes, q.chunk = limit, maxN, maxBytes, chunk
	q.room.L = &q.mu
	q.wake = make(chan struct{}, 1)
	q.closedC = make(chan struct{})
}

func (q *queue) push(ctx context.Context, size int, urgent bool, write func(batch any, dst []byte) []byte) error {
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
	var c *chunk
	if k := len(q.chunks); k > 0 {
		c = q.chunks[k-1]
	}
	whole := q.whole()
	wake := c == nil || urgent && !q.chunks[0].urgent
	if c == nil || c.n >= q.maxN || c.size()+size > q.maxBytes {
		c = q.chunk(max(size, min(q.usual+q.usual/8, q.maxBytes)))
		c.since = time.Now()
		q.chunks = append(q.chunks, c)
	}
	before := c.size()
	c.add(size, urgent, write)
	q.n++
	q.bytes += c.size() - before
	wake = wake || q.whole() && !whole
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

// whole reports whether a whole block waits. q.mu is held.
func (q *queue) whole() bool {
	return len(q.chunks) > 1 || len(q.chunks) == 1 && (q.chunks[0].n >= q.maxN || q.chunks[0].size() >= q.maxBytes)
}

// waiting is how many records wait for a block that is neither whole nor the last.
func (q *queue) waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.whole() || q.closed {
		return -1
	}
	return q.n
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

// enough is how many records nobody waits for more of: from here on it takes less
// time to have some made while the disk works for others than to sync less often.
// Of 128 to 512, it was the fastest with 1,000 who append.
const enough = 256

// gather lets those come back whom the last commit has answered: a commit takes
// about as long for many as for few. It waits no longer than until.
func (q *queue) gather(told <-chan struct{}, until time.Time) {
	left := time.Until(until)
	if n := q.waiting(); left <= 0 || n < 0 || n >= enough {
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
		if n < 0 || n >= enough {
			return
		}
		if same++; n != seen {
			seen, same = n, 0
		}
	}
}

// take waits for records, lets those that are not urgent wait for company up to
// linger, and returns those of the next block; nil once the queue is closed and
// empty.
func (q *queue) take(linger time.Duration) *chunk {
	var timer *time.Timer
	defer func() {
		if timer != nil {
			timer.Stop()
		}
	}()
	for {
		q.mu.Lock()
		none, closed, wait := len(q.chunks) == 0, q.closed, linger
		if !none {
			wait -= time.Since(q.chunks[0].since)
			if q.chunks[0].urgent || closed || wait <= 0 || q.whole() {
				c := q.next()
				q.mu.Unlock()
				return c
			}
		}
		q.mu.Unlock()
		if none {
			if closed {
				return nil
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

// next takes the first chunk. q.mu is held.
func (q *queue) next() *chunk {
	c := q.chunks[0]
	q.chunks = slices.Delete(q.chunks, 0, 1)
	full := q.bytes >= q.limit
	q.n -= c.n
	q.bytes -= c.size()
	q.usual = c.size()
	if full && q.bytes < q.limit {
		q.room.Broadcast()
	}
	return c
}
