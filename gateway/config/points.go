package config

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// kitReader decodes the points, alerts and actions of a device.
type kitReader struct {
	*field
	protocol string
	dev      *Device

	// Modbus
	addressing string
	order      string

	// OPC UA
	base string

	scales []scale
}

// scale is a point that another one scales.
type scale struct {
	point, by string
	at        Pos
}

// shape is what kind of value a point has, which decides what can be done with it.
type shape struct {
	numeric bool // a number, before bits and enum
	integer bool
	width   int  // bits of the number; 0 if that does not matter
	fixed   bool // it cannot be written
	why     string
}

func (k *kitReader) read(o *object) *kit {
	var kit kit
	list := o.object("points")
	if list.there() {
		if len(list.n.entries) == 0 && !list.n.broken {
			k.problem(list.at, "points is empty; add what to read")
		}
		kit.points = make([]Point, 0, min(len(list.n.entries), maxPoints))
	}
	for key, v := range list.entries() {
		if !k.count(key.pos()) {
			break
		}
		k.checkName("the point", key, "point")
		if p := k.object(key.pos(), v, key.text); p.there() {
			kit.points = append(kit.points, k.point(p, key.text, v))
		} else {
			kit.points = append(kit.points, Point{Pos: key.pos(), Name: key.text, broken: true})
		}
	}
	points := make(map[string]*Point, len(kit.points))
	for i := range kit.points {
		points[kit.points[i].Name] = &kit.points[i]
	}
	k.checkScales(points)
	known := list.there() && !list.n.broken
	kit.alerts = k.alerts(o.object("alerts"), points, known)
	kit.actions = k.actions(o.object("actions"), points, known)
	return &kit
}

// count counts a point, an alert or a step of an action against what all devices
// may have, and reports whether there is room.
func (k *kitReader) count(at Pos) bool {
	if k.distinct++; k.distinct == maxPoints+1 {
		k.problem(at, "more than %d different points; put what is alike in a profile", maxPoints)
	}
	return k.distinct <= maxPoints
}

// point decodes one.
func (k *kitReader) point(o *object, name string, n *node) Point {
	p := Point{
		Pos:       o.at,
		Name:      name,
		Every:     o.duration("every", k.dev.Every, time.Millisecond, 0),
		Heartbeat: o.duration("heartbeat", 0, 0, 0),
		Hidden:    !o.bool("publish", true),
	}
	p.Deadband, p.Relative = o.deadband()
	if u := o.scalar("unit", "text"); u != nil && u.text != "" {
		p.Unit, _ = k.text(u, "unit")
	}
	var s shape
	switch k.protocol {
	case "modbus":
		p.Modbus, s = k.modbusPoint(o, n)
	case "opcua":
		p.OPCUA, s = k.opcuaPoint(o)
	case "serial":
		p.Serial, s = k.serialPoint(o)
	}
	k.conversion(o, &p, s)
	if w := o.object("write"); w.there() {
		p.Write = k.write(w)
		if s.fixed {
			k.problem(w.at, "write: %s cannot be written; remove it", s.why)
		}
	}
	o.done(k.misplaced())
	return p
}

// deadband is a number, or a part of the value that was sent last, as "2%".
func (o *object) deadband() (size float64, relative bool) {
	const key = "deadband"
	if n := o.n.value(key); o.has(key) && n != nil && n.kind == scalar && !n.broken {
		if part, ok := strings.CutSuffix(n.text, "%"); ok {
			o.known = append(o.known, key)
			f, err := strconv.ParseFloat(strings.TrimSpace(part), 64)
			if err != nil || !(f >= 0 && f <= 100) {
				o.d.problem(n.pos(), "deadband: %s is no percentage; write one such as 2%%", n.quote())
				return 0, false
			}
			return f / 100, true
		}
	}
	return o.rate(key, 0), false
}

// misplaced says of the key of a point that belongs to another protocol to which.
func (k *kitReader) misplaced() func(key string) string {
	return elsewhere(pointKeys, k.protocol, "points")
}

