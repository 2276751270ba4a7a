//go:build !linux && !windows

package port

import (
	"fmt"
	"runtime"
)

// Supported says that there are no serial ports here, and what to do.
func Supported() error {
	return fmt.Errorf("serial ports cannot be opened on %s, only on Linux and Windows; reach the line through a serial server, as tcp://host:port", runtime.GOOS)
}

// Open fails: the library has no ports here.
func Open(path string, _ Settings) (Port, error) {
	return nil, fmt.Errorf("%s: %w", path, Supported())
}
