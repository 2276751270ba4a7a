package conformance

import (
	"fmt"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// What alice and bob may do stands in accessList.
var accessClauses = []clause{
	{says: "who does not say who they are is not let in", v5: "3.1.4-2 3.2.2-7", v311: "3.2.2-5 3.2.2-4", site: guarded, run: func(s *scene) {
		wrong := func(p *packet.Connect) { p.Password = []byte("wrong") }
		for i, o := range [][]option{{fresh}, {login("alice"), wrong}, {login("mallory")}, {login("alice"), func(p *packet.Connect) { p.HasPassword = false }}, {login("")}} {
			w := s.try(fmt.Sprint(s.prefix, i), o...)
			want := []packet.Reason{packet.NotAuthorized, packet.BadUserNameOrPassword}
			if !s.five() {
				want = []packet.Reason{4, 5}
			}
			if w.connack.Reason != want[0] && w.connack.Reason != want[1] || w.connack.SessionPresent {
				s.Errorf("login %d: %v", i, w.connack.Reason)
			}
			w.gone()
		}
		s.connect("good", login("alice")).quiet()
	}},
	{says: "what may not be published goes nowhere", v5: "3.4.2-1 3.5.2-1 4.3.3-9", v311: "3.3.5-2", site: guarded, run: func(s *scene) {
		alice, bob := s.connect("alice", login("alice")), s.connect("bob", login("bob"))
		bob.sub("public/"+s.prefix+"/#", 2)
		bob.sub("public/none/"+s.prefix, 2)
		bob.sub("outbox/"+s.prefix, 2)
		for qos := range byte(3) {
			for _, name := range []string{"outbox/" + s.prefix, "public/none/" + s.prefix, "elsewhere/" + s.prefix, "users/bob/x", "clients/other/x"} {
				r := alice.pub(name, "x", qos, retained)
				if s.five() && qos > 0 && r != packet.NotAuthorized {
					s.Errorf("QoS %d to %s: %v", qos, name, r)
				}
			}
			alice.pub("public/"+s.prefix+"/t", fmt.Sprint(qos), qos)
			if p := bob.message(); string(p.Payload) != fmt.Sprint(qos) {
				s.Errorf("got %q to %q", p.Payload, p.Topic)
			} else {
				bob.finish(p)
			}
		}
		bob.quiet()
		alice.quiet()
	}},
	{says: "what may not be read is not delivered, live, later or retained", v5: "§5.4.2", v311: "§5.4.2", site: guarded, run: func(s *scene) {
		alice, away, bob := s.connect("alice", login("alice")), s.connect("away", login("alice"), keep), s.connect("bob", login("bob"))
		hidden, shown := "public/none/"+s.prefix, "public/"+s.prefix
		bob.pub(hidden, "kept", 1, retained)
		bob.pub(shown, "kept", 1, retained)
		for _, w := range []*wire{alice, away} {
			w.sub("public/#", 1)
			for {
				p := w.message() // others' may be retained, too
				w.finish(p)
				if p.Topic == hidden {
					s.Errorf("got %q", p.Topic)
				}
				if p.Topic == shown {
					break
				}
			}
		}
		away.leave(0)
		bob.pub(hidden, "x", 1)
		bob.pub(shown, "end", 1)
		back := s.connect("away", login("alice"), resume)
		for _, w := range []*wire{alice, back} {
			for {
				p := w.message()
				w.finish(p)
				if p.Topic == hidden {
					s.Errorf("got %q", p.Topic)
				}
				if p.Topic == shown && string(p.Payload) == "end" {
					break
				}
			}
		}
		bob.pub(hidden, "", 1, retained)
		bob.pub(shown, "", 1, retained)
	}},
	{says: "a subscription to what may not be read is refused", v5: "3.9.3-2 3.8.4-5", v311: "3.9.3-2", site: guarded, ours: true, run: func(s *scene) {
		s = stage(s.T, s.v, own(s.T, guarded)) // where nobody else leaves retained messages
		alice := s.connect("alice", login("alice"))
		got := alice.subscribe(nil, filter("inbox/x", 1), filter("public/x", 1), filter("elsewhere/#", 0), filter("users/bob/#", 2), filter("users/alice/#", 2))
		bad := packet.NotAuthorized
		if !s.five() {
			bad = packet.Unspecified // 3.1.1 §3.9.3
		}
		if want := []packet.Reason{bad, 1, bad, bad, 2}; fmt.Sprint(got) != fmt.Sprint(want) {
			s.Errorf("reasons %v, want %v", got, want)
		}
		alice.quiet()
	}},
	{says: "patterns stand for the client and the user", v5: "§5.4.2", v311: "§5.4.2", site: guarded, run: func(s *scene) {
		alice, bob := s.connect("a", login("alice")), s.connect("b", login("bob"))
		alice.sub("users/alice/"+s.prefix, 1)
		alice.sub("clients/"+s.prefix+"a/#", 1)
		alice.pub("users/alice/"+s.prefix, "1", 1)
		alice.pub("clients/"+s.prefix+"a/x", "2", 1)
		bob.pub("users/alice/"+s.prefix, "not bob's", 1)
		bob.pub("clients/"+s.prefix+"a/x", "not bob's", 1)
		for i := range 2 {
			p := alice.message()
			if string(p.Payload) != fmt.Sprint(i+1) {
				s.Errorf("got %q to %q", p.Payload, p.Topic)
			}
			alice.finish(p)
		}
		alice.quiet()
	}},
	{says: "a client id cannot be chosen so that a pattern matches more", v5: "§5.4.2", v311: "§5.4.2", site: guarded, run: func(s *scene) {
		bob := s.connect("bob", login("bob"))
		bob.sub("users/bob/"+s.prefix, 1)
		for _, id := range []string{"#", "+", "a/+", "/", "a/#"} {
			w := s.try(id, login("alice"))
			if w.connack.Reason == packet.Success {
				for _, name := range []string{"clients/x" + s.prefix, "users/bob/" + s.prefix} {
					_ = w.write((&packet.Publish{Topic: name, Payload: []byte("x")}).Append(nil, s.v)) // it may be cut
				}
				_ = w.write((&packet.Disconnect{}).Append(nil, s.v, packet.DISCONNECT))
				w.end()
			}
		}
		bob.pub("users/bob/"+s.prefix, "end", 1)
		if p := bob.message(); string(p.Payload) != "end" {
			s.Errorf("got %q to %q", p.Payload, p.Topic)
		}
	}},
	{says: "a will that may not be published is not", v5: "3.1.4-2", v311: "3.1.4-5", site: guarded, run: func(s *scene) {
		bob := s.connect("bob", login("bob"))
		bob.sub("outbox/"+s.prefix, 1)
		w := s.try(s.prefix+"alice", login("alice"), will("outbox/"+s.prefix, "forged", 1))
		w.drop()
		good := s.connect("good", login("alice"), will("inbox/"+s.prefix, "gone", 1))
		bob.sub("inbox/"+s.prefix, 1)
		good.drop()
		if p := bob.message(); string(p.Payload) != "gone" {
			s.Errorf("got %q to %q", p.Payload, p.Topic)
		} else {
			bob.finish(p)
		}
		bob.quiet()
	}},
}
