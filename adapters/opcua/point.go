package opcua

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

// A device is one of the configuration, looked through.
type device struct {
	*adapters.Device
	points   []*point
	sampling time.Duration
}

// A point is one of the configuration, looked through.
type point struct {
	*Point
	conv   converter
	every  time.Duration
	node   nodeRef // of the variable, or of the method
	object nodeRef // that has the method
}

func newDevice(d *Device) (*device, error) {
	every := cmp.Or(d.Every, time.Second)
	out := &device{Device: d.Device, sampling: cmp.Or(d.Sampling, every)}
	if every < 0 || d.Sampling < 0 {
		return nil, errors.New("every and sampling must not be negative")
	}
	for i := range d.Points {
		p, err := newPoint(&d.Points[i], every)
		if err != nil {
			return nil, fmt.Errorf("point %s: %w", d.Points[i].Point.Name, err)
		}
		out.points = append(out.points, p)
	}
	return out, nil
}

func newPoint(p *Point, every time.Duration) (out *point, err error) {
	out = &point{Point: p, every: cmp.Or(p.Every, every)}
	switch {
	case out.every < 0 || p.Heartbeat < 0:
		return nil, errors.New("every and heartbeat must not be negative")
	case (p.Node == "") == (p.Call == ""):
		return nil, errors.New("needs either a node or a method to call")
	case p.Call != "" && p.Object == "":
		return nil, errors.New("call needs the object that has the method")
	case p.Deadband < 0 || math.IsNaN(p.Deadband) || math.IsInf(p.Deadband, 0):
		return nil, errors.New("deadband must not be negative")
	case math.IsNaN(p.Scale+p.Offset) || math.IsInf(p.Scale+p.Offset, 0):
		return nil, errors.New("scale and offset must be finite")
	case p.Decimals != nil && (*p.Decimals < 0 || *p.Decimals > 15):
		return nil, errors.New("decimals must be 0 to 15")
	}
	if out.node, err = parseNode(cmp.Or(p.Node, p.Call)); err != nil {
		return nil, err
	}
	if p.Call != "" {
		if out.object, err = parseNode(p.Object); err != nil {
			return nil, err
		}
	}
	out.conv = newConverter(p)
	return out, nil
}

// read reports whether a point is read, not only written.
func (p *point) read() bool { return !p.Hidden && p.Call == "" }

func (d *device) point(name string) (*point, error) {
	i := slices.IndexFunc(d.points, func(p *point) bool { return p.Point.Point.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("the device %s has no point %s", d.Name, name)
	}
	return d.points[i], nil
}

// named returns the points with these names, or all that are read if there are none.
func (d *device) named(names []string) (points []*point, err error) {
	if len(names) == 0 {
		for _, p := range d.points {
			if p.read() {
				points = append(points, p)
			}
		}
		return points, nil
	}
	for _, name := range names {
		p, err := d.point(name)
		if err != nil {
			return nil, err
		}
		if p.Call != "" {
			return nil, fmt.Errorf("%s: is a method, which cannot be read", name)
		}
		points = append(points, p)
	}
	return points, nil
}
