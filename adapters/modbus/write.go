package modbus

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

// assignment is a write that was checked.
type assignment struct {
	point  *Point
	value  adapters.Value
	bytes  encoded
	factor *Point // that scales it; nil if nothing does
}

// check makes assignments of what is to be written, or says what of it may not
// be. Nothing was sent by then.
func (d *Device) check(values []adapters.Assignment) ([]assignment, error) {
	if len(values) == 0 {
		return nil, errors.New("there is nothing to write")
	}
	var all []assignment
	for i, v := range values {
		p, err := d.point(v.Point)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(values[:i], func(o adapters.Assignment) bool { return o.Point == v.Point }) {
			return nil, fmt.Errorf("%s: is to be written twice", v.Point)
		}
		a := assignment{point: p, value: v.Value}
		if a.bytes, err = p.encode(v.Value, 0); err != nil && p.ScaleBy == "" {
			return nil, fmt.Errorf("%s: %w", v.Point, err)
		}
		if p.ScaleBy != "" { // what it takes is known when its factor is
			if f, ok := v.Value.Float64(); p.Write == nil || !ok || p.allowed(f) != nil {
				return nil, fmt.Errorf("%s: %w", v.Point, err)
			}
			if a.factor, err = d.point(p.ScaleBy); err != nil {
				return nil, err
			}
		}
		all = append(all, a)
	}
	return all, nil
}

func (d *Device) point(name string) (*Point, error) {
	for i := range d.Points {
		if d.Points[i].Point.Name == name {
			return &d.Points[i], nil
		}
	}
	return nil, fmt.Errorf("the device %s has no point %s", d.Device.Name, name)
}

// pulse is what ends a pulse.
type pulse struct {
	after time.Duration
	send  func(context.Context) (reopen bool, err error)
}

// write writes in order and reads back. Of what failed nothing after it is
// written, but what may have been written is read back all the same.
func (b *bus) write(ctx context.Context, d *Device, all []assignment) (samples []adapters.Sample, pulses []pulse, reopen bool, err error) {
	var touched []*Point
	for i := range all {
		a := &all[i]
		if err = b.scale(ctx, d, a); err != nil {
			err = fmt.Errorf("%s: %w", a.point.Point.Name, err)
			break
		}
		wait(ctx, b.pause)
		err = b.put(d.UnitID, a.point, a.bytes)
		if err == nil || exception(err) == 0 {
			touched = append(touched, a.point)
		}
		if err != nil {
			reopen = b.wire.spent(err)
			err = fmt.Errorf("%s: %w", a.point.Point.Name, refusal(err))
			break
		}
		if w := a.point.Write; w.Pulse > 0 {
			off := opposite(a)
			pulses = append(pulses, pulse{w.Pulse, func(context.Context) (bool, error) {
				err := b.put(d.UnitID, a.point, off)
				return err != nil && b.wire.spent(err), err
			}})
		}
	}
	if len(touched) == 0 {
		return nil, pulses, reopen, err
	}
	if reopen {
		if b.wire.close() == nil && b.wire.open(ctx) == nil {
			reopen = false
		}
	}
	samples, again, rerr := b.readNow(ctx, d, touched)
	for i := range samples {
		if s := &samples[i]; s.Quality == adapters.Bad { // it was written, and what came of it is not known
			s.Quality, s.Value = adapters.Uncertain, all[i].value
		}
	}
	if err == nil {
		err = rerr
	}
	return samples, pulses, reopen || again, err
}

// scale encodes a value whose power of ten the device has.
func (b *bus) scale(ctx context.Context, d *Device, a *assignment) error {
	if a.factor == nil {
		return nil
	}
	samples, _, err := b.readNow(ctx, d, []*Point{a.factor})
	if err != nil {
		return err
	}
	var f factor
	if f.take(samples[0].Value, samples[0].Quality, samples[0].Reason); !f.known {
		return fmt.Errorf("its factor %s: %s", a.factor.Point.Name, f.reason)
	}
	a.bytes, err = a.point.encode(a.value, f.exp)
	return err
}

