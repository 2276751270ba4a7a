package localbroker

import (
	"context"
	"strings"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// answer queues what append makes, to be written before anything of the
// session. A client that does not read its answers is not read from, either.
func (c *conn) answer(ctx context.Context, append func([]byte) []byte) error {
	if err := c.await(ctx, func() bool { return len(c.control) < controlSize }); err != nil {
		return err
	}
	c.mu.Lock()
	c.control = append(c.control)
	c.mu.Unlock()
	c.b.stats.packetsOut.Add(1)
	return nil
}

// await waits until ready, which is called with c.mu held, is true.
func (c *conn) await(ctx context.Context, ready func() bool) error {
	c.mu.Lock()
	ok := ready()
	c.mu.Unlock()
	if ok {
		return nil
	}
	c.wake() // what is waited for may depend on what was not written yet
	c.fanout.wake()
	for {
		select {
		case <-c.room:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		c.mu.Lock()
		ok := ready()
		c.mu.Unlock()
		if ok {
			c.last = time.Now() // the wait was ours, not the client's
			return nil
		}
	}
}

// signal tells await to look again.
func (c *conn) signal() {
	select {
	case c.room <- struct{}{}:
	default:
	}
}

// wake makes sure that what the session has is written.
func (c *conn) wake() {
	c.mu.Lock()
	c.again = true
	c.startWriting()
	c.mu.Unlock()
}

// startWriting starts the writing goroutine if there is none; c.mu is held.
func (c *conn) startWriting() {
	if !c.writing && !c.closed {
		c.writing = true
		c.writers.Add(1)
		go c.write()
	}
}

// write writes until nothing is left, several packets at a time.
func (c *conn) write() {
	defer c.writers.Done()
	buf := c.b.buffers.Get().(*[]byte)
	err := c.guard(func() error { return c.writeAll(buf) })
	if cap(*buf) <= 2*writeSize {
		c.b.buffers.Put(buf)
	}
	if err != nil {
		c.mu.Lock()
		c.writing, c.closed = false, true
		c.mu.Unlock()
		c.end(err)
	}
}

func (c *conn) writeAll(buf *[]byte) error {
	var space [64]outgoing
	batch := space[:0]
	for {
		c.mu.Lock()
		if len(c.control) == 0 && !c.again {
			c.writing, c.control = false, nil
			c.mu.Unlock()
			return nil
		}
		c.again = false
		dst := append((*buf)[:0], c.control...)
		full := len(c.control) >= controlSize
		c.control = c.control[:0]
		timeout := c.timeout
		c.mu.Unlock()
		if full {
			c.signal()
		}
		for more := c.session != nil; more && len(dst) < writeSize; {
			var err error
			batch, more, err = c.session.take(c, batch[:0], writeSize-len(dst))
			dst = c.encode(dst, batch)
			if err != nil {
				return packet.Errorf(packet.ImplementationSpecific, "what waits for the client could not be read: %v", err)
			}
			if more {
				c.mu.Lock()
				c.again = true
				c.mu.Unlock()
			}
		}
		clear(space[:]) // hold no message while waiting for the client
		*buf = dst
		if len(dst) == 0 {
			continue
		}
		if err := c.nc.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
			return err
		}
		n, err := c.nc.Write(dst)
		c.b.stats.bytesOut.Add(uint64(n))
		if err != nil {
			return err
		}
	}
}

// encode appends the packets of a batch.
func (c *conn) encode(dst []byte, batch []outgoing) []byte {
	var p packet.Publish
	now := time.Now()
	published, payload := uint64(0), uint64(0)
	for i := range batch {
		o := &batch[i]
		if o.release {
			rel := packet.Ack{PacketID: o.packetID}
			dst = rel.Append(dst, c.version, packet.PUBREL)
			continue
		}
		p = packet.Publish{
			Topic:           o.m.Topic,
			Payload:         o.m.Payload,
			PacketID:        o.packetID,
			QoS:             o.qos,
			Dup:             o.dup,
			Retain:          o.retain,
			Props:           o.m.Props,
			SubscriptionIDs: o.ids,
		}
		p.Expiry, p.HasExpiry, _ = o.m.expiresIn(now)
		fresh := c.shorten(&p)
		start := len(dst)
		dst = p.Append(dst, c.version)
		if c.maxPacket > 0 && len(dst)-start > c.maxPacket { // [MQTT-3.1.2-25]
			dst = dst[:start]
			if fresh {
				delete(c.outAliases, o.m.Topic) // the client was not told of it
				c.outAliasBytes -= len(o.m.Topic)
			}
			c.b.stats.dropped.Add(1)
			if o.packetID != 0 && c.session.refuse(c, o.packetID) {
				c.wake()
			}
			continue
		}
		published++
		payload += uint64(len(o.m.Payload))
	}
	if published > 0 {
		c.b.stats.publishesOut.Add(published)
		c.b.stats.payloadOut.Add(payload)
	}
	return dst
}

// shorten lets an alias stand for the topic, if the client takes aliases and has
// learned this one, and makes it known if there is one left: MQTT 5 §3.3.2.3.4. It
// reports whether the alias is new. Only the writing goroutine calls it.
func (c *conn) shorten(p *packet.Publish) (fresh bool) {
	if c.maxAlias == 0 {
		return false
	}
	if a, ok := c.outAliases[p.Topic]; ok {
		p.Alias, p.Topic = a, ""
		return false
	}
	if len(c.outAliases) >= int(c.maxAlias) || c.outAliasBytes+len(p.Topic) > c.b.limits.aliasBytes() {
		return false
	}
	if c.outAliases == nil {
		c.outAliases = make(map[string]uint16)
	}
	p.Alias = uint16(len(c.outAliases) + 1)
	c.outAliases[strings.Clone(p.Topic)] = p.Alias
	c.outAliasBytes += len(p.Topic)
	return true
}

// sendPubrels sends PUBRELs, from any goroutine.
func (c *conn) sendPubrels(ids []uint16) {
	if len(ids) == 0 {
		return
	}
	c.b.stats.packetsOut.Add(uint64(len(ids)))
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		rel := packet.Ack{PacketID: id}
		c.control = rel.Append(c.control, c.version, packet.PUBREL)
	}
	c.startWriting()
}
