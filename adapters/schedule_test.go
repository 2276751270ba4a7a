package adapters

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestScheduleModel lets time pass and jobs be taken at random, and checks that
// every job runs once a cycle, or that the cycle is counted as skipped.
func TestScheduleModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s schedule
		type model struct {
			job   *Job
			extra bool          // due off its cycles
			due   time.Duration // always known beforehand
		}
		var jobs []*model
		for range rapid.IntRange(1, 8).Draw(t, "jobs") {
			j := &Job{Every: time.Duration(rapid.IntRange(1, 5000).Draw(t, "every")) * time.Millisecond}
			s.add(j, rapid.Float64Range(0, 0.999).Draw(t, "phase"))
			if j.due > min(j.Every, firstWithin) || j.anchor >= j.Every {
				t.Fatalf("first due after %v, cycles from %v, every %v", j.due, j.anchor, j.Every)
			}
			jobs = append(jobs, &model{j, j.due != j.anchor, j.due})
		}
		find := func(j *Job) *model { return jobs[slices.IndexFunc(jobs, func(m *model) bool { return m.job == j })] }
		now := time.Duration(0)
		for range 200 {
			now += time.Duration(rapid.Int64Range(0, int64(2*time.Second)).Draw(t, "pass"))
			for range rapid.IntRange(0, 6).Draw(t, "takes") {
				earliest := slices.MinFunc(jobs, func(a, b *model) int { return int(a.due - b.due) }).due
				if s.next() != earliest {
					t.Fatalf("next at %v, want %v", s.next(), earliest)
				}
				before := s.skipped
				j := s.take(now)
				if (j == nil) != (earliest > now) {
					t.Fatalf("at %v, with one due at %v: %v", now, earliest, j)
				}
				if j == nil {
					break
				}
				m := find(j)
				if m.due != earliest {
					t.Fatalf("took one due at %v before one due at %v", m.due, earliest)
				}
				// The cycle that it runs in is the one that now belongs to; all
				// between the one that was due and that are left out.
				next, left := m.due, uint64(0)
				if m.extra {
					next = j.anchor
					for next <= now {
						next += j.Every
					}
				} else {
					for next += j.Every; next <= now; next += j.Every {
						left++
					}
				}
				if s.skipped-before != left {
					t.Fatalf("%d cycles counted as skipped, want %d", s.skipped-before, left)
				}
				if j.due != next {
					t.Fatalf("due at %v, want %v: the cycles moved", j.due, next)
				}
				m.due, m.extra = next, false
			}
		}
	})
}

func TestScheduleTakesTurns(t *testing.T) {
	var s schedule
	for i := range 3 {
		s.add(&Job{Every: time.Second, Device: &Device{Name: fmt.Sprint(i)}}, 0)
	}
	var order string
	for now := range time.Duration(4) {
		for j := s.take(now * time.Second); j != nil; j = s.take(now * time.Second) {
			order += j.Device.Name
		}
	}
	if first := order[:3]; order != first+first+first+first {
		t.Errorf("order %s: not in turn", order)
	}
}

func TestPhasesAreSpread(t *testing.T) {
	const n = 1000
	check := func(name string, phases []float64) {
		var in [20]int
		for _, p := range phases {
			if p < 0 || p >= 1 {
				t.Fatalf("%s: phase %v", name, p)
			}
			in[int(p*20)]++
		}
		for i, k := range in {
			if k < n/40 || k > n/10 {
				t.Errorf("%s: %d of %d in part %d of 20", name, k, n, i)
			}
		}
	}
	var jobs, links []float64
	for i := range n {
		jobs = append(jobs, phase("line-1", i))
		links = append(links, phase(fmt.Sprintf("inv-%03d", i), 0))
	}
	check("jobs of a link", jobs)
	check("links", links)
}
