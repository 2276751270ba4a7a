// Package access knows who may connect to the broker and what they may do there,
// from the two files that Mosquitto has for it: a password_file, as
// mosquitto_passwd writes it, and an acl_file. It reads them strictly: what
// Mosquitto would pass over or take for something else is a [Problem] with its
// line and the way out, and a file with a mistake lets nobody in.
//
// What is read never changes; whoever wants a changed file reads it again. The
// package knows no broker and no packet: its caller says with which reason
// code a client is refused. docs/security.md says what the files mean.
package access

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// maxFile is the longest file that is read, in bytes: about 400,000 users.
	maxFile = 64 << 20
	// maxProblems are told of one file; a file that is something else altogether
	// has one in every line.
	maxProblems = 100
)

// Problem is a mistake in a file, or a warning.
type Problem struct {
	File    string
	Line    int // from 1; 0 is the file as a whole
	Text    string
	Warning bool // the file is good all the same
}

// String is FILE:LINE: text.
func (p Problem) String() string {
	text := p.Text
	if p.Warning {
		text = "warning: " + text
	}
	if p.Line == 0 {
		return p.File + ": " + text
	}
	return fmt.Sprintf("%s:%d: %s", p.File, p.Line, text)
}

// report collects the problems of a file.
type report struct {
	file     string
	problems []Problem
	failed   bool // one is no warning
	dropped  int
}

func (r *report) tell(line int, warning bool, format string, args []any) {
	r.failed = r.failed || !warning
	if len(r.problems) >= maxProblems {
		r.dropped++
		return
	}
	r.problems = append(r.problems, Problem{r.file, line, fmt.Sprintf(format, args...), warning})
}

func (r *report) mistake(line int, format string, args ...any) { r.tell(line, false, format, args) }
func (r *report) warn(line int, format string, args ...any)    { r.tell(line, true, format, args) }

func (r *report) all() []Problem {
	if r.dropped > 0 {
		last := &r.problems[maxProblems-1]
		*last = Problem{r.file, last.Line, fmt.Sprintf("this and %d more problems; is it the right file?", r.dropped), !r.failed}
	}
	return r.problems
}

// readFile reads a file of at most maxFile bytes. The error ends with the way out.
func readFile(path, create string) ([]byte, fs.FileInfo, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, errors.New("it is not there; " + create)
	case err == nil && !info.Mode().IsRegular(): // a pipe could keep us waiting for ever
		return nil, nil, errors.New("it is no file; name one")
	}
	var data []byte
	if err == nil {
		var f *os.File
		if f, err = os.Open(path); err == nil {
			defer f.Close()
			data, err = io.ReadAll(io.LimitReader(f, maxFile+1))
		}
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, nil, errors.New("it may not be read; the user that the gateway runs as must own it, or be of its group: chown or chgrp it")
	case err != nil:
		return nil, nil, err
	case len(data) > maxFile:
		return nil, nil, fmt.Errorf("it is larger than %d MiB; is it the right file?", maxFile>>20)
	}
	return data, info, nil
}

// lines are the lines of a file that say something, with their numbers and
// without what is white around them.
func (r *report) lines(data []byte) iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		if bytes.HasPrefix(data, []byte("\xef\xbb\xbf")) {
			r.mistake(1, "it begins with a byte order mark; save it as UTF-8 without one")
			data = data[3:]
		}
		n := 0
		for line := range bytes.Lines(data) {
			n++
			text := strings.TrimSpace(string(line))
			switch {
			case text == "" || text[0] == '#':
			case !utf8.ValidString(text):
				r.mistake(n, "it is not UTF-8; save the file as UTF-8")
			case strings.ContainsFunc(text, unicode.IsControl):
				r.mistake(n, "a tab or another control character; write spaces")
			case !yield(n, text):
				return
			}
		}
	}
}

// quote is a text of a file as it is told: short, and on one line.
func quote(s string) string {
	if r := []rune(s); len(r) > 60 {
		s = string(r[:60]) + "…"
	}
	return fmt.Sprintf("%q", s)
}
