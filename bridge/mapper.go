package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker/topic"
)

// DefaultTopic is the upstream form of devices/{device}/{data}.
const DefaultTopic = "{org}/{site}/{zone}/{type}/{device}/{data}"

const (
	devicesPrefix = "devices/"

	// maxRoutes bounds what is remembered of local topics, maxUnknown of devices
	// that were reported: a client can make up any number of both.
	maxRoutes  = 100_000
	maxUnknown = 1_000
)

// MapperOptions say which local publishes a bridge carries, and as what.
type MapperOptions struct {
	Gateway string // {gateway} in templates, and the user property of every copy
	Org     string // {org}
	Site    string // {site}
	Origin  string // of the buffer, first part of seq
	Boot    uint32 // of the buffer, second part of seq

	Topic    string          // upstream form; default DefaultTopic
	Data     map[string]Data // by data name; the longest that is a prefix by level counts
	Devices  []Device
	Forward  []Forward  // tried in order for topics outside devices/
	Outboxes []Outboxes // where the copies go: those of each connection, by SpreadOver

	// Live says whether telemetry can be sent soon. What cannot goes to Replay, and has
	// the user property replayed. nil keeps all of it in one order.
	Live func(connection int) bool

	// Unknown is told once of each device that publishes but is not in Devices,
	// with the lines that would add it to the site file. It must not block.
	Unknown func(device, yaml string)
}

// Direction is the way messages of a kind go.
type Direction byte

// The directions.
const (
	Up      Direction = iota // from the local broker to the upstream
	Down                     // from the upstream to the local broker
	Nowhere                  // neither
)

// Data is how one kind of data is carried.
type Data struct {
	Direction Direction
	QoS       byte         // on the way upstream, whatever the local publish had
	Class     buffer.Class // the zero value is alert
	Retain    bool         // on the way upstream, whatever the local publish had
}

// Override changes how a device's data is carried; nil leaves it as it is.
type Override struct {
	Direction *Direction
	QoS       *byte
	Class     *buffer.Class
	Retain    *bool
}

func (o Override) apply(d Data) Data {
	if o.Direction != nil {
		d.Direction = *o.Direction
	}
	if o.QoS != nil {
		d.QoS = *o.QoS
	}
	if o.Class != nil {
		d.Class = *o.Class
	}
	if o.Retain != nil {
		d.Retain = *o.Retain
	}
	return d
}

// Forward carries topics outside devices/ that match Local, a filter, as
// Upstream, in which {1} is what the first + matched and {#} the rest. The
// retain flag stays as it was published.
type Forward struct {
	Local     string
	Upstream  string
	Direction Direction
	QoS       byte
	Class     buffer.Class
}

// Mapper tells what a bridge makes of local publishes. It is safe for
// concurrent use.
type Mapper struct {
	template *topic.Template
	devices  devices
	forward  []forward
	outboxes []Outboxes // by connection
	props    []byte     // the gateway property and the key of seq
	own      []byte     // the gateway property
	late     []byte     // props of what is replayed
	live     func(connection int) bool
	filters  []Filter
	seq      string // "origin.boot."

	unknown      func(device, yaml string)
	unknownCount atomic.Uint64
	unfitCount   atomic.Uint64

	mu       sync.RWMutex
	routes   map[string]*target // guarded by mu: by local topic
	floor    uint64             // guarded by mu: no counter that was forgotten is above it
	reported map[string]bool    // guarded by mu: unknown devices
}

type forward struct {
	Forward
	mapping *topic.Mapping
}

// target is what one local topic becomes.
type target struct {
	mapper     *Mapper
	data       Data
	keepRetain bool // that of the publish counts, not the data's
	topic      string
	connection int           // that carries it
	n          atomic.Uint64 // last number given
}

// NewMapper compiles the options. Its errors, all of them joined, name the
// device, data or rule they are about.
func NewMapper(o MapperOptions) (*Mapper, error) {
	if o.Topic == "" {
		o.Topic = DefaultTopic
	}
	m := &Mapper{
		outboxes: o.Outboxes,
		unknown:  o.Unknown,
		live:     o.Live,
		seq:      fmt.Sprintf("%s.%d.", o.Origin, o.Boot),
		props:    appendString(appendUser(nil, "gateway", o.Gateway), userProperty, "seq"),
		routes:   map[string]*target{},
		reported: map[string]bool{},
	}
	m.late = append(appendUser(nil, "replayed", "true"), m.props...)
	m.own = appendUser(nil, "gateway", o.Gateway)
	fixed := map[string]string{"gateway": o.Gateway, "org": o.Org, "site": o.Site}
	var err error
	if m.template, err = topic.ParseTemplate(o.Topic, "data", used(o.Topic, fixed)); err != nil {
		return nil, err
	}
	var errs []error
	for name, d := range o.Data {
		errs = append(errs, d.check("data "+name))
	}
	m.devices, err = newDevices(o.Devices, o.Data, m.template.Fields())
	errs = append(errs, err)
	for _, f := range o.Forward {
		what := "forward " + f.Local
		errs = append(errs, Data{QoS: f.QoS, Class: f.Class}.check(what))
		mapping, err := topic.ParseMapping(f.Local, f.Upstream, used(f.Upstream, fixed))
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
			continue
		}
		m.forward = append(m.forward, forward{f, mapping})
	}
	if len(errs) == 0 || errors.Join(errs...) == nil {
		errs = append(errs, m.subscribe(o, fixed))
	}
	return m, errors.Join(errs...)
}

