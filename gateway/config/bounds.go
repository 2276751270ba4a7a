package config

import (
	"bytes"
	"fmt"

	"github.com/goccy/go-yaml/token"
)

// What a site file may cost. The YAML library has no bounds of its own: it
// recurses without end, keeps some 500 bytes a token, and needs quadratic time
// for the keys of a block map, for empty lines in a block scalar and for tabs in
// quotes, so all of these are counted before it has to deal with them.
const (
	maxFile         = 512 << 10 // bytes of one file
	maxTotal        = 1 << 20   // bytes of all files
	maxPut          = 4 << 20   // bytes that references and parameters put in
	maxFiles        = 64        // site file and includes
	maxMarks        = 150_000   // bytes of one file that may begin a token
	maxAllMarks     = 300_000   // of all files
	maxTokens       = 80_000    // of one file
	maxDepth        = 48        // maps and lists inside each other
	maxKeys         = 4_000     // of one block map
	maxBlank        = 100       // empty lines in a row
	maxTabs         = 2_000     // of one file
	maxNodes        = 150_000   // of all files, aliases counted each time they are used
	maxText         = 64 << 10  // bytes of one scalar after references are replaced, and of a ${file:}
	maxRange        = 10_000    // steps of one range
	maxDevices      = 10_000    // of all adapters
	maxPoints       = 40_000    // that differ
	maxDevicePoints = 10_000    // of one device
	maxAllPoints    = 1_000_000 // of all devices
	maxWork         = 800_000   // nodes that profiles and ranges may copy
	maxBridges      = 16
	maxRules        = 500 // forward rules of a bridge
	maxListeners    = 64
	maxTags         = 64    // of one device, and parameters of one profile
	maxTemplate     = 1_024 // bytes of a topic template
	maxProblems     = 1_000 // that are kept
)

// flaw is a reason not to read a file further.
type flaw struct {
	line, col int
	text      string
	bound     bool // it is a bound of what all files may cost
}

const (
	tooLarge = "the site file and all that it names are together larger than 1 MiB; use ranges and profiles, or a second gateway"
	shorter  = "use ranges and profiles, or move a part to a file for include"
)

// checkBytes bounds what the scanner of the YAML library has to do. It adds to
// the marks of all files.
func checkBytes(data []byte, all *int) *flaw {
	marks, blank, tabs, line := 0, 0, 0, 0
	defer func() { *all += marks }()
	for text := range bytes.Lines(data) {
		line++
		if len(bytes.TrimSpace(text)) == 0 {
			if blank++; blank > maxBlank {
				return &flaw{line, 1, fmt.Sprintf("more than %d empty lines in a row; remove some", maxBlank), true}
			}
			continue
		}
		blank = 0
		if tabs += bytes.Count(text, []byte("\t")); tabs > maxTabs {
			return &flaw{line, 1, fmt.Sprintf("more than %d tabs; use spaces", maxTabs), true}
		}
		marks++
		for _, b := range text {
			switch b {
			case ',', ':', '[', ']', '{', '}', '&', '*', '?', '!', '|', '>', '%', '@', '`', '\'', '"', '#', '-', '<', '\r':
				marks++
			}
		}
		if marks > maxMarks {
			return &flaw{line, 1, fmt.Sprintf("the file has more than %d lines, brackets, commas, colons and other marks; %s", maxMarks, shorter), true}
		}
		if *all+marks > maxAllMarks {
			return &flaw{line, 1, fmt.Sprintf("all files together have more than %d lines, brackets, commas, colons and other marks; use ranges and profiles", maxAllMarks), true}
		}
	}
	return nil
}

// checkTokens bounds what the parser of the YAML library has to do, and refuses
// what no site file needs.
func checkTokens(tokens token.Tokens) *flaw {
	fail := func(t *token.Token, format string, args ...any) *flaw {
		return &flaw{line: t.Position.Line, col: t.Position.Column, text: fmt.Sprintf(format, args...)}
	}
	limit := func(t *token.Token, format string, args ...any) *flaw {
		f := fail(t, format, args...)
		f.bound = true
		return f
	}
	type level struct{ col, keys int }
	var (
		blocks []level // of block maps and lists that are open, by column
		flow   int     // flow maps and lists that are open
		colon  bool    // there was one since the last comma or bracket
		docs   int
	)
	for i, t := range tokens {
		if i >= maxTokens {
			return limit(t, "the file has more than %d tokens, which are keys, values, brackets, commas and hyphens; %s", maxTokens, shorter)
		}
		start := t // of what may open a level
		switch t.Type {
		case token.InvalidType:
			return fail(t, "%s", syntaxText(t.Error))
		case token.TagType:
			return fail(t, "tags such as %s are not used in a site file; remove it", quote(t.Value))
		case token.DirectiveType:
			return fail(t, "directives are not used in a site file; remove the line")
		case token.MappingKeyType:
			return fail(t, "keys that begin with ? are not used in a site file; write key: value")
		case token.DocumentHeaderType:
			if docs++; docs > 1 || i > 0 && tokens[i-1].Type != token.CommentType {
				return fail(t, "a second document begins here; a site file is one document")
			}
			continue
		case token.AnchorType:
			if i+2 < len(tokens) && tokens[i+2].Type == token.AnchorType {
				return fail(t, "two anchors at one place; remove one")
			}
			continue
		case token.DocumentEndType:
			if i+1 < len(tokens) && tokens[i+1].Type != token.CommentType {
				return fail(t, "the document ends here, but more follows; remove the line")
			}
			continue
		case token.MappingStartType, token.SequenceStartType:
			if colon = false; flow+len(blocks) >= maxDepth {
				return limit(t, "more than %d maps and lists inside each other", maxDepth)
			}
			flow++
			continue
		case token.MappingEndType, token.SequenceEndType:
			if colon = false; flow == 0 {
				return fail(t, "a bracket is closed that was not opened; remove it, or put the text in quotes")
			}
			flow--
			continue
		case token.CollectEntryType:
			colon = false
			continue
		case token.MappingValueType:
			if flow > 0 && colon {
				return fail(t, "a second colon without a comma between; is a bracket above not closed?")
			}
			colon = flow > 0
			if i > 0 {
				start = tokens[i-1] // the key
			}
		case token.SequenceEntryType:
			if flow > 0 {
				return fail(t, "a list with hyphens inside brackets; separate what is inside brackets by commas")
			}
		default:
			continue
		}
		if flow > 0 {
			continue
		}
		col := start.Position.Column
		for len(blocks) > 0 && blocks[len(blocks)-1].col > col {
			blocks = blocks[:len(blocks)-1]
		}
		if len(blocks) == 0 || blocks[len(blocks)-1].col < col {
			if len(blocks) >= maxDepth {
				return limit(t, "more than %d maps and lists inside each other", maxDepth)
			}
			blocks = append(blocks, level{col: col})
		}
		if top := &blocks[len(blocks)-1]; t.Type == token.MappingValueType {
			if top.keys++; top.keys > maxKeys {
				return limit(t, "more than %d keys in one map; use ranges, or more than one adapter", maxKeys)
			}
		}
	}
	return nil
}
