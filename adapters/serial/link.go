package serial

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/serial/port"
)

// reopenMax is the longest between two attempts to open the line: a port that was
// plugged in again is to be read within two seconds.
const reopenMax = time.Second

// probeMax is the longest between two attempts at a device that is offline, as long as
// that takes no time from others: its port may have been plugged in again.
const probeMax = 2 * time.Second

// A Link is one line and the devices on it.
type Link struct {
	line    line
	devices []*device
	bus     *bus      // of devices that are asked
	talk    *listener // of those that talk unasked
}

var _ interface {
	adapters.Link
	adapters.Counter
	adapters.Framed
	adapters.Writer
	adapters.Reader
	adapters.Checker
} = (*Link)(nil)

// device is one device of a link.
type device struct {
	*extractor
	framer *framer
	frames frames
	plans  []*plan
}

// plan is what of a device has one rate.
type plan struct {
	*device
	every   time.Duration
	readers []*reader
	samples []adapters.Sample
}

// New returns a link. It does not open the line. An error names the device and the
// point that cannot be read as they are described.
func New(c Config) (*Link, error) {
	c.Timeout = cmp.Or(c.Timeout, time.Second)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Timeout < 0 || c.Retries < 0 || c.Settle < 0 || c.Pause < 0 {
		return nil, errors.New("timeout, retries, settle and pause must not be negative")
	}
	if (c.Port == "") == (c.Address == "") {
		return nil, errors.New("a line has a port or an address")
	}
	if c.Port != "" {
		if err := errors.Join(port.Supported(), c.Line.Check()); err != nil {
			return nil, err
		}
	}
	if len(c.Devices) == 0 {
		return nil, errors.New("there are no devices on the line")
	}
	asked := c.Devices[0].asked()
	l := &Link{}
	for i := range c.Devices {
		d := &c.Devices[i]
		if d.asked() != asked {
			return nil, fmt.Errorf("device %s: the devices of a line are all asked, or all talk unasked", d.Device.Name)
		}
		dev, err := newDevice(d)
		if err != nil {
			return nil, fmt.Errorf("device %s: %w", d.Device.Name, err)
		}
		if !asked && i > 0 && !reflect.DeepEqual(l.devices[0].Frame, dev.Frame) {
			return nil, fmt.Errorf("device %s: devices of one line that talk unasked have the same frame", d.Device.Name)
		}
		l.devices = append(l.devices, dev)
	}
	l.line = newLine(&c, asked, l.devices)
	if asked {
		l.bus = newBus(&c, &l.line, l.devices)
	} else {
		l.talk = newListener(&c, &l.line, l.devices)
	}
	return l, nil
}

func newDevice(d *Device) (*device, error) {
	own := *d
	if err := own.Frame.fill(); err != nil {
		return nil, err
	}
	own.Steps = slices.Clone(d.Steps)
	for i := range own.Steps {
		s := &own.Steps[i]
		if s.Frame == nil && len(s.Expect) > 0 {
			s.Frame = &Frame{End: s.Expect}
		}
		if s.Frame != nil {
			f := *s.Frame
			if err := f.fill(); err != nil {
				return nil, fmt.Errorf("step %d: %w", i+1, err)
			}
			s.Frame = &f
		}
	}
	x, err := newExtractor(&own)
	if err != nil {
		return nil, err
	}
	dev := &device{extractor: x, framer: newFramer(own.Frame)}
	dev.frames.counts.Device = d.Device.Name
	rates := map[time.Duration][]*Point{}
	for i := range own.Points {
		p := &own.Points[i]
		if p.Hidden || len(p.Send) > 0 {
			continue
		}
		every := time.Duration(0) // of a device that talks unasked: they come together
		if d.asked() {
			every = cmp.Or(p.Every, d.Every, time.Second)
		}
		if every < 0 {
			return nil, errors.New("every must not be negative")
		}
		rates[every] = append(rates[every], p)
	}
	for _, every := range slices.Sorted(maps.Keys(rates)) {
		dev.plans = append(dev.plans, dev.plan(every, rates[every]))
	}
	return dev, nil
}

// plan is a plan for some points.
func (d *device) plan(every time.Duration, points []*Point) *plan {
	p := &plan{device: d, every: every}
	for _, pt := range points {
		p.readers = append(p.readers, newReader(pt))
		p.samples = append(p.samples, adapters.Sample{Point: pt.Point, Quality: adapters.Bad})
	}
	return p
}

// Run reads until ctx ends, as [adapters.Link] has it. It returns within a tenth of
// a second, or 5 s while it connects.
func (l *Link) Run(ctx context.Context, sink adapters.Sink) error {
	if l.bus != nil {
		return l.bus.poller.Run(ctx, sink)
	}
	return l.talk.run(ctx, sink)
}

// String returns the name of the link.
func (l *Link) String() string { return l.line.Name }

// Stats returns what was counted so far.
func (l *Link) Stats() adapters.Stats {
	if l.bus != nil {
		return l.bus.poller.Stats()
	}
	return l.talk.stats()
}

// Frames counts the messages of each device, as [adapters.Framed] has it.
func (l *Link) Frames() []adapters.Frames {
	all := make([]adapters.Frames, len(l.devices))
	for i, d := range l.devices {
		all[i] = d.frames.get()
	}
	return all
}

func (l *Link) device(name string) (*device, error) {
	for _, d := range l.devices {
		if d.Device.Device.Name == name {
			return d, nil
		}
	}
	return nil, fmt.Errorf("there is no device %s on %s", name, l)
}
