package serial

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

// The checks of "123456789", as catalogues of them have them.
func TestChecks(t *testing.T) {
	digits := []byte("123456789")
	for kind, want := range map[CheckKind]uint16{
		Xor: 0x31, Sum8: 0xDD, LRC: 0x23, CRC16: 0x4B37, CCITT: 0x29B1, Xmodem: 0x31C3, X25: 0x906E,
	} {
		if got := kind.sum(digits); got != want {
			t.Errorf("check %d: %04X, want %04X", kind, got, want)
		}
	}
	if got := checkDigit([]byte("400638133393")); got != '1' {
		t.Errorf("check digit %c", got)
	}
}

// Real frames of devices, field.md §2 and the standards.
func TestChecksOfDevices(t *testing.T) {
	for _, c := range []struct {
		name  string
		check *Check
		frame string
	}{
		{"NMEA 0183", &Check{Kind: Xor, Hex: true, From: 1, To: -5, At: -4}, "$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*47\r\n"},
		{"EN 13757-2", &Check{Kind: Sum8, From: 1, At: -2}, "\x10\x5B\x01\x5C\x16"},
		{"Modbus RTU", NewCheck(CRC16, false, &Frame{Length: 8}), "\x01\x03\x00\x00\x00\x0A\xC5\xCD"},
	} {
		if !c.check.Verify([]byte(c.frame)) {
			t.Errorf("%s: %q is refused", c.name, c.frame)
		}
		from, to, at, err := c.check.places(len(c.frame))
		if err != nil {
			t.Fatal(err)
		}
		for i := range c.frame {
			if (i < from || i >= to) && (i < at || i >= at+c.check.size()) {
				continue
			}
			wrong := []byte(c.frame)
			if wrong[i] ^= 1; c.check.Verify(wrong) {
				t.Errorf("%s: %q is accepted", c.name, wrong)
			}
		}
	}
}

// A check goes where it was put, whatever its form.
func TestCheckPut(t *testing.T) {
	for name, kind := range checkNames {
		for _, hex := range []bool{false, true} {
			for _, low := range []bool{false, true} {
				if kind == EAN && hex {
					continue
				}
				f := Frame{End: []byte("\r\n")}
				c := NewCheck(kind, hex, &f)
				c.LowFirst(low)
				frame := append(bytes.Repeat([]byte("7"), 12+c.size()), "\r\n"...)
				if err := c.put(frame); err != nil || !c.Verify(frame) {
					t.Errorf("%s, hex %v, low first %v: %q %v", name, hex, low, frame, err)
				}
				if frame[3] ^= 3; c.Verify(frame) {
					t.Errorf("%s, hex %v, low first %v: %q is accepted", name, hex, low, frame)
				}
			}
		}
	}
}

// feed gives a framer pieces and notes what it makes of them: frames in angle
// brackets, what it drops by its first letter.
func feed(f *framer, pieces []string) string {
	var b strings.Builder
	for _, p := range pieces {
		silence := p == hush
		if !silence {
			f.add([]byte(p))
		}
		for {
			frame, o := f.next(silence)
			if o == needMore {
				break
			}
			switch o {
			case found:
				fmt.Fprintf(&b, "<%s>", f.text(frame))
			case wrong:
				b.WriteByte('w')
			case tooLong:
				b.WriteByte('l')
			case cut:
				b.WriteByte('c')
			}
		}
	}
	return b.String()
}

// hush is a silence.
const hush = "\xFE"

