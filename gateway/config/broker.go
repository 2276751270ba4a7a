package config

import (
	"crypto/tls"
	"net"
	"slices"
	"strings"
	"time"
)

// Broker is the local MQTT broker.
type Broker struct {
	Pos          Pos        // zero if it was left out
	Listeners    []Listener // at least one
	PasswordFile string     // absolute, or empty
	ACLFile      string     // absolute, or empty
	JWT          *JWT       // nil: no tokens
	Limits       Limits
	SysInterval  time.Duration // of $SYS; 0 is off
}

// Listener is an address that clients connect to.
type Listener struct {
	Pos            Pos
	Name           string
	Listen         string       // host:port
	TLS            *ListenerTLS // nil: plain
	WebSocket      string       // path, as "/mqtt"; empty is MQTT right over TCP or TLS
	Origins        []string     // that a browser's page may have; empty is the same host only
	AllowAnonymous bool         // resolved: see broker.allow_anonymous
}

// ListenerTLS is the TLS of a listener. File names are absolute.
type ListenerTLS struct {
	Pos               Pos
	Cert, Key         string
	ClientCA          string // empty: clients are not asked for a certificate
	RequireClientCert bool
	Identity          string // "cn" or "san": what of the certificate is the username; empty is none
	CRL               string // may be empty
	MinVersion        uint16 // as tls.VersionTLS12
}

// JWT says which tokens are taken as passwords.
type JWT struct {
	Pos         Pos
	Algorithms  []string // "HS256", "RS256", "ES256", "EdDSA"
	Secret      Secret   // for HS256
	Keys        string   // file, absolute, for the others
	Issuer      string   // empty is any
	Permissions string   // the claim with the rights; empty is none
}

// Limits of the broker. They are those of one client where it says so.
type Limits struct {
	Pos                    Pos
	Clients                int
	ClientsPerAddress      int
	ConnectTimeout         time.Duration
	PacketSize             int64 // bytes
	ReceiveMaximum         int   // unacknowledged messages of a client, each way
	QueuedMessages         int   // per persistent session
	QueuedBytes            int64 // per persistent session
	RetainedMessages       int
	SubscriptionsPerClient int
	TopicLevels            int
	TopicAliases           int
	SessionExpiry          time.Duration // longest
	Keepalive              time.Duration // longest
	MessagesPerSecond      float64       // of a client; 0 is no limit
}

const defaultListen = "127.0.0.1:1883"

func (d *decoder) broker(o *object) Broker {
	b := Broker{
		Pos:          o.posIfThere(),
		PasswordFile: o.path("password_file"),
		ACLFile:      o.path("acl_file"),
		SysInterval:  o.duration("sys_interval", 10*time.Second, 0, day),
		Limits:       d.limits(o.object("limits")),
	}
	if jwt := o.object("jwt"); jwt.there() {
		b.JWT = d.jwt(jwt)
	}
	for i, n := range o.list("listeners", false) {
		if i == maxListeners {
			d.problem(n.pos(), "more than %d listeners; remove some", maxListeners)
			break
		}
		b.Listeners = append(b.Listeners, d.listener(d.object(n.pos(), n, "listeners")))
	}
	if !o.has("listeners") {
		b.Listeners = []Listener{{Pos: b.Pos, Name: "default", Listen: defaultListen}}
	} else if n := o.get("listeners"); n != nil && n.kind == list && len(n.items) == 0 {
		d.problem(o.pos("listeners"), "listeners is empty; add one, or remove it for %s", defaultListen)
	}
	d.anonymous(o, &b)
	o.done()
	return b
}

// anonymous resolves who may connect without a name: what the file says; if it
// says nothing, whoever is on this machine, as long as nobody has a name.
func (d *decoder) anonymous(o *object, b *Broker) {
	said := o.has("allow_anonymous")
	allow, good := o.boolean("allow_anonymous")
	if said && !good {
		return // what it was to say is not known
	}
	names := b.PasswordFile != "" || b.JWT != nil || o.has("password_file") || o.has("jwt")
	for _, l := range b.Listeners {
		names = names || l.TLS != nil && l.TLS.ClientCA != ""
	}
	for i := range b.Listeners {
		l := &b.Listeners[i]
		l.AllowAnonymous = allow || !said && !names && loopback(l.Listen)
		switch {
		case l.Listen == "":
		case allow && !loopback(l.Listen) && (l.TLS == nil || !l.TLS.RequireClientCert):
			d.warn(o.pos("allow_anonymous"), "anybody who reaches %s may connect; give clients names with password_file, and set allow_anonymous: false", l.Listen)
		case !l.AllowAnonymous && !names:
			d.warn(l.Pos, "nobody can connect to %s, for there are no names; set password_file, jwt or tls.client_ca", l.Listen)
		}
	}
}

func (d *decoder) listener(o *object) Listener {
	l := Listener{
		Pos:       o.at,
		Name:      d.name(o, "name"),
		Listen:    o.listen("listen", ""),
		WebSocket: o.text("websocket", ""),
		Origins:   o.texts("origins", true),
	}
	o.need("listen", "listen is missing; write one such as 127.0.0.1:1883")
	if l.WebSocket != "" && (l.WebSocket[0] != '/' || strings.ContainsAny(l.WebSocket, " ?#")) {
		d.problem(o.valuePos("websocket"), "websocket: expected a path such as /mqtt, found %s", o.n.value("websocket").quote())
	}
	if o.has("origins") && !o.has("websocket") {
		d.problem(o.pos("origins"), "origins are of pages that connect by WebSocket; add websocket: /mqtt, or remove them")
	}
	for _, n := range o.list("origins", true) {
		if n.kind == scalar && !n.broken && n.text != "*" && !strings.HasPrefix(n.text, "http://") && !strings.HasPrefix(n.text, "https://") {
			d.problem(n.pos(), "origins: expected one such as https://scada.example.com, found %s", n.quote())
		}
	}
	if tls := o.object("tls"); tls.there() {
		l.TLS = d.listenerTLS(tls)
	}
	if l.Name == "" {
		l.Name = l.Listen
	}
	o.done()
	return l
}

