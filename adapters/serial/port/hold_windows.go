package port

import (
	"errors"
	"io"
	"time"
)

type noHold struct{}

func (noHold) Close() error { return nil }

// holdPort has nothing to do where opening a port keeps others off it.
func holdPort(_ string, r *RS485) (io.Closer, error) {
	if r != nil {
		return nil, errors.New("rs485 is for Linux alone")
	}
	return noHold{}, nil
}

func portError(_ string, err error) error { return err }

// setHeldBaud cannot do so: the port has to be opened anew.
func setHeldBaud(io.Closer, int) (done bool, err error) { return false, nil }

// heldPolls says that awaitHeld does not wait.
const heldPolls = false

// awaitHeld leaves the waiting to the read itself.
func awaitHeld(io.Closer, time.Duration) bool { return true }

// heldWaiting does not know.
func heldWaiting(io.Closer) int { return 0 }

// writeHeld leaves the writing to the library.
func writeHeld(io.Closer, []byte, time.Time) (done bool, err error) { return false, nil }
