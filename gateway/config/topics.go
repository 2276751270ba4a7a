package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// template is a topic with {fields}, taken apart.
type template struct {
	levels []string
	fields []string // in their order, each once
}

func (t *template) has(field string) bool { return slices.Contains(t.fields, field) }

// parseTemplate takes a topic template apart. The fields in fixed have one value
// for all topics; the others differ, and two of those in a level could not be
// told apart. The field rest stands for whole levels.
func parseTemplate(text string, fixed []string, rest string) (*template, error) {
	if text == "" {
		return nil, fmt.Errorf("the template is empty")
	}
	if len(text) > maxTemplate {
		return nil, fmt.Errorf("%s is longer than %d bytes", quote(text), maxTemplate)
	}
	if text[0] == '$' {
		return nil, fmt.Errorf("%s begins with $, which brokers keep for themselves", quote(text))
	}
	t := &template{levels: strings.Split(text, "/")}
	for i, level := range t.levels {
		if level == "" && (i > 0 || len(t.levels) == 1) {
			return nil, fmt.Errorf("%s has an empty level; remove one slash", quote(text))
		}
		free := 0
		for part := level; part != ""; {
			j := strings.IndexAny(part, "{}")
			literal := part
			if j >= 0 {
				literal = part[:j]
			}
			if strings.ContainsAny(literal, "+#") {
				return nil, fmt.Errorf("%s has a wildcard in it; a topic to publish to cannot", quote(text))
			}
			if strings.ContainsFunc(literal, unicode.IsControl) {
				return nil, fmt.Errorf("%s has a control character in it", quote(text))
			}
			if j < 0 {
				break
			}
			field, after, ok := strings.Cut(part[j+1:], "}")
			if part[j] == '}' || !ok || field == "" || strings.Contains(field, "{") {
				return nil, fmt.Errorf("%s has a brace without its counterpart, or with nothing inside", quote(text))
			}
			switch {
			case field == rest && level != "{"+rest+"}":
				return nil, fmt.Errorf("%s: {%s} stands for whole levels; put it between slashes", quote(text), rest)
			case field == rest && t.has(rest):
				return nil, fmt.Errorf("%s: {%s} is there twice; remove one", quote(text), rest)
			case !slices.Contains(fixed, field):
				if free++; free > 1 {
					return nil, fmt.Errorf("%s: two {fields} in one level cannot be told apart; put a slash between them", quote(text))
				}
			}
			if !t.has(field) {
				t.fields = append(t.fields, field)
			}
			part = after
		}
	}
	return t, nil
}

// topicOf is the template's topic for the values of its fields.
func (t *template) topicOf(value func(field string) string) string {
	s := strings.Join(t.levels, "/")
	for _, f := range t.fields {
		s = strings.ReplaceAll(s, "{"+f+"}", value(f))
	}
	return s
}

// filterError says what is wrong with a filter, MQTT 5 §4.7.1.
func filterError(s string) string {
	levels := strings.Split(s, "/")
	for i, level := range levels {
		switch {
		case strings.Contains(level, "#") && (level != "#" || i != len(levels)-1):
			return fmt.Sprintf("%s: # must be the whole last level", quote(s))
		case strings.Contains(level, "+") && level != "+":
			return fmt.Sprintf("%s: + must stand alone in its level", quote(s))
		case strings.ContainsFunc(level, unicode.IsControl):
			return fmt.Sprintf("%s has a control character in it", quote(s))
		}
	}
	switch levels[0] {
	case "$share":
		return fmt.Sprintf("%s: a forward rule cannot be a shared subscription", quote(s))
	case "devices":
		return fmt.Sprintf("%s: what is below devices/ goes by data:, not by forward rules", quote(s))
	}
	return ""
}

// checkForward reports where a rule's template does not fit its filter.
func (d *decoder) checkForward(o *object, f *Forward) {
	if f.Local == "" || f.Upstream == "" {
		return
	}
	if wrong := filterError(f.Local); wrong != "" {
		d.problem(o.valuePos("local"), "local: %s", wrong)
		return
	}
	fixed := []string{"gateway", "org", "site"}
	t, err := parseTemplate(f.Upstream, fixed, "#")
	if err != nil {
		d.problem(o.valuePos("upstream"), "upstream: %v", err)
		return
	}
	plus, hash := strings.Count(f.Local, "+"), strings.HasSuffix(f.Local, "#")
	for _, field := range t.fields {
		n, err := strconv.Atoi(field)
		switch {
		case slices.Contains(fixed, field):
		case field == "#" && !hash:
			d.problem(o.valuePos("upstream"), "upstream: {#} is what # matched, but local, %s, has none", quote(f.Local))
		case field == "#":
		case err != nil:
			d.problem(o.valuePos("upstream"), "upstream: unknown placeholder {%s}%s; here can be {1}, {2}, {#}, {gateway}, {org} and {site}", field, suggest(field, fixed))
		case n < 1 || n > plus:
			d.problem(o.valuePos("upstream"), "upstream: {%d} is what the %s + matched, but local, %s, has %d", n, ordinal(n), quote(f.Local), plus)
		}
	}
	lost := ""
	for i := 1; i <= plus && lost == ""; i++ {
		if !t.has(strconv.Itoa(i)) {
			lost = strconv.Itoa(i)
		}
	}
	if lost == "" && hash && !t.has("#") {
		lost = "#"
	}
	switch {
	case lost == "":
	case f.Down:
		d.problem(o.valuePos("upstream"), "upstream: it lacks {%s}: what comes down could not be told which local topic it is for; add {%s}", lost, lost)
	default:
		d.problem(o.valuePos("upstream"), "upstream: it lacks {%s}: different local topics would become one; add {%s} to keep them apart", lost, lost)
	}
}

