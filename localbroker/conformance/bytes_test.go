package conformance

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// The packets that the codec does not make are put together here.

// raw turns "30 03 0001 61" into bytes; what stands in quotes is a string with
// its length before it, and [ ] a part of it with its length as a variable
// byte integer before it.
func raw(text string) []byte {
	out, rest := parts(text)
	if rest != "" {
		panic("a ] too many: " + text)
	}
	return out
}

func parts(text string) (out []byte, rest string) {
	for text != "" {
		switch c := text[0]; c {
		case ' ':
			text = text[1:]
		case '\'':
			s, after, ok := strings.Cut(text[1:], "'")
			if !ok {
				panic("no end of " + text)
			}
			out, text = append(out, str(s)...), after
		case '[':
			var inner []byte
			inner, text = parts(text[1:])
			out = append(out, sized(inner)...)
		case ']':
			return out, text[1:]
		default:
			b, err := hex.DecodeString(text[:2])
			if err != nil {
				panic(fmt.Sprintf("%q: %v", text, err))
			}
			out, text = append(out, b...), text[2:]
		}
	}
	return out, ""
}

// str is a string or binary data with its length.
func str(s string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...)
}

// sized puts the length of b before it.
func sized(b []byte) []byte {
	return append(varint(len(b)), b...)
}

func varint(n int) []byte {
	var out []byte
	for ; n >= 0x80; n >>= 7 {
		out = append(out, byte(n)|0x80)
	}
	return append(out, byte(n))
}

// frameOf is a packet with this first byte.
func frameOf(first byte, body ...[]byte) []byte {
	return append([]byte{first}, sized(bytes.Join(body, nil))...)
}

// bareConnect is a CONNECT with these flags. props are those of version 5; what
// follows them are the fields of the payload.
func (s *scene) bareConnect(flags byte, props []byte, payload ...[]byte) []byte {
	head := append(str("MQTT"), byte(s.v), flags, 0, 60)
	if s.five() {
		head = append(head, sized(props)...)
	}
	return frameOf(0x10, head, bytes.Join(payload, nil))
}

// willProps is what a will begins with.
func (s *scene) willProps(props ...byte) []byte {
	if !s.five() {
		return nil
	}
	return sized(props)
}