// opposite is what ends a pulse: off for on, 0 for a number, or on for off.
func opposite(a *assignment) encoded {
	e := encoded{mask: a.bytes.mask, flags: a.bytes.flags}
	for _, on := range a.bytes.on {
		e.on = append(e.on, !on)
	}
	e.raw = make([]byte, len(a.bytes.raw))
	switch {
	case e.flags:
		for i := range e.raw {
			e.raw[i] = a.bytes.raw[i] ^ e.mask[i]
		}
	case a.point.Type == Bool && !slices.ContainsFunc(a.bytes.raw, func(b byte) bool { return b != 0 }):
		c, err := a.point.converter()
		if err == nil {
			e.raw = c.appendRaw(nil, 1)
		}
	}
	return e
}

// put writes one point with one request. A device that has no function for a
// single register or coil, or for a mask, gets the other ones.
func (b *bus) put(unit uint8, p *Point, e encoded) error {
	at := p.Address
	switch {
	case len(e.on) == 1:
		err := b.order(unit, fnWriteCoil, coilPDU(at, e.on[0]))
		if exceptionOf(err) != 1 {
			return err
		}
		return b.order(unit, fnWriteCoils, coilsPDU(at, e.on))
	case len(e.on) > 1:
		return b.order(unit, fnWriteCoils, coilsPDU(at, e.on))
	case e.flags:
		return b.putFlags(unit, p, e)
	case len(e.raw) == 2:
		err := b.order(unit, fnWriteRegister, addressed(fnWriteRegister, at, e.raw))
		if exceptionOf(err) != 1 {
			return err
		}
	}
	return b.order(unit, fnWriteRegisters, registersPDU(at, e.raw))
}

// putFlags changes bits and leaves the others as they are: with a mask, if the
// device has that, and else by what it holds.
func (b *bus) putFlags(unit uint8, p *Point, e encoded) error {
	if len(e.raw) == 2 {
		mask, set := binary.BigEndian.Uint16(e.mask), binary.BigEndian.Uint16(e.raw)
		pdu := addressed(fnMaskWrite, p.Address, nil)
		pdu = binary.BigEndian.AppendUint16(pdu, ^mask)
		pdu = binary.BigEndian.AppendUint16(pdu, set)
		if err := b.order(unit, fnMaskWrite, pdu); exceptionOf(err) != 1 {
			return err
		}
	}
	raw, err := b.wire.readRegisters(unit, Holding, p.Address, uint16(len(e.raw)/2))
	if err != nil {
		return err
	}
	raw = slices.Clone(raw)
	for i := range raw {
		raw[i] = raw[i]&^e.mask[i] | e.raw[i]
	}
	return b.put(unit, p, encoded{raw: raw})
}

// order sends a request that writes. A function that the device has refused as
// unknown is not asked for again.
func (b *bus) order(unit, function uint8, pdu []byte) error {
	lacks := [2]uint8{unit, function}
	if b.lacking[lacks] && function != fnWriteCoils && function != fnWriteRegisters {
		return exceptionError(1)
	}
	_, err := b.wire.exchange(unit, pdu)
	if exceptionOf(err) == 1 {
		if b.lacking == nil {
			b.lacking = map[[2]uint8]bool{}
		}
		b.lacking[lacks] = true
	}
	return err
}

// exceptionOf is exception, and 0 for no error.
func exceptionOf(err error) int {
	if err == nil {
		return 0
	}
	return exception(err)
}

// refusal says which exception it was, for people.
func refusal(err error) error {
	if code := exceptionOf(err); code != 0 {
		return fmt.Errorf("the device refuses, exception %d: %w", code, err)
	}
	return err
}

func addressed(function byte, at uint16, rest []byte) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{function}, at), rest...)
}

func coilPDU(at uint16, on bool) []byte {
	if on {
		return addressed(fnWriteCoil, at, []byte{0xFF, 0})
	}
	return addressed(fnWriteCoil, at, []byte{0, 0})
}

