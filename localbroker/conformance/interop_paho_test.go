//go:build interop

package conformance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/eclipse/paho.golang/paho"
	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// pahoFive is paho.golang, which speaks MQTT 5.
type pahoFive struct {
	addr     string
	conn     net.Conn
	c        *paho.Client
	messages chan note
}

func within() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patience)
}

func (p *pahoFive) connect(id string, keep bool, will *note) (bool, error) {
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		return false, err
	}
	p.conn, p.messages = conn, make(chan note, 100)
	p.c = paho.NewClient(paho.ClientConfig{Conn: conn, OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(r paho.PublishReceived) (bool, error) {
		n := note{Topic: r.Packet.Topic, Payload: string(r.Packet.Payload), QoS: r.Packet.QoS, Retain: r.Packet.Retain, ContentType: r.Packet.Properties.ContentType}
		for _, u := range r.Packet.Properties.User {
			n.User = append(n.User, u.Key+"="+u.Value)
		}
		p.messages <- n
		return true, nil
	}}})
	o := &paho.Connect{ClientID: id, KeepAlive: 30, CleanStart: !keep, Properties: &paho.ConnectProperties{}}
	if keep {
		seconds := uint32(3600)
		o.Properties.SessionExpiryInterval = &seconds
	}
	if will != nil {
		o.WillMessage = &paho.WillMessage{Topic: will.Topic, Payload: []byte(will.Payload), QoS: will.QoS, Retain: will.Retain}
	}
	ctx, cancel := within()
	defer cancel()
	ack, err := p.c.Connect(ctx, o)
	if err != nil {
		return false, err
	}
	return ack.SessionPresent, nil
}

func (p *pahoFive) subscribe(filter string, qos byte) error {
	ctx, cancel := within()
	defer cancel()
	ack, err := p.c.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: qos}}})
	if err == nil && ack.Reasons[0] != qos {
		err = fmt.Errorf("subscription to %s: %d", filter, ack.Reasons[0])
	}
	return err
}

func (p *pahoFive) publish(n note) error {
	ctx, cancel := within()
	defer cancel()
	props := &paho.PublishProperties{ContentType: n.ContentType}
	if n.ContentType != "" {
		props.User.Add("a", "1").Add("a", "2")
	}
	_, err := p.c.Publish(ctx, &paho.Publish{Topic: n.Topic, Payload: []byte(n.Payload), QoS: n.QoS, Retain: n.Retain, Properties: props})
	return err
}

func (p *pahoFive) next() (note, error) { return take(p.messages) }

func take(from <-chan note) (note, error) {
	select {
	case n := <-from:
		return n, nil
	case <-time.After(patience):
		return note{}, errors.New("nothing came in time")
	}
}

func (p *pahoFive) disconnect() error {
	err := p.c.Disconnect(&paho.Disconnect{})
	<-p.c.Done()
	return err
}

func (p *pahoFive) drop() error {
	err := p.conn.Close()
	<-p.c.Done()
	return err
}

// pahoOld is paho.mqtt.golang, which speaks MQTT 3.1.1.
type pahoOld struct {
	addr     string
	conn     net.Conn
	c        mqtt.Client
	messages chan note
}

func done(t mqtt.Token) error {
	if !t.WaitTimeout(patience) {
		return errors.New("no answer in time")
	}
	return t.Error()
}

func (p *pahoOld) connect(id string, keep bool, will *note) (bool, error) {
	p.messages = make(chan note, 100)
	o := mqtt.NewClientOptions().AddBroker("tcp://" + p.addr).SetClientID(id).SetCleanSession(!keep).SetProtocolVersion(4).SetAutoReconnect(false).SetOrderMatters(true)
	o.SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) {
		conn, err := net.Dial("tcp", p.addr)
		p.conn = conn
		return conn, err
	})
	o.SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) {
		p.messages <- note{Topic: m.Topic(), Payload: string(m.Payload()), QoS: m.Qos(), Retain: m.Retained()}
	})
	if will != nil {
		o.SetWill(will.Topic, will.Payload, will.QoS, will.Retain)
	}
	p.c = mqtt.NewClient(o)
	t := p.c.Connect()
	if err := done(t); err != nil {
		return false, err
	}
	return t.(*mqtt.ConnectToken).SessionPresent(), nil
}

func (p *pahoOld) subscribe(filter string, qos byte) error {
	t := p.c.Subscribe(filter, qos, nil)
	err := done(t)
	if err == nil && t.(*mqtt.SubscribeToken).Result()[filter] != qos {
		err = fmt.Errorf("subscription to %s: %v", filter, t.(*mqtt.SubscribeToken).Result())
	}
	return err
}

func (p *pahoOld) publish(n note) error {
	return done(p.c.Publish(n.Topic, n.QoS, n.Retain, n.Payload))
}

func (p *pahoOld) next() (note, error) { return take(p.messages) }

func (p *pahoOld) disconnect() error {
	p.c.Disconnect(100)
	return nil
}

func (p *pahoOld) drop() error {
	err := p.conn.Close()
	p.c.Disconnect(0) // ends what it leaves running
	return err
}
