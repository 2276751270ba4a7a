package serial

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"time"
)

// maxFrame is the longest frame of a device that does not say.
const maxFrame = 1024

// A Frame says where a message begins and ends. It ends at End, after Length
// bytes, or as the bytes at LengthAt say; or when nothing came for Idle, which may
// also end one that has an End.
type Frame struct {
	Start  []byte // what it begins with
	End    []byte // what it ends with
	Tail   int    // bytes behind End that belong to it
	Escape []byte // makes the byte behind it one of the message; one byte
	Invert byte   // that byte was changed by exclusive or with this

	Length   int
	LengthAt *LengthAt
	Idle     time.Duration

	Max   int    // bytes, with all that belongs to it; 0 is 1024
	Check *Check // nil: there is none
}

// LengthAt is where a frame says how long it is.
type LengthAt struct {
	At   int  // from its first byte
	Size int  // bytes: 1 or 2
	Low  bool // the low byte first
	Plus int  // what is to be added to make it the length of the whole frame
}

func (f *Frame) fill() error {
	if f.Max == 0 {
		f.Max = max(maxFrame, f.Length)
	}
	switch {
	case len(f.End) == 0 && f.Length == 0 && f.LengthAt == nil && f.Idle == 0:
		return errors.New("the frame has no end")
	case f.Length > 0 && f.Length < len(f.Start):
		return errors.New("the frame is shorter than its start")
	case f.Length > f.Max || f.Length < 0 || f.Max < 1 || f.Tail < 0 || f.Idle < 0:
		return errors.New("the frame is longer than its longest, or has a negative length")
	case len(f.Escape) > 1 || len(f.Escape) == 1 && (len(f.Start) == 0 || len(f.End) == 0):
		return errors.New("an escape is one byte, for frames with a start and an end")
	case f.LengthAt != nil && (f.LengthAt.At < 0 || f.LengthAt.Size < 1 || f.LengthAt.Size > 2):
		return errors.New("a length stands in one or two bytes of the frame")
	}
	return nil
}

// framer cuts what comes into frames.
//
// When it is not known what came before, a frame without a start is only believed
// behind an end, or behind a silence: what comes first may be the rest of one. A
// frame with a wrong check is looked into for the start of another, or byte by
// byte if frames have no start.
type framer struct {
	Frame
	buf     []byte
	synced  bool // the first byte of buf begins a frame, as far as silence and ends can tell
	suspect int  // so many bytes of buf are of a frame that was told of already

	whole []byte // the frame that next returned last, with its escapes

	junk uint64 // bytes that were no part of a frame
}

// outcome is what a framer made of what came.
type outcome uint8

const (
	needMore outcome = iota
	found            // a frame whose check, if any, is right
	wrong            // its check is wrong
	tooLong          // it has no end within Max bytes, or says that it is longer
	cut              // it stops in the middle
)

func newFramer(f Frame) *framer { return &framer{Frame: f} }

// reset forgets what came; silence says that nothing comes at the moment, so that
// what comes next begins a frame.
func (f *framer) reset(silence bool) {
	f.buf, f.suspect = f.buf[:0], 0
	f.synced = silence
}

func (f *framer) add(b []byte) { f.buf = append(f.buf, b...) }

// next returns the next frame of what came, or what was dropped instead of one; it
// is valid until add or reset is called. silence says that nothing came for as long
// as a frame may pause.
func (f *framer) next(silence bool) (frame []byte, o outcome) {
	for {
		if len(f.Start) > 0 {
			f.toStart()
		}
		if len(f.buf) == 0 {
			f.synced = f.synced || silence
			return nil, needMore
		}
		size, o := f.size(silence)
		if o == needMore && !silence {
			return nil, needMore
		}
		if o == found {
			if frame, o = f.judge(size, silence); o == found {
				return frame, o
			}
		} else {
			frame, o = f.giveUp(o, silence)
		}
		if o != needMore { // and else it was told of before
			return frame, o
		}
	}
}

// slides reports whether a frame may begin at any byte.
func (f *framer) slides() bool { return len(f.Start) > 0 || f.byLength() && f.Check != nil }

func (f *framer) byLength() bool { return f.Length > 0 || f.LengthAt != nil }

// giveUp drops what has no end, as far as no frame can begin in it.
func (f *framer) giveUp(o outcome, silence bool) ([]byte, outcome) {
	if o == needMore {
		o = cut
	}
	if f.slides() {
		return f.slide(len(f.buf), o)
	}
	told := !f.synced
	size := len(f.buf)
	f.synced = silence
	if i := bytes.Index(f.buf, f.End); i >= 0 && len(f.End) > 0 {
		f.synced, size = true, i+len(f.End)
	}
	dropped := f.drop(size)
	if told {
		return nil, needMore
	}
	return dropped, o
}

// slide drops the first byte of a frame of so many that is none.
func (f *framer) slide(size int, o outcome) ([]byte, outcome) {
	frame := f.buf[:size]
	told := f.suspect > 0
	f.suspect = max(f.suspect, size)
	f.drop(1)
	if told {
		return nil, needMore
	}
	return frame, o
}

