package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/scanner"
	"github.com/goccy/go-yaml/token"
)

// parseYAML makes a tree of a file. What is wrong with it is reported; nil is a
// file of which nothing can be used.
func (d *decoder) parseYAML(src *source, data []byte) *node {
	body, f := parseAST(data, &d.marks)
	if f != nil {
		d.full = d.full || f.bound
		d.problem(Pos{src.name, f.line, f.col}, "%s", f.text)
		return nil
	}
	if body == nil {
		d.problem(Pos{src.name, 1, 1}, "the file is empty; the smallest site file has one adapter with one device")
		return nil
	}
	c := converter{d: d, src: src, anchors: make(map[string]*node)}
	return c.convert(body)
}

// parseAST parses within the bounds of this package, and adds to the marks of all
// files. The body is nil for an empty document.
func parseAST(data []byte, marks *int) (body ast.Node, f *flaw) {
	// The library panics on some malformed input.
	defer func() {
		if r := recover(); r != nil {
			body, f = nil, &flaw{line: 1, col: 1, text: "this is not YAML that can be read; check the indentation, the quotes and the brackets"}
		}
	}()
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	data = bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n")) // which the scanner counts as two lines
	if i := invalidUTF8(data); i >= 0 {
		line := 1 + bytes.Count(data[:i], []byte("\n"))
		return nil, &flaw{line: line, col: 1, text: "the line is not UTF-8; save the file as UTF-8"}
	}
	if f := checkBytes(data, marks); f != nil {
		return nil, f
	}
	var tokens token.Tokens
	var s scanner.Scanner
	s.Init(string(data))
	for {
		some, err := s.Scan()
		tokens.Add(some...)
		if err != nil { // io.EOF, or the last of tokens says what is wrong
			if err != io.EOF && len(some) == 0 {
				return nil, &flaw{line: 1, col: 1, text: "this is not YAML that can be read"}
			}
			break
		}
	}
	if f := checkTokens(tokens); f != nil {
		return nil, f
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		// The library's own text would quote the file around it, and for a long
		// line takes quadratic time to do so.
		var at interface {
			GetToken() *token.Token
			GetMessage() string
		}
		if errors.As(err, &at) && at.GetToken() != nil {
			p := at.GetToken().Position
			return nil, &flaw{line: p.Line, col: p.Column, text: syntaxText(at.GetMessage())}
		}
		return nil, &flaw{line: 1, col: 1, text: "this is not YAML that can be read"}
	}
	for _, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		if body != nil {
			p := doc.Body.GetToken().Position
			return nil, &flaw{line: p.Line, col: p.Column, text: "a second document begins here; a site file is one document"}
		}
		body = doc.Body
	}
	return body, nil
}

func invalidUTF8(data []byte) int {
	for i := 0; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && n <= 1 {
			return i
		}
		i += n
	}
	return -1
}

// syntaxText says what the library found wrong in words for somebody who does
// not know its parser.
func syntaxText(message string) string {
	switch {
	case strings.Contains(message, "non-map value is specified"), strings.Contains(message, "unexpected key name"):
		return `expected "key: value"; check that each key has a colon and a space behind it`
	case strings.Contains(message, "is not allowed in this context"), strings.Contains(message, "value is not allowed"):
		return "this does not belong here; check the indentation of this line and the one above, and whether the text needs quotes"
	case strings.Contains(message, "tab character"), strings.Contains(message, "'\t'"):
		return "a tab is used to indent; use spaces"
	case strings.Contains(message, "could not find end character"):
		return "the text in quotes does not end; close the quotes"
	case strings.Contains(message, "could not find flow map"), strings.Contains(message, "must be specified"), strings.Contains(message, "sequence end token"):
		return "a bracket is not closed; close it, and separate what is inside by commas"
	case strings.Contains(message, "reserved character"):
		return message + "; put the text in quotes"
	}
	return "yaml: " + message
}

// converter turns what the library parsed into nodes.
type converter struct {
	d       *decoder
	src     *source
	anchors map[string]*node // nil while the anchor is being read
	at      *node            // the place of all, if not nil
}

func (c *converter) node(t *token.Token, k kind) *node {
	n := &node{src: c.src, line: int32(t.Position.Line), col: int32(t.Position.Column), kind: k, size: 1}
	if c.at != nil {
		n.line, n.col, n.resolved = c.at.line, c.at.col, true
	}
	return n
}

func (c *converter) broken(t *token.Token, format string, args ...any) *node {
	n := c.node(t, scalar)
	n.broken = true
	c.d.problem(n.pos(), format, args...)
	return n
}

// grow counts what is in n, and reports when that is more than can be.
func (c *converter) grow(n, child *node) {
	n.size += child.size
	if n.size > maxNodes && !n.broken {
		n.broken = true
		n.entries, n.items = nil, nil
		c.d.problem(n.pos(), "its aliases make this larger than %d values; write it out with fewer of them", maxNodes)
	}
	if n.broken {
		n.size = 1
	}
}

