package gateway

import (
	"crypto/x509"
	"maps"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/opcua"
	"github.com/fieldferry/fieldferry/gateway/config"
)

// OPCUAConfig makes the configuration of an OPC UA adapter, whose devices, in their
// order, it shows to each, unless that is nil.
func OPCUAConfig(c *config.Config, a *config.Adapter, each func(*config.Device, *opcua.Device)) opcua.Config {
	u := a.OPCUA
	out := opcua.Config{
		Name: a.Name, Gateway: c.Gateway.ID, Endpoint: u.Endpoint, Policy: u.Policy, Mode: u.Mode,
		Cert: u.Cert, Key: u.Key, Trust: opcua.Trust{Folder: u.Trust}, Poll: u.Poll,
	}
	if user := u.User; user != nil {
		out.User = &opcua.User{Name: user.Name, Password: user.Password.Read, Cert: user.Cert, Key: user.Key}
	}
	for i := range a.Devices {
		d := &a.Devices[i]
		dev := opcua.Device{
			Device: &adapters.Device{Name: d.ID, Type: d.Type, Tags: maps.Clone(d.Tags)},
			Every:  d.Every, Sampling: d.Sampling,
		}
		for j := range d.Points {
			dev.Points = append(dev.Points, opcuaPoint(&d.Points[j]))
		}
		if each != nil {
			each(d, &dev)
		}
		out.Devices = append(out.Devices, dev)
	}
	return out
}

func opcuaPoint(p *config.Point) opcua.Point {
	out := opcua.Point{
		Point: &adapters.Point{Name: p.Name, Unit: p.Unit},
		Node:  p.OPCUA.Node, Call: p.OPCUA.Call, Object: p.OPCUA.Object, Every: p.Every,
		Scale: p.Scale, Offset: p.Offset, Decimals: p.Decimals, Enum: p.Enum,
		Deadband: p.Deadband, Relative: p.Relative, Heartbeat: p.Heartbeat, Hidden: p.Hidden,
	}
	if w := p.Write; w != nil {
		out.Write = &opcua.Write{Min: w.Min, Max: w.Max, Values: w.Values, Pulse: w.Pulse}
	}
	return out
}

// allowOPCUAActions is allowActions for OPC UA.
func allowOPCUAActions(d *config.Device, dev *opcua.Device) {
	for _, a := range d.Actions {
		for _, s := range a.Steps {
			for _, v := range s.Write {
				for i := range dev.Points {
					if p := &dev.Points[i]; p.Point.Name == v.Point && p.Write == nil && p.Call == "" {
						p.Write = &opcua.Write{}
					}
				}
			}
		}
	}
}

// linkCertificates look at the certificates of links: ours, and the servers'.
func linkCertificates(links []adapters.Link) (all []certLook) {
	for _, l := range links {
		if c, ok := l.(interface{ Certificates() []*x509.Certificate }); ok {
			all = append(all, certLook{"adapter/" + l.String(), func() error { return nil }, c.Certificates})
		}
	}
	return all
}
