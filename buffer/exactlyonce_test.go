package buffer

import (
	"os"
	"testing"
	"time"
)

// afterPowerCut opens what is on the disk of a buffer that is still at work.
func afterPowerCut(t *testing.T, dir string) *Buffer {
	t.Helper()
	cut := t.TempDir()
	if err := os.CopyFS(cut, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return reopen(t, cut)
}

func TestMarksSurvive(t *testing.T) {
	dir := t.TempDir()
	b := reopen(t, dir)
	o := outbox(t, b, "cloud", Telemetry)
	put(t, b, 1, 20, o)
	r, err := b.Reader(o)
	if err != nil {
		t.Fatal(err)
	}
	_, all := take(t, r, 10)
	o.Settle(1, Delivered)
	if err := o.Reserve(all[9].Ordinal); err != nil {
		t.Fatal(err)
	}
	o.Received(7)
	o.Received(5) // is behind
	if err := o.Flush(); err != nil {
		t.Fatal(err)
	}

	cut := afterPowerCut(t, dir)
	defer cut.Close()
	got := outbox(t, cut, "cloud", Telemetry).Marks()
	if want := (Marks{Settled: 1, Sent: 10 + reserveAhead, Received: 7}); got != want {
		t.Errorf("marks after a power cut are %+v, want %+v", got, want)
	}
	r2, err := cut.Reader(outbox(t, cut, "cloud", Telemetry))
	if err != nil {
		t.Fatal(err)
	}
	defer r2.Close()
	if _, all := take(t, r2, 19); !all[0].Dup || all[0].Ordinal != 2 {
		t.Errorf("first comes %d, dup %t", all[0].Ordinal, all[0].Dup)
	}

	r.Close()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = reopen(t, dir)
	defer b.Close()
	got = outbox(t, b, "cloud", Telemetry).Marks()
	if want := (Marks{Settled: 1, Sent: 10, Received: 7}); got != want {
		t.Errorf("marks after a restart are %+v, want %+v", got, want)
	}
}

// What is appended after a crash was not sent before it, though it was reserved. The
// reservation stays all the same: on a damaged disk more may have been sent than is
// left, and its ids must not look free.
func TestReservedIsNotSent(t *testing.T) {
	dir := t.TempDir()
	b := reopen(t, dir)
	defer b.Close()
	o := outbox(t, b, "cloud", Telemetry)
	put(t, b, 1, 20, o)
	if err := o.Reserve(10); err != nil {
		t.Fatal(err)
	}
	cut := t.TempDir()
	if err := os.CopyFS(cut, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	after := reopen(t, cut)
	o = outbox(t, after, "cloud", Telemetry)
	put(t, after, 21, 25, o)
	r, err := after.Reader(o)
	if err != nil {
		t.Fatal(err)
	}
	_, all := take(t, r, 25)
	for _, d := range all {
		if want := d.Ordinal <= 20; d.Dup != want {
			t.Errorf("%d is handed out with dup %t, want %t", d.Ordinal, d.Dup, want)
		}
	}
	r.Close()
	if err := after.Close(); err != nil {
		t.Fatal(err)
	}
	again := reopen(t, cut)
	defer again.Close()
	if got, want := outbox(t, again, "cloud", Telemetry).Marks().Sent, uint64(10+reserveAhead); got != want {
		t.Errorf("after a restart up to %d may have been sent, want %d", got, want)
	}
}

// TestReserveWritesOnceForMany counts what is written to meta.db.
func TestReserveWritesOnceForMany(t *testing.T) {
	b := reopen(t, t.TempDir())
	defer b.Close()
	o := outbox(t, b, "cloud", Telemetry)
	counted := &countedStore{Store: b.meta.db}
	b.meta.db = counted
	for ordinal := range uint64(3 * reserveAhead) {
		if err := o.Reserve(ordinal + 1); err != nil {
			t.Fatal(err)
		}
	}
	if n := counted.updates.Load(); n < 3 || n > 5 { // the flusher may add one or two
		t.Errorf("%d updates for %d copies", n, 3*reserveAhead)
	}
}

func TestExpiredIsNotHandedOut(t *testing.T) {
	clock := &movedClock{}
	b, err := Open(t.TempDir(), Options{PageSize: 4096, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	o := outbox(t, b, "cloud", Telemetry)
	r := make(receipt, 4)
	for i, expiry := range []time.Duration{time.Minute, time.Minute, 0, time.Hour} {
		m := &Message{Topic: "t", Payload: []byte{byte('a' + i)}, Expiry: expiry, Urgent: i == 3, Copies: []Copy{{Outbox: o}}}
		if err := b.Append(t.Context(), Telemetry, m, r); err != nil {
			t.Fatal(err)
		}
	}
	for range 4 {
		if err := <-r; err != nil {
			t.Fatal(err)
		}
	}
	rd, err := b.Reader(o)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	take(t, rd, 1) // the first may have been sent from now on
	clock.by.Store(int64(2 * time.Minute))
	rd.Rewind()
	got, all := take(t, rd, 3)
	if got[0] != "a" || got[1] != "c" || got[2] != "d" || !all[0].Dup || all[1].Dup {
		t.Errorf("handed out are %q", got)
	}
	if left := all[2].Expiry - clock.Now().Sub(all[2].Enqueued); left < 57*time.Minute || left > 58*time.Minute+time.Second {
		t.Errorf("d is good for another %v", left)
	}
	balance(t, o, Ledger{Accepted: 4, Stored: 3, Dropped: map[string]uint64{"expired": 1}})
}

// What was received before the session was lost does not come back, not even from a
// block that was written before.
func TestForgetSurvives(t *testing.T) {
	dir := t.TempDir()
	b := reopen(t, dir)
	o := outbox(t, b, "cloud", Telemetry)
	put(t, b, 1, 9, o)
	r, err := b.Reader(o)
	if err != nil {
		t.Fatal(err)
	}
	take(t, r, 9)
	o.Received(7)
	put(t, b, 10, 12, o) // its block carries the mark
	o.Forget()
	if err := o.SetNote("hello", o); err != nil {
		t.Fatal(err)
	}
	for _, want := range []uint64{0, 2} {
		o.Received(want)
		if err := o.Flush(); err != nil {
			t.Fatal(err)
		}
		cut := afterPowerCut(t, dir)
		got := outbox(t, cut, "cloud", Telemetry)
		if m := got.Marks(); m.Received != want {
			t.Errorf("received up to %d, want %d", m.Received, want)
		}
		if note, err := got.Note(); err != nil || note != "hello" {
			t.Errorf("note %q, %v", note, err)
		}
		if err := cut.Close(); err != nil {
			t.Fatal(err)
		}
	}
	r.Close()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}
