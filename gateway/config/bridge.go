package config

import (
	"encoding/base64"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Bridge carries messages to an upstream broker and back.
type Bridge struct {
	Pos           Pos
	Name          string
	Upstream      []*url.URL // tried in turn; mqtt, mqtts, ws or wss; the port is always there
	ClientID      string
	TLS           BridgeTLS
	Username      string
	Password      Secret
	Proxy         *url.URL // nil is none
	Keepalive     time.Duration
	SessionExpiry time.Duration
	Connections   int
	BackoffFirst  time.Duration
	BackoffMax    time.Duration
	Limit         RateLimit
	LiveFirst     bool   // replay: live-first, else ordered
	DropLost      bool   // on_lost_session: drop, else resend
	Topic         string // template of the upstream topics
	Data          []Data // in the order of the defaults
	Forward       []Forward

	topicPos Pos
}

// BridgeTLS is the TLS of a bridge. File names are absolute.
type BridgeTLS struct {
	Pos        Pos
	CA         string // empty is the system's
	Cert, Key  string // empty is none
	MinVersion uint16 // as tls.VersionTLS12
	Pins       []string
}

// RateLimit is what the upstream allows; 0 is no limit.
type RateLimit struct {
	Pos               Pos
	MessagesPerSecond float64
	BytesPerSecond    float64
}

// Data says how one kind of data is carried.
type Data struct {
	Pos     Pos
	Name    string // as "telemetry" or "commands/response"
	Down    bool   // from the upstream to here, else up
	QoS     byte
	Class   string // of what goes up: "alert", "command", "status" or "telemetry"
	Retain  bool
	Encrypt string // key file, absolute; empty is none
}

// DataOverride is what a device changes of a bridge's Data; nil leaves it.
type DataOverride struct {
	Pos     Pos
	Name    string
	Down    *bool
	QoS     *byte
	Class   *string
	Retain  *bool
	Encrypt *string
}

// Forward carries topics outside devices/.
type Forward struct {
	Pos      Pos
	Local    string // a filter
	Upstream string // a template: {1} is what the first + matched, {#} the rest
	Down     bool
	QoS      byte
	Class    string
	Encrypt  string // key file, absolute; empty is none

	upstreamPos Pos
	broken      bool // its topics do not fit, which is reported
}

const defaultTopic = "{org}/{site}/{zone}/{type}/{device}/{data}"

// defaultData is what goes, and how, if a bridge does not say otherwise.
var defaultData = []Data{
	{Name: "telemetry", QoS: 1, Class: "telemetry"},
	{Name: "heartbeat", QoS: 0, Class: "telemetry"},
	{Name: "status", QoS: 1, Class: "status", Retain: true},
	{Name: "alerts", QoS: 1, Class: "alert"},
	{Name: "commands/response", QoS: 1, Class: "command"},
	{Name: "commands", Down: true, QoS: 2},
	{Name: "config", Down: true, QoS: 1},
	{Name: "firmware", Down: true, QoS: 2},
}

// bridgeClasses are those of what leaves by a bridge.
var bridgeClasses = classes[:4]

func (d *decoder) bridges(o *object, g *Gateway) []Bridge {
	var all []Bridge
	for key, v := range o.entries() {
		d.checkName("the bridge", key, "bridge")
		if len(all) == maxBridges {
			d.problem(key.pos(), "more than %d bridges; one bridge can carry everything to an upstream", maxBridges)
			break
		}
		if b := d.object(key.pos(), v, key.text); b.there() {
			all = append(all, d.bridge(b, key.text, g))
		}
	}
	return all
}

func (d *decoder) bridge(o *object, name string, g *Gateway) Bridge {
	b := Bridge{
		Pos:           o.at,
		Name:          name,
		ClientID:      o.text("client_id", g.ID),
		Username:      o.text("username", ""),
		Password:      o.secret("password"),
		Keepalive:     o.duration("keepalive", 30*time.Second, time.Second, 65_535*time.Second), // MQTT 5 §3.1.2.10
		SessionExpiry: o.duration("session_expiry", 7*day, 0, 0),
		Connections:   o.int("connections", 1, 1, 64),
		LiveFirst:     o.enum("replay", "ordered", "ordered", "live-first") == "live-first",
		DropLost:      o.enum("on_lost_session", "resend", "resend", "drop") == "drop",
		Topic:         o.text("topic", defaultTopic),
		topicPos:      o.valuePos("topic"),
	}
	for _, n := range o.list("upstream", true) {
		if u := d.upstream(n); u != nil {
			b.Upstream = append(b.Upstream, u)
		}
	}
	o.need("upstream", "upstream is missing; write one such as mqtts://mqtt.example.com:8883")
	if n := o.get("upstream"); n != nil && n.kind == list && len(n.items) == 0 {
		d.problem(o.pos("upstream"), "upstream is empty; write one such as mqtts://mqtt.example.com:8883")
	}
	if proxy := o.text("proxy", ""); proxy != "" {
		u, err := url.Parse(proxy)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
			d.problem(o.valuePos("proxy"), "proxy: expected one such as http://proxy.example.com:3128, found %s", o.n.value("proxy").quote())
		} else if _, wrong := hostPort(u.Host, false); wrong != "" {
			d.problem(o.valuePos("proxy"), "proxy: %s %s; write one such as http://proxy.example.com:3128", o.n.value("proxy").quote(), wrong)
		}
		b.Proxy = u
	}
	d.bridgeTLS(o, &b)
	d.upstreamWarnings(o, &b)

	back := o.object("backoff")
	b.BackoffFirst = back.duration("first", time.Second, 10*time.Millisecond, time.Hour)
	b.BackoffMax = back.duration("max", max(time.Minute, b.BackoffFirst), 10*time.Millisecond, day)
	if b.BackoffMax < b.BackoffFirst {
		d.problem(back.valuePos("max"), "max: %s is below first, %s", b.BackoffMax, b.BackoffFirst)
	}
	back.done()
	limit := o.object("limit")
	b.Limit = RateLimit{limit.posIfThere(), limit.rate("messages_per_second", 0), limit.rate("bytes_per_second", 0)}
	limit.done()

	if _, err := parseTemplate(b.Topic, topicFixed, "data"); err != nil {
		d.problem(b.topicPos, "topic: %v", err)
	}
	data := o.object("data")
	for _, def := range defaultData {
		b.Data = append(b.Data, d.override(data.object(def.Name), def.Name).apply(def))
	}
	data.done()
	for i, n := range o.list("forward", false) {
		if i == maxRules {
			d.problem(n.pos(), "more than %d rules; use wildcards", maxRules)
			break
		}
		f := d.forward(d.object(n.pos(), n, "forward"))
		for _, before := range b.Forward {
			if f.Local != "" && f.Local == before.Local && f.Down == before.Down {
				d.problem(f.Pos, "the rule %s has local: %s already; remove one", before.Pos.from(f.Pos), quote(f.Local))
			}
		}
		b.Forward = append(b.Forward, f)
	}
	o.done()
	return b
}

