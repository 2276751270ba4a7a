package access

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/fieldferry/fieldferry/localbroker/topic"
)

func parseACL(t testing.TB, text string) *ACL {
	t.Helper()
	a, problems := ParseACL("acl", []byte(text))
	if a == nil {
		t.Fatalf("%v", problems)
	}
	return a
}

// What Mosquitto 2.0.11 answered to the same file; TestInteropACL of cmd/fieldferry
// asks it again, with files at random.
func TestRights(t *testing.T) {
	a := parseACL(t, `# before any user: anonymous clients
topic read anon/#

user bob
topic readwrite a/#
topic deny a/secret
topic write a/secret
topic read w/%c
topic read p/grant
pattern deny p/grant
pattern read p/#
pattern readwrite c/%c/#
pattern read u/%u
pattern write $foo/x
topic deny c/x1/no
topic   read   sp ace
user carl jr
topic #
topic read $SYS/#
user bob
topic write late
`)
	for _, c := range []struct {
		user, id string
		want     string // topic=rights
	}{
		{"bob", "x1", "a=rw a/b=rw a/b/c=rw a/secret= a/secret/x=rw w/%c=r w/x1= p/grant=r p/x=r p=r b= anon/x="},
		{"bob", "x1", "c/x1=rw c/x1/y=rw c/x1/no= c/x1/no/y=rw c/x2/y= c= u/bob=r u/carl= $foo/x=w $SYS/x= sp_ace=r sp= late=w"},
		{"", "x1", "anon=r anon/x=r p/x=r p/grant= c/x1/y=rw u/= $foo/x=w a/b="},
		{"carl jr", "x1", "p/grant=rw c/x2/y=rw u/carl_jr=rw $SYS/a=r $bar= $bar/x= $foo/x=w"},
		{"nobody", "x1", "p/x=r p/grant= c/x1=rw c/x2= a= anon/x="},
		// A wildcard in a name: patterns give nothing, the user's own topics stay.
		{"bob", "x+1", "a/b=rw a/secret= p/grant=r p/x= c/x1/y= c/x+1/y= $foo/x="},
		{"bob", "#", "a/b=rw p/x= c/x= c/x/y= u/bob="},
		{"b+b", "x1", "p/x= c/x1/y= u/bob="},
		// A name that would become another level. Mosquitto lets it.
		{"bob", "x/y", "a/b=rw p/x=r c/x/y= c/x/y/z= u/bob=r"},
		{"nobody/x", "x1", "p/x=r c/x1=rw u/nobody/x="},
	} {
		r := a.Rights(c.id, c.user)
		for want := range strings.FieldsSeq(c.want) {
			name, rights, _ := strings.Cut(strings.ReplaceAll(want, "_", " "), "=")
			got := ""
			if r.MayReceive(name) {
				got = "r"
			}
			if r.MayPublish(name) {
				got += "w"
			}
			if got != rights {
				t.Errorf("%q as %q has %q to %s, want %q", c.user, c.id, got, name, rights)
			}
		}
	}
}

// A name is no way out of a pattern.
func TestPatternsHold(t *testing.T) {
	a := parseACL(t, "pattern readwrite %c/x\npattern read %u/#\npattern deny a/%c\npattern read a/#\npattern write x-%c\n")
	for _, c := range []struct {
		id, user, name string
		read, write    bool
	}{
		{"d", "u", "d/x", true, true},
		{"$SYS", "u", "$SYS/x", false, false},
		{"d", "$SYS", "$SYS/broker", false, false},
		{"b/c", "u", "b/c/x", false, false},
		{"d", "b/c", "b/c", false, false},
		{"b/c", "u", "a/b/c", false, false}, // denied as it stands
		{"b/c", "u", "a/b", true, false},
		{"d", "u", "x-d", false, true},
		{"", "", "a/", false, false},
		{"", "", "/x", false, false},
	} {
		if c.id == "" {
			c.read, c.write = c.name == "/x", c.name == "/x"
		}
		r := a.Rights(c.id, c.user)
		if r.MayReceive(c.name) != c.read || r.MayPublish(c.name) != c.write {
			t.Errorf("%q %q %s: read %v, write %v", c.id, c.user, c.name, r.MayReceive(c.name), r.MayPublish(c.name))
		}
	}
}

