package config

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Options of Load and Parse; the zero value works.
type Options struct {
	Getenv   func(name string) (string, bool) // nil is os.LookupEnv
	Hostname string                           // "" is that of the machine
}

// Load reads a site file and all that it includes. It returns a Config only if
// no problem is more than a warning. Problems are in the order of their places,
// warnings last.
func Load(path string, o Options) (*Config, []Problem) {
	d := newDecoder(o)
	data, err := readFile(path, maxFile, true)
	if err != nil {
		// its name is in the place already
		d.problem(Pos{path, 1, 1}, "the file%s", strings.TrimPrefix(plainError(err).Error(), path))
		return nil, d.sorted()
	}
	return d.load(path, data, o)
}

// Parse is Load for a file that was read already. Its name says where relative
// paths begin.
func Parse(name string, data []byte, o Options) (*Config, []Problem) {
	d := newDecoder(o)
	if len(data) > maxFile {
		d.problem(Pos{name, 1, 1}, "the file is larger than %d KiB", maxFile>>10)
		return nil, d.sorted()
	}
	return d.load(name, data, o)
}

func newDecoder(o Options) *decoder {
	d := &decoder{
		getenv: o.Getenv,
		told:   make(map[Problem]bool),
		veiled: make(map[Pos]*node),
		whole:  make(map[Pos]string),
		order:  make(map[string]int),
		texts:  make(map[string]string),
	}
	if d.getenv == nil {
		d.getenv = os.LookupEnv
	}
	return d
}

func (d *decoder) load(name string, data []byte, o Options) (*Config, []Problem) {
	root := d.include(name, data, nil)
	if root == nil || d.full {
		return nil, d.sorted() // more would be said of what is not there
	}
	d.src = root.src
	vars := root.value("vars")
	d.resolve(vars)
	d.vars = make(map[string]*node)
	if vars != nil {
		for _, e := range vars.entries {
			d.vars[e.key.text] = e.val
		}
	}
	d.resolve(root)
	c := d.site(root, o)
	if d.errors > 0 {
		return nil, d.sorted()
	}
	return c, d.sorted()
}

// sorted are the problems in the order of their places: the site file, then its
// includes, and warnings after all errors.
func (d *decoder) sorted() []Problem {
	slices.SortStableFunc(d.problems, func(a, b Problem) int {
		if a.Warning != b.Warning {
			if a.Warning {
				return 1
			}
			return -1
		}
		return cmp.Or(
			cmp.Compare(d.order[a.File], d.order[b.File]),
			cmp.Compare(a.File, b.File),
			cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Col, b.Col))
	})
	if d.dropped > 0 {
		d.problems = append(d.problems, Problem{Text: "and " + strconv.Itoa(d.dropped) + " more", Warning: d.errors == 0})
	}
	return d.problems
}

// include makes the tree of a file and of those that it includes. The files of
// which it is read are in under. It is nil if the file is of no use.
func (d *decoder) include(name string, data []byte, under []string) *node {
	abs, err := filepath.Abs(name)
	if err != nil {
		d.problem(Pos{name, 1, 1}, "%v", err)
		return nil
	}
	if _, known := d.order[name]; !known {
		d.order[name] = len(d.order)
	}
	d.files = append(d.files, abs)
	if !d.take(len(data)) {
		d.problem(Pos{name, 1, 1}, "%s", tooLarge)
		return nil
	}
	n := d.parseYAML(&source{name: name, dir: filepath.Dir(abs)}, data)
	if n == nil || n.broken {
		return nil
	}
	if n.kind != mapping {
		d.problem(n.pos(), "expected a map with keys such as adapters:, found %s", n.what())
		return nil
	}
	if d.nodes += int(n.size); d.nodes > maxNodes {
		d.full = true
		d.problem(n.pos(), "the site file and its includes have together more than %d values", maxNodes)
		return nil
	}
	list := n.value("include")
	if list == nil {
		return n
	}
	d.resolve(list) // variables are known only when all is merged
	var base *node
	for _, p := range d.object(n.pos(), n, "").texts("include", true) {
		part := d.includeFile(name, d.abs(n.src, p), p, list, append(under, abs))
		if d.full {
			return nil
		}
		switch {
		case part == nil:
		case base == nil:
			base = part
		default:
			base = merge(base, part)
		}
	}
	n = n.without("include")
	if base == nil {
		return n
	}
	return merge(base, n)
}

// includeFile reads the file at path, which the file called by names as p.
func (d *decoder) includeFile(by, path, p string, list *node, under []string) *node {
	at := list.pos()
	for _, it := range list.items {
		if it.text == p {
			at = it.pos()
		}
	}
	name := p
	if !filepath.IsAbs(p) {
		name = filepath.Join(filepath.Dir(by), p)
	}
	if slices.Contains(under, path) {
		d.problem(at, "include: %s includes itself, through %s", quote(p), filepath.Base(by))
		return nil
	}
	if slices.Contains(d.files, path) {
		d.problem(at, "include: %s is included twice; remove one", quote(p))
		return nil
	}
	if len(d.files) >= maxFiles {
		d.full = true
		d.problem(at, "include: more than %d files", maxFiles)
		return nil
	}
	data, err := readFile(path, maxFile, false)
	if err != nil {
		d.problem(at, "include: %v", plainError(err))
		return nil
	}
	return d.include(name, data, under)
}

// Position is the place of a key in the site file or its includes, as
// Position("http", "tls"); an element of a list has its number, from 0. What
// ranges make and profiles give has its place in the value itself. It reports
// false for what is not there.
func (c *Config) Position(path ...string) (Pos, bool) {
	n, at := c.root, c.root.pos()
	for _, p := range path {
		switch n.kind {
		case mapping:
			e := n.get(p)
			if e == nil {
				return Pos{}, false
			}
			n, at = e.val, e.key.pos()
		case list:
			i, err := strconv.Atoi(p)
			if err != nil || i < 0 || i >= len(n.items) {
				return Pos{}, false
			}
			n, at = n.items[i], n.items[i].pos()
		default:
			return Pos{}, false
		}
	}
	return at, true
}
