package client_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/client"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// peer is the broker's side of a connection, for a script.
type peer struct {
	t  *testing.T
	nc net.Conn
	r  *packet.Reader
	v  packet.Version
}

var versions = []packet.Version{packet.V311, packet.V5}

// scripted connects to a broker that answers CONNECT with these properties and
// then does what run says.
func scripted(t *testing.T, v packet.Version, props packet.Properties, o client.Options, run func(p *peer)) *client.Client {
	t.Helper()
	o.Version = v
	o.Address = script(t, func(nc net.Conn, r *packet.Reader) {
		r.SetVersion(v)
		_, _ = nc.Write((&packet.Connack{Props: props}).Append(nil, v))
		run(&peer{t, nc, r, v})
		_, _, _ = r.Next() // until the client goes
	})
	return connect(t, o)
}

// next is the next packet from the client as text, such as "PUBREL 1".
func (p *peer) next() string {
	first, body, err := p.r.Next()
	if err != nil {
		return err.Error()
	}
	switch t := packet.TypeOf(first); t {
	case packet.PUBLISH:
		var m packet.Publish
		if err := m.Decode(p.v, first, body); err != nil {
			return err.Error()
		}
		return fmt.Sprintf("PUBLISH %d %s QoS %d %s", m.PacketID, m.Topic, m.QoS, m.Payload)
	case packet.PUBACK, packet.PUBREC, packet.PUBREL, packet.PUBCOMP:
		var a packet.Ack
		if err := a.Decode(p.v, t, body); err != nil {
			return err.Error()
		}
		if a.Reason != 0 {
			return fmt.Sprintf("%v %d %#x", t, a.PacketID, byte(a.Reason))
		}
		return fmt.Sprintf("%v %d", t, a.PacketID)
	default:
		return t.String()
	}
}

func (p *peer) expect(want string) {
	p.t.Helper()
	if got := p.next(); got != want {
		p.t.Errorf("the client sent %s, want %s", got, want)
	}
}

func (p *peer) ack(t packet.Type, id uint16, reason packet.Reason) {
	_, _ = p.nc.Write((&packet.Ack{PacketID: id, Reason: reason}).Append(nil, p.v, t))
}

func (p *peer) publish(id uint16, payload string, dup bool) {
	_, _ = p.nc.Write((&packet.Publish{Topic: "t", PacketID: id, QoS: 2, Dup: dup, Payload: []byte(payload)}).Append(nil, p.v))
}

// unknown is what follows a packet identifier that is not in use, MQTT 5 §4.3.3.
func (p *peer) unknown() string {
	if p.v == packet.V5 {
		return " 0x92"
	}
	return ""
}

func TestPublishQoS2(t *testing.T) {
	for _, v := range versions {
		c := scripted(t, v, nil, client.Options{}, func(p *peer) {
			p.expect("PUBLISH 1 t QoS 2 a")
			p.ack(packet.PUBREC, 1, packet.NoMatchingSubscribers)
			p.expect("PUBREL 1")
			p.ack(packet.PUBREC, 1, 0) // again
			p.expect("PUBREL 1")
			p.ack(packet.PUBREC, 77, 0)
			p.expect("PUBREL 77" + p.unknown())
			p.ack(packet.PUBCOMP, 77, 0)
			p.ack(packet.PUBCOMP, 1, 0)
			p.expect("PUBLISH 2 t QoS 2 b")
			if p.v == packet.V5 {
				p.ack(packet.PUBREC, 2, packet.QuotaExceeded)
				p.expect("PUBLISH 3 t QoS 2 c")
				p.ack(packet.PUBREC, 3, 0)
				p.expect("PUBREL 3")
			}
			_ = p.nc.Close()
		})
		publish := func(payload string) error {
			return c.Publish(t.Context(), &client.Message{Topic: "t", QoS: 2, Payload: []byte(payload)})
		}
		if err := publish("a"); err != nil {
			t.Errorf("%v: %v", v, err)
		}
		if err := publish("b"); err == nil || v == packet.V5 && packet.ReasonOf(err) != packet.QuotaExceeded {
			t.Errorf("%v: refused: %v", v, err)
		}
		if err := publish("c"); err == nil {
			t.Errorf("%v: is done without PUBCOMP", v)
		}
	}
}

