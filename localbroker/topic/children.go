package topic

import (
	"hash/maphash"
	"iter"
	"slices"
	"strings"
)

// children are the nodes below a node, by level. Most nodes have few, and those
// lie in one piece of memory: with a million filters, how much memory a search
// touches is how long it takes.
type children[N any] struct {
	few  []child[N]
	many map[string]*N // in place of few once it is too long
}

type child[N any] struct {
	level string
	node  *N
}

const maxFew = 8

func (c *children[N]) len() int { return len(c.few) + len(c.many) }

// get returns the node of a level, or nil.
func (c *children[N]) get(level string) *N {
	if c.many != nil {
		return c.many[level]
	}
	for i := range c.few {
		if c.few[i].level == level {
			return c.few[i].node
		}
	}
	return nil
}

// put adds the node of a level that has none.
func (c *children[N]) put(level string, n *N) {
	if c.many == nil && len(c.few) < maxFew {
		c.few = append(c.few, child[N]{level, n})
		return
	}
	if c.many == nil {
		c.many = make(map[string]*N, 2*maxFew)
		for _, f := range c.few {
			c.many[f.level] = f.node
		}
		c.few = nil
	}
	c.many[level] = n
}

func (c *children[N]) remove(level string) {
	if c.many != nil {
		delete(c.many, level)
		return
	}
	c.few = slices.DeleteFunc(c.few, func(f child[N]) bool { return f.level == level })
}

func (c *children[N]) all() iter.Seq2[string, *N] {
	return func(yield func(string, *N) bool) {
		for _, f := range c.few {
			if !yield(f.level, f.node) {
				return
			}
		}
		for level, n := range c.many {
			if !yield(level, n) {
				return
			}
		}
	}
}

// levels lets the names of levels that come again and again, such as a data type,
// be in memory but a few times.
type levels struct {
	recent *[256]string // by hash
}

var levelSeed = maphash.MakeSeed()

// own returns a copy of a level's name that nobody changes.
func (l *levels) own(level string) string {
	if l.recent == nil {
		l.recent = new([256]string)
	}
	known := &l.recent[maphash.String(levelSeed, level)%uint64(len(l.recent))]
	if *known != level {
		*known = strings.Clone(level)
	}
	return *known
}

// values are those under a filter. Most often there is one, which takes no memory
// of its own.
type values[T comparable] struct {
	n     int
	first T
	more  *[]T // all but the first; nil is none
}

func (v *values[T]) appendTo(dst []T) []T {
	if v.n > 0 {
		dst = append(dst, v.first)
	}
	if v.more != nil {
		dst = append(dst, *v.more...)
	}
	return dst
}

// add reports whether t was not there.
func (v *values[T]) add(t T) bool {
	if v.n == 0 {
		v.first, v.n = t, 1
		return true
	}
	if v.first == t || v.more != nil && slices.Contains(*v.more, t) {
		return false
	}
	if v.more == nil {
		v.more = new([]T)
	}
	*v.more = append(*v.more, t)
	v.n++
	return true
}

// remove reports whether t was there.
func (v *values[T]) remove(t T) bool {
	switch {
	case v.n == 0:
		return false
	case v.first == t && v.n == 1:
		*v = values[T]{}
		return true
	case v.first == t:
		v.first = (*v.more)[0]
		*v.more = slices.Delete(*v.more, 0, 1)
	case v.more == nil:
		return false
	default:
		i := slices.Index(*v.more, t)
		if i < 0 {
			return false
		}
		*v.more = slices.Delete(*v.more, i, i+1)
	}
	v.n--
	if v.n == 1 {
		v.more = nil
	}
	return true
}
