package packet

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// equal ignores what is not on the wire: whether an empty slice is nil.
var equal = []cmp.Option{cmpopts.EquateEmpty(), cmp.AllowUnexported(connect{}, connack{}, publish{}, subscribe{}, unsubscribe{}, ack{}, suback{}, disconnect{}, ping{})}

// split takes one packet from raw, as it must be whole.
func split(t interface {
	Helper()
	Fatalf(string, ...any)
}, raw []byte, v Version) (byte, []byte) {
	t.Helper()
	r := NewReader(bytes.NewReader(raw), new(Blocks), MaxLength+5)
	r.SetVersion(v)
	first, body, err := r.Next()
	if err != nil {
		t.Fatalf("% x: %v", raw, err)
	}
	if r.Buffered() {
		t.Fatalf("% x: there is more than one packet", raw)
	}
	return first, body
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Packets and their bytes, both ways.
func TestGolden(t *testing.T) {
	user := Properties{}.AppendUser("a", "b")
	for _, c := range []struct {
		name string
		v    Version
		p    anyPacket
		hex  string
	}{
		{"connect", V311, &connect{Connect{Version: V311, ClientID: "c", CleanStart: true, KeepAlive: 60}},
			"10 0d 0004 4d515454 04 02 003c 0001 63"},
		{"connect with all", V311, &connect{Connect{Version: V311, ClientID: "c", KeepAlive: 1, HasUsername: true, HasPassword: true, Username: "u", Password: []byte("p"),
			Will: &Will{Topic: "w", Payload: []byte("x"), QoS: 1, Retain: true}}},
			"10 19 0004 4d515454 04 ec 0001 0001 63 0001 77 0001 78 0001 75 0001 70"},
		{"connect 5", V5, &connect{Connect{Version: V5, KeepAlive: 10, Props: Properties{}.AppendUint(SessionExpiry, 10).AppendUint(ReceiveMaximum, 5),
			Will: &Will{Topic: "w", QoS: 2, Props: Properties{}.AppendUint(WillDelay, 2).AppendText(ContentType, "t")}, HasPassword: true, Password: []byte("p")}},
			"10 27 0004 4d515454 05 54 000a 08 11 0000000a 21 0005 0000 09 18 00000002 03 0001 74 0001 77 0000 0001 70"},
		{"connack", V311, &connack{Connack{Reason: 5}}, "20 02 00 05"},
		{"connack 5", V5, &connack{Connack{SessionPresent: true, Props: Properties{}.AppendUint(MaximumQoS, 1)}}, "20 05 01 00 02 24 01"},
		{"publish", V311, &publish{Publish{Topic: "a/b", Payload: []byte("hi")}}, "30 07 0003 612f62 6869"},
		{"publish QoS 1", V311, &publish{Publish{Topic: "a", PacketID: 258, QoS: 1, Dup: true, Retain: true}}, "3b 05 0001 61 0102"},
		{"publish 5", V5, &publish{Publish{Topic: "a", Payload: []byte("x"), PacketID: 10, QoS: 2}}, "34 07 0001 61 000a 00 78"},
		{"publish 5 with all", V5, &publish{Publish{Alias: 3, HasExpiry: true, Expiry: 60, SubscriptionIDs: []uint32{1, 300}, Props: Properties{}.AppendUint(PayloadFormat, 1).AppendUser("a", "b")}},
			"30 19 0000 16 02 0000003c 23 0003 0b 01 0b ac02 01 01 26 0001 61 0001 62"},
		{"puback", V311, &ack{Ack{PacketID: 1}, PUBACK}, "40 02 0001"},
		{"puback 5", V5, &ack{Ack{PacketID: 1}, PUBACK}, "40 02 0001"},
		{"puback 5 refused", V5, &ack{Ack{PacketID: 1, Reason: QuotaExceeded}, PUBACK}, "40 03 0001 97"},
		{"pubrec 5 with all", V5, &ack{Ack{PacketID: 1, Reason: NotAuthorized, Props: user}, PUBREC}, "50 0b 0001 87 07 26 0001 61 0001 62"},
		{"pubrel", V311, &ack{Ack{PacketID: 65535}, PUBREL}, "62 02 ffff"},
		{"pubcomp 5", V5, &ack{Ack{PacketID: 7, Reason: PacketIDNotFound}, PUBCOMP}, "70 03 0007 92"},
		{"subscribe", V311, &subscribe{Subscribe{PacketID: 10, Subscriptions: []Subscription{{Filter: "a/+", QoS: 1}, {Filter: "#", QoS: 2}}}},
			"82 0c 000a 0003 612f2b 01 0001 23 02"},
		{"subscribe 5", V5, &subscribe{Subscribe{PacketID: 10, Props: Properties{}.AppendUint(SubscriptionID, 128),
			Subscriptions: []Subscription{{Filter: "#", QoS: 1, NoLocal: true, RetainAsPublished: true, RetainHandling: 2}}}},
			"82 0a 000a 03 0b 8001 0001 23 2d"},
		{"suback", V311, &suback{Suback{PacketID: 10, Reasons: []Reason{0, 1, 2, 0x80}}, SUBACK}, "90 06 000a 00010280"},
		{"suback 5", V5, &suback{Suback{PacketID: 10, Reasons: []Reason{0x8f}}, SUBACK}, "90 04 000a 00 8f"},
		{"unsubscribe", V311, &unsubscribe{Unsubscribe{PacketID: 10, Filters: []string{"a", "b"}}}, "a2 08 000a 0001 61 0001 62"},
		{"unsubscribe 5", V5, &unsubscribe{Unsubscribe{PacketID: 10, Filters: []string{"a"}}}, "a2 06 000a 00 0001 61"},
		{"unsuback", V311, &suback{Suback{PacketID: 10}, UNSUBACK}, "b0 02 000a"},
		{"unsuback 5", V5, &suback{Suback{PacketID: 10, Reasons: []Reason{0, 0x11}}, UNSUBACK}, "b0 05 000a 00 0011"},
		{"pingreq", V5, &ping{PINGREQ}, "c0 00"},
		{"pingresp", V5, &ping{PINGRESP}, "d0 00"},
		{"disconnect", V311, &disconnect{t: DISCONNECT}, "e0 00"},
		{"disconnect 5", V5, &disconnect{Disconnect{Reason: DisconnectWithWill}, DISCONNECT}, "e0 01 04"},
		{"disconnect 5 with all", V5, &disconnect{Disconnect{Props: Properties{}.AppendUint(SessionExpiry, 0)}, DISCONNECT}, "e0 07 00 05 11 00000000"},
		{"auth", V5, &disconnect{Disconnect{Reason: ContinueAuthentication, Props: Properties{}.AppendText(AuthMethod, "m")}, AUTH}, "f0 06 18 04 15 0001 6d"},
	} {
		want := unhex(t, c.hex)
		if got := c.p.append([]byte("kept"), c.v); !bytes.Equal(got[4:], want) {
			t.Errorf("%s: encoded to\n% x, want\n% x", c.name, got[4:], want)
		}
		first, body := split(t, want, c.v)
		got := ofType(TypeOf(first))
		if err := got.decode(c.v, first, body); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if d := cmp.Diff(c.p, got, equal...); d != "" {
			t.Errorf("%s: decoded to something else (-want +got):\n%s", c.name, d)
		}
	}
}

// What the standards forbid, and the reason code they have for it.
func TestRefused(t *testing.T) {
	const connect311, connect5 = "0004 4d515454 04", "0004 4d515454 05"
	for _, c := range []struct {
		name string
		v    Version
		hex  string // of the first byte and the body
		want Reason
	}{
		{"connect, empty", V5, "10", Malformed},
		{"connect, other protocol", V5, "10 0004 4d515458 05", UnsupportedVersion},
		{"connect, 3.1", V5, "10 0006 4d5149736470 03 02 003c 0001 63", UnsupportedVersion},
		{"connect, level 6", V5, "10 0004 4d515454 06 02 003c 0001 63", UnsupportedVersion},
		{"connect, level of a bridge", V5, "10 0004 4d515454 84 02 003c 0001 63", UnsupportedVersion},
		{"connect, reserved flag", V311, "10" + connect311 + "03 003c 0001 63", Malformed},
		{"connect, will QoS without will", V311, "10" + connect311 + "0a 003c 0001 63", Malformed},
		{"connect, will retain without will", V311, "10" + connect311 + "22 003c 0001 63", Malformed},
		{"connect, will QoS 3", V311, "10" + connect311 + "1e 003c 0001 63 0001 77 0000", Malformed},
		{"connect, password alone in 3.1.1", V311, "10" + connect311 + "42 003c 0001 63 0001 70", Malformed},
		{"connect, missing will", V311, "10" + connect311 + "06 003c 0001 63", Malformed},
		{"connect, too long", V311, "10" + connect311 + "02 003c 0001 63 00", Malformed},
		{"connect, client id with null", V311, "10" + connect311 + "02 003c 0001 00", Malformed},
		{"connect, receive maximum 0", V5, "10" + connect5 + "02 003c 03 210000 0001 63", ProtocolError},
		{"connect, receive maximum twice", V5, "10" + connect5 + "02 003c 06 210001 210001 0001 63", ProtocolError},
		{"connect, maximum packet size 0", V5, "10" + connect5 + "02 003c 05 2700000000 0001 63", ProtocolError},
		{"connect, problem information 2", V5, "10" + connect5 + "02 003c 02 1702 0001 63", ProtocolError},
		{"connect, property of a publish", V5, "10" + connect5 + "02 003c 03 230001 0001 63", Malformed},
		{"connect, will delay outside the will", V5, "10" + connect5 + "02 003c 05 1800000000 0001 63", Malformed},
		{"connect, property that is none", V5, "10" + connect5 + "02 003c 02 7f00 0001 63", Malformed},
		{"connect, properties cut", V5, "10" + connect5 + "02 003c 04 11000000 0001 63", Malformed},
		{"connect, properties longer than the packet", V5, "10" + connect5 + "02 003c 7f 1100000000", Malformed},
		{"connect, authentication data alone", V5, "10" + connect5 + "02 003c 04 160001ff 0001 63", ProtocolError},
		{"connack, reserved flags", V5, "20 02 00 00", Malformed},
		{"connack, reason of a puback", V5, "20 00 10 00", Malformed},
		{"connack, return code 6", V311, "20 00 06", Malformed},
		{"connack, session in a refusal", V5, "20 01 87 00", ProtocolError},
		{"publish, no topic", V311, "30", Malformed},
		{"publish, empty topic", V311, "30 0000 78", ProtocolError},
		{"publish, empty topic without alias", V5, "30 0000 00 78", ProtocolError},
		{"publish, alias 0", V5, "30 0000 03 230000", TopicAliasInvalid},
		{"publish, packet id 0", V5, "32 0001 61 0000 00", ProtocolError},
		{"publish, no packet id", V311, "32 0001 61", Malformed},
		{"publish, topic is not UTF-8", V311, "30 0001 ff", Malformed},
		{"publish, topic with surrogate", V311, "30 0003 eda080", Malformed},
		{"publish, topic with null", V311, "30 0001 00", Malformed},
		{"publish, user property is not UTF-8", V5, "30 0001 61 07 26 0001 ff 0001 61", Malformed},
		{"publish, expiry twice", V5, "30 0001 61 0a 0200000001 0200000001", ProtocolError},
		{"publish, response topic with wildcard", V5, "30 0001 61 04 080001 23", ProtocolError},
		{"publish, response topic empty", V5, "30 0001 61 03 080000", ProtocolError},
		{"publish, payload format 2", V5, "30 0001 61 02 0102", ProtocolError},
		{"publish, subscription id 0", V5, "30 0001 61 02 0b00", ProtocolError},
		{"publish, property length of 5 bytes", V5, "30 0001 61 8080808001", Malformed},
		{"publish, property length longer than need be", V5, "30 0001 61 8000", Malformed},
		{"publish, property length too large", V5, "30 0001 61 05 0101", Malformed},
		{"puback, packet id 0", V311, "40 0000", ProtocolError},
		{"puback, too long", V311, "40 0001 00", Malformed},
		{"puback, too short", V5, "40 00", Malformed},
		{"puback, reason of a pubrel", V5, "40 0001 92", Malformed},
		{"puback, property of a connect", V5, "40 0001 00 03 210001", Malformed},
		{"pubrel, reason of a puback", V5, "62 0001 10", Malformed},
		{"subscribe, no filter", V5, "82 0001 00", ProtocolError},
		{"subscribe, packet id 0", V5, "82 0000 00 0001 61 00", ProtocolError},
		{"subscribe, no options", V5, "82 0001 00 0001 61", Malformed},
		{"subscribe, reserved options", V5, "82 0001 00 0001 61 40", Malformed},
		{"subscribe, options in 3.1.1", V311, "82 0001 0001 61 04", Malformed},
		{"subscribe, QoS 3", V5, "82 0001 00 0001 61 03", ProtocolError},
		{"subscribe, QoS 3 in 3.1.1", V311, "82 0001 0001 61 03", Malformed},
		{"subscribe, retain handling 3", V5, "82 0001 00 0001 61 30", ProtocolError},
		{"subscribe, no local and shared", V5, "82 0001 00 000a 2473686172652f672f61 04", ProtocolError},
		{"subscribe, id twice", V5, "82 0001 04 0b01 0b02 0001 61 00", ProtocolError},
		{"subscribe, filter without options", V5, "82 3030 00 00 00", Malformed},
		{"suback, none", V5, "90 0001 00", ProtocolError},
		{"suback, reason of 5 in 3.1.1", V311, "90 0001 87", Malformed},
		{"unsubscribe, no filter", V5, "a2 0001 00", ProtocolError},
		{"unsubscribe, filter cut", V311, "a2 0001 0005 61", Malformed},
		{"unsuback, reason of a suback", V5, "b0 0001 00 01", Malformed},
		{"pingreq with a body", V5, "c0 00", Malformed},
		{"disconnect, body in 3.1.1", V311, "e0 00", Malformed},
		{"disconnect, reason of a puback", V5, "e0 10", Malformed},
		{"auth in 3.1.1", V311, "f0", Malformed},
		{"auth, other reason", V5, "f0 87", Malformed},
	} {
		raw := unhex(t, c.hex)
		err := ofType(TypeOf(raw[0])).decode(c.v, raw[0], raw[1:])
		if err == nil || ReasonOf(err) != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// Nothing is lost between the publisher's packet and the subscriber's, and the
// order of user properties stays, MQTT 5 §3.3.2.3.
func TestPublishDivides(t *testing.T) {
	message := Properties{}.AppendUint(PayloadFormat, 1).AppendText(ContentType, "t").AppendText(ResponseTopic, "r/t").AppendText(CorrelationData, "\x00\xff").
		AppendUser("k", "1").AppendUser("a", "2").AppendUser("k", "3")
	rapid.Check(t, func(t *rapid.T) {
		// Put the others between the message's own, anywhere.
		var parts []Properties
		for rest := message; len(rest) > 0; {
			whole := rest
			if _, _, err := rest.next(); err != nil {
				t.Fatal(err)
			}
			parts = append(parts, whole[:len(whole)-len(rest)])
		}
		for _, other := range []Properties{Properties{}.AppendUint(MessageExpiry, 7), Properties{}.AppendUint(TopicAlias, 9), Properties{}.AppendUint(SubscriptionID, 1000)} {
			at := rapid.IntRange(0, len(parts)).Draw(t, "at")
			parts = append(parts[:at], append([]Properties{other}, parts[at:]...)...)
		}
		wire := bytes.Join(func() (b [][]byte) {
			for _, p := range parts {
				b = append(b, p)
			}
			return b
		}(), nil)
		raw := Publish{Topic: "t", Payload: []byte("payload"), Props: wire}
		first, body := split(t, raw.Append(nil, V5), V5)
		var p Publish
		if err := p.Decode(V5, first, body); err != nil {
			t.Fatal(err)
		}
		want := Publish{Topic: "t", Payload: []byte("payload"), Props: message, HasExpiry: true, Expiry: 7, Alias: 9, SubscriptionIDs: []uint32{1000}}
		if d := cmp.Diff(want, p); d != "" {
			t.Fatal(d)
		}
	})
}

func TestProperties(t *testing.T) {
	p := Properties{}.AppendUser("k", "v").AppendUint(ReceiveMaximum, 65535).AppendUint(MaximumQoS, 1).AppendUint(SessionExpiry, 1<<32-1).
		AppendUint(SubscriptionID, 268435455).AppendText(ReasonString, "why").AppendText(CorrelationData, "").AppendUser("", "")
	for _, c := range []struct {
		id   Property
		want uint32
	}{{ReceiveMaximum, 65535}, {MaximumQoS, 1}, {SessionExpiry, 1<<32 - 1}, {SubscriptionID, 268435455}} {
		if v, ok := p.Uint(c.id); !ok || v != c.want {
			t.Errorf("property %#x: %d, %v", c.id, v, ok)
		}
	}
	if _, ok := p.Uint(TopicAlias); ok {
		t.Error("a topic alias that is not there")
	}
	if _, ok := p.Uint(ReasonString); ok {
		t.Error("a number that is a string")
	}
	if v, ok := p.Bytes(CorrelationData); !ok || len(v) != 0 {
		t.Errorf("empty correlation data: %q, %v", v, ok)
	}
	if p.Text(ReasonString) != "why" || p.Text(ContentType) != "" {
		t.Error("strings are wrong")
	}
	if got := p.Without(UserProperty, SessionExpiry, ReasonString, CorrelationData); string(got) != string(Properties{}.AppendUint(ReceiveMaximum, 65535).AppendUint(MaximumQoS, 1).AppendUint(SubscriptionID, 268435455)) {
		t.Errorf("without some: % x", []byte(got))
	}
	var user []string
	for k, v := range p.User() {
		user = append(user, k+"="+v)
	}
	if got := strings.Join(user, ","); got != "k=v,=" {
		t.Errorf("user properties %q", got)
	}
	for _, c := range []struct {
		p  Properties
		ok bool
	}{{Properties{}.AppendUser("a", "b"), true}, {nil, true}, {Properties{}.AppendUint(MessageExpiry, 1), false}, {Properties{}.AppendUint(TopicAlias, 1), false},
		{Properties{}.AppendUint(SubscriptionID, 1), false}, {Properties{0x26}, false}, {Properties{}.AppendUint(SessionExpiry, 1), false}} {
		if err := c.p.CheckPublish(); (err == nil) != c.ok {
			t.Errorf("% x as a message's properties: %v", []byte(c.p), err)
		}
	}
}

func TestNames(t *testing.T) {
	for ty := CONNECT; ty <= AUTH; ty++ {
		if s := ty.String(); s == "" || strings.ContainsAny(s, " ") {
			t.Errorf("type %d is called %q", byte(ty), s)
		}
	}
	if s := PUBLISH.String() + " " + UNSUBSCRIBE.String() + " " + AUTH.String(); s != "PUBLISH UNSUBSCRIBE AUTH" {
		t.Error(s)
	}
	for r, want := range map[Reason]string{0: "success", 0x80: "unspecified error", 0x8d: "keep alive timeout", 0x97: "quota exceeded", 0xa2: "wildcard subscriptions not supported", 0xa3: "reason 0xa3"} {
		if r.String() != want {
			t.Errorf("reason %#x is called %q", byte(r), r)
		}
	}
}

// randomPacket draws a packet that is right in version v.
func randomPacket(t *rapid.T, v Version) (Type, anyPacket) {
	text := rapid.StringMatching(`[a-zä/]{0,20}`)
	name := rapid.StringMatching(`[a-zä]{1,20}`)
	id := rapid.Uint16Range(1, 65535)
	data := rapid.SliceOfN(rapid.Byte(), 0, 300)
	qos := rapid.ByteRange(0, 2)
	props := func(candidates ...Properties) (p Properties) {
		if v != V5 {
			return nil
		}
		for _, c := range candidates {
			if rapid.Bool().Draw(t, "with") {
				p = append(p, c...)
			}
		}
		for range rapid.IntRange(0, 2).Draw(t, "user") {
			p = p.AppendUser(text.Draw(t, "key"), text.Draw(t, "value"))
		}
		return p
	}
	why := Properties{}.AppendText(ReasonString, text.Draw(t, "why"))
	reason := func(t2 Type, all ...Reason) Reason {
		if v != V5 {
			return 0
		}
		return rapid.SampledFrom(all).Draw(t, "reason")
	}
	ty := Type(rapid.IntRange(1, 15).Draw(t, "type"))
	switch p := ofType(ty).(type) {
	case *connect:
		p.Version, p.ClientID, p.CleanStart, p.KeepAlive = v, text.Draw(t, "id"), rapid.Bool().Draw(t, "clean"), rapid.Uint16().Draw(t, "keepalive")
		if p.HasUsername = rapid.Bool().Draw(t, "user"); p.HasUsername {
			p.Username = text.Draw(t, "name")
		}
		if p.HasPassword = (p.HasUsername || v == V5) && rapid.Bool().Draw(t, "password"); p.HasPassword {
			p.Password = data.Draw(t, "secret")
		}
		p.Props = props(Properties{}.AppendUint(MaximumPacketSize, 100), Properties{}.AppendText(AuthMethod, "m"))
		if rapid.Bool().Draw(t, "will") {
			p.Will = &Will{Topic: name.Draw(t, "topic"), Payload: data.Draw(t, "payload"), QoS: qos.Draw(t, "qos"), Retain: rapid.Bool().Draw(t, "retain"),
				Props: props(Properties{}.AppendUint(WillDelay, 9), Properties{}.AppendUint(MessageExpiry, 9))}
		}
		return ty, p
	case *connack:
		p.Reason = reason(ty, Success, NotAuthorized, ConnectionRateExceeded)
		p.SessionPresent = p.Reason == 0 && rapid.Bool().Draw(t, "session")
		p.Props = props(why, Properties{}.AppendText(AssignedClientID, "x"), Properties{}.AppendUint(ServerKeepAlive, 1))
		return ty, p
	case *publish:
		p.Topic, p.Payload, p.QoS, p.Retain = name.Draw(t, "topic"), data.Draw(t, "payload"), qos.Draw(t, "qos"), rapid.Bool().Draw(t, "retain")
		if p.QoS > 0 {
			p.PacketID, p.Dup = id.Draw(t, "id"), rapid.Bool().Draw(t, "dup")
		}
		p.Props = props(Properties{}.AppendText(ContentType, text.Draw(t, "content")), Properties{}.AppendText(CorrelationData, "\x00"))
		if v == V5 {
			p.Alias = rapid.Uint16().Draw(t, "alias")
			if p.HasExpiry = rapid.Bool().Draw(t, "expires"); p.HasExpiry {
				p.Expiry = rapid.Uint32().Draw(t, "expiry")
			}
			p.SubscriptionIDs = rapid.SliceOfN(rapid.Uint32Range(1, MaxLength), 0, 3).Draw(t, "ids")
		}
		return ty, p
	case *ack:
		p.PacketID, p.Reason, p.Props = id.Draw(t, "id"), Success, props(why)
		if ty == PUBACK || ty == PUBREC {
			p.Reason = reason(ty, Success, NoMatchingSubscribers, QuotaExceeded)
		}
		return ty, p
	case *subscribe:
		p.PacketID, p.Props = id.Draw(t, "id"), props(Properties{}.AppendUint(SubscriptionID, 77))
		for range rapid.IntRange(1, 3).Draw(t, "filters") {
			s := Subscription{Filter: text.Draw(t, "filter"), QoS: qos.Draw(t, "qos")}
			if v == V5 {
				s.NoLocal, s.RetainAsPublished, s.RetainHandling = rapid.Bool().Draw(t, "nl"), rapid.Bool().Draw(t, "rap"), qos.Draw(t, "rh")
			}
			p.Subscriptions = append(p.Subscriptions, s)
		}
		return ty, p
	case *unsubscribe:
		p.PacketID, p.Props, p.Filters = id.Draw(t, "id"), props(), rapid.SliceOfN(text, 1, 3).Draw(t, "filters")
		return ty, p
	case *suback:
		p.PacketID, p.Props = id.Draw(t, "id"), props(why)
		if v == V5 || ty == SUBACK {
			p.Reasons = rapid.SliceOfN(rapid.SampledFrom([]Reason{Success, Unspecified}), 1, 4).Draw(t, "reasons")
		}
		return ty, p
	case *disconnect:
		if ty == AUTH && v == V311 {
			return DISCONNECT, &disconnect{t: DISCONNECT}
		}
		p.Props = props(why)
		if ty == DISCONNECT {
			p.Reason = reason(ty, Success, DisconnectWithWill, ServerShuttingDown)
		}
		return ty, p
	case anyPacket:
		return ty, p
	}
	return 0, nil
}

// Every packet comes back as it was, in a stream of them that is cut anywhere.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.SampledFrom([]Version{V311, V5}).Draw(t, "version")
		var raw []byte
		var sent []anyPacket
		for range rapid.IntRange(1, 6).Draw(t, "packets") {
			_, p := randomPacket(t, v)
			raw = p.append(raw, v)
			sent = append(sent, p)
		}
		src := &choppy{b: raw, rng: rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))}
		r := NewReader(src, new(Blocks), 1<<20)
		r.SetVersion(v)
		defer r.Close()
		for _, want := range sent {
			first, body, err := nextThrough(r)
			if err != nil {
				t.Fatal(err)
			}
			got := ofType(TypeOf(first))
			if err := got.decode(v, first, body); err != nil {
				t.Fatalf("%v: %v", TypeOf(first), err)
			}
			if d := cmp.Diff(want, got, equal...); d != "" {
				t.Fatal(d)
			}
		}
	})
}
