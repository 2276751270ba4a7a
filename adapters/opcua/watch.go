package opcua

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/gopcua/opcua/ua"

	"github.com/fieldferry/fieldferry/adapters"
)

// A watch keeps what is known of the points while sessions come and go, and tells the
// sink. It belongs to one goroutine.
type watch struct {
	link    *Link
	sink    adapters.Sink
	devices []*watched
	items   []*item // the index is the handle that the server tells changes with
	create  int     // items of a request
	tick    time.Duration
}

// watched is what is known of a device.
type watched struct {
	*device
	items  []*item
	groups []*group
	heard  int // items of which something is known
	up     int // items that the server has a value of
	is     condition
	told   condition // to the sink
	reason string    // why it is offline
	last   time.Time // of its readings
	lost   time.Time // of the last that said that the connection is lost
}

// condition is what is known of a device.
type condition uint8

const (
	unheard condition = iota
	online
	offline
)

// A group is the points of a device that are told at one rate: what a reading is
// made of.
type group struct {
	dev     *watched
	every   time.Duration
	items   []*item
	pending []arrival // to be told
	twice   bool      // an item is in pending more than once
	all     bool      // what is known of the others is to be told too
	samples []adapters.Sample
}

// An arrival is a value that came.
type arrival struct {
	item *item
	told
}

// An item is what is known of a point.
type item struct {
	*point
	group   *group
	handle  uint32
	waiting int // in pending

	id      uint32 // the server's; 0: it has none
	plain   bool   // the server takes no deadband for it
	retryAt time.Time
	retry   time.Duration

	known bool
	now   told           // what came last
	sent  adapters.Value // to the sink
	at    time.Time      // when that was, on our clock
}

func newWatch(l *Link, sink adapters.Sink) *watch {
	w := &watch{link: l, sink: sink, tick: tickEvery, create: perCreate}
	for _, d := range l.devices {
		dev := &watched{device: d}
		for _, p := range d.points {
			if !p.read() {
				continue
			}
			i := slices.IndexFunc(dev.groups, func(g *group) bool { return g.every == p.every })
			if i < 0 {
				i = len(dev.groups)
				dev.groups = append(dev.groups, &group{dev: dev, every: p.every})
			}
			g := dev.groups[i]
			it := &item{point: p, group: g, handle: uint32(len(w.items))}
			g.items = append(g.items, it)
			dev.items = append(dev.items, it)
			w.items = append(w.items, it)
			if p.Heartbeat > 0 {
				w.tick = min(w.tick, max(p.Heartbeat/2, time.Millisecond))
			}
		}
		if len(dev.items) > 0 {
			w.devices = append(w.devices, dev)
		}
	}
	return w
}

// take notes what came of an item, and whether it is to be told.
func (w *watch) take(it *item, t told) {
	d := it.group.dev
	if !it.known && t.time.Before(d.lost) {
		t.time = time.Now() // it may be that old, but it is known since now
	}
	switch {
	case !it.known:
		d.heard++
		if !t.down {
			d.up++
		}
	case it.now.down && !t.down:
		d.up++
	case !it.now.down && t.down:
		d.up--
	}
	same := it.known && t.quality == it.now.quality && t.reason == it.now.reason
	it.known, it.now = true, t
	if same && (t.quality == adapters.Bad || it.covers(it.sent, t.value)) {
		return
	}
	it.sent = t.value
	g := it.group
	if it.waiting++; it.waiting > 1 {
		g.twice = true
	}
	g.pending = append(g.pending, arrival{it, t})
}

// covers reports whether the change from one value to another is none.
func (p *point) covers(from, to adapters.Value) bool {
	if p.Deadband == 0 {
		return false
	}
	if from.Kind() == adapters.KindList {
		return slices.EqualFunc(from.List(), to.List(), p.covers)
	}
	a, ok := from.Float64()
	b, too := to.Float64()
	if !ok || !too {
		return from.Kind() == to.Kind() && from.Text() == to.Text()
	}
	size := p.Deadband
	if p.Relative {
		size *= math.Abs(a)
	}
	return math.Abs(b-a) <= size
}

// flush tells what is pending of all groups.
func (w *watch) flush(ctx context.Context) {
	for _, d := range w.devices {
		pending := false
		for _, g := range d.groups {
			pending = pending || len(g.pending) > 0
		}
		if !pending {
			continue
		}
		w.judge(d)
		if d.is == online {
			w.status(ctx, d)
		}
		for _, g := range d.groups {
			w.flushGroup(ctx, g)
		}
		if d.is == offline {
			w.status(ctx, d)
		}
	}
}

