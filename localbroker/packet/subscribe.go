package packet

import (
	"encoding/binary"
	"slices"
	"strings"
)

// Subscribe is a SUBSCRIBE packet, MQTT 5 §3.8.
type Subscribe struct {
	PacketID      uint16
	Props         Properties
	Subscriptions []Subscription
}

// Subscription is one of the filters of a SUBSCRIBE with its options, MQTT 5
// §3.8.3.1. Version 3.1.1 has only the QoS.
type Subscription struct {
	Filter            string
	QoS               byte
	NoLocal           bool
	RetainAsPublished bool
	RetainHandling    byte // 0 send retained messages, 1 only if the subscription is new, 2 do not
}

// Decode decodes the body of a SUBSCRIBE. s.Props is part of it.
func (s *Subscribe) Decode(v Version, body []byte) error {
	r := cursor{b: body}
	*s = Subscribe{PacketID: r.packetID()}
	if v == V5 {
		s.Props = r.properties(SUBSCRIBE)
	}
	for len(r.b) > 0 {
		sub := Subscription{Filter: string(r.text())}
		o := r.byte()
		sub.QoS = o & 3
		sub.NoLocal, sub.RetainAsPublished, sub.RetainHandling = o&4 != 0, o&8 != 0, o>>4&3
		switch {
		case o>>6 != 0 || v == V311 && o>>2 != 0: // [MQTT-3.8.3-5]
			r.fail(malformed("reserved option bits are set"))
		case sub.QoS == 3 && v == V311: // 3.1.1 [MQTT-3.8.3-4]
			r.fail(malformed("QoS 3"))
		case sub.QoS == 3 || sub.RetainHandling == 3:
			r.fail(protocolError("QoS or retain handling 3"))
		case sub.NoLocal && strings.HasPrefix(sub.Filter, "$share/"): // [MQTT-3.8.3-4]
			r.fail(protocolError("no local with a shared subscription"))
		}
		s.Subscriptions = append(s.Subscriptions, sub)
	}
	if r.err == nil && len(s.Subscriptions) == 0 { // [MQTT-3.8.3-2]
		r.err = protocolError("no filter")
	}
	return r.end(SUBSCRIBE)
}

// Append appends the packet.
func (s *Subscribe) Append(dst []byte, v Version) []byte {
	start := len(dst)
	dst = binary.BigEndian.AppendUint16(dst, s.PacketID)
	if v == V5 {
		dst = appendProperties(dst, s.Props)
	}
	for _, sub := range s.Subscriptions {
		o := sub.QoS
		if v == V5 {
			o |= sub.RetainHandling << 4
			if sub.NoLocal {
				o |= 4
			}
			if sub.RetainAsPublished {
				o |= 8
			}
		}
		dst = append(appendBytes(dst, sub.Filter), o)
	}
	return endPacket(dst, start, byte(SUBSCRIBE)<<4|2)
}

// Unsubscribe is an UNSUBSCRIBE packet, MQTT 5 §3.10.
type Unsubscribe struct {
	PacketID uint16
	Props    Properties
	Filters  []string
}

// Decode decodes the body of an UNSUBSCRIBE. u.Props is part of it.
func (u *Unsubscribe) Decode(v Version, body []byte) error {
	r := cursor{b: body}
	*u = Unsubscribe{PacketID: r.packetID()}
	if v == V5 {
		u.Props = r.properties(UNSUBSCRIBE)
	}
	for len(r.b) > 0 {
		u.Filters = append(u.Filters, string(r.text()))
	}
	if r.err == nil && len(u.Filters) == 0 { // [MQTT-3.10.3-2]
		r.err = protocolError("no filter")
	}
	return r.end(UNSUBSCRIBE)
}

// Append appends the packet.
func (u *Unsubscribe) Append(dst []byte, v Version) []byte {
	start := len(dst)
	dst = binary.BigEndian.AppendUint16(dst, u.PacketID)
	if v == V5 {
		dst = appendProperties(dst, u.Props)
	}
	for _, f := range u.Filters {
		dst = appendBytes(dst, f)
	}
	return endPacket(dst, start, byte(UNSUBSCRIBE)<<4|2)
}

// Suback is a SUBACK or UNSUBACK packet, MQTT 5 §3.9 and §3.11, with a reason
// for each filter. UNSUBACK of 3.1.1 has none.
type Suback struct {
	PacketID uint16
	Props    Properties
	Reasons  []Reason
}

// Decode decodes the body of a packet of type t. s.Props is part of it.
func (s *Suback) Decode(v Version, t Type, body []byte) error {
	r := cursor{b: body}
	*s = Suback{PacketID: r.packetID()}
	if v == V5 {
		s.Props = r.properties(t)
	}
	if v == V311 && t == UNSUBACK {
		return r.end(t)
	}
	for len(r.b) > 0 {
		reason := Reason(r.byte())
		if !reason.allowed(t) || v == V311 && reason > GrantedQoS2 && reason != Unspecified {
			r.fail(malformed("reason %#02x", byte(reason)))
		}
		s.Reasons = append(s.Reasons, reason)
	}
	if r.err == nil && len(s.Reasons) == 0 {
		r.err = protocolError("no reason")
	}
	return r.end(t)
}

// Append appends the packet as one of type t.
func (s *Suback) Append(dst []byte, v Version, t Type) []byte {
	start := len(dst)
	dst = binary.BigEndian.AppendUint16(dst, s.PacketID)
	if v == V5 {
		dst = appendProperties(dst, s.Props)
	}
	if v == V5 || t == SUBACK {
		dst = slices.Grow(dst, len(s.Reasons))
		for _, r := range s.Reasons {
			dst = append(dst, byte(r))
		}
	}
	return endPacket(dst, start, byte(t)<<4)
}
