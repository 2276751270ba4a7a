package conformance

import (
	"fmt"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// will gives a client a will with properties of MQTT 5, if it speaks that.
func will(topic, payload string, qos byte, props ...packet.Properties) option {
	return func(p *packet.Connect) {
		p.Will = &packet.Will{Topic: topic, Payload: []byte(payload), QoS: qos}
		for _, more := range props {
			if p.Version == packet.V5 {
				p.Will.Props = append(p.Will.Props, more...)
			}
		}
	}
}

func retainedWill(p *packet.Connect) { p.Will.Retain = true }

func delay(seconds uint32) packet.Properties {
	return packet.Properties{}.AppendUint(packet.WillDelay, seconds)
}

var willClauses = []clause{
	{says: "it is published when the connection is cut, with its QoS", v5: "3.1.2-7 3.1.2-8 3.1.2-12 3.1.2-14", v311: "3.1.2-8 3.1.2-16", run: func(s *scene) {
		sub := s.connect("sub")
		sub.sub(s.topic("+"), 2)
		for qos := range byte(3) {
			s.connect("c", will(s.topic("w"), fmt.Sprint(qos), qos)).drop()
			sub.want(fmt.Sprintf("w=%d q%d", qos, qos))
		}
		late := s.connect("late")
		late.sub(s.topic("+"), 2)
		late.quiet() // it was not to be retained
	}},
	{says: "it is retained if it is to be", v5: "3.1.2-15", v311: "3.1.2-17", run: func(s *scene) {
		sub := s.connect("sub")
		sub.sub(s.topic("w"), 1)
		s.connect("c", will(s.topic("w"), "gone", 1), retainedWill).drop()
		sub.want("w=gone q1")
		late := s.connect("late")
		late.sub(s.topic("w"), 1)
		late.want("w=gone q1 r")
		s.connect("c", will(s.topic("w"), "", 1), retainedWill).drop()
		sub.want("w= q1") // an empty will removes it
		later := s.connect("later")
		later.sub(s.topic("w"), 1)
		later.quiet()
	}},
	{says: "it is not published after a proper end", v5: "3.14.4-3 3.1.2-10", v311: "3.14.4-3 3.1.2-10", run: func(s *scene) {
		sub := s.connect("sub")
		sub.sub(s.topic("w"), 1)
		s.connect("c", will(s.topic("w"), "gone", 1)).leave(0)
		s.connect("k", keep, will(s.topic("w"), "gone", 1)).leave(0)
		s.connect("k", resume).drop() // without one now
		sub.fence(s.connect("pub"))
	}},
	{says: "who has none gets none", v5: "§3.1.2.5", v311: "3.1.2-12", run: func(s *scene) {
		sub := s.connect("sub")
		sub.sub(s.topic("#"), 1)
		s.connect("c", will(s.topic("w"), "old", 1), keep).leave(0)
		s.connect("c", resume).drop()
		sub.fence(s.connect("pub"))
	}},
	{says: "DISCONNECT may ask for it, or say that something went wrong", v5: "3.1.2-8 3.14.2-1", run: func(s *scene) {
		sub := s.connect("sub")
		sub.sub(s.topic("w"), 1)
		for _, reason := range []packet.Reason{packet.DisconnectWithWill, packet.Unspecified, packet.ImplementationSpecific} {
			s.connect("c", will(s.topic("w"), reason.String(), 1)).leave(reason)
			sub.want(fmt.Sprintf("w=%v q1", reason))
		}
	}},
	{says: "an error ends the connection, not the will", v5: "3.1.2-8", v311: "3.1.2-8", run: func(s *scene) {
		sub := s.connect("sub")
		sub.sub(s.topic("w"), 1)
		c := s.connect("c", will(s.topic("w"), "gone", 1))
		c.send(raw("00 00"))
		c.closed(packet.Malformed, packet.ProtocolError)
		sub.want("w=gone q1")
	}},
	{says: "a takeover ends the connection, and so publishes it", v5: "3.1.4-3 3.1.2-8", v311: "3.1.4-2 3.1.2-8", run: func(s *scene) {
		sub := s.connect("sub")
		sub.sub(s.topic("w"), 1)
		for payload, next := range map[string]option{"a clean start": fresh, "the same session": resume} {
			s.connect("c", keep, will(s.topic("w"), payload, 1))
			s.connect("c", next).leave(0)
			sub.want("w=" + payload + " q1")
		}
		sub.quiet()
	}},
	{says: "it is published once", v5: "3.1.2-10", v311: "3.1.2-10", run: func(s *scene) {
		sub := s.connect("sub")
		sub.sub(s.topic("w"), 1)
		s.connect("c", keep, will(s.topic("w"), "gone", 1)).drop()
		sub.want("w=gone q1")
		s.connect("c", resume).drop()
		s.connect("c", fresh).leave(0)
		sub.fence(s.connect("pub"))
	}},
	{says: "it may be empty", v5: "3.1.2-9", v311: "3.1.2-9", run: func(s *scene) {
		sub := s.connect("sub")
		sub.sub(s.topic("w"), 1)
		s.connect("c", will(s.topic("w"), "", 1)).drop()
		sub.want("w= q1")
	}},
	{says: "its properties go with it", v5: "3.1.3-10 3.3.2-4 3.3.2-15 3.3.2-16 3.3.2-20", run: func(s *scene) {
		sub := s.connect("sub")
		sub.sub(s.topic("w"), 2)
		props := packet.Properties{}.AppendUint(packet.PayloadFormat, 1).AppendText(packet.ContentType, "text/plain").AppendText(packet.ResponseTopic, "re/ply").
			AppendText(packet.CorrelationData, "\x00\xff").AppendUser("b", "1").AppendUser("a", "2").AppendUser("b", "1")
		s.connect("c", will(s.topic("w"), "gone", 1, props)).drop()
		p := sub.message()
		s.sameProperties(p.Props, props)
		if p.HasExpiry {
			s.Errorf("an expiry of %d s that nobody set", p.Expiry)
		}
		s.connect("c", will(s.topic("w"), "gone", 1, packet.Properties{}.AppendUint(packet.MessageExpiry, 60))).drop()
		if p = sub.message(); !p.HasExpiry || p.Expiry > 60 || p.Expiry < 58 {
			s.Errorf("expiry %v, %d s", p.HasExpiry, p.Expiry)
		}
	}},
	{says: "a delayed one comes when it is time", v5: "3.1.2-8", run: func(s *scene) {
		sub := s.connect("sub")
		sub.sub(s.topic("w"), 1)
		props := packet.Properties{}.AppendUint(packet.WillDelay, 1).AppendUint(packet.MessageExpiry, 60).AppendText(packet.ContentType, "text")
		c := s.connect("c", keep, will(s.topic("w"), "gone", 1, props))
		cut := time.Now()
		c.drop()
		p := sub.message()
		if took := time.Since(cut); took < ms(900) || took > ms(3500) {
			s.Errorf("a delay of 1 s took %v", took)
		}
		if s.line(p) != "w=gone q1" || p.Props.Text(packet.ContentType) != "text" || p.Expiry > 60 || p.Expiry < 59 {
			s.Errorf("got %q with %+v", s.line(p), p)
		}
	}},
	{says: "a delayed one is not published if its client comes back", v5: "3.1.3-9", run: func(s *scene) {
		sub := s.connect("sub")
		sub.sub(s.topic("w"), 1)
		c := s.connect("c", keep, will(s.topic("w"), "gone", 1, delay(2)))
		c.drop()
		cut := time.Now()
		c = s.connect("c", resume)
		taken := s.connect("t", keep, will(s.topic("w"), "taken", 1, delay(2)))
		s.connect("t", resume)
		taken.closed(packet.SessionTakenOver)
		after(cut, ms(4000))
		sub.fence(s.connect("pub"))
		c.quiet()
	}},
	{says: "a delayed one comes when its session ends before", v5: "3.1.2-8", run: func(s *scene) {
		sub := s.connect("sub")
		sub.sub(s.topic("w"), 1)
		// A session that ends with its connection, one that ends after a second,
		// and two that are ended.
		s.connect("a", will(s.topic("w"), "a", 1, delay(600))).drop()
		sub.want("w=a q1")
		s.connect("b", number(packet.SessionExpiry, 1), will(s.topic("w"), "b", 1, delay(600))).drop()
		cut := time.Now()
		sub.want("w=b q1")
		if took := time.Since(cut); took > ms(4000) {
			s.Errorf("a session of 1 s ended after %v", took)
		}
		s.connect("c", keep, will(s.topic("w"), "c", 1, delay(600))).drop()
		s.connect("c", fresh)
		sub.want("w=c q1")
		s.connect("d", keep, will(s.topic("w"), "d", 1, delay(600)))
		s.connect("d", fresh)
		sub.want("w=d q1")
	}},
	{says: "DISCONNECT with will, and a session that ends", v5: "3.1.2-8 3.1.3-9", run: func(s *scene) {
		sub := s.connect("sub")
		sub.sub(s.topic("w"), 1)
		c := s.connect("c", keep, will(s.topic("w"), "gone", 1, delay(600)))
		c.leave(packet.DisconnectWithWill, packet.Properties{}.AppendUint(packet.SessionExpiry, 0))
		sub.want("w=gone q1")
	}},
	{says: "it waits for a session that is away", v5: "4.5.0-1", v311: "4.5.0-1", run: func(s *scene) {
		away := s.connect("away", keep)
		away.sub(s.topic("w"), 2)
		away.leave(0)
		live := s.connect("live")
		live.sub(s.topic("w"), 1)
		s.connect("c", will(s.topic("w"), "gone", 2)).drop()
		live.want("w=gone q1")
		s.connect("away", resume).want("w=gone q2")
	}},
}
