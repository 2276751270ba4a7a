package conformance

import (
	"bytes"
	"strings"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

var connectClauses = []clause{
	{says: "the first packet is CONNECT", v5: "3.1.0-1 3.14.0-1 3.2.0-1", v311: "3.1.0-1 4.8.0-1", run: func(s *scene) {
		for _, first := range []string{"c0 00", "e0 00", "30 [ 'a' 00 ]", "82 [ 0001 00 'a' 00 ]", "40 02 0001", "20 03 000000", "00 00", "f0 00"} {
			w := s.dial()
			w.send(raw(first))
			w.gone()
		}
	}},
	{says: "a second CONNECT ends the connection", v5: "3.1.0-2 4.13.1-1 3.2.0-2", v311: "3.1.0-2", run: func(s *scene) {
		sub := s.connect("sub")
		sub.sub(s.topic("will"), 1)
		w := s.connect("c", will(s.topic("will"), "gone", 1))
		w.send((&packet.Connect{Version: s.v, ClientID: s.prefix + "c", CleanStart: true}).Append(nil))
		w.closed(packet.ProtocolError)
		sub.want("will=gone q1") // it is not a proper end
	}},
	{says: "the protocol is called MQTT", v5: "3.1.2-1", v311: "3.1.2-1", run: func(s *scene) {
		for _, name := range []string{"MQTX", "mqtt", "MQT", "", "MQTTT"} {
			w := s.dial()
			w.send(frameOf(0x10, str(name), []byte{byte(s.v), 2, 0, 60}, s.willProps(), str("c")))
			if f, err := w.read(patience); err == nil { // it may say that it is a broker of another protocol
				if f.kind() != packet.CONNACK || len(f.body) < 2 || f.body[1] != 1 && f.body[1] != byte(packet.UnsupportedVersion) {
					s.Errorf("protocol %q: %v", name, f)
				}
				w.gone()
			} else if !over(err) {
				s.Errorf("protocol %q: %v", name, err)
			}
		}
	}},
	{says: "a level that is not spoken is refused", v311: "3.1.2-2 3.2.2-4 3.2.2-5", run: func(s *scene) {
		w := s.dial()
		w.send(frameOf(0x10, str("MQTT"), []byte{2, 2, 0, 60}, str("c")))
		if f := w.receive(); f.first != 0x20 || !bytes.Equal(f.body, []byte{0, 1}) {
			s.Errorf("%v, want CONNACK 00 01", f)
		}
		w.gone()
	}},
	{says: "a level that is not spoken is refused", v5: "3.1.2-2 3.2.2-7 4.13.2-1", run: func(s *scene) {
		w := s.dial()
		w.send(frameOf(0x10, str("MQTT"), []byte{6, 2, 0, 60, 0}, str("c")))
		if f, err := w.read(patience); err == nil && (f.kind() != packet.CONNACK || f.body[1] != byte(packet.UnsupportedVersion) && f.body[1] != 1) {
			s.Errorf("%v, want CONNACK 0x84", f)
		}
		w.end()
	}},
	{says: "the reserved flag is 0", v5: "3.1.2-3 3.1.4-1", v311: "3.1.2-3 3.1.4-1", run: func(s *scene) {
		s.refused(s.bareConnect(0x03, nil, str("c")), s.malformed()...)
	}},
	{says: "without a will there are no flags of one", v5: "3.1.2-11 3.1.2-13", v311: "3.1.2-11 3.1.2-13 3.1.2-15", run: func(s *scene) {
		for _, flags := range []byte{0x0a, 0x12, 0x1a, 0x22, 0x3a} {
			s.refused(s.bareConnect(flags, nil, str("c")), s.malformed()...)
		}
	}},
	{says: "a will has no QoS 3", v5: "3.1.2-12", v311: "3.1.2-14", run: func(s *scene) {
		s.refused(s.bareConnect(0x1e, nil, str("c"), s.willProps(), str("w"), str("x")), s.malformed()...)
	}},
	{says: "a will is there if its flag says so", v5: "3.1.2-9", v311: "3.1.2-9", run: func(s *scene) {
		s.refused(s.bareConnect(0x06, nil, str("c")), s.malformed()...)
		s.refused(s.bareConnect(0x06, nil, str("c"), s.willProps(), str("w")), s.malformed()...)
	}},
	{says: "a user name and a password are there if their flags say so", v5: "3.1.2-17 3.1.2-19", v311: "3.1.2-19 3.1.2-21", run: func(s *scene) {
		s.refused(s.bareConnect(0x82, nil, str("c")), s.malformed()...)
		s.refused(s.bareConnect(0xc2, nil, str("c"), str("user")), s.malformed()...)
	}},
	{says: "nothing is there that no flag tells of", v5: "3.1.2-16 3.1.2-18 3.1.3-1", v311: "3.1.2-18 3.1.2-20 3.1.3-1", run: func(s *scene) {
		s.refused(s.bareConnect(0x02, nil, str("c"), str("user")), s.malformed()...)
		s.refused(s.bareConnect(0x82, nil, str("c"), str("user"), str("password")), s.malformed()...)
	}},
	{says: "a password needs a user name", v311: "3.1.2-22", run: func(s *scene) {
		s.refused(s.bareConnect(0x42, nil, str("c"), str("password")))
	}},
	{says: "a password needs no user name", v5: "§3.1.2.9", ours: true, run: func(s *scene) {
		w := s.dial()
		w.send(s.bareConnect(0x42, nil, str(s.prefix), str("password")))
		w.takeConnack()
		w.quiet()
	}},
	{says: "strings are UTF-8", v5: "3.1.3-4 3.1.3-11 3.1.3-12 1.5.4-1 1.5.4-2", v311: "3.1.3-4 3.1.3-10 3.1.3-11 1.5.3-1 1.5.3-2", run: func(s *scene) {
		for _, bad := range []string{"\xff", "a\xc0\xafb", "\xed\xa0\x80", "\xf4\x90\x80\x80", "a\x00b", "\xe2\x82"} {
			s.refused(s.bareConnect(0x02, nil, str(bad)), s.malformed()...)
			s.refused(s.bareConnect(0x06, nil, str("c"), s.willProps(), str(bad), str("x")), s.malformed()...)
			s.refused(s.bareConnect(0x82, nil, str("c"), str(bad)), s.malformed()...)
		}
	}},
	{says: "the client id comes first and is there", v5: "3.1.3-3", v311: "3.1.3-3", run: func(s *scene) {
		s.refused(s.bareConnect(0x02, nil), s.malformed()...)
		s.refused(s.bareConnect(0x02, nil, []byte{0, 5, 'a'}), s.malformed()...)
	}},
	{says: "ids of 1 to 23 letters and digits are good", v5: "3.1.3-5", v311: "3.1.3-5", run: func(s *scene) {
		for _, id := range []string{"Z", "0123456789abcdefghijklm", "nopqrstuvwxyzABCDEFGHIJ", "KLMNOPQRSTUVWXYZ"} {
			if !s.five() {
				id = "x" + id[1:] // the two versions run at the same time
			}
			s.try(id).quiet()
		}
	}},
	{says: "longer and other ids are good", v5: "§3.1.3.1", v311: "§3.1.3.1", ours: true, run: func(s *scene) {
		s.connect(strings.Repeat("long", 50)).quiet()
		s.connect("with space, ümlaut and / + # $").quiet()
	}},
	{says: "a client without an id gets one of its own", v5: "3.1.3-6 3.1.3-7 3.2.2-16", run: func(s *scene) {
		var ids []string
		for range 2 {
			w := s.try("", keep)
			ids = append(ids, w.connack.Props.Text(packet.AssignedClientID))
			w.sub(s.topic("t"), 1)
		}
		if ids[0] == "" || ids[0] == ids[1] {
			s.Fatalf("assigned ids %q", ids)
		}
		w := s.try(ids[0], resume)
		if !w.connack.SessionPresent {
			s.Error("under the assigned id there is no session")
		}
		s.connect("pub").pub(s.topic("t"), "x", 1)
		w.want("t=x q1")
		if again := s.try("", dirty); again.connack.Reason != packet.Success || again.connack.SessionPresent {
			s.Errorf("an id is assigned for a session to resume: %+v", again.connack)
		}
	}},
	{says: "a client without an id gets one of its own", v311: "3.1.3-6", run: func(s *scene) {
		one, two := s.try(""), s.try("")
		one.sub(s.topic("t"), 0)
		two.sub(s.topic("t"), 0)
		one.pub(s.topic("t"), "x", 0)
		one.want("t=x q0")
		two.want("t=x q0")
	}},
	{says: "a client without an id has no session to keep", v311: "3.1.3-7 3.1.3-8 3.1.3-9", run: func(s *scene) {
		s.refused(s.bareConnect(0, nil, str("")), packet.Reason(2))
	}},
	{says: "a client that has an id is assigned none", v5: "§3.2.2.3.7", run: func(s *scene) {
		if id := s.connect("c").connack.Props.Text(packet.AssignedClientID); id != "" {
			s.Errorf("assigned %q", id)
		}
	}},
	{says: "a second client with the same id takes over", v5: "3.1.4-3 3.1.3-2", v311: "3.1.4-2 3.1.3-2", run: func(s *scene) {
		old := s.connect("c", keep)
		old.sub(s.topic("t"), 1)
		w := s.connect("c", resume)
		old.closed(packet.SessionTakenOver)
		if !w.connack.SessionPresent {
			s.Error("the session is not taken over")
		}
		w.pub(s.topic("t"), "x", 1)
		w.want("t=x q1")
		w.quiet()
	}},
	{says: "ids are told apart letter by letter", v5: "3.1.3-2", v311: "3.1.3-2", run: func(s *scene) {
		a, b := s.connect("Client"), s.connect("client")
		a.quiet()
		b.quiet()
	}},
	{says: "nothing is taken from a client that is not let in", v5: "3.1.4-6", v311: "3.1.4-5", run: func(s *scene) {
		sub := s.connect("sub")
		sub.sub(s.topic("#"), 1)
		w := s.dial()
		bad := s.bareConnect(0x03, nil, str("c"))
		_ = w.write(bytes.Join([][]byte{bad, (&packet.Publish{Topic: s.topic("t"), Payload: []byte("x"), Retain: true}).Append(nil, s.v)}, nil))
		w.end()
		sub.fence(s.connect("pub"))
	}},
	{says: "packets may follow CONNECT at once", v5: "3.2.0-1 3.2.0-2 3.1.4-5", v311: "3.2.0-1 3.1.4-4", run: func(s *scene) {
		w := s.dial()
		w.send((&packet.Connect{Version: s.v, ClientID: s.prefix, CleanStart: true}).Append(nil),
			(&packet.Subscribe{PacketID: 1, Subscriptions: []packet.Subscription{filter(s.topic("t"), 1)}}).Append(nil, s.v),
			(&packet.Publish{Topic: s.topic("t"), Payload: []byte("x"), QoS: 1, PacketID: 2}).Append(nil, s.v))
		w.takeConnack()
		w.await(packet.SUBACK)
		w.want("t=x q1")
		w.acked(packet.PUBACK, 2)
		w.quiet()
	}},
	{says: "a packet may come byte by byte", v5: "4.2-1", v311: "§4.2", run: func(s *scene) {
		w := s.dial()
		all := (&packet.Connect{Version: s.v, ClientID: s.prefix, CleanStart: true}).Append(nil)
		all = append(all, (&packet.Publish{Topic: s.topic("t"), Payload: []byte("x"), QoS: 1, PacketID: 2}).Append(nil, s.v)...)
		for _, b := range all {
			w.send([]byte{b})
		}
		w.takeConnack()
		w.acked(packet.PUBACK, 2)
	}},
	{says: "CONNACK says whether there is a session", v5: "3.2.2-1 3.2.2-2 3.2.2-3 3.1.2-6 3.1.4-4", v311: "3.2.2-1 3.2.2-2 3.2.2-3 3.1.4-3 3.1.2-4", run: func(s *scene) {
		present := func(want bool, o ...option) {
			s.Helper()
			w := s.connect("c", o...)
			if w.connack.SessionPresent != want {
				s.Errorf("session present %v, want %v", !want, want)
			}
			w.leave(0)
		}
		present(false, resume)
		present(true, resume)
		present(true, resume)
		present(false, fresh)
		present(false, resume)
	}},
	{says: "a keepalive that is over ends the connection", v5: "3.1.2-22 3.2.2-22", v311: "3.1.2-24", run: func(s *scene) {
		sub := s.connect("sub")
		sub.sub(s.topic("will"), 1)
		silent := s.connect("silent", keepalive(1), will(s.topic("will"), "gone", 1))
		half := s.connect("half", keepalive(1))
		busy := s.connect("busy", keepalive(1))
		began := time.Now()
		half.send([]byte{0x30, 0x20, 0}) // half a packet is none
		for i := range 5 {
			after(began, ms(500*i))
			busy.quiet()
		}
		silent.closed(packet.KeepAliveTimeout)
		half.closed(packet.KeepAliveTimeout)
		// How soon is not said; other brokers look every five seconds.
		if took := time.Since(began); took < ms(1500) || s.ours() && took > ms(3500) {
			s.Errorf("a keepalive of 1 s ended after %v", took)
		}
		sub.want("will=gone q1")
	}},
	{says: "a keepalive is not over early", v5: "3.1.2-22", v311: "3.1.2-24", run: func(s *scene) {
		w := s.connect("c", keepalive(2))
		began := time.Now()
		for i := range 3 {
			after(began, ms(1300*i))
			w.pub(s.topic("t"), "x", byte(i))
		}
	}},
}

// malformed is what CONNACK says to what cannot be read; 3.1.1 has nothing to say.
func (s *scene) malformed() []packet.Reason {
	if s.five() {
		return []packet.Reason{packet.Malformed, packet.ProtocolError}
	}
	return nil
}
