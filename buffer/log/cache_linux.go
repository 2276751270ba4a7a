package log

import (
	"os"

	"golang.org/x/sys/unix"
)

// forgetCached has the first n bytes of a file be read from the disk again.
func forgetCached(f *os.File, n int64) error {
	if err := unix.Fadvise(int(f.Fd()), 0, n, unix.FADV_DONTNEED); err != nil {
		return &os.PathError{Op: "fadvise", Path: f.Name(), Err: err}
	}
	return nil
}