// conversion decodes how a raw number becomes a value.
func (k *kitReader) conversion(o *object, p *Point, s shape) {
	p.Scale = o.float("scale", 1)
	p.Offset = o.float("offset", 0)
	if p.Scale == 0 {
		k.problem(o.valuePos("scale"), "scale: with 0 every value is 0; write 1, or remove it")
	}
	if n, ok := o.integer("decimals", 0, 15); ok {
		p.Decimals = &n
	}
	arithmetic := []string{"scale", "offset", "decimals"}
	if k.protocol == "modbus" {
		arithmetic = append(arithmetic, "scale_by")
		if p.ScaleBy = o.text("scale_by", ""); p.ScaleBy != "" {
			k.scales = append(k.scales, scale{p.Name, p.ScaleBy, o.valuePos("scale_by")})
		}
	}
	if k.protocol != "opcua" {
		arithmetic = append(arithmetic, "range")
		p.Range = k.valueRange(o.object("range"))
		p.Bits = k.bits(o.object("bits"), p.as(), s.width)
		for _, n := range o.list("invalid", true) {
			k.invalid(p, n, s)
		}
	}
	p.Enum = k.enumeration(o.object("enum"))
	number := firstOf(o, append(arithmetic, "deadband", "invalid")...)
	switch integral := firstOf(o, "bits", "enum"); {
	case !s.numeric && number != "":
		k.problem(o.pos(number), "%s is for numbers, but this is %s; remove it", number, s.why)
	case !s.integer && integral != "" && s.why != "":
		k.problem(o.pos(integral), "%s is for integers, but this is %s; remove it, or change as", integral, s.why)
	case o.has("bits") && o.has("enum"):
		k.problem(o.pos("enum"), "a point has bits or an enum; make two points of it")
	case integral != "" && firstOf(o, arithmetic...) != "":
		number = firstOf(o, arithmetic...)
		k.problem(o.pos(number), "%s has no use beside %s; remove one", number, integral)
	case o.has("bits") && o.has("count"):
		k.problem(o.pos("count"), "there are no arrays of bits; make a point of each register")
	}
}

// firstOf is the first of the keys that is there.
func firstOf(o *object, keys ...string) string {
	for _, key := range keys {
		if o.has(key) {
			return key
		}
	}
	return ""
}

func (d *decoder) valueRange(o *object) *Range {
	if !o.there() {
		return nil
	}
	var r Range
	ok := o.pair("raw", &r.Raw)
	ok = o.pair("to", &r.To) && ok
	o.need("raw", "range needs raw: [from, to], the raw numbers at both ends")
	o.need("to", "range needs to: [from, to], the values at both ends")
	if ok && r.Raw[0] == r.Raw[1] {
		o.d.problem(o.valuePos("raw"), "raw: the two ends are the same; write two different numbers")
	}
	o.done()
	return &r
}

// pair reads a list of two numbers.
func (o *object) pair(key string, to *[2]float64) bool {
	both := o.list(key, false)
	if len(both) != 2 {
		if n := o.get(key); n != nil && n.items != nil {
			o.d.problem(n.pos(), "%s: expected two numbers, as [0, 100], found %d", key, len(both))
		}
		return false
	}
	ok := true
	for i, n := range both {
		num, good := o.d.number(n, key)
		to[i] = num.Float64()
		ok = ok && good
	}
	return ok
}

// bits reads the names of the bits of a number of so many, 0 if they are not known.
func (d *decoder) bits(o *object, as string, width int) []Bit {
	if !o.there() {
		return nil
	}
	var all []Bit
	names := make(map[string]bool)
	for _, e := range o.n.entries {
		num, err := parseNumber(e.key)
		i, ok := num.Int64()
		name, named := d.text(e.val, "bits")
		switch {
		case err != nil || !ok:
			d.problem(e.key.pos(), "bits: expected the number of a bit, found %s; write {0: running, 3: fault}", e.key.quote())
			continue
		case width > 0 && (i < 0 || i >= int64(width)):
			d.problem(e.key.pos(), "bits: there is no bit %d; %s has bits 0 to %d", i, article(as), width-1)
			continue
		case i < 0:
			d.problem(e.key.pos(), "bits: there is no bit %d; the lowest is 0", i)
			continue
		case named && names[name]:
			d.problem(e.val.pos(), "bits: %s is there twice; choose another name", quote(name))
		}
		names[name] = true
		all = append(all, Bit{int(i), name})
	}
	slices.SortFunc(all, func(a, b Bit) int { return a.Bit - b.Bit })
	return all
}

