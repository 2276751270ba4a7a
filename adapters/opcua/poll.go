package opcua

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

// bus is a server that is polled.
type bus struct {
	link   *Link
	plans  map[*adapters.Job][]*point
	s      *session
	old    *orphan
	last   map[*adapters.Device]time.Time // of the readings
	until  time.Time                      // no attempt before
	reason error                          // of the last one
	ending func() bool                    // the link is to stop
}

func newBus(l *Link) *bus {
	return &bus{link: l, plans: map[*adapters.Job][]*point{}, last: map[*adapters.Device]time.Time{}}
}

// plan enters a job for each rate of each device, the fastest first: it is the one
// that finds out whether the device is back.
func (b *bus) plan() {
	for _, d := range b.link.devices {
		rates := map[time.Duration][]*point{}
		for _, p := range d.points {
			if p.read() {
				rates[p.every] = append(rates[p.every], p)
			}
		}
		for _, every := range slices.Sorted(maps.Keys(rates)) {
			samples := make([]adapters.Sample, len(rates[every]))
			for i, p := range rates[every] {
				samples[i].Point = p.Point.Point
			}
			b.plans[b.link.poller.Add(d.Device, every, samples)] = rates[every]
		}
	}
}

// poll runs the poller, and beside it what a session needs that is not polled all the
// time.
func (l *Link) poll(ctx context.Context, sink adapters.Sink) error {
	l.bus.ending = func() bool { return ctx.Err() != nil }
	end := make(chan struct{})
	tended := make(chan struct{})
	go func() { // poll waits for it
		defer close(tended)
		l.tend(end)
	}()
	err := l.poller.Run(ctx, sink)
	close(end)
	<-tended
	return err
}

// tend ends pulses when they are due, and asks for something when a session would else
// be taken for forgotten.
func (l *Link) tend(end <-chan struct{}) {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for {
		select {
		case <-end:
			return
		case <-tick.C:
		}
		s, err := l.open()
		if err != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), l.config.Timeout)
		_ = l.endPulses(ctx, s, false) // it is logged
		if s.ch.idle() > s.timeout/3 {
			_ = s.learnNamespaces(ctx) // the next poll finds out if it fails
		}
		cancel()
	}
}

// Open implements adapters.Bus.
func (b *bus) Open(ctx context.Context) error {
	if time.Now().Before(b.until) {
		return b.reason
	}
	s, err := b.link.connect(ctx, b.old)
	var config *ConfigError
	if errors.As(err, &config) {
		b.until, b.reason = time.Now().Add(config.wait), err
	}
	if err != nil {
		return err
	}
	b.s, b.old = s, nil
	return nil
}

// Close implements adapters.Bus.
func (b *bus) Close() error {
	if b.ending() { // else the next session does
		_ = b.link.finishPulses(b.s) // it is logged
	}
	b.link.setSession(nil)
	b.old = b.s.close(closeTimeout)
	b.s = nil
	return nil
}

// Poll implements adapters.Bus. A device is silent if the server has a value of none
// of its points.
func (b *bus) Poll(ctx context.Context, j *adapters.Job) adapters.Answer {
	points := b.plans[j]
	r, err := b.s.readInto(ctx, points, j.Samples)
	if err != nil {
		for i := range j.Samples {
			j.Samples[i].Reason = ""
		}
		return adapters.Answer{Reopen: unknown(err) || isSessionError(err), Reason: reasonOf(err), Err: err}
	}
	a := adapters.Answer{Time: later(r.newest, b.last[j.Device], time.Now()), Answered: r.down < len(points)}
	b.last[j.Device] = a.Time
	if !a.Answered {
		a.Reason = j.Samples[0].Reason
		a.Err = errors.New("the server has no value of any point of the device")
	}
	return a
}

// isSessionError reports whether an error of a server ends the session.
func isSessionError(err error) bool {
	for _, s := range sessionErrors {
		if errors.Is(err, s) {
			return true
		}
	}
	return false
}

// later is the time of a reading: the newest time of its source, but not before that
// of the reading before, unless the clock of the source was set back by more than a
// moment; and that of now if the source has none.
func later(newest, last, now time.Time) time.Time {
	if newest.IsZero() {
		newest = now
	}
	if newest.Before(last) && last.Sub(newest) < clockStep {
		return last
	}
	return newest
}

// clockStep is what a clock that was set back may be before its last reading.
const clockStep = 10 * time.Second
