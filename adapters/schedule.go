package adapters

import (
	"container/heap"
	"hash/fnv"
	"math"
	"time"
)

// A Job is one device's points of one rate: what one poll asks for.
type Job struct {
	Device  *Device
	Every   time.Duration
	Samples []Sample // one for each point, in the order of the reading; the Bus fills in what it gets

	state  *deviceState
	anchor time.Duration // cycle k begins at anchor + k*Every
	due    time.Duration // from the schedule's start, as all times here
	extra  bool          // due lies off the cycles
	turn   uint64        // when it was last taken; decides between jobs that are due at once
	index  int           // in the heap
}

const never = time.Duration(math.MaxInt64)

// firstWithin bounds the time until a job's first poll: a point that is read
// once an hour is not waited for an hour after each start.
const firstWithin = time.Second

// schedule orders jobs by due time. A job's cycles lie on a grid that nothing
// shifts. One whose turn comes late is taken once, and the cycles that it missed
// are left out and counted. Not for concurrent use.
type schedule struct {
	jobs    jobHeap
	turn    uint64
	skipped uint64
}

// add enters a job whose cycles begin at the given fraction, in [0, 1), of its
// period.
func (s *schedule) add(j *Job, phase float64) {
	j.anchor = time.Duration(phase * float64(j.Every))
	j.due = time.Duration(phase * float64(min(j.Every, firstWithin)))
	j.extra = j.due != j.anchor
	heap.Push(&s.jobs, j)
}

// next returns when the next job is due.
func (s *schedule) next() time.Duration {
	if len(s.jobs) == 0 {
		return never
	}
	return s.jobs[0].due
}

// take returns the job that is due for the longest time, or nil, and sets its
// next cycle.
func (s *schedule) take(now time.Duration) *Job {
	if s.next() > now {
		return nil
	}
	j := s.jobs[0]
	cycle := j.cycle(now)
	if !j.extra {
		s.skipped += uint64(cycle - j.cycle(j.due))
	}
	s.turn++
	j.turn = s.turn
	j.extra = false
	j.due = j.anchor + time.Duration(cycle+1)*j.Every
	heap.Fix(&s.jobs, j.index)
	return j
}

// move makes a job due at a time off its cycles, or never.
func (s *schedule) move(j *Job, due time.Duration) {
	j.due = due
	j.extra = true
	heap.Fix(&s.jobs, j.index)
}

// cycle returns the number of the cycle that t lies in.
func (j *Job) cycle(t time.Duration) int64 {
	if t < j.anchor {
		return -1 // anchor is less than Every
	}
	return int64((t - j.anchor) / j.Every)
}

// phase returns where in its period the i-th job of a link begins: links start
// at points that depend on their names, and the jobs of one lie as far apart as
// any number of them can (the golden ratio's low-discrepancy sequence).
func phase(link string, i int) float64 {
	h := fnv.New64a()
	h.Write([]byte(link))
	mixed := h.Sum64() * 0x9E3779B97F4A7C15 // FNV-1a hardly moves the high bits for the last letter
	_, f := math.Modf(float64(mixed>>11)/(1<<53) + float64(i)*math.Phi)
	return f
}

type jobHeap []*Job

func (h jobHeap) Len() int { return len(h) }

func (h jobHeap) Less(a, b int) bool {
	if h[a].due != h[b].due {
		return h[a].due < h[b].due
	}
	return h[a].turn < h[b].turn
}

func (h jobHeap) Swap(a, b int) {
	h[a], h[b] = h[b], h[a]
	h[a].index, h[b].index = a, b
}

func (h *jobHeap) Push(x any) {
	j := x.(*Job)
	j.index = len(*h)
	*h = append(*h, j)
}

func (h *jobHeap) Pop() any { // jobs stay for ever; heap.Interface wants it
	j := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return j
}
