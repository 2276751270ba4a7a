package config

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestDuration(t *testing.T) {
	for s, d := range map[string]time.Duration{
		"0": 0, "0s": 0, "500ms": 500 * time.Millisecond, "1h30m": 90 * time.Minute, "7d": 168 * time.Hour,
		"1d12h": 36 * time.Hour, "1.5d": 36 * time.Hour, ".5s": 500 * time.Millisecond, "100000d": 100000 * 24 * time.Hour,
	} {
		if got, err := parseDuration(s); err != nil || got != d {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	for s, text := range map[string]string{
		"":           `"" is no duration; write one such as 500ms, 10s, 1h30m or 7d`,
		"10":         `"10" has no unit; write 10ms, 10s, 10m, 10h or 10d`,
		"1.5":        `"1.5" has no unit; write 1.5ms, 1.5s, 1.5m, 1.5h or 1.5d`,
		"-1s":        `"-1s" is negative; a duration is 0 or more`,
		"+1s":        `"+1s" is no duration; write one such as 500ms, 10s, 1h30m or 7d`,
		"5 minutes":  `"5 minutes" is no duration; write 5m`,
		"2 weeks":    `"2 weeks" is no duration; write 14d`,
		"20msec":     `"20msec" is no duration; write 20ms`,
		"1d-1h":      `"1d-1h" is no duration; write one such as 500ms, 10s, 1h30m or 7d`,
		"1h1d":       `"1h1d" is no duration; write one such as 500ms, 10s, 1h30m or 7d`,
		"200000d":    `"200000d" is too long`,
		"106751d24h": `"106751d24h" is too long`,
		"NaN":        `"NaN" is no duration; write one such as 500ms, 10s, 1h30m or 7d`,
	} {
		if got, err := parseDuration(s); err == nil || err.Error() != text {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		days := rapid.IntRange(0, 50_000).Draw(t, "days")
		rest := time.Duration(rapid.Int64Range(1, int64(day)).Draw(t, "rest"))
		got, err := parseDuration(fmt.Sprintf("%dd%s", days, rest))
		if err != nil || got != time.Duration(days)*day+rest {
			t.Fatalf("%v, %v", got, err)
		}
	})
}

func TestSize(t *testing.T) {
	for s, n := range map[string]int64{"0": 0, "1B": 1, "16KiB": 16 << 10, "1MiB": 1 << 20, "1.5 GiB": 3 << 29, "1TiB": 1 << 40} {
		if got, err := parseSize(s); err != nil || got != n {
			t.Errorf("%s: %v, %v", s, got, err)
		}
		if back := sizeText(n); n > 0 && strings.ReplaceAll(s, " ", "") != back && s != "1.5 GiB" {
			t.Errorf("%s is written %s", s, back)
		}
	}
	for s, text := range map[string]string{
		"":               `"" is no size; write one such as 512KiB or 4GiB`,
		"256":            `"256" has no unit; write 256KiB, 256MiB or 256GiB`,
		"-1KiB":          `"-1KiB" is negative; a size is 0 or more`,
		"4GB":            `"4GB": the unit is unclear; write 4GiB`,
		"4g":             `"4g": the unit is unclear; write 4GiB`,
		"4gib":           `"4gib": the unit is unclear; write 4GiB`,
		"4 acres":        `"4 acres" is no size; write one such as 512KiB or 4GiB`,
		"1e3KiB":         `"1e3KiB" is no size; write one such as 512KiB or 4GiB`,
		"99999999999TiB": `"99999999999TiB" is too large`,
	} {
		if got, err := parseSize(s); err == nil || err.Error() != text {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
}

func TestNumber(t *testing.T) {
	for s, n := range map[string]Number{
		"0": "0", "12": "12", "-3": "-3", "+5": "5", "0x1F": "31", "-0x10": "-16", "0o17": "15", "1_000": "1000",
		"1.50": "1.50", ".5": ".5", "2.": "2.", "1e3": "1e3", ".nan": "NaN", "nan": "NaN", "-.inf": "-Inf", ".inf": "Inf",
		"18446744073709551615": "18446744073709551615", "0.5": "0.5",
	} {
		if got, err := parseNumber(&node{text: s, plain: true}); err != nil || got != n {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "x", "1x", "0x", "--1", "1,5", "1.2.3", "1e", "Infinity5"} {
		if got, err := parseNumber(&node{text: s, plain: true}); err == nil {
			t.Errorf("%s is taken for %s", s, got)
		}
	}
	if got, err := parseNumber(&node{text: "007"}); err != nil || got != "7" {
		t.Errorf("a range's 007 is %s, %v", got, err)
	}
	for n, i := range map[Number]int64{"1.0": 1, "1e3": 1000, "-5": -5, "9223372036854775807": 1<<63 - 1} {
		if got, ok := n.Int64(); got != i || !ok {
			t.Errorf("%s: %d, %v", n, got, ok)
		}
	}
	for _, n := range []Number{"1.5", "18446744073709551615", "1e30", "NaN", "-Inf"} {
		if got, ok := n.Int64(); ok {
			t.Errorf("%s is taken for %d", n, got)
		}
	}
}

func TestRange(t *testing.T) {
	for text, steps := range map[string][]string{
		"em-{0003..0005}":      {"em-0003", "em-0004", "em-0005"},
		"{8..11}":              {"8", "9", "10", "11"},
		"{08..11}":             {"08", "09", "10", "11"},
		"10.0.1.{11..12}:502":  {"10.0.1.11:502", "10.0.1.12:502"},
		"{1..2}/{11..12}":      {"1/11", "2/12"},
		"{{1..2}}":             {"{1}", "{2}"},
		"{a..b} {1..2} {3..x}": {"{a..b} 1 {3..x}", "{a..b} 2 {3..x}"},
		"{5..5}":               {"5"},
		"{00..01}":             {"00", "01"},
	} {
		spans, err := spansIn(text)
		if err != nil || len(spans) == 0 || spans[0].count() != len(steps) {
			t.Errorf("%s: %v, %v", text, spans, err)
			continue
		}
		for i, s := range steps {
			if got := stepText(text, spans, i); got != s {
				t.Errorf("%s, step %d: %s", text, i, got)
			}
		}
	}
	for _, text := range []string{"", "em-1", "{1...2}", "{..2}", "{1..}", "{1..2", "1..2}", "{-1..2}", "{1.. 2}"} {
		if spans, err := spansIn(text); err != nil || spans != nil {
			t.Errorf("%s: %v, %v", text, spans, err)
		}
	}
	for _, text := range []string{"{2..1}", "{1..99999}", "{1..99999999999999999999}"} {
		if spans, err := spansIn(text); err == nil {
			t.Errorf("%s: %v", text, spans)
		}
	}
}

// A range makes as many devices as it says, all different, in order, each with the
// number that is its own.
func TestRangeOfDevices(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		first := rapid.IntRange(0, 200).Draw(t, "first")
		count := rapid.IntRange(1, 50).Draw(t, "count")
		width := rapid.IntRange(4, 6).Draw(t, "width")
		name := fmt.Sprintf("{%0*d..%d}", width, first, first+count-1)
		c, ps := Parse("site.yaml", fmt.Appendf(nil, "adapters: {a: {modbus: tcp, devices: {%q: {at: \"10.0.0.1:{%d..%d}\", points: {t: {input: 0, as: int16}}}}}}",
			"d-"+name, first+1, first+count), Options{Hostname: "host"})
		if c == nil {
			t.Fatalf("%s", problems(ps))
		}
		devices := c.Adapters[0].Devices
		if len(devices) != count {
			t.Fatalf("%d devices", len(devices))
		}
		for i, d := range devices {
			if d.ID != fmt.Sprintf("d-%0*d", width, first+i) || d.Address != fmt.Sprintf("10.0.0.1:%d", first+1+i) {
				t.Fatalf("device %d is %s at %s", i, d.ID, d.Address)
			}
		}
	})
}

func TestSuggest(t *testing.T) {
	known := []string{"holding", "input", "address", "max_registers", "as", "drop-oldest", "unit_id", "unit"}
	for word, near := range map[string]string{
		"adress": "address", "adderss": "address", "holdng": "holding", "Input": "input", "max-registers": "max_registers",
		"maxregister": "max_registers", "at": "as", "drop_oldest": "drop-oldest", "unit-id": "unit_id", "units": "unit",
		"temperature": "", "": "", "x": "", "hold": "holding", "max": "max_registers", strings.Repeat("x", 100): "",
	} {
		if got := nearest(word, known); got != near {
			t.Errorf("%q: %q, want %q", word, got, near)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.SampledFrom([]string{"holding", "address", "max_registers", "drop-oldest"}).Draw(t, "word")
		i := rapid.IntRange(0, len(word)-1).Draw(t, "at")
		for _, typo := range []string{word[:i] + word[i+1:], word[:i] + "x" + word[i:], word[:i] + "x" + word[i+1:]} {
			if got := nearest(typo, known); got != word && typo != word {
				t.Fatalf("%s: %q, want %s", typo, got, word)
			}
		}
	})
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "abc", 0}, {"abc", "acb", 1}, {"abc", "ab", 1}, {"abc", "xbc", 1}, {"ca", "abc", 3}, {"kitten", "sitting", 3}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("%s, %s: %d", c.a, c.b, got)
		}
		if got := distance(c.b, c.a); got != c.want {
			t.Errorf("%s, %s: %d", c.b, c.a, got)
		}
	}
}
