package serial

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

// slot is {name} or {name%FORMAT} in what a simulated device says.
var slot = regexp.MustCompile(`\{([a-z0-9][a-z0-9-]*)(%[-+ 0]*[0-9]*(?:\.[0-9]+)?[fdXxe])?\}`)

// Slots are the names in the slots of what a simulated device says.
func Slots(says string) (names []string) {
	for _, m := range slot.FindAllStringSubmatch(says, -1) {
		names = append(names, m[1])
	}
	return names
}

// Compose makes a message of a simulated device. says is all of it, with slots for
// numbers, as {weight%10.2f}; what points have at a place of it is put there, and so
// is the check. raw is the number of a point, or of a slot that is none.
func (d *Device) Compose(says string, raw func(name string) float64) ([]byte, error) {
	text := slot.ReplaceAllStringFunc(says, func(s string) string {
		m := slot.FindStringSubmatch(s)
		format, f := m[2], raw(m[1])
		switch {
		case format == "":
			return strconv.FormatFloat(f, 'f', -1, 64)
		case strings.HasSuffix(format, "f"), strings.HasSuffix(format, "e"):
			return fmt.Sprintf(format, f)
		}
		return fmt.Sprintf(format, int64(math.Round(f)))
	})
	frame := []byte(text)
	for i := range d.Points {
		p := &d.Points[i]
		if p.At == nil || p.Type == String {
			continue
		}
		if !p.inside(len(frame)) {
			return nil, fmt.Errorf("point %s: what is said ends before it", p.Point.Name)
		}
		at := place(*p.At, len(frame))
		copy(frame[at:], p.encode(raw(p.Point.Name)))
	}
	if d.Frame.Check != nil {
		if err := d.Frame.Check.put(frame); err != nil {
			return nil, err
		}
	}
	if len(d.Frame.Escape) > 0 {
		return d.Frame.escape(frame)
	}
	return frame, nil
}

// encode is the inverse of reader.binary for a raw number.
func (p *Point) encode(f float64) []byte {
	size := p.size()
	u := uint64(int64(math.Round(f)))
	switch p.Type {
	case Float32:
		u = uint64(math.Float32bits(float32(f)))
	case Float64:
		u = math.Float64bits(f)
	case BCD8, BCD16, BCD24, BCD32, BCD48, BCD64:
		n := u
		u = 0
		for i := range 2 * size {
			u |= n % 10 << (4 * i)
			n /= 10
		}
	}
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(u >> (8 * (size - 1 - i)))
	}
	return p.Order.arrange(b)
}

// escape puts escapes before those bytes of a whole frame that need them.
func (f *Frame) escape(frame []byte) ([]byte, error) {
	from, to := len(f.Start), len(frame)-len(f.End)-f.Tail
	if to < from || !bytes.HasPrefix(frame, f.Start) {
		return nil, errors.New("what is said is no frame of the device")
	}
	out := bytes.Clone(frame[:from])
	for _, c := range frame[from:to] {
		if c == f.Escape[0] || c == f.Start[0] || c == f.End[0] {
			out = append(out, f.Escape[0])
			c ^= f.Invert
		}
		out = append(out, c)
	}
	return append(out, frame[to:]...), nil
}
