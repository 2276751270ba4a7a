package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
)

var plain = kind{Plain: true}

// inFolder opens a store in a folder of its own for the time of f.
func (b *bench) inFolder(k kind, f func(store) error) error {
	dir, err := os.MkdirTemp(b.dir, "rate-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s, err := k.open(dir)
	if err != nil {
		return err
	}
	if err := f(s); err != nil {
		return err
	}
	return s.close()
}

// inTurns measures the plain log and a kind of buffer in turns, each time in a new
// folder, and returns the medians and the median of the ratios.
func (b *bench) inTurns(ctx context.Context, k kind, measure func(store) (float64, error)) (log, buf, ratio float64, err error) {
	var logs, bufs, ratios []float64
	for range b.rounds {
		var pair [2]float64
		for i, k := range []kind{plain, k} {
			if err := ctx.Err(); err != nil {
				return 0, 0, 0, err
			}
			err := b.inFolder(k, func(s store) (err error) {
				pair[i], err = measure(s)
				return err
			})
			if err != nil {
				return 0, 0, 0, fmt.Errorf("%s: %w", k, err)
			}
		}
		logs, bufs, ratios = append(logs, pair[0]), append(bufs, pair[1]), append(ratios, pair[1]/pair[0])
	}
	return median(logs), median(bufs), median(ratios), nil
}

// appendRates is what sideBySide measures.
type appendRates struct {
	perSecond [2][]float64 // of each turn: the plain log, the buffer
	perCommit [2]float64   // messages
}

func (r *appendRates) ratio() float64 {
	var ratios []float64
	for i, log := range r.perSecond[0] {
		ratios = append(ratios, r.perSecond[1][i]/log)
	}
	return median(ratios)
}

// sideBySide measures appends to the plain log and to a kind of buffer in short
// turns, with both open all the time: the disk changes its mind within seconds.
func (b *bench) sideBySide(ctx context.Context, k kind, waiting int) (r appendRates, err error) {
	err = b.inFolder(plain, func(l store) error {
		return b.inFolder(k, func(s store) error {
			stores := []store{l, s}
			var messages [2]int
			for turn := range 2 * b.turns {
				i := turn % 2
				n, perSecond, err := appendFor(stores[i], waiting, b.each)
				if err = errors.Join(err, ctx.Err()); err != nil {
					return fmt.Errorf("%s: %w", k, err)
				}
				messages[i] += n
				r.perSecond[i] = append(r.perSecond[i], perSecond)
			}
			for i, s := range stores {
				r.perCommit[i] = float64(messages[i]) / float64(s.commits())
			}
			return nil
		})
	})
	return r, err
}

// measureAppend measures appends with 64 and with 1,000 waiting at a time.
func (b *bench) measureAppend(ctx context.Context) error {
	limits := map[int]map[bool]float64{64: {false: 0.60, true: 0.55}, 1000: {false: 0.65, true: 0.45}}
	for _, waiting := range []int{64, 1000} {
		for _, k := range kinds {
			r, err := b.sideBySide(ctx, k, waiting)
			if err != nil {
				return err
			}
			name := fmt.Sprintf("%d at a time, %s", waiting, k)
			for i, name := range []string{name + ": plain log", name} {
				b.add("append", name, median(r.perSecond[i]), "messages/s")
				b.add("append", name+", in a commit", r.perCommit[i], "messages")
			}
			if name += ": ratio"; k.PageSize == 4<<10 {
				b.atLeast("append", name, r.ratio(), limits[waiting][k.Compress], "")
			} else {
				b.add("append", name, r.ratio(), "")
			}
		}
	}
	return nil
}

// measureDrain measures how fast what is stored is read and settled.
func (b *bench) measureDrain(ctx context.Context) error {
	n := b.size(2_000_000)
	for _, k := range kinds {
		log, buf, ratio, err := b.inTurns(ctx, k, func(s store) (float64, error) {
			if err := fillFast(s, n); err != nil {
				return 0, err
			}
			return drain(s, n)
		})
		if err != nil {
			return err
		}
		b.add("drain", k.String(), buf, "messages/s")
		b.add("drain", k.String()+": plain log", log, "messages/s")
		b.atLeast("drain", k.String()+": ratio", ratio, 0.6, "")
	}
	return nil
}

// fillFast appends n messages, always with some thousand on their way.
func fillFast(s store, n int) error {
	const window = 4000
	var groups [2]batch
	for i := range n {
		g := &groups[i/window%2]
		if i%window == 0 {
			if err := g.wait(); err != nil {
				return err
			}
		}
		g.Add(1)
		if err := s.append(payloads()[i%len(payloads())], true, g); err != nil {
			return err
		}
	}
	for i := range groups {
		if err := groups[i].wait(); err != nil {
			return err
		}
	}
	return nil
}

// timed is an append of which the time counts.
type timed struct {
	began time.Time
	l     *latencies
}

// latencies collects how long appends took.
type latencies struct {
	batch
	mu    sync.Mutex // guards times
	times []time.Duration
}

func (r timed) Stored(err error) {
	r.l.mu.Lock()
	r.l.times = append(r.l.times, time.Since(r.began))
	r.l.mu.Unlock()
	r.l.batch.Stored(err)
}

// appendAt appends so many messages a second until ctx ends, and returns how
// many.
func appendAt(ctx context.Context, s store, perSecond int, urgent bool, each func() buffer.Receipt) (n int, err error) {
	tick := time.NewTicker(max(time.Millisecond, time.Second/time.Duration(perSecond)))
	defer tick.Stop()
	for began := time.Now(); ; {
		select {
		case <-ctx.Done():
			return n, nil
		case <-tick.C:
		}
		for due := int(time.Since(began).Seconds() * float64(perSecond)); n < due; n++ {
			if err := s.append(payloads()[n%len(payloads())], urgent, each()); err != nil {
				return n, err
			}
		}
	}
}

// measureReplay measures a backlog that is replayed while 10,000 messages a
// second are appended.
func (b *bench) measureReplay(ctx context.Context) error {
	n := b.size(2_000_000)
	const live = 10_000
	for _, k := range []kind{kinds[0], kinds[3]} {
		p99 := map[bool][]float64{}
		log, buf, ratio, err := b.inTurns(ctx, k, func(s store) (float64, error) {
			if err := fillFast(s, n); err != nil {
				return 0, err
			}
			ctx, stop := context.WithCancel(ctx)
			defer stop()
			var l latencies
			var appended sync.WaitGroup
			var appendErr error
			appended.Go(func() {
				_, appendErr = appendAt(ctx, s, live, true, func() buffer.Receipt {
					l.Add(1)
					return timed{time.Now(), &l}
				})
			})
			rate, err := drain(s, n)
			stop()
			appended.Wait()
			if err == nil {
				err = appendErr
			}
			if err == nil {
				err = l.wait()
			}
			_, isPlain := s.(*plainLog)
			p99[isPlain] = append(p99[isPlain], percentile(l.times, 99).Seconds()*1e3)
			return rate, err
		})
		if err != nil {
			return err
		}
		b.add("replay", k.String(), buf, "messages/s")
		b.add("replay", k.String()+": plain log", log, "messages/s")
		b.atLeast("replay", k.String()+": ratio", ratio, 0.25, "")
		b.add("replay", k.String()+": append p99", median(p99[false]), "ms")
		b.add("replay", k.String()+": append p99 of the plain log", median(p99[true]), "ms")
		b.atMost("replay", k.String()+": append p99, ratio", median(p99[false])/median(p99[true]), 3, "")
	}
	return nil
}

// deviceSectors is what was written to the device that holds a folder, in
// sectors of 512 bytes, by all who use it.
func deviceSectors(dir string) (uint64, error) {
	dev, err := deviceOf(dir)
	if err != nil {
		return 0, err
	}
	p, err := os.ReadFile(filepath.Join("/sys/dev/block", dev, "stat"))
	if err != nil {
		return 0, err
	}
	// Documentation/block/stat.rst: the seventh is write sectors.
	var v [7]uint64
	if _, err := fmt.Sscan(string(p), &v[0], &v[1], &v[2], &v[3], &v[4], &v[5], &v[6]); err != nil {
		return 0, err
	}
	return v[6], nil
}
