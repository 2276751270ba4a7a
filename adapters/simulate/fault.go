package simulate

import "time"

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
	WrongTransaction bool // another request,
	WrongFunction    bool // another function
	Duplicate        bool // it comes twice
	Truncate         int  // only its first bytes are sent; 0 is all of it
	Hangup           bool // the connection is closed after it
}

// spoil makes the wrong answer of a right one, which is a whole frame.
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
	if f.Truncate > 0 {
		frame = frame[:min(f.Truncate, len(frame))]
	}
	if f.Duplicate {
		frame = append(frame, frame...)
	}
	return frame
}