func ordinal(n int) string {
	switch n {
	case 1:
		return "first"
	case 2:
		return "second"
	case 3:
		return "third"
	}
	return strconv.Itoa(n) + "th"
}

// checkBridges reports bridges whose topics the gateway and its devices do not
// have the levels for, or that would put two things on one topic.
func (d *decoder) checkBridges(c *Config) {
	for i := range c.Bridges {
		b := &c.Bridges[i]
		for _, before := range c.Bridges[:i] {
			if b.ClientID == before.ClientID && sharedUpstream(b, &before) {
				d.problem(b.Pos, "the bridges %s and %s have one client_id at one upstream, so each would end the other's connection; give this one another client_id", quote(before.Name), quote(b.Name))
			}
		}
		for _, f := range b.Forward {
			if t, err := parseTemplate(f.Upstream, []string{"gateway", "org", "site"}, "#"); err == nil {
				d.checkGatewayFields(c, t, f.upstreamPos, "the template")
			}
		}
		t, err := parseTemplate(b.Topic, topicFixed, "data")
		if err != nil {
			t = nil
		} else {
			d.checkTopic(c, b, t)
		}
		d.checkCollisions(c, b, t)
	}
}

func sharedUpstream(a, b *Bridge) bool {
	for _, u := range a.Upstream {
		for _, v := range b.Upstream {
			if u.Host == v.Host {
				return true
			}
		}
	}
	return false
}

var (
	topicFixed  = []string{"gateway", "org", "site"}
	topicFields = []string{"gateway", "org", "site", "zone", "type", "device", "data"}
)

// checkGatewayFields reports fields for which the gateway has no value.
func (d *decoder) checkGatewayFields(c *Config, t *template, at Pos, what string) {
	g := c.root.value("gateway")
	for _, key := range []string{"org", "site", "zone"} {
		// one that is there but wrong is reported already
		if t.has(key) && g.get(key) == nil && (g == nil || !g.broken && g.kind == mapping) {
			d.problem(at, "%s has {%s}, but gateway.%s is not set; add %s: under gateway:", what, key, key, key)
		}
	}
}

func (d *decoder) checkTopic(c *Config, b *Bridge, t *template) {
	at := b.topicPos
	what := "the topic template"
	d.checkGatewayFields(c, t, at, what)
	if !t.has("data") {
		d.problem(at, "%s lacks {data}: telemetry, status and commands of a device would share one topic; add {data}", what)
	}
	if t.levels[0] == "" {
		d.warn(at, "%s begins with a slash, which makes an empty first level; remove it", what)
	}
	if strings.ContainsFunc(strings.Join(t.levels, "/"), unicode.IsUpper) {
		d.warn(at, "%s has upper case, which topics distinguish and people do not; write it in lower case", what)
	}
	for _, field := range t.fields {
		if !slices.Contains(topicFields, field) {
			d.checkTag(c, field, at)
		}
	}
	topics := make(map[string]*Device)
	shared := false
	for i := range c.Adapters {
		for j := range c.Adapters[i].Devices {
			dev := &c.Adapters[i].Devices[j]
			if dev.broken {
				continue
			}
			if t.has("type") && dev.Type == "" && !dev.badType {
				d.problem(dev.Pos, "the topic template of bridge %s has {type}, but the device has no type; add type: to it or to its profile", quote(b.Name))
			}
			if t.has("device") || shared {
				continue
			}
			name := t.topicOf(func(field string) string { return dev.field(field) })
			first := topics[name]
			if first == nil && strings.Contains(dev.ID, "*") {
				first = dev
			}
			if first != nil {
				shared = true
				d.problem(at, "%s lacks {device}: %s would share one topic; add {device}", what, sharing(first, dev))
				continue
			}
			topics[name] = dev
		}
	}
	if !t.has("device") && !shared {
		d.warn(at, "%s lacks {device}: a second device would share the topic of the first; add {device}", what)
	}
}

func sharing(a, b *Device) string {
	if a == b {
		return "all devices that are " + quote(a.ID)
	}
	return "the devices " + quote(a.ID) + " and " + quote(b.ID)
}

// field is the device's value of a field of a topic template. Those that all
// devices share, and the data, do not matter to what is asked here.
func (dev *Device) field(name string) string {
	switch name {
	case "zone":
		return dev.Zone
	case "type":
		return dev.Type
	case "gateway", "org", "site", "data":
		return ""
	}
	return dev.Tags[name]
}

// checkTag reports a field of a topic template that is no tag of some device.
func (d *decoder) checkTag(c *Config, tag string, at Pos) {
	var without []*Device
	have := 0
	known := slices.Clone(topicFields)
	for i := range c.Adapters {
		for j := range c.Adapters[i].Devices {
			dev := &c.Adapters[i].Devices[j]
			v, ok := dev.Tags[tag]
			wrong := nameError(v, "")
			switch {
			case dev.broken:
				continue
			case !ok:
				without = append(without, dev)
			case wrong != "" && v != "": // an empty one is told already
				d.problem(dev.Pos, "the tag %s becomes a level of a topic: %s", quote(tag), wrong)
				fallthrough
			default:
				have++
			}
			for k := range dev.Tags {
				if !slices.Contains(known, k) {
					known = append(known, k)
				}
			}
		}
	}
	if have == 0 {
		d.problem(at, "unknown placeholder {%s}%s; here can be %s, or a tag of the devices", tag, suggest(tag, known), inBraces(topicFields))
		return
	}
	for _, dev := range without {
		d.problem(dev.Pos, "the topic template has {%s}, but the device has no such tag; add tags: {%s: …} to it or to its profile", tag, tag)
	}
}

func inBraces(words []string) string {
	return "{" + strings.Join(words, "}, {") + "}"
}
