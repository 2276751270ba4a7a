package serial

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/serial/port"
)

const (
	slice = 50 * time.Millisecond // for which a read is waited without looking whether to stop

	// How long what comes waits for company, so that a line that never pauses is
	// not read byte by byte.
	gatherAsked  = 2 * time.Millisecond
	gatherListen = 20 * time.Millisecond
	gatherChars  = 1024 // at most; the kernel keeps 4095

	quietPort = 5 * time.Millisecond // for which nothing comes before a request, at least
	quietConn = 10 * time.Millisecond
	slowBaud  = 1200 // of a line whose rate is not known
	deadLine  = 3    // requests without a byte after which a network connection is made anew
)

// line is the connection to the devices. Its methods are called from one goroutine.
type line struct {
	*Config
	char time.Duration // that one character takes

	port    port.Port
	baud    int
	sent    time.Time // when the last request has left the line
	doubt   time.Time // until then an answer may come late
	silence int       // requests in a row that brought nothing
	rest    []byte    // what came behind the answer to a step
	buf     [4096]byte
}

func newLine(c *Config, asked bool, devices []*device) line {
	own := *c
	own.Line.Gather = gatherListen
	if asked {
		own.Line.Gather = gatherAsked
	}
	for _, d := range devices {
		if d.Frame.Idle > 0 {
			own.Line.Gather = min(own.Line.Gather, d.Frame.Idle/4)
		}
	}
	l := line{Config: &own, char: 11 * time.Second / slowBaud}
	if own.Port != "" {
		l.char = own.Line.Char()
		own.Line.Gather = min(own.Line.Gather, gatherChars*l.char)
	}
	return l
}

func (l *line) open(ctx context.Context) error {
	var err error
	if l.Port != "" {
		l.port, err = port.Open(l.Port, l.Line)
	} else {
		l.port, err = port.Dial(ctx, "tcp", l.Address)
	}
	if err != nil {
		return err
	}
	l.baud, l.silence, l.doubt = l.Line.Baud, 0, time.Time{}
	wait(ctx, l.Settle)
	return nil
}

func (l *line) close() error {
	if l.port == nil {
		return nil
	}
	p := l.port
	l.port = nil
	return p.Close()
}

// spent reports whether the line is to be opened again after an error.
func (l *line) spent(err error) bool {
	switch {
	case errors.Is(err, errNoAnswer):
		return l.Address != "" && l.silence >= deadLine
	case errors.Is(err, errOther), errors.Is(err, errBabble), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return false
	}
	return true
}

var (
	errNoAnswer = errors.New("no answer")
	errOther    = errors.New("no answer that is one to what was asked")
	errBabble   = errors.New("the line is never silent")
	errTakes    = errors.New("the answer takes longer than the longest that it may be")
)

func reasonOf(err error) string {
	switch {
	case errors.Is(err, errNoAnswer):
		return adapters.ReasonTimeout
	case errors.Is(err, errOther), errors.Is(err, errBabble), errors.Is(err, errTakes):
		return adapters.ReasonProtocol
	}
	return adapters.ReasonConnection
}

// begin makes the line ready for a request: at its own rate, with nothing under
// way. An answer that comes late is not to be taken for the next one.
func (l *line) begin(ctx context.Context) error {
	if l.port == nil {
		return errors.New("the line is not open")
	}
	if err := l.rate(l.Line.Baud); err != nil {
		return err
	}
	l.rest = l.rest[:0]
	giveUp := time.Now().Add(l.Timeout)
	if l.doubt.After(giveUp) {
		giveUp = l.doubt.Add(l.Timeout)
	}
	quiet := quietConn
	if l.Port != "" {
		quiet = max(quietPort, 4*l.char)
	}
	for {
		until := time.Now().Add(quiet)
		if l.doubt.After(until) {
			until = l.doubt
		}
		n, err := l.read(ctx, until)
		switch {
		case err != nil:
			return err
		case n == 0 && !time.Now().Before(l.doubt):
			return nil
		case time.Now().After(giveUp):
			return errBabble
		}
	}
}

