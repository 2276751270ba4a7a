//go:build !linux

package main

import (
	"errors"
	"os"
)

// datasync waits until what was written to a file is on the disk.
func datasync(f *os.File) error { return f.Sync() }

// deviceOf is for Linux alone.
func deviceOf(string) (string, error) { return "", errors.ErrUnsupported }
