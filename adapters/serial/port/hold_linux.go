package port

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// holdPort keeps a serial port for us alone and sets how the kernel switches its
// direction. The file descriptor that does so stays open as long as the port.
func holdPort(path string, r *RS485) (io.Closer, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, portError(path, err)
	}
	fd := int(f.Fd())
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s is in use by another program; `fuser -v %s` names it", path, path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // Fd has changed it
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	if r != nil {
		if err := setRS485(fd, r); err != nil {
			f.Close()
			return nil, fmt.Errorf("%s: its driver cannot switch the direction of an RS485 line; leave rs485 out if the adapter does so itself: %w", path, err)
		}
	}
	return &held{f, fd}, nil
}

// held is a second descriptor of a port.
type held struct {
	*os.File
	fd int
}

// heldPolls says that awaitHeld waits.
const heldPolls = true

// serialRS485 is struct serial_rs485 of linux/serial.h.
type serialRS485 struct {
	flags, before, after uint32 // the delays in ms
	_                    [5]uint32
}

const (
	rs485Enabled    = 1 << 0
	rs485RTSOnSend  = 1 << 1
	rs485RTSAfter   = 1 << 2
	ioctlSetRS485   = 0x542F
	rs485Resolution = time.Millisecond
)

func setRS485(fd int, r *RS485) error {
	s := serialRS485{flags: rs485Enabled, before: roundUp(r.Before), after: roundUp(r.After)}
	if r.RTS {
		s.flags |= rs485RTSOnSend
	} else {
		s.flags |= rs485RTSAfter
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ioctlSetRS485, uintptr(unsafe.Pointer(&s))); errno != 0 {
		return errno
	}
	return nil
}

func roundUp(d time.Duration) uint32 { return uint32((d + rs485Resolution - 1) / rs485Resolution) }

// portError says what to do about a port that cannot be opened.
func portError(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		group := "dialout"
		if info, serr := os.Stat(path); serr == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				if g, gerr := user.LookupGroupId(strconv.Itoa(int(st.Gid))); gerr == nil {
					group = g.Name
				}
			}
		}
		return fmt.Errorf("%w; add the user to the group of the port: `sudo usermod -aG %s $USER`, and log in again", err, group)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; `ls /dev/serial/by-id` shows the ports that are there", err)
	case errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%s: %w; it may be no serial port", path, err)
	}
	return err
}

// setHeldBaud changes the rate of a port that is open: it is the port's, whichever
// descriptor it is set through.
func setHeldBaud(hold io.Closer, baud int) (done bool, err error) {
	fd := hold.(*held).fd
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return true, fmt.Errorf("%w: %w", ErrGone, err)
	}
	rate := baudBits[slices.Index(Rates, baud)]
	t.Cflag = t.Cflag&^(unix.CBAUD|unix.CBAUDEX) | rate
	t.Ispeed, t.Ospeed = rate, rate
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return true, fmt.Errorf("cannot change to %d baud: %w", baud, err)
	}
	return true, nil
}

// baudBits are those of the Rates.
var baudBits = []uint32{
	unix.B50, unix.B75, unix.B110, unix.B134, unix.B150, unix.B200, unix.B300, unix.B600, unix.B1200, unix.B1800, unix.B2400,
	unix.B4800, unix.B9600, unix.B19200, unix.B38400, unix.B57600, unix.B115200, unix.B230400, unix.B460800, unix.B500000,
	unix.B576000, unix.B921600, unix.B1000000, unix.B1152000, unix.B1500000, unix.B2000000, unix.B2500000, unix.B3000000,
	unix.B3500000, unix.B4000000,
}

// awaitHeld waits until there is something to read or to know, or for a while.
func awaitHeld(hold io.Closer, d time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(hold.(*held).fd), Events: unix.POLLIN}}
	for until := time.Now().Add(d); ; {
		n, err := unix.Poll(fds, max(0, int(time.Until(until)/time.Millisecond)))
		if !errors.Is(err, unix.EINTR) {
			return n != 0 // an error too: the read says which
		}
	}
}

// heldWaiting is how many bytes the kernel has for us.
func heldWaiting(hold io.Closer) int {
	n, err := unix.IoctlGetInt(hold.(*held).fd, unix.TIOCINQ)
	if err != nil {
		return 0
	}
	return n
}

// writeHeld writes all of b, if the device takes it in time.
func writeHeld(hold io.Closer, b []byte, until time.Time) (done bool, err error) {
	fd := hold.(*held).fd
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		switch {
		case n > 0:
			b = b[n:]
			continue
		case err == nil, errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		default:
			return true, fmt.Errorf("%w: %w", ErrGone, err)
		}
		left := time.Until(until)
		if left <= 0 {
			return true, errTakesNothing
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if _, err := unix.Poll(fds, max(1, int(left/time.Millisecond))); err != nil && !errors.Is(err, unix.EINTR) {
			return true, fmt.Errorf("%w: %w", ErrGone, err)
		}
	}
	return true, nil
}
