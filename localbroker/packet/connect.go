package packet

import (
	"bytes"
	"encoding/binary"
)

// Connect is a CONNECT packet, MQTT 5 §3.1.
type Connect struct {
	Version     Version
	ClientID    string
	CleanStart  bool   // Clean Session of 3.1.1
	KeepAlive   uint16 // seconds
	HasUsername bool
	HasPassword bool
	Username    string
	Password    []byte
	Will        *Will // nil is none
	Props       Properties
}

// Will is the will in a CONNECT packet.
type Will struct {
	Topic   string
	Payload []byte
	QoS     byte
	Retain  bool
	Props   Properties // with the delay and the message expiry
}

const (
	flagCleanStart = 1 << 1
	flagWill       = 1 << 2
	flagWillRetain = 1 << 5
	flagPassword   = 1 << 6
	flagUsername   = 1 << 7
)

// Decode decodes the body of a CONNECT; c keeps no part of it. If only the
// version is not supported, the error's reason is UnsupportedVersion and
// c.Version is what the client speaks.
func (c *Connect) Decode(body []byte) error {
	*c = Connect{}
	r := cursor{b: bytes.Clone(body)}
	name := r.text()
	c.Version = Version(r.byte())
	switch {
	case r.err != nil:
		return r.end(CONNECT)
	case string(name) == "MQIsdp" || string(name) == "MQTT" && c.Version != V311 && c.Version != V5:
		return Errorf(UnsupportedVersion, "CONNECT: protocol %s level %d", name, byte(c.Version))
	case string(name) != "MQTT": // [MQTT-3.1.2-1]
		return Errorf(UnsupportedVersion, "CONNECT: protocol %.20q", name)
	}
	flags := r.byte()
	c.KeepAlive = r.uint16()
	c.CleanStart = flags&flagCleanStart != 0
	c.HasUsername, c.HasPassword = flags&flagUsername != 0, flags&flagPassword != 0
	switch {
	case flags&1 != 0: // [MQTT-3.1.2-3]
		r.fail(malformed("the reserved flag is set"))
	case flags&flagWill == 0 && flags&(3<<3|flagWillRetain) != 0: // [MQTT-3.1.2-11], [MQTT-3.1.2-13]
		r.fail(malformed("will flags without a will"))
	case flags>>3&3 == 3: // [MQTT-3.1.2-12]
		r.fail(malformed("a will with QoS 3"))
	case c.Version == V311 && c.HasPassword && !c.HasUsername: // 3.1.1 [MQTT-3.1.2-22]
		r.fail(malformed("a password without a user name"))
	}
	if c.Version == V5 {
		c.Props = r.properties(CONNECT)
		if _, ok := c.Props.Bytes(AuthMethod); !ok {
			if _, ok := c.Props.Bytes(AuthData); ok { // §3.1.2.11.10
				r.fail(protocolError("authentication data without a method"))
			}
		}
	}
	c.ClientID = string(r.text())
	if flags&flagWill != 0 {
		w := &Will{QoS: flags >> 3 & 3, Retain: flags&flagWillRetain != 0}
		if c.Version == V5 {
			w.Props = r.properties(will)
		}
		w.Topic = string(r.text())
		w.Payload = r.bytes()
		c.Will = w
	}
	if c.HasUsername {
		c.Username = string(r.text())
	}
	if c.HasPassword {
		c.Password = r.bytes()
	}
	return r.end(CONNECT)
}

// Append appends the packet.
func (c *Connect) Append(dst []byte) []byte {
	start := len(dst)
	dst = append(appendBytes(dst, "MQTT"), byte(c.Version))
	var flags byte
	if c.CleanStart {
		flags |= flagCleanStart
	}
	if w := c.Will; w != nil {
		flags |= flagWill | w.QoS<<3
		if w.Retain {
			flags |= flagWillRetain
		}
	}
	if c.HasUsername {
		flags |= flagUsername
	}
	if c.HasPassword {
		flags |= flagPassword
	}
	dst = binary.BigEndian.AppendUint16(append(dst, flags), c.KeepAlive)
	if c.Version == V5 {
		dst = appendProperties(dst, c.Props)
	}
	dst = appendBytes(dst, c.ClientID)
	if w := c.Will; w != nil {
		if c.Version == V5 {
			dst = appendProperties(dst, w.Props)
		}
		dst = appendBytes(appendBytes(dst, w.Topic), w.Payload)
	}
	if c.HasUsername {
		dst = appendBytes(dst, c.Username)
	}
	if c.HasPassword {
		dst = appendBytes(dst, c.Password)
	}
	return endPacket(dst, start, byte(CONNECT)<<4)
}

// Connack is a CONNACK packet, MQTT 5 §3.2. With 3.1.1, Reason is the return code.
type Connack struct {
	SessionPresent bool
	Reason         Reason
	Props          Properties
}

// Decode decodes the body of a CONNACK. c.Props is part of it.
func (c *Connack) Decode(v Version, body []byte) error {
	*c = Connack{}
	r := cursor{b: body}
	flags := r.byte()
	c.SessionPresent = flags == 1
	c.Reason = Reason(r.byte())
	switch {
	case flags > 1: // [MQTT-3.2.2-1]
		r.fail(malformed("reserved flags are set"))
	case v == V311 && c.Reason > 5, v == V5 && !c.Reason.allowed(CONNACK):
		r.fail(malformed("reason %#02x", byte(c.Reason)))
	case c.SessionPresent && c.Reason != Success: // [MQTT-3.2.2-6]
		r.fail(protocolError("a session is present in a refusal"))
	}
	if v == V5 {
		c.Props = r.properties(CONNACK)
	}
	return r.end(CONNACK)
}

// Append appends the packet.
func (c *Connack) Append(dst []byte, v Version) []byte {
	start := len(dst)
	flags := byte(0)
	if c.SessionPresent {
		flags = 1
	}
	dst = append(dst, flags, byte(c.Reason))
	if v == V5 {
		dst = appendProperties(dst, c.Props)
	}
	return endPacket(dst, start, byte(CONNACK)<<4)
}
