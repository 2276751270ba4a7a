package buffer

import (
	"context"
	"testing"
	"time"
)

// What a destination wants to know that it has expired is handed out all the same, also
// when nothing else of its generation is good any more.
func TestKeepExpired(t *testing.T) {
	clock := &movedClock{}
	b, err := Open(t.TempDir(), Options{PageSize: 4096, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	keeps, other := outbox(t, b, "commands", Command), outbox(t, b, "cloud", Command)
	keeps.SetLimit(OutboxLimit{KeepExpired: true})
	r := make(receipt, 2)
	for i := range 2 {
		m := &Message{Topic: "t", Payload: []byte{byte('a' + i)}, Expiry: time.Minute, Urgent: i == 1, Copies: []Copy{{Outbox: keeps}, {Outbox: other}}}
		if err := b.Append(t.Context(), Command, m, r); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := <-r; err != nil {
			t.Fatal(err)
		}
	}
	clock.by.Store(int64(time.Hour))
	if err := b.chains[Command].log.Rotate(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := b.dropOld(); err != nil {
		t.Fatal(err)
	}
	rd, err := b.Reader(keeps)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	if got, _ := take(t, rd, 2); got[0] != "a" || got[1] != "b" {
		t.Errorf("handed out are %q", got)
	}
	balance(t, keeps, Ledger{Accepted: 2, Stored: 2})
	expired, err := b.Reader(other)
	if err != nil {
		t.Fatal(err)
	}
	defer expired.Close()
	if n, err := expired.TryNext(make([]Delivery, 4)); n > 0 || err != nil {
		t.Errorf("%d were handed out to who does not keep them, %v", n, err)
	}
	balance(t, other, Ledger{Accepted: 2, Dropped: map[string]uint64{"expired": 2}})
}
