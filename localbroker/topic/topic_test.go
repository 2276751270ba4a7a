package topic

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCheckName(t *testing.T) {
	for _, c := range []struct {
		name string
		err  string
	}{
		{"a", ""}, {"/", ""}, {"a//b", ""}, {"$SYS/x", ""}, {"ä b/\U0001F600", ""},
		{strings.Repeat("a", 65535), ""},
		{strings.Repeat("/", 31), ""},
		{strings.Repeat("/", 32), "more than 32 levels"},
		{strings.Repeat("a", 65536), "longer than 65535"},
		{"", "empty"}, {"a/+", "wildcard"}, {"#", "wildcard"}, {"a+b", "wildcard"},
		{"a\x00b", "U+0000"}, {"a\xff", "UTF-8"}, {"\xed\xa0\x80", "UTF-8"},
	} {
		checkError(t, c.name, CheckName(c.name, 32), c.err)
	}
}

func TestCheckFilter(t *testing.T) {
	for _, c := range []struct {
		filter string
		err    string
	}{
		{"#", ""}, {"+", ""}, {"/", ""}, {"+/+/#", ""}, {"/+", ""}, {"a/#", ""}, {"$share/g/a/#", ""},
		{"$share/g//", ""}, {"$shared/a", ""},
		{"$share/g/" + strings.Repeat("/", 31), ""},
		{"$share/g/" + strings.Repeat("/", 32), "levels"},
		{"", "empty"}, {"a#", "#"}, {"#/a", "#"}, {"a/#/b", "#"}, {"##", "#"}, {"a+", "+"}, {"+a/b", "+"}, {"a/++", "+"},
		{"a/\x00", "U+0000"}, {"a/\xff", "UTF-8"},
		{"$share/g", "empty"}, {"$share/g/", "empty"}, {"$share//a", "share name"}, {"$share/+/a", "share name"}, {"$share/g#/a", "share name"},
		{"$share/", "share name"},
	} {
		checkError(t, c.filter, CheckFilter(c.filter, 32), c.err)
	}
}

func checkError(t *testing.T, what string, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("%.40q: %v", what, err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("%.40q: error %v, want one about %q", what, err, want)
	}
}

func TestSplitShared(t *testing.T) {
	for _, c := range [][3]string{{"a/b", "", "a/b"}, {"$share/g/a/#", "g", "a/#"}, {"$share/g//", "g", "/"}} {
		if group, inner := SplitShared(c[0]); group != c[1] || inner != c[2] {
			t.Errorf("SplitShared(%q) = %q, %q", c[0], group, inner)
		}
	}
}

// The examples of MQTT 5 §4.7, and what they leave out.
var matchTable = []struct {
	filter, name string
	want         bool
}{
	{"sport/tennis/player1/#", "sport/tennis/player1", true},
	{"sport/tennis/player1/#", "sport/tennis/player1/ranking", true},
	{"sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true},
	{"sport/#", "sport", true},
	{"sport/#", "sports", false},
	{"#", "a/b", true},
	{"sport/tennis/+", "sport/tennis/player1", true},
	{"sport/tennis/+", "sport/tennis/player1/ranking", false},
	{"sport/+", "sport", false},
	{"sport/+", "sport/", true},
	{"+/+", "/finance", true},
	{"/+", "/finance", true},
	{"+", "/finance", false},
	{"#", "$SYS/x", false},
	{"+/monitor/Clients", "$SYS/monitor/Clients", false},
	{"$SYS/#", "$SYS/x", true},
	{"$SYS/monitor/+", "$SYS/monitor/Clients", true},
	{"a/+", "a/$b", true},
	{"a/#", "a/$b", true},
	{"a/b", "a/B", false},
	{"a", "a/b", false},
	{"a/b", "a", false},
	{"a/+/#", "a", false},
	{"a/+/#", "a/b", true},
	{"+/#", "a", true},
	{"/", "/", true},
	{"a//b", "a//b", true},
	{"a/+/b", "a//b", true},
}

func TestMatch(t *testing.T) {
	for _, c := range matchTable {
		if got := Match(c.filter, c.name); got != c.want {
			t.Errorf("Match(%q, %q) = %v", c.filter, c.name, got)
		}
		var f Filters[int]
		f.Add(c.filter, 1)
		if got, n := f.AppendMatches(nil, c.name); len(got) > 0 != c.want || n != len(got) {
			t.Errorf("Filters with %q: %v from %d for %q", c.filter, got, n, c.name)
		}
		var s Names[int]
		s.Set(c.name, 1)
		if got := s.AppendMatches(nil, c.filter); len(got) > 0 != c.want {
			t.Errorf("Names with %q: %v for %q", c.name, got, c.filter)
		}
	}
}

var (
	anyLevel  = rapid.SampledFrom([]string{"", "a", "b", "c", "$d"})
	anyName   = rapid.Map(rapid.SliceOfN(anyLevel, 1, 4), joinLevels)
	anyFilter = rapid.Map(rapid.SliceOfN(rapid.SampledFrom([]string{"", "a", "b", "c", "$d", "+", "+", "#"}), 1, 4), func(l []string) string {
		if i := slices.Index(l, "#"); i >= 0 {
			l = l[:i+1]
		}
		return joinLevels(l)
	})
)

func joinLevels(l []string) string {
	if s := strings.Join(l, "/"); s != "" {
		return s
	}
	return "/"
}

// Filters and Names agree with Match, whatever was added and removed.
func TestSets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type entry struct {
			filter string
			v      int
		}
		var f Filters[int]
		var s Names[string]
		filters, names := map[entry]bool{}, map[string]bool{}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				e := entry{anyFilter.Draw(t, "filter"), rapid.IntRange(1, 3).Draw(t, "v")}
				f.Add(e.filter, e.v)
				filters[e] = true
			},
			"remove": func(t *rapid.T) {
				e := entry{anyFilter.Draw(t, "filter"), rapid.IntRange(1, 3).Draw(t, "v")}
				if f.Remove(e.filter, e.v) != filters[e] {
					t.Fatalf("Remove(%v) is not %v", e, filters[e])
				}
				delete(filters, e)
			},
			"set": func(t *rapid.T) {
				n := anyName.Draw(t, "name")
				s.Set(n, n)
				names[n] = true
			},
			"delete": func(t *rapid.T) {
				n := anyName.Draw(t, "name")
				if s.Delete(n) != names[n] {
					t.Fatalf("Delete(%q) is not %v", n, names[n])
				}
				delete(names, n)
			},
			"": func(t *rapid.T) {
				if f.Len() != len(filters) || s.Len() != len(names) {
					t.Fatalf("lengths %d and %d, want %d and %d", f.Len(), s.Len(), len(filters), len(names))
				}
				name, filter := anyName.Draw(t, "a name"), anyFilter.Draw(t, "a filter")
				var want []int
				for e := range filters {
					if Match(e.filter, name) {
						want = append(want, e.v)
					}
				}
				got, _ := f.AppendMatches(nil, name)
				slices.Sort(got)
				slices.Sort(want)
				if !slices.Equal(got, want) {
					t.Fatalf("filters that match %q: %v, want %v", name, got, want)
				}
				var wantNames []string
				for n := range names {
					if Match(filter, n) {
						wantNames = append(wantNames, n)
					}
				}
				gotNames := s.AppendMatches(nil, filter)
				slices.Sort(gotNames)
				slices.Sort(wantNames)
				if !slices.Equal(gotNames, wantNames) {
					t.Fatalf("names %q matches: %q, want %q", filter, gotNames, wantNames)
				}
				if v, ok := s.Get(name); ok != names[name] || ok && v != name {
					t.Fatalf("Get(%q) = %q, %v", name, v, ok)
				}
			},
		})
		for e := range filters {
			f.Remove(e.filter, e.v)
		}
		for n := range names {
			s.Delete(n)
		}
		if f.root.plus != nil || f.root.children.n+f.root.below.n+s.root.children.n != 0 {
			t.Fatal("nodes are left in empty sets")
		}
	})
}

