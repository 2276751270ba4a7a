//go:build !unix

package log

import (
	"math"
	"os"
)

// DiskBytes is the length of a file.
func DiskBytes(path string) int64 {
	fi, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return fi.Size()
}

// mapFile reads a file.
func mapFile(path string) (p []byte, unmap func() error, err error) {
	p, err = os.ReadFile(path)
	return p, func() error { return nil }, err
}

// Free is the room that is left on the disk of a folder; it is not known here.
func Free(dir string) (int64, error) { return math.MaxInt64, nil }
