package topic

import "strings"

// Filters holds values under topic filters and finds those whose filter
// matches a name. Finding takes time with the levels of the name and the
// matches, not with the number of filters. The zero value is empty. It does no
// locking: any number may search at the same time, but only while none changes it.
type Filters[T comparable] struct {
	root filterNode[T]
	n    int
}

type filterNode[T comparable] struct {
	children children[filterNode[T]]
	plus     *filterNode[T] // the level +
	here     values[T]      // of the filter that ends here
	below    values[T]      // of the filter that goes on with just #
}

// Add puts v under filter, which is valid and has no share. A value is under a
// filter once: adding it again changes nothing.
func (f *Filters[T]) Add(filter string, v T) {
	n := &f.root
	for more := true; more; {
		var level string
		level, filter, more = strings.Cut(filter, "/")
		switch level {
		case "#":
			if n.below.add(v) {
				f.n++
			}
			return
		case "+":
			if n.plus == nil {
				n.plus = new(filterNode[T])
			}
			n = n.plus
		default:
			child := n.children.get(level)
			if child == nil {
				child = new(filterNode[T])
				n.children.put(level, child)
			}
			n = child
		}
	}
	if n.here.add(v) {
		f.n++
	}
}

// Remove takes v from under filter and reports whether it was there.
func (f *Filters[T]) Remove(filter string, v T) bool {
	if !f.root.remove(filter, v) {
		return false
	}
	f.n--
	return true
}

// Len is the number of values, counted once for each filter they are under.
func (f *Filters[T]) Len() int { return f.n }

// AppendMatches appends to dst the values whose filter matches name, which is
// valid. It returns the number of filters they came from as well: a value can
// be in dst twice only if that is more than one.
func (f *Filters[T]) AppendMatches(dst []T, name string) (matches []T, filters int) {
	m := matcher[T]{values: dst}
	m.walk(&f.root, name, hidden(name))
	return m.values, m.filters
}

type matcher[T comparable] struct {
	values  []T
	filters int
}

func (m *matcher[T]) take(v *values[T]) {
	if v.n > 0 {
		m.values = v.appendTo(m.values)
		m.filters++
	}
}

// walk collects what matches name from n down; literal: no wildcard matches
// the first level of name.
func (m *matcher[T]) walk(n *filterNode[T], name string, literal bool) {
	level, rest, more := strings.Cut(name, "/")
	if !literal {
		m.take(&n.below)
		m.step(n.plus, rest, more)
	}
	m.step(n.children.get(level), rest, more)
}

func (m *matcher[T]) step(n *filterNode[T], rest string, more bool) {
	switch {
	case n == nil:
	case more:
		m.walk(n, rest, false)
	default:
		m.take(&n.here)
		m.take(&n.below) // a/# matches a
	}
}

// remove takes v away, and nodes that are left without use.
func (n *filterNode[T]) remove(filter string, v T) bool {
	level, rest, more := strings.Cut(filter, "/")
	if level == "#" {
		return n.below.remove(v)
	}
	child := n.plus
	if level != "+" {
		child = n.children.get(level)
	}
	if child == nil {
		return false
	}
	if more && !child.remove(rest, v) || !more && !child.here.remove(v) {
		return false
	}
	if child.children.n+child.here.n+child.below.n == 0 && child.plus == nil {
		if level == "+" {
			n.plus = nil
		} else {
			n.children.remove(level)
		}
	}
	return true
}
