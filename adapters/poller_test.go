package adapters

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// fakeBus answers after a while, or not at all.
type fakeBus struct {
	cost    time.Duration // of an answer
	timeout time.Duration // of none
	dead    map[string]bool
	away    time.Duration // connecting fails so long
	panics  int           // polls that panic
	breaks  int           // polls that break the connection

	open   bool
	opens  []time.Duration // when connecting was tried
	polls  map[string][]time.Duration
	start  time.Time
	misuse error
}

func newFakeBus() *fakeBus {
	return &fakeBus{cost: time.Millisecond, timeout: time.Second, dead: map[string]bool{}, polls: map[string][]time.Duration{}, start: time.Now()}
}

func (b *fakeBus) Open(context.Context) error {
	if b.open {
		b.misuse = errors.New("opened twice")
	}
	b.opens = append(b.opens, time.Since(b.start))
	if time.Since(b.start) < b.away {
		return errors.New("refused")
	}
	b.open = true
	return nil
}

func (b *fakeBus) Close() error {
	if !b.open {
		b.misuse = errors.New("closed while not open")
	}
	b.open = false
	return nil
}

func (b *fakeBus) Poll(_ context.Context, j *Job) Answer {
	if !b.open {
		b.misuse = errors.New("polled while not open")
	}
	name := j.Device.Name
	b.polls[name] = append(b.polls[name], time.Since(b.start))
	switch {
	case b.panics > 0:
		b.panics--
		panic("oh")
	case b.breaks > 0:
		b.breaks--
		return Answer{Reopen: true, Reason: ReasonConnection, Err: errors.New("reset")}
	case b.dead[name]:
		time.Sleep(b.timeout)
		return Answer{Reopen: true, Reason: ReasonTimeout, Err: errors.New("no answer")}
	}
	time.Sleep(b.cost)
	for i := range j.Samples {
		j.Samples[i] = Sample{Point: j.Samples[i].Point, Value: Int(1)}
	}
	return Answer{Time: time.Now(), Answered: true}
}

// log is a sink that writes down what it is told.
type log struct {
	lines  []string
	emit   func(Reading) error
	status func(Status) error
}

func (l *log) Emit(_ context.Context, r Reading) error {
	s := r.Samples[0]
	l.lines = append(l.lines, fmt.Sprint(r.Device.Name, " ", s.Quality, s.Reason))
	if l.emit != nil {
		return l.emit(r)
	}
	return nil
}

func (l *log) Status(_ context.Context, s Status) error {
	l.lines = append(l.lines, fmt.Sprint(s.Device.Name, " ", map[bool]string{true: "online", false: "offline "}[s.Online], s.Reason))
	if l.status != nil {
		return l.status(s)
	}
	return nil
}

// add enters a device with one point.
func add(p *Poller, name string, every time.Duration) *Job {
	return p.Add(&Device{Name: name}, every, []Sample{{Point: &Point{Name: "x"}}})
}

// runFor runs a poller for a while.
func runFor(t *testing.T, p *Poller, b *fakeBus, sink Sink, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := p.Run(ctx, sink); err != nil {
		t.Errorf("Run returned %v", err)
	}
	if b.misuse != nil {
		t.Error(b.misuse)
	}
	if b.open {
		t.Error("the connection is open after Run")
	}
}

func TestPollerDoesNotDrift(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBus()
		b.cost = 300 * time.Millisecond
		p := NewPoller("line", b, PollerOptions{})
		j := add(p, "a", time.Second)
		runFor(t, p, b, &log{}, 100*time.Second)
		for i, at := range b.polls["a"] {
			if want := j.anchor + time.Duration(i)*time.Second; at != want {
				t.Fatalf("poll %d at %v, want %v", i, at, want)
			}
		}
		if s := p.Stats(); s.Polls != 100 || s.Skipped != 0 || s.Failed != 0 || s.Connects != 1 || s.Online != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func TestPollerSkipsLateCycles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBus()
		p := NewPoller("line", b, PollerOptions{})
		j := add(p, "a", time.Second)
		n := 0
		runFor(t, p, b, &log{emit: func(Reading) error {
			if n++; n == 1 {
				time.Sleep(3500 * time.Millisecond) // back pressure
			}
			return nil
		}}, 10*time.Second)
		// Cycle 3 is late, 1 and 2 are lost; 4 is on time.
		first := b.polls["a"][0]
		if first != j.anchor {
			t.Fatalf("first at %v, want %v", first, j.anchor)
		}
		want := []time.Duration{0, 3501 * time.Millisecond, 4 * time.Second, 5 * time.Second}
		for i, w := range want {
			if got := b.polls["a"][i] - first; got != w {
				t.Errorf("poll %d after %v, want %v", i, got, w)
			}
		}
		if s := p.Stats(); s.Skipped != 2 {
			t.Errorf("skipped %d, want 2", s.Skipped)
		}
	})
}

func TestPollerProbesADeadDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBus()
		b.timeout = 100 * time.Millisecond
		b.dead["a"] = true
		p := NewPoller("line", b, PollerOptions{Retries: 1})
		d := add(p, "a", time.Second).Device
		p.Add(d, time.Hour, []Sample{{Point: &Point{Name: "slow"}}})
		sink := &log{}
		runFor(t, p, b, sink, 400*time.Second)
		var gaps []time.Duration
		for i, at := range b.polls["a"] {
			if i > 0 {
				gaps = append(gaps, (at - b.polls["a"][i-1] - b.timeout).Round(time.Millisecond))
			}
		}
		// A retry, the two polls of the fast job or the slow one, and then probes.
		probes := gaps[3:]
		for i, want := range []int{1, 2, 4, 8, 16, 32, 60, 60, 60} {
			if probes[i] != time.Duration(want)*time.Second {
				t.Fatalf("gaps %v", gaps)
			}
		}
		want := []string{"a badtimeout", "a badtimeout", "a badtimeout", "a offline timeout"}
		if !slices.Equal(sink.lines, want) {
			t.Errorf("sink was told %q, want %q", sink.lines, want)
		}
		if s := p.Stats(); s.Offline != 1 || s.Online != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestPollerProbesAsOftenAsItIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBus()
		b.dead["a"] = true
		p := NewPoller("line", b, PollerOptions{ProbeMax: 2 * time.Second})
		add(p, "a", time.Second)
		runFor(t, p, b, &log{}, 30*time.Second)
		polls := b.polls["a"]
		for i := 1; i < len(polls); i++ {
			if gap := polls[i] - polls[i-1]; gap > b.timeout+2*time.Second {
				t.Errorf("%v between two polls", gap)
			}
		}
		if len(polls) < 9 {
			t.Errorf("polled at %v", polls)
		}
	})
}

func TestPollerBringsADeviceBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBus()
		b.timeout = 100 * time.Millisecond
		b.dead["a"] = true
		p := NewPoller("line", b, PollerOptions{})
		d := add(p, "a", time.Second).Device
		slow := p.Add(d, time.Hour, []Sample{{Point: &Point{Name: "slow"}}})
		sink := &log{}
		sink.status = func(s Status) error {
			b.dead["a"] = s.Online // it is back for the first probe, for good
			return nil
		}
		sink.emit = func(r Reading) error {
			if r.Samples[0].Quality == Good {
				b.dead["a"] = false
			}
			return nil
		}
		runFor(t, p, b, sink, 10*time.Second)
		i := slices.Index(sink.lines, "a online")
		if i != 4 || sink.lines[3] != "a offline timeout" || sink.lines[5] != "a good" || sink.lines[6] != "a good" {
			t.Fatalf("sink was told %q", sink.lines)
		}
		if slow.Samples[0].Quality != Good {
			t.Error("the slow points were not read when the device was back")
		}
	})
}

// One dead unit of 50 on a shared connection, with a timeout as long as the
// period.
func TestPollerKeepsTheOthersGoing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBus()
		b.dead["dev-0"] = true
		p := NewPoller("line", b, PollerOptions{Retries: 1})
		for i := range 50 {
			add(p, fmt.Sprint("dev-", i), time.Second)
		}
		good := map[string]int{}
		const seconds = 60
		runFor(t, p, b, &log{emit: func(r Reading) error {
			if r.Samples[0].Quality == Good {
				good[r.Device.Name]++
			}
			return nil
		}}, seconds*time.Second)
		if len(good) != 49 {
			t.Fatalf("%d devices answered", len(good))
		}
		for name, n := range good {
			if n < seconds*98/100 {
				t.Errorf("%s: %d samples in %d s", name, n, seconds)
			}
		}
		if n := len(b.polls["dev-0"]); n > 4+seconds/10 {
			t.Errorf("the dead one was asked %d times", n)
		}
	})
}

// Ten dead units of 20 take no more than a tenth of the time.
func TestPollerProbesWithinATenth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBus()
		p := NewPoller("line", b, PollerOptions{})
		for i := range 20 {
			name := fmt.Sprint("dev-", i)
			add(p, name, time.Second)
			b.dead[name] = i < 10
		}
		runFor(t, p, b, &log{}, 20*time.Minute)
		probes := 0
		for i := range 10 {
			n := len(b.polls[fmt.Sprint("dev-", i)])
			if n < offlineAfter+5 {
				t.Errorf("dev-%d was asked %d times: it did not get its turn", i, n)
			}
			probes += n - offlineAfter
		}
		if most := int(20 * time.Minute / (probeShare * b.timeout)); probes > most {
			t.Errorf("%d probes of %v in 20 minutes", probes, b.timeout)
		}
	})
}

func TestPollerSaysWhyItIsNotConnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBus()
		b.away = time.Hour
		var lines bytes.Buffer
		p := NewPoller("line", b, PollerOptions{Log: slog.New(slog.NewTextHandler(&lines, nil))})
		add(p, "a", time.Second)
		runFor(t, p, b, &log{}, 10*time.Second)
		if text := lines.String(); !strings.Contains(text, `msg="device offline" link=line device=a reason=not-connected`) || strings.Contains(text, "nil") {
			t.Errorf("the log is\n%s", text)
		}
		if s := p.Stats(); s.Connected || s.LastError != "refused" {
			t.Errorf("%+v", s)
		}
	})
}

func TestPollerReconnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBus()
		const back = 30*time.Second + 300*time.Millisecond
		b.away = back
		p := NewPoller("line", b, PollerOptions{Retries: 2})
		for _, name := range []string{"a", "b"} {
			add(p, name, 10*time.Second)
		}
		sink := &log{}
		runFor(t, p, b, sink, 60*time.Second)
		var gaps []time.Duration
		for i := 1; i < len(b.opens); i++ {
			gaps = append(gaps, b.opens[i]-b.opens[i-1])
		}
		want := []time.Duration{200, 400, 800, 1600, 3200, 5000, 5000, 5000, 5000, 5000}
		for i := range want {
			want[i] *= time.Millisecond
		}
		if !slices.Equal(gaps, want) {
			t.Errorf("connected after %v, want %v", gaps, want)
		}
		if s := p.Stats(); s.LastError != "" {
			t.Errorf("it connected, and the last error is %q", s.LastError)
		}
		for _, name := range []string{"a", "b"} {
			if at := b.polls[name][0]; at < back || at > back+openMax {
				t.Errorf("%s polled at %v, back since %v", name, at, back)
			}
			if n := countLines(sink, name+" badnot-connected"); n != 3 {
				t.Errorf("%s was shown bad %d times", name, n)
			}
			if countLines(sink, name+" offline not-connected") != 1 || countLines(sink, name+" online") != 1 {
				t.Errorf("sink was told %q", sink.lines)
			}
		}
	})
}

// A unit that stays dead after an outage does not hold up the others.
func TestPollerReconnectsPastADeadDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBus()
		b.away = 20 * time.Second
		b.dead["a"] = true
		p := NewPoller("line", b, PollerOptions{})
		for _, name := range []string{"a", "b", "c"} {
			add(p, name, time.Second)
		}
		runFor(t, p, b, &log{}, 60*time.Second)
		a := b.polls["a"][0]
		for _, name := range []string{"b", "c"} {
			if at := b.polls[name][0]; at > a+b.timeout+10*time.Millisecond {
				t.Errorf("%s polled %v after the dead one", name, at-a)
			}
			if n := len(b.polls[name]); n < 30 {
				t.Errorf("%s polled %d times", name, n)
			}
		}
	})
}

func countLines(l *log, line string) (n int) {
	for _, s := range l.lines {
		if s == line {
			n++
		}
	}
	return n
}

func TestPollerRetriesOverANewConnection(t *testing.T) {
	for retries, want := range []string{"a badconnection-lost", "a online"} {
		synctest.Test(t, func(t *testing.T) {
			b := newFakeBus()
			b.breaks = 1
			p := NewPoller("line", b, PollerOptions{Retries: retries})
			add(p, "a", time.Second)
			sink := &log{}
			runFor(t, p, b, sink, 1500*time.Millisecond)
			if sink.lines[0] != want {
				t.Errorf("%d retries: %q", retries, sink.lines)
			}
			if len(b.opens) != 2 {
				t.Errorf("%d retries: connected %d times", retries, len(b.opens))
			}
		})
	}
}

func TestPollerSurvivesAPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBus()
		b.panics = 1
		p := NewPoller("line", b, PollerOptions{})
		add(p, "a", time.Second)
		sink := &log{}
		runFor(t, p, b, sink, 2500*time.Millisecond)
		if !slices.Equal(sink.lines[:3], []string{"a badinternal-error", "a online", "a good"}) || len(b.opens) != 2 {
			t.Errorf("sink was told %q, connected %d times", sink.lines, len(b.opens))
		}
	})
}

func TestPollerTellsARefusedStatusAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBus()
		p := NewPoller("line", b, PollerOptions{})
		add(p, "a", time.Second)
		sink := &log{emit: func(Reading) error { return errors.New("full") }}
		n := 0
		sink.status = func(Status) error {
			if n++; n < 3 {
				return errors.New("full")
			}
			return nil
		}
		runFor(t, p, b, sink, 4*time.Second)
		want := []string{"a online", "a good", "a online", "a good", "a online", "a good", "a good"}
		if !slices.Equal(sink.lines, want) {
			t.Errorf("sink was told %q, want %q", sink.lines, want)
		}
		if s := p.Stats(); s.Refused != 4 {
			t.Errorf("refused %d, want 4", s.Refused)
		}
	})
}

func TestPollerFindsASlowDeviceDeadSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBus()
		b.dead["a"] = true
		p := NewPoller("line", b, PollerOptions{})
		add(p, "a", time.Hour)
		sink := &log{}
		runFor(t, p, b, sink, 10*time.Second)
		if n := countLines(sink, "a offline timeout"); n != 1 {
			t.Errorf("sink was told %q", sink.lines)
		}
	})
}
