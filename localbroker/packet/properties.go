package packet

import (
	"encoding/binary"
	"iter"
	"slices"
	"strings"
)

// Property is the identifier of a property, MQTT 5 §2.2.2.2.
type Property byte

// The properties of MQTT 5.
const (
	PayloadFormat        Property = 0x01
	MessageExpiry        Property = 0x02
	ContentType          Property = 0x03
	ResponseTopic        Property = 0x08
	CorrelationData      Property = 0x09
	SubscriptionID       Property = 0x0B
	SessionExpiry        Property = 0x11
	AssignedClientID     Property = 0x12
	ServerKeepAlive      Property = 0x13
	AuthMethod           Property = 0x15
	AuthData             Property = 0x16
	RequestProblemInfo   Property = 0x17
	WillDelay            Property = 0x18
	RequestResponseInfo  Property = 0x19
	ResponseInfo         Property = 0x1A
	ServerReference      Property = 0x1C
	ReasonString         Property = 0x1F
	ReceiveMaximum       Property = 0x21
	TopicAliasMaximum    Property = 0x22
	TopicAlias           Property = 0x23
	MaximumQoS           Property = 0x24
	RetainAvailable      Property = 0x25
	UserProperty         Property = 0x26
	MaximumPacketSize    Property = 0x27
	WildcardAvailable    Property = 0x28
	SubscriptionIDsAvail Property = 0x29
	SharedAvailable      Property = 0x2A
	numProperties                 = 0x2B
	will                 Type     = 0 // stands for the properties of a will
	everyType                     = 1<<(AUTH+1) - 1
	typesWithReason               = 1<<CONNACK | 1<<PUBACK | 1<<PUBREC | 1<<PUBREL | 1<<PUBCOMP | 1<<SUBACK | 1<<UNSUBACK | 1<<DISCONNECT | 1<<AUTH
)

// kind is the data type of a property.
type kind byte

const (
	kindByte kind = iota + 1 // 0 or 1, all of them
	kindUint16
	kindUint32
	kindVarint
	kindText
	kindBinary
	kindPair
)

// form says of a property what it is and in which types of packets, as bits, it may be.
func (id Property) form() (k kind, types uint16) {
	switch id {
	case PayloadFormat:
		return kindByte, 1<<PUBLISH | 1<<will
	case MessageExpiry:
		return kindUint32, 1<<PUBLISH | 1<<will
	case ContentType, ResponseTopic:
		return kindText, 1<<PUBLISH | 1<<will
	case CorrelationData:
		return kindBinary, 1<<PUBLISH | 1<<will
	case SubscriptionID:
		return kindVarint, 1<<PUBLISH | 1<<SUBSCRIBE
	case SessionExpiry:
		return kindUint32, 1<<CONNECT | 1<<CONNACK | 1<<DISCONNECT
	case AssignedClientID, ResponseInfo:
		return kindText, 1 << CONNACK
	case ServerKeepAlive:
		return kindUint16, 1 << CONNACK
	case AuthMethod:
		return kindText, 1<<CONNECT | 1<<CONNACK | 1<<AUTH
	case AuthData:
		return kindBinary, 1<<CONNECT | 1<<CONNACK | 1<<AUTH
	case RequestProblemInfo, RequestResponseInfo:
		return kindByte, 1 << CONNECT
	case WillDelay:
		return kindUint32, 1 << will
	case ServerReference:
		return kindText, 1<<CONNACK | 1<<DISCONNECT
	case ReasonString:
		return kindText, typesWithReason
	case ReceiveMaximum, TopicAliasMaximum:
		return kindUint16, 1<<CONNECT | 1<<CONNACK
	case TopicAlias:
		return kindUint16, 1 << PUBLISH
	case MaximumQoS, RetainAvailable, WildcardAvailable, SubscriptionIDsAvail, SharedAvailable:
		return kindByte, 1 << CONNACK
	case UserProperty:
		return kindPair, everyType &^ (1<<PINGREQ | 1<<PINGRESP)
	case MaximumPacketSize:
		return kindUint32, 1<<CONNECT | 1<<CONNACK
	}
	return 0, 0
}

// Properties are properties of MQTT 5 as they are on the wire, without their
// length. What a decoder returned is valid; methods on anything else may find
// nothing, but do not fail.
type Properties []byte

// next takes the first property from p.
func (p *Properties) next() (id Property, value []byte, err error) {
	c := cursor{b: *p}
	id = Property(c.byte())
	rest := c.b
	k, _ := id.form()
	switch k {
	case kindByte:
		c.take(1)
	case kindUint16:
		c.take(2)
	case kindUint32:
		c.take(4)
	case kindVarint:
		c.varint()
	case kindText:
		c.text()
	case kindBinary:
		c.bytes()
	case kindPair:
		c.text()
		c.text()
	default:
		c.fail(malformed("property %#02x does not exist", byte(id)))
	}
	if c.err != nil {
		return id, nil, c.err
	}
	*p = Properties(c.b)
	return id, rest[:len(rest)-len(c.b)], nil
}

