package packet

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What a decoder accepts, the encoder writes so that it decodes to the same.
func fuzzType(f *testing.F, types ...Type) {
	for _, v := range []Version{V311, V5} {
		for _, p := range []anyPacket{
			&connect{Connect{Version: v, ClientID: "c", HasUsername: true, Username: "u", Will: &Will{Topic: "w", Payload: []byte("x")}}},
			&connack{}, &publish{Publish{Topic: "t", PacketID: 1, QoS: 1, Payload: []byte("p"), Props: Properties{}.AppendUser("a", "b"), HasExpiry: true}},
			&ack{Ack{PacketID: 1}, PUBACK}, &subscribe{Subscribe{PacketID: 1, Subscriptions: []Subscription{{Filter: "a/#"}}}},
			&suback{Suback{PacketID: 1, Reasons: []Reason{0}}, SUBACK}, &unsubscribe{Unsubscribe{PacketID: 1, Filters: []string{"a"}}}, &disconnect{t: DISCONNECT},
		} {
			raw := p.append(nil, v)
			f.Add(raw[0], v == V5, raw[2:])
		}
	}
	f.Add(byte(0x82), false, []byte("00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, first byte, five bool, body []byte) {
		v := V311
		if five {
			v = V5
		}
		first = first&0x0f | byte(types[int(first>>4)%len(types)])<<4
		if checkFirst(first) != nil {
			return
		}
		p := ofType(TypeOf(first))
		if p.decode(v, first, bytes.Clone(body)) != nil {
			return
		}
		if c, ok := p.(*connect); ok {
			v = c.Version
		}
		again, body2 := split(t, p.append(nil, v), v)
		q := ofType(TypeOf(again))
		if err := q.decode(v, again, body2); err != nil {
			t.Fatalf("%#v does not come back: %v", p, err)
		}
		if again != first {
			t.Errorf("first byte %#x became %#x", first, again)
		}
		if d := cmp.Diff(p, q, equal...); d != "" {
			t.Error(d)
		}
	})
}

func FuzzConnect(f *testing.F)    { fuzzType(f, CONNECT, CONNACK) }
func FuzzPublish(f *testing.F)    { fuzzType(f, PUBLISH) }
func FuzzAck(f *testing.F)        { fuzzType(f, PUBACK, PUBREC, PUBREL, PUBCOMP) }
func FuzzSubscribe(f *testing.F)  { fuzzType(f, SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK) }
func FuzzDisconnect(f *testing.F) { fuzzType(f, PINGREQ, PINGRESP, DISCONNECT, AUTH) }

// A stream of any bytes ends in an error, in time with its length, and the
// packets before that are within the limit.
func FuzzReader(f *testing.F) {
	f.Add([]byte{0xc0, 0, 0x30, 5, 0, 1, 'a', 'b', 'c'}, uint16(100))
	f.Add([]byte{0x10, 0xff, 0xff, 0xff, 0x7f}, uint16(65535))
	f.Fuzz(func(t *testing.T, raw []byte, limit uint16) {
		r := NewReader(bytes.NewReader(raw), new(Blocks), int(limit))
		for range len(raw) + 1 {
			_, body, err := r.Next()
			if err != nil {
				return
			}
			if len(body) > int(limit) {
				t.Fatalf("%d bytes, the limit is %d", len(body), limit)
			}
		}
		t.Fatal("more packets than bytes")
	})
}

func BenchmarkDecodePublish(b *testing.B) {
	for _, c := range []struct {
		name string
		v    Version
		p    Publish
	}{
		{"311", V311, Publish{Topic: "devices/em-0001/telemetry", QoS: 1, PacketID: 1, Payload: make([]byte, 200)}},
		{"5", V5, Publish{Topic: "devices/em-0001/telemetry", QoS: 1, PacketID: 1, Payload: make([]byte, 200)}},
		{"5 with properties", V5, Publish{Topic: "devices/em-0001/telemetry", QoS: 1, PacketID: 1, Payload: make([]byte, 200), Props: Properties{}.AppendText(ContentType, "application/json").AppendUser("seq", "1")}},
	} {
		b.Run(c.name, func(b *testing.B) {
			raw := bytes.Repeat(c.p.Append(nil, c.v), 64)
			src := bytes.NewReader(nil)
			r := NewReader(src, new(Blocks), 1<<20)
			var p Publish
			b.ReportAllocs()
			b.SetBytes(int64(len(raw) / 64))
			for b.Loop() {
				if src.Len() == 0 && !r.Buffered() {
					src.Reset(raw)
				}
				first, body, err := r.Next()
				if err != nil || p.Decode(c.v, first, body) != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkEncodePublish(b *testing.B) {
	p := Publish{Topic: "devices/em-0001/telemetry", QoS: 1, PacketID: 1, Payload: make([]byte, 200), Props: Properties{}.AppendUser("seq", "1")}
	for _, v := range []Version{V311, V5} {
		b.Run(v.String(), func(b *testing.B) {
			dst := make([]byte, 0, 1000)
			b.ReportAllocs()
			for b.Loop() {
				dst = p.Append(dst[:0], v)
			}
		})
	}
}
