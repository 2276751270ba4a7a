// Package alarm holds the one table of alarms and the engine that raises and
// clears them. The engine is fed with figures; it raises an alarm once when a
// figure has been beyond a threshold for long enough, says nothing more while it
// stays there or hovers about it, and clears it once when the figure is well
// back.
//
// It measures nothing itself, has no goroutine and no clock: whoever feeds it
// says what time it is.
package alarm

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"
)

// Severity of an alarm.
type Severity uint8

// The severities.
const (
	Warning Severity = iota + 1
	Critical
)

func (s Severity) String() string {
	switch s {
	case Warning:
		return "warning"
	case Critical:
		return "critical"
	}
	return "none"
}

// MarshalText is String, for JSON.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (s *Severity) UnmarshalText(text []byte) error {
	for _, one := range []Severity{0, Warning, Critical} {
		if one.String() == string(text) {
			*s = one
			return nil
		}
	}
	return fmt.Errorf("%q is no severity of an alarm", text)
}

// Alarm is an alarm that is raised, or was.
type Alarm struct {
	Name      string    `json:"name"`
	Subject   string    `json:"subject,omitempty"` // what it is about where there are several, such as a bridge
	Severity  Severity  `json:"severity"`
	Value     float64   `json:"value"`     // the newest, in the rule's unit
	Threshold float64   `json:"threshold"` // of the severity
	Text      string    `json:"text"`
	Since     time.Time `json:"since"` // when it was raised
}

// Kind is what happened to an alarm.
type Kind uint8

// The kinds. Eased is from critical back to warning.
const (
	Raised Kind = iota + 1
	Escalated
	Eased
	Cleared
)

var kindNames = [...]string{Raised: "raised", Escalated: "escalated", Eased: "eased", Cleared: "cleared"}

func (k Kind) String() string { return kindNames[k] }

// MarshalText is String, for JSON.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Event is a change of an alarm. That of a cleared one has the severity and
// threshold it had last.
type Event struct {
	Kind Kind      `json:"kind"`
	Time time.Time `json:"time"`
	Alarm
}

// Threshold replaces those of a rule: nil leaves one as it is, 0 takes the level
// away.
type Threshold struct{ Warning, Critical *float64 }

// Options of an engine; the zero value works.
type Options struct {
	Rules      []Rule               // nil is Table()
	Thresholds map[string]Threshold // by the name of the rule
	History    int                  // events kept; 0 is 1,000
}

// Sample is a figure at a time.
type Sample struct {
	Name    string // of the rule
	Subject string
	Value   float64 // NaN is unknown: nothing changes
	Detail  string  // for the text
}

// Engine knows which alarms are raised. Its methods may be called concurrently,
// except Observe, which one goroutine calls at a time.
type Engine struct {
	rules map[string]Rule

	mu        sync.Mutex // guards what follows
	states    map[key]*state
	history   []Event // a ring once it has its length
	oldest    int     // in history
	listeners []*func(Event)
}

type key struct{ name, subject string }

// state is how an alarm stands. Severity is 0 while it is not raised.
type state struct {
	Alarm
	detail            string
	warning, critical level
}

// level is how a value stands to a threshold.
type level struct {
	held  bool
	since time.Time // beyond it without a break; zero if it is not
}

// New returns an engine in which nothing is raised. An error is a threshold of an
// alarm there is not, or one that makes no sense.
func New(o Options) (*Engine, error) {
	if o.Rules == nil {
		o.Rules = Table()
	}
	if o.History == 0 {
		o.History = 1000
	}
	e := &Engine{rules: make(map[string]Rule), states: make(map[key]*state), history: make([]Event, 0, o.History)}
	for _, r := range o.Rules {
		if r.Clear == 0 {
			r.Clear = 0.9
		}
		e.rules[r.Name] = r
	}
	for name, t := range o.Thresholds {
		r, ok := e.rules[name]
		if !ok {
			return nil, fmt.Errorf("there is no alarm %q; there are %s", name, strings.Join(names(o.Rules), ", "))
		}
		if t.Warning != nil {
			r.Warning = *t.Warning
		}
		if t.Critical != nil {
			r.Critical = *t.Critical
		}
		e.rules[name] = r
	}
	for _, r := range o.Rules {
		if err := e.rules[r.Name].check(); err != nil {
			return nil, fmt.Errorf("alarm %s: %w", r.Name, err)
		}
	}
	return e, nil
}

func names(rules []Rule) []string {
	all := make([]string, len(rules))
	for i, r := range rules {
		all[i] = r.Name
	}
	return all
}