// A message uses up the broker's Receive Maximum until PUBCOMP, MQTT 5 §4.9.
func TestReceiveMaximumQoS2(t *testing.T) {
	half, whole := make(chan struct{}), make(chan struct{})
	c := scripted(t, packet.V5, packet.Properties{}.AppendUint(packet.ReceiveMaximum, 1), client.Options{}, func(p *peer) {
		p.expect("PUBLISH 1 t QoS 2 a")
		p.ack(packet.PUBREC, 1, 0)
		p.expect("PUBREL 1")
		close(half)
		<-whole
		p.ack(packet.PUBCOMP, 1, 0)
		p.expect("PUBLISH 2 t QoS 1 b")
		p.ack(packet.PUBACK, 2, 0)
	})
	first, err := c.Start(t.Context(), &client.Message{Topic: "t", QoS: 2, Payload: []byte("a")})
	if err != nil {
		t.Fatal(err)
	}
	receive(t, half)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Start(ctx, &client.Message{Topic: "t", QoS: 1, Payload: []byte("b")}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second one on the way: %v", err)
	}
	close(whole)
	if err := receive(t, first); err != nil {
		t.Error(err)
	}
	if err := c.Publish(t.Context(), &client.Message{Topic: "t", QoS: 1, Payload: []byte("b")}); err != nil {
		t.Error(err)
	}
}

func TestReceiveQoS2(t *testing.T) {
	for _, v := range versions {
		got := make(chan string, 10)
		end := make(chan struct{})
		scripted(t, v, nil, client.Options{ReceiveMaximum: 1, Handler: func(m *client.Message) { got <- string(m.Payload) }}, func(p *peer) {
			p.publish(5, "a", false)
			p.expect("PUBREC 5")
			p.publish(5, "a", true) // not again
			p.expect("PUBREC 5")
			p.ack(packet.PUBREL, 5, 0)
			p.expect("PUBCOMP 5")
			p.ack(packet.PUBREL, 5, 0)
			p.expect("PUBCOMP 5" + p.unknown())
			p.publish(5, "b", false) // another message
			p.expect("PUBREC 5")
			p.ack(packet.PUBREL, 5, 0)
			p.expect("PUBCOMP 5")
			close(end)
		})
		receive(t, end)
		if a, b := receive(t, got), receive(t, got); a+b != "ab" || len(got) > 0 {
			t.Errorf("%v: %s, %s and %d more came", v, a, b, len(got))
		}
	}
}

func TestManualAckQoS2(t *testing.T) {
	got := make(chan *client.Message, 10)
	end := make(chan struct{})
	c := scripted(t, packet.V5, nil, client.Options{ManualAck: true, Handler: func(m *client.Message) { got <- m }}, func(p *peer) {
		p.publish(1, "a", false)
		p.publish(1, "a", true)
		p.publish(2, "b", false)
		p.expect("PUBREC 2")
		p.expect("PUBREC 1")
		close(end)
		p.publish(3, "c", false)
		p.ack(packet.PUBREL, 3, 0) // before PUBREC
	})
	first, second := receive(t, got), receive(t, got)
	second.Ack()
	first.Ack()
	receive(t, end)
	receive(t, c.Done())
	if packet.ReasonOf(c.Err()) != packet.ProtocolError || !strings.Contains(c.Err().Error(), "PUBREL of packet 3 before PUBREC") {
		t.Errorf("ended with %v", c.Err())
	}
}

// A broker that sends more than it may is cut, MQTT 5 §3.3.4.
func TestBrokerExceedsReceiveMaximum(t *testing.T) {
	got := make(chan *client.Message, 10)
	c := scripted(t, packet.V5, nil, client.Options{ReceiveMaximum: 1, Handler: func(m *client.Message) { got <- m }}, func(p *peer) {
		p.publish(1, "a", false)
		p.expect("PUBREC 1")
		p.publish(2, "b", false) // PUBCOMP was not
	})
	receive(t, c.Done())
	if packet.ReasonOf(c.Err()) != packet.ReceiveMaximumExceeded || len(got) != 1 {
		t.Errorf("ended with %v after %d messages", c.Err(), len(got))
	}
}

// What the broker has said that it does not take is not sent, and does no harm.
func TestLimitsOfTheBroker(t *testing.T) {
	props := packet.Properties{}.AppendUint(packet.MaximumQoS, 1).AppendUint(packet.RetainAvailable, 0).AppendUint(packet.MaximumPacketSize, 30)
	c := scripted(t, packet.V5, props, client.Options{}, func(p *peer) {
		p.expect("PUBLISH 1 t QoS 1 fits")
		p.ack(packet.PUBACK, 1, 0)
	})
	for _, m := range []struct {
		m    client.Message
		want packet.Reason
	}{
		{client.Message{Topic: "t", QoS: 2}, packet.QoSNotSupported},
		{client.Message{Topic: "t", Retain: true}, packet.RetainNotSupported},
		{client.Message{Topic: "t", Payload: make([]byte, 100)}, packet.PacketTooLarge},
		{client.Message{Topic: "t", QoS: 1, Payload: make([]byte, 100)}, packet.PacketTooLarge},
		{client.Message{Topic: "t", QoS: 1, Payload: []byte("fits")}, packet.Success},
	} {
		err := c.Publish(t.Context(), &m.m)
		if m.want == packet.Success && err != nil || m.want != packet.Success && packet.ReasonOf(err) != m.want {
			t.Errorf("%+v: %v, want %v", m.m, err, m.want)
		}
	}
}
