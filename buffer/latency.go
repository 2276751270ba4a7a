package buffer

import (
	"math/bits"
	"sync"
	"time"

	"github.com/fieldferry/fieldferry/buffer/log"
)

// latency counts how long commits took over the last five minutes: one count for
// each commit, whatever number of messages it holds.
type latency struct {
	began time.Time

	mu      sync.Mutex                // guards what follows
	slots   [latencySlots]latencySlot // a ring over time
	running [NumClasses]time.Time     // when the commit under way began; zero if there is none
}

// latencySlot is a part of that time.
type latencySlot struct {
	turn   int64 // since began, in latencySlot lengths
	counts [latencyBuckets]uint32
}

const (
	latencySlots   = 10
	latencySlotFor = 30 * time.Second
	latencyFine    = 8                // buckets for each doubling: within 12 %
	latencyBuckets = 31 * latencyFine // to 2^31 µs, 36 minutes
)

// latencyBucket is the bucket of a duration, latencyFrom its lower edge.
func latencyBucket(d time.Duration) int {
	us := uint64(max(d.Microseconds(), 0))
	if us < 2*latencyFine {
		return int(us)
	}
	shift := bits.Len64(us) - bits.Len(latencyFine)
	return min(shift*latencyFine+int(us>>shift), latencyBuckets-1)
}

func latencyFrom(bucket int) time.Duration {
	if bucket < 2*latencyFine {
		return time.Duration(bucket) * time.Microsecond
	}
	shift := bucket/latencyFine - 1
	return time.Duration(bucket%latencyFine+latencyFine) << shift * time.Microsecond
}

func newLatency() *latency { return &latency{began: time.Now()} }

func (l *latency) start(c Class, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running[c] = now
}

func (l *latency) end(c Class, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	turn := int64(now.Sub(l.began) / latencySlotFor)
	s := &l.slots[turn%latencySlots]
	if s.turn != turn {
		*s = latencySlot{turn: turn}
	}
	s.counts[latencyBucket(now.Sub(l.running[c]))]++
	l.running[c] = time.Time{}
}

// p99 is what one commit in a hundred takes or exceeds. A single slow one is never
// it: where there are few commits, it is the second slowest.
func (l *latency) p99(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	turn := int64(now.Sub(l.began) / latencySlotFor)
	var counts [latencyBuckets]uint64
	total := uint64(0)
	for i := range l.slots {
		if l.slots[i].turn <= turn-latencySlots {
			continue
		}
		for bucket, n := range l.slots[i].counts {
			counts[bucket] += uint64(n)
			total += uint64(n)
		}
	}
	rank := max((total+99)/100, 2)
	for bucket := latencyBuckets - 1; bucket >= 0; bucket-- {
		if n := counts[bucket]; n < rank {
			rank -= n
			continue
		}
		return latencyFrom(bucket)
	}
	return 0
}

// underWay is how long the commit that began first has taken, of those that have
// not ended.
func (l *latency) underWay(now time.Time) (longest time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, began := range l.running {
		if !began.IsZero() {
			longest = max(longest, now.Sub(began))
		}
	}
	return longest
}

// CommitP99 is how long commits take to become durable: one in a hundred of the last
// five minutes took that long or longer, to within 12 %. A single slow one does not
// count; with fewer than two commits it is 0.
func (b *Buffer) CommitP99() time.Duration { return b.latency.p99(time.Now()) }

// CommitUnderWay is how long the disk has been at a commit that has not ended yet, 0 if
// there is none: it may never end.
func (b *Buffer) CommitUnderWay() time.Duration { return b.latency.underWay(time.Now()) }

// timedDisk measures the commits of a class.
type timedDisk struct {
	log.Disk
	class   Class
	latency *latency
}

type timedGeneration struct {
	log.Generation
	disk timedDisk
}

func (d timedDisk) Create(id log.GenID) (log.Generation, error) {
	g, err := d.Disk.Create(id)
	if err != nil {
		return nil, err
	}
	return timedGeneration{g, d}, nil
}

// Put is called by one goroutine of the class. That one fails is no reason for
// its time not to count: a dying disk takes long to say so.
func (g timedGeneration) Put(first log.Seq, block []byte) error {
	g.disk.latency.start(g.disk.class, time.Now())
	err := g.Generation.Put(first, block)
	g.disk.latency.end(g.disk.class, time.Now())
	return err
}