func (r Rule) check() error {
	if !(r.Warning >= 0 && r.Critical >= 0) {
		return fmt.Errorf("a threshold is negative")
	}
	if r.Warning > 0 && r.Critical > 0 && !r.beyond(r.Critical, r.Warning) {
		side := "above"
		if r.Below {
			side = "below"
		}
		return fmt.Errorf("critical is %s, it must be %s warning, which is %s", r.Unit.Format(r.Critical), side, r.Unit.Format(r.Warning))
	}
	return nil
}

// beyond reports whether a value is at a threshold or on its wrong side.
func (r *Rule) beyond(v, threshold float64) bool {
	if r.Below {
		return v <= threshold
	}
	return v >= threshold
}

// back reports whether a value is so far on the right side of a threshold that
// the level ends.
func (r *Rule) back(v, threshold float64) bool {
	if r.Below {
		return v > threshold/r.Clear
	}
	return v < threshold*r.Clear
}

// Listen has l called for each event from then on, in their order, by the
// goroutine that calls Observe; it must not block for long.
func (e *Engine) Listen(l func(Event)) (cancel func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.listeners = append(e.listeners, &l)
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.listeners = slices.DeleteFunc(slices.Clone(e.listeners), func(p *func(Event)) bool { return p == &l })
	}
}

// Observe feeds figures, all of the same time. An alarm of which no sample comes
// stays as it is. A sample whose name is not in the table is left out.
func (e *Engine) Observe(now time.Time, samples ...Sample) {
	e.mu.Lock()
	var events []Event
	for i := range samples {
		if kind, s := e.observe(now, &samples[i]); kind != 0 {
			events = append(events, Event{kind, now, s.Alarm})
			if kind == Cleared {
				s.Severity = 0
			}
		}
	}
	for _, ev := range events {
		e.remember(ev)
	}
	listeners := e.listeners
	e.mu.Unlock()
	for _, ev := range events {
		for _, l := range listeners {
			(*l)(ev)
		}
	}
}

func (e *Engine) observe(now time.Time, sample *Sample) (Kind, *state) {
	r, ok := e.rules[sample.Name]
	if !ok || math.IsNaN(sample.Value) {
		return 0, nil
	}
	k := key{sample.Name, sample.Subject}
	s := e.states[k]
	if s == nil {
		s = &state{Alarm: Alarm{Name: sample.Name, Subject: sample.Subject}}
		e.states[k] = s
	}
	s.warning.observe(now, &r, sample.Value, r.Warning)
	s.critical.observe(now, &r, sample.Value, r.Critical)
	was := s.Severity
	severity := Severity(0)
	switch {
	case s.critical.held:
		severity = Critical
	case s.warning.held:
		severity = Warning
	}
	if was == 0 && severity == 0 {
		return 0, s
	}
	s.Value = sample.Value
	if severity != 0 {
		s.Severity = severity
		s.Threshold = r.Warning
		if severity == Critical {
			s.Threshold = r.Critical
		}
	}
	if severity != 0 || sample.Detail != "" {
		s.detail = sample.Detail // what is over has no details of its own
	}
	s.Text = r.text(s, s.detail)
	switch {
	case was == 0:
		s.Since = now
		return Raised, s
	case severity == 0:
		return Cleared, s
	case severity > was:
		return Escalated, s
	case severity < was:
		return Eased, s
	}
	return 0, s
}

func (l *level) observe(now time.Time, r *Rule, v, threshold float64) {
	switch {
	case threshold == 0:
	case l.held:
		l.held = !r.back(v, threshold)
		l.since = time.Time{}
	case !r.beyond(v, threshold):
		l.since = time.Time{}
	default:
		if l.since.IsZero() {
			l.since = now
		}
		l.held = now.Sub(l.since) >= r.For
	}
}

func (r *Rule) text(s *state, detail string) string {
	return strings.NewReplacer(
		"{value}", r.Unit.Format(s.Value), "{threshold}", r.Unit.Format(s.Threshold),
		"{subject}", s.Subject, "{detail}", detail,
	).Replace(r.Text)
}

// remember adds an event to the history. e.mu is held.
func (e *Engine) remember(ev Event) {
	if len(e.history) < cap(e.history) {
		e.history = append(e.history, ev)
		return
	}
	e.history[e.oldest] = ev
	e.oldest = (e.oldest + 1) % len(e.history)
}

// Active returns the alarms that are raised, the worst first, with their newest
// values.
func (e *Engine) Active() []Alarm {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []Alarm
	for _, s := range e.states {
		if s.Severity != 0 {
			all = append(all, s.Alarm)
		}
	}
	slices.SortFunc(all, func(a, b Alarm) int {
		return cmp.Or(cmp.Compare(b.Severity, a.Severity), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Subject, b.Subject))
	})
	return all
}

// History returns the newest events, the oldest of them first.
func (e *Engine) History() []Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Concat(e.history[e.oldest:], e.history[:e.oldest])
}
