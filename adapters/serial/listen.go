package serial

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/serial/port"
)

// reopenFirst is the time between the first two attempts to open the line.
const reopenFirst = 200 * time.Millisecond

// listener is a line whose devices talk unasked.
type listener struct {
	line    *line
	framer  *framer
	talkers []*talker
	log     *slog.Logger

	orders chan *telling
	reads  chan *reading
	ended  chan struct{} // closed when run ends

	// Of the goroutine that runs.
	telling  *telling
	waiting  []*reading
	overruns uint64
	down     bool // the last attempt to open the line failed

	running, connected           atomic.Bool
	lastError                    atomic.Pointer[string] // of opening the line; nil is none
	connects, readings, failures atomic.Uint64
	refused                      atomic.Uint64
	online, offline              atomic.Int64
}

// talker is one device that talks unasked.
type talker struct {
	*plan
	is, told condition
	reason   string    // why it is offline
	heard    time.Time // or when the line was opened
	last     time.Time // of its readings
}

// condition is what is known of a device.
type condition uint8

const (
	unheard condition = iota
	online
	offline
)

// telling is an order under way.
type telling struct {
	*order
	ctx   context.Context
	until time.Time
	heard string
	done  chan error
}

// reading is a plan that waits for a message.
type reading struct {
	*plan
	ctx  context.Context
	done chan error
}

func newListener(c *Config, l *line, devices []*device) *listener {
	s := &listener{
		line: l, framer: devices[0].framer, log: c.Log.With("link", c.Name),
		orders: make(chan *telling), reads: make(chan *reading), ended: make(chan struct{}),
	}
	for _, d := range devices {
		p := d.plan(0, nil)
		if len(d.plans) > 0 {
			p = d.plans[0]
		}
		s.talkers = append(s.talkers, &talker{plan: p})
	}
	return s
}

// run listens until ctx ends.
func (s *listener) run(ctx context.Context, sink adapters.Sink) error {
	s.running.Store(true)
	defer close(s.ended)
	defer s.running.Store(false)
	delay := time.Duration(0)
	for ctx.Err() == nil {
		err := s.line.open(ctx)
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			text := err.Error()
			s.lastError.Store(&text)
			if !s.down {
				s.down = true
				s.log.Warn("cannot connect", "error", err)
			}
			for _, t := range s.talkers {
				s.goOffline(ctx, sink, t, adapters.ReasonNotConnected)
			}
			delay = min(max(2*delay, reopenFirst), reopenMax)
			s.pass(ctx, delay)
			continue
		}
		if s.down {
			s.log.Info("connected")
		}
		delay, s.down = 0, false
		s.lastError.Store(nil)
		s.connected.Store(true)
		s.connects.Add(1)
		err = s.hear(ctx, sink)
		s.connected.Store(false)
		if cerr := s.line.close(); cerr != nil {
			s.log.Debug("cannot close the connection", "error", cerr)
		}
		s.answer(adapters.ErrNotConnected)
		if ctx.Err() == nil {
			s.log.Warn("the line broke", "error", err)
			for _, t := range s.talkers {
				if t.is != offline {
					s.emitBad(ctx, sink, t, adapters.ReasonConnection)
				}
			}
		}
	}
	s.answer(adapters.ErrNotRunning)
	for _, r := range s.waiting {
		r.done <- adapters.ErrNotRunning
	}
	return nil
}

// pass lets time pass while there is no connection.
func (s *listener) pass(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case o := <-s.orders:
			o.done <- adapters.ErrNotConnected
		case r := <-s.reads:
			r.done <- adapters.ErrNotConnected
		}
	}
}

