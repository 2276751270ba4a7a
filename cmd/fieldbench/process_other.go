//go:build !unix

package main

import (
	"os"
	"time"
)

// processTime is not known.
func processTime() time.Duration { return 0 }

// There is no way to freeze a process here.
func freeze(*os.Process) {}
func thaw(*os.Process)   {}
