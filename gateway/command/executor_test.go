package command

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

// run is one process that nothing happens to.
func run(t *testing.T, d func(*link) *Device, o func(*Options), requests ...*Request) *machine {
	t.Helper()
	m := newMachine()
	if err := m.process(t.Context(), 0, false, d, requests, o); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestCommands(t *testing.T) {
	expires := func(r *Request, in time.Duration) *Request {
		r.Command.Expires = time.Now().Add(in)
		return r
	}
	lasts := func(r *Request, lasts, age time.Duration) *Request {
		r.Lasts, r.Age = lasts, age
		return r
	}
	wrong := func(r *Request, text string) *Request {
		r.Wrong = errors.New(text)
		return r
	}
	for _, tt := range []struct {
		name   string
		device func(*link) *Device
		o      func(*Options)
		all    func() []*Request
		told   []string
		writes string
	}{
		{name: "a write, a read, an action", all: func() []*Request {
			return []*Request{write("1", "a", 5, "b", 6), asks("2", Read, "a", "c"), asks("3", "cycle")}
		}, told: []string{"1 executed a=5 b=6", "2 executed a=5 c=0", "3 executed c=1"}, writes: "a=5 b=6 c=2 c=1"},
		{name: "what is not possible", all: func() []*Request {
			both := asks("7", "cycle")
			both.Command.Points = []string{"a"}
			return []*Request{write("1", "a", 40), write("2", "x", 1), write("3", "c", 1), asks("4", "dance"), asks("5", Read, "x"), wrong(asks("6", Read), "no"), both}
		}, told: []string{
			"1 rejected: a: 40 is above its limit 30", "2 rejected: x: the device d has no such point",
			"3 rejected: c: may not be written; write: {} in the site file allows it",
			"4 rejected: action: the device d has no action dance; there are write, read, cycle",
			"5 rejected: x: the device d has no such point", "6 rejected: no", "7 rejected: action: cycle takes neither values nor points",
		}},
		{name: "without an id", all: func() []*Request { return []*Request{write("", "a", 1)} }, told: []string{" rejected: id: is missing; give each command an id of its own"}},
		{name: "a device that is not there", device: func(*link) *Device { return nil }, all: func() []*Request { return []*Request{write("1", "a", 1)} },
			told: []string{"1 rejected: there is no device d in the site file that takes commands"}},
		{name: "turned off", o: func(o *Options) { o.Off = true }, all: func() []*Request { return []*Request{write("1", "a", 1)} },
			told: []string{"1 rejected: commands are turned off; commands: {enabled: true} in the site file turns them on"}},
		{name: "too late", all: func() []*Request {
			return []*Request{
				expires(write("1", "a", 1), -time.Second), expires(write("2", "a", 2), time.Second), lasts(write("3", "a", 3), 5*time.Second, 6*time.Second), lasts(write("4", "a", 4), 5*time.Second, 4*time.Second),
				lasts(write("5", "a", 5), 0, 61*time.Second), lasts(write("6", "a", 6), 0, 59*time.Second), expires(lasts(write("7", "a", 7), 0, time.Hour), time.Second),
				expires(lasts(write("8", "a", 8), 5*time.Second, 6*time.Second), time.Minute),
			}
		}, told: []string{"1 expired: it came too late to be carried out", "2 executed a=2", "3 expired: it came too late to be carried out", "4 executed a=4",
			"5 expired: it came too late to be carried out", "6 executed a=6", "7 executed a=7", "8 expired: it came too late to be carried out"}, writes: "a=2 a=4 a=6 a=7"},
		{name: "with a clock that is not believed, what says when it expires is good for max_age", o: func(o *Options) { o.Believes = func(time.Time) bool { return false } }, all: func() []*Request {
			unknown := expires(write("3", "a", 3), time.Hour)
			unknown.AgeUnknown = true
			return []*Request{expires(lasts(write("1", "a", 1), 0, 61*time.Second), time.Hour), expires(lasts(write("2", "a", 2), 0, time.Second), -time.Hour), unknown}
		}, told: []string{"1 expired: it came too late to be carried out", "2 executed a=2", "3 expired: it came too late to be carried out"}, writes: "a=2"},
		{name: "the same again, and another under its id", all: func() []*Request {
			return []*Request{write("1", "a", 1), write("1", "a", 1), write("1", "a", 2), asks("2", "dance"), asks("2", "dance")}
		}, told: []string{"1 executed a=1", "1 executed a=1", "1 rejected: id: 1 was that of another command; give each its own",
			"2 rejected: action: the device d has no action dance; there are write, read, cycle", "2 rejected: action: the device d has no action dance; there are write, read, cycle"}, writes: "a=1"},
		{name: "ids are the issuer's", all: func() []*Request {
			other := write("1", "a", 2)
			other.Issuer = "j"
			return []*Request{write("1", "a", 1), other}
		}, told: []string{"1 executed a=1", "1 executed a=2"}, writes: "a=1 a=2"},
		{name: "the device refuses", device: func(l *link) *Device {
			l.fail = func(p string) error {
				if p == "b" {
					return errors.New("b: the device refuses, exception 4")
				}
				return nil
			}
			return heater(l)
		}, all: func() []*Request { return []*Request{write("1", "a", 1, "b", 2, "c", 3)} }, told: []string{"1 rejected: c: may not be written; write: {} in the site file allows it"}},
		{name: "the device refuses halfway", device: func(l *link) *Device {
			l.fail = func(p string) error {
				if p == "b" {
					return errors.New("b: the device refuses, exception 4")
				}
				return nil
			}
			return heater(l)
		}, all: func() []*Request { return []*Request{write("1", "a", 1, "b", 2)} }, told: []string{"1 failed a=1: b: the device refuses, exception 4"}, writes: "a=1"},
		{name: "no answer comes", device: func(l *link) *Device {
			l.lose = func(p string) bool { return p == "c" }
			return heater(l)
		}, all: func() []*Request { return []*Request{asks("1", "cycle"), asks("1", "cycle")} },
			told: []string{"1 unknown c=none?: step 1: c: timeout", "1 unknown c=none?: step 1: c: timeout"}, writes: "c=2"},
		{name: "a device without a way to write", device: func(l *link) *Device {
			d := heater(l)
			d.Writer, d.Checker = nil, nil
			return d
		}, all: func() []*Request { return []*Request{write("1", "a", 1)} }, told: []string{"1 rejected: the device d cannot be written"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if tt.device == nil {
					tt.device = heater
				}
				m := run(t, tt.device, tt.o, tt.all()...)
				m.want(t, tt.told...)
				if got := strings.Join(m.writes, " "); got != tt.writes {
					t.Errorf("written %q, want %q", got, tt.writes)
				}
				for _, line := range m.lines {
					if strings.Contains(line, `"event":"answered"`) && !strings.Contains(line, `"status":"`) {
						t.Errorf("audit %s", line)
					}
				}
			})
		})
	}
}