func FuzzCheck(f *testing.F) {
	for _, c := range matchTable {
		f.Add(c.filter)
	}
	f.Add("$share/g/+/#")
	f.Fuzz(func(t *testing.T, s string) {
		if CheckName(s, 8) == nil {
			if CheckFilter(s, 8) == nil && !strings.HasPrefix(s, sharePrefix) && !Match(s, s) {
				t.Errorf("%q does not match itself", s)
			}
			var f Filters[int]
			f.Add("#", 1)
			if got, _ := f.AppendMatches(nil, s); len(got) == 1 == hidden(s) {
				t.Errorf("# and %q: %v", s, got)
			}
		}
		if CheckFilter(s, 8) == nil {
			_, inner := SplitShared(s)
			var f Filters[int]
			f.Add(inner, 1)
			if !f.Remove(inner, 1) {
				t.Errorf("%q cannot be removed", inner)
			}
		}
	})
}

func BenchmarkCheckDeepName(b *testing.B) {
	deep := strings.Repeat("/", 65000)
	for b.Loop() {
		if CheckName(deep, 32) == nil {
			b.Fatal("accepted")
		}
	}
}

func BenchmarkFilters(b *testing.B) {
	var f Filters[int]
	const n = 100000
	for i := range n {
		f.Add("devices/d"+string(rune('a'+i%26))+strings.Repeat("x", i%40)+"/"+string(rune(0x4e00+i%5000))+"/telemetry", i)
	}
	f.Add("devices/+/+/telemetry", 1)
	f.Add("devices/#", 2)
	f.Add("#", 3)
	dst := make([]int, 0, 64)
	name := "devices/dqxxxx/" + string(rune(0x4e00+7)) + "/telemetry"
	b.ReportAllocs()
	for b.Loop() {
		dst, _ = f.AppendMatches(dst[:0], name)
	}
	if len(dst) < 3 {
		b.Fatal("too few matches")
	}
}

// BenchmarkMillion finds the subscriptions to a device's topic among a million. Each
// of 200,000 devices has five: two without a wildcard, two that end with one, and one
// that skips levels. With topics of all devices, picked at random, little of the index
// is in the processor's caches; with those of a thousand devices, most of what counts
// is.
func BenchmarkMillion(b *testing.B) {
	var f Filters[int]
	const devices = 200_000
	names := make([]string, devices)
	for i := range devices {
		at := fmt.Sprintf("acme/site-%d/zone-%d/meter", i%50, i/50%20)
		id := fmt.Sprintf("meter-%06d", i)
		names[i] = at + "/" + id + "/telemetry"
		f.Add(names[i], i)
		f.Add(at+"/"+id+"/command", i)
		f.Add("acme/+/+/meter/"+id+"/telemetry", i)
		f.Add(at+"/"+id+"/+", i)
		f.Add(at+"/"+id+"/#", i)
	}
	if f.Len() != 1_000_000 {
		b.Fatal(f.Len())
	}
	for _, busy := range []int{1000, devices} {
		b.Run(fmt.Sprintf("topics=%d", busy), func(b *testing.B) {
			pick := rand.New(rand.NewPCG(1, 1))
			dst := make([]int, 0, 64)
			b.ReportAllocs()
			for b.Loop() {
				name := names[pick.IntN(busy)]
				if dst, _ = f.AppendMatches(dst[:0], name); len(dst) != 4 {
					b.Fatalf("%s: %d matches", name, len(dst))
				}
			}
		})
	}
}
