package config

import (
	"log/slog"
	"math"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/template/parse"
	"time"
	_ "time/tzdata" // zones also where the machine has none
)

const (
	minute = time.Minute
	day    = 24 * time.Hour
)

// site decodes the file. Its result is of use only if no problem was found.
func (d *decoder) site(root *node, o Options) *Config {
	s := d.object(root.pos(), root, "")
	s.known = append(s.known, "include")
	c := &Config{root: root}
	d.checkVars(s.object("vars"))
	c.Gateway = d.gateway(s.object("gateway"), o)
	if s.has("http") {
		c.HTTP = d.http(s.object("http"))
	}
	c.Broker = d.broker(s.object("broker"))
	f := field{
		decoder: d, gateway: &c.Gateway,
		profiles: d.profiles(s.object("profiles")), kits: make(map[string]*kit), ids: make(map[string]Pos),
	}
	c.Adapters = f.adapters(s.object("adapters"))
	f.unused()
	c.Payload = d.payload(s.object("payload"))
	c.Commands = d.commands(s.object("commands"))
	c.Bridges = d.bridges(s.object("bridges"), &c.Gateway)
	c.Alarms = d.alarms(s.object("alarms"))
	c.Buffer = d.buffer(s.object("buffer"))
	s.done()
	if !s.has("adapters") && !s.has("broker") && d.errors == 0 {
		d.problem(root.pos(), "there is nothing to do; add adapters: with a device, or broker:")
	}
	d.checkListeners(c)
	d.checkBuses(c)
	d.checkBridges(c)
	c.Files = d.files
	return c
}

// checkVars checks the variables; resolve has put them in.
func (d *decoder) checkVars(o *object) {
	for key, v := range o.entries() {
		d.scalar(v, key.text, "text or a number")
	}
}

func (d *decoder) gateway(o *object, opts Options) Gateway {
	g := Gateway{
		Pos:     o.posIfThere(),
		ID:      d.name(o, "id"),
		Org:     d.name(o, "org"),
		Site:    d.name(o, "site"),
		Zone:    d.name(o, "zone"),
		DataDir: o.path("data_dir"),
	}
	if g.ID == "" {
		g.ID = hostName(opts.Hostname)
	}
	if g.DataDir == "" {
		g.DataDir = d.abs(d.src, "data")
	}
	log := o.object("log")
	switch log.enum("level", "info", "debug", "info", "warn", "error") {
	case "debug":
		g.Log.Level = slog.LevelDebug
	case "warn":
		g.Log.Level = slog.LevelWarn
	case "error":
		g.Log.Level = slog.LevelError
	}
	g.Log.JSON = log.enum("format", "text", "text", "json") == "json"
	log.done()

	t := o.object("time")
	g.Time = Time{Pos: t.posIfThere(), Zone: time.UTC}
	if name := t.text("zone", ""); name != "" {
		zone, err := time.LoadLocation(name)
		if err != nil || name == "Local" {
			d.problem(t.valuePos("zone"), "zone: there is no time zone %s; write one such as Europe/Berlin or UTC", quote(name))
		} else {
			g.Time.Zone = zone
		}
	}
	g.Time.Hold = t.enum("unsynced", "mark", "mark", "hold") == "hold"
	t.done()
	o.done()
	return g
}

// hostName is the machine's name, or the one given, made a legal id.
func hostName(name string) string {
	if name == "" {
		name, _ = os.Hostname()
	}
	name, _, _ = strings.Cut(strings.ToLower(name), ".")
	name = strings.Trim(strings.Map(func(r rune) rune {
		if nameRune(r) {
			return r
		}
		return '-'
	}, name), "-")
	if name == "" || len(name) > maxName || slices.Contains(reservedNames["id"], name) {
		return "gateway"
	}
	return name
}

