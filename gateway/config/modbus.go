package config

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The most in one request, Modbus Application Protocol 1.1b3 §6.1 to §6.4.
const (
	maxRegisters = 125
	maxBits      = 2000
)

// modbusTransports by their name; the value says whether an address is a port
// of this machine, and not host:port.
var modbusTransports = map[string]bool{
	"tcp": false, "tcp+tls": false, "udp": false, "rtu": true,
	"rtuovertcp": false, "rtuoverudp": false, "rtuovertcp-listen": false,
}

// isLine reports whether there is one serial line behind an adapter.
func (m *Modbus) isLine() bool { return strings.HasPrefix(m.Transport, "rtu") }

func (d *decoder) modbus(o *object) *Modbus {
	m := &Modbus{
		Pos:          o.pos("modbus"),
		Timeout:      o.duration("timeout", 500*time.Millisecond, time.Millisecond, minute),
		Retries:      o.int("retries", 1, 0, 100),
		Settle:       o.duration("settle", 0, 0, minute),
		Pause:        o.duration("pause", 0, 0, minute),
		MaxRegisters: o.int("max_registers", maxRegisters, 1, maxRegisters),
		MaxBits:      o.int("max_bits", maxBits, 1, maxBits),
	}
	d.modbusAddress(o, m)
	gap := 32
	if m.isLine() {
		gap = 16 // at 9600 baud one register takes 2 ms, a request some 25 ms
	}
	m.MaxGap = o.int("max_gap", gap, 0, maxRegisters)
	line := o.object("line")
	// the serial line's own default is 19200 baud, even parity: Modbus over Serial
	// Line 1.02 §2.5.1
	m.Line = d.line(line, Line{Baud: 19200, DataBits: 8, Parity: "even", StopBits: 1})
	if line.there() && !m.isLine() && m.Transport != "" {
		d.problem(line.at, "line is for serial ports; remove it")
	}
	if t := o.object("tls"); t.there() {
		m.TLS = &ClientTLS{Pos: t.at, CA: t.path("ca")}
		m.TLS.Cert, m.TLS.Key = d.keyPair(t, true)
		t.need("ca", "ca is missing; write the file with the authority of the device's certificate")
		t.done()
		if m.Transport != "tcp+tls" && m.Transport != "" {
			d.problem(t.at, "tls is for tcp+tls, but this is %s; write modbus: tcp+tls://…, or remove it", m.Transport)
		}
	} else if m.Transport == "tcp+tls" {
		o.need("tls", "tcp+tls needs tls: {ca: FILE, cert: FILE, key: FILE}")
	}
	return m
}

// modbusAddress reads transport://address, or a transport alone for devices that
// have an address each.
func (d *decoder) modbusAddress(o *object, m *Modbus) {
	s := o.text("modbus", "")
	if s == "" {
		return
	}
	n := o.n.value("modbus")
	transport, address, full := strings.Cut(s, "://")
	isPort, known := modbusTransports[transport]
	switch {
	case !known && !full && strings.ContainsAny(s, ":/."):
		d.problem(n.pos(), "modbus: %s has no transport; write tcp://%s, or rtu:// for a serial port", n.quote(), s)
	case !known:
		d.problem(n.pos(), "modbus: unknown transport %s%s; it can be %s", quote(transport), suggest(transport, keysOf(modbusTransports)), oneOf(keysOf(modbusTransports)))
	case !full && (isPort || strings.HasSuffix(transport, "-listen")):
		d.problem(n.pos(), "modbus: %s needs an address; write %s", transport, map[bool]string{true: "rtu:///dev/ttyUSB0", false: transport + "://:5020"}[isPort])
	case isPort && !strings.HasPrefix(address, "/"):
		d.problem(n.pos(), "modbus: expected the path of a port, found %s; write rtu:///dev/ttyUSB0, with three slashes", n.quote())
	case full && !isPort:
		if _, wrong := hostPort(address, strings.HasSuffix(transport, "-listen")); wrong != "" {
			d.problem(n.pos(), "modbus: %s %s; write %s://10.0.0.1:502", n.quote(), wrong, transport)
			break
		}
		m.Transport, m.Address = transport, address
	default:
		m.Transport, m.Address = transport, address
	}
	m.perDevice = known && !full && m.Transport != ""
}