// A process that dies at any step leaves nothing that the next one does twice, and
// nothing without an answer.
func TestDeathAtEveryStep(t *testing.T) {
	commands := func() []*Request {
		return []*Request{
			asks("0", "dance"), write("1", "a", 1, "b", 2), write("1", "a", 1, "b", 2), asks("2", "cycle"), asks("3", Read, "a"), write("4", "a", 40), write("5", "b", 3),
		}
	}
	synctest.Test(t, func(t *testing.T) {
		for _, after := range []bool{false, true} {
			for dieAt, secondAt := 1, 0; ; {
				m := newMachine()
				requests := commands()
				first := m.process(t.Context(), dieAt, after, heater, requests, nil)
				if first == nil {
					break // there are no more steps
				}
				where := fmt.Sprintf("died at step %d (%s), after %t", dieAt, m.names[len(m.names)-1], after)
				for _, r := range requests {
					r.Old = true
				}
				second := m.process(t.Context(), secondAt, after, heater, requests, nil)
				if second != nil {
					where += fmt.Sprintf(", then at %d (%s)", secondAt, m.names[len(m.names)-1])
					if err := m.process(t.Context(), 0, false, heater, requests, nil); err != nil {
						t.Fatalf("%s: %v", where, err)
					}
				}
				m.check(t, where, requests)
				if secondAt == 0 {
					secondAt = 1
				} else if second != nil {
					secondAt++
				} else {
					dieAt, secondAt = dieAt+1, 0
				}
				if t.Failed() {
					return
				}
			}
		}
	})
}

