package buffer

import (
	"slices"
	"sort"
)

// run is ordinals without a gap.
type run struct{ first, last uint64 }

// runs is a set of ordinals: runs in order that neither overlap nor touch.
type runs []run

// add puts a run into the set.
func (s runs) add(r run) runs {
	// The runs it touches become one with it. Mostly it comes after the last.
	i := len(s)
	for i > 0 && s[i-1].last+1 >= r.first {
		i--
	}
	j := i
	for j < len(s) && s[j].first <= r.last+1 {
		r.first, r.last = min(r.first, s[j].first), max(r.last, s[j].last)
		j++
	}
	return slices.Replace(s, i, j, r)
}

// len is how many ordinals are in the set.
func (s runs) len() (n uint64) {
	for _, r := range s {
		n += r.last - r.first + 1
	}
	return n
}

// has reports whether an ordinal is in the set.
func (s runs) has(ordinal uint64) bool {
	i := sort.Search(len(s), func(i int) bool { return s[i].last >= ordinal })
	return i < len(s) && s[i].first <= ordinal
}

// without returns the ordinals that are not in other.
func (s runs) without(other runs) (rest runs) {
	for _, r := range s {
		i := sort.Search(len(other), func(i int) bool { return other[i].last >= r.first })
		for ; i < len(other) && other[i].first <= r.last; i++ {
			if other[i].first > r.first {
				rest = append(rest, run{r.first, other[i].first - 1})
			}
			r.first = other[i].last + 1
		}
		if r.first <= r.last {
			rest = append(rest, r)
		}
	}
	return rest
}

// below returns the ordinals that are below a limit.
func (s runs) below(limit uint64) runs {
	for i, r := range s {
		if r.last >= limit {
			s = slices.Clone(s[:i])
			if r.first < limit {
				s = append(s, run{r.first, limit - 1})
			}
			break
		}
	}
	return s
}

// unsettled returns the ordinals of the copies that are accepted and not settled.
// o.mu is held.
func (o *Outbox) unsettled() (open runs) {
	first := o.cursor + 1
	settled := func(r run) { // in order
		if r.first > first {
			open = append(open, run{first, r.first - 1})
		}
		first = max(first, r.last+1)
	}
	voids := o.voids
	for i := range uint64(max(len(o.window), 1)) - 1 { // the slot of the cursor itself is free
		ordinal := o.cursor + 1 + i
		for len(voids) > 0 && voids[0].first <= ordinal {
			settled(run{voids[0].first, voids[0].last})
			voids = voids[1:]
		}
		if o.window[ordinal&uint64(len(o.window)-1)] != 0 {
			settled(run{ordinal, ordinal})
		}
	}
	for _, v := range voids {
		settled(run{v.first, v.last})
	}
	settled(run{o.next, o.next})
	return open
}
