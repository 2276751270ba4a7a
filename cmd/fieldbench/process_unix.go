//go:build unix

package main

import (
	"os"
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

// freeze stops a process in its tracks, and thaw has it go on.
func freeze(p *os.Process) { _ = p.Signal(unix.SIGSTOP) }
func thaw(p *os.Process)   { _ = p.Signal(unix.SIGCONT) }
