package conformance

import (
	"fmt"
	"strings"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

var publishClauses = []clause{
	{says: "an answer for each QoS", v5: "3.3.4-1 2.2.1-2 2.2.1-5 4.3.1-1 4.3.2-4 4.3.3-8 4.3.3-11", v311: "3.3.4-1 2.3.1-5 2.3.1-6 4.3.1-1 4.3.2-2 4.3.3-2", run: func(s *scene) {
		w := s.connect("c")
		w.pub(s.topic("t"), "x", 0)
		w.quiet()
		w.last = 4710
		w.pub(s.topic("t"), "x", 1) // as acked checks the identifier
		w.last = 65534
		w.pub(s.topic("t"), "x", 2)
		w.quiet()
	}},
	{says: "every QoS of a message with every QoS of a subscription", v5: "3.8.4-8 3.3.1-2 2.2.1-4 4.3.2-2 4.3.3-2 3.8.4-7", v311: "3.8.4-6 2.3.1-4 4.3.2-1 4.3.3-1 3.3.1-2", run: func(s *scene) {
		pub := s.connect("pub")
		for granted := range byte(3) {
			w := s.connect(fmt.Sprint("sub", granted))
			w.sub(s.topic("t"), granted)
			for qos := range byte(3) {
				pub.pub(s.topic("t"), "x", qos)
				w.want(fmt.Sprintf("t=x q%d", min(qos, granted)))
			}
			w.quiet()
			w.leave(0)
		}
	}},
	{says: "QoS 3 is none", v5: "3.3.1-4", v311: "3.3.1-4", run: func(s *scene) {
		w := s.connect("c")
		w.send(frameOf(0x36, str(s.topic("t")), []byte{0, 1}, s.willProps()))
		w.closed(packet.Malformed)
	}},
	{says: "QoS 0 is never a duplicate", v5: "3.3.1-2", v311: "3.3.1-2", ours: true, run: func(s *scene) {
		w := s.connect("c")
		w.send(frameOf(0x38, str(s.topic("t")), s.willProps()))
		w.closed(packet.Malformed, packet.ProtocolError)
	}},
	{says: "an identifier is not 0", v5: "2.2.1-3", v311: "2.3.1-1", run: func(s *scene) {
		for _, first := range []byte{0x32, 0x34} {
			w := s.connect("c")
			w.send(frameOf(first, str(s.topic("t")), []byte{0, 0}, s.willProps()))
			w.closed(packet.Malformed, packet.ProtocolError)
		}
	}},
	{says: "DUP is not passed on", v5: "3.3.1-3 4.3.2-5", v311: "3.3.1-3", run: func(s *scene) {
		sub, pub := s.connect("sub"), s.connect("pub")
		sub.sub(s.topic("t"), 2)
		pub.pub(s.topic("t"), "1", 1, dup)
		pub.pub(s.topic("t"), "2", 2, dup)
		sub.want("t=1 q1", "t=2 q2")
	}},
	{says: "a topic name has no wildcards", v5: "3.3.2-2 4.7.0-1", v311: "3.3.2-2 4.7.1-1", run: func(s *scene) {
		for _, name := range []string{"#", "a/#", "+", "a/+/b", "a+", "a#b"} {
			w := s.connect("c").doing("%q", name)
			w.start(name, "x", 1)
			w.closed(packet.TopicNameInvalid, packet.Malformed)
		}
	}},
	{says: "a topic name has one character at least", v5: "4.7.3-1 3.3.2-1", v311: "4.7.3-1 3.3.2-1", run: func(s *scene) {
		w := s.connect("c")
		w.start("", "x", 1)
		w.closed(packet.ProtocolError, packet.TopicNameInvalid)
	}},
	{says: "a topic name is UTF-8 without U+0000", v5: "3.3.2-1 4.7.3-2 1.5.4-1 1.5.4-2", v311: "3.3.2-1 4.7.3-2 1.5.3-1 1.5.3-2", run: func(s *scene) {
		for _, name := range []string{"\xff", "a\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "a\x00b", "\xe2\x82"} {
			w := s.connect("c").doing("%q", name)
			w.start(name, "x", 1)
			w.closed(packet.Malformed, packet.TopicNameInvalid)
		}
	}},
	{says: "a payload may be empty or anything", v5: "§3.3.3", v311: "§3.3.3", run: func(s *scene) {
		w := s.connect("c")
		w.sub(s.topic("t"), 1)
		for _, payload := range []string{"", "\x00\xff\xfe", strings.Repeat("\x00", 70000)} {
			w.pub(s.topic("t"), payload, 1)
			if p := w.message(); string(p.Payload) != payload {
				s.Errorf("%d bytes came back as %d", len(payload), len(p.Payload))
			}
		}
	}},
	{says: "lengths around the steps of their encoding", v5: "1.5.5-1", v311: "§2.2.3", run: func(s *scene) {
		w := s.connect("c")
		w.sub(s.topic("t"), 0)
		head := 2 + len(s.topic("t"))
		if s.five() {
			head++
		}
		for _, remaining := range []int{127, 128, 16383, 16384, 131072} {
			w.pub(s.topic("t"), strings.Repeat("x", remaining-head), 0)
			if p := w.message(); len(p.Payload) != remaining-head {
				s.Errorf("%d bytes, want %d", len(p.Payload), remaining-head)
			}
		}
	}},
	{says: "messages of a topic come in order", v5: "4.6.0-5 4.6.0-6 3.3.2-3", v311: "4.6.0-5 4.6.0-6 3.3.2-3", run: func(s *scene) {
		sub, pub := s.connect("sub"), s.connect("pub")
		sub.sub(s.topic("+"), 2)
		for qos := range byte(3) {
			for i := range 50 {
				pub.start(s.topic(fmt.Sprint(qos)), fmt.Sprint(i), qos)
				if qos == 2 {
					pub.acked(packet.PUBREC, pub.last)
					pub.ack(packet.PUBREL, pub.last)
				}
			}
		}
		var next [3]int
		for range 150 {
			p := sub.message()
			if want := fmt.Sprintf("%d=%d q%d", p.QoS, next[p.QoS], p.QoS); s.line(p) != want {
				s.Fatalf("got %q, want %q", s.line(p), want)
			}
			next[p.QoS]++
			sub.finish(p)
		}
	}},
	{says: "acknowledgements come in order", v5: "4.6.0-2 4.6.0-3", v311: "4.6.0-2 4.6.0-3", run: func(s *scene) {
		// The rule binds the receiver, which the broker is here.
		w := s.connect("c")
		for i := range 40 {
			w.start(s.topic("t"), "x", byte(1+i%2))
		}
		next := map[packet.Type]uint16{packet.PUBACK: 1, packet.PUBREC: 2}
		for range 40 {
			f := w.receive()
			var a packet.Ack
			w.check(a.Decode(w.v, f.kind(), f.body))
			if a.PacketID != next[f.kind()] {
				s.Fatalf("%v %d, want %d", f.kind(), a.PacketID, next[f.kind()])
			}
			next[f.kind()] += 2
		}
	}},
	{says: "topics of the broker's own are not for clients", v5: "§4.7.2", v311: "§4.7.2", ours: true, run: func(s *scene) {
		sub, pub := s.connect("sub"), s.connect("pub")
		name := "$SYS/" + s.prefix
		sub.sub(name, 1)
		if r := pub.pub(name, "x", 1); s.five() && r != packet.NotAuthorized {
			s.Errorf("PUBACK %v", r)
		}
		pub.pub(name, "x", 0)
		sub.fence(pub)
		pub.quiet()
	}},
	{says: "a publisher is told that nobody listens", v5: "§3.4.2.1 3.4.2-1 3.5.2-1", ours: true, run: func(s *scene) {
		s = stage(s.T, s.v, own(s.T, plain)) // where nobody else subscribes to everything
		pub := s.connect("pub")
		for _, qos := range []byte{1, 2} {
			if r := pub.pub(s.topic("nobody"), "x", qos); r != packet.NoMatchingSubscribers {
				s.Errorf("QoS %d: %v", qos, r)
			}
			pub.sub(s.topic("me"), 0)
			if r := pub.pub(s.topic("me"), "x", qos); r != packet.Success {
				s.Errorf("QoS %d: %v", qos, r)
			}
			pub.want("me=x q0")
		}
	}},
}

var propertyClauses = []clause{
	{says: "what belongs to a message goes with it", v5: "3.3.2-4 3.3.2-15 3.3.2-16 3.3.2-17 3.3.2-18 3.3.2-20", run: func(s *scene) {
		sub, pub := s.connect("sub"), s.connect("pub")
		sub.sub(s.topic("t"), 2)
		for i, props := range []packet.Properties{
			{},
			packet.Properties{}.AppendUint(packet.PayloadFormat, 1).AppendText(packet.ContentType, "text/plain").AppendText(packet.ResponseTopic, "re/ply").
				AppendText(packet.CorrelationData, "\x00\xff").AppendUser("b", "1").AppendUser("a", "2").AppendUser("b", "1").AppendUser("", ""),
			packet.Properties{}.AppendUint(packet.PayloadFormat, 0).AppendText(packet.ContentType, "").AppendText(packet.CorrelationData, ""),
		} {
			qos := byte(i)
			pub.pub(s.topic("t"), "text", qos, with(props))
			p := sub.message()
			s.sameProperties(p.Props, props)
			if p.HasExpiry || p.Alias != 0 || len(p.SubscriptionIDs) > 0 {
				s.Errorf("properties that were not sent: %+v", p)
			}
			sub.finish(p)
		}
	}},
	{says: "what belongs to a message stays with it", v5: "3.3.2-4 3.3.2-15 3.3.2-16 3.3.2-17 3.3.2-18 3.3.2-20", run: func(s *scene) {
		props := packet.Properties{}.AppendUint(packet.PayloadFormat, 1).AppendText(packet.ContentType, "text/plain").AppendText(packet.ResponseTopic, "re/ply").
			AppendText(packet.CorrelationData, "\x00\xff").AppendUser("b", "1").AppendUser("a", "2").AppendUser("b", "1")
		away, pub := s.connect("away", keep), s.connect("pub")
		away.sub(s.topic("t"), 2)
		away.leave(0)
		pub.pub(s.topic("t"), "text", 1, retained, with(props))
		back := s.connect("away", resume).message()
		s.sameProperties(back.Props, props)
		sub := s.connect("sub")
		sub.sub(s.topic("t"), 0)
		s.sameProperties(sub.message().Props, props)
	}},
	{says: "3.1.1 gets a message without its properties", v5: "§3.3.4", run: func(s *scene) {
		old, pub := s.connect("old", version(packet.V311)), s.connect("pub")
		old.sub(s.topic("t"), 1)
		pub.pub(s.topic("t"), "x", 1, expires(100), with(packet.Properties{}.AppendUser("a", "b")))
		old.want("t=x q1")
		five := s.connect("five")
		five.sub(s.topic("t"), 1)
		old.pub(s.topic("t"), "y", 1)
		if p := five.message(); s.line(p) != "t=y q1" || len(p.Props) != 0 || p.HasExpiry {
			s.Errorf("%+v", p)
		}
	}},
	{says: "what may be there once is not there twice", v5: "§3.3.2.3", run: func(s *scene) {
		for _, p := range []string{"01 01", "02 00000001", "23 0001", "08 'reply'", "09 'data'", "03 'text'"} {
			w := s.connect("c").doing("%s twice", p)
			w.send(frameOf(0x30, str(s.topic("t")), sized(raw(p+" "+p)), []byte("x")))
			w.closed(packet.ProtocolError, packet.Malformed)
		}
	}},
	{says: "values that are none", v5: "3.3.2-14 3.3.2-13 3.3.2-19 3.3.4-6", run: func(s *scene) {
		for p, reasons := range map[string][]packet.Reason{
			"01 02":          {packet.ProtocolError, packet.Malformed},
			"08 'a/#'":       {packet.ProtocolError, packet.TopicNameInvalid, packet.Malformed},
			"08 '+'":         {packet.ProtocolError, packet.TopicNameInvalid, packet.Malformed},
			"08 0001 ff":     {packet.Malformed},
			"03 0001 ff":     {packet.Malformed},
			"03 0002 6100":   {packet.Malformed},
			"26 0001 ff 'v'": {packet.Malformed},
			"26 'n' 0001 ff": {packet.Malformed},
			"0b 01":          {packet.ProtocolError, packet.Malformed},
			"11 00000001":    {packet.Malformed, packet.ProtocolError},
			"21 0001":        {packet.Malformed, packet.ProtocolError},
			"1f 'reason'":    {packet.Malformed, packet.ProtocolError},
			"18 00000001":    {packet.Malformed, packet.ProtocolError},
			"7f 01":          {packet.Malformed},
			"02 0000":        {packet.Malformed},
			"09 0005 61":     {packet.Malformed},
		} {
			w := s.connect("c").doing("%s", p)
			w.send(frameOf(0x30, str(s.topic("t")), sized(raw(p))))
			w.closed(reasons...)
		}
	}},
	{says: "a broken message has no consequence for others", v5: "4.13.1-1", v311: "4.8.0-1 2.2.2-2", run: func(s *scene) {
		sub := s.connect("sub")
		sub.sub(s.topic("#"), 1)
		w := s.connect("c")
		w.start(s.topic("good"), "x", 1)
		w.acked(packet.PUBACK, 1)
		_ = w.write(append(frameOf(0x3f, str(s.topic("bad"))), (&packet.Publish{Topic: s.topic("late")}).Append(nil, s.v)...))
		w.closed(packet.Malformed)
		sub.want("good=x q1")
		sub.fence(s.connect("pub"))
	}},
}

// sameProperties checks that got are those that were sent. The order is kept
// where the standard keeps it, among user properties.
func (s *scene) sameProperties(got, sent packet.Properties) {
	s.Helper()
	for _, id := range []packet.Property{packet.PayloadFormat, packet.ContentType, packet.ResponseTopic, packet.CorrelationData} {
		n, there := sent.Uint(id)
		m, came := got.Uint(id)
		b, _ := sent.Bytes(id)
		c, _ := got.Bytes(id)
		if id != packet.PayloadFormat {
			_, there = sent.Bytes(id)
			_, came = got.Bytes(id)
		} else if !came || !there {
			there, came = n != 0, m != 0 // 0 is as good as none, §3.3.2.3.2
		}
		if there != came || n != m || string(b) != string(c) {
			s.Errorf("property %#02x: sent %v %d %q, got %v %d %q", byte(id), there, n, b, came, m, c)
		}
	}
	var a, b []string
	for k, v := range sent.User() {
		a = append(a, k+"="+v)
	}
	for k, v := range got.User() {
		b = append(b, k+"="+v)
	}
	if strings.Join(a, ",") != strings.Join(b, ",") {
		s.Errorf("user properties: sent %q, got %q", a, b)
	}
}

var expiryClauses = []clause{
	{says: "what is left of a lifetime goes with the message", v5: "3.3.2-6", run: func(s *scene) {
		away, pub, live := s.connect("away", keep), s.connect("pub"), s.connect("live")
		away.sub(s.topic("t"), 1)
		away.leave(0)
		live.sub(s.topic("t"), 1)
		sent := time.Now()
		pub.pub(s.topic("t"), "x", 1, retained, expires(60))
		if p := live.message(); !p.HasExpiry || p.Expiry > 60 || p.Expiry < 59 {
			s.Errorf("at once: %v, %d s", p.HasExpiry, p.Expiry)
		}
		after(sent, ms(2100))
		back := s.connect("away", resume)
		late := s.connect("late")
		late.sub(s.topic("t"), 1)
		for _, w := range []*wire{back, late} {
			p := w.message()
			waited := uint32(time.Since(sent) / time.Second)
			if !p.HasExpiry || p.Expiry > 58 || p.Expiry+waited+1 < 60 {
				s.Errorf("after %d s: %v, %d s", waited, p.HasExpiry, p.Expiry)
			}
		}
	}},
	{says: "what is over is not delivered", v5: "3.3.2-5", run: func(s *scene) {
		away, pub := s.connect("away", keep), s.connect("pub")
		away.sub(s.topic("#"), 2)
		away.leave(0)
		sent := time.Now()
		for qos := range byte(3) {
			pub.pub(s.topic("short"), fmt.Sprint(qos), qos, expires(1))
		}
		pub.pub(s.topic("kept"), "x", 1, expires(1), retained)
		pub.pub(s.topic("long"), "x", 1, expires(100))
		pub.pub(s.topic("ever"), "x", 1)
		after(sent, ms(2200))
		back := s.connect("away", resume)
		back.want("long=x q1", "ever=x q1")
		back.quiet()
		late := s.connect("late")
		late.sub(s.topic("kept"), 1)
		late.quiet()
	}},
	{says: "what waits for a slow client is over too", v5: "3.3.2-5", run: func(s *scene) {
		sub, pub := s.connect("sub", number(packet.ReceiveMaximum, 1)), s.connect("pub")
		sub.sub(s.topic("t"), 1)
		pub.pub(s.topic("t"), "1", 1)
		first := sub.message()
		sent := time.Now()
		pub.pub(s.topic("t"), "2", 1, expires(1))
		pub.pub(s.topic("t"), "3", 1, expires(100))
		after(sent, ms(2200))
		sub.finish(first)
		sub.want("t=3 q1")
		sub.quiet()
	}},
	{says: "what was sent once does not end before its handshake", v5: "4.3.3-7", run: func(s *scene) {
		sub, pub := s.connect("sub", keep), s.connect("pub")
		sub.sub(s.topic("t"), 2)
		sent := time.Now()
		pub.pub(s.topic("t"), "x", 2, expires(1))
		id := sub.message().PacketID
		sub.drop()
		after(sent, ms(2200))
		sub = s.connect("sub", resume)
		p := sub.message()
		if s.line(p) != "t=x q2 dup" || p.PacketID != id {
			s.Errorf("got %q under %d, want it under %d", s.line(p), p.PacketID, id)
		}
		sub.finish(p)
		sub.quiet()
	}},
	{says: "a handshake goes on after the message has expired", v5: "4.3.3-13", run: func(s *scene) {
		pub := s.connect("pub")
		sent := time.Now()
		id := pub.start(s.topic("t"), "x", 2, expires(1))
		pub.acked(packet.PUBREC, id)
		after(sent, ms(2200))
		pub.ack(packet.PUBREL, id)
		if r := pub.acked(packet.PUBCOMP, id); r != packet.Success {
			s.Errorf("PUBCOMP %v", r)
		}
	}},
}
