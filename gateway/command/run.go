package command

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

var errLate = errors.New("it came too late to be carried out")

// finishWithin is how long the end of a command is noted and told that was under way
// when the gateway stops.
const finishWithin = 3 * time.Second

// run carries a command out and tells its answer.
func (e *Executor) run(ctx context.Context, b *batch, d *Device, r *Request, accepted Event) error {
	arrived := time.Now()
	until := e.until(r, arrived)
	if !d.pace(ctx) {
		return context.Cause(ctx)
	}
	b.events = append(b.events, accepted)
	var res *adapters.Result
	switch r.Command.Action {
	case GetConfig:
		res = e.result(r, adapters.Executed, nil)
	case Read:
		d.await(ctx, until)
		res = e.read(ctx, d, r, until)
	default:
		d.await(ctx, until)
		if !time.Now().Before(until) {
			res = e.result(r, adapters.Expired, errLate)
			break
		}
		var err error
		if res, err = e.carryOut(ctx, b, d, r, until); err != nil {
			return err
		}
	}
	if ctx.Err() != nil && r.Command.Action == Read {
		return context.Cause(ctx) // it comes again
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishWithin)
	defer cancel()
	if ctx.Err() == nil {
		end = ctx
	}
	b.add(r, res, true)
	return b.end(end)
}

// pace waits until the device may be given a command.
func (d *Device) pace(ctx context.Context) bool {
	const each = time.Second / perSecond
	now := time.Now()
	if earliest := now.Add(-time.Second); d.next.Before(earliest) {
		d.next = earliest
	}
	if wait := d.next.Sub(now); !sleep(ctx, wait) {
		return false
	}
	d.next = d.next.Add(each)
	return true
}

// await waits a little for a link that has no connection yet, or just now not.
func (d *Device) await(ctx context.Context, until time.Time) {
	if last := time.Now().Add(readyWithin); until.After(last) {
		until = last
	}
	for d.Ready != nil && !d.Ready() && time.Now().Before(until) {
		if !sleep(ctx, readyLook) {
			return
		}
	}
}

func (e *Executor) read(ctx context.Context, d *Device, r *Request, until time.Time) *adapters.Result {
	ctx, cancel := context.WithDeadlineCause(ctx, until, errLate)
	defer cancel()
	samples, err := d.Reader.Read(ctx, d.Name, r.Command.Points)
	res := e.result(r, adapters.Executed, err)
	switch {
	case errors.Is(err, errLate):
		res.Status = adapters.Expired
	case err != nil:
		res.Status = adapters.Failed
	}
	res.Values = samples
	return res
}

// carryOut writes, after it has noted that it will. It returns an error if the process
// stops before it is known how that ended.
func (e *Executor) carryOut(ctx context.Context, b *batch, d *Device, r *Request, until time.Time) (*adapters.Result, error) {
	started := Record{Key: r.Key, State: Started, Digest: r.Digest()}
	if r.ID == "" { // which is never let through; a command that could run twice must not run
		return e.result(r, adapters.Rejected, errors.New("id: is missing; give each command an id of its own")), nil
	}
	steps := []Step{{Write: r.Command.Values}}
	if r.Command.Action != Write {
		steps = d.Actions[r.Command.Action]
	}
	events := append(b.events, e.event("started", r, func(ev *Event) {
		for _, name := range d.written(&r.Command) {
			if v, known := e.o.Last(d.Name, name); known {
				ev.Before = append(ev.Before, adapters.Assignment{Point: name, Value: v})
			}
		}
	}))
	if err := e.write(ctx, events, started); err != nil {
		return nil, err
	}
	b.events = nil
	res := e.result(r, adapters.Executed, nil)
	begun := false
	for i, s := range steps {
		if s.Wait > 0 {
			if !sleep(ctx, s.Wait) {
				return nil, context.Cause(ctx) // the next process says that it is not known
			}
			b.events = append(b.events, e.event("step", r, func(ev *Event) { ev.Step, ev.Wait = i+1, s.Wait }))
			continue
		}
		wctx, cancel := ctx, context.CancelFunc(func() {})
		if !begun {
			wctx, cancel = context.WithDeadlineCause(ctx, until, errLate)
		}
		samples, err := d.Writer.Write(wctx, d.Name, s.Write)
		cancel()
		if begun = begun || len(samples) > 0; !begun && errors.Is(err, errLate) {
			return e.result(r, adapters.Expired, errLate), nil
		}
		if len(samples) == 0 && err != nil && ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
			return nil, err
		}
		step := e.result(r, adapters.Executed, err)
		step.Values = samples
		step.Status = outcome(samples, err)
		if r.Command.Action != Write {
			b.events = append(b.events, e.event("step", r, func(ev *Event) { ev.Step, ev.Writes, ev.Result = i+1, s.Write, step }))
		}
		res.Values = merge(res.Values, samples)
		if step.Status != adapters.Executed {
			res.Status, res.Error = step.Status, step.Error
			if r.Command.Action != Write {
				res.Error = fmt.Sprintf("step %d: %s", i+1, step.Error)
			}
			break
		}
		begun = true
	}
	res.Time = time.Now()
	return res, nil
}

// outcome is how a write ended.
func outcome(samples []adapters.Sample, err error) adapters.Outcome {
	switch {
	case err == nil:
		return adapters.Executed
	case slices.ContainsFunc(samples, func(s adapters.Sample) bool { return s.Quality != adapters.Good }):
		return adapters.Unknown // it may have been written
	}
	return adapters.Failed
}

// merge puts what was read last in place of what was read before.
func merge(all, samples []adapters.Sample) []adapters.Sample {
	for _, s := range samples {
		i := slices.IndexFunc(all, func(o adapters.Sample) bool { return o.Point == s.Point })
		if i < 0 {
			all = append(all, s)
		} else {
			all[i] = s
		}
	}
	return all
}

// written are the points that a command writes, each once.
func (d *Device) written(c *adapters.Command) (points []string) {
	take := func(values []adapters.Assignment) {
		for _, a := range values {
			if _, there := d.Points[a.Point]; there && !slices.Contains(points, a.Point) {
				points = append(points, a.Point)
			}
		}
	}
	take(c.Values)
	for _, s := range d.Actions[c.Action] {
		take(s.Write)
	}
	return points
}

// recover answers a command that an earlier process had started: it says what the
// device says now.
func (e *Executor) recover(ctx context.Context, d *Device, r *Request) (*adapters.Result, error) {
	res := e.result(r, adapters.Unknown, errors.New("the gateway stopped while it carried this out; whether it was done is not known, and values are what was read afterwards"))
	if d == nil || d.Reader == nil {
		return res, nil
	}
	if points := d.written(&r.Command); len(points) > 0 {
		rctx, cancel := context.WithTimeout(ctx, readWithin)
		defer cancel()
		d.await(rctx, time.Now().Add(readyWithin))
		res.Values, _ = d.Reader.Read(rctx, d.Name, points) // what is bad says so itself
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	res.Time = time.Now()
	return res, nil
}
