package access

import (
	"bytes"
	"strings"
	"testing"

	"github.com/fieldferry/fieldferry/localbroker/topic"
)

// Whatever a client calls itself, a pattern gives it no more than what stands below
// that name.
func FuzzPattern(f *testing.F) {
	a, problems := ParseACL("f", []byte("pattern readwrite users/%u/#\npattern write clients/%c\n"))
	if a == nil {
		f.Fatal(problems)
	}
	f.Add("c", "bob", "users/bob/x")
	f.Add("#", "+", "users/alice/x")
	f.Add("a/b", "%c", "clients/a/b")
	f.Add("%u", "%c", "users/alice")
	f.Fuzz(func(t *testing.T, id, user, name string) {
		if topic.CheckName(name, 0) != nil {
			return
		}
		r := a.Rights(id, user)
		users := user != "" && (name == "users/"+user || strings.HasPrefix(name, "users/"+user+"/"))
		if r.MayReceive(name) && !users {
			t.Fatalf("user %q may read %q", user, name)
		}
		if r.MayPublish(name) && !users && name != "clients/"+id {
			t.Fatalf("client %q, user %q may write %q", id, user, name)
		}
		for _, filter := range []string{"other/#", "clients/+", "+"} { // nothing that may be read matches them
			if r.MaySubscribe(filter) {
				t.Fatalf("client %q, user %q may subscribe to %q", id, user, filter)
			}
		}
	})
}

// Who is taken out of a password file is gone, and nobody else is.
func FuzzDeleteUser(f *testing.F) {
	f.Add([]byte(bobs+"\n"+carls+"\r\n# x\n"), "bob")
	f.Add([]byte("\n\n"+bobs), "eve")
	f.Fuzz(func(t *testing.T, file []byte, user string) {
		p, _ := ParsePasswords("f", file)
		if p == nil || CheckUser(user) != nil {
			return
		}
		left, was := DeleteUser(file, user)
		if was != p.Has(user) || !was && !bytes.Equal(left, file) {
			t.Fatalf("%q was there: %v, %v", user, p.Has(user), was)
		}
		q, problems := ParsePasswords("f", left)
		if q == nil {
			if len(p.users) > 1 || len(p.users) == 1 && !was {
				t.Fatalf("without %q: %v", user, problems)
			}
			return
		}
		for name := range p.users {
			if q.Has(name) == (name == user) {
				t.Fatalf("without %q: %q is there: %v", user, name, q.Has(name))
			}
		}
	})
}
