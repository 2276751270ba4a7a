package bridge

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/eclipse/paho.golang/packets"

	"github.com/fieldferry/fieldferry/buffer"
)

// What writeTo makes is what packets.ReadPacket reads.
func TestPublishOnTheWire(t *testing.T) {
	user := appendUser(nil, "gateway", "gw-1")
	for _, p := range []publish{
		{d: &buffer.Delivery{Topic: "t"}},
		{d: &buffer.Delivery{Topic: "a/b", Payload: []byte("x"), Props: user}, retain: true},
		{d: &buffer.Delivery{Topic: "a/b", Payload: []byte("x")}, qos: 1, id: 0xABCD, dup: true},
		{d: &buffer.Delivery{Topic: "a/b", Payload: []byte("x"), Props: user}, qos: 2, id: 1, expiry: 0x01020304},
		{d: &buffer.Delivery{Topic: strings.Repeat("t", maxString), Payload: make([]byte, 3<<20), Props: bytes.Repeat(user, 1000)}, qos: 1, id: 65535},
	} {
		for _, used := range []int{0, writeBuffer - 3} { // what is in the buffer already
			var out bytes.Buffer
			w := bufio.NewWriterSize(&out, writeBuffer)
			w.Write(make([]byte, used))
			if err := p.writeTo(w); err != nil {
				t.Fatal(err)
			}
			w.Flush()
			out.Next(used)
			if out.Len() != p.size() {
				t.Errorf("%d bytes, size says %d", out.Len(), p.size())
			}
			cp, err := packets.ReadPacket(&out)
			if err != nil {
				t.Fatal(err)
			}
			got := cp.Content.(*packets.Publish)
			if got.Topic != p.d.Topic || !bytes.Equal(got.Payload, p.d.Payload) || got.QoS != p.qos || got.Duplicate != p.dup || got.Retain != p.retain || got.PacketID != p.id {
				t.Errorf("got %+v of %+v", got, p)
			}
			if e := got.Properties.MessageExpiry; p.expiry == 0 && e != nil || p.expiry != 0 && (e == nil || *e != p.expiry) {
				t.Errorf("expiry %v, want %d", e, p.expiry)
			}
			if n := bytes.Count(p.d.Props, user); len(got.Properties.User) != n {
				t.Errorf("%d user properties, want %d", len(got.Properties.User), n)
			}
			if out.Len() != 0 {
				t.Errorf("%d bytes too many", out.Len())
			}
		}
	}
}

func TestReadPacket(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   []byte
		want packet
		err  error // nil is none
	}{
		{"PUBACK", []byte{0x40, 2, 1, 2}, packet{kind: packets.PUBACK, id: 0x0102}, nil},
		{"PUBACK with a code", []byte{0x40, 3, 1, 2, 0x87}, packet{kind: packets.PUBACK, id: 0x0102, code: 0x87}, nil},
		{"PUBACK with a reason", []byte{0x40, 8, 1, 2, 0x87, 4, 0x1F, 0, 1, 'x'}, packet{kind: packets.PUBACK, id: 0x0102, code: 0x87, reason: "x"}, nil},
		{"PUBACK, long form of its length", []byte{0x40, 0x82, 0, 1, 2}, packet{kind: packets.PUBACK, id: 0x0102}, nil},
		{"PUBCOMP", []byte{0x70, 2, 1, 2}, packet{kind: packets.PUBCOMP, id: 0x0102}, nil},
		{"PINGRESP", []byte{0xD0, 0}, packet{kind: packets.PINGRESP}, nil},
		{"DISCONNECT, short", []byte{0xE0, 0}, packet{kind: packets.DISCONNECT}, nil},
		{"nothing", nil, packet{}, io.EOF},
		{"half a header", []byte{0x40}, packet{}, io.EOF},
		{"half a packet", []byte{0x40, 2, 1}, packet{}, io.EOF},
		{"half a packet with a code", []byte{0x40, 3, 1, 2}, packet{}, io.ErrUnexpectedEOF},
		{"too long", []byte{0x30, 0xFF, 0xFF, 0xFF, 0x7F}, packet{}, errTooLong},
		{"length of five bytes", []byte{0x30, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F}, packet{}, errLength},
	} {
		got, err := readPacket(bufio.NewReader(bytes.NewReader(tt.in)), 1<<20)
		got.content = nil
		if got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%s: got %+v, %v, want %+v, %v", tt.name, got, err, tt.want, tt.err)
		}
	}
}

func FuzzReadPacket(f *testing.F) {
	for _, p := range []io.WriterTo{
		&packets.Connack{ReasonCode: 0x87, Properties: &packets.Properties{ReasonString: "no", ServerReference: "b", MaximumPacketSize: ptr(uint32(9))}},
		&packets.Publish{Topic: "t", QoS: 1, PacketID: 3, Payload: []byte("x"), Properties: &packets.Properties{ContentType: "c"}},
		&packets.Puback{PacketID: 3, ReasonCode: 0x97, Properties: &packets.Properties{ReasonString: "later"}},
		&packets.Disconnect{ReasonCode: 0x8E, Properties: &packets.Properties{}},
	} {
		var b bytes.Buffer
		p.WriteTo(&b)
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		const limit = 1000
		r := bufio.NewReader(bytes.NewReader(in))
		for {
			p, err := readPacket(r, limit)
			if err != nil {
				return
			}
			if c, ok := p.content.(*packets.Publish); ok && len(c.Topic)+len(c.Payload) > limit {
				t.Fatalf("a packet of more than %d bytes got through", limit)
			}
		}
	})
}

func TestReasonError(t *testing.T) {
	e := &ReasonError{Packet: "CONNACK", Code: 0x86, Reason: "expired"}
	if got, want := e.Error(), `upstream answered CONNACK 0x86: bad user name or password ("expired"); check username and password`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := (&ReasonError{Packet: "CONNACK", Code: 0xFE}).Error(); got != "upstream answered CONNACK 0xFE" {
		t.Errorf("got %s", got)
	}
	if got, want := refusal(0x87, "no rule"), "upstream refused it with 0x87 not authorised: no rule"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func BenchmarkPublish(b *testing.B) {
	d := buffer.Delivery{Topic: "acme/factory-berlin/zone-a/energy-meter/em-0001/telemetry", Payload: make([]byte, 200),
		Props: slices.Concat(appendUser(nil, "gateway", "gw-berlin-1"), appendUser(nil, "seq", "0a1b2c3d.17.123456"))}
	p := publish{d: &d, qos: 1, id: 9000}
	w := bufio.NewWriterSize(io.Discard, writeBuffer)
	b.ReportAllocs()
	b.SetBytes(int64(p.size()))
	for b.Loop() {
		if err := p.writeTo(w); err != nil {
			b.Fatal(err)
		}
	}
}
