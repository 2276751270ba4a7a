package gateway

import (
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/gateway/config"
)

// A deadband says which changes of a point are none, and for how long it may go
// without being sent.
type deadband struct {
	size      float64
	relative  bool          // size is a part of the value that was sent last
	heartbeat time.Duration // 0 is for ever
}

// changes knows what of a device was sent last, and leaves out what has not
// changed since.
type changes struct {
	points map[*adapters.Point]*sent
	lost   atomic.Bool // something that was sent was not stored: all of it is to be sent again
	kept   []adapters.Sample
}

// sent is what was sent of a point.
type sent struct {
	deadband
	known   bool
	value   adapters.Value
	quality adapters.Quality
	reason  string
	at      time.Time
}

// newChanges returns the changes of a device, none of which were sent.
func newChanges(d *config.Device, points []*adapters.Point) *changes {
	c := &changes{points: make(map[*adapters.Point]*sent, len(points))}
	for i, p := range points {
		of := &d.Points[i]
		c.points[p] = &sent{deadband: deadband{of.Deadband, of.Relative, of.Heartbeat}}
	}
	return c
}

// since returns the samples of a reading that are to be sent. They are valid
// until the next call.
func (c *changes) since(r adapters.Reading) []adapters.Sample {
	if c.lost.Swap(false) {
		for _, s := range c.points {
			s.known = false
		}
	}
	c.kept = c.kept[:0]
	for i := range r.Samples {
		if s := &r.Samples[i]; c.points[s.Point].changed(s, r.Time) {
			c.kept = append(c.kept, *s)
		}
	}
	return c.kept
}

// took notes that samples were sent.
func (c *changes) took(samples []adapters.Sample, at time.Time) {
	for i := range samples {
		s := &samples[i]
		last := c.points[s.Point]
		last.known, last.quality, last.reason, last.at = true, s.Quality, s.Reason, at
		last.value = s.Value
		if s.Value.Kind() == adapters.KindList { // the list is the link's
			last.value = adapters.List(slices.Clone(s.Value.List()))
		}
	}
}

// changed reports whether a sample is to be sent.
func (l *sent) changed(s *adapters.Sample, now time.Time) bool {
	if !l.known || l.quality != s.Quality || l.reason != s.Reason {
		return true
	}
	if l.heartbeat > 0 && (now.Sub(l.at) >= l.heartbeat || now.Before(l.at)) {
		return true
	}
	return !l.covers(l.value, s.Value)
}

// covers reports whether the change from one value to another is none.
func (d *deadband) covers(from, to adapters.Value) bool {
	if from.Kind() == adapters.KindList {
		return slices.EqualFunc(from.List(), to.List(), d.covers)
	}
	a, number := from.Float64()
	b, too := to.Float64()
	if !number || !too || d.size == 0 {
		return same(from, to)
	}
	size := d.size
	if d.relative {
		size *= math.Abs(a)
	}
	return math.Abs(b-a) <= size
}

// same reports whether two values, no lists, are equal.
func same(a, b adapters.Value) bool {
	if a.Kind() != b.Kind() {
		return false
	}
	switch a.Kind() {
	case adapters.KindNone:
		return true
	case adapters.KindString:
		return a.Text() == b.Text()
	}
	return a.Uint64() == b.Uint64() // the bits of a number, and those of flags
}

// stored is told, from any goroutine, how the storing of something sent ended.
func (c *changes) stored(err error) {
	if err != nil {
		c.lost.Store(true)
	}
}

// idleDeadbands warns of deadbands in a file that has everything sent, once for
// each place.
func idleDeadbands(c *config.Config) (warnings []config.Problem) {
	if c.Payload.OnlyChanged {
		return nil
	}
	told := make(map[config.Pos]bool)
	for i := range c.Adapters {
		if u := c.Adapters[i].OPCUA; u != nil && !u.Poll {
			continue // there they say what the server tells us of at all
		}
		for _, d := range c.Adapters[i].Devices {
			for j := range d.Points {
				p := &d.Points[j]
				if (p.Deadband > 0 || p.Heartbeat > 0) && !told[p.Pos] {
					told[p.Pos] = true
					warnings = append(warnings, config.Problem{Pos: p.Pos, Warning: true, Text: "points." + p.Name +
						": deadband and heartbeat count only with payload.send: changed; every value is sent"})
				}
			}
		}
	}
	return warnings
}
