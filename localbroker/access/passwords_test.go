package access

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Both were made by mosquitto_passwd 2.0.11, of the password "secret".
const (
	bobs  = "bob:$7$101$4s/gJbk0oCk91HC2$/zCM59DLX09Yb6wpWeAra+nHF9HNMOaJXZH9XQKXhmg9osWLsiTNUJJSz4Za6OBeJUBMiqqHP5smS+4mfSR0Ig=="
	carls = "carl:$6$gHkvyK3VaexNMC1h$5pHxoJBIYfFaXrR77pY+fwmA7Uh0tZpWWyIaJsDet0ZedO4hIhpbRNsiDPHPXPYquBMamVuEEhHNsy6wpH1tOA=="
)

func parsePasswords(t testing.TB, text string) *Passwords {
	t.Helper()
	p, problems := ParsePasswords("f", []byte(text))
	if p == nil {
		t.Fatalf("%v", problems)
	}
	return p
}

func TestCheck(t *testing.T) {
	own, err := NewHash([]byte("pä$$:wörd"), 7)
	if err != nil {
		t.Fatal(err)
	}
	p := parsePasswords(t, "# comment\n\n"+bobs+"\r\n  "+carls+":x:y \ndo ra:"+own+"\n")
	for range 2 { // the second time some are known
		for _, c := range []struct {
			user, password string
			want           bool
		}{
			{"bob", "secret", true}, {"bob", "Secret", false}, {"bob", "", false}, {"bob", "secret\x00", false},
			{"carl", "secret", true}, {"carl", "secre", false}, {"carl", "secrets", false},
			{"do ra", "pä$$:wörd", true}, {"do ra", "secret", false},
			{"eve", "secret", false}, {"", "", false}, {"bob ", "secret", false}, {"# comment", "", false},
		} {
			got, err := p.Check(t.Context(), c.user, []byte(c.password))
			if got != c.want || err != nil {
				t.Errorf("%q with %q: %v, %v", c.user, c.password, got, err)
			}
		}
	}
	if !p.Has("bob") || p.Has("eve") {
		t.Error("the users are others")
	}
	if ok, err := parsePasswords(t, "").Check(t.Context(), "bob", []byte("secret")); ok || err != nil {
		t.Errorf("an empty file lets in: %v, %v", ok, err)
	}
}

// A user that there is not costs what some user does, and always the same.
func TestUnknownUserCosts(t *testing.T) {
	p := parsePasswords(t, bobs+"\n"+carls+"\n"+"dora:$7$5000$"+strings.SplitN(bobs, "$", 4)[3]+"\n")
	again := parsePasswords(t, bobs+"\n"+carls+"\n"+"dora:$7$5000$"+strings.SplitN(bobs, "$", 4)[3]+"\n")
	seen := make(map[int]int)
	for i := range 300 {
		user := fmt.Sprint("user", i)
		n := p.choose(user)
		if n != p.choose(user) || n != again.choose(user) {
			t.Fatalf("%s costs something else every time", user)
		}
		seen[n]++
	}
	for i := range 3 {
		if seen[i] < 60 {
			t.Errorf("of 300 users that there are not, %d cost what user %d does", seen[i], i)
		}
	}
}

// While all slots are taken, who is known gets in, others wait for their turn or
// until they do not want to any more.
func TestSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := parsePasswords(t, bobs+"\n"+carls+"\n")
		if ok, err := p.Check(t.Context(), "bob", []byte("secret")); !ok || err != nil {
			t.Fatal(ok, err)
		}
		for range cap(p.slots) {
			p.slots <- struct{}{}
		}
		if ok, err := p.Check(t.Context(), "bob", []byte("secret")); !ok || err != nil {
			t.Errorf("who is known waits: %v, %v", ok, err)
		}
		var wait sync.WaitGroup
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("gone")
		results := make(chan string, 3)
		check := func(ctx context.Context, user, password string) {
			wait.Go(func() {
				ok, err := p.Check(ctx, user, []byte(password))
				results <- fmt.Sprint(user, " ", ok, " ", err)
			})
		}
		check(ctx, "eve", "x")
		check(ctx, "bob", "wrong")
		synctest.Wait()
		if len(results) > 0 {
			t.Fatal(<-results)
		}
		cancel(gone)
		synctest.Wait()
		if len(results) != 2 {
			t.Fatalf("%d have given up", len(results))
		}
		for range 2 {
			if got := <-results; !strings.HasSuffix(got, " false gone") {
				t.Error(got)
			}
		}
		check(t.Context(), "carl", "secret")
		synctest.Wait()
		<-p.slots
		wait.Wait()
		if got := <-results; got != "carl true <nil>" {
			t.Error(got)
		}
	})
}

