package buffer

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fieldferry/fieldferry/buffer/simulated"
)

// The program's own copies are changes of its state. They go neither for want of room
// nor because a message has expired, or what they changed would be as it was before.
func TestOwnCopiesAreNotDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		machine := simulated.New(1)
		life := machine.On()
		parts := Parts{Meta: life.Store("meta")}
		for c := range NumClasses {
			parts.Disks[c] = life.Disk(c.String())
		}
		b, err := OpenParts(parts, Options{Limits: Limits{MaxBytes: 16 << 10}, GenerationBytes: 2 << 10, Clock: machine})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		state, session := outbox(t, b, "$state", Local), outbox(t, b, "session", Local)
		put := func(n int, expiry time.Duration, to ...*Outbox) error {
			r := make(receipt, 1)
			m := &Message{Topic: "t", Payload: fmt.Appendf(nil, "%d %0500d", n, n), Urgent: true, Expiry: expiry}
			for _, o := range to {
				m.Copies = append(m.Copies, Copy{Outbox: o})
			}
			if err := b.Append(t.Context(), Local, m, r); err != nil {
				return err
			}
			return <-r
		}
		if err := put(1, time.Second, session, state); err != nil {
			t.Fatal(err)
		}
		for n := 2; session.Ledger().Dropped["oldest"] == 0 && n < 200; n++ {
			if err := put(n, 0, session); err != nil && !errors.Is(err, ErrFull) {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second) // and the first has expired
		}
		if l := session.Ledger(); l.Dropped["oldest"] == 0 {
			t.Errorf("nothing was dropped for want of room: %+v", l)
		}
		r, err := b.Reader(state)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if got, _ := take(t, r, 1); len(got) != 1 || got[0][:2] != "1 " {
			t.Errorf("of the state's copies %q came", got)
		}
	})
}
