package config

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// field decodes the adapters with their devices.
type field struct {
	*decoder
	gateway  *Gateway
	profiles map[string]*profile
	kits     map[string]*kit // of devices that are alike
	ids      map[string]Pos  // of the devices
	devices  int
	points   int // of all devices
	distinct int // of all kits
}

// kit is what devices that are alike share.
type kit struct {
	points  []Point
	alerts  []Alert
	actions []Action
}

// protocols are what an adapter can speak.
var protocols = []string{"modbus", "opcua", "serial", "mqtt"}

// The keys of each protocol's adapters and devices, to tell where one belongs
// that is at the wrong place.
var (
	adapterKeys = map[string][]string{
		"modbus": {"timeout", "retries", "settle", "pause", "max_gap", "max_registers", "max_bits", "tls", "line"},
		"opcua":  {"security", "user", "read"},
		"serial": {"line", "timeout", "retries", "settle", "pause"},
	}
	deviceKeys = map[string][]string{
		"modbus": {"at", "unit_id", "addressing", "order", "max_registers", "max_bits", "every", "points", "points_file", "alerts", "actions"},
		"opcua":  {"base", "sampling", "every", "points", "points_file", "alerts", "actions"},
		"serial": {"request", "steps", "silent", "frame", "match", "split", "holds", "simulate", "every", "points", "points_file", "alerts", "actions"},
	}
	pointKeys = map[string][]string{
		"modbus": {"holding", "input", "coil", "discrete", "bytes", "count", "stride", "order", "range", "scale_by", "invalid", "bits", "every"},
		"opcua":  {"node", "call", "object"},
		"serial": {"field", "column", "chars", "at", "bytes", "order", "range", "invalid", "bits", "when", "unit_from", "units", "send", "expect", "every"},
	}
)

// elsewhere says of a key that belongs to another protocol to which.
func elsewhere(keys map[string][]string, protocol, what string) func(key string) string {
	return func(key string) string {
		for _, p := range protocols {
			if p != protocol && slices.Contains(keys[p], key) && !slices.Contains(keys[protocol], key) {
				return fmt.Sprintf("%s is for %s of %s adapters, this one is %s; remove it", key, what, p, protocol)
			}
		}
		return ""
	}
}

func (f *field) adapters(o *object) []Adapter {
	var all []Adapter
	for key, v := range o.entries() {
		f.checkName("the adapter", key, "adapter")
		if a := f.object(key.pos(), v, key.text); a.there() {
			all = append(all, f.adapter(a, key.text))
		}
	}
	if o.there() && len(o.n.entries) == 0 {
		f.problem(o.at, "adapters is empty; add one, or remove it")
	}
	return all
}

// adapter decodes one.
func (f *field) adapter(o *object, name string) Adapter {
	a := Adapter{Pos: o.at, Name: name}
	protocol := f.protocol(o)
	switch protocol {
	case "modbus":
		a.Modbus = f.modbus(o)
	case "opcua":
		a.OPCUA = f.opcua(o)
	case "serial":
		a.Serial = f.serial(o)
	case "mqtt":
		a.MQTT = true
		o.enum("mqtt", "local", "local")
	}
	devices := o.object("devices")
	o.need("devices", "the adapter has no devices; add devices: with one")
	if protocol == "" {
		o.known = slices.Concat(o.known, adapterKeys["modbus"], adapterKeys["opcua"])
		o.done()
		return a
	}
	o.done(elsewhere(adapterKeys, protocol, "the connection"))
	if !devices.there() {
		return a
	}
	if len(devices.n.entries) == 0 {
		f.problem(devices.at, "the adapter has no devices; add one")
	}
	for key, v := range devices.entries() {
		if v != nil {
			f.entry(&a, protocol, key, v)
		}
	}
	return a
}

