package localbroker

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// Nothing is acknowledged or delivered before it is durable, and everything in
// the order in which it came, whether it has to be durable or not.
func TestAcknowledgedWhenDurable(t *testing.T) {
	both(t, func(t *testing.T, v packet.Version) {
		d := newDisk()
		b := start(t, Options{Buffer: d, Router: routes{"alert/": buffer.Alert, "data/": buffer.Telemetry}})
		sub, pub := connect(t, b, v, "sub"), connect(t, b, v, "pub")
		sub.sub("#")
		pub.publish("free", "0", 1, 1)
		pub.expectAck(1)
		sub.want("free=0 q1")

		for i, topic := range []string{"data/1", "free", "alert/2", "data/3", "free", "data/4"} {
			pub.publish(topic, fmt.Sprint(i+1), byte(i%2), uint16(i+1)*uint16(i%2), retain)
		}
		d.await(t, 4)
		pub.nothing()
		sub.nothing()
		late := connect(t, b, v, "late")
		late.sub("#")
		late.nothing() // nothing is retained, either
		d.commit(1, nil)
		d.commit(3, nil)
		pub.nothing()
		sub.nothing()
		d.commit(0, nil)
		sub.want("data/1=1 q0", "free=2 q1", "alert/2=3 q0")
		pub.expectAck(2)
		pub.nothing()
		sub.nothing()
		d.commit(2, nil)
		pub.expectAck(4)
		pub.expectAck(6)
		sub.want("data/3=4 q1", "free=5 q0", "data/4=6 q1")
		pub.publish("free", "7", 1, 7)
		pub.expectAck(7)
		sub.want("free=7 q1")
	})
}

// What cannot be made durable is neither routed nor retained.
func TestRefusedByTheDisk(t *testing.T) {
	for _, c := range []struct {
		name   string
		err    error
		append bool // Append fails; otherwise the receipt says so
		want   packet.Reason
	}{
		{"full", buffer.ErrFull, false, packet.QuotaExceeded},
		{"failed", fmt.Errorf("commit: %w", buffer.ErrFailed), false, packet.ImplementationSpecific},
		{"too large", buffer.ErrTooLarge, true, packet.QuotaExceeded},
		{"closed", buffer.ErrClosed, true, packet.ImplementationSpecific},
		{"other", errors.New("other"), true, packet.Unspecified},
	} {
		t.Run(c.name, func(t *testing.T) {
			both(t, func(t *testing.T, v packet.Version) {
				d := newDisk()
				b := start(t, Options{Buffer: d, Router: routes{"data/": buffer.Telemetry}})
				sub, pub := connect(t, b, v, "sub"), connect(t, b, v, "pub")
				sub.sub("#")
				if c.append {
					d.fail = c.err
				}
				pub.publish("data/0", "x", 0, 0, retain)
				pub.publish("data/1", "x", 1, 1, retain)
				if !c.append {
					d.await(t, 2)
					d.commit(0, c.err)
					d.commit(1, c.err)
				}
				if v == packet.V5 {
					if r := pub.expectAck(1); r != c.want {
						t.Errorf("PUBACK %v, want %v", r, c.want)
					}
					pub.nothing()
				} else {
					pub.closed(0)
				}
				sub.nothing()
				if s := b.Stats(); s.RetainedMessages != 0 || s.PublishesRefused != 2 {
					t.Errorf("%d retained, %d refused", s.RetainedMessages, s.PublishesRefused)
				}
			})
		})
	}
}

// The read loop goes on while the disk is busy, up to the Receive Maximum.
func TestReceiveMaximumOfTheBroker(t *testing.T) {
	d := newDisk()
	b := start(t, Options{Buffer: d, Router: routes{"data/": buffer.Telemetry}, Limits: Limits{ReceiveMaximum: 3}})
	pub := connect(t, b, packet.V5, "pub")
	for id := range uint16(3) {
		pub.publish("data/x", "x", 1, id+1)
	}
	d.await(t, 3)
	pub.nothing()
	pub.publish("data/x", "x", 1, 4)
	pub.closed(packet.ReceiveMaximumExceeded)

	// 3.1.1 knows no such limit: it is not read from until there is room.
	pub = connect(t, b, packet.V311, "pub311")
	for id := range uint16(10) {
		pub.publish("data/x", "x", 1, id+1)
	}
	for i := 3; i < 13; i++ {
		d.await(t, i+1)
		d.commit(i, nil)
		pub.expectAck(uint16(i - 2))
	}
}

