package adapters

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"
)

// Errors of Do.
var (
	ErrNotRunning   = errors.New("the link does not run")
	ErrNotConnected = errors.New("the link has no connection")
)

// errand is something to be done on the connection beside the polls.
type errand struct {
	ctx  context.Context
	run  func(context.Context) (reopen bool, err error)
	done chan error
}

// Do has f run on the goroutine that polls, where it has the connection to itself,
// and returns its error. It comes before the polls that are due, but never
// twice in a row before one that waits. f says whether the connection is of no
// further use. Do returns when f has, or when ctx ends before f has begun. It may
// be called concurrently.
func (p *Poller) Do(ctx context.Context, f func(context.Context) (reopen bool, err error)) error {
	if !p.running.Load() {
		return ErrNotRunning
	}
	e := &errand{ctx, f, make(chan error, 1)}
	select {
	case p.errands <- e:
		return <-e.done
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-p.ended:
		return ErrNotRunning
	}
}

// Later has f run after a while on the goroutine that polls, and in any case
// before Run returns, if there is a connection then. It is for f of Do to call.
func (p *Poller) Later(after time.Duration, f func(context.Context) (reopen bool, err error)) {
	p.insert(afterwards{p.now() + after, f, laterTries})
}

func (p *Poller) insert(a afterwards) {
	i, _ := slices.BinarySearchFunc(p.later, a.at, func(l afterwards, at time.Duration) int { return cmp.Compare(l.at, at) })
	p.later = slices.Insert(p.later, i, a)
}

// afterwards is what Later was asked for.
type afterwards struct {
	at    time.Duration
	run   func(context.Context) (reopen bool, err error)
	tries int // that are left
}

// laterTries is how often a thing that Later was asked for is tried, a second
// apart.
const laterTries = 10

// errand runs one errand, if one waits and may come before what is due. It
// reports whether it did.
func (p *Poller) errand() bool {
	if p.ran && p.jobs.next() <= p.now() {
		return false
	}
	select {
	case e := <-p.errands:
		p.run(e)
		return true
	default:
		return false
	}
}

func (p *Poller) run(e *errand) {
	p.ran = true
	switch {
	case e.ctx.Err() != nil:
		e.done <- context.Cause(e.ctx)
	case !p.isOpen:
		e.done <- ErrNotConnected
	default:
		e.done <- p.guardedErrand(e.ctx, e.run)
	}
}

func (p *Poller) guardedErrand(ctx context.Context, f func(context.Context) (bool, error)) (err error) {
	reopen := true
	defer func() {
		if r := recover(); r != nil {
			err = p.panicked(r)
		}
		if reopen {
			p.disconnect()
			p.reopenAt = p.now()
		}
	}()
	reopen, err = f(ctx)
	return err
}

// runLater runs what is due of what Later was asked for, and reports whether
// something was.
func (p *Poller) runLater() bool {
	if len(p.later) == 0 || p.later[0].at > p.now() || !p.isOpen {
		return false
	}
	a := p.later[0]
	p.later = p.later[1:]
	if err := p.guardedErrand(context.Background(), a.run); err != nil {
		a.tries--
		p.log.Error("cannot end what was begun", "error", err, "tries_left", a.tries)
		if a.at = p.now() + time.Second; a.tries > 0 {
			p.insert(a)
		}
	}
	return true
}

// finishLater runs at the end what was to be run later.
func (p *Poller) finishLater() {
	for _, a := range p.later {
		if !p.isOpen {
			p.connect(context.Background())
		}
		if !p.isOpen {
			p.log.Error("cannot end what was begun", "error", ErrNotConnected)
			continue
		}
		if err := p.guardedErrand(context.Background(), a.run); err != nil {
			p.log.Error("cannot end what was begun", "error", err)
		}
	}
	p.later = nil
}
