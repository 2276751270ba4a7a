package gateway

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker"
)

const (
	// canaryTopic is where the gateway says something to itself.
	canaryTopic  = "$SYS/broker/canary"
	canaryOutbox = "$canary"
)

// canary goes the way of a publish on this machine: a commit of the buffer, then
// through the broker to a subscriber.
type canary struct {
	buffer *buffer.Buffer
	broker *localbroker.Broker
	outbox *buffer.Outbox
	reader *buffer.Reader
	sent   uint64 // probe's
}

func openCanary(b *buffer.Buffer, broker *localbroker.Broker) (*canary, error) {
	c := &canary{buffer: b, broker: broker}
	var err error
	if c.outbox, err = b.Outbox(canaryOutbox, buffer.Local); err != nil {
		return nil, err
	}
	if c.reader, err = b.ReaderFunc(func() {}, c.outbox); err != nil {
		return nil, err
	}
	return c, nil
}

// close lets go of the outbox. Nobody may be in probe.
func (c *canary) close() {
	if c != nil {
		c.reader.Close()
	}
}

// committed is the receipt of the copy that goes to the disk.
type committed chan error

func (c committed) Stored(err error) { c <- err }

// probe is called by one goroutine at a time.
func (c *canary) probe(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	c.sent++
	payload := strconv.FormatUint(c.sent, 10)
	back := make(chan struct{}, 1)
	cancel, err := c.broker.Subscribe(canaryTopic, 0, func(m *localbroker.Message) {
		if string(m.Payload) == payload {
			select {
			case back <- struct{}{}:
			default:
			}
		}
	})
	if err != nil {
		return 0, err
	}
	defer cancel()
	stored := make(committed, 1)
	m := buffer.Message{Topic: canaryTopic, Payload: []byte(payload), Urgent: true, Copies: []buffer.Copy{{Outbox: c.outbox}}}
	if err := c.buffer.Append(ctx, buffer.Local, &m, stored); err != nil {
		return 0, fmt.Errorf("the buffer takes nothing: %w", err)
	}
	select {
	case err := <-stored:
		if err != nil {
			return 0, fmt.Errorf("the buffer cannot make anything durable: %w", err)
		}
	case <-ctx.Done():
		return 0, fmt.Errorf("the disk does not finish a commit: %w", ctx.Err())
	}
	if err := c.settle(); err != nil {
		return 0, err
	}
	if err := c.broker.Publish(ctx, &localbroker.Message{Topic: canaryTopic, Payload: []byte(payload), Received: time.Now()}, nil); err != nil {
		return 0, err
	}
	select {
	case <-back:
		return time.Since(began), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("the broker delivers nothing: %w", ctx.Err())
	}
}

// settle takes what was made durable out of the buffer again.
func (c *canary) settle() error {
	var dst [16]buffer.Delivery
	for {
		n, err := c.reader.TryNext(dst[:])
		if err != nil {
			return fmt.Errorf("the buffer cannot be read: %w", err)
		}
		if n == 0 {
			return nil
		}
		for _, d := range dst[:n] {
			c.outbox.Settle(d.Ordinal, buffer.Delivered)
		}
	}
}
