package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestReadable(t *testing.T) {
	long := bytes.Repeat([]byte{0xFF}, 300)
	for _, c := range []struct{ payload, want string }{
		{"", "(empty)"},
		{"21.5", "21.5"},
		{`{"a": "ü°"}`, `{"a": "ü°"}`},
		{"a\tb", "a\tb"},
		{"a\nb", `"a\nb"`},
		{"\x1b[2J", `"\x1b[2J"`},
		{"a\u202Eb", `"a\u202eb"`}, // turns the rest of the line round
		{"\x00\xff", "0x00ff (2 bytes)"},
		{"\xff", "0xff (1 byte)"},
		{string(long), "0x" + strings.Repeat("ff", 256) + "… (300 bytes)"},
	} {
		if got := readable([]byte(c.payload)); got != c.want {
			t.Errorf("%q is shown as %s, want %s", c.payload, got, c.want)
		}
	}
	for topic, want := range map[string]string{"a/b": "a/b", "a b": `"a b"`, "a\r": `"a\r"`, "ü": "ü"} {
		if got := readableTopic(topic); got != want {
			t.Errorf("topic %q is shown as %s, want %s", topic, got, want)
		}
	}
}
