package opcua

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gopcua/opcua/server"
	"github.com/gopcua/opcua/ua"

	"github.com/fieldferry/fieldferry/adapters"
)

// watchOf is a watch of one device, without a server.
func watchOf(t *testing.T, points ...Point) (*watch, *tape) {
	t.Helper()
	l, err := New(Config{Name: "test", Endpoint: "opc.tcp://127.0.0.1:1", Devices: []Device{{Device: &adapters.Device{Name: "d"}, Points: points}}})
	if err != nil {
		t.Fatal(err)
	}
	p := newTape()
	return newWatch(l, p), p
}

func namedPoint(name string) Point {
	return Point{Point: &adapters.Point{Name: name}, Node: "ns=1;s=" + name}
}

func goodTold(v float64, at time.Time) told { return told{value: adapters.Float64(v), time: at} }

// all returns what was told since the last call.
func (p *tape) all() []event {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := p.events
	p.events = nil
	return all
}

// TestQueuedValues has several values of a point in one message: each is told with
// those of the others of its time.
func TestQueuedValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, p := watchOf(t, namedPoint("a"), namedPoint("b"))
		a, b := w.items[0], w.items[1]
		began := time.Now()
		at := func(ms int) time.Time { return began.Add(time.Duration(ms) * time.Millisecond) }
		// The server lists them by item, not by time.
		w.take(a, goodTold(1, at(0)))
		w.take(a, goodTold(2, at(10)))
		w.take(a, goodTold(3, at(20)))
		w.take(b, goodTold(7, at(1)))
		w.take(b, goodTold(8, at(19)))
		w.flush(context.Background())
		var got []string
		var last time.Time
		for _, e := range p.all() {
			if e.status {
				continue
			}
			if e.time.Before(last) {
				t.Errorf("%v at %v, behind %v", e, e.time, last)
			}
			last = e.time
			got = append(got, e.String())
		}
		want := []string{"d a=1/good/ b=7/good/", "d a=2/good/ b=8/good/", "d a=3/good/"}
		if len(got) != len(want) {
			t.Fatalf("%v, want %v", got, want)
		}
		for i, e := range got {
			if e != want[i] && e != "d b=7/good/ a=1/good/" && e != "d b=8/good/ a=2/good/" {
				t.Errorf("%s, want %s", e, want[i])
			}
		}
	})
}

func TestDeadbands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		abs, rel, none := namedPoint("abs"), namedPoint("rel"), namedPoint("none")
		abs.Deadband = 0.5
		rel.Deadband, rel.Relative = 0.1, true
		w, p := watchOf(t, abs, rel, none)
		give := func(v float64) int {
			for _, it := range w.items {
				w.take(it, goodTold(v, time.Now()))
			}
			w.flush(context.Background())
			n := 0
			for _, e := range p.all() {
				n += len(e.values)
			}
			return n
		}
		for _, c := range []struct {
			v    float64
			want int // points that are told
		}{{10, 3}, {10.4, 1}, {10.6, 2}, {11.2, 3}, {11.2, 1}} {
			if got := give(c.v); got != c.want {
				t.Errorf("at %v %d points are told, want %d", c.v, got, c.want)
			}
		}
	})
}

// TestLostAtOnce turns everything bad when the connection is lost, tells a device that
// is back whole, and never a time before one that was told.
func TestLostAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, p := watchOf(t, namedPoint("a"), namedPoint("b"), namedPoint("missing"))
		ctx := context.Background()
		began := time.Now()
		w.take(w.items[2], told{quality: adapters.Bad, reason: "BadNodeIdUnknown", time: began, down: true})
		w.flush(ctx)
		w.take(w.items[0], goodTold(1, began.Add(-time.Hour))) // it has not changed since
		w.flush(ctx)
		events := p.all()
		last := events[len(events)-1]
		if _, ok := last.values["missing"]; !ok || len(last.values) != 2 {
			t.Errorf("the first reading of a device that is there is %v; want what is known of all", last)
		}
		time.Sleep(time.Second)
		w.take(w.items[1], goodTold(2, time.Now()))
		w.flush(ctx)
		p.all()
		time.Sleep(time.Second)
		w.lost(ctx, "timeout")
		events = p.all()
		if len(events) != 2 || len(events[0].values) != 3 || !events[1].status || events[1].online {
			t.Fatalf("told %v; want all points bad, then the device offline", events)
		}
		for n, s := range events[0].values {
			if s.Quality != adapters.Bad || s.Reason != "timeout" {
				t.Errorf("%s: %v %s", n, s.Quality, s.Reason)
			}
		}
		lost := events[0].time
		w.lost(ctx, "timeout")
		if more := p.all(); len(more) != 0 {
			t.Errorf("told again: %v", more)
		}
		time.Sleep(time.Minute)
		w.take(w.items[0], goodTold(1, began.Add(-time.Hour)))
		w.flush(ctx)
		events = p.all()
		if len(events) != 2 || !events[0].online || !isGood("a")(events[1]) {
			t.Fatalf("told %v; want the device online, then its value", events)
		}
		if !events[1].time.After(lost) {
			t.Errorf("the value that is good again has the time %v, and it was bad at %v", events[1].time, lost)
		}
	})
}

