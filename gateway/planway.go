package gateway

import (
	"cmp"
	"crypto/tls"
	"strings"

	"github.com/fieldferry/fieldferry/bridge"
	"github.com/fieldferry/fieldferry/gateway/config"
)

// WayPlan is how a bridge will reach its upstreams, and which connection carries what.
type WayPlan struct {
	Bridge      string           `json:"bridge"`
	Upstream    []string         `json:"upstream"` // tried in turn
	Proxy       string           `json:"proxy,omitempty"`
	TLS         *TLSPlan         `json:"tls,omitempty"`
	Connections []ConnectionPlan `json:"connections"`
	Spread      []string         `json:"spread,omitempty"` // patterns whose devices go by the id they turn out to have
}

// TLSPlan is the TLS of a bridge.
type TLSPlan struct {
	MinVersion string   `json:"minVersion"`
	CA         string   `json:"ca,omitempty"` // empty: the system's authorities
	Cert       string   `json:"cert,omitempty"`
	Pins       []string `json:"pins,omitempty"`
}

// ConnectionPlan is one connection.
type ConnectionPlan struct {
	ClientID string   `json:"clientId"`
	Devices  []string `json:"devices"`
}

// PlanWay works out the way of a bridge of a site file.
func PlanWay(c *config.Config, b *config.Bridge) WayPlan {
	p := WayPlan{Bridge: b.Name}
	for _, u := range b.Upstream {
		p.Upstream = append(p.Upstream, u.Redacted())
	}
	if b.Proxy != nil {
		p.Proxy = b.Proxy.Redacted()
	}
	if secure(b) {
		p.TLS = &TLSPlan{
			MinVersion: strings.TrimPrefix(tls.VersionName(cmp.Or(b.TLS.MinVersion, tls.VersionTLS12)), "TLS "),
			CA:         b.TLS.CA, Cert: b.TLS.Cert, Pins: b.TLS.Pins,
		}
	}
	for k := range b.Connections {
		p.Connections = append(p.Connections, ConnectionPlan{clientID(b, k), []string{}})
	}
	for _, a := range c.Adapters {
		for _, d := range a.Devices {
			if strings.ContainsAny(d.ID, "*?[") {
				p.Spread = append(p.Spread, d.ID)
				continue
			}
			k := bridge.SpreadOver(b.Connections, d.ID)
			p.Connections[k].Devices = append(p.Connections[k].Devices, d.ID)
		}
	}
	return p
}
