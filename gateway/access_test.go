package gateway

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/gateway/config"
	"github.com/fieldferry/fieldferry/localbroker"
	"github.com/fieldferry/fieldferry/localbroker/access"
	"github.com/fieldferry/fieldferry/localbroker/client"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// users is a password file of users with their name as password.
func users(t *testing.T, names ...string) string {
	t.Helper()
	var file []byte
	for _, name := range names {
		hash, err := access.NewHash([]byte(name), 1)
		if err != nil {
			t.Fatal(err)
		}
		file, _ = access.SetUser(file, name, hash)
	}
	return write(t, "passwd", string(file))
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// login connects and returns why it could not.
func login(t *testing.T, g *Gateway, o client.Options) (*client.Client, packet.Reason) {
	t.Helper()
	o.Address = g.Broker().Addr("plain").String()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := client.Connect(ctx, o)
	if err != nil {
		return nil, packet.ReasonOf(err)
	}
	t.Cleanup(c.Abort)
	return c, packet.Success
}

func TestWhoMayConnect(t *testing.T) {
	const (
		in     = packet.Success
		wrong  = packet.BadUserNameOrPassword
		nobody = packet.NotAuthorized
	)
	for _, c := range []struct {
		broker                             string
		bob, badPassword, unknown, unnamed packet.Reason
	}{
		{"allow_anonymous: false, password_file: PASSWD", in, wrong, wrong, nobody},
		{"password_file: PASSWD", in, wrong, wrong, nobody},
		{"allow_anonymous: true, password_file: PASSWD", in, wrong, wrong, in},
		{"allow_anonymous: true, acl_file: ACL", in, in, in, in},
		{"acl_file: ACL", in, in, in, in},
	} {
		broker := strings.NewReplacer("PASSWD", users(t, "bob"), "ACL", write(t, "acl", "topic read a\n")).Replace(c.broker)
		g, stop := start(t, site(t, "gateway: {data_dir: %q}\nbroker: {listeners: [{name: plain, listen: '127.0.0.1:0'}], %s}", t.TempDir(), broker))
		for _, v := range []packet.Version{packet.V311, packet.V5} {
			for _, o := range []struct {
				o    client.Options
				want packet.Reason
			}{
				{client.Options{Username: "bob", Password: []byte("bob")}, c.bob},
				{client.Options{Username: "bob", Password: []byte("bo")}, c.badPassword},
				{client.Options{Username: "bob"}, c.badPassword},
				{client.Options{Username: "eve", Password: []byte("bob")}, c.unknown},
				{client.Options{}, c.unnamed},
			} {
				o.o.Version = v
				if _, got := login(t, g, o.o); got != o.want {
					t.Errorf("%s: version %v, user %q, password %q: %v, want %v", c.broker, v, o.o.Username, o.o.Password, got, o.want)
				}
			}
		}
		stop()
	}
}

func TestWhatClientsMayDo(t *testing.T) {
	c := site(t, "gateway: {data_dir: %q}\nbroker: {listeners: [{name: plain, listen: '127.0.0.1:0'}], allow_anonymous: true, password_file: %s, acl_file: %s}",
		t.TempDir(), users(t, "bob", "eve"), write(t, "acl", "topic read open/#\nuser bob\ntopic readwrite plant/#\ntopic deny plant/secret\npattern readwrite own/%c/%u\n"))
	g, _ := start(t, c)
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		got := make(chan string, 100)
		bob, why := login(t, g, client.Options{ClientID: "b1", Username: "bob", Password: []byte("bob"), Version: v, Handler: func(m *client.Message) { got <- m.Topic }})
		if bob == nil {
			t.Fatal(why)
		}
		refused := packet.NotAuthorized
		if v == packet.V311 {
			refused = packet.Unspecified // 3.1.1 §3.9.3
		}
		reasons, _ := bob.Subscribe(t.Context(), packet.Subscription{Filter: "#"}, packet.Subscription{Filter: "plant/secret"},
			packet.Subscription{Filter: "own/b1/+"}, packet.Subscription{Filter: "own/b2/bob"}, packet.Subscription{Filter: "$share/g/open/x"}, packet.Subscription{Filter: "plant/+"})
		if want := []packet.Reason{0, refused, 0, refused, refused, 0}; fmt.Sprint(reasons) != fmt.Sprint(want) {
			t.Errorf("version %v: %v, want %v", v, reasons, want)
		}
		come := func(topics ...string) {
			t.Helper()
			for _, want := range topics {
				select {
				case topic := <-got:
					if topic != want {
						t.Errorf("version %v: %s came, want %s", v, topic, want)
					}
				case <-time.After(20 * time.Second):
					t.Fatalf("%s did not come", want)
				}
			}
		}
		for _, topic := range []string{"plant/secret", "open/x", "own/b1/bob", "own/b1/eve", "plant/a"} {
			if err := g.Broker().Publish(t.Context(), &localbroker.Message{Topic: topic}, nil); err != nil {
				t.Fatal(err)
			}
		}
		come("own/b1/bob", "plant/a")
		eve, _ := login(t, g, client.Options{ClientID: "e1", Username: "eve", Password: []byte("eve"), Version: v})
		unnamed, _ := login(t, g, client.Options{ClientID: "b1x", Version: v})
		for _, p := range []struct {
			c     *client.Client
			topic string
			may   bool
		}{
			{bob, "plant/b", true}, {bob, "plant/secret", false}, {bob, "own/b1/bob", true}, {bob, "own/b1/eve", false}, {bob, "open/x", false}, {bob, "$SYS/x", false},
			{eve, "plant/b", false}, {eve, "own/e1/eve", true}, {unnamed, "own/b1x/", false}, {unnamed, "open/x", false},
		} {
			// 3.1.1 is not told.
			err := p.c.Publish(t.Context(), &client.Message{Topic: p.topic, QoS: 1})
			if v == packet.V5 && (err == nil) != p.may || !p.may && err != nil && packet.ReasonOf(err) != packet.NotAuthorized {
				t.Errorf("%s: %v", p.topic, err)
			}
		}
		come("plant/b", "own/b1/bob")
	}
	// Neither is a will.
	if _, why := login(t, g, client.Options{Username: "eve", Password: []byte("eve"), Will: &client.Message{Topic: "plant/b"}}); why != packet.NotAuthorized {
		t.Errorf("a will to plant/b: %v", why)
	}
}

