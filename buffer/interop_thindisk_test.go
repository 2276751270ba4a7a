//go:build interop

package buffer

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestInteropThinDisk has an ext4 on a disk that takes every write and has no place
// for it when it is to be synced (thin provisioning): the kernel says so in the
// sync, and counts the pages as written from then on. Everything else that can be
// made to fail is in TestInteropBadDisk.
func TestInteropThinDisk(t *testing.T) {
	if os.Getenv(disksEnv) == "" {
		inMounts(t)
		return
	}
	work := os.Getenv(disksEnv)
	thin, at := filepath.Join(work, "thin"), filepath.Join(work, "disk")
	for _, dir := range []string{thin, at} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("tmpfs", thin, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(thin, "image")
	mountImage(t, image, at, 64<<20, "-O", "^has_journal")
	onePageAtATime(t, at)
	stuffing := filepath.Join(thin, "stuffing")
	if err := os.WriteFile(stuffing, make([]byte, 12<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFiller(t, filepath.Join(at, "data"), Options{PageSize: 4096, GenerationBytes: 1 << 20, Limits: Limits{RejectNew: true}})
	f.fails = true
	f.fill()
	stored := len(f.acked)
	f.take(stored / 2) // it drains
	f.fill()
	if err := os.Remove(stuffing); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d stored, %d failed, %d refused; %v after there was room it takes more", stored, f.failed, f.refused, f.works().Round(time.Millisecond))
	f.balances()
	// What was told stored is on the disk, and not in the page cache only.
	f.close()
	runCommand(t, "umount", at)
	runCommand(t, "mount", "-o", "loop", image, at)
	f.open()
	f.balances()
	f.take(all)
	if n := len(f.acked); n > 0 || f.dropped() > 0 || f.failed == 0 {
		t.Errorf("%d that were told stored did not come out, %d were dropped, %d failed", n, f.dropped(), f.failed)
	}
	f.close()
	runCommand(t, "umount", at)
}

// onePageAtATime has a mounted loop device take one page with each request. A write
// to the file below of which only a part has a place counts as done in the kernel
// (drivers/block/loop.c, lo_complete_rq), and that would be a disk that lies.
func onePageAtATime(t *testing.T, at string) {
	t.Helper()
	out, err := exec.Command("findmnt", "-no", "SOURCE", at).Output()
	if err != nil {
		t.Fatal(err)
	}
	setting := filepath.Join("/sys/block", filepath.Base(strings.TrimSpace(string(out))), "queue/max_sectors_kb")
	was, err := os.ReadFile(setting)
	if err == nil {
		err = os.WriteFile(setting, fmt.Append(nil, os.Getpagesize()>>10), 0)
	}
	if err != nil {
		t.Skipf("NOT TESTED: a sync that fails in the kernel: %v", err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(setting, was, 0); err != nil {
			t.Error(err)
		}
	})
}
