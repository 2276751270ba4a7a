package topic

import (
	"strings"
	"testing"
)

// What a mapping makes is a valid name that its reverse filter matches, and that its
// reverse takes back.
func FuzzMapping(f *testing.F) {
	f.Add("plant/+/raw/#", "{org}/{site}/raw/{1}/{#}", "plant/p1/raw/x/y")
	f.Add("+/+", "{2}-x/{1}", "a/b")
	f.Add("#", "{#}", "$SYS/a")
	f.Add("a/#", "b/{#}", "a")
	f.Fuzz(func(t *testing.T, filter, template, name string) {
		m, err := ParseMapping(filter, template, site)
		if err != nil || CheckName(name, 0) != nil {
			return
		}
		got, ok := m.Append(nil, name)
		if !ok {
			return
		}
		if err := CheckName(string(got), 0); err != nil {
			t.Fatalf("%q → %q makes %q of %q: %v", filter, template, got, name, err)
		}
		if !Match(filter, name) || !Match(m.ReverseFilter(), string(got)) {
			t.Fatalf("%q → %q makes %q of %q, which its filters %q and %q do not match", filter, template, got, name, filter, m.ReverseFilter())
		}
		if back, ok := m.AppendReverse(nil, string(got)); m.Reversible() && (!ok || string(back) != name) {
			t.Fatalf("%q → %q makes %q of %q, and %q of that", filter, template, got, name, back)
		}
	})
}

// The trees find what Match says.
func FuzzMatch(f *testing.F) {
	for _, c := range matchTable {
		f.Add(c.filter, c.name)
	}
	f.Add("+/#", "/")
	f.Fuzz(func(t *testing.T, filter, name string) {
		if CheckFilter(filter, 100) != nil || CheckName(name, 100) != nil || strings.HasPrefix(filter, sharePrefix) {
			return
		}
		want := Match(filter, name)
		var fs Filters[int]
		fs.Add(filter, 1)
		if got, _ := fs.AppendMatches(nil, name); (len(got) == 1) != want {
			t.Errorf("filters: %q and %q: %v, Match says %v", filter, name, got, want)
		}
		var ns Names[int]
		ns.Set(name, 1)
		if got := ns.AppendMatches(nil, filter); (len(got) == 1) != want {
			t.Errorf("names: %q and %q: %v, Match says %v", filter, name, got, want)
		}
	})
}