var upstreamPorts = map[string]string{"mqtt": "1883", "mqtts": "8883", "ws": "80", "wss": "443"}

func (d *decoder) upstream(n *node) *url.URL {
	s, ok := d.text(n, "upstream")
	if !ok {
		return nil
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.Opaque != "":
		d.problem(n.pos(), "upstream: %s is no URL; write one such as mqtts://mqtt.example.com:8883", n.quote())
	case upstreamPorts[u.Scheme] == "":
		d.problem(n.pos(), "upstream: unknown scheme %s%s; it can be mqtt, mqtts, ws or wss", quote(u.Scheme+"://"), suggest(u.Scheme, keysOf(upstreamPorts)))
	case u.User != nil:
		d.problem(n.pos(), "upstream: a URL is no place for a password; write username: and password:")
	case strings.HasPrefix(u.Scheme, "mqtt") && strings.Trim(u.Path, "/") != "", u.Fragment != "":
		d.problem(n.pos(), "upstream: %s has more than host and port; only ws and wss have a path", n.quote())
	default:
		if u.Port() == "" {
			u.Host = net.JoinHostPort(u.Hostname(), upstreamPorts[u.Scheme])
		}
		if _, wrong := hostPort(u.Host, false); wrong != "" {
			d.problem(n.pos(), "upstream: %s %s; write one such as mqtts://mqtt.example.com:8883", n.quote(), wrong)
			return nil
		}
		return u
	}
	return nil
}

