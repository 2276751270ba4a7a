package serial

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// CheckKind is how a check of a frame is made.
type CheckKind uint8

const (
	Xor    CheckKind = iota + 1 // of all bytes, as in IEC 62056-21 and NMEA 0183
	Sum8                        // of all bytes, the lowest eight bits, as in EN 13757-2
	LRC                         // the two's complement of Sum8: Modbus over Serial Line 1.02 §6.2.1
	CRC16                       // Modbus over Serial Line 1.02 §6.2.2, the low byte first
	CCITT                       // polynomial 0x1021 from 0xFFFF, the high byte first
	Xmodem                      // polynomial 0x1021 from 0, the high byte first
	EAN                         // the check digit of EAN and UPC codes, GS1 General Specifications §7.9, as a digit
	X25                         // polynomial 0x1021 mirrored, from 0xFFFF and inverted, the low byte first: ISO/IEC 13239
)

var checkNames = map[string]CheckKind{"xor": Xor, "sum8": Sum8, "lrc": LRC, "crc16": CRC16, "ccitt": CCITT, "xmodem": Xmodem, "x25": X25, "ean": EAN}

// ParseCheck returns the kind of a name.
func ParseCheck(name string) (CheckKind, bool) {
	k, ok := checkNames[name]
	return k, ok
}

// bytes is how many bytes a check has, not in hexadecimal.
func (k CheckKind) bytes() int {
	if k >= CRC16 && k != EAN {
		return 2
	}
	return 1
}

func (k CheckKind) sum(b []byte) uint16 {
	switch k {
	case Xor:
		var x byte
		for _, c := range b {
			x ^= c
		}
		return uint16(x)
	case Sum8, LRC:
		var s byte
		for _, c := range b {
			s += c
		}
		if k == LRC {
			s = -s
		}
		return uint16(s)
	case EAN:
		return uint16(checkDigit(b))
	case CRC16:
		return mirrored(b, 0xFFFF, 0xA001)
	case X25:
		return ^mirrored(b, 0xFFFF, 0x8408)
	case CCITT:
		return straight(b, 0xFFFF)
	default:
		return straight(b, 0)
	}
}

// checkDigit is the digit that belongs behind others; 0 if some are none.
func checkDigit(digits []byte) byte {
	sum, weight := 0, 3
	for _, c := range slices.Backward(digits) {
		if c < '0' || c > '9' {
			return 0
		}
		sum += weight * int(c-'0')
		weight = 4 - weight
	}
	return '0' + byte((10-sum%10)%10)
}

func mirrored(b []byte, crc, polynomial uint16) uint16 {
	for _, c := range b {
		crc ^= uint16(c)
		for range 8 {
			if crc&1 != 0 {
				crc = crc>>1 ^ polynomial
			} else {
				crc >>= 1
			}
		}
	}
	return crc
}

func straight(b []byte, crc uint16) uint16 {
	for _, c := range b {
		crc ^= uint16(c) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return crc
}

// A Check says that a frame has a check, over which of its bytes it is and where
// it stands. Places count from the first byte of the frame, which has 0; negative
// ones from behind the last.
type Check struct {
	Kind     CheckKind
	From, To int  // the bytes From to To, the latter left out; To 0 is up to the check
	At       int  // of its first byte
	Hex      bool // it is written as hexadecimal digits
	Swapped  bool // its two bytes stand in the other order than is usual for its kind
}

// size is how many bytes of the frame the check takes.
func (c *Check) size() int {
	if c.Hex {
		return 2 * c.Kind.bytes()
	}
	return c.Kind.bytes()
}

// NewCheck returns a check where it stands if nothing else is said: behind what ends
// a frame with a start and an end, and over all between, as in IEC 62056-21; before
// the end of a line, or else last, and over all before it. It makes room for itself
// behind the end of the frame.
func NewCheck(kind CheckKind, hex bool, f *Frame) *Check {
	c := &Check{Kind: kind, Hex: hex}
	c.At = -c.size()
	switch {
	case len(f.Start) > 0 && len(f.End) > 0 && f.LengthAt == nil:
		c.From = len(f.Start)
		if f.Tail == 0 {
			f.Tail = c.size()
		}
	case len(f.End) > 0:
		c.At -= len(f.End)
	}
	return c
}

// LowFirst sets the order of the two bytes of the check.
func (c *Check) LowFirst(low bool) { c.Swapped = low != (c.Kind == CRC16 || c.Kind == X25) }

// place is a place from the first byte of a frame of so many.
func place(at, size int) int {
	if at < 0 {
		return size + at
	}
	return at
}

var errShort = errors.New("the frame is too short for its check")

// places are where the check of a frame is and over what.
func (c *Check) places(size int) (from, to, at int, err error) {
	from, at = place(c.From, size), place(c.At, size)
	if to = at; c.To != 0 {
		to = place(c.To, size)
	}
	if from < 0 || to < from || to > size || at < 0 || at+c.size() > size {
		return 0, 0, 0, errShort
	}
	return from, to, at, nil
}

// Verify reports whether the check of a frame is right.
func (c *Check) Verify(frame []byte) bool {
	from, to, at, err := c.places(len(frame))
	if err != nil {
		return false
	}
	stands := frame[at : at+c.size()]
	var is uint64
	if c.Hex {
		if is, err = strconv.ParseUint(string(stands), 16, 16); err != nil || stands[0] == '+' {
			return false
		}
	} else {
		for _, b := range stands {
			is = is<<8 | uint64(b)
		}
	}
	return uint16(is) == c.value(frame[from:to]) && (c.Kind != EAN || is != 0)
}

// value is the check of some bytes as it is written, the high byte first.
func (c *Check) value(b []byte) uint16 {
	sum := c.Kind.sum(b)
	low := c.Kind == CRC16 || c.Kind == X25
	if c.Kind.bytes() == 2 && low != c.Swapped {
		sum = sum<<8 | sum>>8
	}
	return sum
}

// put writes the check of a frame to its place.
func (c *Check) put(frame []byte) error {
	from, to, at, err := c.places(len(frame))
	if err != nil {
		return err
	}
	v := c.value(frame[from:to])
	if c.Hex {
		copy(frame[at:], fmt.Sprintf("%0*X", c.size(), v))
		return nil
	}
	for i := range c.size() {
		frame[at+i] = byte(v >> (8 * (c.size() - 1 - i)))
	}
	return nil
}
