package adapters

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"
)

// A Bus is what a [Poller] drives: one connection to one or more devices. Its
// methods are called from one goroutine. A panic in Open or Poll is taken for an
// error after which the connection is of no further use.
type Bus interface {
	// Open connects. It blocks until that is done or failed, or, as far as it
	// can, until ctx ends.
	Open(ctx context.Context) error

	// Close drops the connection that Open made.
	Close() error

	// Poll asks for the points of a job and fills in the samples that were
	// answered, also those that were refused; the others it leaves as they are.
	// It blocks until the answers are there or failed, or ctx ends.
	Poll(ctx context.Context, j *Job) Answer
}

// An Answer is how a poll went.
type Answer struct {
	Time     time.Time // of the last answer; zero if there was none
	Answered bool      // the device answered something
	Reopen   bool      // the connection is of no further use
	Reason   string    // of the samples that were left as they are; empty if there are none
	Err      error     // the same, for people
}

// PollerOptions are the choices of a poller. The zero value works.
type PollerOptions struct {
	Retries   int           // more attempts at a poll that failed, of a device that was well before
	ReopenMax time.Duration // between two attempts to connect; 0 is 5 s
	ProbeMax  time.Duration // between two attempts at a device that is offline, as long as no other is online; 0 is 60 s
	Log       *slog.Logger  // nil discards
}

// The rules of going offline and of trying again.
const (
	offlineAfter = 3 // polls in a row that were not answered
	probeFirst   = time.Second
	probeMax     = 60 * time.Second
	probeShare   = 10 // while a device is online, probes take one part in so many of the time
	openFirst    = 200 * time.Millisecond
	openMax      = 5 * time.Second
)

// A Poller polls the devices of one bus: each job in its cycles, a late one at
// once and those missed meanwhile not at all. It opens the connection, and opens
// it again when it broke. A device that leaves three polls in a row unanswered
// is offline: from then on its first job alone is tried, after 1, 2, 4 … 60 s,
// and less often where that would take too much time from the others.
type Poller struct {
	name    string
	bus     Bus
	retries int
	log     *slog.Logger
	jobs    schedule
	devices []*deviceState
	start   time.Time // of the schedule; when Run was called

	// The connection.
	isOpen   bool
	down     bool          // the last attempt to open it failed
	reopenAt time.Duration // no attempt before
	reopen   backoff

	probe   backoff       // that devices begin with
	probeAt time.Duration // no probe before, while a device is online

	errands chan *errand
	ran     bool          // the last turn was an errand's
	later   []afterwards  // the soonest first
	running atomic.Bool   // Run is
	ended   chan struct{} // closed when Run ends

	connected               atomic.Bool
	lastError               atomic.Pointer[string] // of connecting; nil is none
	connects, polls, failed atomic.Uint64
	skipped, refused        atomic.Uint64
	online, offline         atomic.Int64
}

// deviceState is what a poller knows of a device.
type deviceState struct {
	*Device
	jobs   []*Job // the first one probes
	is     condition
	told   condition // to the sink
	fails  int       // in a row
	reason string    // of the last failure
	probe  backoff
}

// condition is what is known of a device.
type condition uint8

const (
	unheard condition = iota
	online
	offline
)

// NewPoller returns a poller for a bus. The name is for people, and decides
// where in their periods the jobs begin.
func NewPoller(name string, bus Bus, o PollerOptions) *Poller {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.ReopenMax = cmp.Or(o.ReopenMax, openMax)
	o.ProbeMax = cmp.Or(o.ProbeMax, probeMax)
	return &Poller{
		name:    name,
		bus:     bus,
		retries: o.Retries,
		log:     o.Log.With("link", name),
		reopen:  backoff{first: openFirst, max: o.ReopenMax},
		probe:   backoff{first: min(probeFirst, o.ProbeMax), max: o.ProbeMax},
		errands: make(chan *errand),
		ended:   make(chan struct{}),
	}
}

