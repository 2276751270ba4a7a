package gateway

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/gateway/config"
	"github.com/fieldferry/fieldferry/gateway/payload"
	"github.com/fieldferry/fieldferry/localbroker"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// field makes messages of what the links read and publishes them on the local
// broker.
type field struct {
	broker   *localbroker.Broker
	clock    believer
	format   payload.Config
	perPoint bool
	changed  bool // only what has changed is sent
	memory   *alertMemory
	log      *slog.Logger

	readings atomic.Uint64
	stored   receipts

	order  []*device
	byName map[*adapters.Device]*device // not changed after the links are made
	byID   map[string]*device           // likewise
}

// believer says whether a time of the machine's clock can be believed.
type believer interface{ Believes(time.Time) bool }

// unsynced goes with a message whose time cannot.
var unsynced = packet.Properties(nil).AppendUser(payload.KeyClock, payload.ClockUnsynced)

// device is what is known of a polled device.
type device struct {
	*adapters.Device
	telemetry string // topic
	status    string // topic
	points    map[*adapters.Point]string
	changes   *changes // nil if everything is sent
	alerts    []*deviceAlert
	written   *lastValues // nil if nothing of it is
	field     *field

	mu   sync.Mutex // guards what follows
	last DeviceStatus
}

// DeviceStatus is how a polled device stands.
type DeviceStatus struct {
	ID       string
	Known    bool // it was heard of, or missed
	Online   bool
	Reason   string    // why it is offline
	Since    time.Time // of Online
	Readings uint64
	Last     time.Time // of the last reading
}

// receipts counts how publishes ended.
type receipts struct{ stored, refused atomic.Uint64 }

func (r *receipts) Stored(err error) {
	if err != nil {
		r.refused.Add(1)
		return
	}
	r.stored.Add(1)
}

// Stored makes a device the receipt of what is published of it.
func (d *device) Stored(err error) {
	d.field.stored.Stored(err)
	if d.changes != nil {
		d.changes.stored(err)
	}
}

func newField(b *localbroker.Broker, clock believer, p *config.Payload, log *slog.Logger) *field {
	return &field{broker: b, clock: clock, format: payloadConfig(p), perPoint: p.PerPoint, changed: p.OnlyChanged, log: log, byName: make(map[*adapters.Device]*device), byID: make(map[string]*device)}
}

// add makes a device known before its link runs.
func (f *field) add(of *config.Device, d *adapters.Device, points []*adapters.Point) {
	prefix := "devices/" + d.Name
	dev := &device{Device: d, telemetry: prefix + "/telemetry", status: prefix + "/status", field: f, last: DeviceStatus{ID: d.Name}}
	if f.changed {
		dev.changes = newChanges(of, points)
	}
	dev.alerts = newDeviceAlerts(of, points)
	dev.written = newLastValues(of, points)
	if f.perPoint {
		dev.points = make(map[*adapters.Point]string, len(points))
		for _, p := range points {
			dev.points[p] = dev.telemetry + "/" + p.Name
		}
	}
	f.order = append(f.order, dev)
	f.byName[d] = dev
	f.byID[d.Name] = dev
}

// Emit publishes a reading. It returns as soon as the message is queued: the
// commit lingers for company, and a link does not wait for that.
func (f *field) Emit(ctx context.Context, r adapters.Reading) error {
	d := f.byName[r.Device]
	f.readings.Add(1)
	d.mu.Lock()
	d.last.Readings++
	d.last.Last = r.Time
	d.mu.Unlock()
	r.Unsynced = !f.clock.Believes(r.Time)
	if d.written != nil {
		d.written.take(r.Samples)
	}
	for _, a := range d.alerts {
		f.watch(ctx, d, a, &r)
	}
	if d.changes != nil {
		if r.Samples = d.changes.since(r); len(r.Samples) == 0 {
			return nil
		}
	}
	if !f.perPoint {
		err := f.publish(ctx, d, d.telemetry, f.format.AppendReading(nil, r, payload.Seq{}), r.Unsynced, false)
		if err == nil && d.changes != nil {
			d.changes.took(r.Samples, r.Time)
		}
		return err
	}
	for i := range r.Samples {
		s := &r.Samples[i]
		if err := f.publish(ctx, d, d.points[s.Point], f.format.AppendSample(nil, r, s, payload.Seq{}), r.Unsynced, false); err != nil {
			return err
		}
		if d.changes != nil {
			d.changes.took(r.Samples[i:i+1], r.Time)
		}
	}
	return nil
}

// Status publishes that a device went online or offline, retained.
func (f *field) Status(ctx context.Context, s adapters.Status) error {
	d := f.byName[s.Device]
	d.mu.Lock()
	d.last.Known, d.last.Online, d.last.Reason, d.last.Since = true, s.Online, s.Reason, s.Time
	d.mu.Unlock()
	s.Unsynced = !f.clock.Believes(s.Time)
	return f.publish(ctx, d, d.status, f.format.AppendStatus(nil, s), s.Unsynced, true)
}

func (f *field) publish(ctx context.Context, d *device, topic string, payload []byte, unsure, retain bool) error {
	m := &localbroker.Message{Topic: topic, Payload: payload, QoS: 1, Retain: retain, Received: time.Now(), Urgent: retain}
	if unsure {
		m.Props = unsynced
	}
	err := f.broker.Publish(ctx, m, d)
	if err != nil {
		f.stored.refused.Add(1)
	}
	return err
}

func (f *field) devices() []DeviceStatus {
	all := make([]DeviceStatus, len(f.order))
	for i, d := range f.order {
		d.mu.Lock()
		all[i] = d.last
		d.mu.Unlock()
	}
	return all
}
