package conformance

import (
	"fmt"
	"slices"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

var connectPropertyClauses = []clause{
	{says: "what may be there once is not there twice", v5: "§3.1.2.11", run: func(s *scene) {
		for _, p := range []string{"11 00000001", "21 000a", "27 00001000", "22 000a", "19 01", "17 01", "15 'm'", "15 'm' 16 'd'"} {
			twice := slices.Concat(raw(p), raw(p))
			s.refused(s.bareConnect(0x02, twice, str("c")), packet.ProtocolError, packet.Malformed)
		}
		for _, p := range []string{"18 00000001", "01 01", "02 00000001", "03 'text'", "08 'reply'", "09 'data'"} {
			twice := slices.Concat(raw(p), raw(p))
			s.refused(s.bareConnect(0x06, nil, str("c"), s.willProps(twice...), str("w"), str("x")), packet.ProtocolError, packet.Malformed)
		}
	}},
	{says: "values that are none", v5: "§3.1.2.11", run: func(s *scene) {
		for _, p := range []string{"21 0000", "27 00000000", "19 02", "17 02", "16 'data without method'"} {
			s.refused(s.bareConnect(0x02, raw(p), str("c")), packet.ProtocolError, packet.Malformed)
		}
		s.refused(s.bareConnect(0x06, nil, str("c"), s.willProps(1, 2), str("w"), str("x")), packet.ProtocolError, packet.Malformed)
	}},
	{says: "properties of other packets", v5: "§2.2.2.2", run: func(s *scene) {
		for _, p := range []string{"23 0001", "0b 01", "12 'id'", "13 000a", "1a 'info'", "1c 'server'", "1f 'reason'", "24 01", "25 01", "28 01", "29 01", "2a 01", "01 01", "18 00000001", "00", "04", "7f 00"} {
			s.refused(s.bareConnect(0x02, raw(p), str("c")), packet.Malformed, packet.ProtocolError)
		}
		for _, p := range []string{"11 00000001", "23 0001", "0b 01", "21 0001"} {
			s.refused(s.bareConnect(0x06, nil, str("c"), s.willProps(raw(p)...), str("w"), str("x")), packet.Malformed, packet.ProtocolError)
		}
	}},
	{says: "properties that do not fit", v5: "2.2.2-1 1.5.7-1", run: func(s *scene) {
		s.refused(frameOf(0x10, raw("'MQTT' 05 02 003c")), packet.Malformed)                                                       // no length of properties
		s.refused(frameOf(0x10, raw("'MQTT' 05 02 003c 20 11 00000001 'c'")), packet.Malformed)                                    // longer than the packet
		s.refused(frameOf(0x10, raw("'MQTT' 05 02 003c 03 11 00000001 'c'")), packet.Malformed)                                    // cuts a property
		s.refused(frameOf(0x10, raw("'MQTT' 05 02 003c ffffffff7f 'c'")), packet.Malformed)                                        // length of five bytes
		s.refused(s.bareConnect(0x02, raw("26 0001 ff 'value'"), str("c")), packet.Malformed)                                      // not UTF-8
		s.refused(s.bareConnect(0x02, raw("26 'name' 0001 00"), str("c")), packet.Malformed)                                       // U+0000
		s.refused(s.bareConnect(0x02, slices.Concat([]byte{0x26}, str("name")), str("c")), packet.Malformed, packet.ProtocolError) // half a pair
	}},
	{says: "user properties may be there, more than once", v5: "§3.1.2.11.8", run: func(s *scene) {
		s.connect("c", func(p *packet.Connect) {
			p.Props = p.Props.AppendUser("a", "1").AppendUser("a", "1").AppendUser("", "")
		}).quiet()
	}},
	{says: "all that a client may say of itself", v5: "3.1.2-28 4.12.0-6", run: func(s *scene) {
		w := s.connect("c", number(packet.SessionExpiry, 10), number(packet.ReceiveMaximum, 65535), number(packet.MaximumPacketSize, 268435455),
			number(packet.TopicAliasMaximum, 65535), number(packet.RequestResponseInfo, 0), number(packet.RequestProblemInfo, 0))
		for _, never := range []packet.Property{packet.ResponseInfo, packet.AuthMethod, packet.AuthData} {
			if v, there := w.connack.Props.Bytes(never); there {
				s.Errorf("CONNACK has property %#02x: %q", byte(never), v)
			}
		}
		w.quiet()
	}},
	{says: "what CONNACK does not say is so", v5: "3.2.2-9 3.2.2-12 3.2.2-13 3.2.2-10", run: func(s *scene) {
		// Ours can do everything, so it may claim no less.
		w := s.connect("c", func(p *packet.Connect) { p.Will = &packet.Will{Topic: s.topic("w"), QoS: 2, Retain: true} })
		for _, can := range []packet.Property{packet.MaximumQoS, packet.RetainAvailable, packet.WildcardAvailable, packet.SubscriptionIDsAvail, packet.SharedAvailable} {
			if v, there := w.connack.Props.Uint(can); there && v == 0 || can == packet.MaximumQoS && there {
				s.Errorf("CONNACK has property %#02x: %d", byte(can), v)
			}
		}
	}},
	{says: "CONNACK names the limits", v5: "§3.2.2.3 3.2.2-15 3.2.2-17", site: limited, run: func(s *scene) {
		w := s.connect("c")
		for id, want := range map[packet.Property]uint32{packet.ReceiveMaximum: 5, packet.MaximumPacketSize: 1000, packet.TopicAliasMaximum: 3} {
			if got, _ := w.connack.Props.Uint(id); got != want {
				s.Errorf("property %#02x is %d, want %d", byte(id), got, want)
			}
		}
	}},
	{says: "the broker shortens a keepalive", v5: "3.2.2-21 3.1.2-21 3.2.2-22", site: limited, run: func(s *scene) {
		for asked, want := range map[uint16]uint32{0: 30, 29: 0, 30: 0, 31: 30, 65535: 30} {
			got, _ := s.connect(fmt.Sprint("c", asked), keepalive(asked)).connack.Props.Uint(packet.ServerKeepAlive)
			if got != want {
				s.Errorf("asked for %d s: server keepalive %d, want %d", asked, got, want)
			}
		}
	}},
	{says: "the broker shortens a session", v5: "§3.2.2.3.2", site: guarded, ours: true, run: func(s *scene) {
		for asked, want := range map[uint32]uint32{10: 10, 60: 60, 61: 60, 3600: 60, 0xffffffff: 60} {
			w := s.connect(fmt.Sprint("c", asked), login("alice"), number(packet.SessionExpiry, asked))
			got, there := w.connack.Props.Uint(packet.SessionExpiry)
			if !there {
				got = asked // §3.2.2.3.2
			}
			if got != want {
				s.Errorf("asked for %d s: %d, want %d", asked, got, want)
			}
			w.leave(0, packet.Properties{}.AppendUint(packet.SessionExpiry, 0))
		}
	}},
	{says: "a way of authentication that is not known", v5: "4.12.0-1 4.12.0-4", run: func(s *scene) {
		s.refused(s.bareConnect(0x02, raw("15 'SCRAM-SHA-1' 16 'hello'"), str("c")), packet.BadAuthenticationMethod, packet.NotAuthorized)
	}},
	{says: "AUTH without a method", v5: "4.12.0-7 4.12.1-2 3.15.1-1", run: func(s *scene) {
		w := s.connect("c")
		w.send(raw("f2 [ 18 [ 15 'm' ] ]"))
		w.closed(packet.Malformed)
		for _, p := range []string{"f0 00", "f0 [ 19 [ 15 'm' ] ]", "f0 [ 18 [ 15 'm' ] ]"} {
			w := s.connect("c")
			w.send(raw(p))
			w.closed(packet.ProtocolError)
		}
	}},
	{says: "a will that cannot be published", v5: "3.1.4-2 3.2.2-6 3.2.2-7 3.2.2-8", run: func(s *scene) {
		s.connect("c", keep).leave(0)
		for _, name := range []string{"a/#", "+", "a+b", ""} {
			p := packet.Connect{Version: s.v, ClientID: s.prefix + "c"}
			resume(&p)
			will(name, "x", 0)(&p)
			s.refused(p.Append(nil), packet.TopicNameInvalid, packet.Malformed, packet.ProtocolError)
		}
		if w := s.connect("c", resume); !w.connack.SessionPresent {
			s.Error("a CONNECT that was refused has ended the session")
		}
	}},
	{says: "CONNECT has to come soon", v5: "§3.1.4", v311: "§3.1.4", site: hasty, ours: true, run: func(s *scene) {
		silent, slow := s.dial(), s.dial()
		began := time.Now()
		slow.send([]byte{0x10, 0x20, 0, 4})
		silent.gone()
		slow.gone()
		if took := time.Since(began); took < ms(250) || took > ms(3000) {
			s.Errorf("a connect_timeout of 300 ms ended after %v", took)
		}
	}},
}