func TestMaySubscribe(t *testing.T) {
	a := parseACL(t, `user bob
topic read a/+/c
topic write w/#
topic deny a/x/#
pattern read own/%c/#
pattern read a/x/y
pattern read d/#
pattern deny d/+/secret
user sys
topic #
topic deny no/#
topic deny maybe
topic read $SYS/#
topic deny $SYS/broker/log/#
`)
	for filter, want := range map[string]map[string]bool{
		"bob": {
			"#": true, "+": true, "+/+/+": true, "a/#": true, "a/b/c": true, "a/+/c": true, "+/b/#": true, "a/b/+": true, "a/b/c/#": true,
			"a": false, "a/b": false, "a/x/c": false, "a/x/#": false, "a/x/y": false, "w": false, "w/#": false, "w/+": false, "b/#": false,
			"own/x1": true, "own/x1/y": true, "own/+/y": true, "own/x2": false, "own/x2/#": false, "$SYS/#": false, "$own/x1": false,
			"d": true, "d/#": true, "d/x/secret": false, "d/+/secret": false, "d/+/+": true, "d/x/secret/y": true,
		},
		"sys":  {"#": true, "no": false, "no/#": false, "no/x/y": false, "+/x": true, "maybe": false, "maybe/#": true, "$SYS/#": true, "$SYS/broker/log/N": false, "$SYS": true, "$x/#": false},
		"none": {"#": true, "own/x1": true, "a/b/c": false, "+/x1/#": true, "+/x2": true /* d/x2 */, "w/#": false},
	} {
		r := a.Rights("x1", filter)
		for f, may := range want {
			if r.MaySubscribe(f) != may {
				t.Errorf("%s may subscribe to %s: %v", filter, f, !may)
			}
		}
	}
	if parseACL(t, "user x\n").Rights("a", "x").MaySubscribe("#") {
		t.Error("who may read nothing may subscribe to it")
	}
}

// Filters and names of few words, so that they meet.
var (
	someLevel  = rapid.SampledFrom([]string{"a", "b", "", "+", "$s", "%c", "%u"})
	someFilter = rapid.Custom(func(t *rapid.T) string {
		levels := rapid.SliceOfN(someLevel, 0, 4).Draw(t, "levels")
		if len(levels) == 0 || rapid.Bool().Draw(t, "hash") {
			levels = append(levels, "#")
		}
		f := strings.Join(levels, "/")
		if f == "" {
			return "a"
		}
		return f
	})
	someName = rapid.Custom(func(t *rapid.T) string {
		name := strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", "", "$s"}), 1, 5).Draw(t, "name"), "/")
		if name == "" {
			return "a"
		}
		return name
	})
	someACL = rapid.Custom(func(t *rapid.T) string {
		var b strings.Builder
		for range rapid.IntRange(0, 30).Draw(t, "lines") {
			if rapid.IntRange(0, 3).Draw(t, "which") == 0 {
				b.WriteString("user " + rapid.SampledFrom([]string{"a", "b"}).Draw(t, "user") + "\n")
			}
			b.WriteString(rapid.SampledFrom([]string{"topic ", "pattern "}).Draw(t, "kind"))
			b.WriteString(rapid.SampledFrom([]string{"read ", "write ", "readwrite ", "deny "}).Draw(t, "right"))
			b.WriteString(someFilter.Draw(t, "filter") + "\n")
		}
		return b.String()
	})
	someID = rapid.SampledFrom([]string{"a", "b", "c", "a/b", "+", "#", "$s", "%c", "a+"})
)

