package config

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strings"
)

// decoder reads one site file. It collects what is wrong and goes on, so that
// all of it is told at once.
type decoder struct {
	getenv   func(string) (string, bool)
	problems []Problem
	told     map[Problem]bool
	veiled   map[Pos]*node  // what may be a secret
	whole    map[Pos]string // where a ${file:} stands alone, the absolute name of its file
	errors   int            // of the problems
	dropped  int            // problems beyond maxProblems

	src   *source // the site file
	files []string
	order map[string]int // of the names of files, for sorting
	texts map[string]string
	full  bool // a bound is exceeded, so that no more files are read
	bytes int  // of all files
	fills int  // bytes that references and parameters put in
	marks int  // of all files
	nodes int  // of all files
	steps int  // copied by profiles and ranges
	vars  map[string]*node
}

func (d *decoder) problem(p Pos, format string, args ...any) { d.tell(p, false, format, args) }
func (d *decoder) warn(p Pos, format string, args ...any)    { d.tell(p, true, format, args) }

// tell keeps a problem. One that comes again, because devices share what is
// wrong, is kept once.
func (d *decoder) tell(p Pos, warning bool, format string, args []any) {
	if !warning {
		d.errors++
	}
	if most := maxProblems; len(d.problems) >= most || warning && len(d.problems) >= most/2 {
		d.dropped++ // warnings leave room for errors
		return
	}
	pr := Problem{Pos: p, Text: d.veil(p, fmt.Sprintf(format, args...)), Warning: warning}
	if !d.told[pr] {
		d.told[pr] = true
		d.problems = append(d.problems, pr)
	}
}

// veil is a text about a place without what a reference put there: the
// environment and the files may hold secrets.
func (d *decoder) veil(p Pos, text string) string {
	n := d.veiled[p]
	if n == nil || n.text == "" {
		return text
	}
	head := n.text
	if len(head) > 12 {
		head = head[:12] // texts are cut to be told
	}
	if !strings.Contains(strings.ToLower(text), strings.ToLower(head)) {
		return text
	}
	what, _, _ := strings.Cut(text, ":")
	if strings.Contains(strings.ToLower(what), strings.ToLower(head)) {
		what = "the value"
	}
	return fmt.Sprintf("%s: what stands for %s is no good here; its text is not shown, for it may be a secret", what, n.quote())
}

// refuse reports what is wrong with a node, and keeps others from doing so.
func (d *decoder) refuse(n *node, format string, args ...any) {
	d.problem(n.pos(), format, args...)
	n.broken = true
}

// breakNode is refuse for a node that others share.
func (d *decoder) breakNode(n *node, format string, args ...any) *node {
	c := *n
	d.refuse(&c, format, args...)
	return &c
}

// take counts the bytes of a file. It reports false if they are more than all
// files may have together.
func (d *decoder) take(n int) bool {
	d.bytes += n
	d.full = d.full || d.bytes > maxTotal
	return d.bytes <= maxTotal
}

// spend takes bytes from what references and parameters may put in.
func (d *decoder) spend(n int) bool {
	d.fills += n
	return d.fills <= maxPut
}

// work takes nodes from what profiles and ranges may copy.
func (d *decoder) work(n int, at Pos) bool {
	if d.steps > maxWork {
		return false
	}
	if d.steps += n; d.steps > maxWork {
		d.problem(at, "ranges and profiles make more of this file than can be; use shorter ranges")
		return false
	}
	return true
}

// plainError leaves out what people do not need, the name of the system call.
func plainError(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is not there", p.Path)
		}
		return fmt.Errorf("%s: %w", p.Path, p.Err)
	}
	return err
}

// object reads the keys of a map. Keys that nobody asked for are unknown.
type object struct {
	d       *decoder
	n       *node // nil: there is none, and every key has its default
	at      Pos   // where a missing key is reported
	known   []string
	missing []missing
}

type missing struct{ key, text string }

// object begins to read a map. What is no map is reported, and read as if it
// were not there; isBroken tells.
func (d *decoder) object(at Pos, n *node, what string) *object {
	o := &object{d: d, at: at}
	switch {
	case n == nil || n.broken:
	case n.kind != mapping:
		d.problem(n.pos(), "%s: expected a map, found %s", what, n.what())
	default:
		o.n = n
		o.known = make([]string, 0, 32)
	}
	return o
}

// there reports whether o has a map to read.
func (o *object) there() bool { return o.n != nil }

// get is the value of a key; nil if it is not there or no good.
func (o *object) get(key string) *node {
	o.known = append(o.known, key)
	if e := o.n.get(key); e != nil {
		return o.d.good(*e)
	}
	return nil
}

// entries are all keys of the map in their order, each with its value as get has
// it.
func (o *object) entries() iter.Seq2[*node, *node] {
	return func(yield func(key, val *node) bool) {
		if o.n == nil {
			return
		}
		for _, e := range o.n.entries {
			if !yield(e.key, o.d.good(e)) {
				return
			}
		}
	}
}

// good is the value of an entry; nil if it is not there or no good.
func (d *decoder) good(e entry) *node {
	if e.val.broken {
		return nil
	}
	if e.val.isNull() {
		d.problem(e.key.pos(), "%s is empty; give it a value, or remove it", e.key.text)
		return nil
	}
	return e.val
}

// has reports whether a key is there, good or not.
func (o *object) has(key string) bool { return o.n.get(key) != nil }

// pos is the place of a key, or of the map if it is not there.
func (o *object) pos(key string) Pos {
	if e := o.n.get(key); e != nil {
		return e.key.pos()
	}
	return o.at
}

// valuePos is the place of the value of a key, or of the map if it is not there.
func (o *object) valuePos(key string) Pos {
	if e := o.n.get(key); e != nil {
		return e.val.pos()
	}
	return o.at
}

// need reports at the end that a key is missing, unless it is only misspelt.
func (o *object) need(key, format string, args ...any) {
	again := slices.ContainsFunc(o.missing, func(m missing) bool { return m.key == key })
	if o.there() && !o.has(key) && !again {
		o.missing = append(o.missing, missing{key, fmt.Sprintf(format, args...)})
	}
}

// done reports unknown and missing keys. Hints have more to say about some of
// the unknown.
func (o *object) done(hints ...func(key string) string) {
	if !o.there() {
		return
	}
	misspelt := make(map[string]bool)
	for _, e := range o.n.entries {
		key := e.key.text
		if slices.Contains(o.known, key) {
			continue
		}
		near := nearest(key, o.known)
		hint := ""
		for _, h := range hints {
			hint = h(key)
		}
		switch {
		case hint != "":
			o.d.problem(e.key.pos(), "%s", hint)
		case near != "":
			misspelt[near] = true
			o.d.problem(e.key.pos(), "unknown key %s%s", quote(key), suggest(key, o.known))
		default:
			o.d.problem(e.key.pos(), "unknown key %s; here can be %s", quote(key), oneOf(distinct(o.known)))
		}
	}
	for _, m := range o.missing {
		if !misspelt[m.key] {
			o.d.problem(o.at, "%s", m.text)
		}
	}
}

// needOneOf reports that none of the keys is there, unless one is misspelt, or
// what is there belongs elsewhere.
func (o *object) needOneOf(keys []string, elsewhere func(key string) string, text string) {
	for _, e := range o.n.entries {
		unknown := !slices.Contains(o.known, e.key.text)
		if unknown && (elsewhere(e.key.text) != "" || slices.Contains(keys, nearest(e.key.text, o.known))) {
			return
		}
	}
	o.d.problem(o.at, "%s", text)
}
