package config

import (
	"fmt"
	"strconv"
	"strings"
)

// span is a range of numbers in a text. In a name, {0003..0050} makes one of it
// for each number, and ranges in the values below that name step with it.
type span struct {
	start, end  int // where it stands in the text
	first, last int
	width       int // digits to write; 0 is as many as it takes
}

func (s span) count() int { return s.last - s.first + 1 }

// at is the text of the i-th number.
func (s span) at(i int) string {
	n := strconv.Itoa(s.first + i)
	if len(n) < s.width {
		n = strings.Repeat("0", s.width-len(n)) + n
	}
	return n
}

// spansIn are the ranges in a text.
func spansIn(text string) ([]span, error) {
	if !strings.Contains(text, "..") {
		return nil, nil
	}
	var spans []span
	for i := 0; i < len(text); {
		open := strings.IndexByte(text[i:], '{')
		if open < 0 {
			break
		}
		open += i
		i = open + 1
		length := strings.IndexByte(text[i:], '}')
		if length < 0 {
			break
		}
		first, last, ok := strings.Cut(text[i:i+length], "..")
		if !ok || !allDigits(first) || !allDigits(last) {
			continue
		}
		i += length + 1
		s, err := newSpan(first, last)
		if err != nil {
			return nil, err
		}
		s.start, s.end = open, i
		spans = append(spans, s)
	}
	return spans, nil
}

func allDigits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

func newSpan(first, last string) (span, error) {
	a, errA := strconv.Atoi(first)
	b, errB := strconv.Atoi(last)
	switch {
	case errA != nil || errB != nil || b-a >= maxRange:
		return span{}, fmt.Errorf("the range {%s..%s} is longer than %d", first, last, maxRange)
	case b < a:
		return span{}, fmt.Errorf("the range {%s..%s} runs backwards; write {%s..%s}", first, last, last, first)
	}
	s := span{first: a, last: b}
	if first[0] == '0' && len(first) > 1 {
		s.width = len(first)
	}
	return s, nil
}

// stepText is text with each of its ranges replaced by the i-th number.
func stepText(text string, spans []span, i int) string {
	var b strings.Builder
	done := 0
	for _, s := range spans {
		b.WriteString(text[done:s.start])
		b.WriteString(s.at(i))
		done = s.end
	}
	b.WriteString(text[done:])
	return b.String()
}

// each calls f for every name that key stands for, with its value, until it
// returns false. The values
// of keys in except are left as they are: they have ranges of their own. Ranges
// that are wrong are reported.
func (d *decoder) each(key, val *node, except []string, f func(i int, name string, val *node) bool) {
	spans, err := spansIn(key.text)
	if err == nil && len(spans) > 1 {
		err = fmt.Errorf("%s has more than one range; write one, and the other out", key.quote())
	}
	if err != nil {
		d.problem(key.pos(), "%s", err)
		return
	}
	count := 1
	if len(spans) == 1 {
		count = spans[0].count()
	}
	inside := make(map[*node][]span)
	body := val
	if val.kind == mapping {
		body = val.without(except...)
	}
	body = body.rewrite(func(n *node) *node {
		s, err := spansIn(n.text)
		switch {
		case err != nil:
		case len(s) > 0 && len(spans) == 0:
			err = fmt.Errorf("%s is a range, but the name %s has none", n.quote(), key.quote())
		default:
			for _, s := range s {
				if s.count() != count {
					err = fmt.Errorf("%s has %d steps, but %s has %d; they step together, so make them as long", n.quote(), s.count(), key.quote(), count)
				}
			}
		}
		if err != nil {
			return d.breakNode(n, "%s", err)
		}
		if len(s) > 0 {
			inside[n] = s
		}
		return n
	})
	if val.kind == mapping {
		for _, k := range except {
			if e := val.get(k); e != nil {
				body.entries = append(body.entries, *e)
			}
		}
	}
	for i := range count {
		name, v := key.text, body
		if len(spans) == 1 {
			name = stepText(key.text, spans, i)
		}
		if len(inside) > 0 {
			v = body.rewrite(func(n *node) *node {
				s := inside[n]
				if s == nil {
					return n
				}
				c := *n
				c.text, c.computed, c.plain, c.stepped = stepText(n.text, s, i), true, false, true
				return &c
			})
		}
		if count > 1 && !d.work(int(val.size), key.pos()) {
			return
		}
		if !f(i, name, v) {
			return
		}
	}
}
