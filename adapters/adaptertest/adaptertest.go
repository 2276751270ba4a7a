// Package adaptertest is the conformance suite of [adapters.Link]: what every
// link promises, whatever its protocol, checked against a real server in the
// same process. A test package that runs it checks for leaked goroutines in its
// TestMain.
package adaptertest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

// A Field is the far side of a link under test. Its devices are polled every
// 10 to 50 ms, each with numeric points only and a timeout of at most 200 ms;
// it is stopped at first.
type Field struct {
	Devices []string                         // at least two
	Link    func() adapters.Link             // a new link to all devices
	Start   func()                           // the server comes
	Stop    func()                           // the server goes, with all connections; nothing is answered after it returned
	Set     func(v int)                      // every point of every device has this value, from its return on
	Silence func(device string, silent bool) // a device stops answering, while the others go on
	Bound   time.Duration                    // for Run to return in after its context ended
}

// patience is how long a test waits for what has to come.
const patience = 10 * time.Second

// Run runs the suite. field makes a new field for each test.
func Run(t *testing.T, field func(t *testing.T) Field) {
	tests := []struct {
		name string
		run  func(*testing.T, Field)
	}{
		{"values arrive", valuesArrive},
		{"ends with its context", endsWithContext},
		{"server comes later", serverComesLater},
		{"server goes and comes back", serverComesBack},
		{"dead device", deadDevice},
		{"back pressure", backPressure},
		{"refusing sink", refusingSink},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, field(t)) })
	}
}

func good(e event) bool    { return e.good() }
func bad(e event) bool     { return e.bad() }
func online(e event) bool  { return e.status && e.online }
func offline(e event) bool { return e.status && !e.online }

func valuesArrive(t *testing.T, f Field) {
	f.Set(7)
	f.Start()
	began := time.Now()
	r := start(t, f, nil)
	for _, d := range f.Devices {
		for range 3 {
			e := r.next(d, "good", good)
			if !e.all(7) {
				t.Fatalf("%v, not 7", e)
			}
			if e.time.Before(began) || e.time.After(time.Now()) {
				t.Fatalf("%v: read at %v, now it is %v", e, e.time, time.Now())
			}
		}
	}
	f.Set(8)
	r.onlyFrom(f, time.Now(), 8)
}

// onlyFrom checks that what is read from a time on is v. An answer may have been
// on its way then.
func (r *recorder) onlyFrom(f Field, from time.Time, v int) {
	r.t.Helper()
	from = from.Add(f.Bound)
	for _, d := range f.Devices {
		r.next(d, "read afterwards", func(e event) bool { return e.good() && e.time.After(from) })
	}
	for _, e := range r.seen() {
		if e.good() && e.time.After(from) && !e.all(v) {
			r.t.Fatalf("%v, %v after %d was set", e, e.time.Sub(from)+f.Bound, v)
		}
	}
}

func endsWithContext(t *testing.T, f Field) {
	f.Set(1)
	d := f.Devices[0]
	t.Run("server away", func(t *testing.T) {
		r := start(t, f, nil)
		r.next(d, "bad", bad)
		r.stop()
	})
	f.Start()
	t.Run("polling", func(t *testing.T) {
		r := start(t, f, nil)
		r.next(d, "good", good)
		r.stop()
	})
	t.Run("held up by the sink", func(t *testing.T) {
		r := start(t, f, nil)
		r.next(d, "good", good)
		defer r.hold()()
		r.held()
		r.stop()
	})
	t.Run("awaiting an answer", func(t *testing.T) {
		for _, d := range f.Devices {
			f.Silence(d, true)
		}
		r := start(t, f, nil)
		r.next(d, "bad", bad)
		r.stop()
	})
}

func serverComesLater(t *testing.T, f Field) {
	f.Set(3)
	r := start(t, f, nil)
	for _, d := range f.Devices {
		r.next(d, "bad", bad)
		r.next(d, "offline", offline)
	}
	f.Start()
	for _, d := range f.Devices {
		r.next(d, "online", online)
		r.next(d, "good", func(e event) bool { return e.good() && e.all(3) })
	}
}

func serverComesBack(t *testing.T, f Field) {
	f.Set(4)
	f.Start()
	r := start(t, f, nil)
	for _, d := range f.Devices {
		r.next(d, "good", good)
	}
	f.Stop()
	stopped := time.Now()
	for _, d := range f.Devices {
		r.next(d, "offline", offline)
	}
	f.Set(5)
	f.Start()
	for _, d := range f.Devices {
		r.next(d, "online", online)
		r.next(d, "good", good)
	}
	for _, e := range r.seen() {
		if e.good() && e.time.After(stopped) && !e.all(5) {
			t.Fatalf("%v, shown as good %v after the server went", e, e.time.Sub(stopped))
		}
	}
}

func deadDevice(t *testing.T, f Field) {
	f.Set(6)
	f.Start()
	dead, others := f.Devices[0], f.Devices[1:]
	r := start(t, f, nil)
	r.next(dead, "good", good)
	f.Silence(dead, true)
	r.next(dead, "bad", bad)
	r.next(dead, "offline", offline)
	for _, d := range others {
		for range 20 {
			r.next(d, "good", good)
		}
	}
	f.Silence(dead, false)
	r.next(dead, "online", online)
	r.next(dead, "good", func(e event) bool { return e.good() && e.all(6) })
	for _, e := range r.seen() {
		if e.device != dead && offline(e) {
			t.Fatalf("%v, because %s was dead", e, dead)
		}
	}
}

func backPressure(t *testing.T, f Field) {
	f.Set(1)
	f.Start()
	r := start(t, f, nil)
	for _, d := range f.Devices {
		r.next(d, "good", good)
	}
	release := r.hold()
	r.held() // the recorder notices if it is called meanwhile
	f.Set(2)
	set := time.Now()
	release()
	r.onlyFrom(f, set, 2)
	last := map[string]float64{}
	for _, e := range r.seen() {
		if e.good() {
			if v := e.samples[0].value; v < last[e.device] {
				t.Fatalf("%v, after %v", e, last[e.device])
			}
			last[e.device] = e.samples[0].value
		}
	}
}

func refusingSink(t *testing.T, f Field) {
	f.Set(1)
	f.Start()
	r := start(t, f, errors.New("full"))
	for _, d := range f.Devices {
		for range 2 {
			r.next(d, "online, though refused", online)
			r.next(d, "good, though refused", good)
		}
	}
	r.refuse(nil)
	for _, d := range f.Devices {
		r.next(d, "online once more", func(e event) bool { return online(e) && !e.refused })
		r.next(d, "good", good)
	}
}

// start runs a link until the test ends, with a sink that refuses everything
// with an error unless that is nil.
func start(t *testing.T, f Field, refusal error) *recorder {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &recorder{t: t, refusal: refusal, news: make(chan struct{}, 1), devices: map[string]*device{}}
	for _, d := range f.Devices {
		r.devices[d] = &device{}
	}
	done := make(chan error, 1)
	link := f.Link()
	if link.String() == "" {
		t.Error("the link has no name")
	}
	go func() {
		err := link.Run(ctx, r)
		r.ended.Store(true)
		done <- err
	}()
	stopped := false
	r.stop = func() {
		t.Helper()
		if stopped {
			return
		}
		stopped = true
		cancel()
		began := time.Now()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run returned %v", err)
			}
			if d := time.Since(began); d > f.Bound {
				t.Errorf("Run took %v to return, more than %v", d, f.Bound)
			}
		case <-time.After(patience):
			panic(fmt.Sprintf("%s: Run did not return", link))
		}
	}
	t.Cleanup(func() { r.stop() })
	return r
}