func (d *decoder) http(o *object) *HTTP {
	h := &HTTP{Pos: o.at, Listen: o.listen("listen", "127.0.0.1:8080")}
	tls := o.object("tls")
	h.Cert, h.Key = d.keyPair(tls, true)
	tls.done()
	tokens := o.object("tokens")
	h.Tokens = Tokens{Viewer: tokens.secret("viewer"), Operator: tokens.secret("operator"), Admin: tokens.secret("admin")}
	tokens.done()
	if h.Listen != "" && !loopback(h.Listen) {
		if !o.has("tls") {
			o.need("tls", "listen: %s can be reached from other machines, so tls: {cert: FILE, key: FILE} is required; or listen on 127.0.0.1", h.Listen)
		}
		if !o.has("tokens") {
			o.need("tokens", "listen: %s can be reached from other machines, so tokens: {admin: …} is required; or listen on 127.0.0.1", h.Listen)
		}
	}
	o.done()
	return h
}

// keyPair reads cert and key, which only make sense together.
func (d *decoder) keyPair(o *object, required bool) (cert, key string) {
	cert, key = o.path("cert"), o.path("key")
	if required {
		o.need("cert", "cert is missing; write the file with the certificate")
		o.need("key", "key is missing; write the file with the certificate's key")
		return cert, key
	}
	if o.has("cert") {
		o.need("key", "cert has no key; write the file with the certificate's key")
	}
	if o.has("key") {
		o.need("cert", "key has no cert; write the file with the certificate")
	}
	return cert, key
}

func (d *decoder) payload(o *object) Payload {
	p := Payload{
		Pos:         o.posIfThere(),
		Format:      o.enum("format", "flat", "flat", "full", "template"),
		PerPoint:    o.enum("per", "device", "device", "point") == "point",
		OnlyChanged: o.enum("send", "all", "all", "changed") == "changed",
		Time:        o.enum("time", "ms", "s", "ms", "ns", "iso"),
		Int64String: o.enum("int64", "number", "number", "string") == "string",
		Seq:         o.bool("seq", false),
		Template:    o.text("template", ""),
	}
	if b := o.object("batch"); b.there() {
		p.Batch = &Batch{Pos: b.at, Max: b.int("max", 60, 1, 10_000), Every: b.duration("every", 30*time.Second, time.Millisecond, day)}
		b.done()
	}
	switch {
	case p.Template != "" && p.Format == "template":
		t := parse.New("template")
		t.Mode = parse.SkipFuncCheck
		if _, err := t.Parse(p.Template, "", "", map[string]*parse.Tree{}); err != nil {
			d.problem(o.valuePos("template"), "template: line %s", strings.TrimPrefix(err.Error(), "template: template:"))
		}
	case p.Template != "" && o.has("template"):
		d.problem(o.pos("template"), "template is not used by format: %s; write format: template, or remove it", p.Format)
	case p.Format == "template":
		o.need("template", "format: template needs template: with its text")
	}
	o.done()
	return p
}

func (d *decoder) commands(o *object) Commands {
	c := Commands{
		Pos:      o.posIfThere(),
		Enabled:  o.bool("enabled", true),
		MaxAge:   o.duration("max_age", minute, time.Millisecond, 0),
		Remember: o.duration("remember", day, 0, 0),
	}
	o.done()
	return c
}

func (d *decoder) alarms(o *object) Alarms {
	a := Alarms{Pos: o.posIfThere(), Webhook: o.secret("webhook")}
	if !a.Webhook.IsZero() {
		if u, err := url.Parse(a.Webhook.Value()); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			d.problem(o.valuePos("webhook"), "webhook: expected a URL such as https://ops.example.com/hook")
		}
	}
	for key, v := range o.object("thresholds").entries() {
		d.checkName("the alarm", key, "alarm")
		t := d.object(key.pos(), v, key.text)
		th := Threshold{Pos: key.pos(), Alarm: key.text}
		var warning, critical string
		th.Warning, warning = t.level("warning")
		th.Critical, critical = t.level("critical")
		if warning != "" && critical != "" && warning != critical {
			d.problem(t.valuePos("critical"), "critical: it is %s, but warning is %s; write both the same way", critical, warning)
		}
		t.done()
		a.Thresholds = append(a.Thresholds, th)
	}
	o.done()
	return a
}

