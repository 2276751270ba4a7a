// Package health tells whether a gateway does its work, by having it do some: a
// message goes the whole way and has to come back. A connection that is there and
// carries nothing is seen that way.
//
// The package knows neither broker nor bridge; it is given what sends and waits.
package health

import (
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"time"
)

// Status is how a part stands, or the whole.
type Status string

// The statuses, from good to bad.
const (
	Healthy  Status = "healthy"
	Degraded Status = "degraded" // slow, or it cannot be told
	Down     Status = "down"
)

const (
	slow    = 100 * time.Millisecond // and more is degraded
	timeout = 5 * time.Second        // and more is down
	fresh   = time.Second            // a report is not made anew before

	// DownMs is the latency of a part that is down.
	DownMs = -1
)

// ErrDoubt is what a probe returns that cannot tell: the part counts as degraded.
var ErrDoubt = errors.New("cannot be told")

// Part is a part of a gateway. Probe sends a message through it and returns how long
// it was on its way; it ends with an error when ctx does.
type Part struct {
	Name  string
	Local bool // without it the gateway cannot accept anything
	Probe func(ctx context.Context) (time.Duration, error)
}

// Report is how a gateway stood.
type Report struct {
	Status    Status           `json:"status"`    // that of the part that is worst
	LatencyMs float64          `json:"latencyMs"` // of the slowest part; -1 if one is down
	Time      time.Time        `json:"time"`
	Details   map[string]State `json:"details,omitempty"` // by the part's name

	serves bool
}

// Serves reports whether the gateway accepts messages, wherever they can go.
func (r *Report) Serves() bool { return r.serves }

// State is how a part stood.
type State struct {
	Status    Status  `json:"status"`
	LatencyMs float64 `json:"latencyMs"` // -1 if it is down, or not known
	Error     string  `json:"error,omitempty"`
}

// Checker asks the parts, all at once. Check may be called concurrently: those who
// come while the parts are asked, or within a second after, get one report.
type Checker struct {
	parts []Part
	turn  chan struct{} // who has it asks the parts

	mu   sync.Mutex // guards what follows
	last *Report    // nil before the first
	made time.Time  // last
}

// NewChecker makes a checker of parts.
func NewChecker(parts ...Part) *Checker {
	return &Checker{parts: parts, turn: make(chan struct{}, 1)}
}

// Check returns how the parts stand. It takes 5 s at most, and fails only if ctx
// ends before.
func (c *Checker) Check(ctx context.Context) (*Report, error) {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	c.mu.Lock()
	last, made := c.last, c.made
	c.mu.Unlock()
	if last != nil && time.Since(made) < fresh {
		return last, nil
	}
	r := c.ask(ctx)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	c.mu.Lock()
	c.last, c.made = r, time.Now()
	c.mu.Unlock()
	return r, nil
}

func (c *Checker) ask(ctx context.Context) *Report {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	states := make([]State, len(c.parts))
	var all sync.WaitGroup
	for i, p := range c.parts {
		all.Go(func() { states[i] = judge(p.Probe(ctx)) })
	}
	all.Wait()
	r := &Report{Status: Healthy, Time: time.Now().UTC(), Details: make(map[string]State, len(states)), serves: true}
	for i, s := range states {
		p := &c.parts[i]
		r.Details[p.Name] = s
		switch {
		case s.Status == Down:
			r.Status = Down
		case s.Status == Degraded && r.Status == Healthy:
			r.Status = Degraded
		}
		r.LatencyMs = max(r.LatencyMs, s.LatencyMs)
		r.serves = r.serves && !(p.Local && s.Status == Down)
	}
	if r.Status == Down {
		r.LatencyMs = DownMs
	}
	return r
}

func judge(took time.Duration, err error) State {
	switch {
	case errors.Is(err, ErrDoubt):
		return State{Degraded, DownMs, err.Error()}
	case errors.Is(err, context.DeadlineExceeded):
		text := strings.TrimSuffix(err.Error(), ": "+context.DeadlineExceeded.Error())
		return State{Down, DownMs, text + " within " + timeout.String()}
	case err != nil:
		return State{Down, DownMs, err.Error()}
	case took >= timeout:
		return State{Down, DownMs, "a message took longer than " + timeout.String()}
	case took >= slow:
		return State{Degraded, ms(took), ""}
	}
	return State{Healthy, ms(took), ""}
}

// ms is a duration in milliseconds, to a hundredth.
func ms(d time.Duration) float64 { return math.Round(float64(d)/1e4) / 100 }
