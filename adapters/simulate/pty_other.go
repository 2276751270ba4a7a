//go:build !linux

package simulate

import "errors"

// A PTY is a serial line without a wire. Only Linux has them here.
type PTY struct{ Path string }

// OpenPTY fails.
func OpenPTY() (*PTY, error) {
	return nil, errors.New("serial lines can be simulated on Linux only")
}

func (p *PTY) Read([]byte) (int, error)  { return 0, errors.ErrUnsupported }
func (p *PTY) Write([]byte) (int, error) { return 0, errors.ErrUnsupported }

// Baud is not known.
func (p *PTY) Baud() int { return 0 }

// HangUp fails.
func (p *PTY) HangUp() error { return errors.ErrUnsupported }

// Close does nothing.
func (p *PTY) Close() error { return nil }