// flushGroup tells what is pending of a group. Where a point has several values, each
// goes with those of the others that are of its time.
func (w *watch) flushGroup(ctx context.Context, g *group) {
	if g.all { // the device is back
		for _, it := range g.items {
			if it.known && it.waiting == 0 {
				g.pending = append(g.pending, arrival{it, it.now})
				it.waiting = 1
			}
		}
		g.all = false
	}
	pending := g.pending
	if g.twice {
		slices.SortStableFunc(pending, func(a, b arrival) int { return a.time.Compare(b.time) })
	}
	for _, a := range pending {
		a.item.waiting = 0
	}
	for len(pending) > 0 {
		n := len(pending)
		if g.twice {
			for n = 0; n < len(pending) && pending[n].item.waiting == 0; n++ {
				pending[n].item.waiting = 1
			}
			for _, a := range pending[:n] {
				a.item.waiting = 0
			}
		}
		w.tell(ctx, g, pending[:n])
		pending = pending[n:]
	}
	clear(g.pending)
	g.pending, g.twice = g.pending[:0], false
}

// tell makes a reading of values, unless the device is known to be offline: of that
// nothing is told.
func (w *watch) tell(ctx context.Context, g *group, values []arrival) {
	d := g.dev
	if d.is == offline && d.told == offline {
		return
	}
	var newest time.Time
	g.samples = g.samples[:0]
	at := time.Now()
	for _, a := range values {
		g.samples = append(g.samples, adapters.Sample{Point: a.item.Point.Point, Value: a.value, Quality: a.quality, Reason: a.reason})
		if a.time.After(newest) {
			newest = a.time
		}
		a.item.at = at
	}
	w.link.polls.Add(1)
	d.last = later(newest, d.last, at)
	w.emit(ctx, g)
}

func (w *watch) emit(ctx context.Context, g *group) {
	err := w.sink.Emit(ctx, adapters.Reading{Device: g.dev.Device, Time: g.dev.last, Samples: g.samples})
	if err != nil && ctx.Err() == nil {
		w.link.refused.Add(1)
	}
}

// judge says of a device whether it is there: of one that is not, the server has no
// value of any point. One that is back is told whole.
func (w *watch) judge(d *watched) {
	switch {
	case d.up > 0:
		if d.is != online {
			for _, g := range d.groups {
				g.all = true
			}
		}
		d.become(w.link, online, "")
	case d.heard == len(d.items):
		d.become(w.link, offline, d.items[0].now.reason)
	}
}

func (d *watched) become(l *Link, to condition, reason string) {
	if d.is == to {
		return
	}
	count := func(c condition, n int64) {
		switch c {
		case online:
			l.online.Add(n)
		case offline:
			l.offline.Add(n)
		}
	}
	count(d.is, -1)
	count(to, 1)
	d.is, d.reason = to, reason
	if to == online {
		l.log.Info("device online", "device", d.Name)
	} else {
		l.log.Warn("device offline", "device", d.Name, "reason", reason)
	}
}

// status tells the sink whether a device is online, unless it knows.
func (w *watch) status(ctx context.Context, d *watched) {
	if d.told == d.is {
		return
	}
	s := adapters.Status{Device: d.Device, Online: d.is == online, Time: time.Now()}
	if !s.Online {
		s.Reason = d.reason
	}
	if w.sink.Status(ctx, s) == nil {
		d.told = d.is
	}
}

// lost turns every point bad at once, because the server is not heard from.
func (w *watch) lost(ctx context.Context, reason string) {
	for _, d := range w.devices {
		if ctx.Err() != nil {
			return
		}
		d.heard, d.up = 0, 0
		for _, it := range d.items {
			it.known, it.now, it.sent = false, told{}, adapters.Value{}
			it.id, it.waiting, it.retryAt, it.retry = 0, 0, time.Time{}, 0
		}
		for _, g := range d.groups {
			g.pending, g.twice = g.pending[:0], false
		}
		if d.is == offline {
			w.status(ctx, d) // if the sink has refused it
			continue
		}
		d.become(w.link, offline, reason)
		for _, g := range d.groups {
			g.samples = g.samples[:0]
			for _, it := range g.items {
				g.samples = append(g.samples, adapters.Sample{Point: it.Point.Point, Quality: adapters.Bad, Reason: reason})
			}
			if now := time.Now(); now.After(d.last) {
				d.last = now
			}
			d.lost = d.last
			w.emit(ctx, g)
		}
		w.status(ctx, d)
	}
}

// sessionErrors end a session.
var sessionErrors = []statusError{
	{ua.StatusBadSessionIDInvalid}, {ua.StatusBadSessionClosed}, {ua.StatusBadSessionNotActivated}, {ua.StatusBadSecureChannelIDInvalid}, {ua.StatusBadSecureChannelClosed},
	{ua.StatusBadServerHalted}, {ua.StatusBadShutdown},
}

// Errors of a session that is of no further use.
var (
	errSilent = errors.New("nothing is heard from the server")
	errStale  = errors.New("the server answers, but does not look at its values any more")
)
