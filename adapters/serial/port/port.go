// Package port opens serial ports, and lines that are behind a network connection,
// and reads them with deadlines. It tells a port that is gone from one that is
// silent. It knows no protocol.
//
// Serial ports are those of github.com/tarm/serial, which builds for Linux and
// Windows; elsewhere Open fails and says so.
package port

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// A Port carries the bytes of a line. Its methods are called from one goroutine.
type Port interface {
	// Read takes what is there, or waits for something until then; it returns 0
	// and nil if nothing came.
	Read(p []byte, until time.Time) (int, error)
	// Write sends all of p, or fails; it may block for some seconds.
	Write(p []byte) error
	Close() error
}

// ErrGone is in the error of a serial port that is no longer there.
var ErrGone = errors.New("the serial port is gone")

// Settings are those of a serial port.
type Settings struct {
	Baud     int
	DataBits int    // 5 to 8
	Parity   string // "none", "even" or "odd"
	StopBits int    // 1 or 2
	RS485    *RS485 // nil: the transceiver switches itself

	// Gather is how long a read waits for company after something came, so that a
	// line that never pauses is not read byte by byte. 0 is not at all.
	Gather time.Duration
}

// RS485 is how the kernel switches the direction of a line.
type RS485 struct {
	RTS           bool // the level of RTS while sending
	Before, After time.Duration
}

// Check says what is wrong with the settings.
func (s *Settings) Check() error {
	switch {
	case !slices.Contains(Rates, s.Baud):
		below, above := nearestRates(s.Baud)
		return fmt.Errorf("a port cannot be set to %d baud; the rates next to it are %d and %d", s.Baud, below, above)
	case s.DataBits < 5 || s.DataBits > 8:
		return errors.New("data bits are 5 to 8")
	case s.Parity != "none" && s.Parity != "even" && s.Parity != "odd":
		return fmt.Errorf("there is no parity %q", s.Parity)
	case s.StopBits != 1 && s.StopBits != 2:
		return errors.New("stop bits are 1 or 2")
	}
	return nil
}

// Char is the time that one character takes on the line.
func (s *Settings) Char() time.Duration {
	bits := 1 + s.DataBits + s.StopBits
	if s.Parity != "none" {
		bits++
	}
	return time.Duration(bits) * time.Second / time.Duration(s.Baud)
}

// Rates are the baud rates that the library can set.
var Rates = []int{
	50, 75, 110, 134, 150, 200, 300, 600, 1200, 1800, 2400, 4800, 9600, 19200, 38400, 57600, 115200, 230400, 460800, 500000,
	576000, 921600, 1000000, 1152000, 1500000, 2000000, 2500000, 3000000, 3500000, 4000000,
}

func nearestRates(baud int) (below, above int) {
	i, _ := slices.BinarySearch(Rates, baud)
	return Rates[max(i-1, 0)], Rates[min(i, len(Rates)-1)]
}

// Overruns is how often what came could not be taken in time, so that some of it
// may be lost. It counts from the opening of a serial port, and is 0 for others.
func Overruns(p Port) uint64 {
	if s, ok := p.(interface{ overruns() uint64 }); ok {
		return s.overruns()
	}
	return 0
}

// SetBaud waits until what was written is sent, and changes the rate. Other lines
// than serial ports have a rate that others set: there it does nothing.
func SetBaud(p Port, baud int) error {
	if s, ok := p.(interface{ setBaud(int) error }); ok {
		return s.setBaud(baud)
	}
	return nil
}
