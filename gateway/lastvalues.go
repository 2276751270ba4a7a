package gateway

import (
	"slices"
	"sync"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/gateway/config"
)

// lastValues are what the points of a device that commands may write held when they were
// last read: what the audit log says was there before.
type lastValues struct {
	names map[string]*adapters.Point

	mu     sync.Mutex // guards what follows
	values map[*adapters.Point]adapters.Value
}

// newLastValues is nil for a device of which nothing is written.
func newLastValues(of *config.Device, points []*adapters.Point) *lastValues {
	written := make(map[string]bool)
	for i := range of.Points {
		written[of.Points[i].Name] = of.Points[i].Write != nil
	}
	for _, a := range of.Actions {
		for _, s := range a.Steps {
			for _, v := range s.Write {
				written[v.Point] = true
			}
		}
	}
	l := &lastValues{names: make(map[string]*adapters.Point), values: make(map[*adapters.Point]adapters.Value)}
	for _, p := range points {
		if written[p.Name] {
			l.names[p.Name] = p
			l.values[p] = adapters.Value{}
		}
	}
	if len(l.names) == 0 {
		return nil
	}
	return l
}

// take notes what was read and can be believed.
func (l *lastValues) take(samples []adapters.Sample) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range samples {
		s := &samples[i]
		if _, ours := l.values[s.Point]; !ours || s.Quality != adapters.Good {
			continue
		}
		v := s.Value
		if v.Kind() == adapters.KindList { // it is the link's
			v = adapters.List(slices.Clone(v.List()))
		}
		l.values[s.Point] = v
	}
}

// of is what a point held.
func (l *lastValues) of(point string) (adapters.Value, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.values[l.names[point]]
	return v, v.Kind() != adapters.KindNone
}

// last is what a point of a device held when it was last read.
func (f *field) last(device, point string) (adapters.Value, bool) {
	d := f.byID[device]
	if d == nil || d.written == nil {
		return adapters.Value{}, false
	}
	return d.written.of(point)
}