func (m *machine) check(t *testing.T, where string, requests []*Request) {
	t.Helper()
	writes := map[string]int{}
	for _, w := range m.writes {
		writes[w]++
	}
	for w, n := range writes {
		if n > 1 {
			t.Errorf("%s: %s was written %d times", where, w, n)
		}
	}
	status := map[string]string{}
	for _, text := range m.told {
		id, rest, _ := strings.Cut(text, " ")
		if before, there := status[id]; there && before != rest {
			t.Errorf("%s: %s was answered %q and %q", where, id, before, rest)
		}
		status[id] = rest
	}
	for _, r := range requests {
		got, there := status[r.ID]
		if !there || !m.settled[r] {
			t.Errorf("%s: %s was not answered", where, r.ID)
		}
		if r.ID == "1" && strings.HasPrefix(got, "executed") && (writes["a=1"] != 1 || writes["b=2"] != 1) {
			t.Errorf("%s: it is said to be executed, and is not: %v", where, m.writes)
		}
		if r.ID == "1" && strings.HasPrefix(got, "unknown") && strings.Contains(got, "a=1") != (writes["a=1"] == 1) {
			t.Errorf("%s: %q, but the device has %v", where, got, m.writes)
		}
		for _, line := range []string{"accepted", "answered"} {
			if !strings.Contains(strings.Join(m.lines, ""), fmt.Sprintf(`"event":%q,"device":"d","from":{},"id":%q`, line, r.ID)) {
				t.Errorf("%s: the audit log does not say that %s was %s", where, r.ID, line)
			}
		}
	}
	// What was written was begun by the log's account, too.
	for id, w := range map[string]string{"1": "a=1", "2": "c=2", "5": "b=3"} {
		if writes[w] > 0 && !strings.Contains(strings.Join(m.lines, ""), fmt.Sprintf(`"event":"started","device":"d","from":{},"id":%q`, id)) {
			t.Errorf("%s: the audit log does not say that %s was started", where, id)
		}
	}
}

// A command waits for a connection, but not for long, and not past its time.
func TestCommandsWaitForAConnection(t *testing.T) {
	for _, tt := range []struct {
		up      time.Duration
		expires time.Duration
		told    string
	}{
		{2 * time.Second, 0, "1 executed a=1"},
		{time.Hour, 0, "1 failed: the link has no connection"},
		{time.Hour, 2 * time.Second, "1 expired: it came too late to be carried out"},
	} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			ready := func() bool { return time.Since(began) >= tt.up }
			r := write("1", "a", 1)
			if tt.expires > 0 {
				r.Command.Expires = began.Add(tt.expires)
			}
			m := run(t, func(l *link) *Device {
				l.fail = func(string) error {
					if !ready() {
						return adapters.ErrNotConnected
					}
					return nil
				}
				d := heater(l)
				d.Ready = ready
				return d
			}, nil, r)
			m.want(t, tt.told)
			if took := time.Since(began); took > 6*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// However many commands come, a device gets no more than it may.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var all []*Request
		const n = 200
		for i := range n {
			all = append(all, write(fmt.Sprint(i), "a", i%30))
		}
		m := run(t, heater, nil, all...)
		if len(m.told) != n {
			t.Errorf("%d answers", len(m.told))
		}
		if took, least := time.Since(began), (n-perSecond)*time.Second/perSecond-time.Second/perSecond; took < least || took > least+time.Second {
			t.Errorf("%d commands took %v, want %v", n, took, least)
		}
	})
}

// What the journal of an earlier process is lost for is not carried out.
func TestLostJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, fresh := write("1", "a", 1), write("2", "a", 2)
		old.Old, old.Lost, fresh.Lost = true, true, true
		m := run(t, heater, nil, old, fresh)
		m.want(t, "1 unknown: the gateway's journal of commands was lost; whether it was done is not known, and it is not done now", "2 executed a=2")
	})
}

// A gateway that stops finishes what it is at, but for the waits of an action: what is
// left of that is not done any more.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine()
		slow := func(l *link) *Device {
			l.takes = time.Second
			return heater(l)
		}
		requests := []*Request{write("1", "a", 1), write("2", "b", 2)}
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if err := m.process(ctx, 0, false, slow, requests, nil); err == nil {
			t.Error("it went on")
		}
		m.want(t, "1 executed a=1")
		if err := m.process(t.Context(), 0, false, slow, requests, nil); err != nil {
			t.Fatal(err)
		}
		m.want(t, "1 executed a=1", "2 executed b=2")

		m = newMachine()
		requests = []*Request{asks("1", "cycle")}
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := m.process(ctx, 0, false, heater, requests, nil); err == nil {
			t.Error("it went on")
		}
		if err := m.process(t.Context(), 0, false, heater, requests, nil); err != nil {
			t.Fatal(err)
		}
		m.want(t, "1 unknown c=2: the gateway stopped while it carried this out; whether it was done is not known, and values are what was read afterwards")
	})
}