// Add enters the points of one device and rate, before Run. The samples' points
// must be set. A device's first job is the one it is probed with.
func (p *Poller) Add(d *Device, every time.Duration, samples []Sample) *Job {
	i := slices.IndexFunc(p.devices, func(s *deviceState) bool { return s.Device == d })
	if i < 0 {
		i = len(p.devices)
		p.devices = append(p.devices, &deviceState{Device: d, probe: p.probe})
	}
	state := p.devices[i]
	j := &Job{Device: d, Every: every, Samples: samples, state: state}
	state.jobs = append(state.jobs, j)
	p.jobs.add(j, phase(p.name, len(p.jobs.jobs)))
	return j
}

// String returns the poller's name.
func (p *Poller) String() string { return p.name }

// Stats returns what was counted so far. It may be called concurrently.
func (p *Poller) Stats() Stats {
	failure := ""
	if text := p.lastError.Load(); text != nil {
		failure = *text
	}
	return Stats{
		Connected: p.connected.Load(),
		LastError: failure,
		Connects:  p.connects.Load(),
		Polls:     p.polls.Load(),
		Failed:    p.failed.Load(),
		Skipped:   p.skipped.Load(),
		Refused:   p.refused.Load(),
		Online:    int(p.online.Load()),
		Offline:   int(p.offline.Load()),
	}
}

// Run polls until ctx ends, as [Link] has it.
func (p *Poller) Run(ctx context.Context, sink Sink) error {
	p.start = time.Now()
	p.running.Store(true)
	defer close(p.ended)
	defer p.running.Store(false)
	defer p.disconnect()
	defer p.finishLater()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		if !p.isOpen && p.now() >= p.reopenAt {
			p.connect(ctx)
			continue
		}
		if p.runLater() || p.errand() {
			continue
		}
		if j := p.jobs.take(p.now()); j != nil {
			p.ran = false
			p.skipped.Store(p.jobs.skipped)
			p.turn(ctx, j, sink)
			continue
		}
		wake := p.jobs.next()
		if !p.isOpen {
			wake = min(wake, p.reopenAt)
		}
		if len(p.later) > 0 {
			wake = min(wake, p.later[0].at)
		}
		timer.Reset(wake - p.now())
		select {
		case <-ctx.Done():
		case <-timer.C:
		case e := <-p.errands:
			p.run(e)
		}
	}
	return nil
}

func (p *Poller) now() time.Duration { return time.Since(p.start) }

// turn gives a job its turn: polls and tells the sink.
func (p *Poller) turn(ctx context.Context, j *Job, sink Sink) {
	d := j.state
	wasOffline := d.is == offline
	if wasOffline && d.reason != ReasonNotConnected && p.online.Load() > 0 && p.now() < p.probeAt {
		p.jobs.move(j, p.probeAt)
		return
	}
	begin := p.now()
	a := p.poll(ctx, j)
	if ctx.Err() != nil {
		return // what came is not known to be all there was
	}
	if a.Answered {
		p.answered(j)
	} else {
		p.unanswered(j, a, begin)
	}
	if d.is == online {
		p.tell(ctx, d, sink)
	}
	if !wasOffline || d.is == online {
		if a.Time.IsZero() {
			a.Time = time.Now()
		}
		if err := sink.Emit(ctx, Reading{Device: j.Device, Time: a.Time, Samples: j.Samples}); err != nil {
			p.refused.Add(1)
		}
	}
	if d.is == offline {
		p.tell(ctx, d, sink)
	}
}

// poll asks for a job's points, again over a new connection if need be.
func (p *Poller) poll(ctx context.Context, j *Job) Answer {
	p.polls.Add(1)
	for try := 0; ; try++ {
		for i := range j.Samples {
			s := &j.Samples[i]
			s.Value, s.Quality, s.Reason = Value{}, Bad, ""
		}
		if !p.isOpen && try > 0 {
			p.connect(ctx)
		}
		a := Answer{Reason: ReasonNotConnected}
		if p.isOpen {
			a = p.guarded(ctx, j)
			if a.Reopen {
				p.disconnect()
				p.reopenAt = p.now()
			}
			if a.Reason != "" && try < p.retries && j.state.fails == 0 && ctx.Err() == nil {
				continue
			}
		}
		for i := range j.Samples {
			if s := &j.Samples[i]; s.Quality == Bad && s.Reason == "" {
				s.Reason = a.Reason
			}
		}
		return a
	}
}

