package modbus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

// The most that one request can ask for. Modbus Application Protocol 1.1b3 §6.1
// to §6.4.
const (
	maxRegisters = 125
	maxBits      = 2000
)

// A Link is one connection and the units behind it.
type Link struct {
	poller  *adapters.Poller
	bus     bus
	devices []*Device
	jobs    []*adapters.Job
}

// New returns a link. It does not connect. An error names the device and the
// point that cannot be read as they are described.
func New(c Config) (*Link, error) {
	c.Timeout = cmp.Or(c.Timeout, time.Second)
	if c.Timeout < 0 || c.Retries < 0 || c.Settle < 0 || c.Pause < 0 || c.MaxGap < 0 {
		return nil, errors.New("timeout, retries, settle, pause and max_gap must not be negative")
	}
	w, err := newWire(&c)
	if err != nil {
		return nil, fmt.Errorf("cannot use %s: %w", c.Address, err)
	}
	l := &Link{bus: bus{
		wire:   w,
		settle: c.Settle,
		pause:  c.Pause,
		plans:  map[*adapters.Job]*plan{},

		registers: cmp.Or(c.MaxRegisters, maxRegisters),
		bits:      cmp.Or(c.MaxBits, maxBits),
		gap:       c.MaxGap,
	}}
	l.poller = adapters.NewPoller(c.Name, &l.bus, adapters.PollerOptions{Retries: c.Retries, Log: c.Log})
	for i := range c.Devices {
		d := &c.Devices[i]
		l.devices = append(l.devices, d)
		if err := l.add(d, &c); err != nil {
			return nil, fmt.Errorf("device %s: %w", d.Device.Name, err)
		}
	}
	return l, nil
}

// add enters a job for each rate of a device. The fastest comes first: it is
// the one that finds out whether the device is back.
func (l *Link) add(d *Device, c *Config) error {
	registers := cmp.Or(d.MaxRegisters, c.MaxRegisters, maxRegisters)
	bits := cmp.Or(d.MaxBits, c.MaxBits, maxBits)
	if registers < 1 || registers > maxRegisters || bits < 1 || bits > maxBits {
		return fmt.Errorf("max_registers must be 1 to %d and max_bits 1 to %d", maxRegisters, maxBits)
	}
	rates := map[time.Duration][]*Point{}
	for i := range d.Points {
		if p := &d.Points[i]; !p.Hidden {
			every := cmp.Or(p.Every, d.Every, time.Second)
			rates[every] = append(rates[every], p)
		}
	}
	for _, every := range slices.Sorted(maps.Keys(rates)) {
		if every < 0 {
			return errors.New("every must not be negative")
		}
		p, samples, err := newPlan(d, rates[every], registers, bits, c.MaxGap)
		if err != nil {
			return err
		}
		j := l.poller.Add(d.Device, every, samples)
		l.bus.plans[j] = p
		l.jobs = append(l.jobs, j)
	}
	return nil
}

// Run polls until ctx ends, as [adapters.Link] has it. It returns within the
// timeout of one answer, or 5 s while it connects.
func (l *Link) Run(ctx context.Context, sink adapters.Sink) error {
	defer l.bus.wire.end()
	return l.poller.Run(ctx, sink)
}

// String returns the name of the link.
func (l *Link) String() string { return l.poller.String() }

// Stats returns what was counted so far.
func (l *Link) Stats() adapters.Stats { return l.poller.Stats() }
