package conformance

import (
	"fmt"
	"maps"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

var flowClauses = []clause{
	{says: "the broker keeps to the client's window", v5: "3.3.4-9 4.9.0-1 4.9.0-2", run: func(s *scene) {
		sub, pub := s.connect("sub", number(packet.ReceiveMaximum, 4)), s.connect("pub")
		sub.sub(s.topic("t"), 2)
		for i := range 12 {
			pub.pub(s.topic("t"), fmt.Sprint(i), byte(1+i%2))
		}
		var open []packet.Publish
		for i := range 12 {
			if len(open) == 4 {
				sub.quiet()
				p := open[0]
				open = open[1:]
				if p.QoS == 2 { // only PUBCOMP makes room
					sub.ack(packet.PUBREC, p.PacketID)
					sub.acked(packet.PUBREL, p.PacketID)
					sub.quiet()
					sub.ack(packet.PUBCOMP, p.PacketID)
				} else {
					sub.finish(p)
				}
			}
			p := sub.message()
			if string(p.Payload) != fmt.Sprint(i) {
				s.Fatalf("got %q, want message %d", s.line(p), i)
			}
			open = append(open, p)
		}
	}},
	{says: "a window that is full holds up nothing else", v5: "3.3.4-10 4.9.0-3", run: func(s *scene) {
		c, pub := s.connect("c", number(packet.ReceiveMaximum, 1)), s.connect("pub")
		c.sub(s.topic("t"), 1)
		pub.pub(s.topic("t"), "1", 1)
		pub.pub(s.topic("t"), "2", 1)
		p := c.message()
		c.quiet()
		c.sub(s.topic("other"), 0)
		for qos := range byte(3) {
			c.pub(s.topic("out"), "x", qos)
		}
		c.unsub(s.topic("other"))
		c.finish(p)
		c.want("t=2 q1")
	}},
	{says: "acknowledgements of nothing make no room", v5: "4.9.0-2", run: func(s *scene) {
		c, pub := s.connect("c", number(packet.ReceiveMaximum, 1)), s.connect("pub")
		c.sub(s.topic("t"), 1)
		for i := range 3 {
			pub.pub(s.topic("t"), fmt.Sprint(i), 1)
		}
		p := c.message()
		for id := range uint16(5) {
			c.ack(packet.PUBACK, p.PacketID+1000+id)
			c.ack(packet.PUBCOMP, p.PacketID+1000+id)
		}
		c.quiet()
		c.finish(p)
		c.want("t=1 q1", "t=2 q1")
	}},
	{says: "a client may fill the broker's window", v5: "§4.9", site: limited, run: func(s *scene) {
		c := s.connect("c")
		for range 5 {
			id := c.start(s.topic("t"), "x", 2)
			c.acked(packet.PUBREC, id)
		}
		c.pub(s.topic("t"), "x", 0)
		c.sub(s.topic("u"), 0)
		for id := uint16(1); id <= 5; id++ {
			c.ack(packet.PUBREL, id)
			c.acked(packet.PUBCOMP, id)
		}
		c.pub(s.topic("t"), "x", 2)
		c.quiet()
	}},
	{says: "more than the broker's window ends the connection", v5: "§3.3.4 3.3.4-7", site: limited, run: func(s *scene) {
		c := s.connect("c")
		for range 5 {
			id := c.start(s.topic("t"), "x", 2)
			c.acked(packet.PUBREC, id)
		}
		c.start(s.topic("t"), "x", 1)
		c.closed(packet.ReceiveMaximumExceeded)
	}},
	{says: "a message that comes again is not one more", v5: "§4.9", site: limited, run: func(s *scene) {
		c := s.connect("c", keep)
		for range 5 {
			id := c.start(s.topic("t"), "x", 2)
			c.acked(packet.PUBREC, id)
		}
		c.last--
		c.start(s.topic("t"), "x", 2, dup)
		c.acked(packet.PUBREC, 5)
		c.drop()
		c = s.connect("c", resume)
		for id := uint16(1); id <= 5; id++ {
			c.start(s.topic("t"), "x", 2, dup)
			c.acked(packet.PUBREC, id)
		}
		c.quiet()
		c.leave(0)
	}},
	{says: "a refused message makes room at once", v5: "§4.9 4.3.3-9", site: guarded, run: func(s *scene) {
		c := s.connect("c", login("alice"))
		most, _ := c.connack.Props.Uint(packet.ReceiveMaximum)
		for range most + 10 {
			if r := c.pub("forbidden/"+s.prefix, "x", 2); r != packet.NotAuthorized {
				s.Fatalf("PUBREC %v", r)
			}
		}
	}},
	{says: "3.1.1 knows no window of the broker", v311: "§4.3", site: limited, run: func(s *scene) {
		sub, c := s.connect("sub"), s.connect("c")
		sub.sub(s.topic("t"), 1)
		for range 40 {
			c.start(s.topic("t"), "x", 1)
		}
		for id := uint16(1); id <= 40; id++ {
			c.acked(packet.PUBACK, id)
			sub.want("t=x q1")
		}
	}},
}

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

var disconnectClauses = []clause{
	{says: "PINGREQ is answered", v5: "3.12.4-1", v311: "3.12.4-1", run: func(s *scene) {
		c := s.connect("c")
		for range 3 {
			c.quiet()
		}
		for range 10 {
			c.send(packet.AppendPingreq(nil))
		}
		for range 10 {
			c.await(packet.PINGRESP)
		}
		c.quiet()
	}},
	{says: "DISCONNECT ends the connection", v5: "§3.14.4", v311: "§3.14.4", run: func(s *scene) {
		s.connect("c").leave(0)
	}},
	{says: "nothing is taken after DISCONNECT", v5: "§3.14.4", v311: "3.14.4-1 3.14.4-2", run: func(s *scene) {
		sub, c := s.connect("sub"), s.connect("c")
		sub.sub(s.topic("#"), 1)
		_ = c.write(append((&packet.Disconnect{}).Append(nil, s.v, packet.DISCONNECT), (&packet.Publish{Topic: s.topic("t")}).Append(nil, s.v)...))
		c.end()
		sub.fence(s.connect("pub"))
	}},
	{says: "DISCONNECT with all that it may have", v5: "§3.14.2", run: func(s *scene) {
		for _, props := range []packet.Properties{nil, packet.Properties{}.AppendText(packet.ReasonString, "off").AppendUser("a", "b").AppendUser("a", "b")} {
			for _, reason := range []packet.Reason{packet.Success, packet.DisconnectWithWill, packet.Unspecified, packet.Malformed, packet.ProtocolError, packet.ReceiveMaximumExceeded, packet.PacketTooLarge, packet.QuotaExceeded, packet.AdministrativeAction, packet.PayloadFormatInvalid} {
				s.connect("c").leave(reason, props)
			}
		}
		c := s.connect("c")
		c.send(raw("e0 01 00")) // a reason, and no length of properties
		c.end()
	}},
	{says: "DISCONNECT has no flags", v5: "3.14.1-1", v311: "3.14.1-1", run: func(s *scene) {
		sub := s.connect("sub")
		sub.sub(s.topic("w"), 1)
		for _, first := range []byte{0xe1, 0xe2, 0xe8} {
			c := s.connect("c", will(s.topic("w"), "gone", 1))
			c.send([]byte{first, 0})
			c.closed(packet.Malformed)
			sub.want("w=gone q1") // so it was none
		}
	}},
	{says: "the broker says that it stops", v5: "3.14.4-2 4.13.2-1 3.14.4-1 3.14.2-2", ours: true, run: func(s *scene) {
		b := own(s.T, plain)
		mine := stage(s.T, s.v, b)
		c := mine.connect("c")
		b.stop()
		c.closed(packet.ServerShuttingDown)
	}},
}
