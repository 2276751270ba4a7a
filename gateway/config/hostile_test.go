//go:build !race

package config

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"strings"
	"testing"
	"time"
)

// What strangers may send ends in a problem, within these bounds. The slowest takes
// 0.5 s and 50 MiB on two cores; the time here is for machines that have others to
// serve. The race detector multiplies both, so it is not there.
const (
	mostMemory = 64 << 20
	mostTime   = 10 * time.Second
)

// spent is the time f takes and the most memory it has in use beyond what was.
func spent(f func()) (time.Duration, uint64) {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	heap := func() uint64 {
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	runtime.GC()
	base, peak := heap(), uint64(0)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for tick := time.NewTicker(time.Millisecond); ; {
			select {
			case <-tick.C:
				peak = max(peak, heap())
			case <-stop:
				tick.Stop()
				return
			}
		}
	}()
	start := time.Now()
	f()
	elapsed := time.Since(start)
	close(stop)
	<-done
	return elapsed, max(peak, base) - base
}

const smallDevice = "{points: {t: {input: 0, as: int16}}}"

func TestHostile(t *testing.T) {
	modbus := func(devices string) string {
		return "adapters:\n  a:\n    modbus: tcp\n    devices:\n" + devices
	}
	var bomb strings.Builder
	bomb.WriteString("a0: &a0 [x, x, x, x, x, x, x, x, x]\n")
	for i := range 30 {
		fmt.Fprintf(&bomb, "a%d: &a%d [%s]\n", i+1, i+1, strings.Repeat(fmt.Sprintf("*a%d, ", i), 9))
	}
	var merges strings.Builder
	merges.WriteString("a0: &a0 {" + numbered(100, "k%: 1, ") + "}\n")
	for i := range 30 {
		fmt.Fprintf(&merges, "a%d: &a%d {<<: [%s], x%d: {<<: *a%d}}\n", i+1, i+1, strings.Repeat(fmt.Sprintf("*a%d, ", i), 20), i, i)
	}
	full := func(text string) string { return strings.Repeat(text, maxFile/len(text)-20) }
	for name, text := range map[string]string{
		"alias bomb":              bomb.String(),
		"merge bomb":              merges.String(),
		"brackets":                strings.Repeat("[", 10_000),
		"braces":                  strings.Repeat("{a: ", 10_000),
		"closed brackets":         strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000),
		"hyphens":                 strings.Repeat("- ", 10_000),
		"hyphens in brackets":     "[" + full("- "),
		"indentation":             deep(700),
		"question marks":          full("? "),
		"anchors":                 full("&a "),
		"many anchors":            numbered(20_000, "a%: &a% [x]\n"),
		"colons":                  full("a: "),
		"commas":                  "[" + full(","),
		"hashes":                  full("#\n"),
		"quotes":                  full("'' "),
		"open quote":              "a: \"" + full("x"),
		"long plain text":         "a: " + full("x "),
		"long lines of text":      "a: " + full("xxxxxx\n   "),
		"long quoted text":        "a: \"" + full(`\n`) + `"`,
		"long block":              "a: |\n" + full("  x\n"),
		"empty lines in a block":  "a: |\n  x\n" + full("\n") + "\nb: 1\n",
		"tabs in quotes":          "a: \"" + full("\t"),
		"keys":                    numbered(40_000, "k%:\n"),
		"keys in braces":          "{" + numbered(20_000, "k%: 1,") + "}",
		"unknown keys everywhere": modbus(numbered(2_500, "      d%: {unit_id: 1, x: 1, y: 2, points: {}}\n")),
		"null bytes":              full("\x00"),
		"not text":                full("\xff"),
		"carriage returns":        full("a\r"),
		"range":                   modbus("      \"d-{1..999999999}\": " + smallDevice),
		"long ranges":             modbus(numbered(1_000, "      \"d%-{1..10000}\": "+smallDevice+"\n")),
		"range in a range":        modbus("      \"d-{1..10000}\": {at: \"10.0.0.1:{1..10000}\", points: {\"p-{1..10000}\": {input: 0, as: int16}}}"),
		"parameters and ranges": "profiles: {p: {params: {ct: {as: int}}, points: {\"p-{1..10000}\": {input: \"{ct}\", as: int16}}}}\n" +
			modbus("      \"d-{1..10000}\": {at: \"10.0.0.1:{1..10000}\", profile: p, with: {ct: \"{1..10000}\"}}"),
		"own points in a range": modbus("      \"d-{1..10000}\": {at: \"10.0.0.1:{1..10000}\", points: {" + numbered(4_000, "p%: {input: 0, as: int16},") + "}}"),
		"alerts that name nothing": modbus("      d: {at: \"10.0.0.1:502\", points: {\"p-{1..9999}\": {input: 0, as: int16}}, alerts: {" +
			numbered(6_000, "a%: {point: q%, above: 1},") + "}}"),
		"long references": "vars: {v: " + strings.Repeat("x", 60_000) + "}\n" + numbered(3_000, "k%: \"${var:v}\"\n"),
		"references in a reference": "vars: {v: " + strings.Repeat("x", 60_000) + "}\n" +
			"k: \"" + strings.Repeat("${var:v}", 50_000) + "\"\n",
		"variables": "vars: {" + numbered(12_000, "v%: x,") + "}\nk: [" + numbered(6_000, "\"${var:w%}\",") + "]\n",
		"bridges": "gateway: {org: o, site: s, zone: z}\n" + modbus("      \"d-{1..10000}\": {at: \"10.0.0.1:{1..10000}\", type: t, points: {t: {input: 0, as: int16}}}\n") +
			"bridges:\n" + numbered(500, "  b%: {upstream: mqtts://u%.example.com, topic: '{a}/{b}/{c}/{d}/{e}/{f}/{g}/{data}'}\n"),
		"topic template": "gateway: {org: o}\nbroker: {}\nbridges: {b: {upstream: mqtts://u.example.com, topic: '{device}/{data}/" + full("{a}/")[:maxFile-500] + "'}}",
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			if len(text) > maxFile {
				t.Fatalf("%d bytes", len(text))
			}
			var c *Config
			var ps []Problem
			elapsed, memory := spent(func() { c, ps = Parse("site.yaml", []byte(text), Options{Hostname: "host"}) })
			if c != nil || len(ps) == 0 {
				t.Fatal("it is taken for a site file")
			}
			if elapsed > mostTime || memory > mostMemory {
				t.Errorf("took %v and %d MiB", elapsed, memory>>20)
			}
			first := ps[0].String()
			t.Logf("%v, %d KiB, %d problems: %s", elapsed, memory>>10, len(ps), first[:min(len(first), 200)])
		})
	}
}

