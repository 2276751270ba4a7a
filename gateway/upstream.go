package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/bridge"
	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/gateway/config"
	"github.com/fieldferry/fieldferry/gateway/payload"
	"github.com/fieldferry/fieldferry/localbroker"
)

// bridgeOutbox begins the names of the outboxes of bridges.
const bridgeOutbox = "bridge/"

// upstream is a bridge with what belongs to it.
type upstream struct {
	*spreading
	name   string
	mapper *bridge.Mapper
	way    *wayOut
	taken  *bridge.Taken

	unlisted unlisted
	publish  publishFunc // on the local broker, which is made later
}

type publishFunc func(context.Context, *localbroker.Message, buffer.Receipt) error

// deliver publishes what came down on the local broker.
func (u *upstream) deliver(ctx context.Context, m *bridge.Inbound, r buffer.Receipt) error {
	name, qos, ok := u.mapper.Local(m.Topic, m.QoS)
	if !ok {
		return fmt.Errorf("no rule is for the upstream topic %q", m.Topic)
	}
	if u.mapper.Own(m.Props) || m.Retain && isCommand(name) {
		r.Stored(nil) // our own, come back; or one that would be carried out again and again
		return nil
	}
	return u.publish(ctx, &localbroker.Message{
		Topic: name, Payload: m.Payload, Props: u.mapper.Mark(m.Props), QoS: qos, Retain: m.Retain, Expiry: m.Expiry,
		Received: time.Now(), Urgent: true, ClientID: fromUpstream + u.name, Also: m.Copy,
	}, r)
}

// close lets go of the outboxes.
func (u *upstream) close() {
	u.spreading.close()
	if u.taken != nil {
		u.taken.Close()
	}
}

// forgetTaken removes what is known of messages that came down over bridges that are
// not in the site file any more.
func forgetTaken(c *config.Config, buf *buffer.Buffer) error {
	var gone []*buffer.Outbox
	for _, o := range buf.Outboxes() {
		name, ok := bridge.TakenBy(o)
		if ok && !slices.ContainsFunc(c.Bridges, func(b config.Bridge) bool { return b.Name == name }) {
			gone = append(gone, o)
		}
	}
	return buf.Remove(gone...)
}

// isCommand reports whether a local topic is that of a device's commands.
func isCommand(name string) bool {
	rest, ok := strings.CutPrefix(name, "devices/")
	_, data, _ := strings.Cut(rest, "/")
	return ok && (data == "commands" || strings.HasPrefix(data, "commands/"))
}

func openUpstream(c *config.Config, b *config.Bridge, buf *buffer.Buffer, log *slog.Logger) (*upstream, error) {
	log = log.With("part", "bridge", "bridge", b.Name)
	u := &upstream{name: b.Name, spreading: &spreading{name: b.Name, buffer: buf, log: log}}
	var err error
	if u.way, err = openWayOut(b, log); err != nil {
		return nil, err
	}
	var waiting bool
	if u.spread, waiting, err = openSpreads(buf, bridgeOutbox+b.Name+"/", b.Connections); err != nil {
		return nil, err
	}
	outboxes := u.spread[len(u.spread)-1].connections
	if waiting {
		log.Warn("connections has changed again before all was delivered from before the last change; it counts when that is done and the gateway starts again", "connections", len(outboxes))
	}
	mo := mapperOptions(c, b, outboxes, buf)
	mo.Unknown = u.unlisted.add
	if b.LiveFirst {
		mo.Live = func(k int) bool { return u.latest()[k].bridge.Live() }
	}
	if u.mapper, err = bridge.NewMapper(mo); err != nil {
		return nil, err
	}
	if len(u.mapper.Filters()) > 0 {
		if u.taken, err = bridge.OpenTaken(buf, b.Name); err != nil {
			return nil, err
		}
		u.handedOver = u.taken.Rewind
	}
	for _, s := range u.spread {
		list := make([]*connection, len(s.connections))
		for k, out := range s.connections {
			if list[k], err = u.open(c, b, k, len(s.connections), out, buf, log); err != nil {
				u.close()
				return nil, err
			}
		}
		u.conns = append(u.conns, list)
	}
	return u, nil
}

// open makes one of several connections. The first has the gateway's status and what
// comes down.
func (u *upstream) open(c *config.Config, b *config.Bridge, k, of int, out bridge.Outboxes, buf *buffer.Buffer, log *slog.Logger) (*connection, error) {
	if of > 1 {
		log = log.With("connection", k)
	}
	passage := &passage{way: u.way}
	o := bridge.Options{
		ClientID:      clientID(b, k),
		Username:      b.Username,
		Keepalive:     b.Keepalive,
		SessionExpiry: b.SessionExpiry,
		Backoff:       bridge.Backoff{First: b.BackoffFirst, Max: b.BackoffMax},
		DropLost:      b.DropLost,
		Limit:         bridge.Limit{Messages: b.Limit.MessagesPerSecond / float64(of), Bytes: b.Limit.BytesPerSecond / float64(of)},
		Dial:          passage.dial,
		Attempted:     passage.attempted,
		Logger:        log,
	}
	for _, url := range b.Upstream {
		o.Upstream = append(o.Upstream, url.String())
	}
	if k == 0 {
		o.Canary, _ = u.mapper.UpstreamTopic(c.Gateway.ID, "canary") // without a topic there is none
		o.Presence = presence(c, u.mapper, buf)
		if u.taken != nil {
			o.Down = &bridge.Downward{Filters: u.mapper.Filters(), Deliver: u.deliver, Taken: u.taken}
		}
	}
	if !b.Password.IsZero() {
		o.Password = b.Password.Read
	}
	reader, err := buf.Reader(out[:]...)
	if err != nil {
		return nil, err
	}
	one, err := bridge.New(reader, out, o)
	if err != nil {
		reader.Close()
		return nil, err
	}
	return &connection{k, out, reader, one}, nil
}