func TestFramer(t *testing.T) {
	line := Frame{End: []byte("\r\n")}
	stx := Frame{Start: []byte("\x02"), End: []byte("\x03")}
	bcc := stx
	bcc.Check = NewCheck(Xor, false, &bcc)
	dle := Frame{Start: []byte("\x10\x02"), End: []byte("\x10\x03"), Escape: []byte("\x10")}
	slip := Frame{Start: []byte("\x7E"), End: []byte("\x7E"), Escape: []byte("\x7D"), Invert: 0x20}
	fixed := Frame{Length: 4, Idle: time.Millisecond}
	sum := Frame{Length: 4}
	sum.Check = NewCheck(Sum8, false, &sum)
	said := Frame{Start: []byte("\x68"), LengthAt: &LengthAt{At: 1, Size: 1, Plus: 3}, End: []byte("\x16"), Max: 20}
	idle := Frame{Idle: time.Millisecond, Max: 8}
	both := Frame{End: []byte("\r"), Idle: time.Millisecond}
	for _, c := range []struct {
		name   string
		frame  Frame
		synced bool
		pieces []string
		want   string
	}{
		{"lines", line, true, []string{"a\r\nbc\r\nd", "\r", "\n"}, "<a><bc><d>"},
		{"the rest of a line that began before", line, false, []string{"00.5 g\r\n100.5 g\r\n"}, "<100.5 g>"},
		{"a line after silence", line, false, []string{hush, "100.5 g\r\n"}, "<100.5 g>"},
		{"a line that stops", line, true, []string{"10", hush, "20\r\n"}, "c<20>"},
		{"no end", Frame{End: []byte("\n"), Max: 4}, true, []string{"abcdefgh\nxy\n"}, "l<xy>"},
		{"no end for long, and then one", Frame{End: []byte("\n"), Max: 4}, true, []string{"abcde", "fgh", "\nxy\n"}, "l<xy>"},
		{"start and end", stx, false, []string{"junk\x021\x03more\x022", "2\x03"}, "<1><22>"},
		{"a start in a frame", bcc, false, []string{"\x0212\x02x\x03{"}, "w<x>"},
		{"a check behind the end", bcc, false, []string{"\x021\x03", "2", "\x021\x03\x00"}, "<1>w"},
		{"escapes", dle, false, []string{"\x10\x02a\x10\x10b\x10\x10\x03c\x10\x03"}, "<a\x10b\x10\x03c>"},
		{"a start where there can be none", dle, false, []string{"\x10\x02a\x10\x02b\x10\x03"}, "c<b>"},
		{"escapes that change the byte", slip, false, []string{"\x7Ea\x7D\x5E\x7D\x5Db\x7E"}, "<a\x7E\x7Db>"},
		{"a fixed length", fixed, true, []string{"abc", "d", hush, "efgh"}, "<abcd><efgh>"},
		{"a fixed length, a byte lost", fixed, true, []string{"abcd", hush, "efg", hush, "hijk"}, "<abcd>c<hijk>"},
		{"a fixed length, no silence between", fixed, true, []string{"abcdefg", "hijk", hush, "lmno"}, "<abcd><lmno>"},
		{"a fixed length with a check slides", sum, false, []string{"\x09\x09\x01\x02\x03\x06\x01\x01\x01\x03"}, "w<\x01\x02\x03\x06><\x01\x01\x01\x03>"},
		{"a length in the frame", said, false, []string{"\x16\x68\x02ab\x16\x68\x00", "\x16"}, "<\x02ab><\x00>"},
		{"a length that is too much", said, false, []string{"\x68\xFF\x68\x01a\x16"}, "l<\x01a>"},
		{"a length that leads nowhere", said, false, []string{"\x68\x05\x68\x01a\x16", hush}, "c<\x01a>"},
		{"silence ends", idle, true, []string{"ab", "c", hush, "d", hush}, "<abc><d>"},
		{"silence, but listening since the middle", idle, false, []string{"bc", hush, "d", hush}, "<d>"},
		{"silence that does not come", idle, true, []string{"123456789", "0", hush, "x", hush}, "l<x>"},
		{"an end or silence", both, true, []string{"a\rb", hush, "c\r"}, "<a><b><c>"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := c.frame
			if err := f.fill(); err != nil {
				t.Fatal(err)
			}
			for _, bytewise := range []bool{false, true} {
				fr := newFramer(f)
				fr.reset(c.synced)
				pieces := c.pieces
				if bytewise {
					pieces = nil
					for _, p := range c.pieces {
						pieces = append(pieces, strings.Split(latin(p), "")...)
					}
					for i := range pieces {
						pieces[i] = unlatin(pieces[i])
					}
				}
				got := feed(fr, pieces)
				if bytewise && strings.HasPrefix(c.want, "l") {
					got, c.want = strings.TrimLeft(got, "l"), strings.TrimLeft(c.want, "l") // how often depends on the pieces
				}
				if got != c.want {
					t.Errorf("bytewise %v: %q, want %q", bytewise, got, c.want)
				}
			}
		})
	}
}

