package conformance

import "github.com/fieldferry/fieldferry/localbroker/packet"

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
