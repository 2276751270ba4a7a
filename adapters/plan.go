package adapters

import (
	"cmp"
	"slices"
)

// A Span is a value in an address space: Count registers, or bits, from Start.
type Span struct {
	Start, Count int
}

// A Block is one request: Count registers, or bits, from Start, which hold the
// spans with the indices in Spans, in ascending order of address.
type Block struct {
	Start, Count int
	Spans        []int
}

// Plan merges spans into few blocks of at most limit each. Spans that touch or
// overlap share a block, and so do those with a gap of at most gap between
// them, unless one of the walls is in between: a wall at w parts what starts
// before w from what starts at w or after. No span is divided; one that is
// longer than limit has a block of its own, and is the caller's mistake.
func Plan(spans []Span, limit, gap int, walls []int) []Block {
	order := make([]int, len(spans))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(spans[a].Start, spans[b].Start), cmp.Compare(spans[a].Count, spans[b].Count))
	})
	var blocks []Block
	for _, i := range order {
		s := spans[i]
		if n := len(blocks); n > 0 {
			b := &blocks[n-1]
			end := max(b.Start+b.Count, s.Start+s.Count)
			walled := slices.ContainsFunc(walls, func(w int) bool { return b.Start < w && w <= s.Start })
			if s.Start-(b.Start+b.Count) <= gap && end-b.Start <= limit && !walled {
				b.Count = end - b.Start
				b.Spans = append(b.Spans, i)
				continue
			}
		}
		blocks = append(blocks, Block{Start: s.Start, Count: s.Count, Spans: []int{i}})
	}
	return blocks
}

// Split divides a block that a device refused into two that it may answer: at
// its widest gap, or else as near to the middle as it goes without dividing a
// span. It reports false if the block holds nothing to divide.
func (b Block) Split(spans []Span) (left, right Block, ok bool) {
	cut, widest, nearest := 0, 0, b.Count
	end := b.Start // of the spans before the cut
	for k, i := range b.Spans {
		s := spans[i]
		if k > 0 && s.Start >= end {
			gap := s.Start - end
			off := s.Start - b.Start - b.Count/2
			off = max(off, -off)
			if gap > widest || gap == widest && off < nearest {
				cut, widest, nearest = k, gap, off
			}
		}
		end = max(end, s.Start+s.Count)
	}
	if cut == 0 {
		return b, Block{}, false
	}
	return bound(b.Spans[:cut], spans), bound(b.Spans[cut:], spans), true
}

// bound returns the block that holds the given spans.
func bound(in []int, spans []Span) Block {
	b := Block{Start: spans[in[0]].Start, Spans: in}
	for _, i := range in {
		b.Count = max(b.Count, spans[i].Start+spans[i].Count-b.Start)
	}
	return b
}