func secure(u *url.URL) bool { return u.Scheme == "mqtts" || u.Scheme == "wss" }

func (d *decoder) bridgeTLS(o *object, b *Bridge) {
	t := o.object("tls")
	b.TLS = BridgeTLS{Pos: t.posIfThere(), CA: t.path("ca"), MinVersion: t.tlsVersion("min_version"), Pins: t.texts("pins", true)}
	b.TLS.Cert, b.TLS.Key = d.keyPair(t, false)
	for _, n := range t.list("pins", true) {
		if n.kind != scalar || n.broken {
			continue
		}
		hash, ok := strings.CutPrefix(n.text, "sha256/")
		if raw, err := base64.StdEncoding.DecodeString(hash); !ok || hash == "" {
			d.problem(n.pos(), "pins: expected sha256/ and the hash of the server's key in base64, found %s", n.quote())
		} else if err != nil || len(raw) != 32 {
			d.warn(n.pos(), "pins: %s is no SHA-256 in base64, so no server will match it", n.quote())
		}
	}
	t.done()
	proxy := b.Proxy != nil && b.Proxy.Scheme == "https" // which tls.ca is for, too
	if t.there() && !proxy && len(b.Upstream) > 0 && !slices.ContainsFunc(b.Upstream, secure) {
		d.problem(t.at, "tls is not used by %s; write %ss://, or remove tls", quote(b.Upstream[0].Scheme+"://"), b.Upstream[0].Scheme)
	}
}

// upstreamWarnings tells what an upstream's address gives away.
func (d *decoder) upstreamWarnings(o *object, b *Bridge) {
	if len(b.Upstream) > 1 {
		d.warn(o.pos("upstream"), "several upstreams must be nodes of one cluster that share their sessions; independent brokers cannot give exactly once")
	}
	for _, u := range b.Upstream {
		if o.has("password") && !secure(u) && !loopback(u.Host) {
			d.warn(o.pos("password"), "the password goes to %s without encryption; write %ss://", u.Host, u.Scheme)
		}
	}
}

// apply is a bridge's data with the changes of a device, or of a bridge.
func (c DataOverride) apply(def Data) Data {
	if c.Down != nil {
		def.Down = *c.Down
		if !def.Down && def.Class == "" {
			def.Class = "telemetry"
		}
	}
	if c.QoS != nil {
		def.QoS = *c.QoS
	}
	if c.Class != nil {
		def.Class = *c.Class
	}
	if c.Retain != nil {
		def.Retain = *c.Retain
	}
	if c.Encrypt != nil {
		def.Encrypt = *c.Encrypt
	}
	if !c.Pos.IsZero() {
		def.Pos = c.Pos
	}
	return def
}

// override reads an entry of data.
func (d *decoder) override(o *object, name string) DataOverride {
	c := DataOverride{Pos: o.posIfThere(), Name: name}
	if s := o.enum("direction", "", "up", "down"); s != "" {
		down := s == "down"
		c.Down = &down
	}
	if q, ok := o.integer("qos", 0, 2); ok {
		qos := byte(q)
		c.QoS = &qos
	}
	if s := o.enum("class", "", bridgeClasses...); s != "" {
		c.Class = &s
	}
	if o.has("retain") {
		retain := o.bool("retain", false)
		c.Retain = &retain
	}
	if s := o.path("encrypt"); s != "" {
		c.Encrypt = &s
	}
	o.known = append(o.known, "retain")
	o.done()
	return c
}

func (d *decoder) forward(o *object) Forward {
	f := Forward{
		Pos:         o.at,
		Local:       o.text("local", ""),
		Upstream:    o.text("upstream", ""),
		Down:        o.enum("direction", "up", "up", "down") == "down",
		QoS:         byte(o.int("qos", 1, 0, 2)),
		Class:       o.enum("class", "telemetry", bridgeClasses...),
		Encrypt:     o.path("encrypt"),
		upstreamPos: o.valuePos("upstream"),
	}
	o.need("local", "local is missing; write the filter of the local topics, such as plant/#")
	o.need("upstream", "upstream is missing; write the upstream topic, such as {org}/{site}/plant/{#}")
	before := len(d.problems)
	d.checkForward(o, &f)
	f.broken = len(d.problems) > before
	o.done()
	return f
}