// line reads how a serial port is set.
func (d *decoder) line(o *object, def Line) Line {
	l := Line{
		Pos:      o.posIfThere(),
		Baud:     o.int("baud", def.Baud, 50, 4_000_000),
		DataBits: o.int("data_bits", def.DataBits, 7, 8),
		Parity:   o.enum("parity", def.Parity, "none", "even", "odd"),
		StopBits: o.int("stop_bits", def.StopBits, 1, 2),
	}
	if r := o.object("rs485"); r.there() {
		l.RS485 = &RS485{Pos: r.at, RTS: r.bool("rts", true), Before: r.duration("before", 0, 0, time.Second), After: r.duration("after", 0, 0, time.Second)}
		r.done()
	}
	o.done()
	return l
}

// modbus reads what a device has beside its points.
func (k *kitReader) modbus(o *object, m *Modbus) {
	dev := k.dev
	k.addressing = o.enum("addressing", "zero", "zero", "one", "modicon")
	k.order = o.enum("order", "ABCD", orders...)
	dev.MaxRegisters = o.int("max_registers", m.MaxRegisters, 1, maxRegisters)
	dev.MaxBits = o.int("max_bits", m.MaxBits, 1, maxBits)
	k.unit(o, m)
	at := o.text("at", "")
	switch {
	case m.perDevice && at != "":
		if _, wrong := hostPort(at, false); wrong != "" {
			k.problem(o.valuePos("at"), "at: %s %s; write one such as 10.0.0.1:502", o.n.value("at").quote(), wrong)
		}
		dev.Address = at
	case m.perDevice:
		o.need("at", "the device has no address; add at: host:port, or write modbus: %s://host:port for all", m.Transport)
	case at != "" && m.Transport != "":
		k.problem(o.pos("at"), "at is for devices of modbus: %s alone; remove it, or the address there", m.Transport)
	default:
		dev.Address = m.Address
	}
}

// unit reads the unit id. On a serial line it is 1 to 247, and 0 is for all,
// Modbus over Serial Line 1.02 §2.2; over TCP 255 means the device itself, Modbus
// Messaging on TCP/IP 1.0b §4.4.
func (k *kitReader) unit(o *object, m *Modbus) {
	most := 255
	if m.isLine() {
		most = 247
		o.need("unit_id", "unit_id is missing; write the device's number on the line, 1 to 247")
	}
	id, ok := o.integer("unit_id", 0, most)
	k.dev.badUnit = !ok && (o.has("unit_id") || m.isLine())
	if !o.has("unit_id") {
		id = 1
	}
	k.dev.UnitID = uint8(id)
	if ok && id == 0 && m.isLine() {
		k.warn(o.valuePos("unit_id"), "unit_id: 0 speaks to all devices of a line, and none answers")
	}
}

var (
	orders = []string{"ABCD", "CDAB", "BADC", "DCBA"}
	tables = []string{"holding", "input", "coil", "discrete"}
	types  = []string{"bool", "int16", "uint16", "int32", "uint32", "int64", "uint64",
		"float16", "float32", "float64", "string", "bcd16", "bcd32"}
	typeBits = map[string]int{"bool": 16, "int16": 16, "uint16": 16, "int32": 32, "uint32": 32, "int64": 64, "uint64": 64,
		"float16": 16, "float32": 32, "float64": 64, "bcd16": 16, "bcd32": 32}
)

func (k *kitReader) modbusPoint(o *object, n *node) (*ModbusPoint, shape) {
	p := &ModbusPoint{Order: o.enum("order", k.order, orders...)}
	for _, t := range tables {
		if o.known = append(o.known, t); !o.has(t) {
			continue
		}
		if p.Table != "" {
			k.problem(o.pos(t), "the point is at %s and at %s; make two points of it", p.Table, t)
			continue
		}
		p.Table = t
	}
	if p.Table == "" {
		o.needOneOf(tables, k.misplaced(), "the point does not say where it is; add holding:, input:, coil: or discrete:")
	}
	bits := p.Table == "coil" || p.Table == "discrete"
	s := k.modbusType(o, p, bits)
	p.Count = o.int("count", 0, 1, 65_536)
	span := k.span(o, p, bits)
	k.address(o, p, n, span)
	return p, s
}

