package bridge

import (
	"encoding/binary"
	"strconv"
)

const userProperty = 0x26 // MQTT 5 §3.3.2.3.7

// appendUser appends one MQTT 5 user property as on the wire.
func appendUser(dst []byte, key, value string) []byte {
	dst = appendString(dst, userProperty, key)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(value)))
	return append(dst, value...)
}

// appendString appends a property's identifier and a string.
func appendString(dst []byte, id byte, s string) []byte {
	dst = append(dst, id)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(s)))
	return append(dst, s...)
}

// appendSeq makes a message's properties: props, which ends with a key, and its
// value prefix + n.
func appendSeq(props []byte, prefix string, n uint64) []byte {
	out := make([]byte, len(props), len(props)+2+len(prefix)+20)
	copy(out, props)
	at := len(out)
	out = append(out, 0, 0)
	out = append(out, prefix...)
	out = strconv.AppendUint(out, n, 10)
	binary.BigEndian.PutUint16(out[at:], uint16(len(out)-at-2))
	return out
}

// startsProperty reports whether a property begins at a place, so that what stands
// there is not a part of a value.
func startsProperty(props []byte, at int) bool {
	for i := 0; i < len(props); {
		if i == at {
			return true
		}
		size := propertySize(props[i:])
		if size == 0 {
			return false
		}
		i += size
	}
	return false
}

// propertySize is the size of the first property of a PUBLISH (MQTT 5 §2.2.2.2), 0 if
// it is none.
func propertySize(p []byte) int {
	text := func(at int) int {
		if len(p) < at+2 {
			return len(p) + 1
		}
		return at + 2 + int(binary.BigEndian.Uint16(p[at:]))
	}
	size := 0
	switch p[0] {
	case 0x01:
		size = 2
	case 0x02:
		size = 5
	case 0x23:
		size = 3
	case 0x03, 0x08, 0x09:
		size = text(1)
	case userProperty:
		size = text(text(1))
	case 0x0B:
		if _, n := binary.Uvarint(p[1:]); n > 0 {
			size = 1 + n
		}
	}
	if size > len(p) {
		return 0
	}
	return size
}
