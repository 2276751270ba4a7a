package config

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// object is the map that a key has.
func (o *object) object(key string) *object {
	return o.d.object(o.pos(key), o.get(key), key)
}

// scalar is the text that a key has; nil if there is none.
func (o *object) scalar(key, expected string) *node {
	return o.d.scalar(o.get(key), key, expected)
}

func (d *decoder) scalar(n *node, what, expected string) *node {
	if n != nil && n.kind != scalar {
		d.problem(n.pos(), "%s: expected %s, found %s%s", what, expected, n.what(), braceHint(n))
		return nil
	}
	return n
}

// braceHint is for {3..50} and {ct} without quotes, which are maps in YAML.
func braceHint(n *node) string {
	if n.kind == mapping && len(n.entries) == 1 && n.entries[0].val.isNull() {
		return fmt.Sprintf(`; put "{%s}" in quotes`, n.entries[0].key.text)
	}
	return ""
}

// text is the text of a key, not empty.
func (o *object) text(key, def string) string {
	n := o.scalar(key, "text")
	if n == nil {
		return def
	}
	s, ok := o.d.text(n, key)
	if !ok {
		return def
	}
	return s
}

func (d *decoder) text(n *node, what string) (string, bool) {
	switch {
	case n.broken:
		return "", false
	case n.kind != scalar || n.isNull():
		d.problem(n.pos(), "%s: expected text, found %s%s", what, n.what(), braceHint(n))
	case n.plain && isBool(n.text):
		d.problem(n.pos(), "%s: expected text, found %s; put it in quotes", what, n.text)
	case n.text == "" || strings.TrimSpace(n.text) == "" && n.computed:
		d.problem(n.pos(), "%s is empty; give it a value, or remove it", what)
	default:
		return n.text, true
	}
	return "", false
}

func isBool(s string) bool {
	switch s {
	case "true", "True", "TRUE", "false", "False", "FALSE":
		return true
	}
	return false
}

// enum is one of the words allowed.
func (o *object) enum(key, def string, allowed ...string) string {
	n := o.scalar(key, oneOf(allowed))
	if n == nil {
		return def
	}
	if !slices.Contains(allowed, n.text) {
		o.d.badEnum(n, key, allowed)
		return def
	}
	return n.text
}

func (d *decoder) badEnum(n *node, what string, allowed []string) {
	if near := suggest(n.text, allowed); near != "" {
		d.problem(n.pos(), "%s: unknown value %s%s", what, n.quote(), near)
		return
	}
	d.problem(n.pos(), "%s: unknown value %s; it can be %s", what, n.quote(), oneOf(allowed))
}

func (o *object) bool(key string, def bool) bool {
	b, ok := o.boolean(key)
	if !ok {
		return def
	}
	return b
}

// boolean is true or false; ok reports whether it is there and good.
func (o *object) boolean(key string) (value, ok bool) {
	n := o.scalar(key, "true or false")
	if n == nil {
		return false, false
	}
	if !isBool(n.text) || !n.plain && !n.computed {
		o.d.problem(n.pos(), "%s: expected true or false, found %s", key, n.quote())
		return false, false
	}
	return n.text[0] == 't' || n.text[0] == 'T', true
}

// number is a number that is not NaN or infinite.
func (o *object) number(key string) (Number, bool) {
	n := o.scalar(key, "a number")
	if n == nil {
		return "", false
	}
	return o.d.number(n, key)
}

func (d *decoder) number(n *node, what string) (Number, bool) {
	if n.broken {
		return "", false
	}
	if n.kind != scalar {
		d.problem(n.pos(), "%s: expected a number, found %s%s", what, n.what(), braceHint(n))
		return "", false
	}
	num, err := parseNumber(n)
	if err != nil {
		d.problem(n.pos(), "%s: %s", what, err)
		return "", false
	}
	if f := num.Float64(); math.IsNaN(f) || math.IsInf(f, 0) {
		d.problem(n.pos(), "%s: %s is no finite number", what, n.quote())
		return "", false
	}
	return num, true
}

