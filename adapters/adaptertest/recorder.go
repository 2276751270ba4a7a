package adaptertest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

// A recorder is a sink that keeps what it is told, and checks what a link
// promises about every call.
type recorder struct {
	t     *testing.T
	stop  func()        // ends the link's Run
	news  chan struct{} // something was recorded
	busy  atomic.Bool   // a call is under way
	ended atomic.Bool   // Run has returned

	mu      sync.Mutex // guards what follows
	events  []event
	devices map[string]*device
	refusal error         // what calls return
	refused bool          // some did
	gate    chan struct{} // calls wait until it is closed; nil lets them pass
	waiting chan struct{} // closed when a call waits
}

// device is what a sink knows of a device.
type device struct {
	online, offline bool
	last            time.Time // of its readings
	from            int       // the test looked at the events before it
}

// An event is a call of the sink.
type event struct {
	device  string
	time    time.Time
	refused bool

	reading bool
	samples []sample

	status bool
	online bool
	reason string
}

type sample struct {
	point   string
	value   float64
	quality adapters.Quality
	reason  string
}

func (e event) good() bool {
	return e.reading && !slices.ContainsFunc(e.samples, func(s sample) bool { return s.quality != adapters.Good })
}

func (e event) bad() bool {
	return e.reading && !slices.ContainsFunc(e.samples, func(s sample) bool { return s.quality != adapters.Bad })
}

func (e event) all(v int) bool {
	return !slices.ContainsFunc(e.samples, func(s sample) bool { return s.value != float64(v) })
}

func (e event) String() string {
	switch {
	case e.reading:
		return fmt.Sprintf("%s %v", e.device, e.samples)
	case e.online:
		return e.device + " online"
	default:
		return e.device + " offline: " + e.reason
	}
}

// Emit implements adapters.Sink.
func (r *recorder) Emit(ctx context.Context, reading adapters.Reading) error {
	leave := r.enter(ctx)
	defer leave()
	e := event{device: reading.Device.Name, time: reading.Time, reading: true}
	for _, s := range reading.Samples {
		v, ok := s.Value.Float64()
		if ok == (s.Quality == adapters.Bad) {
			r.t.Errorf("%s %s: %v, quality %v", e.device, s.Point.Name, s.Value, s.Quality)
		}
		if (s.Reason == "") != (s.Quality == adapters.Good) {
			r.t.Errorf("%s %s: quality %v, reason %q", e.device, s.Point.Name, s.Quality, s.Reason)
		}
		e.samples = append(e.samples, sample{s.Point.Name, v, s.Quality, s.Reason})
	}
	if len(e.samples) == 0 {
		r.t.Errorf("%s: a reading of nothing", e.device)
	}
	return r.record(ctx, e, func(d *device) {
		if d.offline {
			r.t.Errorf("%v, while it is offline", e)
		}
		if e.good() && !d.online && !r.refused {
			r.t.Errorf("%v, before it was online", e)
		}
		if e.time.Before(d.last) {
			r.t.Errorf("%v: read %v before the last", e, d.last.Sub(e.time))
		}
		d.last = e.time
	})
}

// Status implements adapters.Sink.
func (r *recorder) Status(ctx context.Context, s adapters.Status) error {
	leave := r.enter(ctx)
	defer leave()
	e := event{device: s.Device.Name, time: s.Time, status: true, online: s.Online, reason: s.Reason}
	if e.online != (e.reason == "") {
		r.t.Errorf("%v: reason %q", e, e.reason)
	}
	return r.record(ctx, e, func(d *device) {
		if e.online && d.online || !e.online && d.offline {
			r.t.Errorf("%v, told twice", e)
		}
		if r.refusal == nil {
			d.online, d.offline = e.online, !e.online
		}
	})
}

// enter begins a call: one at a time, while Run runs, and held up by the gate.
func (r *recorder) enter(ctx context.Context) (leave func()) {
	if r.busy.Swap(true) {
		r.t.Error("the sink was called while it was called")
	}
	if r.ended.Load() {
		r.t.Error("the sink was called after Run had returned")
	}
	r.mu.Lock()
	gate, waiting := r.gate, r.waiting
	r.waiting = nil
	r.mu.Unlock()
	if gate != nil {
		if waiting != nil {
			close(waiting)
		}
		select {
		case <-gate:
		case <-ctx.Done():
		}
	}
	return func() { r.busy.Store(false) }
}

func (r *recorder) record(ctx context.Context, e event, check func(*device)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.devices[e.device]; d != nil {
		check(d)
	} else {
		r.t.Errorf("there is no device %s", e.device)
	}
	if r.refusal != nil {
		e.refused, r.refused = true, true
	}
	r.events = append(r.events, e)
	select {
	case r.news <- struct{}{}:
	default:
	}
	return r.refusal
}

// next returns the next event of a device that fits, and fails the test if none
// comes.
func (r *recorder) next(device, what string, fits func(event) bool) event {
	r.t.Helper()
	deadline := time.After(patience)
	for {
		r.mu.Lock()
		d := r.devices[device]
		for d.from < len(r.events) {
			e := r.events[d.from]
			d.from++
			if e.device == device && fits(e) {
				r.mu.Unlock()
				return e
			}
		}
		r.mu.Unlock()
		select {
		case <-r.news:
		case <-deadline:
			seen := r.seen()
			r.t.Fatalf("%s: waited in vain to be %s; last came %v", device, what, seen[max(0, len(seen)-5):])
		}
	}
}

// seen returns all events so far.
func (r *recorder) seen() []event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// refuse makes the sink refuse everything with an error, or nothing more.
func (r *recorder) refuse(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refusal = err
}

// hold makes the sink block until release is called.
func (r *recorder) hold() (release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	gate := make(chan struct{})
	r.gate, r.waiting = gate, make(chan struct{})
	return sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.gate = nil
		close(gate)
	})
}

// held waits until a call is held up.
func (r *recorder) held() {
	r.t.Helper()
	r.mu.Lock()
	waiting := r.waiting
	r.mu.Unlock()
	if waiting == nil {
		return // already
	}
	select {
	case <-waiting:
	case <-time.After(patience):
		r.t.Fatal("the sink was not called")
	}
}
