package alarm

import (
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

const tick = 5 * time.Second

// feeder feeds an engine with one figure, a sample each tick.
type feeder struct {
	e      *Engine
	sample Sample
	kinds  []Kind
	at     []time.Time
}

func feed(t testing.TB, o Options, name string) *feeder {
	t.Helper()
	e, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	f := &feeder{e: e, sample: Sample{Name: name}}
	e.Listen(func(ev Event) {
		f.kinds = append(f.kinds, ev.Kind)
		f.at = append(f.at, ev.Time)
	})
	return f
}

// hold keeps the figure at each of the values in turn, a tick each, for a while.
func (f *feeder) hold(d time.Duration, values ...float64) {
	for i := 0; time.Duration(i)*tick <= d; i++ {
		f.sample.Value = values[i%len(values)]
		f.e.Observe(time.Now(), f.sample)
		time.Sleep(tick)
	}
}

func (f *feeder) expect(t *testing.T, want ...Kind) {
	t.Helper()
	if diff := cmp.Diff(want, f.kinds); diff != "" {
		t.Errorf("%s (-want +got):\n%s", f.sample.Name, diff)
	}
	f.kinds, f.at = nil, nil
}

// TestEveryRow drives each alarm of the table over its thresholds and back.
func TestEveryRow(t *testing.T) {
	for _, r := range Table() {
		t.Run(r.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := feed(t, Options{}, r.Name)
				// beyond is a little on the wrong side of a threshold, within on the right
				// one but not far enough to end the level, back is far enough.
				beyond, within, back := 1.01, 0.95, 0.85
				if r.Below {
					beyond, within, back = 1/beyond, 1/within, 1/back
				}
				low, high := r.Warning, r.Critical
				if low == 0 {
					low = high
				}
				f.hold(10*time.Minute, low*back)
				f.expect(t)
				began := time.Now()
				f.hold(max(r.For, tick), low*beyond)
				if len(f.at) != 1 || f.at[0].Sub(began) > r.For+2*tick {
					t.Fatalf("raised %v after %v", f.kinds, f.at)
				}
				f.expect(t, Raised)
				f.hold(10*time.Minute, low*beyond, low*within, low, low*within)
				f.expect(t)
				if r.Warning > 0 && r.Critical > 0 {
					f.hold(max(r.For, tick), high*beyond)
					f.expect(t, Escalated)
					f.hold(10*time.Minute, high*within, high*beyond)
					f.expect(t)
					f.hold(10*time.Minute, low*beyond)
					f.expect(t, Eased)
				}
				f.hold(10*time.Minute, low*back, low*within)
				f.expect(t, Cleared)
				if a := f.e.Active(); len(a) > 0 {
					t.Errorf("active at the end: %+v", a)
				}
			})
		})
	}
}

// TestTable looks at the rows as a person meets them.
func TestTable(t *testing.T) {
	seen := make(map[string]bool)
	for _, r := range Table() {
		if seen[r.Name] || r.Name == "" {
			t.Errorf("%q stands twice", r.Name)
		}
		seen[r.Name] = true
		if r.Warning == 0 && r.Critical == 0 {
			t.Errorf("%s is never raised", r.Name)
		}
		e, err := New(Options{})
		if err != nil {
			t.Fatal(err)
		}
		v := r.Warning
		if r.Critical > 0 {
			v = r.Critical
		}
		now := time.Now()
		s := Sample{Name: r.Name, Value: v, Detail: "the detail"}
		e.Observe(now, s)
		e.Observe(now.Add(r.For), s)
		a := e.Active()
		if len(a) != 1 {
			t.Errorf("%s is not raised at %v", r.Name, v)
			continue
		}
		if strings.ContainsAny(a[0].Text, "{}") || !strings.Contains(a[0].Text, ":") {
			t.Errorf("%s says %q, without the way out or with a gap", r.Name, a[0].Text)
		}
	}
}

func TestForStartsAnewAfterABreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := feed(t, Options{Rules: []Rule{{Name: "x", Warning: 10, Critical: 20, For: time.Minute}}}, "x")
		f.hold(50*time.Second, 10)
		f.hold(0, 9)
		f.hold(50*time.Second, 25)
		f.expect(t)
		f.hold(10*time.Second, 25)
		f.expect(t, Raised) // at once as critical
		if a := f.e.Active(); len(a) != 1 || a[0].Severity != Critical || a[0].Threshold != 20 {
			t.Errorf("active is %+v", a)
		}
	})
}