// subscribe works out what is to be subscribed upstream.
func (m *Mapper) subscribe(o MapperOptions, fixed map[string]string) error {
	down := make(map[string]byte) // by data name
	add := func(name string, d Data) {
		if d.Direction == Down {
			down[name] = max(down[name], d.QoS)
		}
	}
	for name, d := range o.Data {
		add(name, d)
	}
	for _, dev := range o.Devices {
		for name, override := range dev.Data {
			add(name, override.apply(o.Data[name]))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(down)) {
		if len(o.Devices) == 0 {
			break
		}
		text := strings.ReplaceAll(o.Topic, "{data}", name)
		t, err := topic.ParseTemplate(text, "", used(text, fixed))
		if err != nil {
			return err
		}
		m.filters = append(m.filters, Filter{t.Filter(), down[name]})
	}
	for _, f := range m.forward {
		if f.Direction == Down {
			if !f.mapping.Reversible() {
				return fmt.Errorf("forward %s: %q does not say which local topic it is for", f.Local, f.Upstream)
			}
			m.filters = append(m.filters, Filter{f.mapping.ReverseFilter(), f.QoS})
		}
	}
	return nil
}

// Filters are the subscriptions that bring what is to come down.
func (m *Mapper) Filters() []Filter { return m.filters }

// Local is the local topic of a message from the upstream that came with a QoS, and the
// QoS that it has there: what a device's data says, and otherwise the same. It reports
// false if no rule is for it.
func (m *Mapper) Local(upstream string, qos byte) (string, byte, bool) {
	if values, ok := m.template.Match(nil, upstream); ok {
		var id, data string
		for i, f := range m.template.Fields() {
			switch f {
			case "device":
				id = values[i]
			case "data":
				data = values[i]
			}
		}
		if dev, ok := m.devices.find(id); ok {
			d, ok := dev.dataFor(data)
			if name, err := dev.topic(m.template, id, data); ok && d.Direction == Down && err == nil && name == upstream {
				return devicesPrefix + id + "/" + data, d.QoS, true
			}
		}
	}
	for _, f := range m.forward {
		if f.Direction == Down {
			if b, ok := f.mapping.AppendReverse(nil, upstream); ok {
				return string(b), qos, true
			}
		}
	}
	return "", 0, false
}

// MayAnswer reports whether an answer may go to an upstream topic that who asked has
// named. The topics of devices that the bridge knows it may not be: what stands there
// is the devices' own, or a command. Nor what the bridge takes from the upstream.
func (m *Mapper) MayAnswer(upstream string) bool {
	if topic.CheckName(upstream, 0) != nil || strings.HasPrefix(upstream, "$") {
		return false
	}
	if values, ok := m.template.Match(nil, upstream); ok {
		i := slices.Index(m.template.Fields(), "device")
		if i < 0 {
			return false // any could be a device's
		}
		if _, there := m.devices.find(values[i]); there {
			return false
		}
	}
	return !slices.ContainsFunc(m.filters, func(f Filter) bool { return topic.Match(f.Topic, upstream) })
}

// Mark appends the gateway property, by which Own knows a message again.
func (m *Mapper) Mark(props []byte) []byte { return append(props, m.own...) }

// Own reports whether a message with these properties has gone through this gateway
// before: it must not go round in circles.
func (m *Mapper) Own(props []byte) bool {
	for at := 0; ; at++ {
		i := bytes.Index(props[at:], m.own)
		if i < 0 {
			return false
		}
		if at += i; startsProperty(props, at) {
			return true
		}
	}
}

// used leaves out the fields that a template does not have, because an empty one
// is an error.
func used(template string, fixed map[string]string) map[string]string {
	fixed = maps.Clone(fixed)
	maps.DeleteFunc(fixed, func(name, _ string) bool { return !strings.Contains(template, "{"+name+"}") })
	return fixed
}

func (d Data) check(what string) error {
	switch {
	case d.QoS > 2:
		return fmt.Errorf("%s: QoS %d is above 2", what, d.QoS)
	case d.Class >= buffer.Local:
		return fmt.Errorf("%s: class %s is not for a bridge", what, d.Class)
	}
	return nil
}

// Route is the way of one local publish through one bridge. A message that
// several bridges carry has one class, the highest any of their routes has, so
// Copy is told it.
type Route struct {
	Class  buffer.Class // that this bridge would give
	target *target
	retain bool
}

// Route finds the way of a publish on a valid local topic. It reports false if
// the bridge does not carry it; what has gone up from here before, as its
// properties tell, it does not carry again.
func (m *Mapper) Route(name string, retain bool, props []byte) (Route, bool) {
	if len(props) > 0 && m.Own(props) {
		return Route{}, false
	}
	m.mu.RLock()
	t := m.routes[name]
	m.mu.RUnlock()
	if t == nil {
		if t = m.find(name); t == nil {
			return Route{}, false
		}
	}
	if !t.keepRetain {
		retain = t.data.Retain
	}
	return Route{Class: t.data.Class, target: t, retain: retain}, true
}

// Copy is the message's copy for this bridge in the class given. Appending it
// gives it the user properties gateway and seq, with the next number of the topic.
func (r Route) Copy(class buffer.Class) buffer.Copy {
	m, outboxes := r.target.mapper, &r.target.mapper.outboxes[r.target.connection]
	c := buffer.Copy{
		Outbox: outboxes[class],
		Topic:  r.target.topic,
		Number: r.target,
		QoS:    r.target.data.QoS,
		Retain: r.retain,
	}
	if class == buffer.Telemetry && m.live != nil && !m.live(r.target.connection) {
		c.Outbox, c.Number = outboxes[Replay], replayed{r.target}
	}
	return c
}

// replayed numbers what is replayed.
type replayed struct{ *target }

func (t replayed) Number() []byte { return appendSeq(t.mapper.late, t.mapper.seq, t.n.Add(1)) }

// Number returns the user properties with the next number of the topic.
func (t *target) Number() []byte { return appendSeq(t.mapper.props, t.mapper.seq, t.n.Add(1)) }

// Undo takes the last number back.
func (t *target) Undo() { t.n.Add(^uint64(0)) }

// find works out a route and remembers it.
func (m *Mapper) find(name string) *target {
	var t *target
	if rest, ok := strings.CutPrefix(name, devicesPrefix); ok {
		id, data, _ := strings.Cut(rest, "/")
		t = m.findData(id, data)
	} else {
		t = m.findForward(name)
	}
	if t == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if there := m.routes[name]; there != nil {
		return there
	}
	if len(m.routes) >= maxRoutes {
		// numbers must not come twice: topics that return go on above all that were given
		for _, old := range m.routes {
			m.floor = max(m.floor, old.n.Load())
		}
		clear(m.routes)
	}
	t.n.Store(m.floor)
	m.routes[strings.Clone(name)] = t
	return t
}

func (m *Mapper) findData(id, data string) *target {
	dev, ok := m.devices.find(id)
	if !ok {
		m.report(id)
		return nil
	}
	d, ok := dev.dataFor(data)
	if !ok || d.Direction != Up {
		return nil
	}
	name, err := dev.topic(m.template, id, data)
	if err != nil {
		m.unfitCount.Add(1)
		return nil
	}
	return &target{mapper: m, data: d, topic: name, connection: SpreadOver(len(m.outboxes), id)}
}

func (m *Mapper) findForward(name string) *target {
	for _, f := range m.forward {
		if f.Direction != Up {
			continue
		}
		if b, ok := f.mapping.Append(nil, name); ok {
			return &target{mapper: m, data: Data{QoS: f.QoS, Class: f.Class}, keepRetain: true, topic: string(b), connection: SpreadOver(len(m.outboxes), string(b))}
		}
	}
	return nil
}

func (m *Mapper) report(id string) {
	m.unknownCount.Add(1)
	m.mu.Lock()
	news := !m.reported[id] && len(m.reported) < maxUnknown
	if news {
		m.reported[strings.Clone(id)] = true
	}
	m.mu.Unlock()
	if news && m.unknown != nil {
		m.unknown(id, deviceYAML(id))
	}
}

// UpstreamTopic is what data of a device is called upstream.
func (m *Mapper) UpstreamTopic(device, data string) (string, error) {
	dev, ok := m.devices.find(device)
	if !ok {
		return "", fmt.Errorf("device %q is not in the site file", device)
	}
	return dev.topic(m.template, device, data)
}

// MapperStats counts publishes that were not carried and should have been.
type MapperStats struct {
	Unknown uint64 // of devices that are not in the site file
	Unfit   uint64 // whose upstream topic would not be valid, as one above 65,535 bytes
}

// Stats returns the counts since NewMapper.
func (m *Mapper) Stats() MapperStats {
	return MapperStats{Unknown: m.unknownCount.Load(), Unfit: m.unfitCount.Load()}
}
