package conformance

import (
	"fmt"
	"slices"
	"strings"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// matching says which names a filter matches; ~ stands for the scene's own
// prefix.
var matching = []struct {
	filter  string
	yes, no []string
}{
	{"~/sport/tennis/player1/#", []string{"~/sport/tennis/player1", "~/sport/tennis/player1/ranking", "~/sport/tennis/player1/score/wimbledon", "~/sport/tennis/player1/"}, []string{"~/sport/tennis", "~/sport/tennis/player10", "~/sport/tennis/player2/ranking"}},
	{"~/sport/tennis/+", []string{"~/sport/tennis/player1", "~/sport/tennis/", "~/sport/tennis/$x"}, []string{"~/sport/tennis", "~/sport/tennis/player1/ranking", "~/sport/tennis/a/"}},
	{"~/+", []string{"~/", "~/a"}, []string{"~", "~/a/b", "~//"}},
	{"~/+/+", []string{"~//", "~/a/", "~//b"}, []string{"~/", "~/a/b/c"}},
	{"~/+/tennis/#", []string{"~/x/tennis", "~//tennis/a/b"}, []string{"~/tennis", "~/a/b/tennis"}},
	{"~/a//b", []string{"~/a//b"}, []string{"~/a/b", "~/a/x/b"}},
	{"~/a/", []string{"~/a/"}, []string{"~/a", "~/a//"}},
	{"~/Accounts payable", []string{"~/Accounts payable"}, []string{"~/accounts payable", "~/Accounts  payable", "~/Accounts payable "}},
	{"~/#", []string{"~", "~/a", "~/a/b/c/d/e/f", "~//", "~/$SYS/x"}, nil},
	{"~/caf\u00e9", []string{"~/caf\u00e9"}, []string{"~/cafe\u0301", "~/cafe"}},
	{"~/\ufeffx", []string{"~/\ufeffx"}, []string{"~/x"}},
	{"~/\U0001f600/\u4e16", []string{"~/\U0001f600/\u4e16"}, nil},
	{"~/a/+/c/+/e", []string{"~/a/b/c/d/e", "~/a//c//e"}, []string{"~/a/b/c/d/e/f", "~/a/b/c/e"}},
}

var topicClauses = []clause{
	{says: "what filters match", v5: "4.7.1-1 4.7.1-2 4.7.3-4 1.5.4-3", v311: "4.7.1-2 4.7.1-3 4.7.3-4 1.5.3-3", run: func(s *scene) {
		pub := s.connect("pub")
		own := func(name string) string { return strings.Replace(name, "~", s.prefix+"x", 1) }
		for i, m := range matching {
			sub := s.connect(fmt.Sprint("sub", i))
			sub.sub(own(m.filter), 1)
			for _, name := range slices.Concat(m.no, m.yes) {
				pub.pub(own(name), name, 1)
			}
			for _, name := range m.yes {
				p := sub.message()
				if string(p.Payload) != name || p.Topic != own(name) {
					s.Errorf("filter %q: got %q to %q, want %q", m.filter, p.Payload, p.Topic, name)
				}
				sub.finish(p)
			}
			sub.quiet()
			sub.leave(0)
		}
	}},
	{says: "names and filters may begin with a level of no length", v5: "4.7.1-2 4.7.3-4", v311: "4.7.1-3 4.7.3-4", run: func(s *scene) {
		pub, sub := s.connect("pub"), s.connect("sub")
		name := "/" + s.prefix
		sub.sub("+/"+s.prefix, 1)
		pub.pub(s.prefix, "no", 1)
		pub.pub(name, "yes", 1)
		if p := sub.message(); p.Topic != name {
			s.Errorf("got %q", p.Topic)
		}
		exact := s.connect("exact")
		exact.sub(name, 1)
		pub.pub(s.prefix, "no", 1)
		pub.pub(name, "yes", 1)
		if p := exact.message(); string(p.Payload) != "yes" {
			s.Errorf("got %q to %q", p.Payload, p.Topic)
		}
	}},
	{says: "wildcards at the beginning do not match what begins with $", v5: "4.7.2-1", v311: "4.7.2-1", run: func(s *scene) {
		all, one, dollar, pub := s.connect("all"), s.connect("one"), s.connect("dollar"), s.connect("pub")
		all.sub("#", 0)
		one.sub("+/"+s.prefix, 0)
		dollar.sub("$"+s.prefix+"/#", 0)
		pub.pub("$"+s.prefix+"/"+s.prefix, "x", 1)
		pub.pub("$"+s.prefix, "x", 1)
		pub.pub("n/"+s.prefix, "end", 1)
		for _, w := range []*wire{all, one} {
			for {
				p := w.message()
				if strings.HasPrefix(p.Topic, "$") {
					s.Errorf("got %q", p.Topic)
				}
				if p.Topic == "n/"+s.prefix {
					break
				}
			}
		}
		// Whether clients may use such topics at all is the broker's choice.
		dollar.send(packet.AppendPingreq(nil))
		dollar.await(packet.PINGRESP)
	}},
	{says: "$SYS is there for who asks", v5: "4.7.2-1", v311: "4.7.2-1", run: func(s *scene) {
		c, all := s.connect("c"), s.connect("all")
		all.sub("#", 0)
		all.sub("+/broker/#", 0)
		c.sub("$SYS/broker/#", 0)
		for {
			p := c.message()
			if !strings.HasPrefix(p.Topic, "$SYS/broker/") {
				s.Fatalf("got %q", p.Topic)
			}
			if p.Topic == "$SYS/broker/version" && len(p.Payload) > 0 {
				break
			}
		}
		pub := s.connect("pub")
		pub.pub(s.topic("end"), "x", 1)
		for {
			p := all.message()
			if strings.HasPrefix(p.Topic, "$") {
				s.Fatalf("got %q", p.Topic)
			}
			if p.Topic == s.topic("end") {
				break
			}
		}
	}},
	{says: "a name of 65,535 bytes", v5: "4.7.3-3", v311: "4.7.3-3", run: func(s *scene) {
		sub, pub := s.connect("sub"), s.connect("pub")
		name := s.topic(strings.Repeat("n", 65535))[:65535]
		sub.sub(name, 1)
		pub.pub(name, "x", 1)
		if p := sub.message(); p.Topic != name {
			s.Errorf("%d bytes came back", len(p.Topic))
		}
	}},
	{says: "names are what they are, whatever is in them", v5: "4.7.3-4 1.5.4-3", v311: "4.7.3-4 1.5.3-3", run: func(s *scene) {
		sub, pub := s.connect("sub"), s.connect("pub")
		sub.sub(s.topic("#"), 1)
		for _, name := range []string{" ", "a b", "%s%n", "..", "../x", "\\", "\"quoted\"", "\u2028", "\ufeff", "\u00e9", "e\u0301", strings.Repeat("/", 20)} {
			pub.pub(s.topic(name), "x", 1)
			p := sub.message()
			if p.Topic != s.topic(name) {
				s.Errorf("%q came back as %q", name, p.Topic)
			}
			sub.finish(p)
		}
	}},
}
