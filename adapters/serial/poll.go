package serial

import (
	"context"

	"github.com/fieldferry/fieldferry/adapters"
)

// bus is a line whose devices are asked, as the poller drives it.
type bus struct {
	line   *line
	poller *adapters.Poller
	plans  map[*adapters.Job]*plan
}

func newBus(c *Config, l *line, devices []*device) *bus {
	b := &bus{line: l, plans: map[*adapters.Job]*plan{}}
	b.poller = adapters.NewPoller(c.Name, b, adapters.PollerOptions{Retries: c.Retries, ReopenMax: reopenMax, ProbeMax: probeMax, Log: c.Log})
	for _, d := range devices {
		for _, p := range d.plans {
			b.plans[b.poller.Add(d.Device.Device, p.every, p.samples)] = p
		}
	}
	return b
}

func (b *bus) Open(ctx context.Context) error { return b.line.open(ctx) }

func (b *bus) Close() error { return b.line.close() }

// Poll asks a device for its message.
func (b *bus) Poll(ctx context.Context, j *adapters.Job) adapters.Answer {
	return b.ask(ctx, b.plans[j], j.Samples)
}

func (b *bus) ask(ctx context.Context, p *plan, samples []adapters.Sample) adapters.Answer {
	l := b.line
	wait(ctx, l.Pause)
	err := l.begin(ctx)
	if err != nil && l.spent(err) && ctx.Err() == nil { // it broke while nobody looked, and may be there again
		_ = l.close() // it is of no use any more
		if err = l.open(ctx); err == nil {
			err = l.begin(ctx)
		}
	}
	if err == nil {
		err = l.steps(ctx, p.device)
	}
	if err == nil {
		err = l.send(p.Request)
	}
	var a adapters.Answer
	if err == nil {
		a.Time, err = l.await(ctx, p.framer, &p.frames, p.fits)
	}
	if err != nil {
		return adapters.Answer{Reopen: l.spent(err), Reason: reasonOf(err), Err: err}
	}
	p.frames.good()
	p.take(p.readers, samples)
	a.Answered = true
	return a
}