// modbusType reads what the registers hold.
func (k *kitReader) modbusType(o *object, p *ModbusPoint, bits bool) shape {
	if bits {
		p.As = o.enum("as", "bool", types...)
		if p.As != "bool" {
			k.problem(o.valuePos("as"), "as: a %s is a bool, not %s; remove it", p.Table, article(p.As))
		}
		if o.has("bytes") {
			k.problem(o.pos("bytes"), "bytes is the length of a string, but a %s is a bool; remove it", p.Table)
		}
		o.known = append(o.known, "bytes")
		return shape{fixed: p.Table == "discrete", why: "a " + p.Table}
	}
	p.As = o.enum("as", "", types...)
	if p.Table != "" {
		o.need("as", "as is missing; write what the registers hold: %s", oneOf(types))
	}
	if p.As == "string" {
		p.Bytes = o.int("bytes", 0, 1, 2*maxRegisters)
		o.need("bytes", "a string needs bytes: with its length")
		if o.has("count") {
			k.problem(o.pos("count"), "there are no arrays of strings; make a point of each")
		}
	} else {
		o.known = append(o.known, "bytes")
		if o.has("bytes") && p.As != "" {
			k.problem(o.pos("bytes"), "bytes is the length of a string, but this is %s; remove it, or write count:", article(p.As))
		}
	}
	s := shape{width: typeBits[p.As], fixed: p.Table == "input", numeric: true, integer: true, why: "an input register"}
	switch {
	case p.As == "": // reported
		s.why = ""
	case p.As == "bool" || p.As == "string":
		s.numeric, s.integer, s.why = false, false, article(p.As)
	case strings.HasPrefix(p.As, "float"):
		s.integer, s.why = false, article(p.As)
	}
	if s.fixed && p.As != "" && s.integer {
		s.why = "an input register"
	}
	return s
}

func article(word string) string {
	if strings.ContainsRune("aeiou", rune(word[0])) && !strings.HasPrefix(word, "ui") {
		return "an " + word
	}
	return "a " + word
}

// span is how many registers or bits a point takes; 0 if that is not clear.
func (k *kitReader) span(o *object, p *ModbusPoint, bits bool) int {
	n, most, what := max(p.Count, 1), k.dev.MaxBits, "bits"
	if !bits {
		most, what = k.dev.MaxRegisters, "registers"
		if p.As == "" || p.As == "string" && p.Bytes == 0 {
			return 0
		}
		n *= max(typeBits[p.As]/16, (p.Bytes+1)/2)
	}
	if n > most {
		key := cmp.Or(firstOf(o, "count", "bytes", "as"), p.Table)
		k.problem(o.valuePos(key), "%s: the value takes %d %s, more than the %d of one request; make several points of it", key, n, what, most)
	}
	return n
}

// address reads where a point is, and makes it the address on the wire.
func (k *kitReader) address(o *object, p *ModbusPoint, n *node, span int) {
	stride := span
	if s := o.int("stride", 0, 1, 65_535); s > 0 {
		stride = s
	}
	if o.has("stride") && !n.ranged {
		k.problem(o.pos("stride"), "stride is for names with a range, such as i-{1..12}; remove it")
	}
	if p.Table == "" {
		return
	}
	num, ok := o.number(p.Table)
	if !ok {
		return
	}
	v := o.n.value(p.Table)
	i, isInt := num.Int64()
	if !isInt {
		k.problem(v.pos(), "%s: expected an address, found %s", p.Table, v.quote())
		return
	}
	at, wrong := wireAddress(k.addressing, p.Table, i, v.text)
	if wrong != "" {
		k.problem(v.pos(), "%s: %s", p.Table, wrong)
		return
	}
	what := "register"
	if p.Table == "coil" || p.Table == "discrete" {
		what = p.Table
	}
	last := at + max(span, 1) - 1
	if n.ranged && !v.stepped {
		move := int(n.step) * stride
		at, last = at+move, last+move
	}
	if last > 65_535 {
		k.problem(v.pos(), "%s: the value goes past the last %s, 65535%s; choose a lower address", p.Table, what, map[bool]string{true: " on the wire"}[k.addressing != "zero"])
		return
	}
	p.Address = uint16(at)
}

