//go:build !linux

package log

import (
	"math/rand/v2"
	"sync"
	"time"
)

// SystemClock is the machine's clock. The uptime is known on Linux only;
// elsewhere each process takes itself for a boot.
type SystemClock struct{}

func (SystemClock) Now() time.Time { return time.Now() }

var process = sync.OnceValues(func() (time.Time, uint64) { return time.Now(), rand.Uint64() | 1 })

func (SystemClock) Uptime() (time.Duration, uint64) {
	began, id := process()
	return time.Since(began), id
}
