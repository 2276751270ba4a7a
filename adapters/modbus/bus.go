package modbus

import (
	"context"
	"slices"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

// barrenPolls is for how many polls a device that refuses everything is not
// asked in pieces again: it may be starting up.
const barrenPolls = 10

// bus is the connection, as the poller drives it.
type bus struct {
	wire   wire
	settle time.Duration
	pause  time.Duration
	plans  map[*adapters.Job]*plan

	// Of requests that no plan of a job has.
	registers, bits, gap int

	lacking map[[2]uint8]bool // units and functions that they do not have
}

func (b *bus) Open(ctx context.Context) error {
	if err := b.wire.open(ctx); err != nil {
		return err
	}
	wait(ctx, b.settle)
	return nil
}

func (b *bus) Close() error { return b.wire.close() }

// Poll sends the requests of a job one after the other. Those after one that
// was not answered are not sent.
func (b *bus) Poll(ctx context.Context, j *adapters.Job) adapters.Answer {
	return b.run(ctx, b.plans[j], j.Samples)
}

// run sends the requests of a plan and fills in the samples.
func (b *bus) run(ctx context.Context, of *plan, samples []adapters.Sample) adapters.Answer {
	p := &poll{plan: of, bus: b, samples: samples}
	p.begin()
	walls := p.walls
	for i := range p.requests {
		if p.ask(ctx, &p.requests[i]); p.stopped() || ctx.Err() != nil {
			break
		}
	}
	p.finish(samples)
	switch {
	case p.read:
		p.barren = 0
		if p.learned {
			p.arrange()
		}
	case p.refused:
		p.barren++
		p.walls = walls // it may be starting up, which says nothing about its addresses
	}
	return p.Answer
}

// A poll is the sending of a plan's requests, once.
type poll struct {
	*plan
	*bus
	adapters.Answer
	samples []adapters.Sample
	read    bool // something was
	refused bool // something was
	learned bool // something about the device
}

// stopped reports whether a request was not answered.
func (p *poll) stopped() bool { return p.Reason != "" }

// ask sends a request. One that is refused for an address that does not exist,
// or for its length, is sent in two parts, to find what can be read and to
// remember it. It reports whether everything was read.
func (p *poll) ask(ctx context.Context, r *request) bool {
	if wait(ctx, p.pause); ctx.Err() != nil {
		return false
	}
	err := p.request(p.plan, r, p.samples)
	code := 0
	if err != nil {
		code = exception(err)
	}
	switch {
	case err != nil && code == 0:
		p.Reason, p.Err, p.Reopen = reasonOf(err), err, p.wire.spent(err)
		return false
	case code == gatewayPath, code == gatewayTarget:
		p.Reason, p.Err = exceptionReason(code), err
		return false
	}
	p.Time = time.Now()
	p.Answered = true
	if err == nil {
		p.read = true
		return true
	}
	p.refused = true
	if p.barren%barrenPolls != 0 || code != illegalAddress && code != illegalValue {
		p.takeRefusal(r, exceptionReason(code), p.samples)
		return false
	}
	left, right, ok := r.Split(p.spans)
	if !ok {
		p.takeRefusal(r, exceptionReason(code), p.samples)
		p.learn(r.table, r.Start, r.Start+r.Count)
		return false
	}
	all := p.ask(ctx, &request{r.table, left})
	if p.stopped() {
		return false
	}
	if p.ask(ctx, &request{r.table, right}) && all {
		p.learn(r.table, right.Start)
	}
	return false
}

// learn remembers that requests must not span some addresses.
func (p *poll) learn(t Table, walls ...int) {
	for _, w := range walls {
		if !slices.Contains(p.walls[t], w) {
			p.walls[t] = append(p.walls[t], w)
			p.learned = true
		}
	}
}

// request sends one request and takes its answer.
func (b *bus) request(p *plan, r *request, samples []adapters.Sample) error {
	start, count := uint16(r.Start), uint16(r.Count)
	if r.table.holdsBits() {
		on, err := b.wire.readBits(p.unit, r.table, start, count)
		if err == nil {
			p.takeBits(r, on, samples)
		}
		return err
	}
	raw, err := b.wire.readRegisters(p.unit, r.table, start, count)
	if err == nil {
		p.takeRegisters(r, raw, samples)
	}
	return err
}

// wait waits, but not past the end of ctx.
func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
