package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
)

// folder makes a folder for a worker; remove takes it away.
func (b *bench) folder() (dir string, remove func(), err error) {
	dir, err = os.MkdirTemp(b.dir, "worker-")
	return dir, func() { os.RemoveAll(dir) }, err
}

func perPayload(bytes uint64, messages int) float64 {
	return float64(bytes) / float64(messages) / messageBytes
}

// written measures the bytes handed to write(2) for each byte of payload.
func (b *bench) written(ctx context.Context, k kind, messages, group int) (float64, error) {
	dir, remove, err := b.folder()
	if err != nil {
		return 0, err
	}
	defer remove()
	out, _, err := job{What: "fill", Dir: dir, Kind: k, Messages: messages, Group: group}.run(ctx, limits{})
	return perPayload(out.Written, messages), err
}

// measureBytes measures commits of so many messages.
func (b *bench) measureBytes(ctx context.Context) error {
	limits := map[string]float64{
		"raw, pages of 4 KiB, 47":    2.6,
		"zstd, pages of 4 KiB, 950":  0.40,
		"zstd, pages of 16 KiB, 950": 0.55,
	}
	for _, group := range []int{1, 47, 950} {
		for _, k := range kinds {
			v, err := b.written(ctx, k, max(group, 50)*1000, group)
			if err != nil {
				return err
			}
			name := fmt.Sprintf("%s, %d", k, group)
			if limit, ok := limits[name]; ok {
				b.atMost("bytes", name+" in a commit", v, limit, "bytes written per byte")
			} else {
				b.add("bytes", name+" in a commit", v, "bytes written per byte")
			}
		}
	}
	return nil
}

// measureDepth measures a large backlog: opening it after kill -9, draining it,
// and what appending costs afterwards.
func (b *bench) measureDepth(ctx context.Context) error {
	n := b.size(10_000_000)
	const after = 47 * 1000
	const kills, more = 5, 100_000 // messages that come between two kills
	for _, k := range []kind{kinds[0], kinds[3]} {
		fresh, err := b.written(ctx, k, after, 47)
		if err != nil {
			return err
		}
		dir, remove, err := b.folder()
		if err != nil {
			return err
		}
		defer remove()
		filled, w, err := job{What: "fill", Dir: dir, Kind: k, Messages: n, Wait: true}.run(ctx, limits{})
		var opens []float64
		for range kills {
			if err == nil {
				err = w.kill()
			}
			if err != nil {
				return err
			}
			var out outcome
			out, w, err = job{What: "fill", Dir: dir, Kind: k, Messages: more, Wait: true}.run(ctx, limits{})
			opens = append(opens, out.Open.Seconds()*1e3)
		}
		if err == nil {
			err = w.kill()
		}
		if err != nil {
			return err
		}
		drained, _, err := job{What: "drain", Dir: dir, Kind: k, Messages: n + kills*more, After: after}.run(ctx, limits{})
		if err != nil {
			return err
		}
		name := fmt.Sprintf("%s, %d stored", k, n)
		b.add("depth", name+": filled", filled.PerSecond, "messages/s")
		b.atMost("depth", name+": opened after kill -9 in", median(append(opens, drained.Open.Seconds()*1e3)), 10, "ms")
		b.add("depth", name+": drained", drained.PerSecond, "messages/s")
		b.atMost("depth", name+": generations left", float64(drained.Generations), 0, "")
		b.add("depth", name+": written before, 47 in a commit", fresh, "bytes per byte")
		b.atMost("depth", name+": written afterwards, ratio", perPayload(drained.AfterBytes, after)/fresh, 1.1, "")
		remove()
	}
	return nil
}

// measureMemory measures what memory a large backlog takes, in processes that may
// have no more of it than a small gateway.
func (b *bench) measureMemory(ctx context.Context) (err error) {
	n := b.size(4_000_000)
	limit := "no limit but GOMEMLIMIT"
	group, err := limitMemory(96 << 20)
	if err == nil {
		limit = "96 MiB, " + group.what
		defer func() { err = errors.Join(err, group.remove()) }()
	} else {
		fmt.Fprintf(b.out, "memory: %v\n", err)
	}
	for _, k := range []kind{kinds[0], kinds[3]} {
		dir, remove, err := b.folder()
		if err != nil {
			return err
		}
		defer remove()
		limits := limits{group, []string{"GOMEMLIMIT=64MiB"}}
		filled, w, err := job{What: "fill", Dir: dir, Kind: k, Messages: n, Wait: true}.run(ctx, limits)
		if err == nil {
			err = w.kill()
		}
		if err != nil {
			return err
		}
		drained, _, err := job{What: "drain", Dir: dir, Kind: k, Messages: n}.run(ctx, limits)
		if err != nil {
			return err
		}
		name := fmt.Sprintf("%s, %d stored (%s)", k, n, limit)
		for _, phase := range []struct {
			name string
			outcome
		}{{"filling", filled}, {"draining", drained}} {
			b.add("memory", name+": "+phase.name, phase.PerSecond, "messages/s")
			b.atMost("memory", name+": heap while "+phase.name, float64(phase.Heap)/(1<<20), 32, "MiB")
			b.add("memory", name+": resident while "+phase.name+", anonymous", float64(phase.Anon)/(1<<20), "MiB")
			b.add("memory", name+": resident while "+phase.name+", with mapped files", float64(phase.Resident)/(1<<20), "MiB")
		}
		b.atMost("memory", name+": generations left", float64(drained.Generations), 0, "")
		remove()
	}
	return nil
}

// measureWear measures what readings write with default settings, while the
// upstream is there. All rates are measured at once, each in its own process.
func (b *bench) measureWear(ctx context.Context) error {
	before, deviceErr := deviceSectors(b.dir)
	outs, errs := make([]outcome, len(b.rates)), make([]error, len(b.rates))
	var wg sync.WaitGroup
	for i, rate := range b.rates {
		dir, remove, err := b.folder()
		if err != nil {
			return err
		}
		defer remove()
		wg.Go(func() {
			outs[i], _, errs[i] = job{What: "wear", Dir: dir, Kind: kinds[3], Rate: rate, For: b.wear, Linger: b.linger}.run(ctx, limits{})
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	const day = 24 * 60 * 60
	for i, rate := range b.rates {
		gb := float64(outs[i].Written) / b.wear.Seconds() * day / 1e9
		name := fmt.Sprintf("%d readings a second", rate)
		if rate == 50 {
			b.atMost("wear", name, gb, 20, "GB a day")
		} else {
			b.add("wear", name, gb, "GB a day")
		}
		b.add("wear", name+": written", perPayload(outs[i].Written, max(outs[i].Messages, 1)), "bytes per byte")
	}
	if after, err := deviceSectors(b.dir); err == nil && deviceErr == nil {
		b.add("wear", "the device, for all who use it", float64(after-before)*512/b.wear.Seconds()*day/1e9, "GB a day")
	}
	return nil
}
