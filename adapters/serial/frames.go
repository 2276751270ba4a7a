package serial

import (
	"sync"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

// keptBytes is how much is kept of a frame that did not fit.
const keptBytes = 64

// frames counts the frames of a device.
type frames struct {
	mu     sync.Mutex // guards what follows
	counts adapters.Frames
}

func (f *frames) good() {
	f.mu.Lock()
	f.counts.Good++
	f.mu.Unlock()
}

// other counts a frame that is in order but not one of the device's.
func (f *frames) other(b []byte) { f.bad(&f.counts.Other, "other", b) }

// dropped counts what a framer dropped.
func (f *frames) dropped(o outcome, b []byte) {
	switch o {
	case wrong:
		f.bad(&f.counts.Wrong, "wrong-check", b)
	case tooLong:
		f.bad(&f.counts.TooLong, "too-long", b)
	case cut:
		f.bad(&f.counts.Cut, "cut", b)
	}
}

func (f *frames) bad(counter *uint64, what string, b []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	*counter++
	f.counts.Last = append(f.counts.Last[:0], b[max(0, len(b)-keptBytes):]...)
	f.counts.LastWhat, f.counts.LastTime = what, time.Now()
}

func (f *frames) get() adapters.Frames {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.counts
	c.Last = append([]byte(nil), c.Last...)
	return c
}
