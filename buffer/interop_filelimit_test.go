//go:build interop

package buffer

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestInteropFileSizeLimit lets no file grow over a limit (setrlimit(2),
// RLIMIT_FSIZE), as a service manager may: one that a generation comes to ends
// it, and one that it cannot begin with is a full disk.
func TestInteropFileSizeLimit(t *testing.T) {
	if os.Getenv(disksEnv) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestInteropFileSizeLimit$", "-test.count=1", "-test.v")
		cmd.Env = append(os.Environ(), disksEnv+"="+t.TempDir())
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	limit := func(n uint64) {
		t.Helper()
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: n, Max: old.Max}); err != nil {
			t.Fatal(err)
		}
	}
	work := os.Getenv(disksEnv)
	f := newFiller(t, filepath.Join(work, "data"), Options{GenerationBytes: 8 << 20})
	limit(6 << 20)
	for f.next < 20<<10 { // 20 MiB
		f.append()
	}
	if n := f.b.Stats().Generations; n < 4 || f.refused > 0 || f.dropped() > 0 {
		t.Errorf("%d generations, %d refused, %d dropped; want none, and what comes next in the next file", n, f.refused, f.dropped())
	}
	limit(200 << 10)
	f.fill()
	limit(old.Cur)
	f.holds(work)
	f.take(len(f.acked) / 2)
	limit(200 << 10)
	f.fill()
	limit(old.Cur)
	t.Logf("%d stored, %d refused; %v after the limit was gone it takes more", f.next-f.refused, f.refused, f.works().Round(time.Millisecond))
	f.balances()
	f.take(all)
	if n := len(f.acked); n > 0 || f.dropped() > 0 || f.refused == 0 {
		t.Errorf("%d that were told stored did not come out, %d were dropped, %d refused", n, f.dropped(), f.refused)
	}
	f.close()
}
