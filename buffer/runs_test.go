package buffer

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// TestRuns compares sets of ordinals with maps.
func TestRuns(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const limit = 40
		draw := func(name string) (runs, map[uint64]bool) {
			var s runs
			m := make(map[uint64]bool)
			for range rapid.IntRange(0, 12).Draw(t, name) {
				first := rapid.Uint64Range(1, limit).Draw(t, "first")
				last := min(first+rapid.Uint64Range(0, 6).Draw(t, "more"), limit)
				s = s.add(run{first, last})
				for i := first; i <= last; i++ {
					m[i] = true
				}
			}
			return s, m
		}
		a, inA := draw("a")
		b, inB := draw("b")
		below := rapid.Uint64Range(1, limit+1).Draw(t, "below")
		check := func(what string, s runs, in func(uint64) bool) {
			var want runs
			for i := uint64(1); i <= limit; i++ {
				if s.has(i) != in(i) {
					t.Fatalf("%s: has(%d) is %v in %v", what, i, s.has(i), s)
				}
				if in(i) {
					if n := len(want); n > 0 && want[n-1].last == i-1 {
						want[n-1].last = i
					} else {
						want = append(want, run{i, i})
					}
				}
			}
			if diff := cmp.Diff(want, s, cmp.AllowUnexported(run{})); diff != "" && len(want)+len(s) > 0 {
				t.Fatalf("%s (-want +got):\n%s", what, diff)
			}
		}
		check("add", a, func(i uint64) bool { return inA[i] })
		if a.len() != uint64(len(inA)) {
			t.Fatalf("len of %v is %d, want %d", a, a.len(), len(inA))
		}
		check("without", a.without(b), func(i uint64) bool { return inA[i] && !inB[i] })
		check("below", a.below(below), func(i uint64) bool { return inA[i] && i < below })
		check("a after all", a, func(i uint64) bool { return inA[i] })
	})
}
