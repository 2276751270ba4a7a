package gateway

import (
	"fmt"
	"log/slog"
	"maps"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/serial"
	"github.com/fieldferry/fieldferry/adapters/serial/port"
	"github.com/fieldferry/fieldferry/gateway/config"
)

// openSerialLink makes the link of a serial adapter and tells the field and the
// commands of its devices.
func openSerialLink(a *config.Adapter, f *field, k *commands, log *slog.Logger) (adapters.Link, error) {
	c := SerialConfig(a, func(d *config.Device, dev *serial.Device) {
		points := make([]*adapters.Point, len(dev.Points))
		for i := range dev.Points {
			points[i] = dev.Points[i].Point
		}
		f.add(d, dev.Device, points)
	})
	c.Log = log.With("part", "adapter", "adapter", a.Name)
	l, err := serial.New(c)
	if err != nil {
		return nil, fmt.Errorf("%s: adapter %s: %w", a.Pos, a.Name, err)
	}
	for i := range c.Devices {
		k.add(l, c.Devices[i].Device.Name)
	}
	return l, nil
}

// SerialConfig makes the configuration of a serial adapter. It shows each device to
// each, unless that is nil.
func SerialConfig(a *config.Adapter, each func(*config.Device, *serial.Device)) serial.Config {
	s := a.Serial
	c := serial.Config{
		Name: a.Name, Port: s.Port, Address: s.Address, Line: portSettings(&s.Line),
		Timeout: s.Timeout, Retries: s.Retries, Settle: s.Settle, Pause: s.Pause,
	}
	for i := range a.Devices {
		d := &a.Devices[i]
		dev := serialDevice(d)
		if each != nil {
			each(d, &dev)
		}
		c.Devices = append(c.Devices, dev)
	}
	return c
}

func portSettings(l *config.Line) port.Settings {
	s := port.Settings{Baud: l.Baud, DataBits: l.DataBits, Parity: l.Parity, StopBits: l.StopBits}
	if r := l.RS485; r != nil {
		s.RS485 = &port.RS485{RTS: r.RTS, Before: r.Before, After: r.After}
	}
	return s
}

func serialDevice(d *config.Device) serial.Device {
	dev := serial.Device{
		Device:  &adapters.Device{Name: d.ID, Type: d.Type, Tags: maps.Clone(d.Tags)},
		Every:   d.Every,
		Request: []byte(d.Request), Silent: d.Silent, Frame: serialFrame(&d.Frame), Match: d.Match, Split: d.Split,
	}
	for _, h := range d.Holds {
		dev.Holds = append(dev.Holds, serial.Hold{At: h.At, Want: []byte(h.Want)})
	}
	for i := range d.Steps {
		s := &d.Steps[i]
		step := serial.Step{Send: []byte(s.Send), Expect: []byte(s.Expect), Baud: s.Baud, Wait: s.Wait}
		if s.Frame != nil {
			f := serialFrame(s.Frame)
			step.Frame = &f
		}
		dev.Steps = append(dev.Steps, step)
	}
	for i := range d.Points {
		dev.Points = append(dev.Points, serialPoint(&d.Points[i]))
	}
	return dev
}

func serialFrame(c *config.Frame) serial.Frame {
	f := serial.Frame{
		Start: []byte(c.Start), End: []byte(c.End), Tail: c.Tail, Escape: []byte(c.Escape), Invert: c.Invert,
		Length: c.Length, Idle: c.Idle, Max: c.Max,
	}
	if l := c.LengthAt; l != nil {
		f.LengthAt = &serial.LengthAt{At: l.At, Size: l.Size, Low: l.LowFirst, Plus: l.Plus}
	}
	if k := c.Check; k != nil {
		kind, _ := serial.ParseCheck(k.Kind)
		own := f // a check that says where it is makes no room for itself
		if k.At == nil {
			f.Check = serial.NewCheck(kind, k.Hex, &f)
		} else {
			f.Check = serial.NewCheck(kind, k.Hex, &own)
			f.Check.At = *k.At
		}
		if k.Over != nil {
			f.Check.From, f.Check.To = k.Over[0], k.Over[1]
		}
		if k.LowFirst != nil {
			f.Check.LowFirst(*k.LowFirst)
		}
	}
	return f
}

// serialPoint makes a point of the site file, whose words were checked there, one of
// the adapter.
func serialPoint(p *config.Point) serial.Point {
	s := p.Serial
	as, _ := serial.ParseType(s.As)
	order, _ := serial.ParseOrder(s.Order)
	out := serial.Point{
		Point: &adapters.Point{Name: p.Name, Unit: p.Unit},
		Field: s.Field, Column: s.Column, Chars: s.Chars, At: s.At,
		Type: as, Bytes: s.Bytes, Order: order, When: s.When, UnitFrom: s.UnitFrom, Units: s.Units,
		Every: p.Every, Scale: p.Scale, Offset: p.Offset, Decimals: p.Decimals, Enum: p.Enum,
		Send: []byte(s.Send), Expect: []byte(s.Expect), Hidden: p.Hidden,
	}
	if p.Range != nil {
		out.Range = &serial.Range{Raw: p.Range.Raw, To: p.Range.To}
	}
	for _, b := range p.Bits {
		out.Bits = append(out.Bits, serial.Bit{Bit: b.Bit, Name: b.Name})
	}
	for _, n := range p.Invalid {
		out.Invalid = append(out.Invalid, n.Float64())
	}
	if w := p.Write; w != nil {
		out.Write = &serial.Write{Min: w.Min, Max: w.Max, Values: w.Values}
	}
	return out
}

// serialProblems says which serial adapters cannot be used as they are described.
func serialProblems(c *config.Config) (problems []config.Problem) {
	for i := range c.Adapters {
		a := &c.Adapters[i]
		if a.Serial == nil {
			continue
		}
		if _, err := serial.New(SerialConfig(a, nil)); err != nil {
			problems = append(problems, config.Problem{Pos: a.Pos, Text: "adapters." + a.Name + ": " + err.Error()})
		}
	}
	return problems
}