func TestMistakesInAccessFiles(t *testing.T) {
	passwd, acl := write(t, "passwd", "bob\neve:x\n"), write(t, "acl", "topic read a\nallow\n")
	c := site(t, "gateway: {data_dir: %q}\nbroker: {listeners: [{name: plain, listen: '127.0.0.1:0'}],\n  password_file: %s,\n  acl_file: %s}", t.TempDir(), passwd, acl)
	var got []string
	for _, p := range Check(c) {
		got = append(got, p.String())
	}
	want := []string{
		passwd + `:1: the user "bob" has no password; set one: fieldferry passwd ` + passwd + ` bob`,
		passwd + `:2: the password of the user "eve" is not hashed; set it again: fieldferry passwd ` + passwd + ` eve`,
		acl + `:2: a line cannot begin with "allow"; write user, topic or pattern, and # before a comment`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if _, err := Open(c, Options{}); err == nil || err.Error() != strings.Join(want, "\n") {
		t.Errorf("open: %v", err)
	}

	c = site(t, "gateway: {data_dir: %q}\nbroker: {listeners: [{name: plain, listen: '127.0.0.1:0'}],\n  password_file: /none/passwd}", t.TempDir())
	if _, err := Open(c, Options{}); err == nil || err.Error() != "site.yaml:3:3: password_file: /none/passwd: it is not there; create it with: fieldferry passwd -c /none/passwd USER" {
		t.Errorf("open: %v", err)
	}
}

func TestDoubtsAboutAnACL(t *testing.T) {
	passwd := users(t, "bob", "em-1", "boss")
	acl := write(t, "acl", "topic #\nuser bob\ntopic a\nuser eve\nuser em-1\ntopic write #\nuser boss\ntopic #\npattern read #\n")
	text := "broker: {acl_file: %s%s}\nadapters: {l: {mqtt: local, devices: {em-1: {}}}}"
	check := func(c *config.Config) string {
		var got []string
		for _, p := range Check(c) {
			if !p.Warning || p.File != acl {
				t.Errorf("%v", p)
			}
			got = append(got, strings.TrimPrefix(p.String(), acl+":"))
		}
		return strings.Join(got, "\n")
	}
	if got, want := check(site(t, text, acl, ", password_file: "+passwd)), `1: warning: this gives clients without a name the right to all topics; give them the ones they need
4: warning: nobody can have the user name "eve"; give it a password: fieldferry passwd `+passwd+` eve
6: warning: this gives the device em-1 the right to all topics; devices/em-1/# is enough for a device
9: warning: this gives every client the right to all topics; give it the ones it needs, as in devices/%u/#`; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := check(site(t, text, acl, "")); strings.Count(got, "for there is no password_file; without one, user names are not believed") != 4 {
		t.Error(got)
	}
}
