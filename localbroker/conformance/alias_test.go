package conformance

import (
	"fmt"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

var aliasClauses = []clause{
	{says: "an alias stands for its topic", v5: "3.3.2-12", run: func(s *scene) {
		sub, pub := s.connect("sub"), s.connect("pub")
		sub.sub(s.topic("#"), 2)
		pub.pub(s.topic("one"), "1", 0, alias(1))
		pub.pub("", "2", 1, alias(1))
		pub.pub(s.topic("two"), "3", 2, alias(2))
		pub.pub("", "4", 2, alias(2))
		pub.pub("", "5", 0, alias(1))
		pub.pub(s.topic("other"), "6", 1, alias(1))
		pub.pub("", "7", 1, alias(1))
		pub.pub(s.topic("one"), "8", 1)
		want := []string{"one=1 q0", "one=2 q1", "two=3 q2", "two=4 q2", "one=5 q0", "other=6 q1", "other=7 q1", "one=8 q1"}
		for _, line := range want {
			p := sub.message()
			if s.line(p) != line || p.Alias != 0 {
				s.Errorf("got %q with alias %d, want %q", s.line(p), p.Alias, line)
			}
			sub.finish(p)
		}
	}},
	{says: "every alias up to the maximum is taken", v5: "3.3.2-12", site: limited, run: func(s *scene) {
		sub, pub := s.connect("sub"), s.connect("pub")
		most, _ := pub.connack.Props.Uint(packet.TopicAliasMaximum)
		if most == 0 {
			s.Fatal("no aliases")
		}
		sub.sub(s.topic("#"), 1)
		for a := uint16(1); a <= uint16(most); a++ {
			pub.pub(s.topic(fmt.Sprint(a)), "set", 1, alias(a))
			sub.want(fmt.Sprintf("%d=set q1", a))
		}
		for a := uint16(1); a <= uint16(most); a++ {
			pub.pub("", "used", 1, alias(a))
			sub.want(fmt.Sprintf("%d=used q1", a))
		}
	}},
	{says: "an alias of 0, or above the maximum", v5: "3.3.2-8 3.3.2-9 3.2.2-17", site: limited, run: func(s *scene) {
		for _, a := range []uint16{0, 4, 65535} {
			w := s.connect("c")
			w.send(frameOf(0x30, str(s.topic("t")), sized([]byte{0x23, byte(a >> 8), byte(a)})))
			w.closed(packet.TopicAliasInvalid)
		}
	}},
	{says: "an alias that was never set", v5: "§3.3.4", run: func(s *scene) {
		w := s.connect("c")
		w.start("", "x", 1, alias(2))
		w.closed(packet.ProtocolError, packet.TopicAliasInvalid)
	}},
	{says: "aliases end with the connection", v5: "3.3.2-7", run: func(s *scene) {
		w := s.connect("c", keep)
		w.pub(s.topic("t"), "x", 1, alias(1))
		w.leave(0)
		w = s.connect("c", resume)
		w.start("", "x", 1, alias(1))
		w.closed(packet.ProtocolError, packet.TopicAliasInvalid)
	}},
	{says: "a client that takes no aliases gets none", v5: "3.1.2-27", run: func(s *scene) {
		none, zero, pub := s.connect("none"), s.connect("zero", number(packet.TopicAliasMaximum, 0)), s.connect("pub")
		none.sub(s.topic("#"), 1)
		zero.sub(s.topic("#"), 1)
		for range 5 {
			pub.pub(s.topic("t"), "x", 1, alias(1))
			for _, w := range []*wire{none, zero} {
				p := w.message()
				if p.Alias != 0 || p.Topic == "" {
					s.Errorf("topic %q with alias %d", p.Topic, p.Alias)
				}
				w.finish(p)
			}
		}
	}},
	{says: "the broker keeps to the client's maximum, and its aliases are right", v5: "3.1.2-26 3.3.2-11 3.3.2-3", run: func(s *scene) {
		sub, pub := s.connect("sub", number(packet.TopicAliasMaximum, 2)), s.connect("pub")
		sub.sub(s.topic("#"), 1)
		known := map[uint16]string{}
		for i := range 40 {
			name := s.topic(fmt.Sprint("a/long/name/of/a/topic/", i*i%5))
			pub.pub(name, fmt.Sprint(i), 1)
			p := sub.message()
			if p.Alias > 2 {
				s.Fatalf("alias %d, the maximum is 2", p.Alias)
			}
			if p.Topic == "" {
				p.Topic = known[p.Alias]
			} else if p.Alias > 0 {
				known[p.Alias] = p.Topic
			}
			if p.Topic != name || string(p.Payload) != fmt.Sprint(i) {
				s.Errorf("message %d to %q is %q to %q", i, name, p.Payload, p.Topic)
			}
			sub.finish(p)
		}
	}},
	{says: "aliases save the topic", v5: "§3.3.2.3.4", ours: true, run: func(s *scene) {
		sub, pub := s.connect("sub", number(packet.TopicAliasMaximum, 10)), s.connect("pub")
		sub.sub(s.topic("#"), 1)
		for i := range 3 {
			pub.pub(s.topic("t"), "x", 1)
			p := sub.message()
			if p.Alias == 0 || (p.Topic == "") != (i > 0) {
				s.Errorf("message %d: topic %q, alias %d", i, p.Topic, p.Alias)
			}
			sub.finish(p)
		}
	}},
	{says: "what comes again after a reconnect has its topic", v5: "3.3.2-7 4.4.0-1", run: func(s *scene) {
		sub, pub := s.connect("sub", keep, number(packet.TopicAliasMaximum, 10)), s.connect("pub")
		sub.sub(s.topic("#"), 1)
		for i := range 3 {
			pub.pub(s.topic("t"), fmt.Sprint(i), 1)
			sub.message()
		}
		sub.drop()
		sub = s.connect("sub", resume)
		sub.want("t=0 q1 dup", "t=1 q1 dup", "t=2 q1 dup")
	}},
}
