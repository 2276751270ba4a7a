package conformance

import (
	"fmt"
	"testing"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// What a client must not send, by what is wrong with it. Each ends the connection
// of its sender and nothing else [MQTT-4.13.1-1].
var malformed = []struct {
	what string
	five string // as raw reads it; "" if it is good in that version
	old  string
	want []packet.Reason
	lax  bool // Mosquitto 2.0.11 lets it pass
}{
	// Fixed headers, §2.1.
	{"type 0", "00 00", "00 00", []packet.Reason{packet.Malformed, packet.ProtocolError}, false},
	{"CONNACK", "20 [ 00 00 00 ]", "20 [ 00 00 ]", anyError, false},
	{"SUBACK", "90 [ 0001 00 00 ]", "90 [ 0001 00 ]", anyError, true},
	{"UNSUBACK", "b0 [ 0001 00 00 ]", "b0 [ 0001 ]", anyError, true},
	{"PINGRESP", "d0 00", "d0 00", anyError, true},
	{"AUTH in 3.1.1", "", "f0 00", anyError, false},
	{"AUTH with flags", "f1 00", "f1 00", anyError, false},
	{"PUBACK with flags", "42 [ 0001 ]", "42 [ 0001 ]", onlyMalformed, true},
	{"PUBREC with flags", "51 [ 0001 ]", "51 [ 0001 ]", onlyMalformed, true},
	{"PUBREL without flags", "60 [ 0001 ]", "60 [ 0001 ]", onlyMalformed, false},
	{"PUBREL with other flags", "63 [ 0001 ]", "63 [ 0001 ]", onlyMalformed, false},
	{"PUBCOMP with flags", "78 [ 0001 ]", "78 [ 0001 ]", onlyMalformed, true},
	{"PINGREQ with flags", "c1 00", "c1 00", onlyMalformed, true},
	{"PINGREQ with a body", "c0 01 00", "c0 01 00", onlyMalformed, true},
	{"CONNECT with flags", "11 [ 'MQTT' 05 02 003c 00 'c' ]", "11 [ 'MQTT' 04 02 003c 'c' ]", anyError, true},
	{"a length of five bytes", "30 80 80 80 80 01", "30 80 80 80 80 01", anyError, false},
	{"a length that is longer than need be", "c0 80 00", "", onlyMalformed, true},
	{"a length of four bytes that is none", "30 ff ff ff ff", "30 ff ff ff ff", anyError, true},

	// PUBLISH, §3.3.
	{"PUBLISH without anything", "30 00", "30 00", anyError, false},
	{"PUBLISH with half a topic", "30 [ 0005 61 ]", "30 [ 0005 61 ]", anyError, false},
	{"PUBLISH with half a length", "30 [ 00 ]", "30 [ 00 ]", anyError, false},
	{"PUBLISH without an identifier", "32 [ 't' ]", "32 [ 't' ]", anyError, false},
	{"PUBLISH with half an identifier", "32 [ 't' 00 ]", "32 [ 't' 00 ]", anyError, false},
	{"PUBLISH without a length of properties", "30 [ 't' ]", "", anyError, false},
	{"PUBLISH with properties longer than the packet", "30 [ 't' 05 01 ]", "", anyError, false},
	{"PUBLISH with half a property", "30 [ 't' [ 02 0000 ] ]", "", anyError, false},
	{"PUBLISH with a property cut by the length", "30 [ 't' 01 0100 ]", "", anyError, false},
	{"PUBLISH with a property that does not exist", "30 [ 't' [ 04 00 ] ]", "", anyError, false},
	{"PUBLISH with a length of properties of five bytes", "30 [ 't' 8080808001 ]", "", anyError, false},
	{"PUBLISH with QoS 3", "36 [ 't' 0001 00 ]", "36 [ 't' 0001 ]", onlyMalformed, false},
	{"PUBLISH with a subscription identifier of 0", "30 [ 't' [ 0b 00 ] ]", "", anyError, true},

	// Acknowledgements, §3.4 to §3.7.
	{"PUBACK without an identifier", "40 00", "40 00", anyError, false},
	{"PUBACK with half an identifier", "40 [ 00 ]", "40 [ 00 ]", anyError, false},
	{"PUBACK for 0", "40 [ 0000 ]", "40 [ 0000 ]", anyError, false},
	{"PUBACK with more than it has", "", "40 [ 0001 00 ]", anyError, true},
	{"PUBACK with a reason that is none", "40 [ 0001 05 ]", "", anyError, true},
	{"PUBACK with a reason of SUBACK", "40 [ 0001 8f ]", "", anyError, true},
	{"PUBACK with a reason that does not exist", "40 [ 0001 f0 ]", "", anyError, true},
	{"PUBACK with a property of others", "40 [ 0001 00 [ 11 00000001 ] ]", "", anyError, false},
	{"PUBACK with two reasons in words", "40 [ 0001 00 [ 1f 'a' 1f 'b' ] ]", "", anyError, false},
	{"PUBACK with properties longer than the packet", "40 [ 0001 00 05 ]", "", anyError, false},
	{"PUBACK with something behind its properties", "40 [ 0001 00 00 ff ]", "", anyError, true},
	{"PUBREC with a reason that is none", "50 [ 0001 92 ]", "", anyError, true},
	{"PUBREC without an identifier", "50 00", "50 00", anyError, false},
	{"PUBREL with a reason that is none", "62 [ 0001 80 ]", "", anyError, true},
	{"PUBREL without an identifier", "62 00", "62 00", anyError, false},
	{"PUBREL for 0", "62 [ 0000 ]", "62 [ 0000 ]", anyError, false},
	{"PUBCOMP with a reason that is none", "70 [ 0001 80 ]", "", anyError, true},
	{"PUBCOMP without an identifier", "70 00", "70 00", anyError, false},

	// SUBSCRIBE and UNSUBSCRIBE, §3.8 and §3.10.
	{"SUBSCRIBE without anything", "82 00", "82 00", anyError, false},
	{"SUBSCRIBE without properties", "82 [ 0001 ]", "", anyError, false},
	{"SUBSCRIBE without options", "82 [ 0001 00 'a' ]", "82 [ 0001 'a' ]", anyError, false},
	{"SUBSCRIBE with half a second filter", "82 [ 0001 00 'a' 00 0005 61 ]", "82 [ 0001 'a' 00 0005 61 ]", anyError, false},
	{"SUBSCRIBE with half a length", "82 [ 0001 00 'a' 00 00 ]", "82 [ 0001 'a' 00 00 ]", anyError, false},
	{"the SUBSCRIBE of seven bytes", "82 05 30 30 00 00 00", "82 05 30 30 00 00 00", anyError, false},
	{"UNSUBSCRIBE without anything", "a2 00", "a2 00", anyError, false},
	{"UNSUBSCRIBE with half a filter", "a2 [ 0001 00 0005 61 ]", "a2 [ 0001 0005 61 ]", anyError, false},

	// DISCONNECT and AUTH, §3.14 and §3.15.
	{"DISCONNECT with a body", "", "e0 [ 00 ]", anyError, false},
	{"DISCONNECT with a reason that is none", "e0 [ 01 ]", "", anyError, true},
	{"DISCONNECT with a reason that does not exist", "e0 [ f0 ]", "", anyError, true},
	{"DISCONNECT with a property of others", "e0 [ 00 [ 21 0001 ] ]", "", anyError, false},
	{"DISCONNECT with a property twice", "e0 [ 00 [ 1f 'a' 1f 'b' ] ]", "", anyError, false},
	{"DISCONNECT with half a property", "e0 [ 00 [ 11 00 ] ]", "", anyError, false},
	{"AUTH out of turn", "f0 [ 18 [ 15 'm' ] ]", "", []packet.Reason{packet.ProtocolError}, false},
	{"AUTH with a reason that is none", "f0 [ 01 [ 15 'm' ] ]", "", anyError, false},
}

var (
	anyError      = []packet.Reason{packet.Malformed, packet.ProtocolError}
	onlyMalformed = []packet.Reason{packet.Malformed}
)

// TestMalformed sends what must not be sent, and checks that whoever did it is
// gone, has a will published, and that others notice nothing.
func TestMalformed(t *testing.T) {
	t.Parallel()
	for _, v := range []packet.Version{packet.V5, packet.V311} {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			bystander := stage(t, v, plain.shared).connect("bystander")
			t.Cleanup(bystander.quiet) // when all of them are done
			for i, m := range malformed {
				text := m.five
				if v == packet.V311 {
					text = m.old
				}
				if text == "" {
					continue
				}
				t.Run(m.what, func(t *testing.T) {
					t.Parallel()
					mayDiffer(t, m.lax)
					s := stage(t, v, plain.shared)
					sub := s.connect("sub")
					sub.sub(s.topic("w"), 0)
					c := s.connect(fmt.Sprint(i), will(s.topic("w"), "gone", 0))
					c.send(raw(text))
					c.closed(m.want...)
					sub.want("w=gone q0")
				})
			}
		})
	}
}

// TestGarbage sends bytes of no sense, before and after CONNECT. The broker
// stays, and lets others in.
func TestGarbage(t *testing.T) {
	t.Parallel()
	for _, v := range []packet.Version{packet.V5, packet.V311} {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			s := stage(t, v, plain.shared)
			bystander := s.connect("bystander")
			seed := uint32(1)
			for round := range 200 {
				garbage := make([]byte, 1+round%60)
				for i := range garbage {
					seed = seed*1664525 + 1013904223 // Numerical Recipes' generator: the same in every run
					garbage[i] = byte(seed >> 24)
				}
				var w *wire
				if round%2 == 0 {
					w = s.dial()
				} else {
					w = s.connect("garbage")
				}
				_ = w.write(garbage)
				w.drop()
			}
			bystander.quiet()
			s.connect("after").quiet()
		})
	}
}
