package modbus

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/tarm/serial"
)

// Line says how a serial port is set. The zero value is 19200 baud, 8 data bits,
// even parity and 1 stop bit: Modbus over Serial Line 1.02 §2.5.1.
type Line struct {
	Baud     int
	DataBits int
	Parity   string // "none", "even" or "odd"
	StopBits int    // 1 or 2
	RS485    *RS485 // nil: the transceiver switches itself
}

// RS485 is how the kernel switches the direction of a line.
type RS485 struct {
	RTS           bool // the level of RTS while sending
	Before, After time.Duration
}

func (l *Line) fill() error {
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

// The library's reads end after a tenth of a second at the earliest, with nothing
// and io.EOF; so do those of a port that is gone, but at once.
const (
	serialWait = 100 * time.Millisecond
	serialGone = serialWait / 2
	goneAfter  = 3 // reads in a row that end at once
)

// serialPort is a port that is read in the background, as its reads know no
// deadline.
type serialPort struct {
	port    *serial.Port
	hold    io.Closer // what keeps others off the port
	chunks  chan []byte
	stop    chan struct{}
	reader  sync.WaitGroup
	failed  error // set before chunks is closed
	pending []byte
	timer   *time.Timer
}

func openSerial(path string, l Line) (port, error) {
	hold, err := holdPort(path, l.RS485)
	if err != nil {
		return nil, err
	}
	c := &serial.Config{
		Name: path, Baud: l.Baud, ReadTimeout: serialWait, Size: byte(l.DataBits),
		Parity:   map[string]serial.Parity{"none": serial.ParityNone, "even": serial.ParityEven, "odd": serial.ParityOdd}[l.Parity],
		StopBits: map[int]serial.StopBits{1: serial.Stop1, 2: serial.Stop2}[l.StopBits],
	}
	sp, err := serial.OpenPort(c)
	if err != nil {
		return nil, errors.Join(portError(path, err), hold.Close())
	}
	p := &serialPort{port: sp, hold: hold, chunks: make(chan []byte, 64), stop: make(chan struct{}), timer: time.NewTimer(0)}
	p.reader.Go(p.readAll)
	return p, nil
}

var errGone = errors.New("the serial port is gone")

func (p *serialPort) readAll() {
	defer close(p.chunks)
	buf := make([]byte, maxRTU)
	atOnce := 0
	for {
		began := time.Now()
		n, err := p.port.Read(buf)
		switch {
		case n > 0:
			atOnce = 0
			select {
			case p.chunks <- append([]byte(nil), buf[:n]...):
			case <-p.stop:
				return
			}
		case err == nil || err == io.EOF:
			if atOnce++; time.Since(began) >= serialGone {
				atOnce = 0
			}
			if atOnce >= goneAfter {
				p.failed = errGone
				return
			}
		default:
			p.failed = fmt.Errorf("%w: %w", errGone, err)
			return
		}
		select {
		case <-p.stop:
			return
		default:
		}
	}
}

func (p *serialPort) read(b []byte, until time.Time) (int, error) {
	if len(p.pending) == 0 {
		p.timer.Reset(time.Until(until))
		select {
		case chunk, ok := <-p.chunks:
			if !ok {
				if p.failed == nil {
					return 0, errGone
				}
				return 0, p.failed
			}
			p.pending = chunk
		case <-p.timer.C:
			return 0, nil
		}
	}
	n := copy(b, p.pending)
	p.pending = p.pending[n:]
	return n, nil
}

func (p *serialPort) write(b []byte) error {
	for len(b) > 0 {
		n, err := p.port.Write(b)
		if err != nil {
			return fmt.Errorf("%w: %w", errGone, err)
		}
		b = b[n:]
	}
	return nil
}

// close waits for the read under way, a tenth of a second at most.
func (p *serialPort) close() error {
	close(p.stop)
	p.reader.Wait()
	p.timer.Stop()
	return errors.Join(p.port.Close(), p.hold.Close())
}
