package adapters

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestPlan(t *testing.T) {
	tests := []struct {
		name       string
		spans      []Span
		limit, gap int
		want       []Block
	}{
		{"none", nil, 125, 0, nil},
		{"touching", []Span{{2, 2}, {0, 2}}, 125, 0, []Block{{0, 4, []int{1, 0}}}},
		{"apart", []Span{{0, 2}, {3, 1}}, 125, 0, []Block{{0, 2, []int{0}}, {3, 1, []int{1}}}},
		{"a gap allowed", []Span{{0, 2}, {3, 1}}, 125, 1, []Block{{0, 4, []int{0, 1}}}},
		{"overlap", []Span{{0, 4}, {2, 1}, {3, 2}}, 125, 0, []Block{{0, 5, []int{0, 1, 2}}}},
		{"the same twice", []Span{{7, 1}, {7, 1}}, 125, 0, []Block{{7, 1, []int{0, 1}}}},
		{"limit", []Span{{0, 2}, {2, 2}, {4, 2}}, 5, 0, []Block{{0, 4, []int{0, 1}}, {4, 2, []int{2}}}},
		{"overlap past the limit", []Span{{0, 4}, {2, 4}}, 5, 0, []Block{{0, 4, []int{0}}, {2, 4, []int{1}}}},
	}
	for _, test := range tests {
		if diff := cmp.Diff(test.want, Plan(test.spans, test.limit, test.gap, nil)); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", test.name, diff)
		}
	}
}

func spans(limit int) *rapid.Generator[[]Span] {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Span {
		return Span{rapid.IntRange(0, 300).Draw(t, "start"), rapid.IntRange(1, min(limit, 8)).Draw(t, "count")}
	}), 1, 60)
}

func TestPlanModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 125).Draw(t, "limit")
		gap := rapid.IntRange(0, 40).Draw(t, "gap")
		all := spans(limit).Draw(t, "spans")
		walls := rapid.SliceOfN(rapid.IntRange(0, 310), 0, 4).Draw(t, "walls")
		blocks := Plan(all, limit, gap, walls)
		var covered []int
		for i, b := range blocks {
			covered = append(covered, b.Spans...)
			checkBlock(t, b, all)
			if b.Count > limit {
				t.Fatalf("block %v is longer than %d", b, limit)
			}
			end := b.Start // no gap in it is wider than allowed
			for _, s := range b.Spans {
				if walled(b.Start, all[s].Start, walls) {
					t.Fatalf("block %v goes through a wall of %v", b, walls)
				}
				if all[s].Start-end > gap {
					t.Fatalf("block %v bridges %d", b, all[s].Start-end)
				}
				end = max(end, all[s].Start+all[s].Count)
			}
			if i == 0 {
				continue
			}
			// What stands apart had to.
			last, next := blocks[i-1], all[b.Spans[0]]
			merged := max(last.Start+last.Count, next.Start+next.Count) - last.Start
			if next.Start-(last.Start+last.Count) <= gap && merged <= limit && !walled(last.Start, next.Start, walls) {
				t.Fatalf("%v and %v could share a request", last, next)
			}
		}
		slices.Sort(covered)
		for i := range all {
			if i >= len(covered) || covered[i] != i {
				t.Fatalf("blocks hold %v, not each of %d once", covered, len(all))
			}
		}
	})
}

func walled(from, to int, walls []int) bool {
	for a := from + 1; a <= to; a++ {
		if slices.Contains(walls, a) {
			return true
		}
	}
	return false
}

// checkBlock fails unless b is exactly what its spans take.
func checkBlock(t *rapid.T, b Block, all []Span) {
	low, high := 1<<20, 0
	for _, i := range b.Spans {
		low, high = min(low, all[i].Start), max(high, all[i].Start+all[i].Count)
	}
	if b.Start != low || b.Start+b.Count != high {
		t.Fatalf("block %v holds %d to %d", b, low, high)
	}
}

func TestSplit(t *testing.T) {
	all := []Span{{0, 1}, {1, 1}, {2, 1}, {3, 1}, {10, 1}, {12, 1}}
	tests := []struct {
		in, left, right []int
	}{
		{[]int{0}, nil, nil},
		{[]int{0, 1}, []int{0}, []int{1}},
		{[]int{0, 1, 2, 3}, []int{0, 1}, []int{2, 3}},
		{[]int{2, 3, 4, 5}, []int{2, 3}, []int{4, 5}}, // at the widest gap
	}
	for _, test := range tests {
		left, right, ok := bound(test.in, all).Split(all)
		if ok != (test.left != nil) {
			t.Errorf("%v: split %v", test.in, ok)
		} else if ok && (!slices.Equal(left.Spans, test.left) || !slices.Equal(right.Spans, test.right)) {
			t.Errorf("%v: %v and %v", test.in, left, right)
		}
	}
}

func TestSplitModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := spans(8).Draw(t, "spans")
		todo := Plan(all, 400, 400, nil) // one block
		var singles []int
		for len(todo) > 0 {
			b := todo[0]
			left, right, ok := b.Split(all)
			todo = todo[1:]
			if !ok {
				singles = append(singles, b.Spans...)
				continue
			}
			checkBlock(t, left, all)
			checkBlock(t, right, all)
			if left.Start+left.Count > right.Start {
				t.Fatalf("%v and %v overlap", left, right)
			}
			todo = append(todo, left, right)
		}
		if slices.Sort(singles); len(singles) != len(all) || len(slices.Compact(singles)) != len(all) {
			t.Fatalf("%v left of %d", singles, len(all))
		}
	})
}
