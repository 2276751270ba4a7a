package buffer

import (
	"fmt"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// TestCrashLoopLeavesFewGenerations opens a buffer many times for a message or two.
func TestCrashLoopLeavesFewGenerations(t *testing.T) {
	const lives = mergeAtOpen + 10
	dir := t.TempDir()
	o := Options{PageSize: 4096}
	for life := range lives {
		b, err := Open(dir, o)
		if err != nil {
			t.Fatal(err)
		}
		put(t, b, 2*life+1, 2*life+2, outbox(t, b, "cloud", Telemetry))
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "telemetry", "*.db"))
	if err != nil || len(files) > lives-mergeAtOpen+2 {
		t.Fatalf("%d lives have left %d generations, %v", lives, len(files), err)
	}
	b, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	q := outbox(t, b, "cloud", Telemetry)
	r, err := b.Reader(q)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, all := take(t, r, 2*lives)
	for i, d := range all {
		if want := fmt.Sprintf("m%d", i+1); string(d.Payload) != want || d.Ordinal != uint64(i+1) {
			t.Fatalf("%s comes as %d, want %s as %d", d.Payload, d.Ordinal, want, i+1)
		}
		q.Settle(d.Ordinal, Delivered)
	}
	balance(t, q, Ledger{Accepted: 2 * lives, Delivered: 2 * lives})
}

// TestLaggardPinsOnlyWhatItNeeds has a destination that is far behind and needs
// every tenth message of generations of which all else is delivered. It is in the
// middle of the first when that is rewritten under its hands.
func TestLaggardPinsOnlyWhatItNeeds(t *testing.T) {
	const n, each = 1000, 10
	dir := t.TempDir()
	o := Options{PageSize: 4096, GenerationBytes: 256 << 10}
	check := func(d Delivery, ordinal uint64) {
		t.Helper()
		if got := string(d.Payload[:4]); got != fmt.Sprintf("%04d", ordinal*each) || d.Ordinal != ordinal {
			t.Fatalf("%s comes as %d, want %04d as %d", got, d.Ordinal, ordinal*each, ordinal)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		b, err := Open(dir, o)
		if err != nil {
			t.Fatal(err)
		}
		fast, late := outbox(t, b, "fast", Telemetry), outbox(t, b, "late", Telemetry)
		stored := make(receipt, n)
		for i := 1; i <= n; i++ {
			m := &Message{Topic: "t", Payload: fmt.Appendf(nil, "%04d %01000d", i, i), Urgent: true, Copies: []Copy{{Outbox: fast}}}
			if i%each == 0 {
				m.Copies = append(m.Copies, Copy{Outbox: late})
			}
			if err := b.Append(t.Context(), Telemetry, m, stored); err != nil {
				t.Fatal(err)
			}
		}
		for range n {
			if err := <-stored; err != nil {
				t.Fatal(err)
			}
		}
		if err := fast.chain.log.Rotate(t.Context()); err != nil { // else the last one is left as it is
			t.Fatal(err)
		}
		before := b.Stats()
		r, err := b.Reader(fast)
		if err != nil {
			t.Fatal(err)
		}
		_, all := take(t, r, n)
		for _, d := range all {
			fast.Settle(d.Ordinal, Delivered)
		}
		r.Close()
		if r, err = b.Reader(late); err != nil {
			t.Fatal(err)
		}
		_, all = take(t, r, 4)
		late.Settle(1, Delivered)
		time.Sleep(3 * time.Minute) // the generations are rewritten one after the other
		after := b.Stats()
		if after.Bytes > before.Bytes/6 || after.Ledger.Stored != n/each-1 {
			t.Errorf("%d bytes of blocks before, %d after; %+v", before.Bytes, after.Bytes, after.Ledger)
		}
		_, more := take(t, r, 6) // goes on where it was
		for i, d := range append(all, more...) {
			check(d, uint64(i+1))
		}
		r.Rewind()
		_, all = take(t, r, 20)
		for i, d := range all {
			check(d, uint64(i+2))
			late.Settle(d.Ordinal, Delivered)
		}
		r.Close()
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	})
	b, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	v, err := b.Verify(t.Context(), 0)
	if err != nil || v.Differences() != 0 || v.Damaged != 0 {
		t.Errorf("verify says %+v, %v", v, err)
	}
	late := outbox(t, b, "late", Telemetry)
	r, err := b.Reader(late)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, all := take(t, r, n/each-21)
	for i, d := range all {
		check(d, uint64(i+22))
		late.Settle(d.Ordinal, Delivered)
	}
	balance(t, late, Ledger{Accepted: n / each, Delivered: n / each})
	balance(t, outbox(t, b, "fast", Telemetry), Ledger{Accepted: n, Delivered: n})
}
