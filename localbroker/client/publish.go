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

// Publish sends m and, with QoS 1, waits until the broker has acknowledged it.
// A refusal is a *packet.Error. If ctx ends first it is not known what became of m.
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
// otherwise what the broker answers, or why the connection ended before.
func (c *Client) Start(ctx context.Context, m *Message) (<-chan error, error) {
	p := packet.Publish{Topic: m.Topic, Payload: m.Payload, QoS: m.QoS, Retain: m.Retain, Dup: m.Dup, Props: m.Props, HasExpiry: m.Expiry > 0, Expiry: uint32(m.Expiry / time.Second)}
	if err := c.awaitRoom(ctx); err != nil {
		return nil, err
	}
	result := make(chan error, 1)
	if m.QoS == 0 {
		result <- nil
		return result, c.send(func(dst []byte) []byte { return p.Append(dst, c.o.Version) })
	}
	if m.QoS > 1 {
		return nil, fmt.Errorf("QoS %d is not supported", m.QoS)
	}
	select {
	case c.window <- struct{}{}:
	case <-c.done:
		return nil, c.Err()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	err := c.ask(func(dst []byte, id uint16) []byte {
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

// ask sends a packet under a new identifier and has answered told once how it went.
func (c *Client) ask(append func(dst []byte, id uint16) []byte, answered func(answer)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return c.err
	case len(c.answers) >= 65535:
		return errBusy
	}
	for c.last++; c.last == 0 || c.answers[c.last] != nil; c.last++ {
	}
	c.answers[c.last] = answered
	c.out = append(c.out, c.last)
	c.signal(c.wake)
	return nil
}

// Subscribe subscribes and waits for the broker's answer: the reason for each
// filter. What comes goes to Options.Handler. The error is a *packet.Error if
// the broker refused one or more of them.
func (c *Client) Subscribe(ctx context.Context, subs ...packet.Subscription) ([]packet.Reason, error) {
	return c.subscribe(ctx, "subscribe", func(dst []byte, id uint16) []byte {
		p := packet.Subscribe{PacketID: id, Subscriptions: subs}
		return p.Append(dst, c.o.Version)
	})
}

// SubscribeID is Subscribe with a subscription identifier, 1 to 268,435,455,
// which comes back with every message. Version 5 has them.
func (c *Client) SubscribeID(ctx context.Context, id uint32, subs ...packet.Subscription) ([]packet.Reason, error) {
	return c.subscribe(ctx, "subscribe", func(dst []byte, packetID uint16) []byte {
		p := packet.Subscribe{PacketID: packetID, Subscriptions: subs, Props: packet.Properties{}.AppendUint(packet.SubscriptionID, id)}
		return p.Append(dst, c.o.Version)
	})
}

// Unsubscribe ends subscriptions and waits for the broker's answer: the reason
// for each filter with version 5, nothing with 3.1.1.
func (c *Client) Unsubscribe(ctx context.Context, filters ...string) ([]packet.Reason, error) {
	return c.subscribe(ctx, "unsubscribe", func(dst []byte, id uint16) []byte {
		p := packet.Unsubscribe{PacketID: id, Filters: filters}
		return p.Append(dst, c.o.Version)
	})
}

func (c *Client) subscribe(ctx context.Context, what string, append func(dst []byte, id uint16) []byte) ([]packet.Reason, error) {
	result := make(chan answer, 1)
	if err := c.ask(append, func(a answer) { result <- a }); err != nil {
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
