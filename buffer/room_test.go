package buffer

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/buffer/log"
	"github.com/fieldferry/fieldferry/buffer/rows"
)

// append1 appends one message of 1,000 bytes and returns how that ended.
func append1(t *testing.T, o *Outbox, n int) error {
	t.Helper()
	r := make(receipt, 1)
	m := &Message{Topic: "t", Payload: fmt.Appendf(nil, "m%d %01000d", n, n), Urgent: true, Copies: []Copy{{Outbox: o}}}
	if err := o.chain.buffer.Append(t.Context(), o.class, m, r); err != nil {
		return err
	}
	return <-r
}

// eventually waits for what the flusher does in its own time.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited 20 s until %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestDropOldestMakesRoom(t *testing.T) {
	dir := t.TempDir()
	o := Options{PageSize: 4096, Limits: Limits{MaxBytes: 8 << 20}, GenerationBytes: 256 << 10}
	b, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	tele, alert := outbox(t, b, "cloud", Telemetry), outbox(t, b, "cloud", Alert)
	if err := append1(t, alert, 1); err != nil {
		t.Fatal(err)
	}
	// Some are under way: those are not dropped.
	if err := append1(t, tele, 1); err != nil {
		t.Fatal(err)
	}
	r, err := b.Reader(tele)
	if err != nil {
		t.Fatal(err)
	}
	take(t, r, 1)
	n := 1
	for tele.Ledger().Dropped["oldest"] == 0 {
		n++
		if err := append1(t, tele, n); err != nil && !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
		if n > 100_000 {
			t.Fatal("nothing was dropped")
		}
	}
	if l := alert.Ledger(); l.Stored != 1 {
		t.Errorf("ledger of the alerts: %+v", l)
	}
	before := tele.Ledger()
	if d := before.Difference(); d != 0 {
		t.Errorf("the ledger is out by %d: %+v", d, before)
	}
	if used := b.Stats().DiskBytes; used > 8<<20+1<<20 {
		t.Errorf("%d bytes of disk are used", used)
	}
	// What was under way comes first again, then what is left, in order.
	r.Rewind()
	last := uint64(0)
	dst := make([]Delivery, 50)
	drain := func() {
		for {
			k, err := r.TryNext(dst)
			if err != nil {
				t.Fatal(err)
			}
			if k == 0 {
				return
			}
			for _, d := range dst[:k] {
				if d.Ordinal <= last {
					t.Fatalf("ordinal %d comes after %d", d.Ordinal, last)
				}
				last = d.Ordinal
				tele.Settle(d.Ordinal, Delivered)
			}
		}
	}
	r.Close()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}

	if b, err = Open(dir, o); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	tele = outbox(t, b, "cloud", Telemetry)
	after := tele.Ledger()
	if after.Difference() != 0 || after.Dropped["oldest"] < before.Dropped["oldest"] || after.Dropped["quarantined"] != 0 {
		t.Errorf("ledger before %+v, after the restart %+v", before, after)
	}
	if r, err = b.Reader(tele); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	drain()
	l := tele.Ledger()
	if l.Difference() != 0 || l.Stored != 0 || l.Dropped["quarantined"] != 0 || l.Delivered == 0 {
		t.Errorf("ledger at the end: %+v", l)
	}
	if last != l.Accepted {
		t.Errorf("the last ordinal is %d of %d", last, l.Accepted)
	}
}