// hear listens until the line breaks or ctx ends.
func (s *listener) hear(ctx context.Context, sink adapters.Sink) error {
	l := s.line
	s.framer.reset(false)
	s.overruns = 0
	last := time.Now() // that something came, or the line was opened
	for _, t := range s.talkers {
		if t.heard = last; t.Silent == 0 { // its silence says nothing
			s.goOnline(ctx, sink, t)
		}
	}
	for ctx.Err() == nil {
		gap := l.Timeout
		if s.framer.Idle > 0 {
			gap = s.framer.Idle
		}
		until := time.Now().Add(slice)
		if ends := last.Add(gap); ends.Before(until) && (len(s.framer.buf) > 0 || !s.framer.synced) {
			until = ends
		}
		n, err := l.port.Read(l.buf[:], until)
		if n == 0 && err == nil && l.Address != "" { // it may have come while nobody looked
			n, err = l.port.Read(l.buf[:], time.Now().Add(time.Millisecond))
		}
		if err != nil {
			return err
		}
		if lost := port.Overruns(l.port); lost != s.overruns {
			s.overruns = lost
			s.framer.reset(false)
		}
		now := time.Now()
		if n > 0 {
			last = now
			s.framer.add(l.buf[:n])
		}
		s.look(ctx, sink, now, n == 0 && now.Sub(last) >= gap)
		if err := s.tend(ctx, sink, now); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// look takes the messages out of what came.
func (s *listener) look(ctx context.Context, sink adapters.Sink, now time.Time, silence bool) {
	first := s.talkers[0]
	for {
		frame, o := s.framer.next(silence)
		switch {
		case o == needMore:
			return
		case o != found:
			first.frames.dropped(o, frame)
			continue
		}
		if t := s.telling; t != nil {
			if t.answers(&first.Frame, frame) {
				s.answer(nil)
				continue
			}
			t.heard = string(first.Frame.text(frame))
		}
		fits := false
		for _, t := range s.talkers {
			if t.fits(frame) {
				fits = true
				s.take(ctx, sink, t, now)
			}
		}
		if !fits {
			first.frames.other(frame)
			s.framer.refuse()
		}
	}
}

// take takes a message of a device.
func (s *listener) take(ctx context.Context, sink adapters.Sink, t *talker, now time.Time) {
	t.frames.good()
	t.heard = now
	kept := s.waiting[:0]
	for _, r := range s.waiting {
		if r.device != t.device {
			kept = append(kept, r)
			continue
		}
		r.take(r.readers, r.samples)
		r.done <- nil
	}
	s.waiting = kept
	s.goOnline(ctx, sink, t)
	if len(t.readers) == 0 || t.Every > 0 && now.Sub(t.last) < t.Every {
		return
	}
	t.last = now
	t.plan.take(t.readers, t.samples)
	s.readings.Add(1)
	s.emit(ctx, sink, t, now)
}

func (s *listener) emit(ctx context.Context, sink adapters.Sink, t *talker, at time.Time) {
	if len(t.samples) == 0 {
		return
	}
	if err := sink.Emit(ctx, adapters.Reading{Device: t.Device.Device, Time: at, Samples: t.samples}); err != nil {
		s.refused.Add(1)
	}
}

func (s *listener) emitBad(ctx context.Context, sink adapters.Sink, t *talker, reason string) {
	s.failures.Add(1)
	for i := range t.samples {
		x := &t.samples[i]
		x.Value, x.Quality, x.Reason = bad(reason)
	}
	s.emit(ctx, sink, t, time.Now())
}

// goOnline notes that a device is there.
func (s *listener) goOnline(ctx context.Context, sink adapters.Sink, t *talker) {
	if t.is != online {
		if t.is == offline {
			s.offline.Add(-1)
		}
		t.is = online
		s.online.Add(1)
		s.log.Info("device online", "device", t.Device.Device.Name)
	}
	s.tell(ctx, sink, t)
}

// goOffline notes that nothing is to be heard of a device.
func (s *listener) goOffline(ctx context.Context, sink adapters.Sink, t *talker, reason string) {
	if t.is != offline {
		if t.is == unheard || reason == adapters.ReasonTimeout {
			s.emitBad(ctx, sink, t, reason)
		}
		if t.is == online {
			s.online.Add(-1)
		}
		t.is, t.reason = offline, reason
		s.offline.Add(1)
		s.log.Warn("device offline", "device", t.Device.Device.Name, "reason", reason)
	}
	s.tell(ctx, sink, t)
}

// tell tells the sink whether a device is online, unless it knows.
func (s *listener) tell(ctx context.Context, sink adapters.Sink, t *talker) {
	if t.told == t.is || t.is == unheard {
		return
	}
	status := adapters.Status{Device: t.Device.Device, Online: t.is == online, Time: time.Now()}
	if t.is == offline {
		status.Reason = t.reason
	}
	if sink.Status(ctx, status) == nil {
		t.told = t.is
	}
}

// tend does what is due beside the messages.
func (s *listener) tend(ctx context.Context, sink adapters.Sink, now time.Time) error {
	for _, t := range s.talkers {
		if t.Silent > 0 && now.Sub(t.heard) >= t.Silent {
			t.heard = now // told again so much later, if the sink does not take it
			s.goOffline(ctx, sink, t, adapters.ReasonTimeout)
		}
	}
	if t := s.telling; t != nil && (now.After(t.until) || t.ctx.Err() != nil) {
		s.answer(errNoAnswer)
	}
	select {
	case r := <-s.reads:
		s.waiting = append(s.waiting, r)
	default:
	}
	kept := s.waiting[:0]
	for _, r := range s.waiting {
		if r.ctx.Err() == nil {
			kept = append(kept, r)
			continue
		}
		r.done <- errNoAnswer
	}
	s.waiting = kept
	if s.telling != nil {
		return nil
	}
	select {
	case t := <-s.orders:
		return s.begin(t)
	default:
		return nil
	}
}

// begin sends an order.
func (s *listener) begin(t *telling) error {
	if t.ctx.Err() != nil {
		t.done <- errors.Join(errNotSent, context.Cause(t.ctx))
		return nil
	}
	s.telling = t
	t.until = time.Now().Add(s.line.Timeout)
	err := s.line.send(t.bytes)
	if err != nil || len(t.point.Expect) == 0 {
		s.answer(err)
	}
	return err
}

// answer ends the order that is under way.
func (s *listener) answer(err error) {
	if s.telling != nil {
		s.telling.done <- err
		s.telling = nil
	}
}

// order has an order sent between the messages, and waits for its answer. heard is
// the last that came instead.
func (s *listener) order(ctx context.Context, o *order) (heard string, err error) {
	t := &telling{order: o, ctx: ctx, done: make(chan error, 1)}
	if !s.running.Load() {
		return "", adapters.ErrNotRunning
	}
	select {
	case s.orders <- t:
		err := <-t.done
		return t.heard, err
	case <-ctx.Done():
		return "", errors.Join(errNotSent, context.Cause(ctx))
	case <-s.ended:
		return "", adapters.ErrNotRunning
	}
}

// wait waits for the next message of a plan's device and fills in its samples.
func (s *listener) wait(ctx context.Context, p *plan) error {
	r := &reading{plan: p, ctx: ctx, done: make(chan error, 1)}
	if !s.running.Load() {
		return adapters.ErrNotRunning
	}
	select {
	case s.reads <- r:
		return <-r.done
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.ended:
		return adapters.ErrNotRunning
	}
}

func (s *listener) stats() adapters.Stats {
	failure := ""
	if text := s.lastError.Load(); text != nil {
		failure = *text
	}
	return adapters.Stats{
		LastError: failure,
		Connected: s.connected.Load(),
		Connects:  s.connects.Load(),
		Polls:     s.readings.Load() + s.failures.Load(),
		Failed:    s.failures.Load(),
		Refused:   s.refused.Load(),
		Online:    int(s.online.Load()),
		Offline:   int(s.offline.Load()),
	}
}
