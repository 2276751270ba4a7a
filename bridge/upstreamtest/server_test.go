package upstreamtest

import (
	"context"
	"io"
	"net"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ptr[T any](v T) *T { return &v }

// client is a client that does as it is told, too.
type client struct {
	t *testing.T
	net.Conn
}

func dial(t *testing.T, s *Server) client {
	t.Helper()
	nc, err := s.Dial(t.Context(), &url.URL{Host: "x"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return client{t, nc}
}

func (c client) send(p io.WriterTo) {
	c.t.Helper()
	if _, err := p.WriteTo(c); err != nil {
		c.t.Fatal(err)
	}
}

func (c client) receive() packets.Packet {
	c.t.Helper()
	p, err := packets.ReadPacket(c)
	if err != nil {
		c.t.Fatal(err)
	}
	return p.Content
}

func (c client) connect() *packets.Connack {
	c.t.Helper()
	c.send(&packets.Connect{ProtocolName: "MQTT", ProtocolVersion: 5, ClientID: "c", KeepAlive: 10, Properties: &packets.Properties{}})
	ack, ok := c.receive().(*packets.Connack)
	if !ok {
		c.t.Fatal("no CONNACK")
	}
	return ack
}

func publish(payload string, qos byte, id uint16) *packets.Publish {
	return &packets.Publish{Topic: "t", Payload: []byte(payload), QoS: qos, PacketID: id, Properties: &packets.Properties{}}
}

// Each thing a client must not do is noticed, and what it may do is not.
func TestViolations(t *testing.T) {
	hold := func(Publish) Answer { return Answer{Do: Hold} }
	for _, tt := range []struct {
		name   string
		script Script
		send   []*packets.Publish
		want   string // "" is none
	}{
		{"none", Script{Limits: packets.Properties{ReceiveMaximum: ptr(uint16(2)), MaximumPacketSize: ptr(uint32(50))}, Publish: hold}, []*packets.Publish{publish("a", 1, 1), publish("b", 1, 2), publish("c", 0, 0)}, ""},
		{"Receive Maximum", Script{Limits: packets.Properties{ReceiveMaximum: ptr(uint16(2))}, Publish: hold}, []*packets.Publish{publish("a", 1, 1), publish("b", 1, 2), publish("c", 1, 3)}, "c: 3 unacknowledged"},
		{"id in use", Script{Publish: hold}, []*packets.Publish{publish("a", 1, 7), publish("b", 1, 7)}, "b: packet id 7 in use"},
		{"size", Script{Limits: packets.Properties{MaximumPacketSize: ptr(uint32(50))}}, []*packets.Publish{publish(strings.Repeat("x", 60), 0, 0)}, "packet of 66 bytes"},
		{"QoS", Script{Limits: packets.Properties{MaximumQOS: ptr(byte(0))}}, []*packets.Publish{publish("a", 1, 1)}, "a: QoS 1"},
		{"retain", Script{Limits: packets.Properties{RetainAvailable: ptr(byte(0))}}, []*packets.Publish{{Topic: "t", Payload: []byte("a"), Retain: true, Properties: &packets.Properties{}}}, "a: retained"},
		{"DUP with QoS 0", Script{}, []*packets.Publish{{Topic: "t", Payload: []byte("a"), Duplicate: true, Properties: &packets.Properties{}}}, "a: DUP with QoS 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := New(tt.script)
			defer s.Close()
			c := dial(t, s)
			c.connect()
			go io.Copy(io.Discard, c)
			for _, p := range tt.send {
				c.send(p)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if err := s.Await(ctx, func() bool { return s.Count() == len(tt.send) }); err != nil {
				t.Fatal(err)
			}
			got := strings.Join(s.Violations(), "\n")
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("violations %q, want %q", got, tt.want)
			}
		})
	}
}

func TestSilenceIsAViolation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New()
		defer s.Close()
		c := dial(t, s)
		c.connect() // with a keepalive of 10 s
		time.Sleep(14 * time.Second)
		c.send(&packets.Pingreq{})
		if _, ok := c.receive().(*packets.Pingresp); !ok {
			t.Error("no PINGRESP")
		}
		time.Sleep(14 * time.Second)
		synctest.Wait()
		if v := s.Violations(); len(v) != 0 {
			t.Errorf("violations %q", v)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if v := s.Violations(); len(v) != 1 {
			t.Errorf("violations %q, want one of the keepalive", v)
		}
	})
}

// A session is there for who comes again, until it is lost.
func TestSessions(t *testing.T) {
	s := New(Script{}, Script{}, Script{Code: 0x87}, Script{LoseSession: true}, Script{})
	defer s.Close()
	for i, want := range []bool{false, true, false, false, true} {
		if got := dial(t, s).connect().SessionPresent; got != want {
			t.Errorf("connection %d: session present %t, want %t", i, got, want)
		}
	}
}

func TestHoldAndCut(t *testing.T) {
	s := New(Script{Publish: func(p Publish) Answer {
		if p.Payload == "cut" {
			return Answer{Do: Cut}
		}
		return Answer{Do: Hold, Code: 0x87}
	}})
	defer s.Close()
	c := dial(t, s)
	c.connect()
	c.send(publish("held", 1, 3))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := s.Await(ctx, func() bool { return s.Count() == 1 }); err != nil {
		t.Fatal(err)
	}
	s.Release()
	ack, ok := c.receive().(*packets.Puback)
	if !ok || ack.PacketID != 3 || ack.ReasonCode != 0x87 {
		t.Errorf("got %v", ack)
	}
	c.send(publish("cut", 1, 4))
	if _, err := packets.ReadPacket(c); err == nil {
		t.Error("the connection goes on")
	}
}