// wireAddress makes an address of a manual the one on the wire, from 0. Modicon's
// have the table as their first digit: 0 coil, 1 discrete, 3 input, 4 holding.
func wireAddress(addressing, table string, i int64, text string) (at int, wrong string) {
	switch addressing {
	case "zero":
		if i < 0 || i > 65_535 {
			return 0, fmt.Sprintf("%d is not between 0 and 65535", i)
		}
		return int(i), ""
	case "one":
		if i == 0 {
			return 0, "0 does not exist with addressing: one, which counts from 1; write 1, or addressing: zero"
		}
		if i < 0 || i > 65_536 {
			return 0, fmt.Sprintf("%d is not between 1 and 65536", i)
		}
		return int(i - 1), ""
	}
	digits := map[string]int64{"coil": 0, "discrete": 1, "input": 3, "holding": 4}
	size := int64(10_000) // what the table's digit is worth: five digits in all, or six
	if i > 99_999 || len(text) == 6 && text[0] == '0' {
		size = 100_000
	}
	digit := i / size
	for name, is := range digits {
		if is == digit && name != table {
			if digit == 0 {
				return 0, fmt.Sprintf("with addressing: modicon it begins with %d, as %d0001; or write addressing: zero", digits[table], digits[table])
			}
			return 0, fmt.Sprintf("with addressing: modicon %d is in the table %s; write %s: %d", i, name, name, i)
		}
	}
	offset := i - digits[table]*size
	switch {
	case i < 0 || digit != digits[table]:
		return 0, fmt.Sprintf("%d is no address of addressing: modicon, such as %d0001 or %d00001", i, digits[table], digits[table])
	case offset < 1 || offset > min(size-1, 65_536):
		return 0, fmt.Sprintf("%d is no address of addressing: modicon, which counts from 1 to %d", i, min(size-1, 65_536))
	}
	return int(offset - 1), ""
}

// checkBuses reports units that are there twice on one bus or connection, and
// ports that two adapters have.
func (d *decoder) checkBuses(c *Config) {
	units := make(map[string]*Device)
	ports := make(map[string]*Adapter)
	for i := range c.Adapters {
		a := &c.Adapters[i]
		port := a.port()
		if first := ports[port]; port != "" && first != nil {
			d.problem(a.Pos, "the adapter %s has the port %s already, %s; put the devices of one line in one adapter", quote(first.Name), port, first.Pos.from(a.Pos))
			continue
		}
		ports[port] = a
		if a.Modbus == nil {
			continue
		}
		told := make(map[Pos]bool)
		for j := range a.Devices {
			dev := &a.Devices[j]
			if dev.badUnit || dev.Address == "" {
				continue
			}
			key := dev.Address + "\x00" + strconv.Itoa(int(dev.UnitID))
			first := units[key]
			if first == nil {
				units[key] = dev
				continue
			}
			if !told[dev.Pos] {
				told[dev.Pos] = true
				d.problem(dev.Pos, "the device %s has unit %d at %s already, %s; give this one its own unit_id, or make one device of both", quote(first.ID), dev.UnitID, dev.Address, first.Pos.from(dev.Pos))
			}
		}
	}
}

// port is the serial port that an adapter has alone; "" if it has none.
func (a *Adapter) port() string {
	switch {
	case a.Modbus != nil && a.Modbus.Transport == "rtu":
		return a.Modbus.Address
	case a.Serial != nil:
		return a.Serial.Port
	}
	return ""
}
