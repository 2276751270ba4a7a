package gateway

import (
	"fmt"

	"github.com/fieldferry/fieldferry/gateway/config"
)

// Unsupported returns what a site file asks for that this version cannot do yet.
// Such a part is never left out silently: the gateway does not start.
func Unsupported(c *config.Config) []config.Problem {
	u := &unsupported{}
	if c.Gateway.Time.Hold {
		u.add(c.Gateway.Time.Pos, "gateway.time.unsynced: hold", "holding messages back until the clock is right is")
	}
	if pos, there := c.Position("alarms", "webhook"); there {
		u.add(pos, "alarms.webhook", "telling a webhook of alarms is")
	}
	u.broker(c)
	for i := range c.Adapters {
		u.adapter(&c.Adapters[i])
	}
	u.payload(&c.Payload)
	for i := range c.Bridges {
		u.bridge(&c.Bridges[i])
	}
	return u.problems
}

type unsupported struct {
	problems []config.Problem
	points   map[config.Pos]bool // of profiles that were told of already
}

// add tells of one part: "what: these are not in this version".
func (u *unsupported) add(pos config.Pos, what, these string) {
	u.problems = append(u.problems, config.Problem{Pos: pos, Text: fmt.Sprintf("%s: %s not in this version; take it out of the file to run the rest", what, these)})
}

func (u *unsupported) broker(c *config.Config) {
	b := &c.Broker
	if b.JWT != nil {
		u.add(b.JWT.Pos, "broker.jwt", "tokens are")
	}
	for _, l := range b.Listeners {
		what := "broker.listeners: " + l.Name
		certificates := l.TLS != nil && l.TLS.ClientCA != ""
		if !l.AllowAnonymous && b.PasswordFile == "" && b.JWT == nil && !certificates {
			u.problems = append(u.problems, config.Problem{Pos: l.Pos, Text: what +
				": nobody could connect: there is no password_file, and anonymous clients are allowed by default on loopback addresses only; give clients names with broker.password_file, listen on 127.0.0.1, or set broker.allow_anonymous: true"})
		}
	}
}

func (u *unsupported) adapter(a *config.Adapter) {
	for i := range a.Devices {
		u.device(&a.Devices[i])
	}
}

// device tells of each place once: devices share the points of their profile.
func (u *unsupported) device(d *config.Device) {
	once := func(pos config.Pos, what, these string) {
		if u.points == nil {
			u.points = make(map[config.Pos]bool)
		}
		if !u.points[pos] {
			u.points[pos] = true
			u.add(pos, what, these)
		}
	}
	for _, o := range d.Data {
		if o.Encrypt != nil && *o.Encrypt != "" {
			once(o.Pos, "data."+o.Name+".encrypt", "end-to-end encryption is")
		}
	}
}

func (u *unsupported) payload(p *config.Payload) {
	if p.Format != "flat" {
		u.add(p.Pos, "payload.format: "+p.Format, "formats other than flat are")
	}
	if p.Batch != nil {
		u.add(p.Batch.Pos, "payload.batch", "batches are")
	}
	if p.Seq {
		u.add(p.Pos, "payload.seq", "the sequence number in the payload is (it is a user property of what goes upstream, though)")
	}
}

func (u *unsupported) bridge(b *config.Bridge) {
	what := "bridges." + b.Name
	for _, d := range b.Data {
		if d.Encrypt != "" {
			u.add(d.Pos, what+".data."+d.Name+".encrypt", "end-to-end encryption is")
		}
	}
	for _, f := range b.Forward {
		if f.Encrypt != "" {
			u.add(f.Pos, what+".forward: encrypt", "end-to-end encryption is")
		}
	}
}