func (d *decoder) enumeration(o *object) map[int64]string {
	if !o.there() {
		return nil
	}
	all := make(map[int64]string, len(o.n.entries))
	names := make(map[string]bool)
	for _, e := range o.n.entries {
		num, err := parseNumber(e.key)
		i, ok := num.Int64()
		name, named := d.text(e.val, "enum")
		switch {
		case err != nil || !ok:
			d.problem(e.key.pos(), "enum: expected an integer, found %s; write {0: stopped, 1: running}", e.key.quote())
			continue
		case named && names[name]:
			d.problem(e.val.pos(), "enum: %s is there twice, and could not be written; choose another name", quote(name))
		}
		names[name] = true
		all[i] = name
	}
	return all
}

// invalid reads a raw number that says "no value".
func (k *kitReader) invalid(p *Point, n *node, s shape) {
	if n.kind != scalar || n.broken {
		k.number(n, "invalid") // says what is wrong
		return
	}
	num, err := parseNumber(n)
	f := num.Float64()
	i, isInt := num.Int64()
	_, isUint := num.Uint64()
	switch {
	case err != nil:
		k.problem(n.pos(), "invalid: %s", err)
	case s.integer && !isInt && !isUint:
		k.problem(n.pos(), "invalid: %s is no integer, and never is a raw value of this point; remove it", n.quote())
	case s.integer && s.width < 64 && s.width > 0 && (i < -1<<(s.width-1) || i >= 1<<s.width):
		k.problem(n.pos(), "invalid: %s does not fit into %d bits; remove it", n.quote(), s.width)
	case math.IsInf(f, 0):
		k.problem(n.pos(), "invalid: what is infinite always is invalid; remove it")
	default:
		p.Invalid = append(p.Invalid, num)
	}
}

func (d *decoder) write(o *object) *Write {
	w := &Write{Pos: o.at, Pulse: o.duration("pulse", 0, time.Millisecond, time.Hour)}
	limit := func(key string) *float64 {
		num, ok := o.number(key)
		if !ok {
			return nil
		}
		f := num.Float64()
		return &f
	}
	w.Min, w.Max = limit("min"), limit("max")
	if w.Min != nil && w.Max != nil && *w.Min > *w.Max {
		d.problem(o.valuePos("min"), "min: %s is above max, %s; exchange them", o.n.value("min").text, o.n.value("max").text)
	}
	for _, n := range o.list("values", true) {
		switch {
		case n.kind == scalar && n.plain && isBool(n.text):
			w.Values = append(w.Values, map[bool]float64{true: 1}[strings.EqualFold(n.text, "true")])
		default:
			if num, ok := d.number(n, "values"); ok {
				w.Values = append(w.Values, num.Float64())
			}
		}
	}
	if n := o.get("values"); n != nil && n.kind == list && len(n.items) == 0 {
		d.problem(o.pos("values"), "values is empty, so nothing can be written; add values, or remove it")
	}
	o.done()
	return w
}

// checkScales reports scale_by that names no fitting point.
func (k *kitReader) checkScales(points map[string]*Point) {
	for _, s := range k.scales {
		other := points[s.by]
		switch {
		case other == nil:
			k.problem(s.at, "scale_by: the device has no point %s%s", quote(s.by), suggestKey(k.decoder, s.by, points))
		case s.by == s.point:
			k.problem(s.at, "scale_by: the point cannot scale itself; name the one that has the power of ten")
		case other.broken:
		case other.text() || other.ScaleBy != "" || other.Modbus != nil && (strings.HasPrefix(other.Modbus.As, "float") || other.Modbus.Count > 0):
			k.problem(s.at, "scale_by: the point %s is no plain integer; name the one that has the power of ten", quote(s.by))
		}
	}
}

// as is the type of a point that has one.
func (p *Point) as() string {
	switch {
	case p.Modbus != nil:
		return p.Modbus.As
	case p.Serial != nil:
		return p.Serial.As
	}
	return ""
}

// text reports whether what a point has is no number.
func (p *Point) text() bool {
	switch {
	case p.Enum != nil || p.Bits != nil:
		return true
	case p.Modbus != nil:
		return p.Modbus.As == "string"
	case p.Serial != nil:
		return p.Serial.As == "string" || p.Serial.Send != ""
	case p.OPCUA != nil:
		return p.OPCUA.Call != ""
	}
	return false
}
