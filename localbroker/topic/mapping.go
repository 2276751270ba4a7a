package topic

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Mapping turns the names that a filter matches into names of another form,
// and where that can be undone, back: plant/+/raw/# ↔ acme/raw/{1}/{#}. It
// never changes, so any number may use it at the same time.
type Mapping struct {
	from, to *Template
	forth    []int // for each field of to, its place among those of from
	back     []int // for each field of from, its place among those of to; nil if one is missing
}

// ParseMapping compiles a mapping from the names that filter matches to those
// that template makes. In template {1} is what the first + of filter matched,
// {2} the second and so on, {#} what its # matched; other fields are in fixed.
func ParseMapping(filter, template string, fixed map[string]string) (*Mapping, error) {
	if err := CheckFilter(filter, 0); err != nil {
		return nil, err
	}
	if group, _ := SplitShared(filter); group != "" {
		return nil, fmt.Errorf("topic filter %q: a shared subscription has no names of its own", filter)
	}
	from := &Template{rest: -1, loose: true}
	plus := 0
	for part := range strings.SplitSeq(filter, "/") {
		lv := level{before: part, field: -1}
		if part == "+" || part == "#" {
			name := part
			if part == "#" {
				from.rest = len(from.levels)
			} else {
				plus++
				name = strconv.Itoa(plus)
			}
			lv = level{field: len(from.fields)}
			from.fields = append(from.fields, name)
		}
		from.levels = append(from.levels, lv)
	}
	to, err := parseTemplate(template, "#", fixed, true)
	if err != nil {
		return nil, err
	}
	m := &Mapping{from: from, to: to}
	for _, name := range to.fields {
		i := slices.Index(from.fields, name)
		if i < 0 {
			return nil, fmt.Errorf("topic template %q: {%s} is nothing that %q captures", template, name, filter)
		}
		m.forth = append(m.forth, i)
	}
	for _, name := range from.fields {
		i := slices.Index(to.fields, name)
		if i < 0 {
			m.back = nil
			return m, nil
		}
		m.back = append(m.back, i)
	}
	if m.back == nil {
		m.back = []int{}
	}
	return m, nil
}

// Reversible reports whether every capture of the filter is in the template,
// so that AppendReverse can undo Append.
func (m *Mapping) Reversible() bool { return m.back != nil }

// Filter is the filter the mapping was made with.
func (m *Mapping) Filter() string { return m.from.Filter() }

// ReverseFilter is the narrowest filter that matches every name that the
// mapping makes.
func (m *Mapping) ReverseFilter() string { return m.to.Filter() }

// Append appends what name becomes. It reports false, with dst as it was, if
// the filter does not match name, which is valid, or nothing valid comes out.
func (m *Mapping) Append(dst []byte, name string) ([]byte, bool) {
	return convert(dst, name, m.from, m.to, m.forth)
}

// AppendReverse undoes Append; it reports false also if the mapping is not reversible.
func (m *Mapping) AppendReverse(dst []byte, name string) ([]byte, bool) {
	if m.back == nil {
		return dst, false
	}
	return convert(dst, name, m.to, m.from, m.back)
}

func convert(dst []byte, name string, from, to *Template, order []int) ([]byte, bool) {
	var found, wanted [16]string // more fields than that go to the heap
	values, ok := from.Match(found[:0], name)
	if !ok {
		return dst, false
	}
	out := wanted[:0]
	for _, i := range order {
		out = append(out, values[i])
	}
	base := len(dst)
	res := to.render(dst, out)
	if n := len(res) - base; n == 0 || n > MaxBytes {
		return dst, false
	}
	return res, true
}
