package conformance

import (
	"fmt"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

var retainedClauses = []clause{
	{says: "the last one of a topic is kept for those who subscribe later", v5: "3.3.1-5 3.3.1-9", v311: "3.3.1-5 3.3.1-6 3.3.1-8 3.3.1-7", run: func(s *scene) {
		pub := s.connect("pub")
		for i := range 3 {
			for qos := range byte(3) {
				pub.pub(s.topic(fmt.Sprint(qos)), fmt.Sprint(i), qos, retained)
			}
		}
		sub := s.connect("sub")
		sub.sub(s.topic("+"), 2)
		sub.wantAny("0=2 q0 r", "1=2 q1 r", "2=2 q2 r")
		sub.quiet()
		low := s.connect("low")
		low.sub(s.topic("2"), 0)
		low.want("2=2 q0 r")
		low.quiet()
	}},
	{says: "it stays when its publisher goes", v5: "§4.1", v311: "3.1.2-7", run: func(s *scene) {
		pub := s.connect("pub")
		pub.pub(s.topic("t"), "x", 1, retained)
		pub.leave(0)
		s.connect("pub").leave(0)
		sub := s.connect("sub")
		sub.sub(s.topic("t"), 1)
		sub.want("t=x q1 r")
	}},
	{says: "an empty one removes it, and is delivered like any", v5: "3.3.1-6 3.3.1-7", v311: "3.3.1-10 3.3.1-11", run: func(s *scene) {
		live, pub := s.connect("live"), s.connect("pub")
		live.sub(s.topic("t"), 1)
		pub.pub(s.topic("t"), "x", 1, retained)
		pub.pub(s.topic("t"), "", 1, retained)
		live.want("t=x q1", "t= q1")
		sub := s.connect("sub")
		sub.sub(s.topic("t"), 1)
		sub.fence(pub)
		pub.pub(s.topic("t"), "again", 0, retained)
		sub.want("t=again q0")
		live.want("t=again q0")
	}},
	{says: "what is not to be retained changes nothing", v5: "3.3.1-8", v311: "3.3.1-12", run: func(s *scene) {
		pub := s.connect("pub")
		pub.pub(s.topic("t"), "kept", 1, retained)
		pub.pub(s.topic("t"), "passing", 1)
		pub.pub(s.topic("t"), "", 1)
		pub.pub(s.topic("other"), "passing", 1)
		sub := s.connect("sub")
		sub.sub(s.topic("#"), 1)
		sub.want("t=kept q1 r")
		sub.fence(pub)
	}},
	{says: "a subscriber that is there sees no flag", v5: "3.3.1-12", v311: "3.3.1-9", run: func(s *scene) {
		sub, pub := s.connect("sub"), s.connect("pub")
		sub.sub(s.topic("#"), 2)
		for qos := range byte(3) {
			pub.pub(s.topic("t"), "x", qos, retained)
			sub.want(fmt.Sprintf("t=x q%d", qos))
		}
	}},
	{says: "retain as published", v5: "3.3.1-13 3.3.1-12", run: func(s *scene) {
		sub, pub := s.connect("sub"), s.connect("pub")
		pub.pub(s.topic("old"), "x", 1, retained)
		sub.subTo(packet.Subscription{Filter: s.topic("#"), QoS: 1, RetainAsPublished: true})
		sub.want("old=x q1 r")
		pub.pub(s.topic("t"), "1", 1, retained)
		pub.pub(s.topic("t"), "2", 1)
		sub.want("t=1 q1 r", "t=2 q1")
		// Also for what waited.
		away := s.connect("away", keep)
		away.subTo(packet.Subscription{Filter: s.topic("t"), QoS: 1, RetainAsPublished: true, RetainHandling: 2})
		away.leave(0)
		pub.pub(s.topic("t"), "3", 1, retained)
		pub.pub(s.topic("t"), "4", 1)
		s.connect("away", resume).want("t=3 q1 r", "t=4 q1")
	}},
	{says: "retain handling 0: with every subscribe", v5: "3.3.1-9 3.8.4-4", run: func(s *scene) {
		pub, sub := s.connect("pub"), s.connect("sub")
		pub.pub(s.topic("t"), "x", 1, retained)
		for range 3 {
			sub.sub(s.topic("t"), 1)
			sub.want("t=x q1 r")
		}
		sub.quiet()
	}},
	{says: "every subscribe brings the retained messages", v311: "3.8.4-3", run: func(s *scene) {
		pub, sub := s.connect("pub"), s.connect("sub")
		pub.pub(s.topic("t"), "x", 1, retained)
		for range 3 {
			sub.sub(s.topic("t"), 1)
			sub.want("t=x q1 r")
		}
		sub.quiet()
	}},
	{says: "retain handling 1: with a new subscription", v5: "3.3.1-10", run: func(s *scene) {
		pub, sub := s.connect("pub"), s.connect("sub", keep)
		pub.pub(s.topic("t"), "x", 1, retained)
		one := packet.Subscription{Filter: s.topic("t"), QoS: 1, RetainHandling: 1}
		sub.subTo(one)
		sub.want("t=x q1 r")
		sub.subTo(one)
		sub.fence(pub)
		sub.leave(0)
		sub = s.connect("sub", resume)
		sub.subTo(one) // the subscription is as old as the session
		sub.fence(pub)
		sub.unsub(s.topic("t"))
		sub.subTo(one)
		sub.want("t=x q1 r")
		sub.subTo(packet.Subscription{Filter: s.topic("+"), QoS: 1, RetainHandling: 1})
		sub.want("t=x q1 r")
		sub.subscribe(nil, one, packet.Subscription{Filter: s.topic("#"), QoS: 1, RetainHandling: 1})
		p := sub.message()
		if s.line(p) != "t=x q1 r" {
			s.Errorf("got %q", s.line(p))
		}
		sub.finish(p)
		sub.quiet()
	}},
	{says: "retain handling 2: never", v5: "3.3.1-11", run: func(s *scene) {
		pub, sub := s.connect("pub"), s.connect("sub")
		pub.pub(s.topic("t"), "x", 1, retained)
		for range 2 {
			sub.subTo(packet.Subscription{Filter: s.topic("t"), QoS: 1, RetainHandling: 2})
			sub.quiet()
		}
		pub.pub(s.topic("t"), "y", 1, retained)
		sub.want("t=y q1")
		sub.quiet()
	}},
	{says: "each filter brings its own", v5: "3.8.4-5 3.3.1-9", v311: "3.8.4-4 3.3.1-6", run: func(s *scene) {
		pub, sub := s.connect("pub"), s.connect("sub")
		pub.pub(s.topic("a/1"), "x", 1, retained)
		pub.pub(s.topic("b/1"), "x", 1, retained)
		sub.subscribe(nil, filter(s.topic("a/1"), 0), filter(s.topic("b/+"), 1), filter(s.topic("+/1"), 0))
		sub.wantAny("a/1=x q0 r", "b/1=x q1 r", "a/1=x q0 r", "b/1=x q0 r")
		sub.quiet()
	}},
	{says: "they carry the identifier of the subscription", v5: "3.3.4-3", run: func(s *scene) {
		pub, sub := s.connect("pub"), s.connect("sub")
		pub.pub(s.topic("t"), "x", 1, retained)
		sub.sub(s.topic("#"), 1, 5)
		sub.want("t=x q1 r #5")
	}},
	{says: "its publisher gets it like any", v5: "3.3.1-9", v311: "3.3.1-6", run: func(s *scene) {
		c := s.connect("c")
		c.pub(s.topic("t"), "x", 1, retained)
		c.sub(s.topic("t"), 1)
		c.want("t=x q1 r")
		c.quiet()
	}},
}
