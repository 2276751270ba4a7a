package localbroker

import (
	"errors"
	"fmt"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// laneSize is how many packet identifiers the copies of a class have. The
// identifier follows from the copy's ordinal, so that it is the same after a
// restart: MQTT 5 [MQTT-4.4.0-1].
const laneSize = numPacketIDs / int(buffer.NumClasses)

// lane is what a kept session has of one class.
type lane struct {
	outbox *buffer.Outbox
	base   int // packet identifiers base+1 to base+laneSize are its own

	// Guarded by kept.mu:
	flights ring[flight] // copies that were sent on this connection, from ordinal first on
	first   uint64
	resumed map[uint64]flightState // copies of earlier ones whose PUBREC came, and which were not met again yet
	rec     uint64                 // of all QoS 2 copies up to here a PUBREC came
	flushed uint64                 // and that is being made durable up to here
	durable uint64                 // and is

	outOfTurn map[uint64]bool // copies above rec whose PUBREC came and is durable
}

// makeLanes makes those of a class that sessions do not have yet, durably and in one
// write, for the first message may be for all of them. A session that has ended gets
// none.
func (b *Broker) makeLanes(class buffer.Class, all ...*kept) error {
	have := func(k *kept) bool { return k.lanes[class].Load() != nil }
	missing := 0
	for _, k := range all {
		if !have(k) {
			missing++
		}
	}
	if missing == 0 {
		return nil
	}
	b.making.Lock()
	defer b.making.Unlock()
	without := make([]*kept, 0, missing)
	names := make([]string, 0, missing)
	for _, k := range all {
		if !have(k) && !k.over {
			without = append(without, k)
			names = append(names, outboxName(k.s.id, k.id))
		}
	}
	outboxes, err := b.options.State.buffer.MakeOutboxes(class, names...)
	if err != nil {
		return fmt.Errorf("%w: %v", buffer.ErrFailed, err)
	}
	for i, k := range without {
		if !have(k) { // it may be among them twice
			k.add(outboxes[i])
		}
	}
	return nil
}

// end has no more lanes made, and returns the outboxes of those there are.
func (k *kept) end() []*buffer.Outbox {
	b := k.s.b
	b.making.Lock()
	defer b.making.Unlock()
	k.over = true
	return k.outboxes()
}

// add makes a lane of an outbox.
func (k *kept) add(o *buffer.Outbox) *lane {
	limits := &k.s.b.limits
	o.SetLimit(buffer.OutboxLimit{Messages: uint64(limits.QueuedMessages), Bytes: int64(limits.QueuedBytes), Window: uint64(laneSize), Dropped: k.s.dropped})
	l := &lane{outbox: o, base: int(o.Class()) * laneSize, rec: o.Marks().Received, outOfTurn: make(map[uint64]bool)}
	l.flushed, l.durable = l.rec, l.rec
	k.mu.Lock()
	k.added = append(k.added, l)
	k.mu.Unlock()
	k.lanes[o.Class()].Store(l)
	k.s.wake() // the reader begins with what is there
	return l
}

// outboxes returns those there are.
func (k *kept) outboxes() (all []*buffer.Outbox) {
	for class := range k.lanes {
		if l := k.lanes[class].Load(); l != nil {
			all = append(all, l.outbox)
		}
	}
	return all
}

// packetID is the identifier of a copy.
func (l *lane) packetID(ordinal uint64) uint16 {
	return uint16(l.base + int((ordinal-1)%uint64(laneSize)) + 1)
}

// errEnded is given for a session that has ended meanwhile.
var errEnded = errors.New("the session has ended")

// copy is the copy of a message that a session gets.
func (k *kept) copy(d *delivery, class buffer.Class) (buffer.Copy, error) {
	if err := k.s.b.makeLanes(class, k); err != nil {
		return buffer.Copy{}, err
	}
	l := k.lanes[class].Load()
	if l == nil {
		return buffer.Copy{}, errEnded
	}
	c := buffer.Copy{Outbox: l.outbox, QoS: d.qos, Retain: d.retain}
	var props packet.Properties
	for _, id := range d.ids {
		props = props.AppendUint(packet.SubscriptionID, id)
	}
	c.Props = props
	if d.group != nil {
		c.Topic = joinShare(d.group.all.filter, d.m.Topic)
	}
	return c, nil
}
