package topic

import (
	"hash/maphash"
	"iter"
	"slices"
	"strings"
)

// children are the nodes below a node, by level: a hash table with linear probing,
// at most three quarters full. With a million filters, a search takes as long as it
// waits for memory; so all it needs to find the next node lies in one place.
type children[N any] struct {
	table []child[N] // its length is a power of two, or 0
	n     int
}

// child is a place in the table; it is free if node is nil.
type child[N any] struct {
	key  levelKey
	long *string // the level, if key does not hold all of it
	node *N
}

// levelKey is a level's first bytes, and its length or keyBytes+1 if that is more.
type levelKey [keyBytes + 1]byte

const keyBytes = 15

func keyOf(level string) (k levelKey) {
	k[keyBytes] = byte(min(copy(k[:keyBytes], level)+max(len(level)-keyBytes, 0), keyBytes+1))
	return k
}

func (c *child[N]) level() string {
	if c.long != nil {
		return *c.long
	}
	return string(c.key[:c.key[keyBytes]])
}

var levelSeed = maphash.MakeSeed()

// find returns the place of a level, or the one where it is to be put, or -1 where
// there is none.
func (c *children[N]) find(level string) int {
	if len(c.table) == 0 {
		return -1
	}
	mask := len(c.table) - 1
	key := keyOf(level)
	for i := int(maphash.String(levelSeed, level)) & mask; ; i = (i + 1) & mask {
		p := &c.table[i]
		if p.node == nil || p.key == key && (p.long == nil || *p.long == level) {
			return i
		}
	}
}

// get returns the node of a level, or nil.
func (c *children[N]) get(level string) *N {
	if i := c.find(level); i >= 0 {
		return c.table[i].node
	}
	return nil
}

// put adds the node of a level that has none.
func (c *children[N]) put(level string, n *N) {
	if 4*(c.n+1) > 3*len(c.table) {
		old := c.table
		c.table = make([]child[N], max(2, 2*len(old)))
		for i := range old {
			if p := &old[i]; p.node != nil {
				c.table[c.find(p.level())] = *p
			}
		}
	}
	p := child[N]{key: keyOf(level), node: n}
	if len(level) > keyBytes {
		p.long = new(string)
		*p.long = strings.Clone(level)
	}
	c.table[c.find(level)] = p
	c.n++
}

// remove takes a level out, and puts those behind it back to where a search for them
// finds them.
func (c *children[N]) remove(level string) {
	i := c.find(level)
	if i < 0 || c.table[i].node == nil {
		return
	}
	c.n--
	if c.n == 0 {
		c.table = nil
		return
	}
	c.table[i] = child[N]{}
	mask := len(c.table) - 1
	for j := (i + 1) & mask; c.table[j].node != nil; j = (j + 1) & mask {
		p := c.table[j]
		c.table[j] = child[N]{}
		c.table[c.find(p.level())] = p
	}
}

func (c *children[N]) all() iter.Seq2[string, *N] {
	return func(yield func(string, *N) bool) {
		for i := range c.table {
			if p := &c.table[i]; p.node != nil && !yield(p.level(), p.node) {
				return
			}
		}
	}
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
