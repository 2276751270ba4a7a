package modbus

import (
	"errors"
	"fmt"

	"github.com/fieldferry/fieldferry/adapters/serial/port"
)

// Line says how a serial port is set. The zero value is 19200 baud, 8 data bits,
// even parity and 1 stop bit: Modbus over Serial Line 1.02 §2.5.1.
type Line = port.Settings

// RS485 is how the kernel switches the direction of a line.
type RS485 = port.RS485

func fill(l *Line) error {
	if l.Baud == 0 {
		l.Baud = 19200
	}
	if l.DataBits == 0 {
		l.DataBits = 8
	}
	if l.Parity == "" {
		l.Parity = "even"
	}
	if l.StopBits == 0 {
		l.StopBits = 1
	}
	switch {
	case l.Baud < 0:
		return errors.New("baud must not be negative")
	case l.DataBits != 8:
		return errors.New("a line of RTU frames has 8 data bits")
	case l.Parity != "none" && l.Parity != "even" && l.Parity != "odd":
		return fmt.Errorf("there is no parity %q", l.Parity)
	case l.StopBits != 1 && l.StopBits != 2:
		return errors.New("stop bits are 1 or 2")
	}
	return nil
}
