// Package packet is the wire codec of MQTT 3.1.1 and MQTT 5: all fifteen packet
// types, in both directions. Decoding is strict: what a standard calls a
// malformed packet or a protocol error is an [Error] with its reason code.
// Encoding appends to a buffer of the caller and trusts its input. The package
// reads packets from a stream with [Reader], does no other I/O, and keeps no
// state of a connection: what a packet means there is its user's business.
package packet

import (
	"encoding/binary"
	"fmt"
)

// Version is a protocol level as CONNECT carries it.
type Version byte

// The protocol levels that this package speaks.
const (
	V311 Version = 4
	V5   Version = 5
)

func (v Version) String() string {
	switch v {
	case V311:
		return "3.1.1"
	case V5:
		return "5"
	}
	return fmt.Sprintf("level %d", byte(v))
}

// Type is the type of a packet, MQTT 5 §2.1.2.
type Type byte

// The types of packets.
const (
	CONNECT Type = iota + 1
	CONNACK
	PUBLISH
	PUBACK
	PUBREC
	PUBREL
	PUBCOMP
	SUBSCRIBE
	SUBACK
	UNSUBSCRIBE
	UNSUBACK
	PINGREQ
	PINGRESP
	DISCONNECT
	AUTH
)

func (t Type) String() string {
	const names = "reserved   CONNECT    CONNACK    PUBLISH    PUBACK     PUBREC     PUBREL     PUBCOMP    " +
		"SUBSCRIBE  SUBACK     UNSUBSCRIBEUNSUBACK   PINGREQ    PINGRESP   DISCONNECT AUTH       "
	if t > AUTH {
		return fmt.Sprintf("type %d", byte(t))
	}
	name := names[11*int(t) : 11*int(t)+11]
	for name[len(name)-1] == ' ' {
		name = name[:len(name)-1]
	}
	return name
}

// TypeOf is the type in the first byte of a packet.
func TypeOf(first byte) Type { return Type(first >> 4) }

// MaxLength is the largest Remaining Length, MQTT 5 §2.1.4.
const MaxLength = 268435455

// checkFirst validates the flags in the first byte of a packet, MQTT 5 §2.1.3.
func checkFirst(first byte) error {
	flags, want := first&0x0f, byte(0)
	switch TypeOf(first) {
	case 0:
		return malformed("packet type 0 is reserved")
	case PUBLISH:
		if qos := flags >> 1 & 3; qos == 3 {
			return malformed("PUBLISH with QoS 3") // [MQTT-3.3.1-4]
		} else if qos == 0 && flags&0x08 != 0 {
			return malformed("PUBLISH with QoS 0 and DUP") // [MQTT-3.3.1-2]
		}
		return nil
	case PUBREL, SUBSCRIBE, UNSUBSCRIBE:
		want = 2
	}
	if flags != want {
		return malformed("%v with flags %#x", TypeOf(first), flags)
	}
	return nil
}

// appendHeader begins a packet whose body has length bytes.
func appendHeader(dst []byte, first byte, length int) []byte {
	return appendVarint(append(dst, first), uint32(length))
}

// endPacket puts the header before the body that begins at start of dst.
func endPacket(dst []byte, start int, first byte) []byte {
	var head [5]byte
	h := appendHeader(head[:0], first, len(dst)-start)
	dst = append(dst, h...)
	copy(dst[start+len(h):], dst[start:])
	copy(dst[start:], h)
	return dst
}

func appendVarint(dst []byte, v uint32) []byte {
	for v >= 0x80 {
		dst = append(dst, byte(v)|0x80)
		v >>= 7
	}
	return append(dst, byte(v))
}

func varintSize(v uint32) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}

// appendBytes appends a string or binary data with its length. What is longer
// than the field can be is cut: callers keep to the limit, and a cut string is
// still a packet that can be read.
func appendBytes[T string | []byte](dst []byte, s T) []byte {
	s = s[:min(len(s), 65535)]
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(s)))
	return append(dst, s...)
}

// AppendPingreq appends a PINGREQ.
func AppendPingreq(dst []byte) []byte { return append(dst, byte(PINGREQ)<<4, 0) }

// AppendPingresp appends a PINGRESP.
func AppendPingresp(dst []byte) []byte { return append(dst, byte(PINGRESP)<<4, 0) }

// CheckEmpty validates the body of a packet that has none: PINGREQ and PINGRESP.
func CheckEmpty(first byte, body []byte) error {
	if len(body) != 0 {
		return malformed("%v with a body", TypeOf(first))
	}
	return nil
}
