//go:build interop

package buffer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	disksEnv   = "FIELDFERRY_TEST_DISKS"
	recovering = 10 * time.Second // appends work again so long after there is room
)

// TestInteropDiskFull fills real disks, a tmpfs of 24 MiB and an ext4 of 32 MiB
// on a loop device.
func TestInteropDiskFull(t *testing.T) {
	if os.Getenv(disksEnv) != "" {
		onSmallDisks(t)
		return
	}
	inMounts(t)
}

// inMounts runs the test that calls it in a process with a name space of mounts of
// its own, which end with it.
func inMounts(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: a full disk; mounting one needs root")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1", "-test.v")
	cmd.Env = append(os.Environ(), disksEnv+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

func onSmallDisks(t *testing.T) {
	work := os.Getenv(disksEnv)
	for _, disk := range []struct {
		name  string
		mount func(t *testing.T, at string)
	}{
		{"tmpfs", func(t *testing.T, at string) {
			if err := unix.Mount("tmpfs", at, "tmpfs", 0, "size=24m"); err != nil {
				t.Fatal(err)
			}
		}},
		{"ext4", func(t *testing.T, at string) {
			mountImage(t, at+".img", at, 32<<20)
		}},
	} {
		for _, reject := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s,reject=%t", disk.name, reject), func(t *testing.T) {
				at := filepath.Join(work, strings.ReplaceAll(t.Name(), "/", "-"))
				if err := os.Mkdir(at, 0o700); err != nil {
					t.Fatal(err)
				}
				disk.mount(t, at)
				defer func() {
					if err := unix.Unmount(at, 0); err != nil {
						t.Error(err)
					}
				}()
				if reject {
					fullRejects(t, at, work)
				} else {
					fullDrops(t, at)
				}
			})
		}
	}
}

// mountImage mounts an ext4 in a file.
func mountImage(t *testing.T, image, at string, size int64, mkfs ...string) {
	t.Helper()
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("NOT TESTED: an ext4 on a loop device; there are none here: %v", err)
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	runCommand(t, "mkfs.ext4", append([]string{"-q", "-F", image}, mkfs...)...)
	runCommand(t, "mount", "-o", "loop", image, at)
}

