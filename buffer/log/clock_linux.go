package log

import (
	"hash/fnv"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// SystemClock is the machine's clock.
type SystemClock struct{}

func (SystemClock) Now() time.Time { return time.Now() }

var bootID = sync.OnceValue(func() uint64 {
	// proc(5), /proc/sys/kernel/random/boot_id
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return 0
	}
	h := fnv.New64a()
	h.Write(id)
	return h.Sum64()
})

func (SystemClock) Uptime() (time.Duration, uint64) {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0, 0
	}
	return time.Duration(ts.Nano()), bootID()
}
