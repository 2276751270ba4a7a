package serial

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/fieldferry/fieldferry/adapters"
)

// ReasonNotConfirmed is that of a thing that was sent to a device which does not
// answer it.
const ReasonNotConfirmed = "not-confirmed"

// placeholder stands for the value in what is sent.
var placeholder = []byte("{value}")

// An order is a thing to send that was checked.
type order struct {
	point *Point
	value adapters.Value
	bytes []byte
}

// Write sends what points with a thing to send have, as [adapters.Writer] has it. A
// point whose expected answer came is good; one that awaits none is uncertain.
func (l *Link) Write(ctx context.Context, name string, values []adapters.Assignment) ([]adapters.Sample, error) {
	d, err := l.device(name)
	if err != nil {
		return nil, err
	}
	orders, err := d.orders(values)
	if err != nil {
		return nil, err
	}
	var samples []adapters.Sample
	for i := range orders {
		o := &orders[i]
		heard := ""
		tell := func(ctx context.Context) (reopen bool, err error) {
			heard, err = l.bus.tell(ctx, d, o)
			return err != nil && l.line.spent(err), err
		}
		if l.bus != nil {
			err = l.bus.poller.Do(ctx, tell)
		} else {
			heard, err = l.talk.order(ctx, o)
		}
		s := adapters.Sample{Point: o.point.Point, Value: o.value}
		switch {
		case err == nil && len(o.point.Expect) == 0:
			s.Quality, s.Reason = adapters.Uncertain, ReasonNotConfirmed
		case err == nil:
		case errors.Is(err, adapters.ErrNotRunning), errors.Is(err, adapters.ErrNotConnected), errors.Is(err, errNotSent):
			return samples, fmt.Errorf("%s: %w", o.point.Point.Name, err)
		default:
			s.Quality, s.Reason = adapters.Uncertain, reasonOf(err)
			if heard != "" {
				err = fmt.Errorf("the device answered %q, and not %q", heard, o.point.Expect)
			}
			return append(samples, s), fmt.Errorf("%s: %w", o.point.Point.Name, err)
		}
		samples = append(samples, s)
	}
	return samples, nil
}

// CheckWrite says what of a write is not possible, as [adapters.Checker] has it.
func (l *Link) CheckWrite(name string, values []adapters.Assignment) error {
	d, err := l.device(name)
	if err == nil {
		_, err = d.orders(values)
	}
	return err
}

// CheckRead says what of a read is not possible, as [adapters.Checker] has it.
func (l *Link) CheckRead(name string, points []string) error {
	d, err := l.device(name)
	if err == nil {
		_, err = d.named(points)
	}
	return err
}

// errNotSent is in the error of an order of which no byte was sent.
var errNotSent = errors.New("nothing was sent")

// orders makes orders of what is to be written, or says what of it may not be.
func (d *device) orders(values []adapters.Assignment) ([]order, error) {
	if len(values) == 0 {
		return nil, errors.New("there is nothing to write")
	}
	var all []order
	for i, v := range values {
		p, err := d.point(v.Point)
		switch {
		case err != nil:
			return nil, err
		case len(p.Send) == 0:
			return nil, fmt.Errorf("%s: may not be written; a point with send: can be", v.Point)
		case slices.ContainsFunc(values[:i], func(o adapters.Assignment) bool { return o.Point == v.Point }):
			return nil, fmt.Errorf("%s: is to be written twice", v.Point)
		}
		o := order{point: p, value: v.Value, bytes: p.Send}
		if bytes.Contains(p.Send, placeholder) {
			text, err := p.allowed(v.Value)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", v.Point, err)
			}
			o.bytes = bytes.ReplaceAll(p.Send, placeholder, []byte(text))
		} else if n, ok := v.Value.Float64(); !ok || n != 1 {
			return nil, fmt.Errorf("%s: is a thing to tell the device; write true", v.Point)
		}
		all = append(all, o)
	}
	return all, nil
}

