package command

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

// Options of an Executor. Journal, Encode and MaxAge are required.
type Options struct {
	Journal Journal
	MaxAge  time.Duration // of a command that does not say how long it lasts
	Off     bool          // commands are rejected

	// Encode makes an answer of a result, in the form that the request is to get it in.
	Encode func(r *Request, res *adapters.Result) []byte

	// Last is what a point held when it was last read, for the audit log; nil: nobody
	// knows.
	Last func(device, point string) (adapters.Value, bool)

	// Believes reports whether a time of the machine's clock can be believed; nil: each
	// can.
	Believes func(time.Time) bool

	Logger *slog.Logger // nil discards
}

// The limits of what a device is asked.
const (
	// perSecond is how many commands a device is given in a second, after as many at once.
	perSecond = 50

	// readyWithin is how long a command waits for a link that has no connection.
	readyWithin = 5 * time.Second
	readyLook   = 50 * time.Millisecond

	// readWithin is how long is read back what an earlier process may have written.
	readWithin = 10 * time.Second

	retryDisk = time.Second // when the journal cannot be written
)

// Executor runs commands.
type Executor struct {
	o   Options
	log *slog.Logger
}

// New returns an executor.
func New(o Options) *Executor {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Last == nil {
		o.Last = func(string, string) (adapters.Value, bool) { return adapters.Value{}, false }
	}
	if o.Believes == nil {
		o.Believes = func(time.Time) bool { return true }
	}
	return &Executor{o, o.Logger}
}

// Answer is what became of a request.
type Answer struct {
	Request  *Request
	Bytes    []byte           // to be told
	Status   adapters.Outcome // "" of one that is repeated
	Repeated bool
}

// Process runs requests for one device, nil for one that is not there, in their order,
// and has tell tell the answers. tell must not return before they need not be told
// again; what it was told of comes with the next process no more. Nothing else may
// process requests for the device meanwhile. It returns an error if ctx ends or tell
// fails; the requests that were not told of are to come again.
func (e *Executor) Process(ctx context.Context, d *Device, requests []*Request, tell func(context.Context, []Answer) error) error {
	b := batch{Executor: e, tell: tell}
	now := time.Now()
	for _, r := range requests {
		r.at = now
	}
	for _, r := range requests {
		if b.has(r.Key) { // what it says has to be known first
			if err := b.end(ctx); err != nil {
				return err
			}
		}
		if err := e.process(ctx, &b, d, r); err != nil {
			return err
		}
	}
	return b.end(ctx)
}

// batch is answers that are not durable yet, and need not be so one by one: nothing was
// sent for them.
type batch struct {
	*Executor
	tell    func(context.Context, []Answer) error
	events  []Event
	records []Record
	answers []Answer
}

func (b *batch) has(k Key) bool {
	return slices.ContainsFunc(b.records, func(r Record) bool { return r.Key == k })
}

// end makes the answers durable and tells them.
func (b *batch) end(ctx context.Context) error {
	if len(b.answers) == 0 {
		return nil
	}
	if err := b.write(ctx, b.events, b.records...); err != nil {
		return err
	}
	if err := b.tell(ctx, b.answers); err != nil {
		return err
	}
	b.events, b.records, b.answers = nil, nil, nil
	return nil
}

// add answers a request for which nothing is to be done.
func (b *batch) add(r *Request, res *adapters.Result, remember bool, before ...Event) {
	a := Answer{Request: r, Status: res.Status, Bytes: b.o.Encode(r, res)}
	b.events = append(append(b.events, before...), b.event("answered", r, func(e *Event) { e.Result = res }))
	if remember && r.ID != "" {
		b.records = append(b.records, Record{Key: r.Key, State: Answered, Digest: r.Digest(), Answer: a.Bytes})
	}
	b.answers = append(b.answers, a)
}

