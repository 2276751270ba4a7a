package conformance

import (
	"fmt"
	"strconv"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// limitsOf is a scene on a broker of its own with these limits in its site file.
func (s *scene) limitsOf(limits string) *scene {
	s.Helper()
	return stage(s.T, s.v, own(s.T, &site{name: "limits", more: limits}))
}

var limitClauses = []clause{
	{says: "clients", v5: "3.2.2-8", v311: "3.2.2-4", ours: true, run: func(s *scene) {
		s = s.limitsOf("    clients: 2\n")
		one := s.connect("1", keep)
		s.connect("2")
		want := packet.QuotaExceeded
		if !s.five() {
			want = 3 // server unavailable, 3.1.1 §3.2.2.3
		}
		w := s.try(s.prefix + "3")
		if w.connack.Reason != want {
			s.Errorf("one too many: %v", w.connack.Reason)
		}
		w.gone()
		again := s.connect("1", resume) // is none more
		one.closed(packet.SessionTakenOver)
		again.quiet()
	}},
	{says: "clients of an address", v5: "§4.13.2", v311: "§4.8", ours: true, run: func(s *scene) {
		s = s.limitsOf("    clients_per_address: 2\n")
		one := s.connect("1")
		s.connect("2")
		w := s.dial()
		_ = w.write((&packet.Connect{Version: s.v, ClientID: "3", CleanStart: true}).Append(nil))
		w.gone()
		one.leave(0)
		for deadline := time.Now().Add(patience); ; {
			w := s.dial()
			_ = w.write((&packet.Connect{Version: s.v, ClientID: "3", CleanStart: true}).Append(nil))
			if _, err := w.read(patience); err == nil {
				break
			}
			if time.Now().After(deadline) {
				s.Fatal("there is no room for another")
			}
		}
	}},
	{says: "subscriptions of a client", v5: "3.9.3-2", v311: "3.9.3-2", ours: true, run: func(s *scene) {
		s = s.limitsOf("    subscriptions_per_client: 2\n")
		c := s.connect("c")
		bad := packet.QuotaExceeded
		if !s.five() {
			bad = packet.Unspecified
		}
		got := c.subscribe(nil, filter("1", 1), filter("2", 1), filter("3", 1), filter("1", 2))
		if want := []packet.Reason{1, 1, bad, 2}; fmt.Sprint(got) != fmt.Sprint(want) {
			s.Errorf("reasons %v, want %v", got, want)
		}
		c.unsub("1")
		c.sub("3", 1)
	}},
	{says: "levels of a topic", v5: "3.9.3-2 3.4.2-1", v311: "3.9.3-2", ours: true, run: func(s *scene) {
		s = s.limitsOf("    topic_levels: 4\n")
		c := s.connect("c")
		c.sub("1/2/3/#", 1)
		c.sub("$share/g/1/2/3/4", 1)
		bad := packet.TopicFilterInvalid
		if !s.five() {
			bad = packet.Unspecified
		}
		if r := c.subscribe(nil, filter("1/2/3/4/5", 1)); r[0] != bad {
			s.Errorf("SUBACK %v", r)
		}
		c.pub("1/2/3/4", "x", 1)
		if s.five() {
			for _, qos := range []byte{1, 2} {
				if r := c.pub("1/2/3/4/5", "x", qos); r != packet.TopicNameInvalid {
					s.Errorf("QoS %d: %v", qos, r)
				}
			}
		}
	}},
	{says: "retained messages", v5: "3.4.2-1 3.5.2-1", v311: "§3.3.1.3", ours: true, run: func(s *scene) {
		s = s.limitsOf("    retained_messages: 2\n")
		c := s.connect("c")
		c.pub("1", "x", 1, retained)
		c.pub("2", "x", 1, retained)
		c.pub("1", "again", 1, retained)
		if s.five() {
			for _, qos := range []byte{1, 2} {
				if r := c.pub("3", "x", qos, retained); r != packet.QuotaExceeded {
					s.Errorf("QoS %d: %v", qos, r)
				}
			}
		} else { // has no word for it: unacknowledged
			w := s.connect("w")
			w.start("3", "x", 1, retained)
			w.closed()
		}
		sub := s.connect("sub")
		sub.sub("+", 1)
		var got []string
		for range 2 {
			p := sub.message()
			got = append(got, p.Topic+string(p.Payload))
			sub.finish(p)
		}
		sub.quiet()
		if fmt.Sprint(got) != "[1again 2x]" && fmt.Sprint(got) != "[2x 1again]" {
			s.Errorf("got %v", got)
		}
		c.pub("1", "", 1, retained)
		c.pub("3", "x", 1, retained)
		sub.want("1= q1", "3=x q1")
	}},
	{says: "messages that wait: the oldest go", v5: "§4.1.1", v311: "§4.1", ours: true, run: func(s *scene) {
		s = s.limitsOf("    queued_messages: 10\n")
		c, pub := s.connect("c", keep), s.connect("pub")
		c.sub("t", 1)
		c.leave(0)
		for i := range 30 {
			pub.pub("t", fmt.Sprint(i), byte(1+i%2))
		}
		c = s.connect("c", resume)
		for i := 20; i < 30; i++ {
			c.want(fmt.Sprintf("t=%d q1", i))
		}
		c.quiet()
	}},
	{says: "bytes that wait: the oldest go", v5: "§4.1.1", v311: "§4.1", ours: true, run: func(s *scene) {
		b := newBroker(s.TempDir(), &site{name: "limits", queuedBytes: "100KiB"})
		s = stage(s.T, s.v, b)
		s.Cleanup(b.kill)
		c, pub := s.connect("c", keep), s.connect("pub")
		c.sub("t", 1)
		c.leave(0)
		for i := range 30 {
			pub.pub("t", fmt.Sprintf("%010000d", i), 1)
		}
		c = s.connect("c", resume)
		first, got := 30, 0
		for _, p := range s.drainAll(c) {
			n, err := strconv.Atoi(string(p.Payload))
			if err != nil || got > 0 && n != first+got {
				s.Fatalf("message %d after %d: %v", n, first+got-1, err)
			}
			first = min(first, n)
			got++
		}
		if got < 5 || got > 10 || first+got != 30 {
			s.Errorf("%d messages from number %d on; of 30 of 10,000 bytes each 100 KiB were to stay", got, first)
		}
	}},
	{says: "how long a session stays", v5: "4.1.0-2", v311: "§4.1", ours: true, run: func(s *scene) {
		b := newBroker(s.TempDir(), &site{name: "limits", sessionExpiry: 2})
		s.Cleanup(b.kill)
		s = stage(s.T, s.v, b)
		s.connect("c", keep).leave(0)
		if !s.connect("c", resume).connack.SessionPresent {
			s.Error("the session is gone at once")
		}
		s.connect("c", resume).leave(0)
		after(time.Now(), ms(4000))
		if s.connect("c", resume).connack.SessionPresent {
			s.Error("a session of 2 s is there after 4 s")
		}
	}},
	{says: "messages of a second: slower, not cut", v5: "§4.9", v311: "§4.3", ours: true, run: func(s *scene) {
		s = s.limitsOf("    messages_per_second: 50\n")
		c := s.connect("c")
		began := time.Now()
		for range 100 {
			c.start("t", "x", 1)
		}
		for id := uint16(1); id <= 100; id++ {
			c.acked(packet.PUBACK, id)
		}
		// A second's worth may come at once.
		if took := time.Since(began); took < ms(900) || took > ms(4000) {
			s.Errorf("100 messages at 50 a second took %v", took)
		}
	}},
}
