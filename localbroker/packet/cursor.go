package packet

import (
	"bytes"
	"encoding/binary"
	"unicode/utf8"
)

// cursor takes fields from the front of a packet's body. The first error
// stays, and everything after it is empty.
type cursor struct {
	b   []byte
	err error
}

func (c *cursor) fail(err error) {
	if c.err == nil {
		c.err = err
	}
	c.b = nil
}

// take returns the next n bytes.
func (c *cursor) take(n int) []byte {
	if n > len(c.b) {
		c.fail(malformed("it ends too early"))
		return nil
	}
	out := c.b[:n:n]
	c.b = c.b[n:]
	return out
}

func (c *cursor) byte() byte {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) uint16() uint16 {
	if b := c.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

// packetID takes a packet identifier, which is never 0 [MQTT-2.2.1-3].
func (c *cursor) packetID() uint16 {
	id := c.uint16()
	if id == 0 {
		c.fail(protocolError("packet identifier 0"))
	}
	return id
}

func (c *cursor) varint() uint32 {
	v, n, err := readVarint(c.b)
	switch {
	case err != nil:
		c.fail(err)
	case n == 0:
		c.fail(malformed("it ends too early"))
	case n > 1 && v>>(7*(n-1)) == 0: // [MQTT-1.5.5-1]
		c.fail(malformed("a variable byte integer is longer than it need be"))
	default:
		c.b = c.b[n:]
		return v
	}
	return 0
}

// readVarint reads a variable byte integer, MQTT 5 §1.5.5. n is 0 if b ends
// before it does.
func readVarint(b []byte) (v uint32, n int, err error) {
	for n < len(b) {
		if n == 4 {
			break
		}
		v |= uint32(b[n]&0x7f) << (7 * n)
		n++
		if b[n-1] < 0x80 {
			return v, n, nil
		}
	}
	if n == 4 {
		return 0, 0, malformed("a variable byte integer is longer than 4 bytes")
	}
	return 0, 0, nil
}

// bytes takes binary data, MQTT 5 §1.5.6.
func (c *cursor) bytes() []byte { return c.take(int(c.uint16())) }

// text takes a string, MQTT 5 §1.5.4.
func (c *cursor) text() []byte {
	s := c.bytes()
	if !utf8.Valid(s) { // surrogates are not valid, either
		c.fail(malformed("a string is not UTF-8"))
		return nil
	}
	if bytes.IndexByte(s, 0) >= 0 {
		c.fail(malformed("a string contains U+0000"))
		return nil
	}
	return s
}

// properties takes and validates the properties of a packet of type t.
func (c *cursor) properties(t Type) Properties {
	p := Properties(c.take(int(c.varint())))
	if c.err == nil {
		if _, err := p.check(t); err != nil {
			c.fail(err)
		}
	}
	return p
}

// end is the error of the packet as a whole: what is left over is one.
func (c *cursor) end(t Type) error {
	if c.err == nil && len(c.b) > 0 {
		c.err = malformed("%d bytes too many", len(c.b))
	}
	if e, ok := c.err.(*Error); ok {
		return &Error{Reason: e.Reason, Text: t.String() + ": " + e.Text}
	}
	return nil
}
