package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"
)

// resolve replaces the references in n and below, in place: ${env:NAME},
// ${env:NAME:-default}, ${file:PATH} and ${var:NAME}; "$${" is a "${" itself.
func (d *decoder) resolve(n *node) {
	if n == nil || n.resolved {
		return
	}
	n.resolved = true
	for _, e := range n.entries {
		d.resolve(e.val)
	}
	for _, it := range n.items {
		d.resolve(it)
	}
	if n.kind != scalar || n.broken || !strings.Contains(n.text, "${") {
		return
	}
	written := n.text
	var out strings.Builder
	for rest := written; ; {
		i := strings.Index(rest, "${")
		if i < 0 {
			out.WriteString(rest)
			break
		}
		if i > 0 && rest[i-1] == '$' {
			out.WriteString(rest[:i-1] + "${")
			rest = rest[i+2:]
			continue
		}
		out.WriteString(rest[:i])
		ref, after, closed := strings.Cut(rest[i+2:], "}")
		if !closed {
			d.refuse(n, "%s: a reference has no }; write ${env:NAME}, ${file:PATH} or ${var:NAME}", quote(written))
			return
		}
		text, ok := d.reference(n, ref)
		if !ok {
			n.broken = true
			return
		}
		if out.Len()+len(text) > maxText || !d.spend(len(text)) {
			d.refuse(n, "its references make this longer than %d bytes", maxText)
			return
		}
		out.WriteString(text)
		if after == "" && strings.HasPrefix(ref, "file:") && i == 0 && rest == written {
			d.whole[n.pos()] = d.abs(n.src, ref[len("file:"):])
		}
		if !strings.HasPrefix(ref, "var:") {
			n.written = written
		}
		rest = after
	}
	n.text, n.plain, n.computed = out.String(), false, true
	if n.written != "" {
		d.veiled[n.pos()] = n
	}
}

// reference is what stands for one reference. What is wrong with it is reported.
func (d *decoder) reference(n *node, ref string) (string, bool) {
	scheme, name, _ := strings.Cut(ref, ":")
	switch scheme {
	case "env":
		name, fallback, has := strings.Cut(name, ":-")
		text, ok := d.getenv(name)
		switch {
		case name == "":
			d.problem(n.pos(), "%s names no variable; write ${env:NAME}", quote("${"+ref+"}"))
			return "", false
		case has && text == "":
			return fallback, true
		case !ok:
			d.problem(n.pos(), "the environment has no %s; set it, or write ${env:%s:-default}", quote(name), name)
		case !utf8.ValidString(text):
			d.problem(n.pos(), "the environment's %s is not UTF-8", quote(name))
			return "", false
		}
		return text, ok
	case "file":
		text, err := d.fileText(d.abs(n.src, name))
		if err != nil {
			d.problem(n.pos(), "%s: %v", quote("${"+ref+"}"), plainError(err))
		}
		return text, err == nil
	case "var":
		v := d.vars[name]
		switch {
		case d.vars == nil:
			d.problem(n.pos(), "%s: variables and includes cannot use variables; write the text itself, or ${env:NAME}", quote("${"+ref+"}"))
		case v == nil:
			d.problem(n.pos(), "there is no variable %s%s; add it under vars:", quote(name), suggestKey(d, name, d.vars))
		case v.kind == scalar && !v.broken: // else it is reported itself
			if v.written != "" && n.written == "" {
				n.written = n.text
			}
			return v.text, true
		}
		return "", false
	}
	d.problem(n.pos(), "%s is no reference; write ${env:NAME}, ${file:PATH} or ${var:NAME}", quote("${"+ref+"}"))
	return "", false
}

// abs is a path as the file that has it means it.
func (d *decoder) abs(src *source, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(src.dir, path)
}

// fileText reads a small file for ${file:}.
func (d *decoder) fileText(path string) (string, error) {
	if text, ok := d.texts[path]; ok {
		return text, nil
	}
	if d.full {
		return "", errors.New(tooLarge)
	}
	text, err := readText(path)
	if err != nil {
		return "", err
	}
	if !d.take(len(text)) {
		return "", errors.New(tooLarge)
	}
	d.texts[path] = text
	d.files = append(d.files, path)
	return text, nil
}

// readText reads a file of which the text without its last newlines counts.
func readText(path string) (string, error) {
	data, err := readFile(path, maxText, false)
	if err != nil {
		return "", err
	}
	if !utf8.Valid(data) {
		return "", fmt.Errorf("%s is not UTF-8", path)
	}
	return strings.TrimRight(string(data), "\r\n"), nil
}

// readFile reads a file of at most so many bytes. What is no regular file, but a
// pipe, is read only if it may be one: it could keep us waiting for ever.
func readFile(path string, most int64, pipe bool) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, fmt.Errorf("%s is a folder", path)
	}
	if !info.Mode().IsRegular() && !pipe {
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	if info.Mode().IsRegular() && info.Size() > most {
		return nil, fmt.Errorf("%s is larger than %d KiB", path, most>>10)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(data)) > most {
		err = fmt.Errorf("%s is larger than %d KiB", path, most>>10)
	}
	return data, err
}
