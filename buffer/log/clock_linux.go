package log

import (
	"hash/fnv"
	"math/rand/v2"
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
		return rand.Uint64() | 1 // this process takes itself for a boot
	}
	h := fnv.New64a()
	h.Write(id)
	return h.Sum64() | 1
})

func (SystemClock) Uptime() (time.Duration, uint64) {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0, bootID() // older than Linux 2.6.39
	}
	return time.Duration(ts.Nano()), bootID()
}

// Synced asks the kernel (adjtimex(2)): STA_UNSYNC is cleared by whatever
// disciplines the clock, and set again when that is silent for long.
func (SystemClock) Synced() bool {
	var t unix.Timex
	_, err := unix.Adjtimex(&t)
	return err == nil && t.Status&unix.STA_UNSYNC == 0
}
