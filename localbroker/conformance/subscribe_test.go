package conformance

import (
	"fmt"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

var subscribeClauses = []clause{
	{says: "SUBACK has a reason for each filter, in their order", v5: "3.8.4-1 3.8.4-2 3.8.4-6 3.8.4-7 3.9.3-1 3.9.3-2 2.2.1-6 3.8.4-5", v311: "3.8.4-1 3.8.4-2 3.8.4-5 3.9.3-1 3.9.3-2 2.3.1-7", run: func(s *scene) {
		c := s.connect("c")
		c.last = 65534
		for range 3 { // the identifiers 65535, 1 and 2
			got := c.subscribe(nil, filter(s.topic("a"), 2), filter(s.topic("b/+"), 0), filter(s.topic("#"), 1), filter(s.topic("+/c/#"), 2))
			if fmt.Sprint(got) != fmt.Sprint([]packet.Reason{2, 0, 1, 2}) {
				s.Errorf("granted %v", got)
			}
		}
	}},
	{says: "the flags are 0010", v5: "3.8.1-1 2.1.3-1", v311: "3.8.1-1 2.2.2-1 2.2.2-2", run: func(s *scene) {
		for _, first := range []byte{0x80, 0x81, 0x83, 0x86, 0x8a} {
			c := s.connect("c")
			c.send(frameOf(first, []byte{0, 1}, s.willProps(), str(s.topic("t")), []byte{0}))
			c.closed(packet.Malformed)
		}
	}},
	{says: "there is a filter at least", v5: "3.8.3-2", v311: "3.8.3-3", run: func(s *scene) {
		c := s.connect("c")
		c.send(frameOf(0x82, []byte{0, 1}, s.willProps()))
		c.closed(packet.ProtocolError, packet.Malformed)
	}},
	{says: "an identifier is not 0", v5: "2.2.1-3", v311: "2.3.1-1", run: func(s *scene) {
		c := s.connect("c")
		c.send(frameOf(0x82, []byte{0, 0}, s.willProps(), str(s.topic("t")), []byte{0}))
		c.closed(packet.ProtocolError, packet.Malformed)
	}},
	{says: "options that are none", v5: "3.8.3-5 3.8.3-4 4.13.1-1", v311: "3.8.3-4", run: func(s *scene) {
		options := map[byte][]packet.Reason{0x40: {packet.Malformed}, 0x80: {packet.Malformed}, 0xc1: {packet.Malformed}, 0x03: {packet.ProtocolError, packet.Malformed}, 0x30: {packet.ProtocolError, packet.Malformed}}
		if !s.five() {
			for o := byte(3); o != 0; o <<= 1 {
				options[o] = nil
			}
			options[0x04], options[0x08] = nil, nil
		}
		for o, reasons := range options {
			c := s.connect("c").doing("options %#02x", o)
			c.send(frameOf(0x82, []byte{0, 1}, s.willProps(), str(s.topic("t")), []byte{o}))
			c.closed(reasons...)
		}
		if s.five() && s.ours() { // 2.0.11 does not mind
			c := s.connect("c")
			c.doing("no local with a group").send(frameOf(0x82, []byte{0, 1, 0}, str("$share/g/"+s.topic("t")), []byte{4}))
			c.closed(packet.ProtocolError)
		}
	}},
	{says: "a filter is UTF-8 without U+0000", v5: "3.8.3-1 4.7.3-2", v311: "3.8.3-1 4.7.3-2", run: func(s *scene) {
		for _, f := range []string{"\xff", "a/\xed\xa0\x80", "a\x00b", "\xe2\x82"} {
			c := s.connect("c")
			c.send(frameOf(0x82, []byte{0, 1}, s.willProps(), str(f), []byte{0}))
			c.closed(packet.Malformed, packet.TopicFilterInvalid)
		}
	}},
	{says: "filters that are none", v5: "4.7.1-1 4.7.1-2 4.7.3-1", v311: "4.7.1-2 4.7.1-3 4.7.3-1", run: func(s *scene) {
		for _, f := range []string{"", "#/a", "a/#/b", "a#", "a/b#", "#a", "a+", "+a", "a/+b/c", "a/b+", "##", "++", "a/++"} {
			c := s.connect("c")
			c.send((&packet.Subscribe{PacketID: 1, Subscriptions: []packet.Subscription{filter(f, 0)}}).Append(nil, s.v))
			if got, err := c.read(patience); err == nil && got.kind() == packet.SUBACK {
				var a packet.Suback
				c.check(a.Decode(s.v, packet.SUBACK, got.body))
				if !a.Reasons[0].Failed() {
					s.Errorf("subscription to %q: %v", f, a.Reasons[0])
				}
			} else if err == nil && got.kind() != packet.DISCONNECT || err != nil && !over(err) {
				s.Errorf("subscription to %q: %v, %v", f, got, err)
			}
		}
	}},
	{says: "properties of SUBSCRIBE", v5: "§3.8.2.1", run: func(s *scene) {
		for p, reasons := range map[string][]packet.Reason{
			"0b 00":          {packet.ProtocolError, packet.Malformed},
			"0b 01 0b 02":    {packet.ProtocolError, packet.Malformed},
			"0b 8080808001":  {packet.Malformed},
			"11 00000001":    {packet.Malformed, packet.ProtocolError},
			"26 0001 ff 'v'": {packet.Malformed},
			"7f":             {packet.Malformed},
		} {
			c := s.connect("c").doing("%s", p)
			c.send(frameOf(0x82, []byte{0, 1}, sized(raw(p)), str(s.topic("t")), []byte{0}))
			c.closed(reasons...)
		}
		c := s.connect("c")
		c.subscribe(packet.Properties{}.AppendUint(packet.SubscriptionID, 268435455).AppendUser("a", "b").AppendUser("a", "b"), filter(s.topic("t"), 0))
		c.pub(s.topic("t"), "x", 0)
		c.want("t=x q0 #268435455")
	}},
	{says: "a second subscription to a filter takes the place of the first", v5: "3.8.4-3", v311: "3.8.4-3", run: func(s *scene) {
		c, pub := s.connect("c"), s.connect("pub")
		for _, qos := range []byte{2, 0, 1} {
			c.sub(s.topic("t"), qos)
			pub.pub(s.topic("t"), "x", 2)
			c.want(fmt.Sprintf("t=x q%d", qos))
			c.quiet()
		}
		c.subscribe(nil, filter(s.topic("t"), 0), filter(s.topic("t"), 2)) // as if it were two
		pub.pub(s.topic("t"), "x", 2)
		c.want("t=x q2")
		c.unsub(s.topic("t"))
		pub.pub(s.topic("t"), "x", 1)
		c.fence(pub)
	}},
	{says: "nothing is lost while a subscription is replaced", v5: "3.8.4-4", v311: "3.8.4-3", run: func(s *scene) {
		c, pub := s.connect("c"), s.connect("pub")
		c.sub(s.topic("t"), 1)
		const n = 300
		for i := range n {
			pub.start(s.topic("t"), fmt.Sprint(i), 1)
			if i%10 == 0 {
				c.send((&packet.Subscribe{PacketID: c.next(), Subscriptions: []packet.Subscription{filter(s.topic("t"), 1)}}).Append(nil, s.v))
			}
		}
		for i := range n {
			c.want(fmt.Sprintf("t=%d q1", i))
		}
	}},
	{says: "filters that overlap: the highest QoS", v5: "3.3.4-2", v311: "3.3.5-1", run: func(s *scene) {
		c, pub := s.connect("c"), s.connect("pub")
		c.subscribe(nil, filter(s.topic("a/+"), 0), filter(s.topic("a/b"), 2), filter(s.topic("a/#"), 1))
		for qos := range byte(3) {
			pub.pub(s.topic("a/b"), "x", qos)
		}
		pub.pub(s.topic("end"), "x", 0)
		c.sub(s.topic("end"), 1)
		pub.pub(s.topic("end"), "x", 1)
		var highest [3]byte // of the copies of each
		i := 0
		for {
			p := c.message()
			c.finish(p)
			if p.Topic == s.topic("end") {
				break
			}
			if i = max(i, int(p.QoS)); p.QoS > highest[i] {
				highest[i] = p.QoS
			}
		}
		if highest != [3]byte{0, 1, 2} {
			s.Errorf("highest QoS of the copies: %v", highest)
		}
	}},
	{says: "filters that overlap: one copy", v5: "§3.3.4", v311: "§3.3.5", ours: true, run: func(s *scene) {
		c, pub := s.connect("c"), s.connect("pub")
		c.subscribe(nil, filter(s.topic("a/+"), 0), filter(s.topic("a/b"), 2), filter(s.topic("a/#"), 1))
		for qos := range byte(3) {
			pub.pub(s.topic("a/b"), "x", qos)
			c.want(fmt.Sprintf("a/b=x q%d", qos))
		}
		c.quiet()
	}},
	{says: "the identifiers of all subscriptions that match", v5: "3.3.4-3 3.3.4-4 3.3.4-5", run: func(s *scene) {
		c, pub := s.connect("c"), s.connect("pub")
		c.sub(s.topic("a/b"), 1, 1)
		c.sub(s.topic("a/+"), 1, 2)
		c.sub(s.topic("+/b"), 1)
		c.sub(s.topic("c"), 1, 9)
		pub.pub(s.topic("a/b"), "x", 1)
		var ids []uint32
		pub.pub(s.topic("c"), "end", 1)
		for {
			p := c.message()
			c.finish(p)
			if p.Topic == s.topic("c") {
				break
			}
			ids = append(ids, p.SubscriptionIDs...)
		}
		if fmt.Sprint(ids) != "[1 2]" && fmt.Sprint(ids) != "[2 1]" {
			s.Errorf("identifiers %v, want 1 and 2", ids)
		}
	}},
	{says: "the identifier is that of the last subscription", v5: "§3.8.2.1.2 §3.8.4", run: func(s *scene) {
		c, pub := s.connect("c"), s.connect("pub")
		for _, id := range []uint32{3, 300} {
			c.sub(s.topic("t"), 1, id)
			pub.pub(s.topic("t"), "x", 1)
			c.want(fmt.Sprintf("t=x q1 #%d", id))
		}
		c.sub(s.topic("t"), 1)
		pub.pub(s.topic("t"), "x", 1)
		c.want("t=x q1")
	}},
	{says: "each client has the identifiers of its own", v5: "3.3.4-3", run: func(s *scene) {
		one, two, pub := s.connect("one"), s.connect("two"), s.connect("pub")
		one.sub(s.topic("t"), 1, 1)
		two.sub(s.topic("t"), 0, 2)
		pub.pub(s.topic("t"), "x", 1)
		one.want("t=x q1 #1")
		two.want("t=x q0 #2")
	}},
	{says: "no local", v5: "3.8.3-3", run: func(s *scene) {
		c, other := s.connect("c"), s.connect("other")
		c.subTo(packet.Subscription{Filter: s.topic("t"), QoS: 2, NoLocal: true})
		other.sub(s.topic("t"), 2)
		for qos := range byte(3) {
			c.pub(s.topic("t"), "mine", qos)
			other.want(fmt.Sprintf("t=mine q%d", qos))
			other.pub(s.topic("t"), "yours", qos)
			other.want(fmt.Sprintf("t=yours q%d", qos))
			c.want(fmt.Sprintf("t=yours q%d", qos))
		}
		c.sub(s.topic("+"), 1) // another subscription may want it
		c.pub(s.topic("t"), "mine", 1)
		c.want("t=mine q1")
		c.quiet()
	}},
}

var unsubscribeClauses = []clause{
	{says: "UNSUBACK answers, also to what was not there", v5: "3.10.4-4 3.10.4-5 3.10.4-6 3.11.3-1 3.11.3-2 2.2.1-6", v311: "3.10.4-4 3.10.4-5 3.10.4-6 2.3.1-7", run: func(s *scene) {
		c := s.connect("c")
		c.sub(s.topic("a"), 0)
		c.sub(s.topic("b/#"), 0)
		c.last = 65534
		if got, want := c.unsub(s.topic("x"), s.topic("a"), s.topic("b/+"), s.topic("b/#"), s.topic("a")), []packet.Reason{0x11, 0, 0x11, 0, 0x11}; s.five() && fmt.Sprint(got) != fmt.Sprint(want) {
			s.Errorf("reasons %v, want %v", got, want)
		}
		c.unsub(s.topic("nothing"))
	}},
	{says: "filters are compared letter by letter", v5: "3.10.4-1 3.10.4-2", v311: "3.10.4-1 3.10.4-2", run: func(s *scene) {
		c, pub := s.connect("c"), s.connect("pub")
		c.sub(s.topic("a/+"), 1)
		c.sub(s.topic("a/b"), 1)
		c.unsub(s.topic("A/+"), s.topic("a/#"), s.topic("a/c"), s.topic("#"), s.topic("a/+/"))
		pub.pub(s.topic("a/c"), "1", 1)
		c.want("a/c=1 q1")
		c.unsub(s.topic("a/+"))
		pub.pub(s.topic("a/c"), "2", 1)
		pub.pub(s.topic("a/b"), "3", 1)
		c.want("a/b=3 q1")
		c.quiet()
	}},
	{says: "what is under way is finished", v5: "3.10.4-3", v311: "3.10.4-3", run: func(s *scene) {
		c, pub := s.connect("c", keep), s.connect("pub")
		c.sub(s.topic("t"), 2)
		pub.pub(s.topic("t"), "1", 1)
		pub.pub(s.topic("t"), "2", 2)
		one, two := c.message(), c.message()
		c.unsub(s.topic("t"))
		c.drop()
		c = s.connect("c", resume)
		c.want("t=1 q1 dup")
		again := c.message()
		if s.line(again) != "t=2 q2 dup" || again.PacketID != two.PacketID || one.PacketID == two.PacketID {
			s.Errorf("got %q under %d, want it under %d", s.line(again), again.PacketID, two.PacketID)
		}
		c.finish(again)
		c.quiet()
	}},
	{says: "the flags are 0010", v5: "3.10.1-1 2.1.3-1", v311: "3.10.1-1 2.2.2-1 2.2.2-2", run: func(s *scene) {
		for _, first := range []byte{0xa0, 0xa1, 0xa3, 0xa6, 0xaa} {
			c := s.connect("c")
			c.send(frameOf(first, []byte{0, 1}, s.willProps(), str(s.topic("t"))))
			c.closed(packet.Malformed)
		}
	}},
	{says: "there is a filter at least", v5: "3.10.3-2", v311: "3.10.3-2", run: func(s *scene) {
		c := s.connect("c")
		c.send(frameOf(0xa2, []byte{0, 1}, s.willProps()))
		c.closed(packet.ProtocolError, packet.Malformed)
	}},
	{says: "an identifier is not 0", v5: "2.2.1-3", v311: "2.3.1-1", run: func(s *scene) {
		c := s.connect("c")
		c.send(frameOf(0xa2, []byte{0, 0}, s.willProps(), str(s.topic("t"))))
		c.closed(packet.ProtocolError, packet.Malformed)
	}},
	{says: "a filter is UTF-8 without U+0000", v5: "3.10.3-1", v311: "3.10.3-1", run: func(s *scene) {
		for _, f := range []string{"\xff", "a/\xed\xa0\x80", "a\x00b"} {
			c := s.connect("c")
			c.send(frameOf(0xa2, []byte{0, 1}, s.willProps(), str(f)))
			c.closed(packet.Malformed, packet.TopicFilterInvalid)
		}
	}},
	{says: "properties of UNSUBSCRIBE", v5: "§3.10.2.1", run: func(s *scene) {
		for _, p := range []string{"0b 01", "11 00000001", "7f", "26 0001 ff 'v'"} {
			c := s.connect("c").doing("%s", p)
			c.send(frameOf(0xa2, []byte{0, 1}, sized(raw(p)), str(s.topic("t"))))
			c.closed(packet.Malformed, packet.ProtocolError)
		}
		c := s.connect("c")
		c.send(frameOf(0xa2, []byte{0, 1}, sized(raw("26 'a' 'b' 26 'a' 'b'")), str(s.topic("t"))))
		c.suback(packet.UNSUBACK)
	}},
}
