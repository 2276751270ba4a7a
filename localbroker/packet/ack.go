package packet

import "encoding/binary"

// Ack is a PUBACK, PUBREC, PUBREL or PUBCOMP packet, MQTT 5 §3.4 to §3.7. With
// 3.1.1 it has no more than the packet identifier.
type Ack struct {
	PacketID uint16
	Reason   Reason
	Props    Properties
}

// Decode decodes the body of a packet of type t. a.Props is part of it.
func (a *Ack) Decode(v Version, t Type, body []byte) error {
	r := cursor{b: body}
	*a = Ack{PacketID: r.packetID()}
	if v == V5 {
		a.Reason, a.Props = r.reasonAndProperties(t)
	}
	return r.end(t)
}

// Append appends the packet as one of type t.
func (a *Ack) Append(dst []byte, v Version, t Type) []byte {
	first := byte(t) << 4
	if t == PUBREL {
		first |= 2
	}
	if v == V311 || a.Reason == Success && len(a.Props) == 0 {
		return append(dst, first, 2, byte(a.PacketID>>8), byte(a.PacketID))
	}
	start := len(dst)
	dst = binary.BigEndian.AppendUint16(dst, a.PacketID)
	dst = appendReasonAndProperties(dst, a.Reason, a.Props)
	return endPacket(dst, start, first)
}

// reasonAndProperties takes what may be left out if it says nothing, MQTT 5
// §3.4.2.1, §3.14.2.1, §3.15.2.1.
func (c *cursor) reasonAndProperties(t Type) (reason Reason, p Properties) {
	if len(c.b) == 0 {
		return Success, nil
	}
	reason = Reason(c.byte())
	if !reason.allowed(t) {
		c.fail(malformed("reason %#02x", byte(reason)))
	}
	if len(c.b) > 0 {
		p = c.properties(t)
	}
	return reason, p
}

func appendReasonAndProperties(dst []byte, reason Reason, p Properties) []byte {
	dst = append(dst, byte(reason))
	if len(p) > 0 {
		dst = appendProperties(dst, p)
	}
	return dst
}

// Disconnect is a DISCONNECT or an AUTH packet, MQTT 5 §3.14 and §3.15. With
// 3.1.1 it is empty.
type Disconnect struct {
	Reason Reason
	Props  Properties
}

// Decode decodes the body of a packet of type t. d.Props is part of it.
func (d *Disconnect) Decode(v Version, t Type, body []byte) error {
	*d = Disconnect{}
	r := cursor{b: body}
	switch {
	case v == V5:
		d.Reason, d.Props = r.reasonAndProperties(t)
	case t == AUTH:
		return malformed("AUTH in MQTT 3.1.1")
	}
	return r.end(t)
}

// Append appends the packet as one of type t.
func (d *Disconnect) Append(dst []byte, v Version, t Type) []byte {
	start := len(dst)
	if v == V5 && (d.Reason != Success || len(d.Props) > 0) {
		dst = appendReasonAndProperties(dst, d.Reason, d.Props)
	}
	return endPacket(dst, start, byte(t)<<4)
}
