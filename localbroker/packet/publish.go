package packet

import (
	"encoding/binary"
	"unsafe"
)

// Publish is a PUBLISH packet, MQTT 5 §3.3.
type Publish struct {
	Topic    string
	Payload  []byte
	PacketID uint16 // with QoS 1 and 2
	QoS      byte
	Dup      bool
	Retain   bool

	// Version 5 only. Props are the properties that belong to the message and
	// go with it unchanged and in their order; the others have their fields.
	Props           Properties
	Expiry          uint32 // seconds, if HasExpiry
	HasExpiry       bool
	Alias           uint16   // 0 is none
	SubscriptionIDs []uint32 // to a client
}

// Decode decodes a packet from its first byte and its body. Topic, Payload and
// Props are parts of body, so that nothing is copied: body must never change
// again, and lives as long as they do. Decode itself moves properties inside
// of it. p.SubscriptionIDs is used again.
func (p *Publish) Decode(v Version, first byte, body []byte) error {
	*p = Publish{QoS: first >> 1 & 3, Dup: first&8 != 0, Retain: first&1 != 0, SubscriptionIDs: p.SubscriptionIDs[:0]}
	r := cursor{b: body}
	if topic := r.text(); len(topic) > 0 {
		p.Topic = unsafe.String(&topic[0], len(topic)) // body never changes again
	}
	if p.QoS > 0 {
		p.PacketID = r.packetID()
	}
	if v == V5 {
		props := Properties(r.take(int(r.varint())))
		if len(props) > 0 && r.err == nil {
			if err := p.takeProperties(props); err != nil {
				r.fail(err)
			}
		}
	}
	p.Payload = r.b
	r.b = nil
	if r.err == nil && p.Topic == "" && p.Alias == 0 {
		r.err = protocolError("neither a topic nor an alias") // §3.3.2.1
	}
	return r.end(PUBLISH)
}

// takeProperties validates props and divides them between Props and the
// fields. What stays moves together.
func (p *Publish) takeProperties(props Properties) error {
	set, err := props.check(PUBLISH)
	if err != nil {
		return err
	}
	if set&(1<<MessageExpiry|1<<TopicAlias|1<<SubscriptionID) == 0 {
		p.Props = props
		return nil
	}
	kept := props[:0]
	for len(props) > 0 {
		whole := props
		id, value, err := props.next()
		if err != nil {
			return err
		}
		switch id {
		case MessageExpiry:
			p.Expiry, p.HasExpiry = number(value), true
		case TopicAlias:
			p.Alias = uint16(number(value))
		case SubscriptionID:
			n, _, _ := readVarint(value)
			p.SubscriptionIDs = append(p.SubscriptionIDs, n)
		default:
			kept = append(kept, whole[:len(whole)-len(props)]...)
		}
	}
	p.Props = kept[:len(kept):len(kept)]
	return nil
}

// Append appends the packet. What is the same for every receiver is copied as
// it is; only the header, the packet identifier and the properties that have
// their own fields are made anew.
func (p *Publish) Append(dst []byte, v Version) []byte {
	first := byte(PUBLISH)<<4 | p.QoS<<1
	if p.Dup {
		first |= 8
	}
	if p.Retain {
		first |= 1
	}
	length := 2 + len(p.Topic) + len(p.Payload)
	if p.QoS > 0 {
		length += 2
	}
	props := 0
	if v == V5 {
		props = p.propertiesSize()
		length += varintSize(uint32(props)) + props
	}
	dst = appendHeader(dst, first, length)
	dst = appendBytes(dst, p.Topic)
	if p.QoS > 0 {
		dst = binary.BigEndian.AppendUint16(dst, p.PacketID)
	}
	if v == V5 {
		dst = appendVarint(dst, uint32(props))
		if p.HasExpiry {
			dst = Properties(dst).AppendUint(MessageExpiry, p.Expiry)
		}
		if p.Alias > 0 {
			dst = Properties(dst).AppendUint(TopicAlias, uint32(p.Alias))
		}
		for _, id := range p.SubscriptionIDs {
			dst = Properties(dst).AppendUint(SubscriptionID, id)
		}
		dst = append(dst, p.Props...)
	}
	return append(dst, p.Payload...)
}

func (p *Publish) propertiesSize() int {
	n := len(p.Props)
	if p.HasExpiry {
		n += 5
	}
	if p.Alias > 0 {
		n += 3
	}
	for _, id := range p.SubscriptionIDs {
		n += 1 + varintSize(id)
	}
	return n
}
