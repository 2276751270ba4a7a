//go:build !linux && !windows

package port

import (
	"fmt"
	"runtime"
)

// Open fails: the library has no ports here.
func Open(path string, _ Settings) (Port, error) {
	return nil, fmt.Errorf("%s: serial ports cannot be opened on %s, only on Linux and Windows; reach the line through a serial server, as tcp://host:port", path, runtime.GOOS)
}
