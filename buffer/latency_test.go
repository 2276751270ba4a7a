package buffer

import (
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fieldferry/fieldferry/buffer/log"
)

func TestLatencyBuckets(t *testing.T) {
	for i := range latencyBuckets {
		from := latencyFrom(i)
		if got := latencyBucket(from); got != i {
			t.Fatalf("%v is in bucket %d, want %d", from, got, i)
		}
		if i > 0 && (latencyBucket(from-time.Microsecond) != i-1 || from > latencyFrom(i-1)*9/8 && i > latencyFine) {
			t.Fatalf("bucket %d begins at %v, the one before at %v", i, from, latencyFrom(i-1))
		}
	}
	for _, d := range []time.Duration{-time.Second, 0, time.Hour, 1 << 62} {
		if b := latencyBucket(d); b < 0 || b >= latencyBuckets {
			t.Errorf("%v is in bucket %d", d, b)
		}
	}
}

// TestLatency compares the percentile with that of all values.
func TestLatency(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		l := newLatency()
		now := l.began
		type commit struct {
			at   time.Time
			took time.Duration
		}
		var all []commit
		for range rng.IntN(500) {
			now = now.Add(time.Duration(rng.IntN(3000)) * time.Millisecond)
			took := time.Duration(rng.ExpFloat64() * float64(20*time.Millisecond))
			c := Class(rng.IntN(int(NumClasses)))
			l.start(c, now)
			now = now.Add(took)
			if got := l.underWay(now); got != took {
				t.Fatalf("%v under way, want %v", got, took)
			}
			l.end(c, now)
			all = append(all, commit{now, took})
		}
		if got := l.underWay(now); got != 0 {
			t.Fatalf("%v under way at the end", got)
		}
		now = now.Add(time.Duration(rng.IntN(400)) * time.Second)
		var recent []time.Duration
		slot := now.Sub(l.began).Truncate(latencySlotFor)
		for _, c := range all {
			if c.at.Sub(l.began) >= slot-(latencySlots-1)*latencySlotFor {
				recent = append(recent, c.took)
			}
		}
		slices.Sort(recent)
		want := time.Duration(0)
		if rank := max((len(recent)+99)/100, 2); rank <= len(recent) {
			want = recent[len(recent)-rank]
		}
		if got := l.p99(now); got != latencyFrom(latencyBucket(want)) {
			t.Fatalf("p99 of %d commits is %v, want %v", len(recent), got, want)
		}
	}
}

// slowDisk takes its time for a commit.
type slowDisk struct {
	log.Disk
	takes atomic.Int64
}

type slowGeneration struct {
	log.Generation
	disk *slowDisk
}

func (d *slowDisk) Create(id log.GenID) (log.Generation, error) {
	g, err := d.Disk.Create(id)
	return slowGeneration{g, d}, err
}

func (g slowGeneration) Put(first log.Seq, block []byte) error {
	time.Sleep(time.Duration(g.disk.takes.Load()))
	return g.Generation.Put(first, block)
}

// TestCommitP99 has a disk become slow, hang, and become fast again.
func TestCommitP99(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		m, err := openMeta(dir, 4096, 0, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		slow := &slowDisk{}
		var disks [NumClasses]log.Disk
		for c := range disks {
			if disks[c], err = log.Files(filepath.Join(dir, Class(c).String()), log.FileOptions{PageSize: 4096}); err != nil {
				t.Fatal(err)
			}
		}
		slow.Disk, disks[Telemetry] = disks[Telemetry], slow
		o := Options{Clock: &setClock{wall: time.Now(), boot: 1}, Free: func() (int64, error) { return 1 << 40, nil }}
		b, err := open(m, disks, o.withDefaults())
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		q := outbox(t, b, "cloud", Telemetry)
		n := 0
		commits := func(count int, takes time.Duration) {
			t.Helper()
			slow.takes.Store(int64(takes))
			for range count {
				n++
				if err := append1(t, q, n); err != nil {
					t.Fatal(err)
				}
			}
		}
		between := func(low, high time.Duration) {
			t.Helper()
			if p := b.CommitP99(); p < low || p > high {
				t.Errorf("p99 is %v, want %v to %v", p, low, high)
			}
		}
		between(0, 0)
		commits(1, time.Second)
		between(0, 0) // one is no trend
		commits(150, time.Millisecond)
		between(800*time.Microsecond, time.Millisecond)
		commits(2, 150*time.Millisecond)
		between(130*time.Millisecond, 150*time.Millisecond)

		slow.takes.Store(int64(time.Minute))
		told := make(receipt, 1)
		if err := b.Append(t.Context(), Telemetry, &Message{Topic: "t", Urgent: true, Copies: []Copy{{Outbox: q}}}, told); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if d := b.CommitUnderWay(); d != 20*time.Second {
			t.Errorf("a commit is under way for %v, want 20s", d)
		}
		if err := <-told; err != nil {
			t.Error(err)
		}
		if d := b.CommitUnderWay(); d != 0 {
			t.Errorf("a commit is under way for %v, but it has ended", d)
		}
		time.Sleep(5 * time.Minute)
		commits(10, 2*time.Millisecond)
		between(1800*time.Microsecond, 2*time.Millisecond)
		time.Sleep(5 * time.Minute)
		between(0, 0)
	})
}
