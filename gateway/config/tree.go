package config

import (
	"strings"
	"unicode/utf8"
)

// kind is what a node is.
type kind uint8

const (
	scalar kind = iota
	mapping
	list
)

// source is a file that nodes come from.
type source struct {
	name string // as it was named, for people
	dir  string // absolute: where its relative paths begin
}

// node is a place in a site file and what stands there. Nodes may be shared
// between several places, by aliases and profiles, so they do not change once
// the references are resolved; what changes them makes new ones.
type node struct {
	src       *source
	line, col int32
	step      int32 // of what a range made, its number from 0
	size      int32 // nodes from here down, each as often as it is reached
	kind      kind
	plain     bool // a scalar without quotes
	computed  bool // a scalar's text comes from a reference, a parameter or a range
	resolved  bool // its references are replaced, and those below it
	broken    bool // its problem is reported already; whoever reads it gives up in silence
	text      string
	written   string // the text as it was written, if what replaced it may be a secret
	entries   []entry
	items     []*node
	ranged    bool // it is one of what a range made
	stepped   bool // a scalar has a range of its own
}

// entry is a key of a map with its value.
type entry struct{ key, val *node }

func (n *node) pos() Pos { return Pos{n.src.name, int(n.line), int(n.col)} }

// get finds a key of a map; nil if it is not there.
func (n *node) get(key string) *entry {
	if n == nil {
		return nil
	}
	for i := range n.entries {
		if n.entries[i].key.text == key {
			return &n.entries[i]
		}
	}
	return nil
}

// value is the value of a key of a map; nil if it is not there.
func (n *node) value(key string) *node {
	if e := n.get(key); e != nil {
		return e.val
	}
	return nil
}

// isNull reports whether n is a scalar with nothing in it, as in "key:".
func (n *node) isNull() bool {
	if n.kind != scalar || !n.plain {
		return false
	}
	switch n.text {
	case "", "~", "null", "Null", "NULL":
		return true
	}
	return false
}

// what names n's kind for people, with its text if it has one.
func (n *node) what() string {
	switch {
	case n.kind == mapping:
		return "a map"
	case n.kind == list:
		return "a list"
	case n.isNull():
		return "nothing"
	}
	return n.quote()
}

// quote is n's text for people: not what a secret is, and not too long.
func (n *node) quote() string {
	if n.written != "" {
		return quote(n.written)
	}
	return quote(n.text)
}

func quote(s string) string {
	const most = 60
	if len(s) > most {
		cut := most
		for !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut] + "…"
	}
	return `"` + strings.Map(func(r rune) rune {
		if r < ' ' || r == utf8.RuneError || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '·' // also what would turn the direction of the line
		}
		return r
	}, s) + `"`
}

// merge returns base with over laid upon it: maps merge key by key, everything
// else of over replaces what base has. The order is that of base, then what
// over adds.
func merge(base, over *node) *node {
	if base.kind != mapping || over.kind != mapping || base.broken || over.broken {
		return over
	}
	m := *over
	if base.ranged && !over.ranged {
		m.ranged, m.step = true, base.step
	}
	m.entries = make([]entry, len(base.entries), len(base.entries)+len(over.entries))
	copy(m.entries, base.entries)
	at := make(map[string]int, len(m.entries))
	for i, e := range m.entries {
		at[e.key.text] = i
	}
	for _, e := range over.entries {
		if i, ok := at[e.key.text]; ok {
			m.entries[i] = entry{e.key, merge(m.entries[i].val, e.val)}
			continue
		}
		m.entries = append(m.entries, e)
	}
	return &m
}

// without returns a map without some of its keys.
func (n *node) without(keys ...string) *node {
	m := *n
	m.entries = nil
next:
	for _, e := range n.entries {
		for _, k := range keys {
			if e.key.text == k {
				continue next
			}
		}
		m.entries = append(m.entries, e)
	}
	return &m
}

// rewrite returns n with f applied to every scalar below it that is not a key;
// where f changes none, that is n itself. f returns its argument to leave it.
func (n *node) rewrite(f func(*node) *node) *node {
	switch n.kind {
	case scalar:
		if n.broken {
			return n
		}
		return f(n)
	case list:
		var m *node
		for i, it := range n.items {
			if r := it.rewrite(f); r != it {
				if m == nil {
					c := *n
					c.items = append([]*node(nil), n.items...)
					m = &c
				}
				m.items[i] = r
			}
		}
		if m != nil {
			return m
		}
	case mapping:
		var m *node
		for i, e := range n.entries {
			if r := e.val.rewrite(f); r != e.val {
				if m == nil {
					c := *n
					c.entries = append([]entry(nil), n.entries...)
					m = &c
				}
				m.entries[i].val = r
			}
		}
		if m != nil {
			return m
		}
	}
	return n
}
