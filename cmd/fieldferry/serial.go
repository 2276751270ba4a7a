package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/serial"
	"github.com/fieldferry/fieldferry/gateway"
	"github.com/fieldferry/fieldferry/gateway/config"
)

// serialDevice finds a serial device of a site file, and what reaches it alone; the
// configuration has no device if it is none.
func serialDevice(c *config.Config, name string) serial.Config {
	for i := range c.Adapters {
		a := &c.Adapters[i]
		if a.Serial == nil {
			continue
		}
		sc := gateway.SerialConfig(a, nil)
		for _, d := range sc.Devices {
			if d.Device.Name == name {
				sc.Devices = []serial.Device{d}
				return sc
			}
		}
	}
	return serial.Config{}
}

// nowhere is a sink for a link that runs for something else than its readings.
type nowhere struct{}

func (nowhere) Emit(context.Context, adapters.Reading) error  { return nil }
func (nowhere) Status(context.Context, adapters.Status) error { return nil }

// withSerial opens the line of a device, and has f use it.
func withSerial(ctx context.Context, c serial.Config, f func(ctx context.Context, l *serial.Link) error) error {
	const never = 365 * 24 * time.Hour
	for i := range c.Devices { // it is asked for what is wanted, and no more
		d := &c.Devices[i]
		d.Every = never
		for j := range d.Points {
			d.Points[j].Every = never
		}
		if len(d.Request) == 0 && len(d.Steps) == 0 {
			d.Every = 0
		}
	}
	failed := &lastError{}
	c.Log = failed.logger()
	l, err := serial.New(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, nowhere{}) }()
	defer func() {
		cancel()
		<-done
	}()
	for !l.Stats().Connected {
		if err := failed.get(); err != "" {
			return fmt.Errorf("cannot open %s%s: %s", c.Port, c.Address, err)
		}
		select {
		case <-ctx.Done():
			return errors.New("interrupted")
		case <-time.After(5 * time.Millisecond):
		}
	}
	return f(ctx, l)
}

// readSerial reads points of a device. One that talks unasked is waited for.
func readSerial(ctx context.Context, c serial.Config, device string, points []string) (samples []adapters.Sample, err error) {
	d := &c.Devices[0]
	patience := 10 * (c.Timeout + d.Frame.Idle)
	err = withSerial(ctx, c, func(ctx context.Context, l *serial.Link) error {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		samples, err = l.Read(ctx, device, points)
		f := l.Frames()[0]
		if err != nil && len(f.Last) > 0 {
			err = fmt.Errorf("%w; what came last is %s: %q", err, f.LastWhat, f.Last)
		} else if err != nil {
			err = fmt.Errorf("%w; nothing came: check the cable, the baud rate and parity, and the request; 'fieldferry sniff' shows what comes", err)
		}
		return err
	})
	return samples, err
}

// writeSerial tells a device things.
func writeSerial(ctx context.Context, c serial.Config, device string, values []adapters.Assignment) (samples []adapters.Sample, err error) {
	err = withSerial(ctx, c, func(ctx context.Context, l *serial.Link) error {
		samples, err = l.Write(ctx, device, values)
		return err
	})
	return samples, err
}