// all iterates over the properties and their values as they are on the wire.
func (p Properties) all() iter.Seq2[Property, []byte] {
	return func(yield func(Property, []byte) bool) {
		for len(p) > 0 {
			id, v, err := p.next()
			if err != nil || !yield(id, v) {
				return
			}
		}
	}
}

// check validates p as the properties of a packet of type t. It returns the
// set of those that are there, as bits.
func (p Properties) check(t Type) (set uint64, err error) {
	for len(p) > 0 {
		id, v, err := p.next()
		if err != nil {
			return 0, err
		}
		if _, types := id.form(); types&(1<<t) == 0 {
			return 0, malformed("property %#02x has no place here", byte(id))
		}
		repeatable := id == UserProperty || id == SubscriptionID && t == PUBLISH
		if set&(1<<id) != 0 && !repeatable {
			return 0, protocolError("property %#02x twice", byte(id))
		}
		set |= 1 << id
		if err := id.checkValue(v); err != nil {
			return 0, err
		}
	}
	return set, nil
}

func (id Property) checkValue(v []byte) error {
	switch k, _ := id.form(); {
	case k == kindByte && v[0] > 1:
		return protocolError("property %#02x is %d", byte(id), v[0])
	case id == TopicAlias && number(v) == 0: // MQTT 5 §3.3.2.3.4
		return Errorf(TopicAliasInvalid, "topic alias 0")
	case (id == ReceiveMaximum || id == MaximumPacketSize || id == SubscriptionID) && number(v) == 0:
		return protocolError("property %#02x is 0", byte(id))
	case id == ResponseTopic && (len(v) == 2 || strings.ContainsAny(string(v[2:]), "+#")): // [MQTT-3.3.2-14]
		return protocolError("the response topic is no topic name")
	}
	return nil
}

// number is the value of a number on the wire, at least where being 0 is
// concerned also of a variable byte integer.
func number(v []byte) (n uint32) {
	for _, b := range v {
		n = n<<8 | uint32(b)
	}
	return n
}

// Uint returns the first number with this identifier: a byte, an integer of 2
// or 4 bytes, or a variable byte integer.
func (p Properties) Uint(id Property) (v uint32, ok bool) {
	for have, b := range p.all() {
		if have != id {
			continue
		}
		switch k, _ := id.form(); k {
		case kindByte, kindUint16, kindUint32:
			return number(b), true
		case kindVarint:
			v, _, _ = readVarint(b)
			return v, true
		}
	}
	return 0, false
}

// Bytes returns the first string or binary data with this identifier. It is part of p.
func (p Properties) Bytes(id Property) (v []byte, ok bool) {
	for have, b := range p.all() {
		if k, _ := id.form(); have == id && (k == kindText || k == kindBinary) {
			return b[2:], true
		}
	}
	return nil, false
}

// Text returns the first string with this identifier, or "".
func (p Properties) Text(id Property) string {
	v, _ := p.Bytes(id)
	return string(v)
}

// Without returns the properties that are none of ids, in their order and in
// memory of their own.
func (p Properties) Without(ids ...Property) Properties {
	var kept Properties
	for rest := p; len(rest) > 0; {
		whole := rest
		id, _, err := rest.next()
		if err != nil {
			break
		}
		if !slices.Contains(ids, id) {
			kept = append(kept, whole[:len(whole)-len(rest)]...)
		}
	}
	return kept
}

// User iterates over the user properties, in their order.
func (p Properties) User() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for id, b := range p.all() {
			if id != UserProperty {
				continue
			}
			c := cursor{b: b}
			if key, value := c.bytes(), c.bytes(); !yield(string(key), string(value)) {
				return
			}
		}
	}
}

// AppendUint appends a number: a byte, an integer of 2 or 4 bytes, or a
// variable byte integer, as id has it.
func (p Properties) AppendUint(id Property, v uint32) Properties {
	p = append(p, byte(id))
	switch k, _ := id.form(); k {
	case kindByte:
		return append(p, byte(v))
	case kindUint16:
		return binary.BigEndian.AppendUint16(p, uint16(v))
	case kindVarint:
		return appendVarint(p, v)
	}
	return binary.BigEndian.AppendUint32(p, v)
}

// AppendText appends a string or binary data of at most 65,535 bytes.
func (p Properties) AppendText(id Property, s string) Properties {
	return appendBytes(append(p, byte(id)), s)
}

// AppendUser appends a user property; key and value have at most 65,535 bytes.
func (p Properties) AppendUser(key, value string) Properties {
	return appendBytes(appendBytes(append(p, byte(UserProperty)), key), value)
}

// appendProperties appends p with its length.
func appendProperties(dst []byte, p Properties) []byte {
	return append(appendVarint(dst, uint32(len(p))), p...)
}

// CheckPublish validates p as properties of a PUBLISH without message expiry, topic
// alias and subscription identifiers, for a message that was not decoded.
func (p Properties) CheckPublish() error {
	set, err := p.check(PUBLISH)
	if err == nil && set&(1<<MessageExpiry|1<<TopicAlias|1<<SubscriptionID) != 0 {
		err = protocolError("a message's own properties hold its expiry, an alias or a subscription identifier")
	}
	return err
}
