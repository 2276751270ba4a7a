package gateway

import (
	"fmt"
	"strings"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/bridge"
	"github.com/fieldferry/fieldferry/gateway/config"
	"github.com/fieldferry/fieldferry/gateway/payload"
)

// Carried is what a bridge makes of one kind of data of one device.
type Carried struct {
	Bridge    string `json:"bridge"`
	Device    string `json:"device"`
	Local     string `json:"local"`    // topic
	Upstream  string `json:"upstream"` // topic
	Direction string `json:"direction"`
	QoS       byte   `json:"qos"`
	Class     string `json:"class,omitempty"` // of what goes up
	Retain    bool   `json:"retain,omitempty"`
}

// nobody stands in for a buffer where topics are worked out and nothing is sent.
type nobody struct{}

func (nobody) Origin() string { return "" }
func (nobody) Boot() uint32   { return 0 }

// Topics tells which topics of a site's devices each bridge carries, and as what. A
// device whose id is a pattern stands there with it. What a polled device never has is
// left out.
func Topics(c *config.Config) ([]Carried, error) {
	all := []Carried{}
	for i := range c.Bridges {
		b := &c.Bridges[i]
		m, err := bridge.NewMapper(mapperOptions(c, b, []bridge.Outboxes{{}}, nobody{}))
		if err != nil {
			return nil, fmt.Errorf("%s: bridge %s: %w", b.Pos, b.Name, err)
		}
		for j := range c.Adapters {
			a := &c.Adapters[j]
			for k := range a.Devices {
				for _, data := range b.Data {
					if one, ok := carried(m, b, a, &a.Devices[k], data); ok {
						all = append(all, one)
					}
				}
			}
		}
	}
	return all, nil
}

func carried(m *bridge.Mapper, b *config.Bridge, a *config.Adapter, d *config.Device, data config.Data) (Carried, bool) {
	switch data.Name {
	case "heartbeat", "config", "firmware":
		if !a.MQTT {
			return Carried{}, false
		}
	case "alerts":
		if !a.MQTT && len(d.Alerts) == 0 {
			return Carried{}, false
		}
	}
	one := Carried{Bridge: b.Name, Device: d.ID, Local: "devices/" + d.ID + "/" + data.Name, Direction: "up"}
	for _, o := range d.Data {
		if o.Name == data.Name {
			if o.Down != nil {
				data.Down = *o.Down
			}
			if o.QoS != nil {
				data.QoS = *o.QoS
			}
			if o.Class != nil {
				data.Class = *o.Class
			}
			if o.Retain != nil {
				data.Retain = *o.Retain
			}
		}
	}
	upstream, err := m.UpstreamTopic(d.ID, data.Name)
	if err != nil {
		return Carried{}, false
	}
	one.Upstream, one.QoS, one.Class, one.Retain = upstream, data.QoS, data.Class, data.Retain
	if data.Down {
		one.Direction, one.Class, one.Retain = "down", "", false
	}
	return one, true
}

// Forecast is what polled devices send, and how long the buffer holds that.
type Forecast struct {
	MessagesPerSecond float64 `json:"messagesPerSecond"`
	PayloadPerSecond  float64 `json:"payloadBytesPerSecond"`
	StoredPerSecond   float64 `json:"storedBytesPerSecond"` // on the disk, with no upstream; about
	OutageHours       float64 `json:"outageHours"`          // 0 if nothing is bridged
	Bound             string  `json:"bound,omitempty"`      // what ends it: max_bytes or max_age
	Unknown           int     `json:"unknownDevices"`       // that send as they like, and are not in it
}

const (
	recordOverhead = 70 // bytes of a record beside payload and topics: lengths, times, the properties gateway and seq
	blockOverhead  = 200
	zstdLeaves     = 0.5 // of readings that are much alike zstd leaves less
)