// write is Journal.Write until that is done, or ctx ends.
func (e *Executor) write(ctx context.Context, events []Event, records ...Record) error {
	for {
		err := e.o.Journal.Write(ctx, events, records...)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e.log.Error("commands wait: what is done could not be noted", "error", err)
		if !sleep(ctx, retryDisk) {
			return context.Cause(ctx)
		}
	}
}

// process answers a request, or runs it.
func (e *Executor) process(ctx context.Context, b *batch, d *Device, r *Request) error {
	if r.ID != "" {
		known, there, err := e.o.Journal.Find(r.Key, r.Old)
		switch {
		case err != nil:
			return fmt.Errorf("find the command: %w", err)
		case !there:
		case known.Digest != r.Digest():
			b.add(r, e.result(r, adapters.Rejected, fmt.Errorf("id: %s was that of another command; give each its own", r.ID)), false)
			return nil
		case known.State == Answered:
			b.events = append(b.events, e.event("repeated", r, nil))
			b.answers = append(b.answers, Answer{Request: r, Bytes: known.Answer, Repeated: true})
			return nil
		default:
			if err := b.end(ctx); err != nil {
				return err
			}
			res, err := e.recover(ctx, d, r)
			if err != nil {
				return err
			}
			b.add(r, res, true)
			return b.end(ctx)
		}
	}
	accepted := e.event("accepted", r, func(ev *Event) {
		ev.Writes, ev.Points, ev.Waited = r.Command.Values, r.Command.Points, r.age(ev.Time)
	})
	if res := e.judge(d, r); res != nil {
		b.add(r, res, true, accepted)
		return nil
	}
	// What came before is told before this one takes its time.
	if err := b.end(ctx); err != nil {
		return err
	}
	return e.run(ctx, b, d, r, accepted)
}

// judge returns the answer of a request that is not to be run.
func (e *Executor) judge(d *Device, r *Request) *adapters.Result {
	if r.Old && r.Lost {
		return e.result(r, adapters.Unknown, errors.New("the gateway's journal of commands was lost; whether it was done is not known, and it is not done now"))
	}
	err := r.Wrong
	switch {
	case e.o.Off:
		err = errors.New("commands are turned off; commands: {enabled: true} in the site file turns them on")
	case err != nil:
	case d == nil:
		err = fmt.Errorf("there is no device %s in the site file that takes commands", r.Command.Device)
	case e.expired(r):
		return e.result(r, adapters.Expired, errors.New("it came too late to be carried out"))
	default:
		err = d.check(&r.Command)
	}
	if err != nil {
		return e.result(r, adapters.Rejected, err)
	}
	return nil
}

// until is when a request expires, as far as is known now.
func (e *Executor) until(r *Request, now time.Time) time.Time {
	lasts := r.Lasts
	believed := e.o.Believes(now)
	switch {
	case r.AgeUnknown && (lasts > 0 || r.Command.Expires.IsZero() || !believed):
		return now // it may have been for days
	case lasts == 0 && (r.Command.Expires.IsZero() || !believed):
		lasts = e.o.MaxAge
	}
	until := r.Command.Expires
	if lasts > 0 {
		if end := now.Add(lasts - r.age(now)); until.IsZero() || !believed || end.Before(until) {
			until = end
		}
	}
	return until
}

func (e *Executor) expired(r *Request) bool {
	now := time.Now()
	return !now.Before(e.until(r, now))
}

func (e *Executor) result(r *Request, status adapters.Outcome, err error) *adapters.Result {
	res := &adapters.Result{CommandID: r.ID, Status: status, Time: time.Now()}
	if err != nil {
		res.Error = err.Error()
	}
	return res
}

func (e *Executor) event(what string, r *Request, more func(*Event)) Event {
	now := time.Now()
	ev := Event{Time: now, Unsynced: !e.o.Believes(now), What: what, Device: r.Command.Device, From: r.From, ID: r.ID, Action: r.Command.Action, Call: r.Call}
	if more != nil {
		more(&ev)
	}
	return ev
}

// sleep reports whether ctx is still going on after d.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
