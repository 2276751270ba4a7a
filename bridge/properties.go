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
