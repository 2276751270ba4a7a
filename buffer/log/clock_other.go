//go:build !linux

package log

import "time"

// SystemClock is the machine's clock. Uptime is known on Linux only; elsewhere
// it is 0 of boot 0.
type SystemClock struct{}

func (SystemClock) Now() time.Time { return time.Now() }

func (SystemClock) Uptime() (time.Duration, uint64) { return 0, 0 }
