package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/fieldferry/fieldferry/bridge"
	"github.com/fieldferry/fieldferry/buffer"
)

// defaultLinger is that of a site file that says nothing of it.
const defaultLinger = 250 * time.Millisecond

const wearDevices = 50

// polled is a buffer with a bridge's outboxes, to which readings go as the gateway's
// field and router send them: none is urgent, and each copy has its topic upstream
// and its user properties.
type polled struct {
	*bufferStore
	mapper *bridge.Mapper
	reader *buffer.Reader
	topics []string
	n      int
}

func openPolled(s *bufferStore) (*polled, error) {
	p := &polled{bufferStore: s}
	outboxes, err := bridge.OpenOutboxes(s.b, "bridge/cloud/0")
	if err != nil {
		return nil, err
	}
	o := bridge.MapperOptions{
		Gateway: "gw-berlin-1", Org: "acme", Site: "factory-berlin", Origin: s.b.Origin(), Boot: s.b.Boot(), Outboxes: []bridge.Outboxes{outboxes},
		Data: map[string]bridge.Data{"telemetry": {QoS: 1, Class: buffer.Telemetry}},
	}
	for i := range wearDevices {
		id := fmt.Sprintf("em-%04d", i+1)
		o.Devices = append(o.Devices, bridge.Device{ID: id, Zone: "zone-a", Type: "energy-meter"})
		p.topics = append(p.topics, "devices/"+id+"/telemetry")
	}
	if p.mapper, err = bridge.NewMapper(o); err != nil {
		return nil, err
	}
	p.reader, err = s.b.Reader(outboxes[:]...)
	return p, err
}

func (p *polled) append(payload []byte, urgent bool, r buffer.Receipt) error {
	topic := p.topics[p.n%len(p.topics)]
	p.n++
	route, ok := p.mapper.Route(topic, false, nil)
	if !ok {
		return fmt.Errorf("the bridge does not carry %s", topic)
	}
	m := buffer.Message{
		Topic: topic, Payload: payload, QoS: 1, Urgent: urgent, Enqueued: time.Now(),
		Copies: []buffer.Copy{route.Copy(route.Class)},
	}
	return p.b.Append(context.Background(), route.Class, &m, r)
}

// wear appends so many readings a second, one after the other, while they are
// delivered at once. It returns how many it was.
func (p *polled) wear(ctx context.Context, perSecond int, d time.Duration) (n int, err error) {
	defer p.reader.Close()
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var delivering sync.WaitGroup
	var deliverErr error
	delivering.Go(func() { deliverErr = p.deliver(ctx) })
	var b batch
	n, err = appendAt(ctx, p, perSecond, false, func() buffer.Receipt {
		b.Add(1)
		return &b
	})
	delivering.Wait()
	return n, errors.Join(err, deliverErr, b.wait())
}

// deliver settles what comes until ctx ends.
func (p *polled) deliver(ctx context.Context) error {
	dst := make([]buffer.Delivery, take)
	for {
		n, err := p.reader.Next(ctx, dst)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		for i := range dst[:n] {
			dst[i].Outbox.Settle(dst[i].Ordinal, buffer.Delivered)
		}
	}
}
