package buffer

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What many outboxes get from a block in memory is what each of them would find in it,
// and what they find in the file.
func TestCrowdedBlocks(t *testing.T) {
	const outboxes, messages = 40, 600
	type got struct {
		Ordinal               uint64
		Topic, Payload, Props string
		QoS                   byte
		Retain                bool
		Expiry                time.Duration
	}
	dir := t.TempDir()
	random := rand.New(rand.NewPCG(1, 2))
	want := make([][]got, outboxes)
	open := func() (*Buffer, []*Outbox, []*Reader) {
		b, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		var all []*Outbox
		var readers []*Reader
		for i := range outboxes {
			o := outbox(t, b, fmt.Sprint("session/", i), Local)
			r, err := b.ReaderFunc(func() {}, o)
			if err != nil {
				t.Fatal(err)
			}
			all, readers = append(all, o), append(readers, r)
		}
		return b, all, readers
	}
	check := func(what string, readers []*Reader) {
		t.Helper()
		dst := make([]Delivery, 7)
		for i, r := range readers {
			var list []got
			for len(list) < len(want[i]) {
				n, err := r.TryNext(dst)
				if err != nil || n == 0 {
					t.Fatalf("%s: outbox %d: %d of %d: %v", what, i, len(list), len(want[i]), err)
				}
				for _, d := range dst[:n] {
					list = append(list, got{d.Ordinal, d.Topic, string(d.Payload), string(d.Props), d.QoS, d.Retain, d.Expiry})
				}
			}
			if diff := cmp.Diff(want[i], list); diff != "" {
				t.Fatalf("%s: outbox %d: %s", what, i, diff)
			}
			if n, err := r.TryNext(dst); n != 0 || err != nil {
				t.Errorf("%s: outbox %d: %d more, %v", what, i, n, err)
			}
		}
	}

	b, all, readers := open()
	done := make(receipt, messages)
	appended := 0
	for range messages {
		m := Message{Topic: fmt.Sprint("plant/", random.IntN(5)), Payload: fmt.Append(nil, appended), Urgent: true}
		if random.IntN(2) == 0 {
			m.Props = []byte("props")
		}
		if random.IntN(3) == 0 {
			m.Expiry = time.Hour
		}
		for i, o := range all {
			for range []int{0, 1, 1, 1, 2}[random.IntN(5)] {
				c := Copy{Outbox: o, QoS: byte(random.IntN(3)), Retain: random.IntN(2) == 0}
				g := got{uint64(len(want[i]) + 1), m.Topic, string(m.Payload), string(m.Props), c.QoS, c.Retain, m.Expiry}
				if random.IntN(3) == 0 {
					c.Topic, g.Topic = "other/topic", "other/topic"
				}
				if random.IntN(3) == 0 {
					c.Props = []byte("more")
					g.Props += "more"
				}
				m.Copies, want[i] = append(m.Copies, c), append(want[i], g)
			}
		}
		if err := b.Append(t.Context(), Local, &m, done); err != nil {
			t.Fatal(err)
		}
		appended++
	}
	for range appended {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	check("from memory", readers)
	for _, r := range readers {
		r.Rewind()
	}
	check("again", readers)
	for _, r := range readers {
		r.Close()
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b, _, readers = open()
	check("from the file", readers)
	for _, r := range readers {
		r.Close()
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}
