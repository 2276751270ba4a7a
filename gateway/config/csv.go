package config

import (
	"bytes"
	"encoding/csv"
	"errors"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// readPoints adds the points of a table to a map of points. The first row has
// the points' keys, "name" among them; an empty cell leaves a key out; a cell
// that begins with { or [ is YAML. Lines that begin with # are comments. It
// reports whether the table could be read.
func (d *decoder) readPoints(all *points, ref *node, path string) bool {
	if d.full {
		return false // which is told
	}
	data, err := readFile(path, maxFile, false)
	if err != nil {
		d.problem(ref.pos(), "points_file: %v", plainError(err))
		return false
	}
	if !slices.Contains(d.files, path) {
		d.files = append(d.files, path)
	}
	if !d.take(len(data)) {
		d.problem(ref.pos(), "points_file: %s", tooLarge)
		return false
	}
	// named as people find it: beside the file that names it
	name := ref.text
	if !filepath.IsAbs(name) {
		name = filepath.Join(filepath.Dir(ref.src.name), name)
	}
	if _, known := d.order[name]; !known {
		d.order[name] = len(d.order)
	}
	t := table{d: d, src: &source{name: name, dir: filepath.Dir(path)}}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	for line := range bytes.Lines(data) {
		t.lines = append(t.lines, line)
	}
	return t.read(all, data)
}

// braced is a cell that begins with a parameter or a range, which is no YAML.
var braced = regexp.MustCompile(`^\{[A-Za-z0-9_.-]+\}`)

type table struct {
	d     *decoder
	src   *source
	lines [][]byte
}

func (t *table) cell(text string, line, col int) *node {
	return &node{src: t.src, line: int32(line), col: int32(col), text: strings.TrimSpace(text), computed: true, resolved: true, size: 1}
}

func (t *table) read(all *points, data []byte) bool {
	if i := invalidUTF8(data); i >= 0 {
		t.d.problem(Pos{t.src.name, 1 + bytes.Count(data[:i], []byte("\n")), 1}, "the line is not UTF-8; save the file as UTF-8")
		return false
	}
	r := csv.NewReader(bytes.NewReader(data))
	r.Comment, r.TrimLeadingSpace = '#', true
	if first, _, _ := bytes.Cut(data, []byte("\n")); !bytes.Contains(first, []byte(",")) && bytes.Contains(first, []byte(";")) {
		r.Comma = ';' // as spreadsheets write it where the comma is the decimal mark
	}
	var header []*node
	nameAt := -1
	for {
		row, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			var p *csv.ParseError
			if errors.As(err, &p) {
				t.d.problem(Pos{t.src.name, p.Line, p.Column}, "%v", p.Err)
			} else {
				t.d.problem(Pos{t.src.name, 1, 1}, "%v", err)
			}
			return false
		}
		if t.d.nodes += len(row); t.d.nodes > maxNodes {
			t.d.problem(Pos{t.src.name, 1, 1}, "all files together have more than %d values", maxNodes)
			return false
		}
		if all.full {
			return true
		}
		if header == nil {
			for i, text := range row {
				line, col := r.FieldPos(i)
				header = append(header, t.cell(text, line, t.chars(line, col)))
				if header[i].text == "name" {
					nameAt = i
				}
			}
			if nameAt < 0 {
				t.d.problem(header[0].pos(), "no column is called name; the first row has the points' keys, such as name,holding,as,unit")
				return false
			}
			continue
		}
		t.row(all, header, nameAt, row, r)
	}
	if header == nil {
		t.d.problem(Pos{t.src.name, 1, 1}, "the table is empty; the first row has the points' keys, such as name,holding,as,unit")
	}
	return header != nil
}

func (t *table) row(all *points, header []*node, nameAt int, row []string, r *csv.Reader) {
	line, col := r.FieldPos(nameAt)
	key := t.cell(row[nameAt], line, t.chars(line, col))
	val := &node{src: t.src, line: int32(line), col: 1, kind: mapping, resolved: true, size: 1}
	for i, text := range row {
		if i == nameAt || strings.TrimSpace(text) == "" {
			continue
		}
		line, col := r.FieldPos(i)
		cell := t.cell(text, line, t.chars(line, col))
		if strings.ContainsRune("{[", rune(cell.text[0])) && !braced.MatchString(cell.text) {
			cell = t.yaml(cell)
		}
		k := *header[i]
		k.line, k.col = cell.line, cell.col // what is wrong with a key is shown in its row
		val.entries = append(val.entries, entry{&k, cell})
		val.size += 1 + cell.size
	}
	t.d.addPoint(all, key, val)
}

// yaml reads a cell that is a map or a list. What is in it has the cell's place.
func (t *table) yaml(cell *node) *node {
	body, f := parseAST([]byte(cell.text), &t.d.marks)
	if f != nil && f.bound {
		t.d.refuse(cell, "%s", f.text)
		t.d.full = true
		return cell
	}
	if f != nil || body == nil {
		t.d.problem(cell.pos(), "%s cannot be read as YAML; check its brackets and quotes", cell.quote())
		cell.broken = true
		return cell
	}
	c := converter{d: t.d, src: t.src, anchors: make(map[string]*node), at: cell}
	return c.convert(body)
}

// chars is the column of a byte of a line, in characters.
func (t *table) chars(line, col int) int {
	if line > len(t.lines) {
		return col
	}
	text := t.lines[line-1]
	return 1 + utf8.RuneCount(text[:min(col-1, len(text))])
}
