package conformance

import (
	"fmt"
	"slices"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

var qos1Clauses = []clause{
	{says: "an acknowledged identifier is free", v5: "4.3.2-5 2.2.1-3", v311: "2.3.1-2 4.3.2-2", run: func(s *scene) {
		sub, pub := s.connect("sub"), s.connect("pub")
		sub.sub(s.topic("t"), 1)
		for i := range 3 {
			pub.last = 6
			pub.pub(s.topic("t"), fmt.Sprint(i), 1, func(p *packet.Publish) { p.Dup = i > 0 })
			sub.want(fmt.Sprintf("t=%d q1", i))
		}
	}},
	{says: "both sides may use the same identifiers at the same time", v5: "2.2.1-5", v311: "2.3.1-6", run: func(s *scene) {
		c, pub := s.connect("c", keep), s.connect("pub")
		c.sub(s.topic("in"), 2)
		var in []packet.Publish
		for i := range 6 {
			pub.pub(s.topic("in"), "x", byte(1+i%2))
			in = append(in, c.message())
		}
		for _, p := range in {
			c.last = p.PacketID - 1
			if r := c.pub(s.topic("out"), "x", 1+p.QoS%2); r.Failed() {
				s.Errorf("publish with identifier %d: %v", p.PacketID, r)
			}
			c.last = p.PacketID - 1
			c.sub(s.topic("other"), 1)
		}
		for _, p := range in {
			c.finish(p)
		}
		c.quiet()
	}},
	{says: "identifiers that are under way are not used again", v5: "2.2.1-4 4.3.2-1 4.3.3-1", v311: "2.3.1-4", run: func(s *scene) {
		c, pub := s.connect("c"), s.connect("pub")
		c.sub(s.topic("t"), 2)
		var open []uint16
		for i := range 60 {
			pub.pub(s.topic("t"), "x", byte(1+i%2))
			p := c.message()
			if p.PacketID == 0 || slices.Contains(open, p.PacketID) {
				s.Fatalf("identifier %d is in use", p.PacketID)
			}
			if i%3 == 0 {
				c.finish(p)
			} else {
				open = append(open, p.PacketID)
			}
		}
	}},
	{says: "acknowledgements may be short, or say more", v5: "§3.4.2 §3.5.2 §3.6.2 §3.7.2", run: func(s *scene) {
		// Without a reason; with one and no length of properties; with both; with all.
		for _, more := range []string{"", "00", "00 00", "00 [ 1f 'because' 26 'a' 'b' 26 'a' 'b' ]"} {
			c := s.connect("c")
			c.sub(s.topic("t"), 2)
			ack := func(first byte, id uint16) {
				c.send(frameOf(first, []byte{byte(id >> 8), byte(id)}, raw(more)))
			}
			c.pub(s.topic("t"), "1", 1)
			ack(0x40, c.message().PacketID)
			id := c.start(s.topic("t"), "2", 2)
			c.acked(packet.PUBREC, id)
			ack(0x62, id)
			if r := c.acked(packet.PUBCOMP, id); r != packet.Success {
				s.Errorf("PUBCOMP %v after PUBREL with %q", r, more)
			}
			p := c.message()
			ack(0x50, p.PacketID)
			c.acked(packet.PUBREL, p.PacketID)
			ack(0x70, p.PacketID)
			c.quiet()
		}
	}},
	{says: "an acknowledgement of nothing is nothing", v5: "§4.13.2", v311: "§4.8", run: func(s *scene) {
		c := s.connect("c")
		c.ack(packet.PUBACK, 4711)
		c.ack(packet.PUBCOMP, 4711)
		c.quiet()
	}},
	{says: "what a client rejects is not sent again", v5: "4.4.0-2", run: func(s *scene) {
		c, pub := s.connect("c", keep), s.connect("pub")
		c.sub(s.topic("t"), 2)
		for _, qos := range []byte{1, 2} {
			pub.pub(s.topic("t"), "rejected", qos)
			p := c.message()
			t := packet.PUBACK
			if qos == 2 {
				t = packet.PUBREC
			}
			c.ack(t, p.PacketID, packet.ImplementationSpecific)
			c.quiet()
		}
		c.drop()
		c = s.connect("c", resume)
		pub.pub(s.topic("t"), "next", 1)
		c.want("t=next q1")
		c.quiet()
	}},
}

var qos2InClauses = []clause{
	{says: "a PUBLISH that comes twice is one message", v5: "4.3.3-10", v311: "4.3.3-2", run: func(s *scene) {
		sub, pub := s.connect("sub"), s.connect("pub")
		sub.sub(s.topic("t"), 2)
		times := 2
		if s.ours() {
			times = 4 // Mosquitto cuts a client that sends it a third time
		}
		for i := range times {
			pub.last = 6
			pub.start(s.topic("t"), "once", 2, func(p *packet.Publish) { p.Dup = i > 0 })
			pub.acked(packet.PUBREC, 7)
		}
		for range 2 {
			pub.ack(packet.PUBREL, 7)
			pub.anyAck(packet.PUBCOMP)
		}
		sub.want("t=once q2")
		sub.fence(pub)
	}},
	{says: "a released identifier is free", v5: "4.3.3-12", v311: "4.3.3-2", run: func(s *scene) {
		sub, pub := s.connect("sub"), s.connect("pub")
		sub.sub(s.topic("t"), 2)
		for i := range 3 {
			pub.last = 6
			pub.pub(s.topic("t"), fmt.Sprint(i), 2, func(p *packet.Publish) { p.Dup = i == 2 })
			sub.want(fmt.Sprintf("t=%d q2", i))
		}
	}},
	{says: "PUBREL of nothing is answered", v5: "4.3.3-11 3.7.2-1", v311: "4.3.3-2", run: func(s *scene) {
		pub := s.connect("pub")
		pub.ack(packet.PUBREL, 4711)
		if r := pub.acked(packet.PUBCOMP, 4711); s.five() && r != packet.PacketIDNotFound && s.ours() {
			s.Errorf("PUBCOMP %v", r)
		}
		pub.quiet()
	}},
	{says: "a PUBLISH that comes again after a reconnect is one message", v5: "4.3.3-10 4.4.0-1", v311: "4.3.3-2", run: func(s *scene) {
		sub, pub := s.connect("sub"), s.connect("pub", keep)
		sub.sub(s.topic("t"), 2)
		id := pub.start(s.topic("t"), "once", 2)
		pub.acked(packet.PUBREC, id)
		pub.drop()
		pub = s.connect("pub", resume)
		pub.start(s.topic("t"), "once", 2, dup)
		if r := pub.acked(packet.PUBREC, id); r.Failed() {
			s.Errorf("PUBREC %v", r)
		}
		pub.drop()
		pub = s.connect("pub", resume)
		pub.ack(packet.PUBREL, id)
		if r := pub.acked(packet.PUBCOMP, id); r.Failed() {
			s.Errorf("PUBCOMP %v", r)
		}
		sub.want("t=once q2")
		sub.fence(pub)
	}},
	{says: "identifiers end with their session", v5: "3.1.2-4", v311: "3.1.2-6", run: func(s *scene) {
		sub, pub := s.connect("sub"), s.connect("pub")
		sub.sub(s.topic("t"), 2)
		id := pub.start(s.topic("t"), "1", 2)
		pub.acked(packet.PUBREC, id)
		pub.drop()
		pub = s.connect("pub")
		pub.last = id - 1
		pub.pub(s.topic("t"), "2", 2)
		p := sub.message()
		if s.line(p) == "t=1 q2" { // some brokers deliver with PUBREL, which never came
			sub.finish(p)
			p = sub.message()
		}
		if s.line(p) != "t=2 q2" {
			s.Errorf("got %q", s.line(p))
		}
		sub.finish(p)
		sub.fence(pub)
	}},
	{says: "many handshakes at once, finished in another order", v5: "4.3.3-8 4.3.3-11", v311: "4.3.3-2", run: func(s *scene) {
		sub, pub := s.connect("sub"), s.connect("pub")
		sub.sub(s.topic("t"), 2)
		const n = 100
		for i := range n {
			pub.start(s.topic("t"), fmt.Sprint(i), 2)
		}
		for i := range n {
			pub.acked(packet.PUBREC, uint16(i+1))
		}
		for i := range n {
			pub.ack(packet.PUBREL, uint16(n-i))
			pub.acked(packet.PUBCOMP, uint16(n-i))
		}
		var want []string
		for i := range n {
			want = append(want, fmt.Sprintf("t=%d q2", i))
		}
		sub.wantAny(want...) // some brokers deliver with PUBREL
		sub.quiet()
	}},
	{says: "a refused identifier is free", v5: "4.3.3-9 3.5.2-1", site: guarded, run: func(s *scene) {
		sub, pub := s.connect("sub", login("alice")), s.connect("pub", login("alice"))
		sub.sub("users/alice/"+s.prefix, 2)
		pub.last = 6
		if r := pub.pub("forbidden/"+s.prefix, "x", 2); r != packet.NotAuthorized {
			s.Errorf("PUBREC %v", r)
		}
		for i := range 2 {
			pub.last = 6
			if r := pub.pub("users/alice/"+s.prefix, fmt.Sprint(i), 2, func(p *packet.Publish) { p.Dup = i == 0 }); r.Failed() {
				s.Errorf("PUBREC %v", r)
			}
			p := sub.message()
			if string(p.Payload) != fmt.Sprint(i) {
				s.Errorf("got %s", s.line(p))
			}
			sub.finish(p)
		}
	}},
}

var qos2OutClauses = []clause{
	{says: "the handshake of a delivery", v5: "4.3.3-2 4.3.3-4 2.2.1-5 3.6.1-1 3.6.2-1", v311: "4.3.3-1 2.3.1-6 3.6.1-1", run: func(s *scene) {
		c, pub := s.connect("c"), s.connect("pub")
		c.sub(s.topic("t"), 2)
		for i := range 3 {
			pub.pub(s.topic("t"), fmt.Sprint(i), 2)
		}
		var ids []uint16
		for i := range 3 {
			p := c.message()
			if want := fmt.Sprintf("t=%d q2", i); s.line(p) != want {
				s.Errorf("got %q, want %q", s.line(p), want)
			}
			ids = append(ids, p.PacketID)
		}
		c.quiet() // no PUBREL before PUBREC
		for _, id := range ids {
			c.ack(packet.PUBREC, id)
		}
		for _, id := range ids {
			if r := c.acked(packet.PUBREL, id); r != packet.Success {
				s.Errorf("PUBREL %v", r)
			}
		}
		for _, id := range ids {
			c.ack(packet.PUBCOMP, id)
		}
		c.quiet()
	}},
	{says: "PUBREC of nothing is answered", v5: "§3.6.2.1 3.6.2-1", ours: true, run: func(s *scene) {
		c := s.connect("c")
		c.ack(packet.PUBREC, 4711)
		if r := c.acked(packet.PUBREL, 4711); r != packet.PacketIDNotFound {
			s.Errorf("PUBREL %v", r)
		}
		c.quiet()
	}},
	{says: "once PUBREL is sent it comes again, and not the message", v5: "4.3.3-5 4.3.3-6 4.4.0-1", v311: "4.3.3-1 4.4.0-1", run: func(s *scene) {
		c, pub := s.connect("c", keep), s.connect("pub")
		c.sub(s.topic("t"), 2)
		pub.pub(s.topic("t"), "x", 2)
		p := c.message()
		c.ack(packet.PUBREC, p.PacketID)
		c.acked(packet.PUBREL, p.PacketID)
		for range 2 {
			c.drop()
			c = s.connect("c", resume)
			if r := c.acked(packet.PUBREL, p.PacketID); r != packet.Success {
				s.Errorf("PUBREL %v", r)
			}
			c.quiet()
		}
		c.ack(packet.PUBCOMP, p.PacketID)
		c.leave(0)
		s.connect("c", resume).quiet()
	}},
	{says: "a PUBREC that comes twice is answered twice", v5: "4.3.3-4", v311: "4.3.3-1", run: func(s *scene) {
		c, pub := s.connect("c"), s.connect("pub")
		c.sub(s.topic("t"), 2)
		pub.pub(s.topic("t"), "x", 2)
		p := c.message()
		for range 2 {
			c.ack(packet.PUBREC, p.PacketID)
			c.acked(packet.PUBREL, p.PacketID)
		}
		c.ack(packet.PUBCOMP, p.PacketID)
		c.quiet()
	}},
	{says: "a rejected message frees its identifier and its place", v5: "4.4.0-2 4.9.0-2 4.8.2-6", run: func(s *scene) {
		c, pub := s.connect("c", number(packet.ReceiveMaximum, 1)), s.connect("pub")
		c.sub(s.topic("t"), 2)
		for i := range 3 {
			pub.pub(s.topic("t"), fmt.Sprint(i), 2)
		}
		for i := range 3 {
			p := c.message()
			if string(p.Payload) != fmt.Sprint(i) || p.Dup {
				s.Errorf("got %q", s.line(p))
			}
			c.ack(packet.PUBREC, p.PacketID, packet.QuotaExceeded)
		}
		c.quiet()
	}},
	{says: "every handshake of many, over a reconnect in the middle", v5: "4.4.0-1 4.3.3-5 4.6.0-5", v311: "4.4.0-1 4.6.0-5", run: func(s *scene) {
		c, pub := s.connect("c", keep), s.connect("pub")
		c.sub(s.topic("t"), 2)
		const n = 60
		for i := range n {
			pub.pub(s.topic("t"), fmt.Sprint(i), 2)
		}
		got := map[uint16]string{}
		for i := range n {
			p := c.message()
			got[p.PacketID] = string(p.Payload)
			if i%3 > 0 {
				c.ack(packet.PUBREC, p.PacketID)
				c.acked(packet.PUBREL, p.PacketID)
			}
			if i%3 > 1 {
				c.ack(packet.PUBCOMP, p.PacketID)
			}
		}
		c.quiet()
		c.drop()
		c = s.connect("c", resume)
		next := 0
		for range n / 3 {
			p := c.message()
			if want := fmt.Sprint(next); string(p.Payload) != want || !p.Dup || got[p.PacketID] != want {
				s.Fatalf("got %q under %d, want %s", s.line(p), p.PacketID, want)
			}
			next += 3
			c.ack(packet.PUBREC, p.PacketID)
		}
		for range 2 * n / 3 {
			c.ack(packet.PUBCOMP, c.anyAck(packet.PUBREL).PacketID)
		}
		c.quiet()
	}},
}
