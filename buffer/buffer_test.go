package buffer

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// receipt waits for an append.
type receipt chan error

func (r receipt) Stored(err error) { r <- err }

func reopen(t testing.TB, dir string) *Buffer {
	t.Helper()
	b, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func outbox(t testing.TB, b *Buffer, name string, class Class) *Outbox {
	t.Helper()
	o, err := b.Outbox(name, class)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// put appends messages numbered from first to last and waits until they are
// stored.
func put(t testing.TB, b *Buffer, first, last int, outboxes ...*Outbox) {
	t.Helper()
	r := make(receipt, last-first+1)
	for i := first; i <= last; i++ {
		m := &Message{Topic: "t", Payload: fmt.Appendf(nil, "m%d", i), QoS: 1, Urgent: i == last}
		for _, o := range outboxes {
			m.Copies = append(m.Copies, Copy{Outbox: o, QoS: 1})
		}
		if err := b.Append(t.Context(), outboxes[0].Class(), m, r); err != nil {
			t.Fatal(err)
		}
	}
	for i := first; i <= last; i++ {
		if err := <-r; err != nil {
			t.Fatal(err)
		}
	}
}

// take returns the next n payloads of a reader, and the deliveries.
func take(t testing.TB, r *Reader, n int) (payloads []string, all []Delivery) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	dst := make([]Delivery, 7)
	for len(all) < n {
		got, err := r.Next(ctx, dst[:min(len(dst), n-len(all))])
		if err != nil {
			t.Fatalf("after %d of %d: %v", len(all), n, err)
		}
		all = append(all, dst[:got]...)
	}
	for _, d := range all {
		payloads = append(payloads, string(d.Payload))
	}
	return payloads, all
}

func want(first, last int) (w []string) {
	for i := first; i <= last; i++ {
		w = append(w, fmt.Sprintf("m%d", i))
	}
	return w
}

func balance(t testing.TB, o *Outbox, w Ledger) {
	t.Helper()
	l := o.Ledger()
	if d := l.Difference(); d != 0 {
		t.Errorf("the ledger of %s is out by %d: %+v", o.Name(), d, l)
	}
	if w.Dropped == nil {
		w.Dropped = map[string]uint64{}
	}
	if diff := cmp.Diff(w, l); diff != "" {
		t.Errorf("ledger of %s (-want +got):\n%s", o.Name(), diff)
	}
}

func TestOutboxHandsOutInOrderAndSettlesInAnyOrder(t *testing.T) {
	b := reopen(t, t.TempDir())
	defer b.Close()
	o := outbox(t, b, "cloud", Telemetry)
	put(t, b, 1, 100, o)
	r, err := b.Reader(o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, all := take(t, r, 100)
	if diff := cmp.Diff(want(1, 100), got); diff != "" {
		t.Fatal(diff)
	}
	for _, i := range []int{99, 0, 50, 1, 2, 50} {
		o.Settle(all[i].Ordinal, Delivered)
	}
	balance(t, o, Ledger{Accepted: 100, Delivered: 5, Stored: 95})
	r.Rewind()
	got, all = take(t, r, 95)
	unsettled := slices.Delete(want(4, 99), 47, 48) // m51 is settled
	if diff := cmp.Diff(unsettled, got); diff != "" {
		t.Fatal(diff)
	}
	for _, d := range all {
		if !d.Dup {
			t.Errorf("%s comes again without Dup", d.Payload)
		}
		o.Settle(d.Ordinal, Delivered)
	}
	balance(t, o, Ledger{Accepted: 100, Delivered: 100})
}

func TestReopenGoesOnWhereItWas(t *testing.T) {
	dir := t.TempDir()
	b := reopen(t, dir)
	o, p := outbox(t, b, "cloud", Telemetry), outbox(t, b, "plant", Telemetry)
	put(t, b, 1, 10, o, p)
	r, err := b.Reader(o)
	if err != nil {
		t.Fatal(err)
	}
	_, all := take(t, r, 4)
	for _, d := range all {
		o.Settle(d.Ordinal, Delivered)
	}
	r.Close()
	origin := b.Origin()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}

	b = reopen(t, dir)
	if b.Origin() != origin || b.Boot() != 2 {
		t.Errorf("origin %s boot %d, want %s and 2", b.Origin(), b.Boot(), origin)
	}
	o, p = outbox(t, b, "cloud", Telemetry), outbox(t, b, "plant", Telemetry)
	balance(t, o, Ledger{Accepted: 10, Delivered: 4, Stored: 6})
	balance(t, p, Ledger{Accepted: 10, Stored: 10})
	put(t, b, 11, 12, o)
	if r, err = b.Reader(o, p); err != nil {
		t.Fatal(err)
	}
	got, all := take(t, r, 18)
	if diff := cmp.Diff(append(want(5, 12), want(1, 10)...), got); diff != "" {
		t.Fatal(diff)
	}
	for _, d := range all {
		d.Outbox.Settle(d.Ordinal, Delivered)
	}
	if all[7].Ordinal != 12 {
		t.Errorf("the ordinals went on at %d, want 12", all[7].Ordinal)
	}
	r.Close()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = reopen(t, dir)
	defer b.Close()
	balance(t, outbox(t, b, "cloud", Telemetry), Ledger{Accepted: 12, Delivered: 12})
	if s := b.Stats(); s.Generations != 0 {
		t.Errorf("%d generations are left of a drained buffer", s.Generations)
	}
}

func TestNextPassesOverWhatWasSettledBeforeARewind(t *testing.T) {
	b := reopen(t, t.TempDir())
	defer b.Close()
	o := outbox(t, b, "cloud", Telemetry)
	put(t, b, 1, 30, o)
	r, err := b.Reader(o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, all := take(t, r, 20)
	for _, d := range all[1:] {
		o.Settle(d.Ordinal, Delivered)
	}
	r.Rewind()
	if got, _ := take(t, r, 1); got[0] != "m1" {
		t.Fatalf("got %q, want m1", got)
	}
	// The next seven that are read are settled all: Next must not wait.
	if got, _ := take(t, r, 10); got[0] != "m21" {
		t.Fatalf("got %q, want m21 and on", got)
	}
}

// counter numbers messages as a bridge does.
type counter struct{ n int }

func (c *counter) Number() []byte { c.n++; return fmt.Appendf(nil, "#%d", c.n) }
func (c *counter) Undo()          { c.n-- }

// TestNumbersRiseWithoutGaps has many publishers append to one stream: the
// numbers come out dense and in order, and what is refused takes none.
func TestNumbersRiseWithoutGaps(t *testing.T) {
	b := reopen(t, t.TempDir())
	defer b.Close()
	o := outbox(t, b, "cloud", Telemetry)
	const publishers, each = 8, 50
	n := &counter{}
	stored := make(receipt, publishers*each)
	var wg sync.WaitGroup
	for range publishers {
		wg.Go(func() {
			for range each {
				m := &Message{Topic: "t", Urgent: true, Copies: []Copy{{Outbox: o, Number: n}}}
				if err := b.Append(t.Context(), Telemetry, m, stored); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	r, err := b.Reader(o)
	if err != nil {
		t.Fatal(err)
	}
	_, all := take(t, r, publishers*each)
	r.Close()
	for i, d := range all {
		if want := fmt.Sprintf("#%d", i+1); string(d.Props) != want {
			t.Fatalf("copy %d has number %s", i+1, d.Props)
		}
	}
	for range all {
		if err := <-stored; err != nil {
			t.Error(err)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	m := &Message{Topic: "t", Copies: []Copy{{Outbox: o, Number: n}}}
	if err := b.Append(t.Context(), Telemetry, m, stored); err == nil || n.n != publishers*each {
		t.Errorf("a closed buffer gave number %d and error %v", n.n, err)
	}
}

func TestLargeCopiesComeByAndBy(t *testing.T) {
	b, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	o, r := outbox(t, b, "cloud", Telemetry), make(receipt, 10)
	for range 10 {
		m := &Message{Topic: "t", Payload: make([]byte, 600<<10), Urgent: true, Copies: []Copy{{Outbox: o}}}
		if err := b.Append(t.Context(), Telemetry, m, r); err != nil {
			t.Fatal(err)
		}
	}
	for range 10 {
		if err := <-r; err != nil {
			t.Fatal(err)
		}
	}
	reader, err := b.Reader(o)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	dst := make([]Delivery, 64)
	for next := uint64(1); next <= 10; {
		n, err := reader.TryNext(dst)
		if err != nil || n < 1 || n > 2 {
			t.Fatalf("%d copies at a time, %v", n, err)
		}
		for _, d := range dst[:n] {
			if d.Ordinal != next {
				t.Errorf("copy %d, want %d", d.Ordinal, next)
			}
			next++
		}
	}
}

func TestMakeOutboxesInOneWrite(t *testing.T) {
	dir := t.TempDir()
	b := reopen(t, dir)
	store := &countedStore{Store: b.meta.db}
	b.meta.db = store
	there := outbox(t, b, "b", Local)
	before := store.updates.Load()
	all, err := b.MakeOutboxes(Local, "a", "b", "c", "a")
	if err != nil {
		t.Fatal(err)
	}
	if n := store.updates.Load() - before; n != 1 {
		t.Errorf("%d writes", n)
	}
	if all[0].Name() != "a" || all[1] != there || all[2].Name() != "c" || all[3] != all[0] || len(b.Outboxes()) != 3 {
		t.Errorf("made %v", all)
	}
	put(t, b, 1, 3, all[0], all[2])
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = reopen(t, dir)
	defer b.Close()
	balance(t, outbox(t, b, "a", Local), Ledger{Accepted: 3, Stored: 3})
	balance(t, outbox(t, b, "c", Local), Ledger{Accepted: 3, Stored: 3})
	if n := len(b.Outboxes()); n != 3 {
		t.Errorf("%d outboxes", n)
	}
}
