package gateway

import (
	"fmt"
	"log/slog"
	"maps"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/modbus"
	"github.com/fieldferry/fieldferry/adapters/opcua"
	"github.com/fieldferry/fieldferry/gateway/config"
)

// openLinks makes the links of all adapters and tells the field of their devices.
func openLinks(c *config.Config, f *field, k *commands, log *slog.Logger) ([]adapters.Link, error) {
	var links []adapters.Link
	for i := range c.Adapters {
		a := &c.Adapters[i]
		if a.Serial != nil {
			l, err := openSerialLink(a, f, k, log)
			if err != nil {
				return nil, err
			}
			links = append(links, l)
			continue
		}
		if a.OPCUA != nil {
			oc := OPCUAConfig(c, a, func(d *config.Device, dev *opcua.Device) {
				points := make([]*adapters.Point, len(dev.Points))
				for i := range dev.Points {
					points[i] = dev.Points[i].Point
				}
				f.add(d, dev.Device, points)
				allowOPCUAActions(d, dev)
			})
			oc.Log = log.With("part", "adapter", "adapter", a.Name)
			l, err := opcua.New(oc)
			if err != nil {
				return nil, fmt.Errorf("%s: adapter %s: %w", a.Pos, a.Name, err)
			}
			links = append(links, l)
			for i := range oc.Devices {
				k.add(l, oc.Devices[i].Device.Name)
			}
			continue
		}
		if a.Modbus == nil {
			continue
		}
		configs := ModbusConfigs(a, func(d *config.Device, dev *modbus.Device) {
			points := make([]*adapters.Point, len(dev.Points))
			for i := range dev.Points {
				points[i] = dev.Points[i].Point
			}
			f.add(d, dev.Device, points)
			allowActions(d, dev)
		})
		for _, mc := range configs {
			mc.Log = log.With("part", "adapter", "adapter", a.Name)
			l, err := modbus.New(mc)
			if err != nil {
				return nil, fmt.Errorf("%s: adapter %s: %w", a.Pos, a.Name, err)
			}
			links = append(links, l)
			for i := range mc.Devices {
				k.add(l, mc.Devices[i].Device.Name)
			}
		}
	}
	return links, nil
}

// allowActions has the link write what the actions of a device write, also where
// commands may not.
func allowActions(d *config.Device, dev *modbus.Device) {
	for _, a := range d.Actions {
		for _, s := range a.Steps {
			for _, v := range s.Write {
				for i := range dev.Points {
					if p := &dev.Points[i]; p.Point.Name == v.Point && p.Write == nil {
						p.Write = &modbus.Write{}
					}
				}
			}
		}
	}
}

// ModbusConfigs makes one configuration for each host of an adapter, in the order
// of its devices, each of which it shows to each, unless that is nil.
func ModbusConfigs(a *config.Adapter, each func(*config.Device, *modbus.Device)) []modbus.Config {
	var all []modbus.Config
	at := make(map[string]int)
	for i := range a.Devices {
		d := &a.Devices[i]
		n, ok := at[d.Address]
		if !ok {
			n = len(all)
			at[d.Address] = n
			m := a.Modbus
			name := a.Name
			if m.Address == "" {
				name += " " + d.Address
			}
			all = append(all, modbus.Config{
				Name: name, Transport: m.Transport, Address: d.Address, TLS: modbusTLS(m.TLS), Line: modbusLine(&m.Line),
				Timeout: m.Timeout, Retries: m.Retries, Settle: m.Settle, Pause: m.Pause,
				MaxGap: m.MaxGap, MaxRegisters: m.MaxRegisters, MaxBits: m.MaxBits,
			})
		}
		dev := modbusDevice(d)
		if each != nil {
			each(d, &dev)
		}
		all[n].Devices = append(all[n].Devices, dev)
	}
	return all
}

func modbusTLS(t *config.ClientTLS) *modbus.TLSFiles {
	if t == nil {
		return nil
	}
	return &modbus.TLSFiles{CA: t.CA, Cert: t.Cert, Key: t.Key}
}

func modbusLine(l *config.Line) modbus.Line {
	line := modbus.Line{Baud: l.Baud, DataBits: l.DataBits, Parity: l.Parity, StopBits: l.StopBits}
	if r := l.RS485; r != nil {
		line.RS485 = &modbus.RS485{RTS: r.RTS, Before: r.Before, After: r.After}
	}
	return line
}

func modbusDevice(d *config.Device) modbus.Device {
	dev := modbus.Device{
		Device: &adapters.Device{Name: d.ID, Type: d.Type, Tags: maps.Clone(d.Tags)},
		UnitID: d.UnitID, Every: d.Every, MaxRegisters: d.MaxRegisters, MaxBits: d.MaxBits,
	}
	for i := range d.Points {
		dev.Points = append(dev.Points, modbusPoint(&d.Points[i]))
	}
	return dev
}

// modbusPoint makes a point of the site file, whose words were checked there, one
// of the adapter.
func modbusPoint(p *config.Point) modbus.Point {
	m := p.Modbus
	table, _ := modbus.ParseTable(m.Table)
	as, _ := modbus.ParseType(m.As)
	order, _ := modbus.ParseOrder(m.Order)
	out := modbus.Point{
		Point: &adapters.Point{Name: p.Name, Unit: p.Unit},
		Table: table, Address: m.Address, Type: as, Order: order,
		Bytes: m.Bytes, Count: m.Count, Every: p.Every, Scale: p.Scale, Offset: p.Offset, ScaleBy: p.ScaleBy,
		Decimals: p.Decimals, Enum: p.Enum, Hidden: p.Hidden,
	}
	if w := p.Write; w != nil {
		out.Write = &modbus.Write{Min: w.Min, Max: w.Max, Values: w.Values, Pulse: w.Pulse}
	}
	if p.Range != nil {
		out.Range = &modbus.Range{Raw: p.Range.Raw, To: p.Range.To}
	}
	for _, b := range p.Bits {
		out.Bits = append(out.Bits, modbus.Bit{Bit: b.Bit, Name: b.Name})
	}
	for _, n := range p.Invalid {
		out.Invalid = append(out.Invalid, rawNumber(n))
	}
	return out
}

// rawNumber is a number of the site file as a device would send it.
func rawNumber(n config.Number) adapters.Value {
	if i, ok := n.Int64(); ok {
		return adapters.Int64(i)
	}
	if u, ok := n.Uint64(); ok {
		return adapters.Uint64(u)
	}
	return adapters.Float64(n.Float64())
}
