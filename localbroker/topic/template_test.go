package topic

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var site = map[string]string{"org": "acme", "site": "berlin"}

func TestTemplate(t *testing.T) {
	for _, c := range []struct {
		text, rest, filter string
		fields             []string
		values             []string
		name               string
	}{
		{"{org}/{site}/{zone}/{type}/{device}/{data}", "data", "acme/berlin/+/+/+/#",
			[]string{"zone", "type", "device", "data"}, []string{"z", "energy-meter", "em-1", "commands/response"}, "acme/berlin/z/energy-meter/em-1/commands/response"},
		{"devices/{device}/{data}", "data", "devices/+/#", []string{"device", "data"}, []string{"em-1", "telemetry"}, "devices/em-1/telemetry"},
		{"{data}/from/{device}", "data", "#", []string{"data", "device"}, []string{"a/b", "d"}, "a/b/from/d"},
		{"x-{org}-{site}/v1.{device}.raw/{device}", "", "x-acme-berlin/+/+", []string{"device"}, []string{"d"}, "x-acme-berlin/v1.d.raw/d"},
		{"fixed/topic", "", "fixed/topic", nil, nil, "fixed/topic"},
		{"/{device}/", "", "/+/", []string{"device"}, []string{"d"}, "/d/"},
	} {
		tm, err := ParseTemplate(c.text, c.rest, site)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if !slices.Equal(tm.Fields(), c.fields) || tm.Filter() != c.filter {
			t.Errorf("%s: fields %q, filter %q", c.text, tm.Fields(), tm.Filter())
		}
		if got, err := tm.Append([]byte("kept:"), c.values); err != nil || string(got) != "kept:"+c.name {
			t.Errorf("%s: %q, %v", c.text, got, err)
		}
		if got, ok := tm.Match([]string{"kept"}, c.name); !ok || !slices.Equal(got[1:], c.values) || got[0] != "kept" {
			t.Errorf("%s: %q taken apart: %q, %v", c.text, c.name, got, ok)
		}
	}
}