func TestClockThatGoesBack(t *testing.T) {
	now := time.Now()
	for _, c := range []struct{ newest, last, want time.Duration }{
		{1, 0, 1}, {0, 1, 1}, {-9 * time.Second, 0, 0}, {-11 * time.Second, 0, -11 * time.Second},
	} {
		if got := later(now.Add(c.newest), now.Add(c.last), now); !got.Equal(now.Add(c.want)) {
			t.Errorf("%v behind %v: %v, want %v", c.newest, c.last, got.Sub(now), c.want)
		}
	}
	if got := later(time.Time{}, now.Add(-1), now); !got.Equal(now) {
		t.Errorf("no time: %v, want now", got)
	}
}

// TestSilentServer holds everything that the server says, while the connection stays.
func TestSilentServer(t *testing.T) {
	r := newRig(t, []string{"d"}, 2)
	r.open()
	r.set(1)
	_, p, _ := run(t, Config{Endpoint: r.url(), Timeout: time.Second, Devices: r.devices([]string{"d"}, 2, 50*time.Millisecond)})
	_, at := p.await(t, 0, "a value", isGood("p0"))
	release := r.hold()
	lost, at := p.await(t, at, "a bad value", isBadPoint("p0"))
	if s := lost.values["p1"]; s.Quality != adapters.Bad || s.Reason != adapters.ReasonTimeout {
		t.Errorf("the other point is %v, %s", s.Quality, s.Reason)
	}
	release()
	p.await(t, at, "a good value", isGood("p0"))
}

// TestItemsThatAreNotThere has one point whose node the server lacks, and one whose
// namespace: they are bad, the rest goes on, and they come when the node does.
func TestItemsThatAreNotThere(t *testing.T) {
	r := newRig(t, []string{"d"}, 1)
	r.open()
	devices := r.devices([]string{"d"}, 1, 50*time.Millisecond)
	late, never := namedPoint("late"), namedPoint("never")
	late.Node, never.Node = "nsu="+space+";s=late", "nsu=urn:nobody;s=x"
	devices[0].Points = append(devices[0].Points, late, never)
	_, p, _ := run(t, Config{Endpoint: r.url(), Devices: devices})
	_, _ = p.await(t, 0, "a good value", isGood("p0"))
	e, _ := p.await(t, 0, "the point without a namespace", isBadPoint("never"))
	for e.values["never"].Reason != reasonNamespace {
		e, _ = p.await(t, 0, "its reason", func(e event) bool { return e.values["never"].Reason == reasonNamespace })
	}
	e, at := p.await(t, 0, "the point without a node", func(e event) bool {
		return isBadPoint("late")(e) && e.values["late"].Reason != adapters.ReasonNotConnected
	})
	if got := e.values["late"].Reason; got != "BadNodeIdUnknown" {
		t.Errorf("its reason is %s", got)
	}
	n := server.NewVariableNode(ua.NewStringNodeID(r.ns.ID(), "late"), "late", func() *ua.DataValue { return dataValue(5.0) })
	r.ns.AddNode(n)
	p.await(t, at, "the point", isGood("late"))
}

func TestCutAgainAndAgain(t *testing.T) {
	r := newRig(t, []string{"d"}, 1)
	r.open()
	l, p, stop := run(t, Config{Endpoint: r.url(), Devices: r.devices([]string{"d"}, 1, 50*time.Millisecond)})
	at := 0
	for i := range 5 {
		r.set(i)
		_, at = p.await(t, at, fmt.Sprintf("value %d", i), func(e event) bool {
			f, _ := e.values["p0"].Value.Float64()
			return isGood("p0")(e) && f == float64(i)
		})
		r.cut()
		_, at = p.await(t, at, "a bad value", isBadPoint("p0"))
	}
	p.await(t, at, "a good value", isGood("p0"))
	if s := l.Stats(); s.Connects < 6 || s.Failed < 5 || !s.Connected || s.Online != 1 {
		t.Errorf("stats %+v", s)
	}
	stop()
	if s := l.Stats(); s.Connected {
		t.Errorf("stats at the end %+v", s)
	}
}
