package config

import (
	"regexp"
	"slices"
	"strings"
)

// profile is what a kind of device offers, before its parameters are put in.
type profile struct {
	key    *node
	body   *node // without params, its points in one map with their ranges expanded
	params []param
	used   bool

	last     *node // the body that was filled last
	lastSame string
}

// param is a parameter that a device fills in.
type param struct {
	name string
	as   string // "int", "float" or "string"
	def  *node  // nil: there is no default
}

func (d *decoder) profiles(o *object) map[string]*profile {
	all := make(map[string]*profile)
	for key, v := range o.entries() {
		d.checkName("the profile", key, "profile")
		p := &profile{key: key}
		all[key.text] = p
		b := d.object(key.pos(), v, key.text)
		if !b.there() {
			continue
		}
		p.params = d.params(b.object("params"))
		p.body = d.expandPoints(b.n.without("params"))
	}
	return all
}

func (d *decoder) params(o *object) []param {
	var all []param
	for key, v := range o.entries() {
		name := key.text
		if len(all) == maxTags {
			d.problem(key.pos(), "more than %d parameters; remove some", maxTags)
			break
		}
		if !paramName.MatchString(name) || name == "value" {
			d.problem(key.pos(), "the parameter %s: use letters, digits and hyphens, and not \"value\"", quote(name))
		}
		b := d.object(key.pos(), v, name)
		p := param{name: name, as: b.enum("as", "string", "int", "float", "string"), def: b.scalar("default", "a value")}
		if p.def != nil && !d.checkParam(p, p.def) {
			p.def = d.breakNode(p.def, "default: expected %s, found %s", paramKinds[p.as], p.def.quote())
		}
		b.done()
		all = append(all, p)
	}
	return all
}

