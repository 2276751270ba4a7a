//go:build unix

package main

import (
	"time"

	"golang.org/x/sys/unix"
)

// processTime is the processor time that this process has taken.
func processTime() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
