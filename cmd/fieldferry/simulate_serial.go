package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fieldferry/fieldferry/adapters/serial"
	"github.com/fieldferry/fieldferry/adapters/simulate"
	"github.com/fieldferry/fieldferry/gateway"
	"github.com/fieldferry/fieldferry/gateway/config"
)

// pluggedAgain is how long a simulated port is away after the fault drop.
const pluggedAgain = time.Second

// simulateSerial serves the devices of a serial adapter, and says how many.
func simulateSerial(ctx context.Context, group *errgroup.Group, a *config.Adapter, faults map[string]simulate.Fault, port *int, out io.Writer) (served int, err error) {
	var talkers []*simulate.Talker
	c := gateway.SerialConfig(a, nil)
	for i := range c.Devices {
		of := &a.Devices[i]
		if of.Simulate == "" {
			fmt.Fprintf(out, "%s: not served; give it simulate: with a message as it sends it\n", of.ID)
			continue
		}
		t, err := simulateTalker(of, &c.Devices[i], a.Serial.Line.Baud)
		if err != nil {
			return 0, fmt.Errorf("%s: simulate: %w", of.ID, err)
		}
		t.SetFault(faults[of.ID])
		delete(faults, of.ID)
		talkers = append(talkers, t)
	}
	if len(talkers) == 0 {
		return 0, nil
	}
	var where string
	if a.Serial.Port != "" {
		where, err = serveTalkersAtPort(ctx, group, a.Serial.Port, talkers)
	} else {
		where, err = serveTalkersAt(ctx, group, a.Serial.Address, port, talkers)
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", a.Name, err)
	}
	name := a.Serial.Port
	if name == "" {
		name = "tcp://" + a.Serial.Address
	}
	fmt.Fprintf(out, "%s: %s of %s served at %s\n", a.Name, count(len(talkers), "device"), name, where)
	return len(talkers), nil
}

// simulateTalker makes a device that says what the site file expects of it.
func simulateTalker(of *config.Device, d *serial.Device, baud int) (*simulate.Talker, error) {
	began := time.Now()
	order := map[string]int{}
	for i := range d.Points {
		order[d.Points[i].Point.Name] = i
	}
	raw := func(name string) float64 {
		low, high := 0.0, 100.0
		i, ok := order[name]
		if ok && d.Points[i].Range != nil {
			low, high = d.Points[i].Range.Raw[0], d.Points[i].Range.Raw[1]
		}
		turn := time.Since(began).Seconds() / float64(10+i%7)
		return low + (high-low)*(1-math.Cos(2*math.Pi*turn))/2
	}
	if _, err := d.Compose(of.Simulate, raw); err != nil {
		return nil, err
	}
	say := func() []byte {
		b, err := d.Compose(of.Simulate, raw)
		if err != nil {
			return nil // it was no error at first, and depends on the form alone
		}
		return b
	}
	t := &simulate.Talker{}
	asks := len(d.Request) > 0
	for i := range d.Steps {
		s := &d.Steps[i]
		if len(s.Send) == 0 {
			if s.Baud != 0 {
				baud = s.Baud
			}
			continue
		}
		answer := simulate.TalkerAnswer{Request: s.Send, Baud: baud, Reply: func() []byte { return nil }}
		switch reply := of.Steps[i].Reply; {
		case len(s.Expect) > 0:
			b := []byte(reply)
			if len(b) == 0 {
				b = s.Expect
				if s.Frame != nil {
					b = append(bytes.Clone(b), s.Frame.End...)
				}
			}
			answer.Reply = func() []byte { return b }
		case !asks && !sendsLater(d.Steps[i+1:]):
			answer.Reply = say
			answer.Replies = s.Baud
			for _, later := range d.Steps[i+1:] {
				if later.Baud != 0 {
					answer.Replies = later.Baud
				}
			}
		}
		t.Answers = append(t.Answers, answer)
		if s.Baud != 0 {
			baud = s.Baud
		}
	}
	if asks {
		t.Answers = append(t.Answers, simulate.TalkerAnswer{Request: d.Request, Reply: say})
	}
	if !asks && len(d.Steps) == 0 {
		t.Every, t.Say, t.Baud = max(d.Every, time.Second), say, baud
	}
	for i := range d.Points {
		p := &d.Points[i]
		if before, _, _ := bytes.Cut(p.Send, []byte("{value}")); len(before) > 0 {
			reply := append(bytes.Clone(p.Expect), d.Frame.End...)
			if len(p.Expect) == 0 {
				reply = nil
			}
			t.Answers = append(t.Answers, simulate.TalkerAnswer{Request: before, Reply: func() []byte { return reply }})
		}
	}
	return t, nil
}

func sendsLater(steps []serial.Step) bool {
	for i := range steps {
		if len(steps[i].Send) > 0 {
			return true
		}
	}
	return false
}

// serveTalkersAt is a serial server.
func serveTalkersAt(ctx context.Context, group *errgroup.Group, address string, port *int, talkers []*simulate.Talker) (string, error) {
	if host, _, err := net.SplitHostPort(address); err != nil || !isLoopback(host) {
		address = net.JoinHostPort("127.0.0.1", strconv.Itoa(*port))
		*port++
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	group.Go(func() error {
		defer stop()
		for {
			conn, err := l.Accept()
			if err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return err
			}
			group.Go(func() error {
				_ = simulate.ServeTalkers(ctx, conn, talkers...) // a client that has gone is no failure
				return nil
			})
		}
	})
	return l.Addr().String(), nil
}

// serveTalkersAtPort is a serial port: a pseudo terminal with a link of the port's
// name, which is plugged in again after it was dropped.
func serveTalkersAtPort(ctx context.Context, group *errgroup.Group, path string, talkers []*simulate.Talker) (string, error) {
	p, err := simulate.OpenPTY()
	if err != nil {
		return "", err
	}
	if err := os.Symlink(p.Path, path); err != nil {
		where := p.Path + " (no link " + path + " could be made: it exists, or its folder cannot be written to)"
		group.Go(func() error { return simulate.ServeTalkers(ctx, p, talkers...) })
		return where, nil
	}
	group.Go(func() error {
		for {
			_ = simulate.ServeTalkers(ctx, p, talkers...) // it ends with ctx, or because it was dropped
			err := os.Remove(path)
			if ctx.Err() != nil || err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(pluggedAgain):
			}
			if p, err = simulate.OpenPTY(); err != nil {
				return err
			}
			if err := os.Symlink(p.Path, path); err != nil {
				return errors.Join(err, p.Close())
			}
		}
	})
	return path, nil
}