func TestOverlap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := someFilter.Draw(t, "a"), someFilter.Draw(t, "b")
		common, ok := overlap(a, b)
		if back, too := overlap(b, a); back != common || ok != too {
			t.Fatalf("%s and %s have %q in common, the other way round %q", a, b, common, back)
		}
		if ok && (topic.CheckFilter(common, 0) != nil || !covers(a, common) || !covers(b, common)) {
			t.Fatalf("%s and %s have %q in common", a, b, common)
		}
		for range 20 {
			name := someName.Draw(t, "name")
			both := topic.Match(a, name) && topic.Match(b, name)
			if both != (ok && topic.Match(common, name)) {
				t.Fatalf("%s and %s have %q, %v in common, and %s", a, b, common, ok, name)
			}
			if covers(a, b) && topic.Match(b, name) && !topic.Match(a, name) {
				t.Fatalf("%s covers %s, but not %s", a, b, name)
			}
		}
	})
}

// allowed is Mosquitto's way through an acl_file, line by line.
func allowed(text, user, id, name string, want right) bool {
	pass := func(kind string, find right) bool {
		current := ""
		for line := range strings.Lines(text) {
			word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
			if word == "user" {
				current = rest
				continue
			}
			access, filter, _ := strings.Cut(rest, " ")
			have := rights[access]
			if word != kind || kind == "topic" && current != user || have == deny && find != deny || have != deny && have&find == 0 {
				continue
			}
			if kind == "pattern" {
				if strings.Contains(filter, "%u") && user == "" {
					continue
				}
				for _, sub := range []struct{ mark, with string }{{"%c", id}, {"%u", user}} {
					if have != deny && strings.Contains(filter, sub.mark) && (strings.Contains(sub.with, "/") || sub.with[0] == '$' && strings.HasPrefix(filter, sub.mark)) {
						filter = "\x01"
					}
				}
				filter = strings.NewReplacer("%c", id, "%u", user).Replace(filter)
			}
			if topic.Match(filter, name) {
				return true
			}
		}
		return false
	}
	switch {
	case pass("topic", deny):
		return false
	case pass("topic", want):
		return true
	case strings.ContainsAny(id+user, "+#"), pass("pattern", deny):
		return false
	}
	return pass("pattern", want)
}

func TestRightsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := someACL.Draw(t, "acl")
		a, problems := ParseACL("acl", []byte(text))
		if a == nil {
			t.Fatalf("%v", problems)
		}
		user, id := rapid.SampledFrom([]string{"", "a", "b", "c", "$s", "a/b", "+"}).Draw(t, "user"), someID.Draw(t, "id")
		r := a.Rights(id, user)
		filter := someFilter.Draw(t, "filter")
		for range 20 {
			name := someName.Draw(t, "name")
			if got, want := r.MayReceive(name), allowed(text, user, id, name, read); got != want {
				t.Fatalf("%q as %q may read %s: %v", user, id, name, got)
			}
			if got, want := r.MayPublish(name), allowed(text, user, id, name, write); got != want {
				t.Fatalf("%q as %q may write %s: %v", user, id, name, got)
			}
			if r.MayReceive(name) && topic.Match(filter, name) && !r.MaySubscribe(filter) {
				t.Fatalf("%q as %q may read %s but not subscribe to %s", user, id, name, filter)
			}
		}
	})
}