// rate changes the rate of the line, if it is another.
func (l *line) rate(baud int) error {
	if baud == 0 || baud == l.baud {
		return nil
	}
	if err := port.SetBaud(l.port, baud); err != nil {
		return err
	}
	l.baud = baud
	if l.Port != "" {
		at := l.Line
		at.Baud = baud
		l.char = at.Char()
	}
	return nil
}

// read reads into buf; it returns 0 and nil if nothing came until then.
func (l *line) read(ctx context.Context, until time.Time) (int, error) {
	for {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		now := time.Now()
		last := !until.After(now.Add(slice))
		t := until
		if !last {
			t = now.Add(slice)
		}
		n, err := l.port.Read(l.buf[:], t)
		if n > 0 || err != nil || last {
			return n, err
		}
	}
}

func (l *line) send(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	l.rest = l.rest[:0]
	err := l.port.Write(b)
	l.sent = time.Now().Add(time.Duration(len(b)) * l.char)
	return err
}

// await reads until a frame comes that take accepts, and returns when it came.
// Others are noted.
func (l *line) await(ctx context.Context, f *framer, note *frames, take func(frame []byte) bool) (time.Time, error) {
	f.reset(true)
	f.add(l.rest)
	l.rest = l.rest[:0]
	start := time.Now()
	if l.sent.After(start) {
		start = l.sent
	}
	limit := start.Add(l.Timeout + 2*time.Duration(f.Max)*l.char)
	until := start.Add(l.Timeout)
	heard, others := false, false
	came := start
	look := func(silence bool) bool {
		for {
			frame, o := f.next(silence)
			switch {
			case o == needMore:
				return false
			case o != found:
				note.dropped(o, frame)
			case take(frame):
				return true
			default:
				others = true
				note.other(frame)
				f.refuse()
			}
		}
	}
	taken := look(false)
	for !taken {
		ends := until
		if f.Idle > 0 && len(f.buf) > 0 {
			ends = came.Add(f.Idle)
		}
		n, err := l.read(ctx, ends)
		now := time.Now()
		switch {
		case err != nil:
			l.unanswered(heard)
			return time.Time{}, err
		case n > 0:
			heard, came = true, now
			until = now.Add(l.Timeout)
			f.add(l.buf[:n])
			taken = look(false)
		default:
			if taken = look(true); !taken && !now.Before(until) {
				l.unanswered(heard)
				if others || heard {
					return time.Time{}, errOther
				}
				return time.Time{}, errNoAnswer
			}
		}
		if !taken && now.After(limit) {
			l.unanswered(heard)
			return time.Time{}, errTakes
		}
	}
	l.silence = 0
	l.rest = append(l.rest[:0], f.buf...)
	return came, nil
}

// unanswered notes that an answer may come late.
func (l *line) unanswered(heard bool) {
	l.doubt = time.Now().Add(l.Timeout)
	if l.silence++; heard {
		l.silence = 0
	}
}

// steps goes through the steps before a request.
func (l *line) steps(ctx context.Context, d *device) error {
	for i := range d.Steps {
		s := &d.Steps[i]
		if err := l.send(s.Send); err != nil {
			return err
		}
		if s.Frame != nil {
			if _, err := l.await(ctx, newFramer(*s.Frame), &d.frames, func(frame []byte) bool { return s.begins(frame) }); err != nil {
				return fmt.Errorf("step %d: %w", i+1, err)
			}
		}
		if err := l.rate(s.Baud); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
		if wait(ctx, s.Wait); ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

func (s *Step) begins(frame []byte) bool {
	return bytes.HasPrefix(frame, s.Expect) || bytes.HasSuffix(frame, s.Expect) && bytes.Equal(s.Frame.End, s.Expect)
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