func TestRejectNewKeepsWhatIsThere(t *testing.T) {
	b, err := Open(t.TempDir(), Options{PageSize: 4096, GenerationBytes: 256 << 10, Limits: Limits{
		MaxBytes: 4 << 20, RejectNew: true, Reserve: [NumClasses]int64{Alert: 1 << 20},
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	tele, alert := outbox(t, b, "cloud", Telemetry), outbox(t, b, "cloud", Alert)
	n := 0
	for {
		if err := append1(t, tele, n+1); errors.Is(err, ErrFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if err := append1(t, alert, 1); err != nil {
		t.Errorf("an alert found no room in its reserve: %v", err)
	}
	balance(t, tele, Ledger{Accepted: uint64(n), Stored: uint64(n)})
	if got := b.Stats().Classes[Telemetry].Rejected; got == 0 {
		t.Error("the rejected message is not counted")
	}
	r, err := b.Reader(tele)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, all := take(t, r, n)
	for _, d := range all {
		tele.Settle(d.Ordinal, Delivered)
	}
	eventually(t, "there is room again", func() bool { return append1(t, tele, n+1) == nil })
}

func TestMinFreeIsLeftFree(t *testing.T) {
	var free atomic.Int64
	free.Store(1 << 30)
	b, err := Open(t.TempDir(), Options{PageSize: 4096, Limits: Limits{MinFree: 1 << 20, RejectNew: true},
		Free: func() (int64, error) { return free.Load(), nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	o := outbox(t, b, "cloud", Telemetry)
	put(t, b, 1, 3, o)
	free.Store(1 << 19)
	eventually(t, "the buffer is full", func() bool { return errors.Is(append1(t, o, 4), ErrFull) })
	free.Store(1 << 30)
	eventually(t, "there is room again", func() bool { return append1(t, o, 4) == nil })
}

// movedClock is a clock that can be moved.
type movedClock struct{ by atomic.Int64 }

func (c *movedClock) Now() time.Time                  { return time.Now().Add(time.Duration(c.by.Load())) }
func (c *movedClock) Uptime() (time.Duration, uint64) { return time.Duration(c.by.Load()), 1 }

func TestMaxAgeDropsWholeGenerations(t *testing.T) {
	clock := &movedClock{}
	b, err := Open(t.TempDir(), Options{PageSize: 4096, Clock: clock, Limits: Limits{MaxAge: [NumClasses]time.Duration{Telemetry: time.Hour}}})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	tele, alert := outbox(t, b, "cloud", Telemetry), outbox(t, b, "cloud", Alert)
	put(t, b, 1, 10, tele)
	put(t, b, 1, 10, alert)
	clock.by.Store(int64(2 * time.Hour))
	eventually(t, "the telemetry is gone", func() bool { return tele.Ledger().Stored == 0 })
	balance(t, tele, Ledger{Accepted: 10, Dropped: map[string]uint64{"age": 10}})
	balance(t, alert, Ledger{Accepted: 10, Stored: 10})
}

func TestGenerationsExpireWhole(t *testing.T) {
	dir := t.TempDir()
	clock := &movedClock{}
	b, err := Open(dir, Options{PageSize: 4096, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	o := outbox(t, b, "cloud", Telemetry)
	r := make(receipt, 2)
	for i := range 2 {
		m := &Message{Topic: "t", Expiry: time.Duration(i+1) * time.Minute, Urgent: true, Copies: []Copy{{Outbox: o}}}
		if err := b.Append(t.Context(), Telemetry, m, r); err != nil {
			t.Fatal(err)
		}
		if err := <-r; err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Close(); err != nil { // seals the generation
		t.Fatal(err)
	}
	if b, err = Open(dir, Options{PageSize: 4096, Clock: clock}); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	o = outbox(t, b, "cloud", Telemetry)
	clock.by.Store(int64(90 * time.Second))
	if err := b.dropOld(); err != nil {
		t.Fatal(err)
	}
	balance(t, o, Ledger{Accepted: 2, Stored: 2}) // the second is still good
	clock.by.Store(int64(3 * time.Minute))
	eventually(t, "both have expired", func() bool { return o.Ledger().Stored == 0 })
	balance(t, o, Ledger{Accepted: 2, Dropped: map[string]uint64{"expired": 2}})
}

// What an outbox of the program's own has not read yet neither expires nor makes room.
func TestOwnCopiesStay(t *testing.T) {
	dir := t.TempDir()
	clock := &movedClock{}
	o := Options{PageSize: 4096, Clock: clock, GenerationBytes: 64 << 10}
	b, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	own, cloud, r := outbox(t, b, "$state", Telemetry), outbox(t, b, "cloud", Telemetry), make(receipt, 1)
	m := &Message{Topic: "t", Expiry: time.Minute, Urgent: true, Copies: []Copy{{Outbox: own}, {Outbox: cloud}}}
	if err := b.Append(t.Context(), Telemetry, m, r); err != nil {
		t.Fatal(err)
	}
	if err := <-r; err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	o.Limits.MaxBytes = 1 << 20
	if b, err = Open(dir, o); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	own, cloud = outbox(t, b, "$state", Telemetry), outbox(t, b, "cloud", Telemetry)
	clock.by.Store(int64(time.Hour))
	for n := 0; cloud.Ledger().Dropped["oldest"] == 0; n++ {
		if err := append1(t, cloud, n); err != nil && !errors.Is(err, ErrFull) || n > 100_000 {
			t.Fatal(n, err)
		}
	}
	balance(t, own, Ledger{Accepted: 1, Stored: 1})
	reader, err := b.Reader(own, cloud)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if _, all := take(t, reader, 1); all[0].Outbox != own {
		t.Errorf("the first copy is number %d of %s", all[0].Ordinal, all[0].Outbox.Name())
	}
}

// countedStore counts updates.
type countedStore struct {
	rows.Store
	updates atomic.Int64
}

func (s *countedStore) Update(fn func(rows.Tx) error) error {
	s.updates.Add(1)
	return s.Store.Update(fn)
}

// fullDisk is full from when it is told so until a generation is removed.
type fullDisk struct {
	log.Disk
	full    atomic.Bool
	refused atomic.Int64
}

type fullGeneration struct {
	log.Generation
	disk *fullDisk
}

func (d *fullDisk) refuse() error {
	if !d.full.Load() {
		return nil
	}
	d.refused.Add(1)
	return &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}
}

func (d *fullDisk) Create(id log.GenID) (log.Generation, error) {
	if err := d.refuse(); err != nil {
		return nil, err
	}
	g, err := d.Disk.Create(id)
	return &fullGeneration{g, d}, err
}

func (g *fullGeneration) Put(first log.Seq, block []byte) error {
	if err := g.disk.refuse(); err != nil {
		return err
	}
	return g.Generation.Put(first, block)
}

func (d *fullDisk) Remove(id log.GenID) error {
	d.full.Store(false)
	return d.Disk.Remove(id)
}

// TestFullDiskMakesRoomFirst has a commit that finds no room: it is tried again
// when the oldest generation is gone, and its publisher hears of nothing.
func TestFullDiskMakesRoomFirst(t *testing.T) {
	for _, reject := range []bool{false, true} {
		dir := t.TempDir()
		m, err := openMeta(dir, 4096, 0, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		disk := &fullDisk{}
		var disks [NumClasses]log.Disk
		for c := range disks {
			if disks[c], err = log.Files(filepath.Join(dir, Class(c).String()), log.FileOptions{PageSize: 4096}); err != nil {
				t.Fatal(err)
			}
		}
		disk.Disk, disks[Telemetry] = disks[Telemetry], disk
		o := Options{Limits: Limits{RejectNew: reject}, GenerationBytes: 8 << 10, Free: func() (int64, error) { return 1 << 40, nil }}
		b, err := open(m, disks, o.withDefaults())
		if err != nil {
			t.Fatal(err)
		}
		q := outbox(t, b, "cloud", Telemetry)
		n := 0
		for b.Stats().Generations < 4 {
			n++
			if err := append1(t, q, n); err != nil {
				t.Fatal(err)
			}
		}
		disk.full.Store(true)
		err = append1(t, q, n+1)
		l := q.Ledger()
		if reject && (!errors.Is(err, ErrFull) || l.Stored != uint64(n)) {
			t.Errorf("told %v, want ErrFull; %+v", err, l)
		}
		if !reject && (err != nil || l.Dropped["oldest"] == 0 || l.Stored+l.Dropped["oldest"] != uint64(n+1)) {
			t.Errorf("told %v; %+v", err, l)
		}
		if disk.refused.Load() == 0 || l.Difference() != 0 {
			t.Errorf("%d commits were refused; %+v", disk.refused.Load(), l)
		}
		disk.full.Store(false)
		eventually(t, "there is room again", func() bool { return append1(t, q, n+2) == nil })
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
