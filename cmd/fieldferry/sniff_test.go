package main

import (
	"bytes"
	"context"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/adapters/serial/port"
	"github.com/fieldferry/fieldferry/adapters/simulate"
)

func TestGuessLine(t *testing.T) {
	text := []byte("S S     100.00 g\r\nS D      99.98 g\r\n")
	seven := make([]byte, len(text))
	for i, c := range text {
		seven[i] = c | byte(bits.OnesCount8(c)&1)<<7
	}
	meter := []byte("\x68\x03\x03\x68\x08\x01\x72\x7B\x16")
	for _, c := range []struct {
		sample []byte
		parity string
		want   string
	}{
		{text, "none", "8 none text"},
		{seven, "none", "7 even text"},
		{meter, "even", "8 even m-bus"},
		{[]byte("\x80\xF8\x00\xE0\xFF\x1C\x80\xF8"), "none", "8 none unknown"},
	} {
		g := guessLine(9600, c.parity, c.sample)
		if got := fmt.Sprintf("%d %s %s", g.DataBits, g.Parity, g.Means); got != c.want {
			t.Errorf("% x: %s, want %s (%+v)", c.sample, got, c.want, g)
		}
	}
}

func TestGuessFrame(t *testing.T) {
	for _, c := range []struct {
		messages []string
		want     string
	}{
		{nil, ""},
		{[]string{"12.5 g\r\n", "13.5 g\r\n"}, `{end: "\r\n"}`},
		{[]string{"12.5\r", "13\r"}, `{end: "\r"}`},
		{[]string{"\x0212\x03", "\x023\x03"}, `{start: "\x02", end: "\x03"}`},
		{[]string{"\x021\x032"}, `{start: "\x02", end: "\x03", check: xor}`},
		{[]string{"$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*47\r\n"}, `{start: "$", end: "\r\n", check: {kind: xor, as: hex, over: [1, -5], at: -4}}`},
		{[]string{"\x68\x03\x03\x68\x08\x01\x72\x7B\x16"}, `{start: "\x68", length: {at: 1, plus: 6}, end: "\x16", check: {kind: sum8, over: [4, -2], at: -2}}`},
		{[]string{"abc", "def", "ghi", "jkl"}, "{length: 3, idle: 50ms}"},
		{[]string{"abc", "defgh"}, "{idle: 50ms}"},
	} {
		var messages [][]byte
		for _, m := range c.messages {
			messages = append(messages, []byte(m))
		}
		got := guessFrame(messages)
		if got != c.want {
			t.Errorf("%q: %s, want %s", c.messages, got, c.want)
		}
		if got == "" {
			continue
		}
		site := filepath.Join(t.TempDir(), "site.yaml")
		text := siteOf("/dev/ttyS0", &port.Settings{Baud: 9600, DataBits: 8, Parity: "none", StopBits: 1}, got, []byte("R\r"))
		if err := os.WriteFile(site, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := check(&out, site, false); err != nil {
			t.Errorf("%s\n%s", text, &out)
		}
	}
}

// serialLine is a port with a device, until the test ends.
func serialLine(t *testing.T, talker *simulate.Talker) (path string) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("serial lines are simulated on Linux only")
	}
	p, err := simulate.OpenPTY()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- talker.ServeLine(ctx, p) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return p.Path
}

// TestSniff finds out the rate of a line, and shows what comes.
func TestSniff(t *testing.T) {
	path := serialLine(t, &simulate.Talker{Every: 100 * time.Millisecond, Baud: 19200, Say: func() []byte { return []byte("N     12.5 kg\r\n") }})
	var out, stderr bytes.Buffer
	if code := run([]string{"sniff", path, "--gap", "40ms", "--listen", "1s", "--for", "8s"}, nil, &out, &stderr); code != 0 {
		t.Fatalf("exit %d\n%s", code, &stderr)
	}
	for _, want := range []string{"19200 baud, 8 data bits, parity none", "N     12.5 kg\\r\\n", "4e 20 20 20", `frame: {end: "\r\n"}`, "baud: 19200"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	out.Reset()
	if code := run([]string{"sniff", path, "--baud", "19200", "--for", "2s", "--json"}, nil, &out, &stderr); code != 0 {
		t.Fatalf("exit %d\n%s", code, &stderr)
	}
	for _, want := range []string{`"hex":"4e2020202020`, `{"frame":"{end: \"\\r\\n\"}"}`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}

// TestSerialFromTheCommandLine reads and tells a device of a site file.
func TestSerialFromTheCommandLine(t *testing.T) {
	says := func(s string) func() []byte { return func() []byte { return []byte(s) } }
	path := serialLine(t, &simulate.Talker{Answers: []simulate.TalkerAnswer{
		{Request: []byte("SI\r\n"), Reply: says("S S     100.00 g\r\n")},
		{Request: []byte("T\r\n"), Reply: says("T S     100.00 g\r\n")},
		{Request: []byte("Z\r\n"), Reply: says("Z I\r\n")},
	}})
	site := filepath.Join(t.TempDir(), "site.yaml")
	text, err := os.ReadFile("../../examples/serial/scale-mt-sics.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte("/dev/serial/by-id/usb-FTDI_scale-port0 "), []byte(path+" "), 1)
	if err := os.WriteFile(site, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"check", site}, 0, "no mistakes"},
		{[]string{"plan", site}, 0, "scale-0001  SI\\r\\n   1s     weight stable state"},
		{[]string{"plan", site, "--json"}, 0, `"asks":[{"device":"scale-0001","request":"SI\\r\\n","everyMs":1000,"points":["weight","stable","state"]}]`},
		{[]string{"read", site, "scale-0001"}, 0, "weight  100 g"},
		{[]string{"read", site, "scale-0001", "weight", "--json"}, 0, `[{"point":"weight","value":100,"unit":"g","quality":"good"}]`},
		{[]string{"write", site, "scale-0001", "tare=true"}, 0, "tare  true"},
		{[]string{"write", site, "scale-0001", "zero=true"}, 1, `the device answered "Z I", and not "Z A"`},
		{[]string{"write", site, "scale-0001", "weight=1"}, 1, "weight: may not be written"},
		{[]string{"read", site, "scale-0002"}, 1, "there is no device scale-0002"},
	} {
		var out, stderr bytes.Buffer
		if code := run(c.args, nil, &out, &stderr); code != c.code || !strings.Contains(out.String()+stderr.String(), c.want) {
			t.Errorf("%v: exit %d, %s%s", c.args, code, &out, &stderr)
		}
	}
}

// Whatever comes over a line, there is a guess, and what is said of it is a site file.
func FuzzGuess(f *testing.F) {
	f.Add([]byte("S S     100.00 g\r\n"), byte(3))
	f.Add([]byte("\x68\x03\x03\x68\x08\x01\x72\x7B\x16"), byte(0))
	f.Add([]byte("$GPGGA,*47\r\n"), byte(1))
	f.Fuzz(func(t *testing.T, b []byte, at byte) {
		if g := guessLine(9600, "none", b); g.Score < 0 || g.Score > 1 {
			t.Fatalf("%+v", g)
		}
		cut := min(int(at), len(b))
		if form := guessFrame([][]byte{b[:cut], b[cut:]}); !strings.HasPrefix(form, "{") {
			t.Fatal(form)
		}
		for _, c := range printable(b) {
			if c < ' ' || c > '~' {
				t.Fatalf("%q", printable(b))
			}
		}
	})
}