func (d *decoder) listenerTLS(o *object) *ListenerTLS {
	t := &ListenerTLS{
		Pos:               o.at,
		ClientCA:          o.path("client_ca"),
		RequireClientCert: o.bool("require_client_cert", false),
		Identity:          o.enum("identity", "", "cn", "san"),
		CRL:               o.path("crl"),
		MinVersion:        o.tlsVersion("min_version"),
	}
	t.Cert, t.Key = d.keyPair(o, true)
	for _, key := range []string{"require_client_cert", "identity", "crl"} {
		if o.has(key) && (key != "require_client_cert" || t.RequireClientCert) {
			o.need("client_ca", "%s needs client_ca: with the authority of the clients' certificates", key)
			break
		}
	}
	o.done()
	return t
}

func (o *object) tlsVersion(key string) uint16 {
	if o.enum(key, "1.2", "1.2", "1.3") == "1.3" {
		return tls.VersionTLS13
	}
	return tls.VersionTLS12
}

// checkListeners reports addresses and names that are there twice.
func (d *decoder) checkListeners(c *Config) {
	all := c.Broker.Listeners
	if c.HTTP != nil {
		all = append(slices.Clip(all), Listener{Pos: c.HTTP.Pos, Listen: c.HTTP.Listen})
	}
	for i, l := range all {
		for _, before := range all[:i] {
			if l.Listen != "" && sameAddress(l.Listen, before.Listen) {
				d.problem(l.Pos, "the listener %s has %s already; choose another port", before.Pos.from(l.Pos), before.Listen)
				break
			}
			if l.Name != "" && l.Name == before.Name {
				d.problem(l.Pos, "the listener %s has the name %s already; choose another", before.Pos.from(l.Pos), quote(l.Name))
				break
			}
		}
	}
}

// sameAddress reports whether only one of two listeners could have its port.
func sameAddress(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	all := func(host string) bool { return host == "" || host == "0.0.0.0" || host == "::" }
	return errA == nil && errB == nil && portA == portB && portA != "0" && (hostA == hostB || all(hostA) || all(hostB))
}

func (d *decoder) jwt(o *object) *JWT {
	allowed := []string{"HS256", "RS256", "ES256", "EdDSA"}
	j := &JWT{
		Pos:         o.at,
		Secret:      o.secret("secret"),
		Keys:        o.path("keys"),
		Issuer:      o.text("issuer", ""),
		Permissions: o.text("permissions", ""),
	}
	for _, n := range o.list("algorithms", true) {
		alg, ok := d.text(n, "algorithms")
		switch {
		case !ok:
		case !slices.Contains(allowed, alg):
			d.badEnum(n, "algorithms", allowed)
		default:
			j.Algorithms = append(j.Algorithms, alg)
		}
	}
	o.need("algorithms", "algorithms is missing; write those that your tokens have: %s", oneOf(allowed))
	for _, alg := range j.Algorithms {
		if alg == "HS256" {
			o.need("secret", "HS256 needs secret:; write \"${file:PATH}\"")
		} else {
			o.need("keys", "%s needs keys: with a JWKS or PEM file", alg)
		}
	}
	o.done()
	return j
}

// limits are those of a broker on a small gateway. The largest values are those
// that MQTT 5 has room for: a packet §2.1.4, a Receive Maximum §3.1.2.11.3, topic
// aliases §3.1.2.11.5, a keepalive §3.1.2.10.
func (d *decoder) limits(o *object) Limits {
	const many = 1 << 31
	l := Limits{
		Pos:                    o.posIfThere(),
		Clients:                o.int("clients", 10_000, 1, many-1),
		ClientsPerAddress:      o.int("clients_per_address", 1_000, 1, many-1),
		ConnectTimeout:         o.duration("connect_timeout", 10*time.Second, 100*time.Millisecond, minute),
		PacketSize:             o.size("packet_size", 1<<20, 128, 268_435_455),
		ReceiveMaximum:         o.int("receive_maximum", 1_000, 1, 65_535),
		QueuedMessages:         o.int("queued_messages", 100_000, 1, many-1),
		QueuedBytes:            o.size("queued_bytes", 64<<20, 1<<10, 0),
		RetainedMessages:       o.int("retained_messages", 100_000, 0, many-1),
		SubscriptionsPerClient: o.int("subscriptions_per_client", 1_000, 1, many-1),
		TopicLevels:            o.int("topic_levels", 32, 4, 1_000),
		TopicAliases:           o.int("topic_aliases", 100, 0, 65_535),
		SessionExpiry:          o.duration("session_expiry", 7*day, 0, 0),
		Keepalive:              o.duration("keepalive", 10*minute, time.Second, 65_535*time.Second),
		MessagesPerSecond:      o.rate("messages_per_second", 0),
	}
	o.done()
	return l
}
