package health

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// takes is a probe that sleeps and returns how long, or err.
func takes(d time.Duration, err error) func(context.Context) (time.Duration, error) {
	return func(ctx context.Context) (time.Duration, error) {
		select {
		case <-time.After(d):
			return d, err
		case <-ctx.Done():
			return 0, fmt.Errorf("nothing comes back: %w", ctx.Err())
		}
	}
}

func TestReport(t *testing.T) {
	refused := errors.New("connection refused")
	doubt := fmt.Errorf("%w: not allowed", ErrDoubt)
	for _, tc := range []struct {
		name        string
		local, up   func(context.Context) (time.Duration, error)
		status      Status
		latency     float64
		serves      bool
		bridgeState State
	}{
		{"good", takes(2*time.Millisecond, nil), takes(30*time.Millisecond, nil), Healthy, 30, true, State{Healthy, 30, ""}},
		{"99 ms", takes(0, nil), takes(99*time.Millisecond, nil), Healthy, 99, true, State{Healthy, 99, ""}},
		{"100 ms", takes(0, nil), takes(100*time.Millisecond, nil), Degraded, 100, true, State{Degraded, 100, ""}},
		{"slow", takes(0, nil), takes(4900*time.Millisecond, nil), Degraded, 4900, true, State{Degraded, 4900, ""}},
		{"never", takes(0, nil), takes(time.Hour, nil), Down, DownMs, true, State{Down, DownMs, "nothing comes back within 5s"}},
		{"refused", takes(0, nil), takes(0, refused), Down, DownMs, true, State{Down, DownMs, "connection refused"}},
		{"cannot be told", takes(3*time.Millisecond, nil), takes(0, doubt), Degraded, 3, true, State{Degraded, DownMs, "cannot be told: not allowed"}},
		{"local", takes(time.Hour, nil), takes(0, nil), Down, DownMs, false, State{Healthy, 0, ""}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := NewChecker(Part{"local", true, tc.local}, Part{"bridge", false, tc.up})
				r, err := c.Check(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if r.Status != tc.status || r.LatencyMs != tc.latency || r.Serves() != tc.serves {
					t.Errorf("%s, %v ms, serves %t; want %s, %v, %t", r.Status, r.LatencyMs, r.Serves(), tc.status, tc.latency, tc.serves)
				}
				if diff := cmp.Diff(tc.bridgeState, r.Details["bridge"]); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

// Those who come together, or within a second, cause one message.
func TestOneProbeForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		c := NewChecker(Part{Name: "local", Probe: func(ctx context.Context) (time.Duration, error) {
			asked.Add(1)
			return takes(50*time.Millisecond, nil)(ctx)
		}})
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if _, err := c.Check(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if n := asked.Load(); n != 1 {
			t.Errorf("%d probes", n)
		}
		time.Sleep(2 * time.Second)
		if _, err := c.Check(t.Context()); err != nil || asked.Load() != 2 {
			t.Errorf("%d probes, %v", asked.Load(), err)
		}
	})
}

// Who gives up leaves no report behind that says so.
func TestGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewChecker(Part{"local", true, takes(time.Second, nil)})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if r, err := c.Check(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%+v, %v", r, err)
		}
		if r, err := c.Check(t.Context()); err != nil || r.Status != Degraded {
			t.Errorf("%+v, %v", r, err)
		}
	})
}
