package buffer

import (
	"bytes"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/buffer/rows"
	"github.com/fieldferry/fieldferry/buffer/simulated"
)

// Who looks for one copy in a record and who goes through all of them see the same.
func FuzzRecord(f *testing.F) {
	one, two := &Outbox{id: 1}, &Outbox{id: 2}
	now := time.UnixMilli(1e12)
	for _, m := range []*Message{
		{Topic: "a/b", Payload: []byte("x"), Copies: []Copy{{Outbox: one}}},
		{Topic: "a/b", Payload: []byte("x"), Props: []byte{38, 0, 1, 'a', 0, 0}, Expiry: time.Minute, QoS: 2, Retain: true, Copies: []Copy{{Outbox: one, QoS: 1, Topic: "c", Props: []byte("yz")}, {Outbox: two, Retain: true}}},
	} {
		f.Add(appendRecord(nil, m, time.Second))
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, rec []byte) {
		was := bytes.Clone(rec)
		var ids []uint32
		all := copiesOf(rec, func(id uint32) { ids = append(ids, id) })
		if len(ids) == 0 {
			ids = []uint32{1}
		}
		for _, id := range ids[:min(len(ids), 100)] {
			var d Delivery
			found, err := parseRecord(rec, id, now, &d)
			if (err == nil) != (all == nil) {
				t.Fatalf("copy for %d: %v; all copies: %v", id, err, all)
			}
			if len(d.Topic)+len(d.Payload) > len(rec) || len(d.Props) > 2*len(rec) {
				t.Fatalf("a record of %d bytes yields topic, payload and properties of %d, %d and %d (%v)", len(rec), len(d.Topic), len(d.Payload), len(d.Props), found)
			}
		}
		if !bytes.Equal(rec, was) {
			t.Fatal("reading has changed the record")
		}
	})
}

// Who looks for one outbox in a directory and who takes all of it see the same, and
// what was read is written as it was.
func FuzzDirectory(f *testing.F) {
	dir := appendName([]byte{5, 1}, 7, "cloud")
	dir = appendSpans(dir, []span{{7, 1, 10}, {9, 3, 3}})
	dir = append(dir, 1, 7)
	f.Add(appendMarks(dir, &marks{cursor: 3, sent: 4, rec: 1, outcomes: [numOutcomes]uint64{1, 2}}))
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, p []byte) {
		dir, ok := parseDirectory(p)
		if !ok {
			return
		}
		if len(dir.names) > len(p) || len(dir.spans) > len(p) || len(dir.marks) > len(p) {
			t.Fatalf("%d bytes hold %d names, %d spans and %d marks", len(p), len(dir.names), len(dir.spans), len(dir.marks))
		}
		seen := make(map[uint32]bool)
		for _, s := range dir.spans[:min(len(dir.spans), 100)] {
			if got, found := findSpan(p, s.outbox); !seen[s.outbox] && (!found || got != s) {
				t.Fatalf("%+v is found as %+v, %v", s, got, found)
			}
			seen[s.outbox] = true
		}
		d := decoder{p: appendSpans(nil, dir.spans)}
		if again := d.spans(nil); d.bad || len(again) != len(dir.spans) {
			t.Fatalf("%v become %v", dir.spans, again)
		}
		for _, m := range dir.marks {
			d := decoder{p: appendMarks(nil, &m)}
			if again := d.marks(); d.bad || again != m {
				t.Fatalf("%+v becomes %+v", m, again)
			}
		}
	})
}

// A row of meta.db that is not as it should be is an error and no more.
func FuzzMetaRow(f *testing.F) {
	table := func(name string) int {
		for i := range buckets {
			if buckets[i] == name {
				return i
			}
		}
		f.Fatal(name)
		return 0
	}
	outbox := appendMarks(append(appendString([]byte{0}, "cloud"), 5), &marks{cursor: 4})
	f.Add(byte(table(bucketOutboxes)), []byte{0, 0, 0, 1}, append(outbox, 1, 1, 1, 1))
	f.Add(byte(table(bucketGenerations)), make([]byte, 17), append(make([]byte, 7+8), 0, 1, 1, 1, 1))
	f.Add(byte(table(bucketBoots)), make([]byte, 8), []byte{1, 2, 3})
	f.Add(byte(table(bucketRejected)), []byte{0}, []byte{1})
	f.Add(byte(table(bucketAbout)), []byte("version"), []byte{0, 0, 0, 9})
	f.Add(byte(table(bucketParked)), []byte{0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9}, []byte{1, 1, 'r', 0, 1, 1, 't', 'x'})
	f.Fuzz(func(t *testing.T, bucket byte, key, value []byte) {
		life := simulated.New(1).On()
		m := &meta{db: life.Store("meta")}
		put := func(tx rows.Tx) error { return tx.Put(buckets[int(bucket)%len(buckets)], key, value) }
		if err := m.db.Update(put); err != nil {
			t.Fatal(err)
		}
		outboxes, gens, _, err := m.load()
		if err == nil && len(outboxes)+len(gens) > 1 {
			t.Fatalf("one row makes %d outboxes and %d generations", len(outboxes), len(gens))
		}
		_, _ = m.boots()
		if err := m.begin(0); err == nil && m.epoch == 0 {
			t.Fatal("the epoch went round")
		}
		if p, ok := parseParked(key, value, map[uint32]*Outbox{1: {id: 1}}); ok && len(p.Topic)+len(p.Payload) > len(value) {
			t.Fatalf("a row of %d bytes holds more", len(value))
		}
	})
}
