package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// errBusy is that all packet identifiers are in use.
var errBusy = errors.New("65,535 packets are without an answer")

// Publish sends m and, with QoS 1 and 2, waits until the broker has acknowledged
// it. A refusal is a *packet.Error. If ctx ends first it is not known what became
// of m.
func (c *Client) Publish(ctx context.Context, m *Message) error {
	result, err := c.Start(ctx, m)
	if err != nil {
		return fmt.Errorf("publish to %q: %w", m.Topic, err)
	}
	select {
	case err = <-result:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("publish to %q: %w", m.Topic, err)
	}
	return nil
}

// Start sends m, as soon as the broker's Receive Maximum and what waits to be
// written allow it, and returns a channel that gets the outcome: nil at once with QoS 0,
// otherwise what the broker answers in the end, or why the connection ended
// before. What the broker has said that it does not take is not sent to it.
func (c *Client) Start(ctx context.Context, m *Message) (<-chan error, error) {
	p := packet.Publish{Topic: m.Topic, Payload: m.Payload, QoS: m.QoS, Retain: m.Retain, Dup: m.Dup, Props: m.Props, HasExpiry: m.Expiry > 0, Expiry: uint32(m.Expiry / time.Second)}
	if err := c.able(m); err != nil {
		return nil, err
	}
	if err := c.awaitRoom(ctx); err != nil {
		return nil, err
	}
	result := make(chan error, 1)
	if m.QoS == 0 {
		result <- nil
		return result, c.send(func(dst []byte) []byte { return p.Append(dst, c.o.Version) })
	}
	select {
	case c.window <- struct{}{}:
	case <-c.done:
		return nil, c.Err()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	want := packet.PUBACK
	if m.QoS == 2 {
		want = packet.PUBREC // and PUBCOMP then
	}
	err := c.ask(want, func(dst []byte, id uint16) []byte {
		p.PacketID = id
		return p.Append(dst, c.o.Version)
	}, func(a answer) {
		<-c.window
		err := a.err
		if err == nil && a.reasons[0].Failed() {
			err = &packet.Error{Reason: a.reasons[0], Text: "the broker refused it" + because(a.why)}
		}
		result <- err
	})
	if err != nil {
		<-c.window
		return nil, err
	}
	return result, nil
}

// Ping waits until the broker has answered a PINGREQ. By then it has received
// all that was sent before, also with QoS 0.
func (c *Client) Ping(ctx context.Context) error {
	answer := make(chan error, 1)
	err := c.ping(answer)
	if err == nil {
		select {
		case err = <-answer:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	if err != nil {
		return fmt.Errorf("ping: %w", err)
	}
	return nil
}

// ping sends a PINGREQ, and has told who waits for its answer.
func (c *Client) ping(tell chan<- error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	c.pings = append(c.pings, tell)
	return c.put(packet.AppendPingreq)
}

// able says what CONNACK has against m, MQTT 5 §3.2.2.3.4 and §3.2.2.3.5.
func (c *Client) able(m *Message) error {
	props := c.connack.Props
	if m.QoS > 2 {
		return packet.Errorf(packet.QoSNotSupported, "there is no QoS %d", m.QoS)
	}
	if most, ok := props.Uint(packet.MaximumQoS); ok && uint32(m.QoS) > most {
		return packet.Errorf(packet.QoSNotSupported, "the broker takes at most QoS %d", most)
	}
	if available, ok := props.Uint(packet.RetainAvailable); ok && m.Retain && available == 0 {
		return packet.Errorf(packet.RetainNotSupported, "the broker retains nothing")
	}
	return nil
}

// awaitRoom waits while much waits to be written.
func (c *Client) awaitRoom(ctx context.Context) error {
	for {
		c.mu.Lock()
		n, err := len(c.out), c.err
		c.mu.Unlock()
		if err != nil || n < outSize {
			c.signal(c.room) // there may be others who wait
			return err
		}
		select {
		case <-c.room:
		case <-c.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// ask sends a packet under a new identifier and has tell told once how it went.
func (c *Client) ask(want packet.Type, append func(dst []byte, id uint16) []byte, tell func(answer)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return c.err
	case len(c.answers) >= 65535:
		return errBusy
	}
	id := c.last + 1
	for id == 0 || c.answers[id] != nil {
		id++
	}
	if err := c.put(func(dst []byte) []byte { return append(dst, id) }); err != nil {
		return err
	}
	c.last = id
	c.answers[id] = &request{want, tell}
	return nil
}

// Subscribe subscribes and waits for the broker's answer: the reason for each
// filter. What comes goes to Options.Handler. The error is a *packet.Error if
// the broker refused one or more of them.
func (c *Client) Subscribe(ctx context.Context, subs ...packet.Subscription) ([]packet.Reason, error) {
	return c.subscribe(ctx, "subscribe", packet.SUBACK, func(dst []byte, id uint16) []byte {
		p := packet.Subscribe{PacketID: id, Subscriptions: subs}
		return p.Append(dst, c.o.Version)
	})
}

// SubscribeID is Subscribe with a subscription identifier, 1 to 268,435,455,
// which comes back with every message. Version 5 has them.
func (c *Client) SubscribeID(ctx context.Context, id uint32, subs ...packet.Subscription) ([]packet.Reason, error) {
	return c.subscribe(ctx, "subscribe", packet.SUBACK, func(dst []byte, packetID uint16) []byte {
		p := packet.Subscribe{PacketID: packetID, Subscriptions: subs, Props: packet.Properties{}.AppendUint(packet.SubscriptionID, id)}
		return p.Append(dst, c.o.Version)
	})
}

// Unsubscribe ends subscriptions and waits for the broker's answer: the reason
// for each filter with version 5, nothing with 3.1.1.
func (c *Client) Unsubscribe(ctx context.Context, filters ...string) ([]packet.Reason, error) {
	return c.subscribe(ctx, "unsubscribe", packet.UNSUBACK, func(dst []byte, id uint16) []byte {
		p := packet.Unsubscribe{PacketID: id, Filters: filters}
		return p.Append(dst, c.o.Version)
	})
}

func (c *Client) subscribe(ctx context.Context, what string, want packet.Type, append func(dst []byte, id uint16) []byte) ([]packet.Reason, error) {
	result := make(chan answer, 1)
	if err := c.ask(want, append, func(a answer) { result <- a }); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	select {
	case a := <-result:
		if a.err != nil {
			return nil, fmt.Errorf("%s: %w", what, a.err)
		}
		for i, r := range a.reasons {
			if r.Failed() {
				return a.reasons, fmt.Errorf("%s: %w", what, &packet.Error{Reason: r, Text: fmt.Sprintf("the broker refused filter %d of %d%s", i+1, len(a.reasons), because(a.why))})
			}
		}
		return a.reasons, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
}