func coilsPDU(at uint16, on []bool) []byte {
	packed := make([]byte, (len(on)+7)/8)
	for i, b := range on {
		if b {
			packed[i/8] |= 1 << (i % 8)
		}
	}
	pdu := binary.BigEndian.AppendUint16(addressed(fnWriteCoils, at, nil), uint16(len(on)))
	return append(append(pdu, byte(len(packed))), packed...)
}

func registersPDU(at uint16, raw []byte) []byte {
	pdu := binary.BigEndian.AppendUint16(addressed(fnWriteRegisters, at, nil), uint16(len(raw)/2))
	return append(append(pdu, byte(len(raw))), raw...)
}

// readNow reads points of a device at once. What is not good is an error too.
func (b *bus) readNow(ctx context.Context, d *Device, points []*Point) (samples []adapters.Sample, reopen bool, err error) {
	p, samples, err := newPlan(d, points, cmp.Or(d.MaxRegisters, b.registers), cmp.Or(d.MaxBits, b.bits), b.gap)
	if err != nil {
		return nil, false, err
	}
	for i := range samples {
		samples[i].Quality = adapters.Bad
	}
	a := b.run(ctx, p, samples)
	for i := range samples {
		s := &samples[i]
		if s.Quality == adapters.Bad && s.Reason == "" {
			s.Reason = a.Reason
		}
		if s.Quality == adapters.Bad && err == nil {
			err = fmt.Errorf("%s: %s", s.Point.Name, s.Reason)
		}
	}
	return samples, a.Reopen, err
}

// Write writes points of a device, as [adapters.Writer] has it. A pulse is ended
// by the link, also when it stops meanwhile.
func (l *Link) Write(ctx context.Context, device string, values []adapters.Assignment) (samples []adapters.Sample, err error) {
	d, err := l.device(device)
	if err != nil {
		return nil, err
	}
	all, err := d.check(values)
	if err != nil {
		return nil, err
	}
	err = l.poller.Do(ctx, func(ctx context.Context) (reopen bool, err error) {
		ctx = context.WithoutCancel(ctx) // half of it would be worse than none
		var pulses []pulse
		samples, pulses, reopen, err = l.bus.write(ctx, d, all)
		for _, p := range pulses {
			l.poller.Later(p.after, p.send)
		}
		return reopen, err
	})
	return samples, err
}

// CheckWrite is what [adapters.Checker] has.
func (l *Link) CheckWrite(device string, values []adapters.Assignment) error {
	d, err := l.device(device)
	if err == nil {
		_, err = d.check(values)
	}
	return err
}

// CheckRead is what [adapters.Checker] has.
func (l *Link) CheckRead(device string, points []string) error {
	d, err := l.device(device)
	if err == nil {
		_, err = d.named(points)
	}
	return err
}

// Read reads points of a device, as [adapters.Reader] has it.
func (l *Link) Read(ctx context.Context, device string, points []string) (samples []adapters.Sample, err error) {
	d, err := l.device(device)
	if err != nil {
		return nil, err
	}
	asked, err := d.named(points)
	if err != nil {
		return nil, err
	}
	err = l.poller.Do(ctx, func(ctx context.Context) (reopen bool, err error) {
		samples, reopen, err = l.bus.readNow(ctx, d, asked)
		return reopen, err
	})
	return samples, err
}

// named returns the points with these names, or all if there are none.
func (d *Device) named(names []string) (points []*Point, err error) {
	if len(names) == 0 {
		for i := range d.Points {
			if !d.Points[i].Hidden {
				points = append(points, &d.Points[i])
			}
		}
		return points, nil
	}
	for _, name := range names {
		p, err := d.point(name)
		if err != nil {
			return nil, err
		}
		points = append(points, p)
	}
	return points, nil
}

func (l *Link) device(name string) (*Device, error) {
	for _, d := range l.devices {
		if d.Device.Name == name {
			return d, nil
		}
	}
	return nil, fmt.Errorf("there is no device %s on %s", name, l)
}
