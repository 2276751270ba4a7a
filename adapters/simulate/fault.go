package simulate

import (
	"io"
	"time"
)

// A Fault is what is wrong with a unit's answers. What it combines, happens
// together: {Truncate: 5, Hangup: true} closes the connection in the middle of
// an answer.
type Fault struct {
	Times int // it goes away after so many requests; 0 is never

	Dead      bool          // there is no answer
	Exception byte          // the answer is this exception; 0 is none
	Delay     time.Duration // before the answer; the connection waits, as a serial line behind it would
	Late      bool          // the connection does not wait for Delay: the answer comes between others

	WrongUnit        bool // the answer names another unit,
	WrongTransaction bool // another request (not on a line),
	WrongFunction    bool // another function
	WrongCRC         bool // its checksum is wrong (on a line)
	Noise            bool // bytes that are none of it come before, in and behind it (of a Talker)
	Duplicate        bool // it comes twice
	ByteByByte       bool // it comes one byte at a time
	Truncate         int  // only its first bytes are sent; 0 is all of it
	Hangup           bool // the connection is closed after it
}

// spoil makes the wrong answer of a right one, which is a whole frame of Modbus
// TCP.
func (f *Fault) spoil(frame []byte) []byte {
	if f.WrongTransaction {
		frame[1]++
	}
	if f.WrongUnit {
		frame[6]++
	}
	if f.WrongFunction {
		frame[7] ^= 1
	}
	return f.cut(frame)
}

// spoilLine does so with a frame of a line that has no checksum yet.
func (f *Fault) spoilLine(frame []byte) []byte {
	if f.WrongUnit {
		frame[0]++
	}
	if f.WrongFunction {
		frame[1] ^= 1
	}
	frame = appendCRC(frame)
	if f.WrongCRC {
		frame[len(frame)-1]++
	}
	return f.cut(frame)
}

func (f *Fault) cut(frame []byte) []byte {
	if f.Truncate > 0 {
		frame = frame[:min(f.Truncate, len(frame))]
	}
	if f.Duplicate {
		frame = append(frame, frame...)
	}
	return frame
}

// send writes a frame in the pieces that the fault has it in.
func (f *Fault) send(w io.Writer, frame []byte) error {
	if !f.ByteByByte {
		_, err := w.Write(frame)
		return err
	}
	for i := range frame {
		if _, err := w.Write(frame[i : i+1]); err != nil {
			return err
		}
	}
	return nil
}