// allowed is the text of a value that may be written.
func (p *Point) allowed(v adapters.Value) (string, error) {
	f, number := v.Float64()
	text := v.String()
	switch v.Kind() {
	case adapters.KindInt, adapters.KindInt64, adapters.KindUint64:
	case adapters.KindFloat32, adapters.KindFloat64:
		if f-f != 0 {
			return "", errors.New("is no finite number")
		}
		text = strconv.FormatFloat(f, 'f', -1, 64)
	case adapters.KindBool:
		text = map[bool]string{true: "1", false: "0"}[v.Bool()]
	case adapters.KindString:
		if i := strings.IndexFunc(text, func(r rune) bool { return r < ' ' || r > '~' }); i >= 0 || len(text) > 256 {
			return "", errors.New("a text for a device has printable ASCII characters, 256 at most")
		}
	default:
		return "", errors.New("is no number, boolean or text")
	}
	w := p.Write
	if w == nil {
		return text, nil
	}
	limited := w.Min != nil || w.Max != nil || len(w.Values) > 0
	switch {
	case limited && !number:
		return "", errors.New("is no number, but has limits")
	case w.Min != nil && f < *w.Min:
		return "", fmt.Errorf("%s is below its limit %v", text, *w.Min)
	case w.Max != nil && f > *w.Max:
		return "", fmt.Errorf("%s is above its limit %v", text, *w.Max)
	case len(w.Values) > 0 && !slices.Contains(w.Values, f):
		return "", fmt.Errorf("%s is none of the values that it may have, %v", text, w.Values)
	}
	return text, nil
}

func (d *device) point(name string) (*Point, error) {
	for i := range d.Points {
		if d.Points[i].Point.Name == name {
			return &d.Points[i], nil
		}
	}
	return nil, fmt.Errorf("the device %s has no point %s", d.Device.Device.Name, name)
}

// answers reports whether a frame is the answer to an order.
func (o *order) answers(f *Frame, frame []byte) bool {
	return bytes.HasPrefix(frame, o.point.Expect) || bytes.HasPrefix(f.text(frame), o.point.Expect)
}

// tell sends an order and waits for its answer. heard is what came instead.
func (b *bus) tell(ctx context.Context, d *device, o *order) (heard string, err error) {
	l := b.line
	wait(ctx, l.Pause)
	if err := l.begin(ctx); err != nil {
		return "", fmt.Errorf("%w: %w", errNotSent, err)
	}
	if err := l.send(o.bytes); err != nil || len(o.point.Expect) == 0 {
		return "", err
	}
	_, err = l.await(ctx, d.framer, &d.frames, func(frame []byte) bool {
		if o.answers(&d.Frame, frame) {
			return true
		}
		heard = string(d.Frame.text(frame))
		return false
	})
	return heard, err
}

// Read reads points of a device, as [adapters.Reader] has it. Of one that talks
// unasked it is the next message.
func (l *Link) Read(ctx context.Context, name string, points []string) ([]adapters.Sample, error) {
	d, err := l.device(name)
	if err != nil {
		return nil, err
	}
	asked, err := d.named(points)
	if err != nil {
		return nil, err
	}
	p := d.plan(0, asked)
	if l.bus == nil {
		err = l.talk.wait(ctx, p)
	} else {
		err = l.bus.poller.Do(ctx, func(ctx context.Context) (bool, error) {
			a := l.bus.ask(ctx, p, p.samples)
			for i := range p.samples {
				if s := &p.samples[i]; s.Quality == adapters.Bad && s.Reason == "" {
					s.Reason = a.Reason
				}
			}
			return a.Reopen, a.Err
		})
	}
	if err != nil && (len(p.samples) == 0 || p.samples[0].Reason == "") {
		return nil, err
	}
	for i := range p.samples {
		if s := &p.samples[i]; s.Quality == adapters.Bad && err == nil {
			err = fmt.Errorf("%s: %s", s.Point.Name, s.Reason)
		}
	}
	return p.samples, err
}

// named returns the points with these names that can be read, or all if there are
// none.
func (d *device) named(names []string) (points []*Point, err error) {
	if len(names) == 0 {
		for i := range d.Points {
			if p := &d.Points[i]; !p.Hidden && len(p.Send) == 0 {
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
		if len(p.Send) > 0 {
			return nil, fmt.Errorf("%s: is a thing to send, and cannot be read", name)
		}
		points = append(points, p)
	}
	return points, nil
}