func runCommand(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// filler fills a buffer with numbered messages of 1 KiB.
type filler struct {
	t       *testing.T
	dir     string
	options Options
	b       *Buffer
	o       *Outbox
	r       *Reader
	next    int
	acked   []int // told stored and not taken yet
	refused int
	fails   bool // the disk may, and say nothing of being full
	failed  int
	longest time.Duration // without a message that was stored
	since   time.Time     // the last that was
}

func newFiller(t *testing.T, dir string, o Options) *filler {
	f := &filler{t: t, dir: dir, options: o, since: time.Now()}
	f.open()
	return f
}

func (f *filler) open() {
	f.t.Helper()
	var err error
	if f.b, err = Open(f.dir, f.options); err != nil {
		f.t.Fatal(err)
	}
	f.o = outbox(f.t, f.b, "cloud", Telemetry)
	if f.r, err = f.b.Reader(f.o); err != nil {
		f.t.Fatal(err)
	}
}

func (f *filler) close() {
	f.t.Helper()
	f.r.Close()
	if err := f.b.Close(); err != nil {
		f.t.Fatal(err)
	}
}

// append appends a batch and returns how many are stored.
func (f *filler) append() (stored int) {
	f.t.Helper()
	const batch = 64
	done := make(chan numberedResult, batch)
	hear := func(res numberedResult) {
		switch {
		case res.err == nil:
			stored++
			f.acked = append(f.acked, res.n)
		case errors.Is(res.err, ErrFull):
			f.refused++
		case f.fails && errors.Is(res.err, ErrFailed):
			f.failed++
		default:
			f.t.Fatalf("message %d: %v", res.n, res.err)
		}
	}
	waiting := 0
	for range batch {
		f.next++
		m := Message{Topic: "t", Payload: fmt.Appendf(nil, "%d %s", f.next, strings.Repeat("x", 1000)), QoS: 1, Urgent: true, Copies: []Copy{{Outbox: f.o, QoS: 1}}}
		if err := f.b.Append(context.Background(), Telemetry, &m, numberedReceipt{f.next, done}); err != nil {
			hear(numberedResult{f.next, err})
		} else {
			waiting++
		}
	}
	for range waiting {
		hear(<-done)
	}
	if now := time.Now(); stored > 0 {
		f.longest = max(f.longest, now.Sub(f.since))
		f.since = now
	}
	return stored
}

// fill appends until nothing is taken any more.
func (f *filler) fill() {
	f.t.Helper()
	for refusedAll, began := 0, time.Now(); refusedAll < 3; {
		if f.append() == 0 {
			refusedAll++
		} else {
			refusedAll = 0
		}
		if time.Since(began) > time.Minute {
			f.t.Fatal("the disk does not get full")
		}
	}
}

// works appends until something is taken again.
func (f *filler) works() time.Duration {
	f.t.Helper()
	began := time.Now()
	for f.append() == 0 {
		if time.Since(began) > recovering {
			f.t.Fatalf("nothing is taken %v after there is room", recovering)
		}
		time.Sleep(20 * time.Millisecond) // a publisher tries again
	}
	return time.Since(began)
}

// take settles the next n, or all, and holds them against what was acked.
func (f *filler) take(n int) {
	f.t.Helper()
	dst := make([]Delivery, 100)
	for taken := 0; taken < n; {
		got, err := f.r.TryNext(dst[:min(len(dst), n-taken)])
		if err != nil {
			f.t.Fatal(err)
		}
		if got == 0 {
			if n == all {
				break
			}
			f.t.Fatalf("%d came out, want %d", taken, n)
		}
		for _, d := range dst[:got] {
			var i int
			if _, err := fmt.Sscan(string(d.Payload[:min(10, len(d.Payload))]), &i); err != nil {
				f.t.Fatal(err)
			}
			for len(f.acked) > 0 && f.acked[0] < i && f.o.Ledger().Dropped["oldest"] > 0 {
				f.acked = f.acked[1:]
			}
			if len(f.acked) == 0 || f.acked[0] != i {
				f.t.Fatalf("%d came out, want %d", i, f.acked[:min(1, len(f.acked))])
			}
			f.acked = f.acked[1:]
			f.o.Settle(d.Ordinal, Delivered)
		}
		taken += got
	}
}

const all = 1 << 40

func (f *filler) dropped() (n uint64) {
	for _, d := range f.o.Ledger().Dropped {
		n += d
	}
	return n
}

// holds says what a copy of the folder holds.
func (f *filler) holds(work string) {
	f.t.Helper()
	dir := filepath.Join(work, "copy")
	if err := os.CopyFS(dir, os.DirFS(f.dir)); err != nil {
		f.t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	other := newFiller(f.t, dir, Options{})
	other.acked = append([]int(nil), f.acked...)
	other.take(all)
	if len(other.acked) > 0 {
		f.t.Errorf("%d that were told stored are not in the folder of a full disk; the first is %d", len(other.acked), other.acked[0])
	}
	other.close()
}

func (f *filler) balances() {
	f.t.Helper()
	if l := f.o.Ledger(); l.Difference() != 0 {
		f.t.Errorf("the ledger is out by %d: %+v", l.Difference(), l)
	}
}

// stuff takes the room that is left on the disk.
func stuff(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{64 << 10, 4 << 10, 512} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
}

// fullRejects has a buffer that rejects fill the disk.
func fullRejects(t *testing.T, at, work string) {
	stuffing := filepath.Join(at, "stuffing")
	if err := os.WriteFile(stuffing, make([]byte, 6<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFiller(t, filepath.Join(at, "data"), Options{PageSize: 4096, GenerationBytes: 1 << 20, Limits: Limits{RejectNew: true}})
	f.fill()
	stored := len(f.acked)
	stuff(t, stuffing)
	f.holds(work)

	// It can be started anew on a full disk.
	f.close()
	stuff(t, stuffing)
	f.open()
	f.append() // may be told that there is no room

	// It drains while the disk is full, and what it drains makes room.
	f.take(stored / 2)
	t.Logf("full with %d messages; %v after half were drained it takes more", stored, f.works().Round(time.Millisecond))

	f.fill()
	stuff(t, stuffing)
	f.fill()
	if err := os.Remove(stuffing); err != nil {
		t.Fatal(err)
	}
	t.Logf("%v after there was room it takes more", f.works().Round(time.Millisecond))
	f.balances()
	f.take(all)
	if n := len(f.acked); n > 0 {
		t.Errorf("%d that were told stored did not come out", n)
	}
	if n := f.dropped(); n > 0 || f.refused == 0 {
		t.Errorf("%d dropped, %d refused", n, f.refused)
	}
	f.close()
	f.open()
	defer f.close()
	f.balances()
	if s := f.b.Stats(); s.Generations != 0 || s.Ledger.Stored != 0 {
		t.Errorf("drained and opened again: %+v", s)
	}
}

// fullDrops has a buffer that drops the oldest write three times what the disk
// holds, with ever less room.
func fullDrops(t *testing.T, at string) {
	stuffing := filepath.Join(at, "stuffing")
	f := newFiller(t, filepath.Join(at, "data"), Options{PageSize: 4096, GenerationBytes: 1 << 20})
	for f.next < 80<<10 {
		f.append()
		if f.next == 40<<10 {
			stuff(t, stuffing)
		}
		if time.Since(f.since) > recovering {
			t.Fatalf("nothing was taken for %v", recovering)
		}
	}
	f.balances()
	l := f.o.Ledger()
	if l.Dropped["oldest"] == 0 || l.Dropped["oldest"] != f.dropped() || int(l.Accepted) != len(f.acked) {
		t.Errorf("%d were told stored: %+v", len(f.acked), l)
	}
	t.Logf("%d stored, %d refused, %d dropped; at most %v without one that was taken", l.Accepted, f.refused, l.Dropped["oldest"], f.longest.Round(time.Millisecond))
	if got, want := len(f.acked), int(l.Stored+l.Dropped["oldest"]); got != want {
		t.Errorf("%d were told stored, %d are there or were dropped", got, want)
	}
	// What is stored is the newest, without a gap.
	f.acked = f.acked[l.Dropped["oldest"]:]
	f.take(int(l.Stored))
	if n := len(f.acked); n > 0 {
		t.Errorf("%d that were told stored did not come out", n)
	}
	if err := os.Remove(stuffing); err != nil {
		t.Fatal(err)
	}
	f.works()
	f.take(all)
	f.balances()
	f.close()
}