// clientID is that of a connection: the first has the bridge's own.
func clientID(b *config.Bridge, k int) string {
	if k == 0 {
		return b.ClientID
	}
	return fmt.Sprintf("%s-%d", b.ClientID, k)
}

// numbered is a data folder in one of its process lives.
type numbered interface {
	Origin() string
	Boot() uint32
}

func mapperOptions(c *config.Config, b *config.Bridge, outboxes []bridge.Outboxes, of numbered) bridge.MapperOptions {
	o := bridge.MapperOptions{
		Gateway: c.Gateway.ID, Org: c.Gateway.Org, Site: c.Gateway.Site,
		Origin: of.Origin(), Boot: of.Boot(),
		Topic: b.Topic, Data: make(map[string]bridge.Data), Outboxes: outboxes,
	}
	for _, d := range b.Data {
		class, _ := buffer.ParseClass(d.Class) // of what goes down there is none
		o.Data[d.Name] = bridge.Data{Direction: direction(d.Down), QoS: d.QoS, Class: class, Retain: d.Retain}
	}
	for _, a := range c.Adapters {
		for _, d := range a.Devices {
			o.Devices = append(o.Devices, bridge.Device{ID: d.ID, Zone: d.Zone, Type: d.Type, Tags: d.Tags, Data: overrides(d.Data)})
		}
	}
	if c.Gateway.Zone != "" || !strings.Contains(b.Topic, "{zone}") {
		taken := slices.ContainsFunc(o.Devices, func(d bridge.Device) bool { return d.ID == c.Gateway.ID })
		if !taken {
			// The gateway's own status has a topic like a device's. Only the bridge
			// publishes it: what local clients publish as the gateway stays here.
			nowhere := bridge.Nowhere
			own := bridge.Device{ID: c.Gateway.ID, Zone: c.Gateway.Zone, Type: "gateway", Data: make(map[string]bridge.Override)}
			for name, d := range o.Data {
				if d.Direction == bridge.Up {
					own.Data[name] = bridge.Override{Direction: &nowhere}
				}
			}
			o.Devices = append(o.Devices, own)
		}
	}
	for _, f := range b.Forward {
		class, _ := buffer.ParseClass(f.Class)
		o.Forward = append(o.Forward, bridge.Forward{Local: f.Local, Upstream: f.Upstream, Direction: direction(f.Down), QoS: f.QoS, Class: class})
	}
	return o
}

func overrides(list []config.DataOverride) map[string]bridge.Override {
	if len(list) == 0 {
		return nil
	}
	all := make(map[string]bridge.Override, len(list))
	for _, d := range list {
		o := bridge.Override{QoS: d.QoS, Retain: d.Retain}
		if d.Down != nil {
			dir := direction(*d.Down)
			o.Direction = &dir
		}
		if d.Class != nil {
			class, _ := buffer.ParseClass(*d.Class)
			o.Class = &class
		}
		all[d.Name] = o
	}
	return all
}

func direction(down bool) bridge.Direction {
	if down {
		return bridge.Down
	}
	return bridge.Up
}

// presence is the gateway's own status upstream, if it has a topic there.
func presence(c *config.Config, m *bridge.Mapper, clock believer) *bridge.Presence {
	topic, err := m.UpstreamTopic(c.Gateway.ID, "status")
	if err != nil {
		return nil
	}
	format := payloadConfig(&c.Payload)
	return &bridge.Presence{Topic: topic, Payload: func(online bool, reason string, at time.Time) []byte {
		return format.AppendStatus(nil, adapters.Status{Online: online, Reason: reason, Time: at, Unsynced: !clock.Believes(at)})
	}}
}

func payloadConfig(p *config.Payload) payload.Config {
	times := map[string]payload.TimeFormat{"ms": payload.Millis, "s": payload.Seconds, "ns": payload.Nanos, "iso": payload.ISO}
	return payload.Config{Time: times[p.Time], Int64String: p.Int64String, Seq: p.Seq}
}

func bufferOptions(b *config.Buffer, log *slog.Logger) buffer.Options {
	o := buffer.Options{
		Linger: b.Linger, PageSize: b.PageSize, Compress: b.Compress, Logger: log,
		Limits: buffer.Limits{MaxBytes: b.MaxBytes, MinFree: b.MinFree, RejectNew: b.RejectNew},
	}
	for class := range o.Limits.MaxAge {
		o.Limits.MaxAge[class] = b.MaxAge
	}
	for _, bounds := range b.Classes {
		if class, ok := buffer.ParseClass(bounds.Class); ok {
			o.Limits.MaxAge[class] = bounds.MaxAge
			o.Limits.Reserve[class] = bounds.Reserve
		}
	}
	return o
}