func TestACLMistakes(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"topic a b\n", `f:1: "a" is no right; write read, write, readwrite or deny (and one of them before a topic with a space in it)`},
		{"\n\ntopic\n", "f:3: topic names no topic; write topic read FILTER"},
		{"pattern \n", "f:1: pattern names no topic; write pattern read FILTER"},
		{"user\n", "f:1: user names nobody; write user NAME"},
		{"topic read a/#/b\n", `f:1: "a/#/b" is no filter: # is not the whole last level`},
		{"topic read a # all\n", `f:1: "a # all" is no filter: # is not the whole last level; a comment stands on a line of its own`},
		{"topic\tread a\n", "f:1: a tab or another control character; write spaces"},
		{"allow bob\nTOPIC x\n", `f:1: a line cannot begin with "allow"; write user, topic or pattern, and # before a comment
f:2: a line cannot begin with "TOPIC"; write user, topic or pattern, and # before a comment`},
		{"\xef\xbb\xbftopic read a\n", "f:1: it begins with a byte order mark; save it as UTF-8 without one"},
		{"topic read \xff\n", "f:1: it is not UTF-8; save the file as UTF-8"},
		{"# nothing\n", "f: warning: it grants nothing, so nobody may publish or read anything"},
		{"topic read\n", `f:1: warning: this grants a topic of the name "read", for reading and writing; name the topic behind it`},
		{"topic read a/%c\n", "f:1: warning: topic takes %c and %u as they stand; for the client's id or user name, write pattern"},
		{"topic read $share/g/a\n", "f:1: warning: rights are those to topics, and no topic begins with $share/; write the filter behind the share"},
		{"  topic a\r\n  # indented\r\nuser  bob b \npattern deny %u", ""},
	} {
		a, problems := ParseACL("f", []byte(c.text))
		var got []string
		bad := false
		for _, p := range problems {
			got = append(got, p.String())
			bad = bad || !p.Warning
		}
		if strings.Join(got, "\n") != c.want || bad != (a == nil) {
			t.Errorf("%q: %v, %s", c.text, a != nil, strings.Join(got, "\n"))
		}
	}
	_, problems := ParseACL("f", []byte(strings.Repeat("nonsense\n", 1000)))
	if n := len(problems); n != maxProblems || problems[n-1].Text != "this and 900 more problems; is it the right file?" {
		t.Errorf("%d problems, the last %v", n, problems[n-1])
	}
}

func TestACLUsers(t *testing.T) {
	a := parseACL(t, "topic read a\nuser bob\ntopic #\nuser carl\ntopic deny #\nuser bob\ntopic b\npattern read #\n")
	lines := maps.Collect(a.Users())
	if fmt.Sprint(lines) != "map[bob:2 carl:4]" {
		t.Errorf("users %v", lines)
	}
	if got := fmt.Sprint(a.Grants()); got != "[{ true 8} {bob false 3}]" {
		t.Errorf("grants %v", got)
	}
	if got := fmt.Sprint(parseACL(t, "topic read #\n").Grants()); got != "[{ false 1}]" {
		t.Errorf("grants %v", got)
	}
}

func FuzzACL(f *testing.F) {
	f.Add([]byte("topic read a/#\nuser bob\ntopic deny a/b\npattern readwrite c/%c/%u\n"), "id", "bob", "a/b")
	f.Add([]byte("# x\r\n user  a b \r\ntopic # \r\npattern %c"), "", "", "$SYS/x")
	f.Fuzz(func(t *testing.T, text []byte, id, user, name string) {
		a, problems := ParseACL("f", text)
		for _, p := range problems {
			if a == nil == p.Warning && len(problems) == 1 || strings.ContainsAny(p.String(), "\r\n") {
				t.Fatalf("%v", p)
			}
		}
		if a == nil {
			return
		}
		r := a.Rights(id, user)
		if topic.CheckName(name, 0) == nil && r.MayReceive(name) && !r.MaySubscribe(name) {
			t.Fatalf("%q may be read, but not subscribed to", name)
		}
		if topic.CheckFilter(name, 0) == nil {
			_, inner := topic.SplitShared(name)
			r.MaySubscribe(inner)
		}
	})
}

func BenchmarkMayReceive(b *testing.B) {
	for _, n := range []int{3, fewRules, fewRules + 1, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			text := "user bob\n"
			for i := range n - 1 {
				text += fmt.Sprintf("topic read plant/+/line-%d/#\n", i)
			}
			r := parseACL(b, text+"topic read devices/+/telemetry\n").Rights("em-1", "bob")
			b.ReportAllocs()
			for b.Loop() {
				if !r.MayReceive("devices/em-1/telemetry") {
					b.Fatal("no")
				}
			}
		})
	}
}
