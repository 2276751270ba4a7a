//go:build !unix

package log

import "os"

// diskBytes is the length of a file.
func diskBytes(path string) int64 {
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
