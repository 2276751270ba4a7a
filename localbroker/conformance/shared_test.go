package conformance

import (
	"fmt"
	"slices"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// Shared subscriptions are of MQTT 5; that 3.1.1 has them too is ours.
var sharedClauses = []clause{
	{says: "filters that are none", v5: "4.8.2-1 4.8.2-2", run: func(s *scene) {
		for _, f := range []string{"$share/", "$share/g", "$share//a", "$share/g/", "$share/g+/a", "$share/g#/a", "$share/+/a", "$share/#", "$share/g/a#"} {
			c := s.connect("c")
			c.send((&packet.Subscribe{PacketID: 1, Subscriptions: []packet.Subscription{filter(f, 0)}}).Append(nil, s.v))
			got, err := c.read(patience)
			switch {
			case err == nil && got.kind() == packet.SUBACK:
				var a packet.Suback
				c.check(a.Decode(s.v, packet.SUBACK, got.body))
				if !a.Reasons[0].Failed() {
					s.Errorf("subscription to %q: %v", f, a.Reasons[0])
				}
			case err == nil && got.kind() == packet.DISCONNECT, over(err):
			default:
				s.Errorf("subscription to %q: %v, %v", f, got, err)
			}
		}
	}},
	{says: "a message goes to one of a group", v5: "§4.8.2", run: func(s *scene) {
		one, two, plain, pub := s.connect("one"), s.connect("two"), s.connect("plain"), s.connect("pub")
		one.sub("$share/g/"+s.topic("+"), 1)
		two.sub("$share/g/"+s.topic("+"), 1)
		two.sub("$share/h/"+s.topic("#"), 1)
		plain.sub(s.topic("+"), 1)
		const n = 20
		var want []string
		for i := range n {
			pub.pub(s.topic("t"), fmt.Sprint(i), 1)
			want = append(want, fmt.Sprintf("t=%d q1", i))
		}
		plain.want(want...)
		plain.quiet()
		counts := map[string]int{}
		a, b := s.drain(one), s.drain(two)
		for _, line := range slices.Concat(a, b) {
			counts[line]++
		}
		for _, line := range want {
			if counts[line] != 2 { // one of each group
				s.Errorf("%q came %d times, want 2", line, counts[line])
			}
		}
		if len(a) == 0 || len(b) == n {
			s.Errorf("%d and %d messages", len(a), len(b))
		}
	}},
	{says: "a group and a subscription of one's own", v5: "§4.8.2", run: func(s *scene) {
		c, pub := s.connect("c"), s.connect("pub")
		c.sub("$share/g/"+s.topic("t"), 1)
		c.sub(s.topic("t"), 1)
		pub.pub(s.topic("t"), "x", 1)
		c.want("t=x q1", "t=x q1")
		c.quiet()
	}},
	{says: "no retained messages", v5: "§4.8.2 §3.8.4", run: func(s *scene) {
		c, pub := s.connect("c"), s.connect("pub")
		pub.pub(s.topic("t"), "kept", 1, retained)
		c.sub("$share/g/"+s.topic("t"), 1)
		c.sub("$share/g/"+s.topic("t"), 1)
		c.fence(pub)
		pub.pub(s.topic("t"), "x", 1)
		c.want("t=x q1")
	}},
	{says: "each member has the QoS that it was granted", v5: "4.8.2-3", run: func(s *scene) {
		pub := s.connect("pub")
		var members []*wire
		for qos := range byte(3) {
			w := s.connect(fmt.Sprint(qos))
			w.sub("$share/g/"+s.topic("t"), qos)
			members = append(members, w)
		}
		for range 12 {
			pub.pub(s.topic("t"), "x", 2)
		}
		total := 0
		for qos, w := range members {
			for _, line := range s.drain(w) {
				total++
				if line != fmt.Sprintf("t=x q%d", qos) {
					s.Errorf("granted QoS %d, got %q", qos, line)
				}
			}
		}
		if total != 12 {
			s.Errorf("%d messages, want 12", total)
		}
	}},
	{says: "whoever unsubscribes gets no more, whoever subscribes twice gets no more than others", v5: "§4.8.2", run: func(s *scene) {
		one, two, pub := s.connect("one"), s.connect("two"), s.connect("pub")
		shared := "$share/g/" + s.topic("t")
		one.sub(shared, 1)
		one.sub(shared, 1)
		two.sub(shared, 1)
		if r := one.unsub(s.topic("t"), shared, shared); fmt.Sprint(r) != fmt.Sprint([]packet.Reason{0x11, 0, 0x11}) {
			s.Errorf("reasons %v", r)
		}
		for i := range 4 {
			pub.pub(s.topic("t"), fmt.Sprint(i), 1)
			two.want(fmt.Sprintf("t=%d q1", i))
		}
		one.quiet()
	}},
	{says: "identifiers are those of the member", v5: "§3.3.4", run: func(s *scene) {
		c, pub := s.connect("c"), s.connect("pub")
		c.sub("$share/g/"+s.topic("t"), 1, 8)
		c.sub(s.topic("t"), 1, 9)
		pub.pub(s.topic("t"), "x", 1)
		c.wantAny("t=x q1 #8", "t=x q1 #9")
	}},
	{says: "filters in a group follow the same rules", v5: "4.7.2-1 4.8.2-2", run: func(s *scene) {
		c, root, pub := s.connect("c"), s.connect("root"), s.connect("pub")
		c.sub("$share/"+s.prefix+"/#", 0)
		root.sub("$share/"+s.prefix+"//"+s.prefix, 1)
		pub.pub("$"+s.prefix+"/t", "x", 1)
		pub.pub("/"+s.prefix, "yes", 1)
		if p := root.message(); string(p.Payload) != "yes" {
			s.Errorf("got %q to %q", p.Payload, p.Topic)
		}
		for {
			if p := c.message(); p.Topic == "/"+s.prefix {
				break
			} else if p.Topic[0] == '$' {
				s.Errorf("got %q", p.Topic)
			}
		}
	}},
	{says: "QoS 2 stays with its member", v5: "4.8.2-4 4.8.2-5", run: func(s *scene) {
		shared := "$share/g/" + s.topic("t")
		one, pub := s.connect("one", keep), s.connect("pub")
		one.sub(shared, 2)
		pub.pub(s.topic("t"), "sent", 2)
		p := one.message()
		pub.pub(s.topic("t"), "received", 2)
		q := one.message()
		one.ack(packet.PUBREC, q.PacketID)
		one.acked(packet.PUBREL, q.PacketID)
		two := s.connect("two")
		two.sub(shared, 2)
		one.drop()
		two.fence(pub)
		one = s.connect("one", resume)
		if id := one.anyAck(packet.PUBREL).PacketID; id != q.PacketID {
			s.Errorf("PUBREL %d, want %d", id, q.PacketID)
		}
		again := one.message()
		if s.line(again) != "t=sent q2 dup" || again.PacketID != p.PacketID {
			s.Errorf("got %q under %d, want it under %d", s.line(again), again.PacketID, p.PacketID)
		}
		// The session ends before the message is finished.
		one.leave(0, packet.Properties{}.AppendUint(packet.SessionExpiry, 0))
		two.fence(pub)
	}},
	{says: "QoS 1 goes to another when its member's session ends", v5: "§4.8.2", ours: true, run: func(s *scene) {
		shared := "$share/g/" + s.topic("t")
		one, pub := s.connect("one"), s.connect("pub")
		one.sub(shared, 1)
		for i := range 5 {
			pub.pub(s.topic("t"), fmt.Sprint(i), 1)
			one.message()
		}
		two := s.connect("two")
		two.sub(shared, 1)
		one.drop()
		var got []string
		for range 5 {
			p := two.message()
			got = append(got, string(p.Payload))
			two.finish(p)
		}
		if fmt.Sprint(got) != "[0 1 2 3 4]" {
			s.Errorf("got %v", got)
		}
	}},
	{says: "what a member rejects goes to nobody", v5: "4.8.2-6", run: func(s *scene) {
		shared := "$share/g/" + s.topic("t")
		one, pub := s.connect("one", keep), s.connect("pub")
		one.sub(shared, 2)
		pub.pub(s.topic("t"), "1", 1)
		pub.pub(s.topic("t"), "2", 2)
		p, q := one.message(), one.message()
		two := s.connect("two")
		two.sub(shared, 2)
		one.ack(packet.PUBACK, p.PacketID, packet.QuotaExceeded)
		one.ack(packet.PUBREC, q.PacketID, packet.QuotaExceeded)
		one.quiet()
		one.drop()
		two.fence(pub)
		one = s.connect("one", resume)
		one.quiet()
	}},
	{says: "a member that is away does not hold up the others", v5: "§4.8.2", ours: true, run: func(s *scene) {
		shared := "$share/g/" + s.topic("t")
		away, here, pub := s.connect("away", keep), s.connect("here"), s.connect("pub")
		away.sub(shared, 1)
		here.sub(shared, 1)
		away.leave(0)
		for i := range 20 {
			pub.pub(s.topic("t"), fmt.Sprint(i), 1)
			here.want(fmt.Sprintf("t=%d q1", i))
		}
	}},
	{says: "a group whose members are all away keeps its messages", v5: "§4.8.2", ours: true, run: func(s *scene) {
		shared := "$share/g/" + s.topic("t")
		one, two, pub := s.connect("one", keep), s.connect("two", keep), s.connect("pub")
		one.sub(shared, 1)
		two.sub(shared, 1)
		one.leave(0)
		two.leave(0)
		var want []string
		for i := range 20 {
			pub.pub(s.topic("t"), fmt.Sprint(i), 1)
			want = append(want, fmt.Sprint(i))
		}
		// Whichever comes back: nothing may wait for the other for ever.
		one = s.connect("one", resume)
		two = s.connect("two", resume)
		var got []string
		for deadline := time.Now().Add(patience); len(got) < len(want) && time.Now().Before(deadline); {
			for _, w := range []*wire{one, two} {
				for _, p := range s.drainAll(w) {
					got = append(got, string(p.Payload))
				}
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			s.Errorf("got %v", got)
		}
	}},
	{says: "3.1.1 has groups too", v311: "§4.8", ours: true, run: func(s *scene) {
		one, two, pub := s.connect("one"), s.connect("two"), s.connect("pub")
		one.sub("$share/g/"+s.topic("t"), 1)
		two.sub("$share/g/"+s.topic("t"), 1)
		for range 10 {
			pub.pub(s.topic("t"), "x", 1)
		}
		if a, b := len(s.drain(one)), len(s.drain(two)); a+b != 10 || a == 0 || b == 0 {
			s.Errorf("%d and %d messages of 10", a, b)
		}
	}},
}

// drain takes every message that comes before the answer to a ping.
func (s *scene) drain(w *wire) []string {
	s.Helper()
	var lines []string
	for _, p := range s.drainAll(w) {
		lines = append(lines, s.line(p))
	}
	return lines
}

func (s *scene) drainAll(w *wire) []packet.Publish {
	s.Helper()
	var got []packet.Publish
	// What waits on the disk does not come with the answer to a ping.
	const calm = 300 * time.Millisecond
	for last := time.Now(); ; {
		w.send(packet.AppendPingreq(nil))
		w.await(packet.PINGRESP)
		n := len(got)
		for len(w.stash) > 0 {
			p := w.message()
			got = append(got, p)
			w.finish(p)
		}
		if len(got) > n {
			last = time.Now()
		} else if time.Since(last) > calm {
			return got
		}
	}
}
