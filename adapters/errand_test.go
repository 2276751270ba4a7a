package adapters

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Errands come before polls, but never two in a row before one that waits.
func TestErrandsDoNotStarvePolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBus()
		b.cost = 100 * time.Millisecond
		p := NewPoller("line", b, PollerOptions{})
		for _, name := range []string{"a", "b", "c"} { // three times what there is time for
			add(p, name, 100*time.Millisecond)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		errands := 0
		var mu sync.Mutex
		for range 3 {
			wg.Go(func() {
				for {
					err := p.Do(ctx, func(context.Context) (bool, error) {
						time.Sleep(100 * time.Millisecond)
						mu.Lock()
						errands++
						mu.Unlock()
						return false, nil
					})
					if errors.Is(err, ErrNotRunning) && ctx.Err() == nil {
						time.Sleep(time.Millisecond)
						continue
					}
					if err != nil && !errors.Is(err, ErrNotConnected) {
						return
					}
				}
			})
		}
		if err := p.Run(ctx, &log{}); err != nil {
			t.Error(err)
		}
		wg.Wait()
		polls := len(b.polls["a"]) + len(b.polls["b"]) + len(b.polls["c"])
		if polls < errands-3 || errands < polls-3 || polls < 90 {
			t.Errorf("%d polls, %d errands", polls, errands)
		}
	})
}

func TestErrandsNeedALinkThatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBus()
		p := NewPoller("line", b, PollerOptions{})
		nothing := func(context.Context) (bool, error) { return false, nil }
		if err := p.Do(t.Context(), nothing); !errors.Is(err, ErrNotRunning) {
			t.Errorf("before Run: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx, &log{}) }()
		synctest.Wait()
		if err := p.Do(ctx, nothing); err != nil {
			t.Errorf("while it runs: %v", err)
		}
		refused := errors.New("refused")
		if err := p.Do(ctx, func(context.Context) (bool, error) { return true, refused }); err != refused {
			t.Errorf("an error is %v", err)
		}
		if err := p.Do(ctx, func(context.Context) (bool, error) { panic("oh") }); err == nil {
			t.Error("a panic is no error")
		}
		synctest.Wait()
		if len(b.opens) != 3 {
			t.Errorf("opened %d times, want once more after each that cost the connection", len(b.opens))
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := p.Do(t.Context(), nothing); !errors.Is(err, ErrNotRunning) {
			t.Errorf("after Run: %v", err)
		}
	})
}

// What is to be ended later is: on time, again if it fails, and before Run
// returns.
func TestLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBus()
		p := NewPoller("line", b, PollerOptions{})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var at []time.Duration
		note := func(err error) func(context.Context) (bool, error) {
			return func(context.Context) (bool, error) {
				at = append(at, time.Since(b.start))
				e := err
				err = nil
				return false, e
			}
		}
		go func() {
			for {
				err := p.Do(ctx, func(context.Context) (bool, error) {
					p.Later(time.Hour, note(nil))
					p.Later(2*time.Second, note(errors.New("no answer")))
					p.Later(time.Second, note(nil))
					return false, nil
				})
				if !errors.Is(err, ErrNotRunning) && !errors.Is(err, ErrNotConnected) {
					return
				}
				time.Sleep(time.Millisecond)
			}
		}()
		if err := p.Run(ctx, &log{}); err != nil {
			t.Error(err)
		}
		if len(at) != 4 {
			t.Fatalf("%v", at)
		}
		for i, want := range []time.Duration{1, 2, 3, 10} {
			if d := at[i] - want*time.Second; d < -time.Millisecond || d > 5*time.Millisecond {
				t.Errorf("%d at %v, want %v s", i, at[i], int(want))
			}
		}
	})
}
