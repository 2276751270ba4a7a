package packet

import "fmt"

// anyPacket is every type of packet behind one face, for tests.
type anyPacket interface {
	decode(v Version, first byte, body []byte) error
	append(dst []byte, v Version) []byte
}

type (
	connect     struct{ Connect }
	connack     struct{ Connack }
	publish     struct{ Publish }
	subscribe   struct{ Subscribe }
	unsubscribe struct{ Unsubscribe }
	ack         struct {
		Ack
		t Type
	}
	suback struct {
		Suback
		t Type
	}
	disconnect struct {
		Disconnect
		t Type
	}
	ping struct{ t Type }
)

func (p *connect) decode(_ Version, _ byte, b []byte) error     { return p.Decode(b) }
func (p *connect) append(d []byte, _ Version) []byte            { return p.Append(d) }
func (p *connack) decode(v Version, _ byte, b []byte) error     { return p.Decode(v, b) }
func (p *connack) append(d []byte, v Version) []byte            { return p.Append(d, v) }
func (p *publish) decode(v Version, f byte, b []byte) error     { return p.Decode(v, f, b) }
func (p *publish) append(d []byte, v Version) []byte            { return p.Append(d, v) }
func (p *subscribe) decode(v Version, _ byte, b []byte) error   { return p.Decode(v, b) }
func (p *subscribe) append(d []byte, v Version) []byte          { return p.Append(d, v) }
func (p *unsubscribe) decode(v Version, _ byte, b []byte) error { return p.Decode(v, b) }
func (p *unsubscribe) append(d []byte, v Version) []byte        { return p.Append(d, v) }
func (p *ack) decode(v Version, _ byte, b []byte) error         { return p.Decode(v, p.t, b) }
func (p *ack) append(d []byte, v Version) []byte                { return p.Append(d, v, p.t) }
func (p *suback) decode(v Version, _ byte, b []byte) error      { return p.Decode(v, p.t, b) }
func (p *suback) append(d []byte, v Version) []byte             { return p.Append(d, v, p.t) }
func (p *disconnect) decode(v Version, _ byte, b []byte) error  { return p.Decode(v, p.t, b) }
func (p *disconnect) append(d []byte, v Version) []byte         { return p.Append(d, v, p.t) }
func (p *ping) decode(_ Version, f byte, b []byte) error        { return CheckEmpty(f, b) }
func (p *ping) append(d []byte, _ Version) []byte {
	if p.t == PINGREQ {
		return AppendPingreq(d)
	}
	return AppendPingresp(d)
}

func ofType(t Type) anyPacket {
	switch t {
	case CONNECT:
		return new(connect)
	case CONNACK:
		return new(connack)
	case PUBLISH:
		return new(publish)
	case PUBACK, PUBREC, PUBREL, PUBCOMP:
		return &ack{t: t}
	case SUBSCRIBE:
		return new(subscribe)
	case SUBACK, UNSUBACK:
		return &suback{t: t}
	case UNSUBSCRIBE:
		return new(unsubscribe)
	case PINGREQ, PINGRESP:
		return &ping{t: t}
	case DISCONNECT, AUTH:
		return &disconnect{t: t}
	}
	panic(fmt.Sprint("type ", t))
}