// deep is a map so many levels deep, each indented by one more space.
func deep(levels int) string {
	var b strings.Builder
	for i := range levels {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

// A file that is too large is not read.
func TestHostileSize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "site.yaml")
	write(t, filepath.Dir(path), "site.yaml", "")
	if err := os.Truncate(path, 100<<20); err != nil {
		t.Fatal(err)
	}
	var c *Config
	var ps []Problem
	elapsed, memory := spent(func() { c, ps = Load(path, Options{}) })
	if c != nil || len(ps) != 1 || elapsed > mostTime || memory > 1<<20 {
		t.Errorf("took %v and %d KiB: %v", elapsed, memory>>10, ps)
	}
	want(t, "text", ps[0].String(), path+":1:1: the file is larger than 512 KiB")
}

// Neither are all files together: nothing is read after the first bound that is
// exceeded, and nothing else is said.
func TestHostileIncludes(t *testing.T) {
	comments := "# " + strings.Repeat("x", 70) + "\n"
	for name, c := range map[string]struct{ part, first string }{
		"bytes":  {strings.Repeat(comments, 6_000), "p2.yaml:1:1: the site file and all that it names are together larger than 1 MiB; " + "use ranges and profiles, or a second gateway"},
		"marks":  {strings.Repeat("#\n", 70_000), "p2.yaml:9962:1: all files together have more than 300000 lines, brackets, commas, colons and other marks; use ranges and profiles"},
		"tokens": {"l: [" + strings.Repeat("x, ", 45_000) + "]\n", "p0.yaml:1:120000: the file has more than 80000 tokens, which are keys, values, brackets, commas and hyphens; " + shorter},
		"values": {"l: [" + strings.Repeat("x, ", 30_000) + "]\n", "p4.yaml:1:1: the site file and its includes have together more than 150000 values"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var list []string
			for i := range 60 {
				name := fmt.Sprintf("p%d.yaml", i)
				list = append(list, name)
				write(t, dir, name, c.part+fmt.Sprintf("vars: {v%d: 1}\n", i))
			}
			write(t, dir, "site.yaml", "include: ["+strings.Join(list, ", ")+"]\nbroker: {colour: red}\n")
			var got *Config
			var ps []Problem
			elapsed, memory := spent(func() { got, ps = Load(filepath.Join(dir, "site.yaml"), Options{}) })
			if got != nil || elapsed > mostTime || memory > mostMemory {
				t.Errorf("took %v and %d KiB", elapsed, memory>>10)
			}
			want(t, "problems", strings.TrimSpace(problems(ps)), filepath.Join(dir, c.first))
			t.Logf("%v, %d KiB", elapsed, memory>>10)
		})
	}
}