// judge takes or drops bytes that may be a frame.
func (f *framer) judge(size int, silence bool) ([]byte, outcome) {
	if !f.synced && !f.slides() {
		if !f.byLength() {
			f.synced = true // it ended, by an end or by silence
			f.drop(size)
			return nil, needMore
		}
		f.synced = silence
		f.drop(len(f.buf))
		return nil, needMore
	}
	f.whole = f.buf[:size]
	frame := f.plain(f.whole)
	if f.Check != nil && !f.Check.Verify(frame) {
		if f.slides() {
			return f.slide(size, wrong)
		}
		return f.drop(size), wrong
	}
	f.synced = !f.byLength() // a byte that was lost in what follows is not noticed otherwise
	f.suspect = 0
	f.buf = f.buf[size:]
	return frame, found
}

// refuse says that the frame that next has returned is none. If it has no check and
// a start, another may begin in it.
func (f *framer) refuse() {
	if len(f.Start) == 0 || f.Check != nil || len(f.whole) == 0 {
		return
	}
	if i := bytes.Index(f.whole[1:], f.Start); i >= 0 {
		f.suspect = len(f.whole) - 1 - i
		f.buf = append(slices.Clone(f.whole[1+i:]), f.buf...)
	}
	f.whole = nil
}

// drop takes bytes away.
func (f *framer) drop(n int) []byte {
	dropped := f.buf[:n]
	f.buf = f.buf[n:]
	f.suspect = max(0, f.suspect-n)
	f.junk += uint64(n)
	return dropped
}

// toStart drops what is before the first start, or what may be its beginning.
func (f *framer) toStart() {
	i := bytes.Index(f.buf, f.Start)
	if i < 0 {
		i = len(f.buf)
		for n := min(len(f.Start)-1, len(f.buf)); n > 0; n-- {
			if bytes.HasSuffix(f.buf, f.Start[:n]) {
				i -= n
				break
			}
		}
	}
	f.drop(i)
}

// size returns how long the frame is that buf begins with.
func (f *framer) size(silence bool) (int, outcome) {
	switch {
	case len(f.buf) < len(f.Start):
		return 0, needMore
	case f.Length > 0:
		return f.within(f.Length)
	case f.LengthAt != nil:
		l := f.LengthAt
		if len(f.buf) < l.At+l.Size {
			return 0, needMore
		}
		n := int(f.buf[l.At])
		switch {
		case l.Size == 2 && l.Low:
			n = int(binary.LittleEndian.Uint16(f.buf[l.At:]))
		case l.Size == 2:
			n = int(binary.BigEndian.Uint16(f.buf[l.At:]))
		}
		if n += l.Plus; n < max(l.At+l.Size, len(f.Start)+len(f.End)) || n > f.Max {
			return 0, tooLong
		}
		if size, o := f.within(n); o != found || len(f.End) == 0 || bytes.HasSuffix(f.buf[:size], f.End) {
			return size, o
		}
		return 0, tooLong
	}
	if len(f.End) > 0 {
		size, o := f.toEnd()
		if o != needMore || f.Idle == 0 {
			return size, o
		}
	}
	switch {
	case len(f.buf) > f.Max:
		return 0, tooLong
	case silence && f.Idle > 0:
		return len(f.buf), found
	}
	return 0, needMore
}

func (f *framer) within(size int) (int, outcome) {
	if len(f.buf) < size {
		return 0, needMore
	}
	return size, found
}

// toEnd looks for the end of the frame that buf begins with.
func (f *framer) toEnd() (int, outcome) {
	size := -1
	if len(f.Escape) == 0 {
		if i := bytes.Index(f.buf[len(f.Start):], f.End); i >= 0 {
			size = len(f.Start) + i + len(f.End)
		}
	} else {
		for i := len(f.Start); i < len(f.buf); i++ {
			rest := f.buf[i:]
			switch {
			case bytes.HasPrefix(rest, f.End):
				size = i + len(f.End)
			case bytes.HasPrefix(rest, f.Start): // the last one was cut
				return 0, cut
			case rest[0] == f.Escape[0]:
				i++
				continue
			}
			if size >= 0 {
				break
			}
		}
	}
	switch {
	case size+f.Tail > f.Max || size < 0 && len(f.buf) > f.Max:
		return 0, tooLong
	case size < 0 || len(f.buf) < size+f.Tail:
		return 0, needMore
	}
	return size + f.Tail, found
}

// plain is a frame without its escapes.
func (f *framer) plain(whole []byte) []byte {
	if len(f.Escape) == 0 {
		return whole
	}
	from, to := len(f.Start), len(whole)-f.Tail-len(f.End)
	plain := slices.Clone(whole[:from])
	for i := from; i < to; i++ {
		c := whole[i]
		if c == f.Escape[0] && i+1 < to {
			i++
			c = whole[i] ^ f.Invert
		}
		plain = append(plain, c)
	}
	return append(plain, whole[to:]...)
}

// text is what a frame says: all of it but its start, its end and what is behind.
func (f *Frame) text(frame []byte) []byte {
	text := bytes.TrimPrefix(frame, f.Start)
	if f.Tail > 0 && len(text) >= f.Tail {
		text = text[:len(text)-f.Tail]
	}
	return bytes.TrimSuffix(text, f.End)
}
