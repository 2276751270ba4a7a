package conformance

import (
	"fmt"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// A survivor is a state that the broker is killed in: before makes it, and what
// before returns looks at what has become of it. Sessions do not begin clean, since
// Mosquitto 2.0.11 saves no others.
type survivor struct {
	name    string
	version packet.Version // 0 is both
	ours    bool
	before  func(*scene) func()
}

var survivors = []survivor{
	{name: "acknowledged messages for who is away", before: func(s *scene) func() {
		away, pub := s.connect("away", resume), s.connect("pub")
		away.sub(s.topic("#"), 2)
		away.leave(0)
		for i := range 30 {
			pub.pub(s.topic("t"), fmt.Sprint(i), byte(1+i%2))
		}
		return func() {
			away := s.back("away")
			for i := range 30 {
				away.want(fmt.Sprintf("t=%d q%d", i, 1+i%2))
			}
			away.quiet()
		}
	}},
	{name: "QoS 1 without PUBACK to its publisher", before: func(s *scene) func() {
		sub, pub := s.connect("sub", resume), s.connect("pub", resume)
		sub.sub(s.topic("t"), 1)
		sub.leave(0)
		id := pub.start(s.topic("t"), "x", 1)
		return func() {
			pub := s.back("pub")
			pub.start(s.topic("t"), "x", 1, dup)
			pub.acked(packet.PUBACK, id)
			sub := s.back("sub")
			sub.want("t=x q1")
			for _, line := range s.drain(sub) { // at least once
				if line != "t=x q1" {
					s.Errorf("got %q", line)
				}
			}
		}
	}},
	{name: "QoS 1 without PUBACK from its subscriber", before: func(s *scene) func() {
		sub, pub := s.connect("sub", resume), s.connect("pub")
		sub.sub(s.topic("t"), 1)
		for i := range 5 {
			pub.pub(s.topic("t"), fmt.Sprint(i), 1)
		}
		for range 3 {
			sub.message()
		}
		return func() {
			sub := s.back("sub")
			for i := range 5 {
				p := sub.message()
				if string(p.Payload) != fmt.Sprint(i) {
					s.Errorf("got %q, want message %d", s.line(p), i)
				}
				sub.finish(p)
			}
			sub.quiet()
		}
	}},
	{name: "QoS 1 with PUBACK from its subscriber", ours: true, before: func(s *scene) func() {
		sub, pub := s.connect("sub", resume), s.connect("pub")
		sub.sub(s.topic("t"), 1)
		for i := range 5 {
			pub.pub(s.topic("t"), fmt.Sprint(i), 1)
			sub.want(fmt.Sprintf("t=%d q1", i))
		}
		sub.quiet()
		return func() {
			// Acknowledgements of QoS 1 may be forgotten, order may not.
			sub := s.back("sub")
			last := -1
			for _, p := range s.drainAll(sub) {
				n, err := numberOf(p.Payload)
				if err != nil || n <= last {
					s.Errorf("got %q after %d", s.line(p), last)
				}
				last = n
			}
		}
	}},

	// From a publisher, QoS 2.
	{name: "PUBLISH was sent, no PUBREC has come", before: func(s *scene) func() {
		sub, pub := s.connect("sub", resume), s.connect("pub", resume)
		sub.sub(s.topic("t"), 2)
		sub.leave(0)
		id := pub.start(s.topic("t"), "once", 2)
		return func() {
			pub := s.back("pub")
			pub.start(s.topic("t"), "once", 2, dup)
			pub.acked(packet.PUBREC, id)
			pub.ack(packet.PUBREL, id)
			pub.acked(packet.PUBCOMP, id)
			s.once("sub")
		}
	}},
	{name: "PUBREC was sent, and is lost", before: func(s *scene) func() {
		sub, pub := s.connect("sub", resume), s.connect("pub", resume)
		sub.sub(s.topic("t"), 2)
		sub.leave(0)
		id := pub.start(s.topic("t"), "once", 2)
		pub.acked(packet.PUBREC, id)
		return func() {
			for range 2 {
				pub := s.back("pub")
				pub.start(s.topic("t"), "once", 2, dup)
				pub.acked(packet.PUBREC, id)
			}
			pub := s.back("pub")
			pub.ack(packet.PUBREL, id)
			if r := pub.acked(packet.PUBCOMP, id); r.Failed() {
				s.Errorf("PUBCOMP %v", r)
			}
			s.once("sub")
		}
	}},
	{name: "PUBREC has come, no PUBREL was sent", before: func(s *scene) func() {
		sub, pub := s.connect("sub", resume), s.connect("pub", resume)
		sub.sub(s.topic("t"), 2)
		sub.leave(0)
		id := pub.start(s.topic("t"), "once", 2)
		pub.acked(packet.PUBREC, id)
		return func() {
			pub := s.back("pub")
			pub.ack(packet.PUBREL, id)
			if r := pub.acked(packet.PUBCOMP, id); r.Failed() {
				s.Errorf("PUBCOMP %v", r)
			}
			s.once("sub")
		}
	}},
	{name: "PUBREL was sent, no PUBCOMP has come", before: func(s *scene) func() {
		sub, pub := s.connect("sub", resume), s.connect("pub", resume)
		sub.sub(s.topic("t"), 2)
		sub.leave(0)
		id := pub.start(s.topic("t"), "once", 2)
		pub.acked(packet.PUBREC, id)
		pub.ack(packet.PUBREL, id)
		return func() {
			pub := s.back("pub")
			pub.ack(packet.PUBREL, id)
			pub.acked(packet.PUBCOMP, id) // found or not, both are the end of it
			s.once("sub")
		}
	}},
	{name: "PUBCOMP has come, the identifier is used again", before: func(s *scene) func() {
		sub, pub := s.connect("sub", resume), s.connect("pub", resume)
		sub.sub(s.topic("t"), 2)
		sub.leave(0)
		pub.pub(s.topic("t"), "first", 2)
		return func() {
			pub := s.back("pub")
			pub.pub(s.topic("t"), "second", 2)
			sub := s.back("sub")
			sub.want("t=first q2", "t=second q2")
			sub.quiet()
		}
	}},

	// To a subscriber, QoS 2.
	{name: "PUBLISH has come, no PUBREC was sent", before: func(s *scene) func() {
		sub, pub := s.connect("sub", resume), s.connect("pub")
		sub.sub(s.topic("t"), 2)
		pub.pub(s.topic("t"), "once", 2)
		id := sub.message().PacketID
		return func() {
			sub := s.back("sub")
			p := sub.message()
			if s.line(p) != "t=once q2 dup" || p.PacketID != id {
				s.Errorf("got %q under %d, want it under %d", s.line(p), p.PacketID, id)
			}
			sub.finish(p)
			sub.quiet()
		}
	}},
	{name: "PUBREC was sent, no PUBREL has come", before: func(s *scene) func() {
		sub, pub := s.connect("sub", resume), s.connect("pub")
		sub.sub(s.topic("t"), 2)
		pub.pub(s.topic("t"), "once", 2)
		id := sub.message().PacketID
		sub.ack(packet.PUBREC, id)
		return func() {
			sub := s.back("sub")
			f := sub.receive() // PUBLISH if the PUBREC was lost, and then marked and under the same identifier
			if f.kind() == packet.PUBLISH {
				var p packet.Publish
				sub.check(p.Decode(s.v, f.first, f.body))
				if s.line(p) != "t=once q2 dup" || p.PacketID != id {
					s.Errorf("got %q under %d, want it under %d", s.line(p), p.PacketID, id)
				}
				sub.ack(packet.PUBREC, id)
				f = sub.receive()
			}
			if f.kind() != packet.PUBREL || f.body[0] != byte(id>>8) || f.body[1] != byte(id) {
				s.Errorf("got %v, want PUBREL %d", f, id)
			}
			sub.ack(packet.PUBCOMP, id)
			sub.quiet()
		}
	}},
	{name: "PUBREL has come, no PUBCOMP was sent", before: func(s *scene) func() {
		sub, pub := s.connect("sub", resume), s.connect("pub")
		sub.sub(s.topic("t"), 2)
		pub.pub(s.topic("t"), "once", 2)
		id := sub.message().PacketID
		sub.ack(packet.PUBREC, id)
		sub.acked(packet.PUBREL, id)
		return func() {
			sub := s.back("sub")
			if f := sub.receive(); f.kind() != packet.PUBREL || f.body[0] != byte(id>>8) || f.body[1] != byte(id) {
				s.Errorf("got %v, want PUBREL %d", f, id)
			}
			sub.ack(packet.PUBCOMP, id)
			sub.quiet()
		}
	}},
	{name: "PUBCOMP was sent", before: func(s *scene) func() {
		sub, pub := s.connect("sub", resume), s.connect("pub")
		sub.sub(s.topic("t"), 2)
		pub.pub(s.topic("t"), "once", 2)
		p := sub.message()
		sub.finish(p)
		sub.quiet()
		return func() {
			sub := s.back("sub")
			sub.send(packet.AppendPingreq(nil))
			sub.await(packet.PINGRESP)
			for _, f := range sub.stash { // PUBREL, if PUBCOMP was lost; never the message
				if f.kind() != packet.PUBREL || f.body[0] != byte(p.PacketID>>8) || f.body[1] != byte(p.PacketID) {
					s.Errorf("got %v", f)
				}
			}
		}
	}},

	// Everything else that is to stay.
	{name: "retained messages", before: func(s *scene) func() {
		pub := s.connect("pub")
		for qos := range byte(3) {
			pub.pub(s.topic(fmt.Sprint(qos)), "old", qos, retained)
			pub.pub(s.topic(fmt.Sprint(qos)), "new", qos, retained)
		}
		pub.pub(s.topic("removed"), "x", 1, retained)
		pub.pub(s.topic("removed"), "", 1, retained)
		return func() {
			sub := s.connect("sub")
			sub.sub(s.topic("+"), 2)
			got := s.drain(sub)
			// One of QoS 0 may be lost, §3.3.1.3.
			for _, line := range []string{"1=new q1 r", "2=new q2 r"} {
				found := false
				for _, g := range got {
					found = found || g == line
				}
				if !found {
					s.Errorf("%q is missing in %q", line, got)
				}
			}
			for _, g := range got {
				if g != "0=new q0 r" && g != "0=old q0 r" && g != "1=new q1 r" && g != "2=new q2 r" {
					s.Errorf("got %q", g)
				}
			}
		}
	}},
	{name: "properties and what is left of a lifetime", version: packet.V5, before: func(s *scene) func() {
		away, pub := s.connect("away", resume), s.connect("pub")
		away.sub(s.topic("#"), 1, 77)
		away.leave(0)
		props := packet.Properties{}.AppendUint(packet.PayloadFormat, 1).AppendText(packet.ContentType, "text").AppendText(packet.ResponseTopic, "re").
			AppendText(packet.CorrelationData, "\x00\xff").AppendUser("b", "1").AppendUser("a", "2")
		sent := time.Now()
		pub.pub(s.topic("short"), "x", 1, expires(2), retained)
		pub.pub(s.topic("long"), "x", 1, expires(60), with(props))
		pub.pub(s.topic("kept"), "x", 1, expires(60), with(props), retained)
		return func() {
			after(sent, ms(3200))
			away, late := s.back("away"), s.connect("late")
			late.sub(s.topic("+"), 1)
			for _, p := range []packet.Publish{away.message(), away.message(), late.message()} {
				waited := uint32(time.Since(sent) / time.Second)
				if p.Topic == s.topic("short") || !p.HasExpiry || p.Expiry > 57 || p.Expiry+waited+2 < 60 {
					s.Errorf("after %d s: %q, %d s are left", waited, s.line(p), p.Expiry)
				}
				s.sameProperties(p.Props, props)
				if !p.Retain && fmt.Sprint(p.SubscriptionIDs) != "[77]" {
					s.Errorf("subscription identifiers %v", p.SubscriptionIDs)
				}
			}
			late.quiet()
		}
	}},
	{name: "subscriptions and their options", version: packet.V5, before: func(s *scene) func() {
		c := s.connect("c", resume)
		c.sub(s.topic("id/#"), 2, 5)
		c.subTo(packet.Subscription{Filter: s.topic("rap"), QoS: 1, RetainAsPublished: true})
		c.subTo(packet.Subscription{Filter: s.topic("mine"), QoS: 1, NoLocal: true})
		c.sub(s.topic("gone"), 1)
		c.unsub(s.topic("gone"))
		return func() {
			c, pub := s.back("c"), s.connect("pub")
			pub.pub(s.topic("id/x"), "x", 2)
			pub.pub(s.topic("rap"), "x", 1, retained)
			pub.pub(s.topic("gone"), "x", 1)
			c.pub(s.topic("mine"), "not to me", 1)
			pub.pub(s.topic("mine"), "to you", 1)
			c.wantAny("id/x=x q2 #5", "rap=x q1 r", "mine=to you q1")
			c.quiet()
		}
	}},
	{name: "subscriptions", before: func(s *scene) func() {
		c := s.connect("c", resume)
		c.sub(s.topic("a/+"), 2)
		c.sub(s.topic("b"), 0)
		c.sub(s.topic("gone"), 1)
		c.unsub(s.topic("gone"))
		return func() {
			c, pub := s.back("c"), s.connect("pub")
			for _, name := range []string{"a/x", "b", "gone"} {
				pub.pub(s.topic(name), "x", 2)
			}
			c.wantAny("a/x=x q2", "b=x q0") // the one from the disk, the other not
			c.quiet()
		}
	}},
	{name: "sessions that were to end", before: func(s *scene) func() {
		s.connect("clean").sub(s.topic("t"), 1)
		s.connect("left", resume).leave(0)
		s.connect("left").leave(0)
		if s.five() {
			s.connect("ended", resume).leave(0, packet.Properties{}.AppendUint(packet.SessionExpiry, 0))
		}
		return func() {
			for _, id := range []string{"clean", "left", "ended"} {
				if s.connect(id, resume).connack.SessionPresent {
					s.Errorf("the session %q is still there", id)
				}
			}
		}
	}},
	{name: "a session that began clean", ours: true, version: packet.V5, before: func(s *scene) func() {
		c := s.connect("c", keep)
		c.sub(s.topic("t"), 1)
		s.connect("pub").pub(s.topic("t"), "x", 1)
		c.message()
		return func() { s.back("c").message() }
	}},
	{name: "a session's time goes on", version: packet.V5, before: func(s *scene) func() {
		s.connect("short", dirty, number(packet.SessionExpiry, 2)).leave(0)
		s.connect("cut", dirty, number(packet.SessionExpiry, 2)).sub(s.topic("t"), 1)
		s.connect("long", dirty, number(packet.SessionExpiry, 600)).leave(0)
		return func() {
			restarted := time.Now() // later than the end of the connection, at any rate
			after(restarted, ms(3500))
			for id, want := range map[string]bool{"short": false, "cut": false, "long": true} {
				if got := s.connect(id, dirty).connack.SessionPresent; got != want {
					s.Errorf("the session %q: present %v, want %v", id, got, want)
				}
			}
		}
	}},
	{name: "wills", ours: true, before: func(s *scene) func() {
		away := s.connect("away", resume)
		away.sub(s.topic("#"), 2)
		away.leave(0)
		for _, qos := range []byte{1, 2} {
			s.connect(fmt.Sprint("w", qos), will(s.topic(fmt.Sprint(qos)), "gone", qos))
		}
		s.connect("k", resume, will(s.topic("k"), "gone", 1), retainedWill)
		s.connect("proper", will(s.topic("proper"), "gone", 1)).leave(0)
		s.connect("cut", will(s.topic("cut"), "gone", 1)).drop()
		return func() {
			s.awaitLines("away", "1=gone q1", "2=gone q2", "k=gone q1", "cut=gone q1")
			late := s.connect("late")
			late.sub(s.topic("+"), 1)
			late.want("k=gone q1 r")
			late.quiet()
		}
	}},
	{name: "delayed wills", ours: true, version: packet.V5, before: func(s *scene) func() {
		away := s.connect("away", resume)
		away.sub(s.topic("#"), 1)
		away.leave(0)
		s.connect("back", resume, will(s.topic("back"), "gone", 1, delay(5)))
		s.connect("due", resume, will(s.topic("due"), "gone", 1, delay(2)))
		s.connect("ended", will(s.topic("ended"), "gone", 1, delay(600)))
		s.connect("cut", resume, will(s.topic("cut"), "gone", 1, delay(2))).drop()
		return func() {
			restarted := time.Now()
			s.back("back")
			after(restarted, ms(5500)) // longer than the delay of the one that is back
			s.awaitLines("away", "due=gone q1", "ended=gone q1", "cut=gone q1")
		}
	}},
	{name: "a group whose members are away", ours: true, before: func(s *scene) func() {
		for _, id := range []string{"one", "two"} {
			c := s.connect(id, resume)
			c.sub("$share/g/"+s.topic("t"), 1)
			c.leave(0)
		}
		pub := s.connect("pub")
		for i := range 10 {
			pub.pub(s.topic("t"), fmt.Sprint(i), 1)
		}
		return func() {
			got := map[string]int{}
			one, two := s.back("one"), s.back("two")
			for deadline := time.Now().Add(patience); len(got) < 10 && time.Now().Before(deadline); {
				for _, w := range []*wire{one, two} {
					for _, p := range s.drainAll(w) {
						got[string(p.Payload)]++
					}
				}
			}
			for i := range 10 {
				if got[fmt.Sprint(i)] != 1 {
					s.Errorf("message %d came %d times", i, got[fmt.Sprint(i)])
				}
			}
		}
	}},
}

// back reconnects a client whose session has to be there.
func (s *scene) back(id string) *wire {
	s.Helper()
	w := s.connect(id, resume)
	if !w.connack.SessionPresent {
		s.Errorf("the session of %q is gone", id)
	}
	return w
}

// once checks that its session holds the message "once", one time.
func (s *scene) once(id string) {
	s.Helper()
	w := s.back(id)
	w.want("t=once q2")
	w.quiet()
}

// awaitLines checks that a session gets these messages, in any order, and no other
// but one of QoS 0.
func (s *scene) awaitLines(id string, lines ...string) {
	s.Helper()
	w := s.back(id)
	w.wantAny(lines...)
	for _, line := range s.drain(w) {
		if line != "0=gone q0" {
			s.Errorf("got %q", line)
		}
	}
}

// TestKillInStates kills the broker once while clients are in every state that
// it has to remember, and starts it again.
func TestKillInStates(t *testing.T) {
	t.Parallel()
	b := own(t, plain)
	type staged struct {
		name  string
		ours  bool
		scene *scene
		after func()
	}
	var all []staged
	for _, v := range []packet.Version{packet.V5, packet.V311} {
		for _, s := range survivors {
			if s.version == 0 || s.version == v {
				scene := stage(t, v, b)
				all = append(all, staged{s.name + "/" + v.String(), s.ours, scene, s.before(scene)})
			}
		}
	}
	b.crash()
	b.start(t)
	for _, one := range all {
		t.Run(one.name, func(t *testing.T) {
			t.Parallel()
			mayDiffer(t, one.ours)
			one.scene.T = t
			one.after()
		})
	}
}

// crash kills the broker. One that writes to its disk only now and then is
// stopped, which shows at least that the tests are right.
func (b *broker) crash() {
	if *peer == "fieldferry" {
		b.kill()
	} else {
		b.stop()
	}
}