func TestTakeover(t *testing.T) {
	both(t, func(t *testing.T, v packet.Version) {
		d := newDisk()
		b := start(t, Options{Buffer: d, Router: routes{"data/": buffer.Telemetry}})
		sub := connect(t, b, v, "sub")
		sub.sub("#")
		will := func(p *packet.Connect) { p.Will = &packet.Will{Topic: "status", Payload: []byte("offline")} }
		old := connect(t, b, v, "c", will)
		old.sub("mine")
		old.publish("data/old", "x", 1, 1)
		d.await(t, 1)
		c := connect(t, b, v, "c", will)
		old.closed(packet.SessionTakenOver)
		c.publish("status", "online", 1, 1)
		c.nothing()
		d.commit(0, nil)
		c.expectAck(1)
		// What the old connection did comes first.
		sub.want("data/old=x q1", "status=offline q0", "status=online q1")
		sub.publish("mine", "x", 0, 0)
		sub.want("mine=x q0")
		c.nothing() // the old session is gone
		if s := b.Stats(); s.Clients != 2 || s.Takeovers != 1 || s.Subscriptions != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func TestWill(t *testing.T) {
	both(t, func(t *testing.T, v packet.Version) {
		d := newDisk()
		b := start(t, Options{Buffer: d, Router: routes{"data/": buffer.Alert}})
		sub := connect(t, b, v, "sub")
		sub.sub("#")
		will := func(p *packet.Connect) {
			p.Will = &packet.Will{Topic: "data/will", Payload: []byte("gone"), QoS: 1, Retain: true}
			if v == packet.V5 {
				p.Will.Props = packet.Properties{}.AppendUint(packet.WillDelay, 1000).AppendText(packet.ContentType, "t").AppendUint(packet.MessageExpiry, 30)
			}
		}
		polite := connect(t, b, v, "polite", will)
		polite.send((&packet.Disconnect{}).Append(nil, v, packet.DISCONNECT))
		polite.closed(0)
		cut := connect(t, b, v, "cut", will)
		cut.nc.Close()
		d.await(t, 1) // by the same way as any publish
		sub.nothing()
		d.commit(0, nil)
		p := sub.expectPublish()
		if p.Topic != "data/will" || string(p.Payload) != "gone" || p.QoS != 1 || v == packet.V5 && (p.Props.Text(packet.ContentType) != "t" || len(p.Props) != 4 || p.Expiry != 30) {
			t.Errorf("will %+v", p)
		}
		if b.Stats().RetainedMessages != 1 {
			t.Error("it is not retained")
		}
		if v == packet.V5 {
			asked := connect(t, b, v, "asked", will)
			asked.send((&packet.Disconnect{Reason: packet.DisconnectWithWill}).Append(nil, v, packet.DISCONNECT))
			asked.closed(0)
			d.await(t, 2)
			d.commit(1, nil)
		}
	})
}

// told is a Receipt.
type told chan error

func (c told) Stored(err error) { c <- err }

func TestOwnPublish(t *testing.T) {
	d := newDisk()
	b := New(Options{Buffer: d, Router: routes{"data/": buffer.Telemetry}, Limits: Limits{RetainedMessages: 1}})
	got := make(chan string, 10)
	cancel, err := b.Subscribe("#", 2, func(m *Message) { got <- fmt.Sprintf("%s=%s q%d", m.Topic, m.Payload, m.QoS) })
	if err != nil {
		t.Fatal(err)
	}
	defer cancel()
	next := func() string {
		select {
		case s := <-got:
			return s
		case <-time.After(patience):
			return "nothing"
		}
	}
	ctx, r := t.Context(), make(told, 1)
	if err := b.Publish(ctx, &Message{Topic: "free", Payload: []byte("1"), QoS: 2}, r); err != nil || <-r != nil || next() != "free=1 q2" {
		t.Errorf("a publish that need not be durable: %v", err)
	}
	if err := b.Publish(ctx, &Message{Topic: "data/1", Payload: []byte("2"), QoS: 1, Retain: true}, r); err != nil {
		t.Error(err)
	}
	if len(r)+len(got) > 0 || b.Stats().RetainedMessages > 0 {
		t.Error("delivered before it is durable")
	}
	d.commit(0, nil)
	if err := <-r; err != nil || next() != "data/1=2 q1" || b.Stats().RetainedMessages != 1 {
		t.Errorf("a durable publish: %v", err)
	}
	if err := b.Publish(ctx, &Message{Topic: "data/1"}, r); err != nil {
		t.Error(err)
	}
	d.commit(1, buffer.ErrFull)
	if err := <-r; !errors.Is(err, buffer.ErrFull) {
		t.Errorf("told %v", err)
	}
	d.fail = context.DeadlineExceeded
	for _, m := range []*Message{{Topic: "data/1"}, {Topic: "a/#"}, {Topic: ""}, {Topic: "a", Props: packet.Properties{0xff}}, {Topic: "other", Retain: true, Payload: []byte("x")}} {
		if err := b.Publish(ctx, m, r); err == nil {
			t.Errorf("%+v is accepted", m)
		}
	}
	if len(r)+len(got) > 0 {
		t.Error("something of a failed publish got through")
	}
	late := make(chan string, 10)
	cancel2, err := b.Subscribe("data/+", 0, func(m *Message) { late <- fmt.Sprint(m.Topic, m.Retain) })
	if err != nil {
		t.Fatal(err)
	}
	if s := <-late; s != "data/1true" {
		t.Errorf("retained: %s", s)
	}
	cancel2()
	if err := b.Publish(ctx, &Message{Topic: "data"}, nil); err != nil || len(late) > 0 {
		t.Error("a handler is called after it was cancelled")
	}
	if _, err := b.Subscribe("a#", 0, func(*Message) {}); err == nil {
		t.Error("a wrong filter is accepted")
	}
}
