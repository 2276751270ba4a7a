package topic

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Template is a topic with fields, as {org}/{site}/{device}/{data}, compiled.
// It puts names together from the fields' values and takes names apart into
// them. A level has at most one field, with or without fixed text around it,
// and a field stands for one level, or for a part of it; one field, the rest,
// may stand for several whole levels. It never changes, so any number may use
// it at the same time.
type Template struct {
	levels []level
	fields []string // by the order of their first appearance
	rest   int      // the level of the rest; -1 without
	loose  bool     // captures may be empty: what + and # matched, not names
}

// level is before + the field's value + after; without a field it is before.
type level struct {
	before, after string
	field         int // -1 is none
}

// noLevel is the rest's value where # matched no level at all, which is not
// the same as one empty level. U+0000 is in no topic.
const noLevel = "\x00"

// ParseTemplate compiles text. Fields that are in fixed become their value
// here. The field named rest stands for one or more whole levels; "" is none.
func ParseTemplate(text, rest string, fixed map[string]string) (*Template, error) {
	return parseTemplate(text, rest, fixed, false)
}

func parseTemplate(text, rest string, fixed map[string]string, loose bool) (*Template, error) {
	t := &Template{rest: -1, loose: loose}
	for part := range strings.SplitSeq(text, "/") {
		lv, err := t.parseLevel(part, fixed)
		if err != nil {
			return nil, fmt.Errorf("topic template %q: %w", text, err)
		}
		if lv.field >= 0 && rest != "" && t.fields[lv.field] == rest {
			switch {
			case lv.before != "" || lv.after != "":
				return nil, fmt.Errorf("topic template %q: {%s} stands for whole levels, so nothing can stand beside it in its level", text, rest)
			case t.rest >= 0:
				return nil, fmt.Errorf("topic template %q: {%s} appears twice", text, rest)
			}
			t.rest = len(t.levels)
		}
		t.levels = append(t.levels, lv)
	}
	if text == "" {
		return nil, errors.New("topic template: it is empty")
	}
	return t, nil
}

func (t *Template) parseLevel(part string, fixed map[string]string) (level, error) {
	lv := level{field: -1}
	text := &lv.before
	for part != "" {
		i := strings.IndexAny(part, "{}")
		if i < 0 {
			i = len(part)
		}
		if err := literal(part[:i]); err != nil {
			return lv, err
		}
		*text += part[:i]
		if part = part[i:]; part == "" {
			break
		}
		name, after, ok := strings.Cut(part[1:], "}")
		if part[0] == '}' || !ok || name == "" || strings.Contains(name, "{") {
			return lv, errors.New("a brace without its counterpart, or with nothing inside")
		}
		part = after
		if v, ok := fixed[name]; ok {
			if err := value(v); err != nil {
				return lv, fmt.Errorf("{%s} is %q: %w", name, v, err)
			}
			*text += v
			continue
		}
		if lv.field >= 0 {
			return lv, fmt.Errorf("{%s} and {%s} in one level cannot be told apart", t.fields[lv.field], name)
		}
		if lv.field = slices.Index(t.fields, name); lv.field < 0 {
			lv.field = len(t.fields)
			t.fields = append(t.fields, name)
		}
		text = &lv.after
	}
	return lv, nil
}

// literal says what is wrong with s as fixed text inside a level.
func literal(s string) error {
	switch {
	case strings.ContainsAny(s, "+#"):
		return errWildcard
	case strings.IndexByte(s, 0) >= 0:
		return errNull
	case !utf8.ValidString(s):
		return errUTF8
	}
	return nil
}

// value says what is wrong with s as the value of a field.
func value(s string) error {
	if s == "" {
		return errEmpty
	}
	if strings.IndexByte(s, '/') >= 0 {
		return errors.New("it contains a /")
	}
	return literal(s)
}

// Fields are the names of the fields in the order of their first appearance:
// the order in which Append takes and Match gives their values.
func (t *Template) Fields() []string { return slices.Clone(t.fields) }

// Append appends the name that values, one for each of Fields, make. A value
// that is empty or has a separator (the rest may have those), a wildcard or
// U+0000 in it is an error, and dst comes back as it was.
func (t *Template) Append(dst []byte, values []string) ([]byte, error) {
	if len(values) != len(t.fields) {
		return dst, fmt.Errorf("topic template: %d values for %d fields", len(values), len(t.fields))
	}
	for i, v := range values {
		var err error
		if t.rest >= 0 && t.levels[t.rest].field == i && v != "" {
			err = literal(v)
		} else {
			err = value(v)
		}
		if err != nil {
			return dst, fmt.Errorf("topic template: {%s} is %q: %w", t.fields[i], v, err)
		}
	}
	out := t.render(dst, values)
	if n := len(out) - len(dst); n > MaxBytes {
		return dst, fmt.Errorf("topic template: %w", errTooLong)
	}
	return out, nil
}

func (t *Template) render(dst []byte, values []string) []byte {
	start := true
	for i, lv := range t.levels {
		if i == t.rest && values[lv.field] == noLevel {
			continue
		}
		if !start {
			dst = append(dst, '/')
		}
		start = false
		dst = append(dst, lv.before...)
		if lv.field >= 0 {
			dst = append(dst, values[lv.field]...)
			dst = append(dst, lv.after...)
		}
	}
	return dst
}

// Match takes name apart and appends the values of Fields to dst; they are
// parts of name. It reports false, with dst as it was, if name does not have
// this form. A field in the first level matches nothing that begins with $.
func (t *Template) Match(dst []string, name string) ([]string, bool) {
	base := len(dst)
	span := Levels(name) - len(t.levels) + 1 // levels of the rest
	if t.rest < 0 && span != 1 || span < 1 && !(t.loose && span == 0) {
		return dst, false
	}
	for i, lv := range t.levels {
		n := 1
		if i == t.rest {
			n = span
		}
		var part string
		part, name = cutLevels(name, n)
		if lv.field < 0 {
			if part != lv.before {
				return dst[:base], false
			}
			continue
		}
		v := part
		if lv.before != "" || lv.after != "" {
			if len(part) < len(lv.before)+len(lv.after) || !strings.HasPrefix(part, lv.before) || !strings.HasSuffix(part, lv.after) {
				return dst[:base], false
			}
			v = part[len(lv.before) : len(part)-len(lv.after)]
		}
		switch {
		case v == "" && !t.loose, i == 0 && lv.before == "" && hidden(v):
			return dst[:base], false
		case lv.field == len(dst)-base:
			dst = append(dst, v)
		case dst[base+lv.field] != v:
			return dst[:base], false
		}
	}
	return dst, true
}

// cutLevels cuts name behind its first n levels; none of them is noLevel.
func cutLevels(name string, n int) (head, rest string) {
	if n == 0 {
		return noLevel, name
	}
	end := 0
	for ; n > 0; n-- {
		i := strings.IndexByte(name[end:], '/')
		if i < 0 {
			return name, ""
		}
		end += i + 1
	}
	return name[:end-1], name[end:]
}

// Filter is the narrowest filter that matches every name of this form. It may
// match others, too: a level with text beside its field becomes +, and behind
// the rest all becomes #.
func (t *Template) Filter() string {
	levels := make([]string, 0, len(t.levels))
	for i, lv := range t.levels {
		switch {
		case i == t.rest:
			return strings.Join(append(levels, "#"), "/")
		case lv.field >= 0:
			levels = append(levels, "+")
		default:
			levels = append(levels, lv.before)
		}
	}
	return strings.Join(levels, "/")
}