func TestPasswordMistakes(t *testing.T) {
	rest := strings.SplitN(bobs, "$", 4)[3]
	for _, c := range []struct{ text, want string }{
		{"bob\n", `f:1: the user "bob" has no password; set one: fieldferry passwd f bob`},
		{"\n# x\nbob:topsecret\n", `f:3: the password of the user "bob" is not hashed; set it again: fieldferry passwd f bob`},
		{"bob:\n", `f:1: the password of the user "bob" is not hashed; set it again: fieldferry passwd f bob`},
		{":x\n", "f:1: the user name is empty; a line is USER:HASH"},
		{bobs + "\n\n" + bobs + "\n", `f:3: the user "bob" is in line 1 already; take one of the two out`},
		{"bob:$7$0$" + rest, `f:1: the password of the user "bob" is a damaged hash: its iterations are no number; set it again: fieldferry passwd f bob`},
		{"bob:$7$x$" + rest, `f:1: the password of the user "bob" is a damaged hash: its iterations are no number; set it again: fieldferry passwd f bob`},
		{"bob:$7$250001$" + rest, `f:1: the password of the user "bob" takes more than 250000 iterations to check; set it again: fieldferry passwd f bob`},
		{"bob:$7$99999999999999999999$" + rest, `f:1: the password of the user "bob" takes more than 250000 iterations to check; set it again: fieldferry passwd f bob`},
		{"bob:$7$101$!!$" + rest, `f:1: the password of the user "bob" is a damaged hash: its salt is no base64; set it again: fieldferry passwd f bob`},
		{"bob:$7$101$$" + rest, `f:1: the password of the user "bob" is a damaged hash: its salt is no base64; set it again: fieldferry passwd f bob`},
		{bobs[:len(bobs)-8], `f:1: the password of the user "bob" is a damaged hash: it is not 64 bytes in base64; set it again: fieldferry passwd f bob`},
		{"bob:$6$abcd", `f:1: the password of the user "bob" is a damaged hash: it is not 64 bytes in base64; set it again: fieldferry passwd f bob`},
		{"bob:$argon2id$v=19$m=1$a$b", `f:1: the password of the user "bob" is an argon2id hash, which is not supported; set it again: fieldferry passwd f bob`},
		{"bob:$1$x$y", `f:1: the password of the user "bob" is of a kind that is not supported, neither $7$ nor $6$; set it again: fieldferry passwd f bob`},
		{"b\tob:x", "f:1: a tab or another control character; write spaces"},
		{strings.Repeat("x", 1025) + ":y", "f:1: the user name is longer than 1024 bytes; a line is USER:HASH"},
		{"\n# nobody\n", "f: warning: it names no user, so nobody can log in; add one: fieldferry passwd f USER"},
		{bobs, ""},
	} {
		p, problems := ParsePasswords("f", []byte(c.text))
		var got []string
		bad := false
		for _, p := range problems {
			got = append(got, p.String())
			bad = bad || !p.Warning
		}
		if strings.Join(got, "\n") != c.want || bad != (p == nil) {
			t.Errorf("%q: %v, %s", c.text, p != nil, strings.Join(got, "\n"))
		}
	}
}

