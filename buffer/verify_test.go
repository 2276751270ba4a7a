package buffer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// small is options of which many generations come, and a block of each put.
func small() Options {
	return Options{PageSize: 4096, GenerationBytes: 2 << 10, Linger: time.Hour}
}

func openSmall(t testing.TB, dir string) *Buffer {
	t.Helper()
	b, err := Open(dir, small())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func verify(t testing.TB, b *Buffer) *Verified {
	t.Helper()
	v, err := b.Verify(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// generations are the files of a class.
func generations(t testing.TB, dir string, class Class) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, class.String(), "*.db"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// damageBlock flips a bit of the block of a file that begins with a record, or of
// any if that is 0: in every copy of it, because bbolt keeps a small block in a page
// that it writes anew with each commit.
func damageBlock(t testing.TB, path string, first byte) {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for at := 0; ; at++ {
		i := bytes.Index(p[at:], []byte("FFB1"))
		if i < 0 {
			break
		}
		at += i
		least := p[at+15] // byte of the sequence number
		if first == 0 {
			first = least
		}
		if least == first {
			overwrite(t, path, at+64+90, []byte{p[at+64+90] ^ 1}) // behind the header
			n++
		}
	}
	if n == 0 {
		t.Fatalf("no block begins with %d in %s", first, path)
	}
}

func overwrite(t testing.TB, path string, at int, p []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, int64(at)); err != nil {
		t.Fatal(err)
	}
}

// fill puts messages, ten a block, and settles some of them out of order.
func fill(t testing.TB, b *Buffer, n int, outboxes ...*Outbox) {
	t.Helper()
	for i := 0; i < n; i += 10 {
		put(t, b, i+1, i+10, outboxes...)
	}
	for _, o := range outboxes {
		r, err := b.Reader(o)
		if err != nil {
			t.Fatal(err)
		}
		_, all := take(t, r, n/4)
		for i, d := range all {
			if i < n/8 || i%3 == 0 {
				o.Settle(d.Ordinal, Delivered)
			}
		}
		r.Close()
	}
}

func TestVerify(t *testing.T) {
	b := openSmall(t, t.TempDir())
	defer b.Close()
	o, p, alert := outbox(t, b, "cloud", Telemetry), outbox(t, b, "plant", Telemetry), outbox(t, b, "cloud", Alert)
	fill(t, b, 400, o, p)
	fill(t, b, 40, alert)
	v := verify(t, b)
	if v.Differences() != 0 || v.Damaged != 0 || v.Records != 400+40 || v.Blocks != 44 || v.Bytes == 0 {
		t.Errorf("verify says %+v", v)
	}
	if len(v.Outboxes) != 3 || v.Outboxes[0].Class != Alert || v.Outboxes[1].Name != "cloud" {
		t.Fatalf("outboxes are %+v", v.Outboxes)
	}
	for _, r := range v.Outboxes {
		if r.Found != r.Ledger.Stored || r.Found == 0 || r.Missing != 0 {
			t.Errorf("recount is %+v", r)
		}
	}
}

// TestVerifyFindsWhatIsWrong makes each thing wrong that Verify is there for.
func TestVerifyFindsWhatIsWrong(t *testing.T) {
	const some = 1 << 20
	for _, c := range []struct {
		name        string
		onDisk      func(t *testing.T, files []string)
		inMemory    func(o *Outbox)
		damaged     bool
		missing     uint64
		differences uint64
	}{
		{name: "nothing"},
		{name: "a bit in a block", damaged: true, missing: 10, differences: 10,
			onDisk: func(t *testing.T, files []string) { damageBlock(t, files[len(files)-2], 0) }},
		{name: "a bit in a block that nobody needs", damaged: true,
			onDisk: func(t *testing.T, files []string) { damageBlock(t, files[0], 2) }},
		{name: "a tree, but no block", damaged: true,
			onDisk: func(t *testing.T, files []string) { overwrite(t, files[len(files)-2], 0, make([]byte, 8192)) }},
		{name: "a file that is gone", missing: some, differences: some,
			onDisk: func(t *testing.T, files []string) {
				if err := os.Remove(files[len(files)-2]); err != nil {
					t.Fatal(err)
				}
			}},
		{name: "the figure", differences: 3, inMemory: func(o *Outbox) { o.stored += 3 }},
		{name: "an outcome that nobody counted", differences: 1, inMemory: func(o *Outbox) { o.outcomes[Delivered]-- }},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			b := openSmall(t, dir)
			o := outbox(t, b, "cloud", Telemetry)
			plant := outbox(t, b, "plant", Telemetry) // keeps the first generation
			put(t, b, 1, 1, plant)
			fill(t, b, 400, o)
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			files := generations(t, dir, Telemetry)
			if c.onDisk != nil {
				c.onDisk(t, files)
			}
			b = openSmall(t, dir)
			defer b.Close()
			o = outbox(t, b, "cloud", Telemetry)
			if c.inMemory != nil {
				o.mu.Lock()
				c.inMemory(o)
				o.mu.Unlock()
			}
			v := verify(t, b)
			if got := v.Outboxes[0].Missing; c.missing == some && got > 0 {
				c.missing, c.differences = got, got
			}
			if got := v.Outboxes[0].Missing; got != c.missing || v.Differences() != c.differences || (v.Damaged > 0) != c.damaged || int(v.Damaged) != len(v.Damage) {
				t.Errorf("verify says %+v", v)
			}
		})
	}
}