// level reads a threshold: "80%", 60s or 1000. It says which of these it is.
func (o *object) level(key string) (l *Level, what string) {
	n := o.scalar(key, "a share, a duration or a number")
	if n == nil {
		return nil, ""
	}
	if share, ok := strings.CutSuffix(n.text, "%"); ok {
		f, err := strconv.ParseFloat(strings.TrimSpace(share), 64)
		if err != nil || !(f >= 0 && f <= 100) {
			o.d.problem(n.pos(), "%s: %s is no share between 0%% and 100%%", key, n.quote())
			return nil, ""
		}
		return &Level{Share: f / 100}, "a share"
	}
	if num, err := parseNumber(n); err == nil {
		if f := num.Float64(); f >= 0 && !math.IsInf(f, 0) {
			return &Level{Count: f}, "a number"
		}
	} else if v, err := parseDuration(n.text); err == nil {
		return &Level{Duration: v}, "a duration"
	}
	o.d.problem(n.pos(), "%s: %s is no threshold; write one such as 80%%, 60s or 1000", key, n.quote())
	return nil, ""
}

// classes in the order of their importance.
var classes = []string{"alert", "command", "status", "telemetry", "local"}

func (d *decoder) buffer(o *object) Buffer {
	b := Buffer{
		Pos:       o.posIfThere(),
		MaxBytes:  o.size("max_bytes", 4<<30, 1<<20, 0),
		MaxAge:    o.duration("max_age", 7*day, time.Second, 0),
		MinFree:   o.size("min_free", 256<<20, 0, 0),
		RejectNew: o.enum("when_full", "drop-oldest", "drop-oldest", "reject-new") == "reject-new",
		Linger:    o.duration("linger", 250*time.Millisecond, 0, minute),
		PageSize:  int(o.size("page_size", 16<<10, 4<<10, 64<<10)),
		Compress:  o.enum("compression", "zstd", "zstd", "none") == "zstd",
	}
	if b.PageSize&(b.PageSize-1) != 0 {
		d.problem(o.valuePos("page_size"), "page_size: %s is no power of two; write 4KiB or 16KiB", o.n.value("page_size").quote())
	}
	all := o.object("classes")
	var reserved int64
	for _, name := range classes {
		c := ClassBounds{Class: name, MaxAge: b.MaxAge}
		if name == "alert" { // what people must hear of is kept longest
			c.MaxAge, c.Reserve = max(90*day, b.MaxAge), min(64<<20, b.MaxBytes/4)
		}
		one := all.object(name)
		c.Pos = one.posIfThere()
		c.MaxAge = one.duration("max_age", c.MaxAge, time.Second, 0)
		c.Reserve = one.size("reserve", c.Reserve, 0, 0)
		one.done()
		reserved += min(c.Reserve, math.MaxInt64/8)
		b.Classes = append(b.Classes, c)
	}
	all.done()
	if all.there() && reserved > b.MaxBytes {
		d.problem(all.at, "the classes reserve %s together, more than max_bytes, %s", sizeText(reserved), sizeText(b.MaxBytes))
	}
	o.done()
	return b
}

// posIfThere is the place of the map, or zero if there is none.
func (o *object) posIfThere() Pos {
	if o.there() {
		return o.at
	}
	return Pos{}
}

// listen is an address to listen on: a port, with a host or without.
func (o *object) listen(key, def string) string {
	n := o.scalar(key, "host:port")
	if n == nil {
		return def
	}
	if _, err := hostPort(n.text, true); err != "" {
		o.d.problem(n.pos(), "%s: %s %s; write one such as 127.0.0.1:1883, or :1883 for all", key, n.quote(), err)
		return ""
	}
	return n.text
}

// hostPort splits host:port, and says what is wrong with it.
func hostPort(s string, anyHost bool) (host, wrong string) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		if !strings.Contains(s, ":") {
			return "", "has no port"
		}
		return "", "is not host:port"
	}
	p, err := strconv.ParseUint(port, 10, 16)
	switch {
	case port == "":
		return host, "has no port"
	case err != nil || p == 0 && !anyHost:
		return host, "has a port that is not between 1 and 65535"
	case host == "" && !anyHost:
		return host, "has no host"
	case strings.ContainsAny(host, " \t/@{}\"'\\?#*") || strings.ContainsFunc(host, func(r rune) bool { return r < ' ' }):
		return host, "has a host that is none"
	}
	return host, ""
}

// loopback reports whether only this machine can reach an address.
func loopback(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