func TestTemplateNoMatch(t *testing.T) {
	for _, c := range [][2]string{
		{"devices/{device}/{data}", "devices/a"},
		{"devices/{device}/{data}", "devices//telemetry"},
		{"devices/{device}/{data}", "device/a/telemetry"},
		{"{device}/x", "a/x/y"}, {"{device}/x", "$SYS/x"}, {"{device}/x", "a"},
		{"v{device}w/x", "vw/x"}, {"v{device}w/x", "v/x"}, {"v{device}w/x", "aw/x"},
		{"{device}/{device}", "a/b"},
	} {
		tm, err := ParseTemplate(c[0], "data", nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := tm.Match([]string{"kept"}, c[1]); ok || len(got) != 1 {
			t.Errorf("%s matches %s: %q", c[0], c[1], got)
		}
	}
}

func TestTemplateErrors(t *testing.T) {
	for _, c := range [][2]string{
		{"", "empty"}, {"a/{", "brace"}, {"a/}", "brace"}, {"a/{}", "brace"}, {"{a{b}}", "brace"}, {"{a/b}", "brace"},
		{"a/+", "wildcard"}, {"a/#", "wildcard"}, {"a\x00", "U+0000"}, {"a\xff", "UTF-8"},
		{"{a}{b}", "told apart"}, {"x{data}", "whole levels"}, {"{data}/{data}", "twice"},
		{"{bad}/x", `{bad} is "a/b"`},
	} {
		_, err := ParseTemplate(c[0], "data", map[string]string{"bad": "a/b"})
		checkError(t, c[0], err, c[1])
	}
}

// What devices call themselves never changes the form of the topic.
func TestTemplateValues(t *testing.T) {
	tm, err := ParseTemplate("{org}/{device}/{data}", "data", site)
	if err != nil {
		t.Fatal(err)
	}
	for _, values := range [][]string{
		{"a/b", "x"}, {"+", "x"}, {"#", "x"}, {"", "x"}, {"a\x00", "x"}, {"a\xff", "x"}, {"a", ""}, {"a", "x/+"}, {"a", "#"}, {"a"}, {"a", "b", "c"},
		{"a", strings.Repeat("x", 65530)},
	} {
		if got, err := tm.Append([]byte("kept"), values); err == nil || string(got) != "kept" {
			t.Errorf("%.40q: %.40q, %v", values, got, err)
		}
	}
}

func TestMapping(t *testing.T) {
	for _, c := range []struct {
		filter, template, name, want string
		reverse                      string // the filter of the other side; "" is not reversible
	}{
		{"plant/+/raw/#", "{org}/{site}/raw/{1}/{#}", "plant/p1/raw/x/y", "acme/berlin/raw/p1/x/y", "acme/berlin/raw/+/#"},
		{"plant/+/raw/#", "{org}/{site}/raw/{1}/{#}", "plant/p1/raw", "acme/berlin/raw/p1", "acme/berlin/raw/+/#"},
		{"plant/+/raw/#", "{org}/{site}/raw/{1}/{#}", "plant//raw/", "acme/berlin/raw//", "acme/berlin/raw/+/#"},
		{"plant/+/raw/#", "{#}/of/{1}", "plant/p1/raw/x", "x/of/p1", "#"},
		{"plant/+/raw/#", "{#}/of/{1}", "plant/p1/raw", "of/p1", "#"},
		{"+/+", "{2}/{1}", "a/b", "b/a", "+/+"},
		{"+/+", "all/{2}", "a/b", "all/b", ""},
		{"a/b", "c", "a/b", "c", "c"},
		{"#", "up/{#}", "a/b/c", "up/a/b/c", "up/#"},
		{"a/+", "v-{1}", "a/b", "v-b", "+"},
	} {
		m, err := ParseMapping(c.filter, c.template, site)
		if err != nil {
			t.Errorf("%s → %s: %v", c.filter, c.template, err)
			continue
		}
		if got, ok := m.Append([]byte("kept:"), c.name); !ok || string(got) != "kept:"+c.want {
			t.Errorf("%s → %s: %s becomes %q, %v", c.filter, c.template, c.name, got, ok)
		}
		if m.Filter() != c.filter || m.Reversible() != (c.reverse != "") {
			t.Errorf("%s → %s: filter %s, reversible %v", c.filter, c.template, m.Filter(), m.Reversible())
		}
		got, ok := m.AppendReverse(nil, c.want)
		if ok != m.Reversible() || ok && string(got) != c.name {
			t.Errorf("%s → %s: %s goes back to %q, %v", c.filter, c.template, c.want, got, ok)
		}
		if m.Reversible() && m.ReverseFilter() != c.reverse {
			t.Errorf("%s → %s: filter of the other side %s", c.filter, c.template, m.ReverseFilter())
		}
	}
}

func TestMappingNoMatch(t *testing.T) {
	for _, c := range [][3]string{
		{"a/+", "x/{1}", "a/b/c"}, {"#", "x/{#}", "$SYS/a"}, {"+", "x/{1}", "$x"}, {"#", "{#}", strings.Repeat("$", 3)},
		{"a/#", "{#}", "a"}, // nothing is left
		{"#", "far/{#}", strings.Repeat("x", 65533)},
	} {
		m, err := ParseMapping(c[0], c[1], nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := m.Append([]byte("kept"), c[2]); ok || string(got) != "kept" {
			t.Errorf("%s → %s: %.40s becomes %.40q", c[0], c[1], c[2], got)
		}
	}
}

func TestMappingErrors(t *testing.T) {
	for _, c := range [][3]string{
		{"a/#/b", "x", "#"}, {"a/+", "x/{2}", "{2} is nothing"}, {"a/+", "x/{#}", "{#} is nothing"}, {"a", "{org", "brace"},
		{"$share/g/a", "x", "shared"}, {"a/#", "{#}/{#}", "twice"},
	} {
		_, err := ParseMapping(c[0], c[1], nil)
		checkError(t, c[0]+" → "+c[1], err, c[2])
	}
}

// Whatever a reversible mapping makes goes back to what it was, and the other
// side's filter matches it.
func TestMappingRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		filter, name := anyFilter.Draw(t, "filter"), anyName.Draw(t, "name")
		fields := []string{"x"}
		n := 0
		for l := range strings.SplitSeq(filter, "/") {
			switch l {
			case "+":
				n++
				fields = append(fields, "{"+string(rune('0'+n))+"}")
			case "#":
				fields = append(fields, "{#}")
			}
		}
		m, err := ParseMapping(filter, strings.Join(rapid.Permutation(fields).Draw(t, "template"), "/"), nil)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := m.Append(nil, name)
		if ok != Match(filter, name) {
			t.Fatalf("%q maps: %v", name, ok)
		}
		if !ok {
			return
		}
		back, ok := m.AppendReverse(nil, string(got))
		if strings.HasPrefix(string(got), "$") { // no field in the first level matches it
			return
		}
		if !ok || string(back) != name {
			t.Fatalf("%q → %q → %q, %v", name, got, back, ok)
		}
		if !Match(m.ReverseFilter(), string(got)) {
			t.Fatalf("%q does not match %q", m.ReverseFilter(), got)
		}
	})
}

func FuzzTemplate(f *testing.F) {
	f.Add("{org}/{device}/{data}", "acme/d/telemetry")
	f.Add("v-{device}-x/{data}/y", "v-1-x/a/b/y")
	f.Fuzz(func(t *testing.T, text, name string) {
		tm, err := ParseTemplate(text, "data", site)
		if err != nil || CheckName(name, 0) != nil {
			return
		}
		values, ok := tm.Match(nil, name)
		if !ok {
			return
		}
		if got, err := tm.Append(nil, values); err != nil || string(got) != name {
			t.Errorf("%q takes %q apart to %q and makes %q of it, %v", text, name, values, got, err)
		}
		if !Match(tm.Filter(), name) {
			t.Errorf("%q matches %q, its filter %q does not", text, name, tm.Filter())
		}
	})
}

func BenchmarkTemplate(b *testing.B) {
	from, err := ParseTemplate("devices/{device}/{data}", "data", nil)
	if err != nil {
		b.Fatal(err)
	}
	to, err := ParseTemplate("{org}/{site}/{device}/{data}", "data", site)
	if err != nil {
		b.Fatal(err)
	}
	var values []string
	var name []byte
	b.ReportAllocs()
	for b.Loop() {
		values, _ = from.Match(values[:0], "devices/em-0001/commands/response")
		name, _ = to.Append(name[:0], values)
	}
}

func BenchmarkMapping(b *testing.B) {
	m, err := ParseMapping("plant/+/raw/#", "{org}/{site}/raw/{1}/{#}", site)
	if err != nil {
		b.Fatal(err)
	}
	var name []byte
	b.ReportAllocs()
	for b.Loop() {
		name, _ = m.Append(name[:0], "plant/p1/raw/x/y")
	}
}
