package conformance

import (
	"fmt"
	"slices"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

var sessionClauses = []clause{
	{says: "a clean start discards the session", v5: "3.1.2-4 3.2.2-2", v311: "3.1.2-6", run: func(s *scene) {
		w := s.connect("c", keep)
		w.sub(s.topic("t"), 1)
		w.leave(0)
		pub := s.connect("pub")
		pub.pub(s.topic("t"), "while away", 1)
		w = s.connect("c", func(p *packet.Connect) { keep(p); p.CleanStart = true })
		pub.pub(s.topic("t"), "after", 1)
		w.fence(pub)
		w.leave(0)
		s.connect("c", resume).quiet()
	}},
	{says: "a session goes on with what was missed, in order", v5: "3.1.2-5 3.1.2-23 4.5.0-1 4.1.0-1", v311: "3.1.2-4 3.1.2-5 4.1.0-1 4.1.0-2 4.5.0-1", run: func(s *scene) {
		w := s.connect("c", keep)
		w.subscribe(nil, filter(s.topic("0"), 0), filter(s.topic("1"), 1), filter(s.topic("2"), 2))
		w.leave(0)
		pub := s.connect("pub")
		var want []string
		for i := range 20 {
			qos := byte(1 + i%2)
			pub.pub(s.topic(fmt.Sprint(qos)), fmt.Sprint(i), qos)
			want = append(want, fmt.Sprintf("%d=%d q%d", qos, i, qos))
		}
		w = s.connect("c", resume)
		w.want(want...)
		pub.pub(s.topic("1"), "live", 1)
		w.want("1=live q1")
		w.quiet()
	}},
	{says: "a session that may end does end", v5: "4.1.0-2 3.1.2-23", run: func(s *scene) {
		for _, how := range []option{fresh, number(packet.SessionExpiry, 0)} {
			w := s.connect("c", how)
			w.sub(s.topic("t"), 1)
			w.leave(0)
			w = s.connect("c", dirty)
			if w.connack.SessionPresent {
				s.Error("there is still a session")
			}
			s.connect("pub").pub(s.topic("t"), "x", 1)
			w.quiet()
			w.leave(0)
		}
	}},
	{says: "a session that is over its time has ended", v5: "4.1.0-2", run: func(s *scene) {
		w := s.connect("c", number(packet.SessionExpiry, 1))
		w.sub(s.topic("t"), 1)
		w.leave(0)
		left := time.Now()
		pub := s.connect("pub")
		pub.pub(s.topic("t"), "x", 1)
		after(left, ms(2500))
		w = s.connect("c", dirty)
		if w.connack.SessionPresent {
			s.Error("there is still a session")
		}
		pub.pub(s.topic("t"), "y", 1)
		w.quiet()
	}},
	{says: "a session does not end while its client is there", v5: "4.1.0-1", run: func(s *scene) {
		w := s.connect("c", number(packet.SessionExpiry, 1))
		began := time.Now()
		w.sub(s.topic("t"), 1)
		after(began, ms(2500))
		pub := s.connect("pub")
		pub.pub(s.topic("t"), "x", 1)
		w.want("t=x q1")
		w.drop()
		w = s.connect("c", dirty, number(packet.SessionExpiry, 1))
		if !w.connack.SessionPresent {
			s.Error("the session is gone")
		}
		pub.pub(s.topic("t"), "y", 1)
		w.want("t=y q1")
	}},
	{says: "DISCONNECT changes how long a session stays", v5: "§3.14.2.2.2", run: func(s *scene) {
		stay := func(seconds uint32) packet.Properties {
			return packet.Properties{}.AppendUint(packet.SessionExpiry, seconds)
		}
		s.connect("shorter", number(packet.SessionExpiry, 3600)).leave(0, stay(0))
		s.connect("longer", number(packet.SessionExpiry, 1)).leave(0, stay(3600))
		s.connect("ever", number(packet.SessionExpiry, 0xffffffff)).leave(0)
		left := time.Now()
		if s.connect("shorter", dirty).connack.SessionPresent {
			s.Error("a session that was ended goes on")
		}
		after(left, ms(2500))
		for _, id := range []string{"longer", "ever"} {
			if !s.connect(id, dirty).connack.SessionPresent {
				s.Errorf("the session that was to stay is gone: %s", id)
			}
		}
	}},
	{says: "DISCONNECT does not make a session of what was none", v5: "§3.14.2.2.2", run: func(s *scene) {
		w := s.connect("c")
		w.send((&packet.Disconnect{Props: packet.Properties{}.AppendUint(packet.SessionExpiry, 10)}).Append(nil, s.v, packet.DISCONNECT))
		w.closed(packet.ProtocolError)
		if s.connect("c", dirty).connack.SessionPresent {
			s.Error("there is a session")
		}
	}},
	{says: "subscriptions go on with their options and identifiers", v5: "3.1.2-5 3.3.4-3", run: func(s *scene) {
		w := s.connect("c", keep)
		w.sub(s.topic("id/#"), 2, 77)
		w.subTo(packet.Subscription{Filter: s.topic("rap"), QoS: 1, RetainAsPublished: true})
		w.subTo(packet.Subscription{Filter: s.topic("mine"), QoS: 1, NoLocal: true})
		w.leave(0)
		pub := s.connect("pub")
		pub.pub(s.topic("id/away"), "x", 2)
		w = s.connect("c", resume)
		w.want("id/away=x q2 #77")
		w.pub(s.topic("mine"), "not to me", 1)
		pub.pub(s.topic("rap"), "x", 1, retained)
		pub.pub(s.topic("id"), "x", 0)
		pub.pub(s.topic("mine"), "to you", 1)
		w.wantAny("rap=x q1 r", "id=x q0 #77", "mine=to you q1")
		w.quiet()
	}},
	{says: "what was not acknowledged comes again, marked and in order", v5: "4.4.0-1 3.3.1-1 4.3.2-3 4.3.3-3", v311: "4.4.0-1 2.3.1-3 3.3.1-1 4.6.0-1", run: func(s *scene) {
		w := s.connect("c", keep)
		w.sub(s.topic("t"), 2)
		pub := s.connect("pub")
		var ids []uint16
		for i := range 6 {
			pub.pub(s.topic("t"), fmt.Sprint(i), byte(1+i%2))
			ids = append(ids, w.message().PacketID)
		}
		w.ack(packet.PUBACK, ids[2])
		w.ack(packet.PUBREC, ids[3])
		w.acked(packet.PUBREL, ids[3])
		w.quiet()
		w.drop()
		pub.pub(s.topic("t"), "new", 1)
		w = s.connect("c", resume)
		if id := w.anyAck(packet.PUBREL).PacketID; id != ids[3] {
			s.Errorf("PUBREL %d, want %d", id, ids[3])
		}
		for _, i := range []int{0, 1, 4, 5} {
			p := w.message()
			if want := fmt.Sprintf("t=%d q%d dup", i, 1+i%2); s.line(p) != want || p.PacketID != ids[i] {
				s.Errorf("got %q under %d, want %q under %d", s.line(p), p.PacketID, want, ids[i])
			}
		}
		w.want("t=new q1")
		for _, i := range []int{0, 4} {
			w.ack(packet.PUBACK, ids[i])
		}
		for _, i := range []int{1, 5} {
			w.ack(packet.PUBREC, ids[i])
			w.acked(packet.PUBREL, ids[i])
		}
		for _, i := range []int{1, 3, 5} {
			w.ack(packet.PUBCOMP, ids[i])
		}
		w.quiet()
		w.leave(0)
		s.connect("c", resume).quiet()
	}},
	{says: "nothing comes again while the connection lasts", v5: "4.4.0-1", v311: "§4.4", run: func(s *scene) {
		w := s.connect("c", keep)
		w.sub(s.topic("t"), 2)
		pub := s.connect("pub")
		pub.pub(s.topic("t"), "1", 1)
		pub.pub(s.topic("t"), "2", 2)
		w.message()
		p := w.message()
		w.ack(packet.PUBREC, p.PacketID)
		w.acked(packet.PUBREL, p.PacketID)
		after(time.Now(), ms(3000))
		w.quiet()
	}},
	{says: "the window is that of the connection", v5: "4.9.0-1 3.3.4-9", run: func(s *scene) {
		w := s.connect("c", keep, number(packet.ReceiveMaximum, 10))
		w.sub(s.topic("t"), 1)
		pub := s.connect("pub")
		for i := range 20 {
			pub.pub(s.topic("t"), fmt.Sprint(i), 1)
		}
		for range 10 {
			w.message()
		}
		w.quiet()
		w.drop()
		w = s.connect("c", resume, number(packet.ReceiveMaximum, 3))
		var open []uint16
		for i := range 20 {
			if len(open) == 3 {
				w.quiet()
				w.ack(packet.PUBACK, open[0])
				open = open[1:]
			}
			p := w.message()
			if want := fmt.Sprint(i); string(p.Payload) != want || p.Dup != (i < 10) {
				s.Errorf("got %q, want %s", s.line(p), want)
			}
			if slices.Contains(open, p.PacketID) {
				s.Errorf("identifier %d is in use", p.PacketID)
			}
			open = append(open, p.PacketID)
		}
	}},
	{says: "messages go to the session also while another client takes over", v5: "4.5.0-1 3.1.2-5", v311: "4.5.0-1 3.1.2-4", run: func(s *scene) {
		w := s.connect("c", keep)
		w.sub(s.topic("t"), 1)
		pub := s.connect("pub")
		pub.pub(s.topic("t"), "1", 1)
		p := w.message()
		again := s.connect("c", resume)
		w.closed(packet.SessionTakenOver)
		pub.pub(s.topic("t"), "2", 1)
		again.want("t=1 q1 dup", "t=2 q1")
		_ = p
		again.quiet()
	}},
	{says: "a session belongs to a client id, whatever the version", v5: "3.1.3-2", ours: true, run: func(s *scene) {
		w := s.connect("c", version(packet.V311), keep)
		w.sub(s.topic("t"), 1)
		w.leave(0)
		s.connect("pub").pub(s.topic("t"), "x", 1, with(packet.Properties{}.AppendText(packet.ContentType, "text")))
		five := s.connect("c", resume)
		p := five.message()
		if s.line(p) != "t=x q1" || p.Props.Text(packet.ContentType) != "text" {
			s.Errorf("got %q with % x", s.line(p), []byte(p.Props))
		}
	}},
}
