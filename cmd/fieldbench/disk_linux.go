package main

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// datasync waits until what was written to a file is on the disk.
func datasync(f *os.File) error { return syscall.Fdatasync(int(f.Fd())) }

// deviceOf is the number of the device that holds a folder, as in /sys/dev/block.
func deviceOf(dir string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)), nil
}
