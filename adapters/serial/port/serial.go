//go:build linux || windows

package port

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tarm/serial"
)

// The library's reads end after a tenth of a second at the earliest, with nothing
// and io.EOF; so do those of a port that is gone, but at once.
const (
	serialWait = 100 * time.Millisecond
	serialGone = serialWait / 2
	goneAfter  = 3 // reads in a row that end at once
)

const (
	chunkSize = 4096 // what the kernel keeps at most
	chunks    = 64   // that wait to be read
)

// writeWait is how long a device that takes nothing is waited for, beside the time
// that the line needs.
const writeWait = 5 * time.Second

// serialPort is a port that is read in the background, as its reads know no
// deadline.
type serialPort struct {
	path     string
	settings Settings
	port     *serial.Port
	hold     io.Closer // what keeps others off the port
	chunks   chan []byte
	stop     chan struct{}
	reader   sync.WaitGroup
	failed   error // set before chunks is closed
	lost     atomic.Uint64
	taking   atomic.Bool // what is no longer the kernel's may not be in chunks yet
	pending  []byte
	timer    *time.Timer
	sent     time.Time // when all that was written has left the line
}

// Supported reports whether there are serial ports on this system: nil, or what to do.
func Supported() error { return nil }

// Open opens a serial port for us alone. What had come before is dropped. The
// settings must be good.
func Open(path string, s Settings) (Port, error) {
	hold, err := holdPort(path, s.RS485)
	if err != nil {
		return nil, err
	}
	p := &serialPort{path: path, settings: s, hold: hold, timer: time.NewTimer(0)}
	if err := p.open(); err != nil {
		return nil, errors.Join(err, hold.Close())
	}
	return p, nil
}

func (p *serialPort) open() error {
	s := &p.settings
	sp, err := serial.OpenPort(&serial.Config{
		Name: p.path, Baud: s.Baud, ReadTimeout: serialWait, Size: byte(s.DataBits),
		Parity:   map[string]serial.Parity{"none": serial.ParityNone, "even": serial.ParityEven, "odd": serial.ParityOdd}[s.Parity],
		StopBits: map[int]serial.StopBits{1: serial.Stop1, 2: serial.Stop2}[s.StopBits],
	})
	if err != nil {
		return portError(p.path, err)
	}
	if err := sp.Flush(); err != nil {
		return errors.Join(portError(p.path, err), sp.Close())
	}
	p.port, p.failed, p.pending = sp, nil, nil
	p.chunks, p.stop = make(chan []byte, chunks), make(chan struct{})
	p.reader.Go(p.readAll)
	return nil
}

func (p *serialPort) readAll() {
	defer close(p.chunks)
	buf := make([]byte, chunkSize)
	atOnce := 0
	for {
		began := time.Now()
		var n int
		var err error
		if awaitHeld(p.hold, serialWait) {
			p.taking.Store(heldPolls)
			n, err = p.port.Read(buf)
		}
		switch {
		case n > 0:
			atOnce = 0
			if !p.pass(slices.Clone(buf[:n])) {
				return
			}
			p.taking.Store(false)
			if p.settings.Gather > 0 && n < chunkSize/4 && !p.gather() {
				return
			}
		case err == nil || err == io.EOF:
			if atOnce++; time.Since(began) >= serialGone {
				atOnce = 0
			}
			p.taking.Store(false)
			if atOnce >= goneAfter {
				p.failed = ErrGone
				return
			}
		default:
			p.failed = fmt.Errorf("%w: %w", ErrGone, err)
			return
		}
		select {
		case <-p.stop:
			return
		default:
		}
	}
}

// pass hands a chunk over, and reports whether to go on. While it has to wait, the
// kernel may have to drop what comes.
func (p *serialPort) pass(chunk []byte) bool {
	select {
	case p.chunks <- chunk:
		return true
	default:
	}
	p.lost.Add(1)
	select {
	case p.chunks <- chunk:
		return true
	case <-p.stop:
		return false
	}
}

// gather lets more come, and reports whether to go on.
func (p *serialPort) gather() bool {
	t := time.NewTimer(p.settings.Gather)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-p.stop:
		return false
	}
}

func (p *serialPort) overruns() uint64 { return p.lost.Load() }

func (p *serialPort) Read(b []byte, until time.Time) (int, error) {
	if len(p.pending) == 0 {
		p.timer.Reset(time.Until(until))
		for len(p.pending) == 0 {
			select {
			case chunk, ok := <-p.chunks:
				if !ok {
					return 0, p.gone()
				}
				p.pending = chunk
			case <-p.timer.C:
				if p.silent() || time.Since(until) > serialWait {
					return 0, nil
				}
				p.timer.Reset(time.Millisecond) // it came in time, and the reader is late
			}
		}
	}
	n := copy(b, p.pending)
	p.pending = p.pending[n:]
	return n, nil
}

func (p *serialPort) gone() error {
	if p.failed == nil {
		return ErrGone
	}
	return p.failed
}

// silent reports whether nothing is on its way from the kernel. On a busy machine
// that is not the same as that nothing has arrived here.
func (p *serialPort) silent() bool {
	return heldWaiting(p.hold) == 0 && !p.taking.Load() && len(p.chunks) == 0
}

// Write writes through the second descriptor where it can, as the library's writes
// know no deadline either: a USB device may take nothing for ever.
func (p *serialPort) Write(b []byte) error {
	now := time.Now()
	if p.sent.Before(now) {
		p.sent = now
	}
	p.sent = p.sent.Add(time.Duration(len(b)) * p.settings.Char())
	if done, err := writeHeld(p.hold, b, p.sent.Add(writeWait)); done {
		if errors.Is(err, errTakesNothing) {
			return fmt.Errorf("%s: %w; check its cable and flow control", p.path, err)
		}
		return err
	}
	for len(b) > 0 {
		n, err := p.port.Write(b)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrGone, err)
		}
		b = b[n:]
	}
	return nil
}

var errTakesNothing = errors.New("the device takes nothing")

func (p *serialPort) setBaud(baud int) error {
	if baud == p.settings.Baud {
		return nil
	}
	time.Sleep(time.Until(p.sent) + p.settings.Char())
	s := p.settings
	s.Baud = baud
	if err := s.Check(); err != nil {
		return err
	}
	p.settings.Baud = baud // what the reader looks at stays
	if done, err := setHeldBaud(p.hold, baud); done {
		return err
	}
	close(p.stop)
	p.reader.Wait()
	if err := p.port.Close(); err != nil {
		return err
	}
	return p.open()
}

// Close waits for the read under way, a tenth of a second at most.
func (p *serialPort) Close() error {
	close(p.stop)
	p.reader.Wait()
	p.timer.Stop()
	return errors.Join(p.port.Close(), p.hold.Close())
}