func TestSubjectsStandAlone(t *testing.T) {
	e, err := New(Options{Rules: []Rule{{Name: "x", Warning: 1, Critical: 2, Text: "{subject} at {value} of {threshold}, {detail}"}, {Name: "a", Critical: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	e.Observe(now, Sample{Name: "x", Subject: "b", Value: 1.5, Detail: "look"}, Sample{Name: "x", Subject: "c", Value: 0.5}, Sample{Name: "a", Value: 1}, Sample{Name: "unknown", Value: 9})
	e.Observe(now.Add(tick), Sample{Name: "x", Subject: "b", Value: math.NaN()})
	want := []Alarm{
		{Name: "a", Severity: Critical, Value: 1, Threshold: 1, Since: now},
		{Name: "x", Subject: "b", Severity: Warning, Value: 1.5, Threshold: 1, Text: "b at 1.5 of 1, look", Since: now},
	}
	if diff := cmp.Diff(want, e.Active()); diff != "" {
		t.Errorf("active (-want +got):\n%s", diff)
	}
	e.Observe(now.Add(2*tick), Sample{Name: "x", Subject: "b", Value: 0})
	h := e.History()
	last := h[len(h)-1]
	if len(h) != 3 || last.Kind != Cleared || last.Severity != Warning || last.Value != 0 || !last.Since.Equal(now) {
		t.Errorf("history ends with %+v", last)
	}
}

func TestListenersComeAndGo(t *testing.T) {
	e, err := New(Options{Rules: []Rule{{Name: "x", Warning: 1}}, History: 3})
	if err != nil {
		t.Fatal(err)
	}
	var first, second int
	cancel := e.Listen(func(Event) { first++ })
	e.Listen(func(Event) { second++; e.Active() }) // may ask back
	now := time.Now()
	for i := range 10 {
		if i == 4 {
			cancel()
		}
		e.Observe(now.Add(time.Duration(i)*tick), Sample{Name: "x", Value: float64((i + 1) % 2)})
	}
	if first != 4 || second != 10 {
		t.Errorf("%d and %d events, want 4 and 10", first, second)
	}
	h := e.History()
	if len(h) != 3 || !h[0].Time.Equal(now.Add(7*tick)) || !h[2].Time.Equal(now.Add(9*tick)) {
		t.Errorf("history is %+v", h)
	}
}

func TestThresholds(t *testing.T) {
	v := func(f float64) *float64 { return &f }
	rules := []Rule{{Name: "up", Unit: Ratio, Warning: 0.8, Critical: 0.9}, {Name: "down", Below: true, Warning: 20, Critical: 10}}
	for _, c := range []struct {
		name string
		t    Threshold
		want string
	}{
		{"up", Threshold{Warning: v(0.5)}, ""},
		{"up", Threshold{Warning: v(0.95)}, "critical is 90 %, it must be above warning, which is 95 %"},
		{"up", Threshold{Warning: v(0.95), Critical: v(0)}, ""},
		{"down", Threshold{Critical: v(30)}, "must be below warning"},
		{"up", Threshold{Critical: v(-1)}, "negative"},
		{"up", Threshold{Critical: v(math.NaN())}, "negative"},
		{"upp", Threshold{}, `there is no alarm "upp"; there are up, down`},
	} {
		_, err := New(Options{Rules: rules, Thresholds: map[string]Threshold{c.name: c.t}})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	e, err := New(Options{Rules: rules, Thresholds: map[string]Threshold{"up": {Warning: v(0), Critical: v(0.5)}}})
	if err != nil {
		t.Fatal(err)
	}
	e.Observe(time.Now(), Sample{Name: "up", Value: 0.49})
	e.Observe(time.Now(), Sample{Name: "up", Value: 0.5})
	if h := e.History(); len(h) != 1 || h[0].Severity != Critical {
		t.Errorf("history is %+v", h)
	}
}

func TestFormat(t *testing.T) {
	for _, c := range []struct {
		unit Unit
		v    float64
		want string
	}{
		{Count, 3, "3"}, {Count, 1000000, "1000000"}, {Count, 0.25, "0.25"},
		{Ratio, 0.8, "80 %"}, {Ratio, 0.8312, "83.1 %"}, {Ratio, 0.00123, "0.123 %"}, {Ratio, 1.5, "150 %"},
		{Seconds, 0.12, "120 ms"}, {Seconds, 1.5, "1.5 s"}, {Seconds, 60, "1m"}, {Seconds, 3600, "1h"},
		{Seconds, 5400, "1h30m"}, {Seconds, 24 * 3600, "24h"}, {Seconds, 3661, "1h1m1s"}, {Seconds, 1e300, "2500000h"},
	} {
		if got := c.unit.Format(c.v); got != c.want {
			t.Errorf("%v is %q, want %q", c.v, got, c.want)
		}
	}
}

// TestModel compares the engine with the definition: a level is held from the
// moment a value has been beyond its threshold for long enough without a break,
// until one is back. The model finds that anew from all values at each step.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Rule{
			Name: "x", Warning: float64(rapid.IntRange(0, 50).Draw(t, "warning")), Below: rapid.Bool().Draw(t, "below"),
			For: time.Duration(rapid.IntRange(0, 4).Draw(t, "for")) * tick, Clear: rapid.SampledFrom([]float64{0, 0.5, 1}).Draw(t, "clear"),
		}
		if step := rapid.IntRange(0, 20).Draw(t, "step"); step > 0 {
			r.Critical = r.Warning + float64(step)
			if r.Below {
				r.Critical = max(r.Warning-float64(step), 0)
			}
		}
		if r.Warning == 0 && r.Below {
			r.Critical = 0
		}
		e, err := New(Options{Rules: []Rule{r}, History: rapid.IntRange(1, 5).Draw(t, "history")})
		if err != nil {
			t.Fatal(err)
		}
		var events []Event
		e.Listen(func(ev Event) { events = append(events, ev) })
		m := model{rule: r, start: time.Now()}
		severity := Severity(0)
		now := m.start
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 2).Draw(t, "ticks")) * tick)
			v := float64(rapid.IntRange(0, 80).Draw(t, "value"))
			m.at, m.values = append(m.at, now), append(m.values, v)
			events = nil
			e.Observe(now, Sample{Name: "x", Value: v})
			was := severity
			severity = m.severity()
			var want Kind
			switch {
			case was == severity:
			case was == 0:
				want = Raised
			case severity == 0:
				want = Cleared
			case severity > was:
				want = Escalated
			default:
				want = Eased
			}
			switch {
			case want == 0 && len(events) > 0:
				t.Fatalf("%v without a change", events)
			case want != 0 && (len(events) != 1 || events[0].Kind != want || events[0].Value != v || !events[0].Time.Equal(now)):
				t.Fatalf("%v, want one %s at %v", events, want, v)
			}
			active := e.Active()
			if severity == 0 && len(active) > 0 || severity != 0 && (len(active) != 1 || active[0].Severity != severity || active[0].Value != v) {
				t.Fatalf("active is %+v, want %s", active, severity)
			}
		}
		h := e.History()
		if !slices.IsSortedFunc(h, func(a, b Event) int { return a.Time.Compare(b.Time) }) {
			t.Fatalf("history is not in order: %+v", h)
		}
	})
}