// TestVerifyBesideEverything recounts while messages are appended, settled in any
// order, rewound and dropped for room: there is never a difference.
func TestVerifyBesideEverything(t *testing.T) {
	o := small()
	o.GenerationBytes, o.Limits.MaxBytes = 16<<10, 600<<10
	b, err := Open(t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	cloud, plant := outbox(t, b, "cloud", Telemetry), outbox(t, b, "plant", Telemetry)
	ctx, stop := context.WithCancel(t.Context())
	var parts sync.WaitGroup
	parts.Go(func() {
		r := make(receipt, 64)
		waiting := 0
		for i := 0; ctx.Err() == nil; i++ {
			m := &Message{Topic: "t", Payload: fmt.Appendf(nil, "m%0100d", i), Urgent: true, Copies: []Copy{{Outbox: cloud}}}
			if i%3 == 0 {
				m.Copies = append(m.Copies, Copy{Outbox: plant})
			}
			if err := b.Append(ctx, Telemetry, m, r); errors.Is(err, ErrFull) {
				continue
			} else if err != nil {
				return
			}
			if waiting++; waiting == cap(r) {
				<-r
				waiting--
			}
		}
	})
	for _, o := range []*Outbox{cloud, plant} {
		parts.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(o.id)))
			r, err := b.Reader(o)
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			dst := make([]Delivery, 32)
			for ctx.Err() == nil {
				n, err := r.Next(ctx, dst)
				if err != nil {
					break
				}
				for _, i := range rng.Perm(n) {
					if rng.IntN(20) > 0 {
						o.Settle(dst[i].Ordinal, Outcome(1+rng.IntN(3)))
					}
				}
				if rng.IntN(10) == 0 {
					r.Rewind()
				}
				if o == plant && rng.IntN(4) == 0 { // falls behind, so that some is dropped
					select {
					case <-time.After(5 * time.Millisecond):
					case <-ctx.Done():
					}
				}
			}
		})
	}
	var blocks uint64
	deadline := time.Now().Add(1500 * time.Millisecond)
	for runs := 0; runs < 20 || time.Now().Before(deadline); runs++ {
		v, err := b.Verify(ctx, 0)
		if err != nil {
			t.Fatal(err)
		}
		if v.Differences() != 0 || v.Damaged != 0 {
			t.Errorf("run %d: %+v", runs, v)
			break
		}
		blocks += v.Blocks
	}
	stop()
	parts.Wait()
	l := cloud.Ledger()
	t.Logf("%d blocks were read, ledger %+v and %+v", blocks, l, plant.Ledger())
	if blocks < 20 || l.Delivered == 0 {
		t.Errorf("nothing went on meanwhile: %d blocks, %+v", blocks, l)
	}
}

func TestVerifyKeepsToItsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openSmall(t, t.TempDir())
		defer b.Close()
		fill(t, b, 400, outbox(t, b, "cloud", Telemetry))
		began := time.Now()
		v, err := b.Verify(t.Context(), 1000)
		if err != nil {
			t.Fatal(err)
		}
		want := time.Duration(v.Bytes) * time.Millisecond
		if took := time.Since(began); took < want-time.Second || took > want+time.Second {
			t.Errorf("%d bytes at 1000 a second took %s", v.Bytes, took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		if _, err := b.Verify(ctx, 1000); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
	})
}

func TestRejecting(t *testing.T) {
	o := small()
	o.Limits = Limits{MaxBytes: 64 << 10, RejectNew: true}
	b, err := Open(t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if c := b.Rejecting(); len(c) > 0 {
		t.Errorf("an empty buffer refuses %v", c)
	}
	out := outbox(t, b, "cloud", Status)
	r := make(receipt, 1)
	for i := range 10000 {
		m := &Message{Topic: "t", Payload: []byte(strings.Repeat("x", 1000)), Urgent: true, Copies: []Copy{{Outbox: out}}}
		if err := b.Append(t.Context(), Status, m, r); errors.Is(err, ErrFull) {
			break
		} else if err != nil || i == 9999 {
			t.Fatal(i, err)
		}
		<-r
	}
	if c := b.Rejecting(); !slices.Contains(c, Status) {
		t.Errorf("a full buffer refuses %v, status is not among them", c)
	}
}

func TestOldestAge(t *testing.T) {
	of := func(classes ...Class) func(*Outbox) bool {
		return func(o *Outbox) bool { return slices.Contains(classes, o.Class()) }
	}
	synctest.Test(t, func(t *testing.T) {
		o := small()
		o.Clock = bubbleClock{time.Now()}
		b, err := Open(t.TempDir(), o)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		if age, ok := b.OldestAge(of(Alert, Telemetry)); ok {
			t.Errorf("an empty buffer holds something %s old", age)
		}
		cloud, plant := outbox(t, b, "cloud", Telemetry), outbox(t, b, "plant", Telemetry)
		put(t, b, 1, 5, cloud)
		time.Sleep(time.Hour)
		put(t, b, 6, 10, cloud, plant)
		time.Sleep(time.Minute)
		expect := func(want time.Duration) {
			t.Helper()
			if age, ok := b.OldestAge(of(Alert, Telemetry)); !ok || (age-want).Abs() > time.Second {
				t.Errorf("the oldest is %s old, %v, want %s", age, ok, want)
			}
		}
		expect(time.Hour + time.Minute)
		if _, ok := b.OldestAge(of(Alert)); ok {
			t.Error("there is something of another class")
		}
		r, err := b.Reader(cloud)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		_, all := take(t, r, 10)
		for _, d := range all[1:] {
			cloud.Settle(d.Ordinal, Delivered)
		}
		expect(time.Hour + time.Minute) // one of the first is left
		cloud.Settle(all[0].Ordinal, Delivered)
		expect(time.Minute)
	})
}

// bubbleClock is a clock in a bubble of synctest, of a machine that was booted
// at its time.
type bubbleClock struct{ booted time.Time }

func (c bubbleClock) Now() time.Time                  { return time.Now() }
func (c bubbleClock) Uptime() (time.Duration, uint64) { return time.Since(c.booted), 7 }