// latin makes a character of each byte, unlatin the other way round.
func latin(s string) string {
	var b strings.Builder
	for i := range len(s) {
		b.WriteRune(rune(s[i]))
	}
	return b.String()
}

func unlatin(s string) string {
	var b []byte
	for _, r := range s {
		b = append(b, byte(r))
	}
	return string(b)
}

// frameOf makes some frame description of numbers.
func frameOf(shape, start, end, n byte) Frame {
	f := Frame{Max: 1 + int(n)%64}
	if shape&1 != 0 {
		f.Start = []byte{start}
		if shape&2 != 0 {
			f.Start = append(f.Start, end)
		}
	}
	switch shape >> 2 & 3 {
	case 0:
		f.End = []byte{end}
		if shape&128 != 0 {
			f.End = append(f.End, start)
		}
		if len(f.Start) > 0 && shape&64 != 0 {
			f.Escape = []byte{n}
		}
	case 1:
		f.Length = 1 + int(n)%f.Max
	case 2:
		f.LengthAt = &LengthAt{At: int(start % 4), Size: 1 + int(end%2), Plus: int(n % 8), Low: shape&64 != 0}
	case 3:
		f.Idle = time.Millisecond
		if shape&64 != 0 {
			f.End = []byte{end}
		}
	}
	if kind := CheckKind(shape >> 4 & 3); kind > 0 {
		f.Check = NewCheck(kind, n&1 != 0, &f)
	}
	return f
}

// Whatever comes, in whatever pieces: frames are within their bounds, have the marks
// and the check that they must, no byte is in two, and none is kept for ever.
func FuzzFramer(f *testing.F) {
	f.Add(byte(1), byte('$'), byte('\n'), byte(60), byte(3), []byte("$ab\n$$cd\n"))
	f.Add(byte(9), byte(0x68), byte(1), byte(3), byte(1), []byte("\x68\x01\x02\x03\x04"))
	f.Add(byte(12), byte(0), byte(0), byte(9), byte(2), []byte("abc"))
	f.Add(byte(0x41), byte(2), byte(3), byte(16), byte(4), []byte("\x02a\x10\x03b\x03"))
	f.Fuzz(func(t *testing.T, shape, start, end, n, piece byte, data []byte) {
		frame := frameOf(shape, start, end, n)
		if frame.fill() != nil {
			return
		}
		fr := newFramer(frame)
		fr.reset(shape&32 != 0)
		size, plain := 0, 0
		look := func(silence bool) {
			for i := 0; ; i++ {
				if i > 2*len(data)+2 {
					t.Fatal("it never comes to an end")
				}
				b, o := fr.next(silence)
				if o == needMore {
					break
				}
				if o != found {
					continue
				}
				size += len(fr.whole)
				plain += len(b)
				if len(fr.whole) > frame.Max || !bytes.HasPrefix(b, frame.Start) {
					t.Fatalf("%q of %+v", b, frame)
				}
				if frame.Check != nil && !frame.Check.Verify(b) {
					t.Fatalf("%q has a wrong check", b)
				}
				if len(frame.End) > 0 && frame.Idle == 0 && !bytes.HasSuffix(b[:len(b)-frame.Tail], frame.End) {
					t.Fatalf("%q has no end", b)
				}
				fr.text(b)
				if len(b)%3 == 2 {
					whole := len(fr.whole)
					fr.refuse()
					size -= min(whole, len(fr.buf))
				}
			}
		}
		for rest := data; len(rest) > 0; {
			k := min(1+int(piece)%16, len(rest))
			fr.add(rest[:k])
			rest = rest[k:]
			look(false)
		}
		look(true)
		if len(fr.buf) > 0 {
			t.Fatalf("%d bytes are kept after silence", len(fr.buf))
		}
		if size > len(data) || plain > len(data) && len(frame.Escape) == 0 && frame.Check != nil {
			t.Fatalf("frames of %d bytes out of %d", size, len(data))
		}
	})
}