// Foresee works out a Forecast from how often points are read and what their values
// look like. Whether a deadband holds some back it cannot know.
func Foresee(c *config.Config) Forecast {
	var f Forecast
	format := payloadConfig(&c.Payload)
	stored := 0.0
	for i := range c.Adapters {
		a := &c.Adapters[i]
		for j := range a.Devices {
			d := &a.Devices[j]
			if a.MQTT || len(d.Points) == 0 || a.Serial != nil && d.Every == 0 {
				f.Unknown++
				continue
			}
			for every, points := range byRate(d) {
				messages, bytes := sizeOf(format, d, points, c.Payload.PerPoint)
				if a.OPCUA != nil && !a.OPCUA.Poll && d.Sampling > 0 { // each look may find a change
					every = min(every, d.Sampling)
				}
				rate := 1 / every.Seconds()
				f.MessagesPerSecond += rate * messages
				f.PayloadPerSecond += rate * bytes
				stored += rate * (bytes + messages*float64(recordOverhead+2*len("devices//telemetry")+2*len(d.ID)))
			}
		}
	}
	if f.MessagesPerSecond == 0 || len(c.Bridges) == 0 {
		return f
	}
	b := &c.Buffer
	// A commit takes what came within linger, and at least a page.
	commits := min(f.MessagesPerSecond, 1/max(b.Linger, 10*time.Millisecond).Seconds())
	block := stored / commits
	if b.Compress {
		block *= zstdLeaves
	}
	block += blockOverhead
	page := float64(b.PageSize)
	if block > page/4 { // smaller ones share a page
		block = page * float64(int((block+page-1)/page))
	}
	f.StoredPerSecond = commits * block
	age := b.MaxAge
	for _, class := range b.Classes {
		if class.Class == "telemetry" {
			age = class.MaxAge
		}
	}
	f.Bound, f.OutageHours = "max_bytes", float64(b.MaxBytes)/f.StoredPerSecond/3600
	if b.MaxBytes <= 0 || age > 0 && age.Hours() < f.OutageHours {
		f.Bound, f.OutageHours = "max_age", age.Hours()
	}
	return f
}

// byRate are the points of a device that are published, by how often.
func byRate(d *config.Device) map[time.Duration][]*config.Point {
	all := make(map[time.Duration][]*config.Point)
	for i := range d.Points {
		p := &d.Points[i]
		every := p.Every
		if every <= 0 {
			every = d.Every
		}
		action := p.Serial != nil && p.Serial.Send != "" || p.OPCUA != nil && p.OPCUA.Call != ""
		if !p.Hidden && !action && every > 0 {
			all[every] = append(all[every], p)
		}
	}
	return all
}

// sizeOf is how many messages a poll of these points makes, and the bytes of their
// payloads together.
func sizeOf(format payload.Config, d *config.Device, points []*config.Point, perPoint bool) (messages, bytes float64) {
	r := adapters.Reading{Device: &adapters.Device{Name: d.ID, Type: d.Type, Tags: d.Tags}, Time: time.Now()}
	for _, p := range points {
		r.Samples = append(r.Samples, adapters.Sample{Point: &adapters.Point{Name: p.Name, Unit: p.Unit}, Value: typical(p)})
	}
	if !perPoint {
		return 1, float64(len(format.AppendReading(nil, r, payload.Seq{})))
	}
	for i := range r.Samples {
		bytes += float64(len(format.AppendSample(nil, r, &r.Samples[i], payload.Seq{})))
	}
	return float64(len(r.Samples)), bytes
}

// typical is a value as a point may have it.
func typical(p *config.Point) adapters.Value {
	v := adapters.Float64(1234.5)
	if m := p.Modbus; m != nil {
		switch {
		case len(p.Bits) > 0:
			names := make([]string, len(p.Bits))
			for i, b := range p.Bits {
				names[i] = b.Name
			}
			v = adapters.String(strings.Join(names, `":false,"`))
		case m.As == "bool":
			v = adapters.Bool(true)
		case m.As == "string":
			v = adapters.String(strings.Repeat("x", m.Bytes))
		}
		if m.Count > 0 {
			list := make([]adapters.Value, m.Count)
			for i := range list {
				list[i] = v
			}
			v = adapters.List(list)
		}
	}
	return v
}