func (c *converter) convert(a ast.Node) *node {
	switch a := a.(type) {
	case *ast.MappingNode:
		return c.mapping(a)
	case *ast.MappingValueNode:
		n := c.node(a.Key.GetToken(), mapping)
		c.entry(n, a, make(map[string]Pos))
		return n
	case *ast.SequenceNode:
		n := c.node(a.Start, list)
		for _, v := range a.Values {
			item := c.convert(v)
			if c.grow(n, item); n.broken {
				return n
			}
			n.items = append(n.items, item)
		}
		return n
	case *ast.AnchorNode:
		name := a.Name.GetToken().Value
		c.anchors[name] = nil
		n := c.convert(a.Value)
		c.anchors[name] = n
		return n
	case *ast.AliasNode:
		name := a.Value.GetToken().Value
		n, ok := c.anchors[name]
		switch {
		case !ok:
			return c.broken(a.Start, "there is no anchor &%s before this%s", name, suggest(name, keysOf(c.anchors)))
		case n == nil:
			return c.broken(a.Start, "*%s stands inside its own anchor &%s", name, name)
		}
		return n
	case *ast.LiteralNode:
		n := c.node(a.Start, scalar)
		n.text = a.Value.Value
		return n
	case *ast.NullNode:
		n := c.node(a.Token, scalar)
		n.plain = true
		return n
	case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return c.scalar(a.GetToken())
	}
	return c.broken(a.GetToken(), "yaml: %s is not used in a site file", strings.ToLower(a.Type().String()))
}

var leadingZero = regexp.MustCompile(`^[-+]?0[0-9_]+$`)

func (c *converter) scalar(t *token.Token) *node {
	n := c.node(t, scalar)
	n.text = t.Value
	n.plain = t.Type != token.DoubleQuoteType && t.Type != token.SingleQuoteType
	if n.plain && leadingZero.MatchString(n.text) {
		c.d.problem(n.pos(), "%s", zeroText(n.text))
		n.broken = true
	}
	return n
}

// zeroText explains why a number must not begin with a zero.
func zeroText(text string) string {
	sign := strings.TrimRight(text[:1], "0123456789+")
	bare := strings.TrimLeft(text, "+-0_")
	if bare == "" {
		return fmt.Sprintf("%s has a leading zero, which YAML reads as octal; write 0, or %s in quotes if it is a name", quote(text), quote(text))
	}
	return fmt.Sprintf("%s has a leading zero, which YAML reads as octal; write %s%s, or %s in quotes if it is a name", quote(text), sign, bare, quote(text))
}

func (c *converter) mapping(a *ast.MappingNode) *node {
	t := a.Start
	if !a.IsFlowStyle && len(a.Values) > 0 {
		t = a.Values[0].Key.GetToken()
	}
	n := c.node(t, mapping)
	seen := make(map[string]Pos, len(a.Values))
	for _, v := range a.Values {
		if c.entry(n, v, seen); n.broken {
			return n
		}
	}
	return c.mergeKeys(n)
}

// entry adds a key and its value to a map.
func (c *converter) entry(n *node, v *ast.MappingValueNode, seen map[string]Pos) {
	var key *node
	switch k := v.Key.(type) {
	case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode, *ast.InfinityNode, *ast.NanNode:
		key = c.scalar(k.GetToken())
	case *ast.MergeKeyNode:
		key = c.node(k.Token, scalar)
		key.text = mergeKey
	default:
		c.broken(v.Key.GetToken(), "a key is plain text")
		return
	}
	val := c.convert(v.Value)
	if key.broken {
		return
	}
	if first, twice := seen[key.text]; twice {
		c.d.problem(key.pos(), "%s stands here twice, first %s; remove one", quote(key.text), first.from(key.pos()))
		return
	}
	seen[key.text] = key.pos()
	c.grow(n, val)
	n.size++
	if !n.broken {
		n.entries = append(n.entries, entry{key, val})
	}
}

// mergeKey is the key of YAML 1.1 that takes in the keys of other maps.
const mergeKey = "<<"

// mergeKeys replaces "<<: *base" and "<<: [*one, *two]" by what they stand for:
// the map's own keys win, then those of the earlier.
func (c *converter) mergeKeys(n *node) *node {
	e := n.get(mergeKey)
	if e == nil {
		return n
	}
	bases := []*node{e.val}
	if e.val.kind == list {
		bases = e.val.items
	}
	out := n.without(mergeKey)
	for _, b := range bases {
		if b.broken {
			continue
		}
		if b.kind != mapping {
			c.d.problem(e.key.pos(), "<< expects a map or a list of maps, found %s", b.what())
			continue
		}
		out.entries = addMissing(out.entries, b.entries)
	}
	return out
}

// addMissing appends the entries whose keys are not there.
func addMissing(to, from []entry) []entry {
	have := make(map[string]bool, len(to))
	for _, e := range to {
		have[e.key.text] = true
	}
	for _, e := range from {
		if !have[e.key.text] {
			to = append(to, e)
		}
	}
	return to
}
