package conformance

import (
	"maps"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

var sizeClauses = []clause{
	{says: "a packet that is too large ends the connection", v5: "3.2.2-15 4.13.1-1", v311: "§2.2.3", site: limited, run: func(s *scene) {
		c := s.connect("c")
		c.sub(s.topic("t"), 0)
		head := len((&packet.Publish{Topic: s.topic("t"), Payload: make([]byte, 500)}).Append(nil, s.v)) - 500
		c.pub(s.topic("t"), string(make([]byte, 1000-head)), 0)
		if p := c.message(); len(p.Payload) != 1000-head {
			s.Errorf("%d bytes came back", len(p.Payload))
		}
		over := 1
		if !s.ours() {
			over = 20 // Mosquitto holds the limit against the Remaining Length
		}
		c.start(s.topic("t"), string(make([]byte, 1000+over-head)), 0)
		c.closed(packet.PacketTooLarge)
	}},
	{says: "the broker sends no packet that is too large, and goes on", v5: "3.1.2-24 3.1.2-25", run: func(s *scene) {
		window := uint32(1) // what is not sent must not hold a place in it
		if !s.ours() {
			window = 1000 // with 2.0.11 it does
		}
		sub, pub := s.connect("sub", keep, number(packet.MaximumPacketSize, 100), number(packet.ReceiveMaximum, window)), s.connect("pub")
		sub.sub(s.topic("t"), 2)
		fits := func(qos byte, size int) bool {
			p := packet.Publish{Topic: s.topic("t"), Payload: make([]byte, size), QoS: qos, PacketID: 1}
			return len(p.Append(nil, s.v)) <= 100
		}
		var want []int
		for size := range 110 {
			pub.start(s.topic("t"), string(make([]byte, size)), byte(size%2))
			if size%2 == 1 {
				pub.acked(packet.PUBACK, pub.last)
			}
			if fits(byte(size%2), size) {
				want = append(want, size)
			}
		}
		pub.pub(s.topic("t"), string(make([]byte, 300)), 2)
		pub.pub(s.topic("t"), "end", 2)
		arrived := map[int]bool{}
		for {
			p := sub.message()
			sub.finish(p)
			if string(p.Payload) == "end" {
				break
			}
			arrived[len(p.Payload)] = true
		}
		for _, size := range want {
			if size%2 == 1 && !arrived[size] { // QoS 0 may be dropped for other reasons
				s.Errorf("a message of %d bytes is missing", size)
			}
			delete(arrived, size)
		}
		if !s.ours() {
			maps.DeleteFunc(arrived, func(size int, _ bool) bool { return size < want[len(want)-1]+3 }) // 2.0.11 is a byte or two off
		}
		if len(arrived) > 0 {
			s.Errorf("messages that are too large arrived: %v", arrived)
		}
		sub.leave(0)
		s.connect("sub", resume).quiet() // they are done with
	}},
	{says: "the size is that of the connection", v5: "3.1.2-24", run: func(s *scene) {
		sub, pub := s.connect("sub", keep, number(packet.MaximumPacketSize, 200)), s.connect("pub")
		sub.sub(s.topic("t"), 1)
		sub.leave(0)
		pub.pub(s.topic("t"), string(make([]byte, 150)), 1)
		pub.pub(s.topic("t"), "small", 1)
		sub = s.connect("sub", resume, number(packet.MaximumPacketSize, 100))
		sub.want("t=small q1")
		sub.quiet()
	}},
	{says: "a retained message that is too large is not sent", v5: "3.1.2-24", run: func(s *scene) {
		sub, pub := s.connect("sub", number(packet.MaximumPacketSize, 100)), s.connect("pub")
		pub.pub(s.topic("large"), string(make([]byte, 150)), 1, retained)
		pub.pub(s.topic("small"), "x", 1, retained)
		sub.sub(s.topic("#"), 1)
		sub.want("small=x q1 r")
		sub.quiet()
	}},
	{says: "reasons in words are left out where they have no room, or are not wanted", v5: "3.1.2-29 3.2.2-19 3.2.2-20 3.4.2-2 3.4.2-3 3.5.2-2 3.5.2-3 3.6.2-2 3.6.2-3 3.7.2-2 3.7.2-3 3.9.2-1 3.9.2-2 3.11.2-1 3.11.2-2 3.14.2-3 3.14.2-4", site: guarded, run: func(s *scene) {
		for i, asked := range []option{number(packet.RequestProblemInfo, 0), number(packet.MaximumPacketSize, 60)} {
			c := s.connect("c", login("alice"), asked)
			c.start("forbidden/"+s.prefix, "x", 1)
			c.start("forbidden/"+s.prefix, "x", 2)
			c.ack(packet.PUBREL, 4711)
			c.ack(packet.PUBREC, 4712)
			c.send((&packet.Subscribe{PacketID: 9, Subscriptions: []packet.Subscription{filter("forbidden/"+s.prefix, 0)}}).Append(nil, s.v))
			c.send((&packet.Unsubscribe{PacketID: 10, Filters: []string{"forbidden"}}).Append(nil, s.v))
			for _, t := range []packet.Type{packet.PUBACK, packet.PUBREC, packet.PUBCOMP, packet.PUBREL, packet.SUBACK, packet.UNSUBACK} {
				f := c.await(t)
				if 2+len(f.body) > 60 {
					s.Errorf("%v has %d bytes", t, 2+len(f.body))
				}
				var props packet.Properties
				switch t {
				case packet.SUBACK, packet.UNSUBACK:
					var a packet.Suback
					c.check(a.Decode(s.v, t, f.body))
					props = a.Props
				default:
					var a packet.Ack
					c.check(a.Decode(s.v, t, f.body))
					props = a.Props
				}
				if i == 0 && len(props) > 0 {
					s.Errorf("%v says %q, and nobody wants to know", t, props.Text(packet.ReasonString))
				}
			}
			c.send(raw("00 00"))
			c.closed(packet.Malformed)
		}
	}},
}