// answered notes that a device answered.
func (p *Poller) answered(j *Job) {
	d := j.state
	d.fails = 0
	if d.is == online {
		return
	}
	if d.is == offline {
		p.offline.Add(-1)
		d.probe.reset()
		for _, other := range d.jobs {
			if other != j {
				p.jobs.move(other, p.now())
			}
		}
	}
	d.is = online
	p.online.Add(1)
	p.log.Info("device online", "device", d.Name)
}

// unanswered notes that a device did not answer a poll that began then.
func (p *Poller) unanswered(j *Job, a Answer, begin time.Duration) {
	d := j.state
	now := p.now()
	p.failed.Add(1)
	d.fails++
	d.reason = a.Reason
	if d.is == offline {
		p.jobs.move(j, now+d.probe.next())
		p.probeAt = now + (probeShare-1)*(now-begin)
		return
	}
	if d.fails < offlineAfter {
		if j.Every > probeFirst { // not to wait three hours to know about a point that is read hourly
			p.jobs.move(j, now+probeFirst)
		}
		return
	}
	if d.is == online {
		p.online.Add(-1)
	}
	p.offline.Add(1)
	d.is = offline
	for _, other := range d.jobs {
		p.jobs.move(other, never)
	}
	p.jobs.move(d.jobs[0], now+d.probe.next())
	facts := []any{"device", d.Name, "reason", a.Reason}
	if a.Err != nil { // without a connection there is none of its own
		facts = append(facts, "error", a.Err)
	}
	p.log.Warn("device offline", facts...)
}

// tell tells the sink whether a device is online, unless it knows.
func (p *Poller) tell(ctx context.Context, d *deviceState, sink Sink) {
	if d.told == d.is {
		return
	}
	s := Status{Device: d.Device, Online: d.is == online, Time: time.Now()}
	if !s.Online {
		s.Reason = d.reason
	}
	if sink.Status(ctx, s) == nil {
		d.told = d.is
	}
}

func (p *Poller) connect(ctx context.Context) {
	err := p.guardedOpen(ctx)
	if ctx.Err() != nil && err != nil {
		return
	}
	if err != nil {
		text := err.Error()
		p.lastError.Store(&text)
		p.reopenAt = p.now() + p.reopen.next()
		if !p.down {
			p.down = true
			p.log.Warn("cannot connect", "error", err)
		}
		return
	}
	p.isOpen = true
	p.connected.Store(true)
	p.lastError.Store(nil)
	p.connects.Add(1)
	p.reopen.reset()
	if !p.down {
		return
	}
	p.down = false
	p.log.Info("connected")
	for _, d := range p.devices {
		if d.is == offline && d.reason == ReasonNotConnected {
			d.probe.reset()
			p.jobs.move(d.jobs[0], p.now())
		}
	}
}

func (p *Poller) disconnect() {
	if !p.isOpen {
		return
	}
	p.isOpen = false
	p.connected.Store(false)
	if err := p.bus.Close(); err != nil {
		p.log.Debug("cannot close the connection", "error", err)
	}
}

func (p *Poller) guarded(ctx context.Context, j *Job) (a Answer) {
	defer func() {
		if r := recover(); r != nil {
			a = Answer{Reopen: true, Reason: ReasonInternal, Err: p.panicked(r)}
		}
	}()
	return p.bus.Poll(ctx, j)
}

func (p *Poller) guardedOpen(ctx context.Context) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = p.panicked(r)
		}
	}()
	return p.bus.Open(ctx)
}

func (p *Poller) panicked(r any) error {
	p.log.Error("panic in a protocol library", "panic", r, "stack", string(debug.Stack()))
	return fmt.Errorf("panic: %v", r)
}

// backoff gives delays that double from first to max.
type backoff struct {
	first, max, delay time.Duration
}

func (b *backoff) next() time.Duration {
	b.delay = min(max(2*b.delay, b.first), b.max)
	return b.delay
}

func (b *backoff) reset() { b.delay = 0 }