// Devices are not expanded beyond those that can be.
func TestHostileDevices(t *testing.T) {
	text := "adapters: {a: {modbus: tcp, devices: {" +
		numbered(20, "\"d%-{1..10000}\": {at: \"10.0.0.1:{1..10000}\", points: {t: {input: 0, as: int16}}},\n") + "}}}"
	var ps []Problem
	elapsed, memory := spent(func() { _, ps = Parse("site.yaml", []byte(text), Options{}) })
	if elapsed > mostTime || memory > mostMemory {
		t.Errorf("took %v and %d KiB", elapsed, memory>>10)
	}
	want(t, "problems", strings.TrimSpace(problems(ps)), "site.yaml:2:1: more than 10000 devices; run a second gateway for the others")
	t.Logf("%v, %d KiB", elapsed, memory>>10)
}

func TestHostileTable(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"commas":  "name,holding,as\n" + strings.Repeat(",", 500_000),
		"rows":    "name,holding,as\n" + numbered(40_000, "p%,1,\n"),
		"columns": "name" + numbered(50_000, ",c%") + "\n" + numbered(4, "p%"+strings.Repeat(",1", 50_000)+"\n")[:200_000],
		"yaml":    "name,holding,as,bits\n" + numbered(4_000, "p%,1,uint16,\""+strings.Repeat("[", 100)+"\"\n"),
		"quotes":  "name,holding,as\n\"" + strings.Repeat("\"\"", 200_000),
		"range":   "name,holding,as\n\"p-{1..10000}\",1,int16\n" + numbered(20_000, "\"%-{1..10000}\",1,\n"),
	} {
		write(t, dir, name+".csv", text)
		write(t, dir, name+".yaml", "adapters: {a: {modbus: tcp://10.0.0.1:502, devices: {d: {points_file: "+name+".csv}}}}")
		var c *Config
		var ps []Problem
		elapsed, memory := spent(func() { c, ps = Load(filepath.Join(dir, name+".yaml"), Options{}) })
		if c != nil || len(ps) == 0 || elapsed > mostTime || memory > mostMemory {
			t.Errorf("%s: took %v and %d MiB: %d problems", name, elapsed, memory>>20, len(ps))
		}
		t.Logf("%s: %v, %d KiB, %d problems", name, elapsed, memory>>10, len(ps))
	}
}
