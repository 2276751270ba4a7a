package topic

import "strings"

// Names holds one value under each of a set of topic names and finds those
// that a filter matches. The zero value is empty. It does no locking: any
// number may search at the same time, but only while none changes it.
type Names[T any] struct {
	root nameNode[T]
	n    int
}

type nameNode[T any] struct {
	children children[nameNode[T]]
	value    T
	set      bool
}

// Set puts v under name in place of what was there.
func (s *Names[T]) Set(name string, v T) {
	n := &s.root
	for more := true; more; {
		var level string
		level, name, more = strings.Cut(name, "/")
		child := n.children.get(level)
		if child == nil {
			child = new(nameNode[T])
			n.children.put(level, child)
		}
		n = child
	}
	if !n.set {
		s.n++
	}
	n.value, n.set = v, true
}

// Get returns what is under name.
func (s *Names[T]) Get(name string) (v T, ok bool) {
	n := &s.root
	for more := true; more && n != nil; {
		var level string
		level, name, more = strings.Cut(name, "/")
		n = n.children.get(level)
	}
	if n == nil {
		return v, false
	}
	return n.value, n.set
}

// Delete takes away what is under name and reports whether there was anything.
func (s *Names[T]) Delete(name string) bool {
	if !s.root.remove(name) {
		return false
	}
	s.n--
	return true
}

func (n *nameNode[T]) remove(name string) bool {
	level, rest, more := strings.Cut(name, "/")
	child := n.children.get(level)
	switch {
	case child == nil:
		return false
	case more:
		if !child.remove(rest) {
			return false
		}
	case !child.set:
		return false
	default:
		var none T
		child.value, child.set = none, false
	}
	if !child.set && child.children.n == 0 {
		n.children.remove(level)
	}
	return true
}

// Len is the number of names.
func (s *Names[T]) Len() int { return s.n }

// AppendMatches appends to dst the values of the names that filter matches; it
// is valid and has no share. Their order is not determined.
func (s *Names[T]) AppendMatches(dst []T, filter string) []T {
	return s.root.match(dst, filter, true)
}

func (n *nameNode[T]) match(dst []T, filter string, first bool) []T {
	level, rest, more := strings.Cut(filter, "/")
	switch level {
	case "#":
		return n.all(dst, first)
	case "+":
		for name, child := range n.children.all() {
			if !first || !hidden(name) {
				dst = child.step(dst, rest, more)
			}
		}
		return dst
	}
	if child := n.children.get(level); child != nil {
		dst = child.step(dst, rest, more)
	}
	return dst
}

func (n *nameNode[T]) step(dst []T, rest string, more bool) []T {
	if more {
		return n.match(dst, rest, false)
	}
	if n.set {
		dst = append(dst, n.value)
	}
	return dst
}

// all appends what is at n and below it: # matches its parent level, too.
func (n *nameNode[T]) all(dst []T, first bool) []T {
	if n.set {
		dst = append(dst, n.value)
	}
	for name, child := range n.children.all() {
		if !first || !hidden(name) {
			dst = child.all(dst, false)
		}
	}
	return dst
}
