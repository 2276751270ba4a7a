package main

import (
	"bytes"
	"fmt"
	"math/bits"
	"strings"

	"github.com/fieldferry/fieldferry/adapters/serial"
	"github.com/fieldferry/fieldferry/adapters/serial/port"
)

// lineGuess is how a line may be set, by what came over it.
type lineGuess struct {
	Baud     int     `json:"baud"`
	DataBits int     `json:"dataBits"`
	Parity   string  `json:"parity"`
	Score    float64 `json:"score"` // 1 is sure
	Bytes    int     `json:"bytes"` // that it is guessed from
	Means    string  `json:"means"` // what came: "text", "m-bus" or "unknown"
}

func (g *lineGuess) why() string {
	switch {
	case g.Means == "m-bus":
		return "frames of an M-Bus"
	case g.Score > 0.8:
		return fmt.Sprintf("%.0f %% of it is text", 100*g.Score)
	}
	return "nothing makes text of it, so this is a guess; set --baud and --parity as the device's manual has them"
}

// guessLine judges what came at a rate, read with eight bits.
func guessLine(baud int, parity string, sample []byte) lineGuess {
	g := lineGuess{Baud: baud, DataBits: 8, Parity: parity, Bytes: len(sample), Means: "unknown"}
	if hasMBus(sample) {
		g.Score, g.Means = 1, "m-bus"
		return g
	}
	g.Score = textShare(sample)
	if parity == "none" { // the eighth bit may be the parity of seven
		stripped := make([]byte, len(sample))
		even, high := 0, false
		for i, c := range sample {
			stripped[i] = c & 0x7F
			high = high || c > 0x7F
			even += bits.OnesCount8(c) & 1 // so many are odd
		}
		if share := textShare(stripped); high && share > g.Score {
			switch even {
			case 0:
				g.Score, g.DataBits, g.Parity = share, 7, "even"
			case len(sample):
				g.Score, g.DataBits, g.Parity = share, 7, "odd"
			}
		}
	}
	if g.Score > 0.8 {
		g.Means = "text"
	}
	return g
}

// textShare is how much of what came is text, with the marks that frame it.
func textShare(b []byte) float64 {
	if len(b) == 0 {
		return 0
	}
	n := 0
	for _, c := range b {
		if c >= ' ' && c <= '~' || bytes.IndexByte([]byte("\r\n\t\x02\x03\x04\x05\x06\x15"), c) >= 0 {
			n++
		}
	}
	return float64(n) / float64(len(b))
}

// hasMBus reports whether there is a long frame with the right sum, EN 13757-2.
func hasMBus(b []byte) bool {
	for i := range b {
		f := b[i:]
		if len(f) < 9 || f[0] != 0x68 || f[3] != 0x68 || f[1] != f[2] || len(f) < int(f[1])+6 || f[1] < 3 {
			continue
		}
		var sum byte
		for _, c := range f[4 : 4+int(f[1])] {
			sum += c
		}
		if end := 4 + int(f[1]); f[end] == sum && f[end+1] == 0x16 {
			return true
		}
	}
	return false
}

// guessFrame is how messages seem to be framed, as it stands in a site file.
func guessFrame(messages [][]byte) string {
	if len(messages) == 0 {
		return ""
	}
	all := func(has func(m []byte) bool) bool {
		n := 0
		for _, m := range messages {
			if has(m) {
				n++
			}
		}
		return n > 0 && 10*n >= 9*len(messages) // the first may be a part
	}
	ends := func(with string) bool {
		return all(func(m []byte) bool { return bytes.HasSuffix(m, []byte(with)) })
	}
	last := messages[len(messages)-1]
	switch {
	case all(hasMBus):
		return `{start: "\x68", length: {at: 1, plus: 6}, end: "\x16", check: {kind: sum8, over: [4, -2], at: -2}}`
	case all(func(m []byte) bool { return nmea.within(m) }):
		return `{start: "$", end: "\r\n", check: {kind: xor, as: hex, over: [1, -5], at: -4}}`
	case all(func(m []byte) bool { return len(m) > 3 && m[0] == 2 && m[len(m)-2] == 3 }):
		return `{start: "\x02", end: "\x03", check: xor}`
	case all(func(m []byte) bool { return len(m) > 2 && m[0] == 2 && m[len(m)-1] == 3 }):
		return `{start: "\x02", end: "\x03"}`
	}
	for _, end := range []string{"\r\n", "\n\r", "\r", "\n", "\x03", "\x04"} {
		if ends(end) {
			return fmt.Sprintf("{end: %s}", yamlBytes([]byte(end)))
		}
	}
	if len(messages) > 3 && len(last) > 1 && all(func(m []byte) bool { return len(m) == len(last) }) {
		return fmt.Sprintf("{length: %d, idle: 50ms}", len(last))
	}
	return "{idle: 50ms}"
}

// checked is a line with a check.
type checked struct {
	start byte
	check serial.Check
}

var nmea = checked{'$', serial.Check{Kind: serial.Xor, Hex: true, From: 1, To: -5, At: -4}}

// within reports whether the last line of a message is one.
func (c *checked) within(m []byte) bool {
	i := bytes.LastIndexByte(m, c.start)
	return i >= 0 && bytes.HasSuffix(m, []byte("\r\n")) && c.check.Verify(m[i:])
}

// yamlBytes is a text in double quotes.
func yamlBytes(b []byte) string {
	return `"` + strings.ReplaceAll(printable(b), `"`, `\"`) + `"`
}

// siteOf is a site file that reads such messages.
func siteOf(address string, s *port.Settings, frame string, request []byte) string {
	var b strings.Builder
	fmt.Fprintf(&b, "adapters:\n  line-1:\n    serial: %s\n", address)
	if !strings.HasPrefix(address, "tcp://") {
		fmt.Fprintf(&b, "    line: {baud: %d, data_bits: %d, parity: %s, stop_bits: %d}\n", s.Baud, s.DataBits, s.Parity, s.StopBits)
	}
	b.WriteString("    devices:\n      device-1:\n")
	if len(request) > 0 {
		fmt.Fprintf(&b, "        request: %s\n", yamlBytes(request))
	}
	fmt.Fprintf(&b, "        frame: %s\n        match: '^(?P<all>.*)$'      # a group for each value\n        points: {all: {field: all}}\n", frame)
	return b.String()
}
