package log

import (
	"bytes"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
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

// Kept says whether there is a hardware clock that agrees with the wall clock. A PC
// always has one, and a virtual one gets its host's time; what runs down starts in
// the past, and is not believed for that.
func (c SystemClock) Kept() bool {
	return runtime.GOARCH == "amd64" || runtime.GOARCH == "386" || hardwareAgrees("/sys/class/rtc", c.Now())
}

// hardwareAgrees looks for a clock that does, in a folder like that of the kernel
// (Documentation/ABI/testing/sysfs-class-rtc). One without a battery does not. It may
// count local time, which is up to 14 hours off.
func hardwareAgrees(dir string, wall time.Time) bool {
	all, _ := filepath.Glob(filepath.Join(dir, "rtc*", "since_epoch"))
	for _, path := range all {
		p, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		s, err := strconv.ParseInt(string(bytes.TrimSpace(p)), 10, 64)
		if err == nil && wall.Sub(time.Unix(s, 0)).Abs() <= 14*time.Hour+time.Minute {
			return true
		}
	}
	return false
}
