//go:build !unix

package main

import "time"

// processTime is not known.
func processTime() time.Duration { return 0 }
