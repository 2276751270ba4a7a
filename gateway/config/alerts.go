package config

import "time"

func (k *kitReader) alerts(o *object, points map[string]*Point, known bool) []Alert {
	var all []Alert
	for key, v := range o.entries() {
		name := key.text
		k.checkName("the alert", key, "alert")
		b := k.object(key.pos(), v, name)
		if !b.there() || !k.count(key.pos()) {
			continue
		}
		a := Alert{
			Pos:      key.pos(),
			Name:     name,
			Point:    b.text("point", ""),
			For:      b.duration("for", 0, 0, 0),
			Critical: b.enum("severity", "warning", "warning", "critical") == "critical",
			Message:  b.text("message", name),
		}
		b.need("point", "point is missing; name the point that is watched")
		if k.pointThere(b, "point", a.Point, points, known) && points[a.Point].text() {
			k.problem(b.valuePos("point"), "point: %s has no number to compare; name another point", quote(a.Point))
		}
		k.limits(b, &a)
		b.done()
		all = append(all, a)
	}
	return all
}

// limits reads where an alert begins and ends.
func (k *kitReader) limits(o *object, a *Alert) {
	read := func(key string) *float64 {
		num, ok := o.number(key)
		if !ok {
			return nil
		}
		f := num.Float64()
		return &f
	}
	a.Above, a.Below = read("above"), read("below")
	clear := read("clear")
	switch {
	case o.has("above") && o.has("below"):
		k.problem(o.pos("below"), "an alert has above or below; make two alerts of it")
		return
	case !o.has("above") && !o.has("below"):
		o.need("above", "the alert has no limit; add above: or below:")
		return
	}
	limit := a.Above
	if limit == nil {
		limit = a.Below
	}
	if limit == nil {
		return // reported
	}
	a.Clear = *limit
	if clear == nil {
		return
	}
	a.Clear = *clear
	if a.Above != nil && *clear > *a.Above || a.Below != nil && *clear < *a.Below {
		k.problem(o.valuePos("clear"), "clear: %s is on the wrong side of the limit; the alert would end before it begins", o.n.value("clear").quote())
	}
}

// pointThere reports whether the device has a point that could be read; what is
// not there is told, unless the points are not known.
func (k *kitReader) pointThere(o *object, key, name string, points map[string]*Point, known bool) bool {
	p := points[name]
	if p == nil && name != "" && known {
		k.problem(o.valuePos(key), "%s: the device has no point %s%s", key, quote(name), suggestKey(k.decoder, name, points))
	}
	return p != nil && !p.broken
}

func (k *kitReader) actions(o *object, points map[string]*Point, known bool) []Action {
	var all []Action
	for key, v := range o.entries() {
		name := key.text
		k.checkName("the action", key, "action")
		if name == "write" || name == "read" {
			k.problem(key.pos(), "the action: %s is a command of every device; choose another name", quote(name))
		}
		a := Action{Pos: key.pos(), Name: name}
		for _, n := range k.list(v, name, false) {
			if k.count(n.pos()) {
				a.Steps = append(a.Steps, k.step(k.object(n.pos(), n, name), points, known))
			}
		}
		if v != nil && v.kind == list && len(v.items) == 0 {
			k.problem(key.pos(), "the action %s has no steps; add one, as [{write: {mode: 1}}]", quote(name))
		}
		all = append(all, a)
	}
	return all
}

func (k *kitReader) step(o *object, points map[string]*Point, known bool) Step {
	s := Step{Wait: o.duration("wait", 0, time.Millisecond, time.Hour)}
	w := o.object("write")
	if o.has("write") == o.has("wait") && o.there() {
		if o.has("write") {
			k.problem(o.pos("wait"), "a step has write or wait; make two steps of it")
		} else {
			o.need("write", "a step has write: {point: value} or wait: duration")
		}
	}
	o.done()
	if !w.there() {
		return s
	}
	if len(w.n.entries) == 0 {
		k.problem(w.at, "write: it names no point; write {point: value}")
	}
	for key, v := range w.entries() {
		name := key.text
		v = k.scalar(v, name, "a value")
		p := points[name]
		switch {
		case p == nil && known:
			k.problem(key.pos(), "write: the device has no point %s%s", quote(name), suggestKey(k.decoder, name, points))
		case p == nil || v == nil || !k.count(key.pos()):
		default:
			k.checkAssignment(p, v)
			s.Write = append(s.Write, Assignment{name, value(v)})
		}
	}
	return s
}

// checkAssignment reports a value that the point cannot be given.
func (k *kitReader) checkAssignment(p *Point, v *node) {
	if p.broken {
		return
	}
	switch {
	case p.Modbus != nil && (p.Modbus.Table == "input" || p.Modbus.Table == "discrete"):
		k.problem(v.pos(), "write: the point %s is in the table %s, which cannot be written", quote(p.Name), p.Modbus.Table)
		return
	case p.Serial != nil && p.Serial.Send == "":
		k.problem(v.pos(), "write: the point %s cannot be written; it has no send:", quote(p.Name))
		return
	}
	if p.Write == nil {
		return
	}
	num, err := parseNumber(v)
	if f := num.Float64(); err == nil && (p.Write.Min != nil && f < *p.Write.Min || p.Write.Max != nil && f > *p.Write.Max) {
		k.problem(v.pos(), "write: %s is beyond the limits of the point %s", v.quote(), quote(p.Name))
	}
}

// value is a scalar as what it looks like.
func value(n *node) any {
	if n.plain && isBool(n.text) {
		return n.text[0] == 't' || n.text[0] == 'T'
	}
	if !n.plain && !n.computed {
		return n.text
	}
	num, err := parseNumber(n)
	if err != nil {
		return n.text
	}
	if i, ok := num.Int64(); ok {
		return i
	}
	if u, ok := num.Uint64(); ok {
		return u
	}
	return num.Float64()
}