var (
	paramName  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*$`)
	paramUse   = regexp.MustCompile(`\{[A-Za-z_][A-Za-z0-9_-]*\}`)
	paramKinds = map[string]string{"int": "an integer", "float": "a number", "string": "text"}
)

// checkParam reports whether a value is one for a parameter.
func (d *decoder) checkParam(p param, n *node) bool {
	if p.as == "string" {
		return true
	}
	num, err := parseNumber(n)
	if err != nil {
		return false
	}
	_, isInt := num.Int64()
	return p.as == "float" || isInt
}

// with reads what a device fills in. It returns the values by name, and a text
// that is the same for devices that fill in the same.
func (d *decoder) with(o *object, name string, p *profile, at Pos) (values map[string]*node, same string) {
	values = make(map[string]*node)
	var b strings.Builder
	for _, q := range p.params {
		v := o.scalar(q.name, paramKinds[q.as])
		switch {
		case v != nil && !d.checkParam(q, v):
			v = d.breakNode(v, "%s: expected %s, found %s", q.name, paramKinds[q.as], v.quote())
		case v == nil && o.has(q.name):
			v = &node{broken: true} // reported already
		case v == nil && q.def != nil:
			v = q.def
		case v == nil:
			v = &node{broken: true}
			if o.there() {
				o.need(q.name, "the profile %s needs the parameter %s; add it", quote(name), q.name)
			} else {
				d.problem(at, "the profile %s needs the parameter %s; add with: {%s: …}", quote(name), q.name, q.name)
			}
		}
		values[q.name] = v
		b.WriteString(v.text + "\x00")
		if v.broken {
			b.WriteByte('!')
		}
	}
	if len(p.params) == 0 && o.there() && len(o.n.entries) > 0 {
		d.problem(o.at, "the profile %s has no parameters; remove with:", quote(name))
		return values, b.String()
	}
	o.done()
	return values, b.String()
}

// fill puts the values in: every "{name}" in the body becomes that of name.
func (d *decoder) fill(p *profile, values map[string]*node, same string) *node {
	if p.last != nil && p.lastSame == same {
		return p.last // devices that are alike mostly follow one another
	}
	if !d.work(int(p.body.size), p.key.pos()) {
		return p.body
	}
	put := func(strict bool) func(*node) *node {
		return func(n *node) *node { return d.put(n, values, strict) }
	}
	body := *p.body
	body.entries = slices.Clone(body.entries)
	for i, e := range body.entries {
		body.entries[i].val = e.val.rewrite(put(e.key.text == "points"))
	}
	p.last, p.lastSame = &body, same
	return &body
}

// put replaces the parameters in one scalar. Where strict, a name in braces that
// is none is an error: elsewhere it may be a placeholder of another kind.
func (d *decoder) put(n *node, values map[string]*node, strict bool) *node {
	if !strings.Contains(n.text, "{") {
		return n
	}
	var broken, changed bool
	unknown, written := "", n.written
	text := paramUse.ReplaceAllStringFunc(n.text, func(use string) string {
		name := use[1 : len(use)-1]
		v := values[name]
		if v == nil {
			if unknown == "" && name != "value" { // which is put in when it is known
				unknown = name
			}
			return use
		}
		changed = true
		broken = broken || v.broken
		if v.written != "" {
			written = n.text
		}
		return v.text
	})
	switch {
	case unknown != "" && strict:
		return d.breakNode(n, "the profile has no parameter %s%s; add it under params:", quote(unknown), suggestKey(d, unknown, values))
	case !changed:
		return n
	case !broken && (len(text) > maxText || !d.spend(len(text))):
		return d.breakNode(n, "its parameters make this longer than %d bytes", maxText)
	}
	c := *n
	c.text, c.written, c.broken, c.plain, c.computed = text, written, broken, false, true
	if written != "" {
		d.veiled[c.pos()] = &c
	}
	return &c
}

// expandPoints returns the body of a device or profile with its points_file and
// points in one map, in which every name stands for one point.
func (d *decoder) expandPoints(body *node) *node {
	table, list := body.get("points_file"), body.get("points")
	if table == nil && list == nil {
		return body
	}
	out := body.without("points_file", "points")
	o := d.object(body.pos(), body, "")
	all := points{n: &node{src: body.src, line: body.line, col: body.col, kind: mapping, size: 1, resolved: true}, index: make(map[string]int)}
	var key *node
	if table != nil {
		key = table.key
		if path := o.path("points_file"); path != "" {
			all.n.broken = !d.readPoints(&all, table.val, path)
		} else {
			all.n.broken = true
		}
	}
	if list != nil {
		key = list.key
		n := o.get("points")
		switch {
		case n == nil:
			all.n.broken = true
		case n.kind != mapping:
			d.problem(n.pos(), "points: expected a map, found %s", n.what())
			all.n.broken = true
		default:
			for _, e := range n.entries {
				d.addPoint(&all, e.key, e.val)
			}
		}
	}
	all.n.src, all.n.line, all.n.col = key.src, key.line, key.col
	k := *key
	k.text = "points"
	out.entries = append(out.entries, entry{&k, all.n})
	out.size += all.n.size
	return out
}

// points is a map of points under way.
type points struct {
	n     *node
	index map[string]int // of the names in n's entries
	full  bool
}

// addPoint adds a point, or those of a range.
func (d *decoder) addPoint(all *points, key, val *node) {
	if all.full {
		return
	}
	twice := false
	d.each(key, val, nil, func(i int, name string, v *node) bool {
		if !d.work(1, key.pos()) {
			return false
		}
		if at, there := all.index[name]; there {
			if !twice {
				d.problem(key.pos(), "the point %s is there already, %s; choose another name", quote(name), all.n.entries[at].key.pos().from(key.pos()))
			}
			twice = true
			return true
		}
		if len(all.n.entries) >= maxDevicePoints {
			all.full = true
			d.problem(key.pos(), "more than %d points in one device; make several of it", maxDevicePoints)
			return false
		}
		k, c := *key, *v
		k.text = name
		c.ranged, c.step = name != key.text, int32(i)
		all.index[name] = len(all.n.entries)
		all.n.entries = append(all.n.entries, entry{&k, &c})
		all.n.size += 1 + v.size
		return true
	})
}
