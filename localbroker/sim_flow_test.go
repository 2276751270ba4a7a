package localbroker

import (
	"slices"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// How the clients of TestSimulation publish and acknowledge.

// resend sends what was not acknowledged on earlier connections, MQTT 5 [MQTT-4.4.0-1];
// without a session there, the client has to forget it, and may publish it anew.
func (c *simClient) resend(present bool) {
	if present {
		for _, f := range c.out {
			f.on, f.released = c.link, f.received
			if f.received {
				c.send(packet.PUBREL, f.id)
			} else {
				c.sendPublish(f, true)
			}
		}
		return
	}
	var old []*simFlight
	for _, f := range c.out {
		if !f.received {
			old = append(old, f)
		}
	}
	c.forget()
	again := c.w.one(2)
	for _, f := range old {
		if again {
			f.p.loose = true
			c.launch(f.p)
		}
	}
}

// publish sends some messages at once.
func (c *simClient) publish(n int) {
	for range n {
		if c.version == packet.V5 && len(c.out) >= c.most {
			return
		}
		c.launch(c.w.newPublish(c, simTopics[c.w.dice.IntN(len(simTopics))], c.version))
	}
}

// launch sends a message for the first time, or as another one.
func (c *simClient) launch(p *simPublish) {
	f := &simFlight{p: p, on: c.link}
	if p.qos > 0 {
		f.id = c.newID()
		c.out = append(c.out, f)
	}
	c.sendPublish(f, false)
}

func (c *simClient) sendPublish(f *simFlight, dup bool) {
	c.w.sent(f.p)
	c.w.note("%s publishes %v as %d, dup %t", c.id, f.p, f.id, dup)
	p := packet.Publish{Topic: f.p.topic, Payload: f.p.payload, PacketID: f.id, QoS: f.p.qos, Dup: dup, Retain: f.p.retain, Props: f.p.props, Expiry: f.p.expiry, HasExpiry: f.p.expiry > 0}
	c.link.write(p.Append(nil, c.version))
}

// newID is a packet identifier that is not in use.
func (c *simClient) newID() uint16 {
	for {
		if c.ids++; c.ids == 0 || c.ids > 300 {
			c.ids = 1
		}
		if c.ops[c.ids] == nil && !slices.ContainsFunc(c.out, func(f *simFlight) bool { return f.id == c.ids }) {
			return c.ids
		}
	}
}

func (c *simClient) send(t packet.Type, id uint16) {
	c.link.write((&packet.Ack{PacketID: id}).Append(nil, c.version, t))
}

// takeAck takes what the broker says to a publish. Its answers come in the order of
// what they answer [MQTT-4.6.0-2], [MQTT-4.6.0-3], and [MQTT-4.6.0-4] from the other side.
func (c *simClient) takeAck(t packet.Type, p *packet.Ack) {
	w := c.w
	i := slices.IndexFunc(c.out, func(f *simFlight) bool {
		return f.on == c.link && (f.p.qos == 1) == (t == packet.PUBACK) && f.received == (t == packet.PUBCOMP)
	})
	if i < 0 || c.out[i].id != p.PacketID {
		w.fail("%s gets %v %d, which is not what it waits for", c.id, t, p.PacketID)
	}
	f := c.out[i]
	switch {
	case t == packet.PUBCOMP:
		if !f.released {
			w.fail("%s gets PUBCOMP %d without its PUBREL", c.id, f.id)
		}
		c.out = slices.Delete(c.out, i, i+1)
	case p.Reason.Failed():
		w.refusedFor(f.p, p.Reason)
		c.out = slices.Delete(c.out, i, i+1)
	case t == packet.PUBACK:
		w.acknowledged(f.p)
		c.out = slices.Delete(c.out, i, i+1)
	default:
		w.acknowledged(f.p)
		f.received = true
		c.acks = append(c.acks, simAck{packet.PUBREL, f.id})
	}
}

// takePublish takes a message. One of QoS 2 that the client has already is only
// acknowledged again.
func (c *simClient) takePublish(p *packet.Publish) {
	w := c.w
	if p.Alias > 0 {
		if p.Topic == "" {
			p.Topic = c.aliases[p.Alias]
		}
		c.aliases[p.Alias] = p.Topic
	}
	if p.QoS == 0 {
		c.deliver(p)
		return
	}
	if _, ok := c.incoming[p.PacketID]; ok {
		w.fail("%s gets a PUBLISH with the packet identifier %d, which is in use", c.id, p.PacketID)
	}
	c.incoming[p.PacketID] = p.QoS
	if len(c.incoming) > c.window { // [MQTT-3.3.4-9]
		w.fail("%s has %d messages at a time, its Receive Maximum is %d", c.id, len(c.incoming), c.window)
	}
	if p.QoS == 1 {
		c.acks = append(c.acks, simAck{packet.PUBACK, p.PacketID})
		c.deliver(p)
		return
	}
	c.acks = append(c.acks, simAck{packet.PUBREC, p.PacketID})
	switch is := c.recv[p.PacketID]; {
	case is == nil, c.session.blurred && is.payload != string(p.Payload):
		c.recv[p.PacketID] = &simArrival{payload: string(p.Payload), topic: p.Topic}
		c.deliver(p)
	case is.payload != string(p.Payload) || is.topic != p.Topic:
		w.fail("%s gets %.9q with the packet identifier %d of %.9q, which was not released", c.id, p.Payload, p.PacketID, is.payload)
	case !p.Dup:
		w.fail("%s gets %.9q again, and DUP is not set", c.id, p.Payload)
	}
}

// acknowledge sends up to n of the acknowledgements that wait, in order or not.
func (c *simClient) acknowledge(n int, shuffled bool) {
	for ; n > 0 && len(c.acks) > 0; n-- {
		i := 0
		if shuffled && c.acks[0].t != packet.PUBREL {
			i = c.w.dice.IntN(len(c.acks))
		}
		if c.acks[i].t == packet.PUBREL && i > 0 {
			continue // its order is that of the PUBRECs
		}
		a := c.acks[i]
		c.acks = slices.Delete(c.acks, i, i+1)
		switch a.t {
		case packet.PUBACK, packet.PUBCOMP:
			delete(c.incoming, a.id)
		case packet.PUBREL:
			for _, f := range c.out {
				if f.id == a.id {
					f.released = true
				}
			}
		}
		c.send(a.t, a.id)
	}
}
