package conformance

import (
	"fmt"

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
