package buffer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing/synctest"
	"time"
)

// What TestSimulation knows of what was promised, and how it holds the buffer to it.

// take takes what comes, or waits for it.
func (w *world) take(q *queueModel, wait time.Duration) {
	dst := make([]Delivery, 1+w.dice.IntN(20))
	n, err := q.reader.TryNext(dst)
	if n == 0 && err == nil && wait > 0 {
		ctx, cancel := context.WithTimeout(w.t.Context(), wait)
		n, err = q.reader.Next(ctx, dst)
		cancel()
	}
	if err != nil && !errors.Is(err, errCrashed) && !errors.Is(err, context.DeadlineExceeded) {
		w.t.Fatalf("seed %d: next: %v", w.seed, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range dst[:n] {
		var i int
		if _, err := fmt.Sscan(string(d.Payload), &i); err != nil {
			w.t.Fatalf("seed %d: payload %q", w.seed, d.Payload)
		}
		if s := w.sent[i]; s != nil && !d.Dup && s.boot == w.clock.boot && time.Since(s.stored) > s.expiry {
			w.t.Fatalf("seed %d: %s: %d came out %v after it was stored, it was good for %v", w.seed, q.name, i, time.Since(s.stored), s.expiry)
		}
		switch {
		case q.failed[i]:
			w.t.Fatalf("seed %d: %s: %d came out, and its publisher was told that it is not stored", w.seed, q.name, i)
		case q.out[i]:
		case i <= q.last && (w.sent[i] == nil || time.Since(w.sent[i].at) <= w.sent[i].expiry):
			// (One that had expired, but not durably, and which a wrong clock brings
			// back, comes with all that come again.)
			w.t.Fatalf("seed %d: %s: %d comes after %d", w.seed, q.name, i, q.last)
		default:
			q.last = max(q.last, i)
			q.out[i] = true
			w.delivered++
		}
		w.note("%s: %d comes as %d, dup %t", q.name, i, d.Ordinal, d.Dup)
		if k := len(q.open); k > 0 && q.open[k-1].Ordinal >= d.Ordinal {
			w.t.Fatalf("seed %d: %s: ordinal %d comes after %d", w.seed, q.name, d.Ordinal, q.open[k-1].Ordinal)
		}
		delete(q.acked, i)
		q.open = append(q.open, d)
	}
}

// settle settles up to n of the copies handed out, mostly in order.
func (w *world) settle(q *queueModel, n int) {
	for range n {
		if len(q.open) == 0 {
			return
		}
		i := 0
		if w.dice.IntN(4) == 0 {
			i = w.dice.IntN(len(q.open))
		}
		q.o.Settle(q.open[i].Ordinal, Delivered)
		q.open = slices.Delete(q.open, i, i+1)
		if w.dice.IntN(10) == 0 {
			return
		}
	}
}

func (w *world) check() {
	if w.off() {
		return
	}
	for _, q := range w.queues {
		l := q.o.Ledger()
		if l.Difference() != 0 {
			w.t.Fatalf("seed %d: %s: the ledger is out by %d: %+v", w.seed, q.name, l.Difference(), l)
		}
		if stored := q.o.recount(); l.Stored != stored {
			w.t.Fatalf("seed %d: %s: %d copies are in the log: %+v", w.seed, q.name, stored, l)
		}
		var old uint64
		for _, s := range w.sent {
			if slices.Contains(s.queues, q) && time.Since(s.at) > s.expiry {
				old++
			}
		}
		if l.Dropped["expired"] > old {
			w.t.Fatalf("seed %d: %s: %d copies have expired, %d can have: %+v", w.seed, q.name, l.Dropped["expired"], old, l)
		}
		if l.Dropped["quarantined"] != 0 {
			w.t.Fatalf("seed %d: %s: copies were lost on a sound disk: %+v", w.seed, q.name, l)
		}
	}
}

// recount is how many copies the generations hold that are not settled.
func (o *Outbox) recount() (n uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range o.pins {
	copies:
		for ordinal := max(p.first, o.cursor+1); ordinal <= p.last; ordinal++ {
			for _, v := range o.voids {
				if v.first <= ordinal && ordinal <= v.last {
					continue copies
				}
			}
			if ordinal <= o.cursor+uint64(len(o.window)) && len(o.window) > 0 && o.window[ordinal&uint64(len(o.window)-1)] != 0 {
				continue
			}
			n++
		}
	}
	return n
}

func (w *world) finish() {
	for _, q := range w.queues {
		for more := true; more; {
			w.take(q, 0)
			if len(q.open) == 0 && q.o.Ledger().Stored > 0 {
				w.take(q, 10*time.Second) // a drop may have to become durable first
			}
			more = len(q.open) > 0
			w.settle(q, len(q.open))
		}
	}
	synctest.Wait()
	w.check()
	for _, q := range w.queues {
		l := q.o.Ledger()
		if l.Stored != 0 {
			w.t.Errorf("seed %d: %s: %d copies are left: %+v", w.seed, q.name, l.Stored, l)
		}
		var dropped uint64
		for _, n := range l.Dropped {
			dropped += n
		}
		w.expired += int(l.Dropped["expired"])
		if uint64(len(q.acked)) > dropped {
			missing := slices.Sorted(maps.Keys(q.acked))
			w.t.Errorf("seed %d: %s: %d acknowledged messages never came out, %d are counted as dropped; first %v", w.seed, q.name, len(q.acked), dropped, missing[:min(5, len(missing))])
		}
		// What came out before a crash may be dropped after it.
		if out := uint64(len(q.out)); l.Accepted < out || l.Accepted > out+dropped {
			w.t.Errorf("seed %d: %s: %d accepted, %d came out, %d dropped", w.seed, q.name, l.Accepted, len(q.out), dropped)
		}
	}
	if w.options.Limits.MaxBytes == 0 {
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := w.b.Stats().Generations; n != 0 {
			w.t.Errorf("seed %d: %d generations are left of a drained buffer", w.seed, n)
		}
	}
}
