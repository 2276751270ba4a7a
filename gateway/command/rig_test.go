package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

var errCrash = errors.New("the process is dead")

// machine is what outlives a process: the journal, the audit log, the device, and what
// was told. A process can die before or after each thing that it does to one of them.
type machine struct {
	mu      sync.Mutex // guards what follows
	records map[Key]Record
	lines   []string
	writes  []string // to the device: what, in order
	values  map[string]adapters.Value
	told    []string // id: status, or again
	settled map[*Request]bool

	steps int // that were done in all
	dieAt int // at this step; 0 is never
	after bool
	die   context.CancelCauseFunc
	dead  bool
	names []string // of the steps
}

func newMachine() *machine {
	return &machine{records: map[Key]Record{}, values: map[string]adapters.Value{}, settled: map[*Request]bool{}}
}

// step does something durable, unless the process dies before.
func (m *machine) step(name string, do func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return errCrash
	}
	m.steps++
	m.names = append(m.names, name)
	dies := m.steps == m.dieAt
	if !dies || m.after {
		do()
	}
	if dies {
		m.dead = true
		m.die(errCrash)
		return errCrash
	}
	return nil
}

func (m *machine) Find(k Key, _ bool) (Record, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return Record{}, false, errCrash
	}
	r, ok := m.records[k]
	return r, ok, nil
}

func (m *machine) Write(_ context.Context, events []Event, records ...Record) error {
	show := func(dst []byte, v adapters.Value) []byte {
		text, _ := json.Marshal(v.String())
		return append(dst, text...)
	}
	err := m.step("audit", func() {
		for i := range events {
			m.lines = append(m.lines, string(events[i].Append(nil, show)))
		}
	})
	if err != nil || len(records) == 0 {
		return err
	}
	return m.step("journal", func() {
		for _, r := range records {
			m.records[r.Key] = r
		}
	})
}

// link is the device's.
type link struct {
	*machine
	takes time.Duration
	fail  func(point string) error // before it is written
	lose  func(point string) bool  // it is written, and no answer comes
}

var points = map[string]*adapters.Point{}

func point(name string) *adapters.Point {
	if points[name] == nil {
		points[name] = &adapters.Point{Name: name}
	}
	return points[name]
}

func (l *link) Write(ctx context.Context, _ string, values []adapters.Assignment) (samples []adapters.Sample, err error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	time.Sleep(l.takes)
	for _, v := range values {
		if l.fail != nil {
			if err := l.fail(v.Point); err != nil {
				return samples, err
			}
		}
		err := l.step("write "+v.Point, func() {
			l.writes = append(l.writes, fmt.Sprint(v.Point, "=", v.Value))
			l.values[v.Point] = v.Value
		})
		if err != nil {
			return samples, err
		}
		if l.lose != nil && l.lose(v.Point) {
			return append(samples, adapters.Sample{Point: point(v.Point), Quality: adapters.Uncertain, Reason: "timeout"}), errors.New(v.Point + ": timeout")
		}
		samples = append(samples, adapters.Sample{Point: point(v.Point), Value: v.Value})
	}
	return samples, nil
}

func (l *link) Read(ctx context.Context, _ string, names []string) (samples []adapters.Sample, err error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	time.Sleep(l.takes)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range names {
		s := adapters.Sample{Point: point(n), Value: l.values[n]}
		if l.values[n].Kind() == adapters.KindNone {
			s.Value = adapters.Int(0)
		}
		samples = append(samples, s)
	}
	return samples, nil
}

func (l *link) CheckWrite(_ string, values []adapters.Assignment) error {
	for _, v := range values {
		if f, _ := v.Value.Float64(); f > 30 {
			return fmt.Errorf("%s: %v is above its limit 30", v.Point, v.Value)
		}
	}
	return nil
}

func (l *link) CheckRead(string, []string) error { return nil }

// process is one life of an executor.
func (m *machine) process(parent context.Context, dieAt int, after bool, d func(*link) *Device, requests []*Request, o func(*Options)) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	m.mu.Lock()
	m.steps, m.dieAt, m.after, m.die, m.dead, m.names = 0, dieAt, after, cancel, false, nil
	m.mu.Unlock()
	opts := Options{Journal: m, MaxAge: time.Minute, Encode: func(r *Request, res *adapters.Result) []byte {
		text := fmt.Sprint(r.ID, " ", res.Status)
		for _, s := range res.Values {
			text += fmt.Sprint(" ", s.Point.Name, "=", s.Value)
			if s.Quality != adapters.Good {
				text += "?"
			}
		}
		if res.Error != "" {
			text += ": " + res.Error
		}
		return []byte(text)
	}}
	if o != nil {
		o(&opts)
	}
	var left []*Request
	for _, r := range requests {
		if !m.settled[r] {
			left = append(left, r)
		}
	}
	return New(opts).Process(ctx, d(&link{machine: m}), left, func(ctx context.Context, answers []Answer) error {
		if err := m.step("tell", func() {
			for _, a := range answers {
				m.told = append(m.told, string(a.Bytes))
			}
		}); err != nil {
			return err
		}
		return m.step("settle", func() {
			for _, a := range answers {
				m.settled[a.Request] = true
			}
		})
	})
}

func heater(l *link) *Device {
	return &Device{
		Name: "d", Writer: l, Reader: l, Checker: l, Points: map[string]bool{"a": true, "b": true, "c": false},
		Actions: map[string][]Step{"cycle": {
			{Write: []adapters.Assignment{{Point: "c", Value: adapters.Int(2)}}}, {Wait: 2 * time.Second}, {Write: []adapters.Assignment{{Point: "c", Value: adapters.Int(1)}}},
		}},
	}
}

func write(id string, values ...any) *Request {
	r := &Request{Key: Key{"i", id}, Command: adapters.Command{ID: id, Device: "d", Action: Write}}
	for i := 0; i < len(values); i += 2 {
		r.Command.Values = append(r.Command.Values, adapters.Assignment{Point: values[i].(string), Value: adapters.Int(int64(values[i+1].(int)))})
	}
	return r
}

func asks(id, action string, points ...string) *Request {
	return &Request{Key: Key{"i", id}, Command: adapters.Command{ID: id, Device: "d", Action: action, Points: points}}
}

func (m *machine) want(t *testing.T, told ...string) {
	t.Helper()
	if !slices.Equal(m.told, told) {
		t.Errorf("told\n  %s\nwant\n  %s", strings.Join(m.told, "\n  "), strings.Join(told, "\n  "))
	}
}