type model struct {
	rule   Rule
	start  time.Time
	at     []time.Time
	values []float64
}

func (m *model) severity() Severity {
	switch {
	case m.held(m.rule.Critical):
		return Critical
	case m.held(m.rule.Warning):
		return Warning
	}
	return 0
}

func (m *model) held(threshold float64) bool {
	clearAt := m.rule.Clear
	if clearAt == 0 {
		clearAt = 0.9
	}
	beyond := func(v float64) bool { return v >= threshold }
	back := func(v float64) bool { return v < threshold*clearAt }
	if m.rule.Below {
		beyond = func(v float64) bool { return v <= threshold }
		back = func(v float64) bool { return v > threshold/clearAt }
	}
	if threshold == 0 {
		return false
	}
	// Some run of values beyond it lasted long enough, and none since was back.
	for first := range m.values {
		for last := first; last < len(m.values) && beyond(m.values[last]); last++ {
			if m.at[last].Sub(m.at[first]) >= m.rule.For && !slices.ContainsFunc(m.values[last:], back) {
				return true
			}
		}
	}
	return false
}

// What asks a gateway for its alarms reads what that has written.
func TestAlarmAsJSON(t *testing.T) {
	for _, s := range []Severity{0, Warning, Critical} {
		text, err := json.Marshal(Alarm{Name: "a", Severity: s})
		if err != nil {
			t.Fatal(err)
		}
		var back Alarm
		if err := json.Unmarshal(text, &back); err != nil || back.Severity != s {
			t.Errorf("%s: %v, %v", text, back.Severity, err)
		}
	}
	if err := json.Unmarshal([]byte(`{"severity":"awful"}`), new(Alarm)); err == nil {
		t.Error("it takes any severity")
	}
}

// What is told when an alarm is over names what it was about.
func TestClearedTextHasItsDetail(t *testing.T) {
	e, err := New(Options{Rules: []Rule{{Name: "files", Unit: Count, Critical: 1, Text: "{subject}: {detail}"}}})
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	defer e.Listen(func(ev Event) { texts = append(texts, ev.Kind.String()+" "+ev.Text) })()
	now := time.Now()
	e.Observe(now, Sample{Name: "files", Subject: "cloud", Value: 1, Detail: "key and certificate do not fit"})
	e.Observe(now, Sample{Name: "files", Subject: "cloud", Value: 1, Detail: "it is half written"})
	e.Observe(now, Sample{Name: "files", Subject: "cloud"})
	want := []string{"raised cloud: key and certificate do not fit", "cleared cloud: it is half written"}
	if !slices.Equal(texts, want) {
		t.Errorf("%q, want %q", texts, want)
	}
}