func TestReadFiles(t *testing.T) {
	dir := t.TempDir()
	read := func(name string) string {
		_, passwords := ReadPasswords(filepath.Join(dir, name))
		_, acl := ReadACL(filepath.Join(dir, name))
		return strings.ReplaceAll(fmt.Sprint(passwords, acl), dir+string(filepath.Separator), "")
	}
	if got := read("none"); got != "[none: it is not there; create it with: fieldferry passwd -c none USER] [none: it is not there; create it, or take acl_file out]" {
		t.Error(got)
	}
	if got := read("."); !strings.Contains(got, "it is no file; name one") {
		t.Error(got)
	}
	path := filepath.Join(dir, "open")
	if err := os.WriteFile(path, []byte(bobs), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, problems := ReadPasswords(path); p == nil || len(problems) != 0 {
		t.Error(problems)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if p, problems := ReadPasswords(path); p == nil || fmt.Sprint(problems) != "["+path+": warning: everybody on this machine may read it; chmod o-r it]" {
		t.Error(problems)
	}
	if err := os.Truncate(path, maxFile+1); err != nil {
		t.Fatal(err)
	}
	if got := read("open"); !strings.Contains(got, "it is larger than 64 MiB; is it the right file?") {
		t.Error(got)
	}
}

func TestEdit(t *testing.T) {
	const file = "# head\n\nbob:1\r\n#bob:2\n bob:3\ncarl:4"
	for _, c := range []struct {
		user, put, want string
		was             bool
	}{
		{"bob", "X", "# head\n\nbob:X\r\n#bob:2\ncarl:4", true},
		{"carl", "X", "# head\n\nbob:1\r\n#bob:2\n bob:3\ncarl:X", true},
		{"dora", "X", "# head\n\nbob:1\r\n#bob:2\n bob:3\ncarl:4\ndora:X\n", false},
		{"bob", "", "# head\n\n#bob:2\ncarl:4", true},
		{"carl", "", "# head\n\nbob:1\r\n#bob:2\n bob:3\n", true},
		{"bo", "", file, false},
	} {
		got, was := SetUser([]byte(file), c.user, c.put)
		if c.put == "" {
			got, was = DeleteUser([]byte(file), c.user)
		}
		if string(got) != c.want || was != c.was {
			t.Errorf("%s %s: %q, %v", c.user, c.put, got, was)
		}
	}
}

// Who is set gets in with just that password, and nobody else is touched.
func TestSetUserModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		users := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-c ]{1,3}`).Filter(func(s string) bool { return CheckUser(s) == nil }), 1, 5, rapid.ID).Draw(t, "users")
		var file []byte
		passwords := make(map[string]string)
		for range rapid.IntRange(1, 10).Draw(t, "edits") {
			user := rapid.SampledFrom(users).Draw(t, "user")
			_, had := passwords[user]
			var was bool
			if rapid.Bool().Draw(t, "delete") {
				file, was = DeleteUser(file, user)
				delete(passwords, user)
			} else {
				passwords[user] = rapid.StringMatching(`[x-z:$]{1,3}`).Draw(t, "password")
				hash, err := NewHash([]byte(passwords[user]), 1)
				if err != nil {
					t.Fatal(err)
				}
				file, was = SetUser(file, user, hash)
			}
			if was != had {
				t.Fatalf("%q was there: %v", user, was)
			}
		}
		p, problems := ParsePasswords("f", file)
		if p == nil {
			t.Fatalf("%v in %q", problems, file)
		}
		for _, user := range users {
			password, in := passwords[user]
			ok, err := p.Check(context.Background(), user, []byte(password))
			wrong, _ := p.Check(context.Background(), user, []byte(password+"!"))
			if ok != in || wrong || err != nil {
				t.Fatalf("%q: %v, %v, %v", user, ok, wrong, err)
			}
		}
	})
}

func TestNames(t *testing.T) {
	for user, want := range map[string]string{
		"bob": "", "Bob Smith": "", "ü/+#": "", "": "is empty", "a:b": "contains a colon, which ends it in a password file", "#a": "begins with #, as comments do",
		" a": "begins or ends with a space", "a\n": "contains a control character", "\xff": "is not UTF-8",
	} {
		err := CheckUser(user)
		if err == nil != (want == "") || err != nil && err.Error() != "the user name "+want {
			t.Errorf("%q: %v", user, err)
		}
	}
	for password, good := range map[string]bool{"x": true, " ": true, "": false, "a\x00b": false, strings.Repeat("x", 1024): true, strings.Repeat("x", 1025): false} {
		if err := CheckPassword([]byte(password)); err == nil != good {
			t.Errorf("%.20q: %v", password, err)
		}
	}
	for _, n := range []int{0, -1, MaxIterations + 1} {
		if _, err := NewHash([]byte("x"), n); err == nil {
			t.Errorf("%d iterations are good", n)
		}
	}
}

func FuzzPasswords(f *testing.F) {
	f.Add([]byte(bobs+"\n"+carls+"\r\n# x\n"), "bob")
	f.Add([]byte("bob:$7$101$!!$x\n\nbob\n:\n\xef\xbb\xbf"), "eve")
	f.Fuzz(func(t *testing.T, text []byte, user string) {
		p, problems := ParsePasswords("f", text)
		for _, pr := range problems {
			if strings.ContainsAny(pr.String(), "\r\n") {
				t.Fatalf("%q", pr)
			}
		}
		if p == nil {
			return
		}
		for _, h := range p.costs {
			if h.iterations > MaxIterations {
				t.Fatalf("%d iterations", h.iterations)
			}
		}
		if CheckUser(user) != nil {
			return
		}
		hash, err := NewHash([]byte("x"), 1)
		if err != nil {
			t.Fatal(err)
		}
		set, was := SetUser(text, user, hash)
		q, problems := ParsePasswords("f", set)
		if q == nil {
			t.Fatalf("setting %q spoils the file: %v", user, problems)
		}
		if ok, err := q.Check(t.Context(), user, []byte("x")); !ok || err != nil || was != p.Has(user) || len(q.users) != len(p.users)+1 && !was {
			t.Fatalf("%q: %v, %v, was %v", user, ok, err, was)
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	hash, err := NewHash([]byte("secret"), DefaultIterations)
	if err != nil {
		b.Fatal(err)
	}
	p := parsePasswords(b, "bob:"+hash+"\n")
	for _, password := range []string{"wrong", "secret"} {
		b.Run(password, func(b *testing.B) {
			for b.Loop() {
				if ok, _ := p.Check(b.Context(), "bob", []byte(password)); ok != (password == "secret") {
					b.Fatal(ok)
				}
			}
		})
	}
}
