package bridge

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/fieldferry/fieldferry/localbroker/topic"
)

// Device says where devices stand in the topic tree.
type Device struct {
	ID   string            // or a pattern with *, as ts-*; an exact id goes before patterns, a longer pattern before a shorter
	Zone string            // {zone}
	Type string            // {type}
	Tags map[string]string // further fields of the topic template
	Data map[string]Override
}

// devices finds a device by its id.
type devices struct {
	exact    map[string]*device
	patterns []*device // longest first
}

type device struct {
	Device
	fields []string        // of the template
	data   map[string]Data // the bridge's with the device's overrides
}

// newDevices checks that each device gives a value for every field of the
// topic template.
func newDevices(list []Device, data map[string]Data, fields []string) (devices, error) {
	ds := devices{exact: make(map[string]*device, len(list))}
	var errs []error
	for _, d := range list {
		dev := &device{Device: d, fields: fields, data: data}
		if len(d.Data) > 0 {
			dev.data = maps.Clone(data)
			for name, o := range d.Data {
				entry := o.apply(data[name])
				errs = append(errs, entry.check(fmt.Sprintf("device %s: data %s", d.ID, name)))
				dev.data[name] = entry
			}
		}
		for _, f := range fields {
			if v, ok := dev.value(f, d.ID, "telemetry"); !ok || v == "" {
				errs = append(errs, fmt.Errorf("device %s: the topic template needs its {%s}", d.ID, f))
			}
		}
		if strings.Contains(d.ID, "*") {
			if _, err := path.Match(d.ID, ""); err != nil {
				errs = append(errs, fmt.Errorf("device %s: not a pattern", d.ID))
			}
			ds.patterns = append(ds.patterns, dev)
			continue
		}
		if ds.exact[d.ID] != nil {
			errs = append(errs, fmt.Errorf("device %s: there twice", d.ID))
		}
		ds.exact[d.ID] = dev
	}
	slices.SortStableFunc(ds.patterns, func(a, b *device) int { return cmp.Compare(len(b.ID), len(a.ID)) })
	return ds, errors.Join(errs...)
}

func (ds *devices) find(id string) (*device, bool) {
	if d, ok := ds.exact[id]; ok {
		return d, true
	}
	for _, d := range ds.patterns {
		if ok, _ := path.Match(d.ID, id); ok {
			return d, true
		}
	}
	return nil, false
}

// dataFor finds the longest name that is a prefix of data, level by level.
func (d *device) dataFor(data string) (Data, bool) {
	for name := data; name != ""; {
		if entry, ok := d.data[name]; ok {
			return entry, true
		}
		i := strings.LastIndexByte(name, '/')
		name = name[:max(i, 0)]
	}
	return Data{}, false
}

// topic is the upstream topic of data of the device, whose id is given because
// d may be a pattern.
func (d *device) topic(t *topic.Template, id, data string) (string, error) {
	values := make([]string, len(d.fields))
	for i, f := range d.fields {
		values[i], _ = d.value(f, id, data)
	}
	b, err := t.Append(nil, values)
	return string(b), err
}

func (d *device) value(field, id, data string) (string, bool) {
	switch field {
	case "device":
		return id, true
	case "data":
		return data, true
	case "zone":
		return d.Zone, true
	case "type":
		return d.Type, true
	}
	v, ok := d.Tags[field]
	return v, ok
}

// deviceYAML is what to paste into the site file for a device that publishes to
// the local broker and is not in it.
func deviceYAML(id string) string {
	if strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || id == "" || id[0] == '-' {
		id = strconv.QuoteToASCII(id) // as YAML reads it in double quotes, too
	}
	return "adapters:\n  talkers:\n    mqtt: local\n    devices:\n      " + id + ": {type: sensor}\n"
}