// protocol is which one an adapter speaks; "" if that is not clear, and said. A
// key that is misspelt is taken for the one that is meant.
func (f *field) protocol(o *object) string {
	var found []string
	for _, p := range protocols {
		o.known = append(o.known, p)
		if o.has(p) {
			found = append(found, p)
		}
	}
	switch len(found) {
	case 1:
		return found[0]
	case 0:
		for i, e := range o.n.entries {
			meant := nearest(e.key.text, protocols)
			if meant == "" {
				continue
			}
			f.problem(e.key.pos(), "unknown key %s%s", quote(e.key.text), suggest(e.key.text, protocols))
			n, key := *o.n, *e.key
			key.text = meant
			n.entries = slices.Clone(n.entries)
			n.entries[i].key = &key
			o.n = &n
			return meant
		}
		f.problem(o.at, "the adapter does not say what it speaks; add modbus:, opcua:, serial: or mqtt:")
	default:
		f.problem(o.pos(found[1]), "the adapter has %s and %s; make two adapters of it", found[0], found[1])
	}
	return ""
}

// entry decodes a key of devices, which may stand for many.
func (f *field) entry(a *Adapter, protocol string, key, val *node) {
	if val.kind != mapping {
		f.problem(val.pos(), "%s: expected a map, found %s", key.text, val.what())
		return
	}
	full := func() bool { return f.devices > maxDevices || f.distinct > maxPoints || f.steps > maxWork } // which is told
	if full() {
		return
	}
	taken := false
	f.each(key, val, []string{"points", "alerts", "actions"}, func(i int, id string, v *node) bool {
		if full() {
			return false
		}
		if f.devices++; f.devices > maxDevices {
			f.problem(key.pos(), "more than %d devices; run a second gateway for the others", maxDevices)
			return false
		}
		if i == 0 {
			n := *key
			n.text = id
			if protocol == "mqtt" {
				n.text = strings.ReplaceAll(id, "*", "x")
			}
			f.checkName("the device", &n, "id")
		}
		switch first, there := f.ids[id]; {
		case there && !taken:
			taken = true
			f.problem(key.pos(), "the device id %s is taken already, %s; choose another", quote(id), first.from(key.pos()))
		case id == f.gateway.ID && !taken:
			taken = true
			f.problem(key.pos(), "the device id %s is that of the gateway; choose another", quote(id))
		case !there:
			f.ids[id] = key.pos()
		}
		a.Devices = append(a.Devices, f.device(a, protocol, key, id, v))
		return true
	})
}

// device decodes one device.
func (f *field) device(a *Adapter, protocol string, key *node, id string, v *node) Device {
	v = f.expandPoints(v)
	own := f.object(key.pos(), v, id)
	dev := Device{Pos: key.pos(), ID: id, broken: true}
	body, same := v, ""
	if name := own.text("profile", ""); name != "" {
		p := f.profiles[name]
		if p == nil {
			f.problem(own.valuePos("profile"), "there is no profile %s%s; add it under profiles:", quote(name), suggestKey(f.decoder, name, f.profiles))
			return dev
		}
		p.used = true
		if p.body == nil || !f.work(len(p.body.entries), key.pos()) || own.has("points") && !f.work(int(p.body.size), key.pos()) {
			return dev
		}
		dev.Profile = name
		var values map[string]*node
		values, same = f.with(own.object("with"), name, p, key.pos())
		body = merge(f.fill(p, values, same), v.without("profile", "with"))
	} else if own.has("profile") {
		return dev // reported
	} else if own.has("with") {
		f.problem(own.pos("with"), "with fills in the parameters of a profile, but the device has none; add profile:")
		body = v.without("with")
	}
	alike := ""
	if dev.Profile != "" && !slices.ContainsFunc([]string{"points", "alerts", "actions"}, own.has) {
		alike = dev.Profile + "\x00" + same
	}
	o := f.object(key.pos(), body, id)
	if protocol != "mqtt" {
		o.need("points", "the device has no points; add points: with what to read, or a profile")
	}
	f.deviceBody(o, a, protocol, &dev, alike)
	return dev
}

