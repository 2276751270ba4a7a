package simulate

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"time"
)

// A Talker is a device on a serial line that speaks no Modbus: it answers what it is
// told, and may talk unasked. It does not change while it serves, but for its fault.
type Talker struct {
	Answers []TalkerAnswer
	Every   time.Duration // between the messages that it sends unasked; 0 sends none
	Say     func() []byte // makes such a message
	Baud    int           // the rate of these; at another one they are garbled; 0 is any

	mu    sync.Mutex // guards what follows
	fault Fault
}

// A TalkerAnswer is what a talker says to a request.
type TalkerAnswer struct {
	Request []byte
	Reply   func() []byte
	Baud    int // of the line, for the request to be understood; 0 is any
	Replies int // the rate at which the reply is sent; at another one it is garbled; 0 is any
}

// SetFault gives the talker a fault, or with the zero value takes it away.
func (t *Talker) SetFault(f Fault) {
	t.mu.Lock()
	t.fault = f
	t.mu.Unlock()
}

func (t *Talker) asked() Fault {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.fault
	if f.Times > 0 {
		if t.fault.Times--; t.fault.Times == 0 {
			t.fault = Fault{}
		}
	}
	return f
}

// A Rated line has a baud rate that the other end sets.
type Rated interface{ Baud() int }

// ServeLine talks over a line until it ends, or ctx does, and closes it.
func (t *Talker) ServeLine(ctx context.Context, line io.ReadWriteCloser) error {
	return ServeTalkers(ctx, line, t)
}

// ServeTalkers has several talkers talk over one line until it ends, or ctx does,
// and closes it.
func ServeTalkers(ctx context.Context, line io.ReadWriteCloser, talkers ...*Talker) error {
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	var writing sync.Mutex
	var failed error
	defer group.Wait()
	defer cancel()
	close := sync.OnceFunc(func() { line.Close() })
	stop := context.AfterFunc(ctx, close)
	defer stop()
	say := func(message []byte, f Fault) {
		if f.Dead || !sleep(ctx, f.Delay) {
			if f.Hangup {
				close()
			}
			return
		}
		writing.Lock()
		defer writing.Unlock()
		_ = f.send(line, f.spoilText(message)) // the reader finds out
		if f.Hangup {
			close()
		}
	}
	for _, t := range talkers {
		if t.Every <= 0 {
			continue
		}
		group.Go(func() {
			for tick := time.NewTicker(t.Every); ; {
				select {
				case <-ctx.Done():
					tick.Stop()
					return
				case <-tick.C:
					message := t.Say()
					if t.Baud != 0 && !at(line, t.Baud) {
						message = garble(message)
					}
					say(message, t.asked())
				}
			}
		})
	}
	longest := 0
	for _, t := range talkers {
		for _, a := range t.Answers {
			longest = max(longest, len(a.Request))
		}
	}
	var buf []byte
	chunk := make([]byte, 512)
	for {
		n, err := line.Read(chunk)
		if err != nil {
			failed = err
			break
		}
		buf = append(buf, chunk[:n]...)
		for {
			t, a, end := firstRequest(talkers, buf)
			if t == nil {
				break
			}
			buf = buf[end:]
			f := t.asked()
			if a.Baud != 0 && !at(line, a.Baud) {
				continue
			}
			reply := a.Reply()
			if a.Replies != 0 && !changes(ctx, line, a.Replies) {
				reply = garble(reply)
			}
			if f.Late {
				group.Go(func() { say(reply, f) })
				continue
			}
			say(reply, f)
		}
		if over := len(buf) - longest; over > 0 {
			buf = buf[over:]
		}
	}
	if ctx.Err() != nil || errors.Is(failed, io.EOF) {
		return nil
	}
	return failed
}

// firstRequest finds the first request in what came, the longest of those that begin
// at the same place.
func firstRequest(talkers []*Talker, buf []byte) (t *Talker, a *TalkerAnswer, end int) {
	first := len(buf)
	for _, one := range talkers {
		for i := range one.Answers {
			r := &one.Answers[i]
			at := bytes.Index(buf, r.Request)
			if at < 0 || len(r.Request) == 0 || at > first || at == first && a != nil && len(r.Request) <= len(a.Request) {
				continue
			}
			t, a, first, end = one, r, at, at+len(r.Request)
		}
	}
	return t, a, end
}

// at reports whether a line has a rate, if it has any.
func at(line io.ReadWriteCloser, baud int) bool {
	r, ok := line.(Rated)
	return !ok || r.Baud() == baud
}

// changes waits for a line to change to a rate. IEC 62056-21 §6.3.14 gives both ends
// 200 ms to 1.5 s for it.
func changes(ctx context.Context, line io.ReadWriteCloser, baud int) bool {
	for range 150 {
		if at(line, baud) {
			return true
		}
		if !sleep(ctx, 10*time.Millisecond) {
			return false
		}
	}
	return false
}

// garble is what is heard at another rate.
func garble(b []byte) []byte {
	out := make([]byte, len(b))
	for i, c := range b {
		out[i] = c*0x5B ^ 0xF0
	}
	return out
}

// spoilText makes the wrong message of a right one.
func (f *Fault) spoilText(message []byte) []byte {
	message = bytes.Clone(message)
	if f.WrongCRC && len(message) > 0 {
		message[len(message)/2] ^= 0x10
	}
	message = f.cut(message)
	if f.Noise {
		message = noisy(message)
	}
	return message
}

// noisy is a message with bytes before, in and behind it that no text has.
func noisy(message []byte) []byte {
	var out []byte
	noise := func() {
		for range rand.IntN(4) {
			out = append(out, 0x80|byte(rand.IntN(128)))
		}
	}
	noise()
	cut := rand.IntN(len(message) + 1)
	out = append(out, message[:cut]...)
	noise()
	out = append(out, message[cut:]...)
	noise()
	return out
}