// int is an integer in a range.
func (o *object) int(key string, def, least, most int) int {
	i, ok := o.integer(key, least, most)
	if !ok {
		return def
	}
	return i
}

func (o *object) integer(key string, least, most int) (int, bool) {
	num, ok := o.number(key)
	if !ok {
		return 0, false
	}
	n := o.n.value(key)
	i, ok := num.Int64()
	switch {
	case !ok && math.Trunc(num.Float64()) != num.Float64():
		o.d.problem(n.pos(), "%s: expected an integer, found %s", key, n.quote())
	case !ok || i < int64(least) || i > int64(most):
		o.d.problem(n.pos(), "%s: %s is not between %d and %d", key, n.quote(), least, most)
	default:
		return int(i), true
	}
	return 0, false
}

// rate is a number that is not negative.
func (o *object) rate(key string, def float64) float64 {
	num, ok := o.number(key)
	if !ok {
		return def
	}
	f := num.Float64()
	if f < 0 {
		o.d.problem(o.valuePos(key), "%s: %s is negative", key, o.n.value(key).quote())
		return def
	}
	return f
}

// float is a finite number.
func (o *object) float(key string, def float64) float64 {
	num, ok := o.number(key)
	if !ok {
		return def
	}
	return num.Float64()
}

// duration is a duration in a range; most 0 is no end.
func (o *object) duration(key string, def, least, most time.Duration) time.Duration {
	n := o.scalar(key, "a duration")
	if n == nil {
		return def
	}
	v, err := parseDuration(n.text)
	switch {
	case err != nil:
		o.d.problem(n.pos(), "%s: %s", key, err)
	case v < least && v == 0:
		o.d.problem(n.pos(), "%s: it must be above 0", key)
	case v < least:
		o.d.problem(n.pos(), "%s: %s is below its least, %s", key, n.quote(), least)
	case most > 0 && v > most:
		o.d.problem(n.pos(), "%s: %s is above its most, %s", key, n.quote(), most)
	default:
		return v
	}
	return def
}

// size is a number of bytes in a range; most 0 is no end.
func (o *object) size(key string, def, least, most int64) int64 {
	n := o.scalar(key, "a size")
	if n == nil {
		return def
	}
	v, err := parseSize(n.text)
	switch {
	case err != nil:
		o.d.problem(n.pos(), "%s: %s", key, err)
	case v < least:
		o.d.problem(n.pos(), "%s: %s is below its least, %s", key, n.quote(), sizeText(least))
	case most > 0 && v > most:
		o.d.problem(n.pos(), "%s: %s is above its most, %s", key, n.quote(), sizeText(most))
	default:
		return v
	}
	return def
}

func sizeText(n int64) string {
	for _, u := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if f := int64(sizeUnits[u]); n >= f && n%f == 0 {
			return fmt.Sprintf("%d%s", n/f, u)
		}
	}
	return fmt.Sprintf("%dB", n)
}

// path is a file name, absolute.
func (o *object) path(key string) string {
	s := o.text(key, "")
	if s == "" {
		return ""
	}
	return o.d.abs(o.n.value(key).src, s)
}

func (o *object) secret(key string) Secret {
	s := o.text(key, "")
	if s == "" {
		return Secret{}
	}
	return Secret{text: s, file: o.d.whole[o.valuePos(key)]}
}

// list is the elements that a key has. If one is enough, it needs no brackets.
func (o *object) list(key string, oneIsEnough bool) []*node {
	return o.d.list(o.get(key), key, oneIsEnough)
}

func (d *decoder) list(n *node, what string, oneIsEnough bool) []*node {
	switch {
	case n == nil:
		return nil
	case n.kind == list:
		return n.items
	case n.kind == scalar && oneIsEnough:
		return []*node{n}
	}
	d.problem(n.pos(), "%s: expected a list, found %s", what, n.what())
	return nil
}

// texts are the texts of a list.
func (o *object) texts(key string, oneIsEnough bool) []string {
	var out []string
	for _, n := range o.list(key, oneIsEnough) {
		if s, ok := o.d.text(n, key); ok {
			out = append(out, s)
		}
	}
	return out
}