// deviceBody decodes a device with its profile merged in. Devices for which
// alike, if it is not empty, and the keys that matter to points are the same
// share their points.
func (f *field) deviceBody(o *object, a *Adapter, protocol string, dev *Device, alike string) {
	dev.broken = false
	dev.Type = f.name(o, "type")
	dev.badType = dev.Type == "" && o.has("type")
	dev.Zone = f.name(o, "zone")
	if dev.Zone == "" {
		dev.Zone = f.gateway.Zone
	}
	dev.Tags = f.tags(o.object("tags"))
	dev.Data = f.overrides(o.object("data"))
	hints := elsewhere(deviceKeys, protocol, "devices")
	if protocol == "mqtt" {
		o.done(hints)
		return
	}
	dev.Every = o.duration("every", time.Second, time.Millisecond, 0)
	k := kitReader{field: f, protocol: protocol, dev: dev}
	switch protocol {
	case "modbus":
		k.modbus(o, a.Modbus)
	case "opcua":
		k.opcua(o)
	case "serial":
		k.serial(o)
	}
	kit := f.kit(o, &k, alike)
	dev.Points, dev.Alerts, dev.Actions = kit.points, kit.alerts, kit.actions
	o.done(hints)
	if f.points += len(dev.Points); f.points > maxAllPoints && f.points-len(dev.Points) <= maxAllPoints {
		f.problem(dev.Pos, "more than %d points in all; run a second gateway for the others", maxAllPoints)
	}
}

// kit decodes what devices that are alike share, or finds it.
func (f *field) kit(o *object, k *kitReader, alike string) *kit {
	if alike != "" {
		alike = strings.Join([]string{k.protocol, alike, dump(o.n, "every", "addressing", "order", "base", "sampling", "match", "split"), fmt.Sprint(k.dev.MaxRegisters, k.dev.MaxBits, k.dev.Every, k.dev.unasked())}, "\x00")
		if kit := f.kits[alike]; kit != nil {
			o.known = append(o.known, "points", "alerts", "actions")
			return kit
		}
	}
	kit := k.read(o)
	if alike != "" {
		f.kits[alike] = kit
	}
	return kit
}

// dump is the text of some keys of a map.
func dump(n *node, keys ...string) string {
	var b strings.Builder
	for _, key := range keys {
		if v := n.value(key); v != nil {
			b.WriteString(v.text)
		}
		b.WriteByte(0)
	}
	return b.String()
}

func (d *decoder) tags(o *object) map[string]string {
	if !o.there() {
		return nil
	}
	if len(o.n.entries) > maxTags {
		d.problem(o.at, "more than %d tags; remove some", maxTags)
		return nil
	}
	tags := make(map[string]string, len(o.n.entries))
	for _, e := range o.n.entries {
		name := e.key.text
		if !paramName.MatchString(name) || slices.Contains(topicFields, name) {
			d.problem(e.key.pos(), "the tag %s: use letters, digits and hyphens, and none of %s", quote(name), oneOf(topicFields))
		}
		tags[name] = o.text(name, "")
	}
	return tags
}

func (d *decoder) overrides(o *object) []DataOverride {
	if !o.there() {
		return nil
	}
	var all []DataOverride
	for _, def := range defaultData {
		if n := o.object(def.Name); n.there() {
			all = append(all, d.override(n, def.Name))
		}
	}
	o.done()
	return all
}

// unused checks the profiles that no device has, as far as that goes without
// the values of their parameters.
func (f *field) unused() {
	for _, name := range keysOf(f.profiles) {
		p := f.profiles[name]
		if p.used || p.body == nil {
			continue
		}
		values := make(map[string]*node)
		for _, q := range p.params {
			if values[q.name] = q.def; q.def == nil {
				values[q.name] = &node{broken: true}
			}
		}
		body := f.fill(p, values, "")
		o := f.object(p.key.pos(), body, name)
		protocol := guess(body)
		a := Adapter{}
		if protocol == "modbus" {
			a.Modbus = &Modbus{Address: "127.0.0.1:502", MaxRegisters: maxRegisters, MaxBits: maxBits}
		}
		f.deviceBody(o, &a, protocol, &Device{Pos: p.key.pos(), ID: name}, "")
	}
}

// guess is the protocol that a profile is for: the one that alone has one of its
// keys.
func guess(body *node) string {
	for _, protocol := range protocols {
		if hasKeyOf(body, protocol, deviceKeys) {
			return protocol
		}
		if list := body.value("points"); list != nil {
			for _, e := range list.entries {
				if hasKeyOf(e.val, protocol, pointKeys) {
					return protocol
				}
			}
		}
	}
	return "modbus"
}

func hasKeyOf(n *node, protocol string, keys map[string][]string) bool {
	return slices.ContainsFunc(n.entries, func(e entry) bool {
		for _, p := range protocols {
			if slices.Contains(keys[p], e.key.text) != (p == protocol) {
				return false
			}
		}
		return true
	})
}
