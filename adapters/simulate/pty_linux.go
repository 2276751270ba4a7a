package simulate

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// A PTY is a serial line without a wire: what is written to the port at Path is
// read here, and the other way round. The port is there until Close.
type PTY struct {
	Path   string
	master *os.File
	slave  *os.File // keeps the line up while nobody has the port open
}

// OpenPTY makes a line.
func OpenPTY() (p *PTY, err error) {
	p = &PTY{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("cannot make a serial line: %w", err), p.Close())
		}
	}()
	if p.master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
		return p, err
	}
	raw, err := p.master.SyscallConn()
	if err != nil {
		return p, err
	}
	var number int
	var failed error
	if err := raw.Control(func(fd uintptr) {
		if failed = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); failed == nil {
			number, failed = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	}); err != nil || failed != nil {
		return p, errors.Join(err, failed)
	}
	p.Path = fmt.Sprintf("/dev/pts/%d", number)
	if p.slave, err = os.OpenFile(p.Path, os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return p, err
	}
	return p, p.makeRaw()
}

// makeRaw keeps the terminal from changing what goes through it.
func (p *PTY) makeRaw() error {
	fd := int(p.slave.Fd())
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag |= unix.CS8 | unix.CREAD
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

func (p *PTY) Read(b []byte) (int, error)  { return p.master.Read(b) }
func (p *PTY) Write(b []byte) (int, error) { return p.master.Write(b) }

// Baud is the rate that the port is set to.
func (p *PTY) Baud() (baud int) {
	p.control(func(fd int) {
		if t, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil { // the port's, also from this end
			baud = bauds[t.Cflag&(unix.CBAUD|unix.CBAUDEX)]
		}
	})
	return baud
}

// HangUp hangs the line up, as a driver does whose device is pulled out. It needs
// the right to administer the system.
func (p *PTY) HangUp() error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, p.slave.Fd(), 0x5437, 0) // TIOCVHANGUP
	if errno != 0 {
		return errno
	}
	return nil
}

// control calls f with the descriptor of this end.
func (p *PTY) control(f func(fd int)) {
	if raw, err := p.master.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { f(int(fd)) }) // closed: there is no rate
	}
}

var bauds = map[uint32]int{
	unix.B300: 300, unix.B600: 600, unix.B1200: 1200, unix.B2400: 2400, unix.B4800: 4800, unix.B9600: 9600, unix.B19200: 19200,
	unix.B38400: 38400, unix.B57600: 57600, unix.B115200: 115200, unix.B230400: 230400, unix.B460800: 460800, unix.B921600: 921600,
}

// Close takes the line away. Whoever has the port open gets errors.
func (p *PTY) Close() error {
	var errs []error
	for _, f := range []*os.File{p.master, p.slave} {
		if f != nil {
			if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

var _ io.ReadWriteCloser = (*PTY)(nil)
