package buffer

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestOutboxLimit lets an outbox run over its limits, by messages and by bytes.
func TestOutboxLimit(t *testing.T) {
	for _, tc := range []struct {
		name   string
		limit  OutboxLimit
		lowest uint64 // that is kept of 100 messages of 1,000 bytes
		most   uint64
	}{
		{"none", OutboxLimit{}, 100, 100},
		{"messages", OutboxLimit{Messages: 30}, 30, 30},
		{"bytes", OutboxLimit{Bytes: 20_000}, 15, 20},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				b := reopen(t, dir)
				o := outbox(t, b, "session", Local)
				o.SetLimit(tc.limit)
				r := make(receipt, 1)
				for range 100 {
					m := &Message{Topic: "t", Payload: make([]byte, 1000), Urgent: true, Copies: []Copy{{Outbox: o}}}
					if err := b.Append(t.Context(), Local, m, r); err != nil {
						t.Fatal(err)
					}
					if err := <-r; err != nil {
						t.Fatal(err)
					}
				}
				l := o.Ledger()
				if l.Stored < tc.lowest || l.Stored > tc.most || l.Dropped["oldest"] != 100-l.Stored || l.Difference() != 0 {
					t.Fatalf("%+v", l)
				}
				stored := l.Stored
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				b = reopen(t, dir)
				o = outbox(t, b, "session", Local)
				if l = o.Ledger(); l.Stored != stored || l.Difference() != 0 {
					t.Fatalf("after a restart: %+v", l)
				}
				reader, err := b.Reader(o)
				if err != nil {
					t.Fatal(err)
				}
				got := 0
				for want := 100 - stored + 1; ; {
					dst := make([]Delivery, 7)
					n, err := reader.TryNext(dst)
					if err != nil {
						t.Fatal(err)
					}
					if n == 0 {
						break
					}
					for _, d := range dst[:n] {
						if d.Ordinal != want {
							t.Fatalf("ordinal %d, want %d", d.Ordinal, want)
						}
						want++
						got++
						o.Settle(d.Ordinal, Delivered)
					}
				}
				if uint64(got) != stored {
					t.Fatalf("%d of %d came out", got, stored)
				}
				reader.Close()
				time.Sleep(10 * time.Second) // what nobody needs is removed
				if n := b.Stats().Generations; n != 0 {
					t.Errorf("%d generations are left", n)
				}
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// TestRemove ends a destination with copies that wait, and makes one of the same
// name.
func TestRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		b := reopen(t, dir)
		o, other := outbox(t, b, "session", Local), outbox(t, b, "other", Local)
		put(t, b, 1, 10, o, other)
		r, err := b.Reader(o)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := r.TryNext(make([]Delivery, 4)); n != 4 || err != nil {
			t.Fatal(n, err)
		}
		o.Settle(1, Delivered)
		r.Close()
		if err := b.Remove(o); err != nil {
			t.Fatal(err)
		}
		check := func(when string) {
			t.Helper()
			l := b.Stats().Classes[Local].Ledger
			if l.Accepted != 20 || l.Delivered != 1 || l.Dropped["ended"] != 9 || l.Stored != 10 || l.Difference() != 0 {
				t.Fatalf("%s: %+v", when, l)
			}
		}
		check("removed")
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		b = reopen(t, dir)
		check("opened again")
		if n := len(b.Outboxes()); n != 1 {
			t.Fatalf("%d outboxes", n)
		}
		if again := outbox(t, b, "session", Local); again.Ledger().Accepted != 0 || again.id <= other.id {
			t.Fatalf("the new one is %d with %+v", again.id, again.Ledger())
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// What is only appended changes no marks, so nothing has to be written for them.
func TestAppendLeavesMarks(t *testing.T) {
	b := reopen(t, t.TempDir())
	defer b.Close()
	o := outbox(t, b, "session", Local)
	o.SetLimit(OutboxLimit{Messages: 10})
	if err := b.save(true); err != nil {
		t.Fatal(err)
	}
	put(t, b, 1, 10, o)
	dirty := func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.dirty
	}
	if dirty() {
		t.Error("the marks are to be saved though nothing was settled")
	}
	put(t, b, 11, 11, o)
	if !dirty() {
		t.Error("the marks are not to be saved though a copy was dropped")
	}
}
