package config

import (
	"regexp"
	"slices"
	"strings"
	"time"
)

func (d *decoder) serial(o *object) *Serial {
	s := &Serial{Pos: o.pos("serial")}
	line := o.object("line")
	s.Line = d.line(line, Line{Baud: 9600, DataBits: 8, Parity: "none", StopBits: 1})
	text := o.text("serial", "")
	if text == "" {
		return s
	}
	n := o.n.value("serial")
	address, isTCP := strings.CutPrefix(text, "tcp://")
	switch {
	case isTCP:
		if _, wrong := hostPort(address, false); wrong != "" {
			d.problem(n.pos(), "serial: %s %s; write one such as tcp://10.0.0.1:4001", n.quote(), wrong)
		}
		s.Address = address
		if line.there() {
			d.problem(line.at, "line is for serial ports; the server at tcp:// has its own, so remove it")
		}
	case !strings.HasPrefix(text, "/"):
		d.problem(n.pos(), "serial: expected the path of a port or tcp://host:port, found %s", n.quote())
	default:
		s.Port = text
	}
	return s
}

// serial reads what a device has beside its points.
func (k *kitReader) serial(o *object) {
	dev := k.dev
	dev.Request = o.bytes("request")
	dev.Frame = k.frame(o.object("frame"))
	o.need("frame", "frame is missing; say where a message ends, as frame: {end: \"\\r\\n\"}")
	text := o.text("match", "")
	if text == "" {
		return
	}
	re, err := regexp.Compile(text)
	if err != nil {
		k.problem(o.valuePos("match"), "match: %s", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
		k.dev.badMatch = true
		return
	}
	dev.Match = re
}

func (d *decoder) frame(o *object) Frame {
	f := Frame{
		Pos:    o.posIfThere(),
		Start:  o.bytes("start"),
		End:    o.bytes("end"),
		Length: o.int("length", 0, 1, 65_536),
		Idle:   o.duration("idle", 0, time.Millisecond, minute),
		Check:  o.enum("check", "", "xor", "sum8", "lrc", "crc16"),
	}
	ends := 0
	for _, key := range []string{"end", "length", "idle"} {
		if o.has(key) {
			ends++
		}
	}
	switch {
	case ends == 0:
		o.need("end", "frame does not say where a message ends; add end:, length: or idle:")
	case ends > 1 && o.has("length"):
		d.problem(o.pos("length"), "length: a message of a fixed length needs no other end; remove one")
	}
	o.done()
	return f
}

// bytes is text in which white space counts.
func (o *object) bytes(key string) string {
	n := o.scalar(key, "text")
	switch {
	case n == nil:
		return ""
	case n.text == "":
		o.d.problem(n.pos(), "%s is empty; give it a value, or remove it", key)
	case n.plain && strings.Contains(n.text, `\`), !n.plain && !n.computed && strings.Contains(n.text, `\r`):
		o.d.problem(n.pos(), `%s: put it in double quotes, as "\r\n"; elsewhere a \ is just that`, key)
	}
	return n.text
}

func (k *kitReader) serialPoint(o *object) (*SerialPoint, shape) {
	p := &SerialPoint{
		Field:  o.text("field", ""),
		When:   o.text("when", ""),
		Send:   o.bytes("send"),
		Expect: o.bytes("expect"),
	}
	def := "string"
	if p.When != "" {
		def = "bool"
	}
	p.As = o.enum("as", def, "string", "int64", "float64", "bool")
	switch {
	case o.has("field") && o.has("send"):
		k.problem(o.pos("send"), "the point has field and send; make two points of it")
	case o.has("send"):
		for _, key := range []string{"as", "when"} {
			if o.has(key) {
				k.problem(o.pos(key), "%s is for points with field; remove it", key)
			}
		}
		return p, shape{why: "a thing to send"}
	case !o.has("field"):
		o.needOneOf([]string{"field", "send"}, k.misplaced(), "the point does not say what it is; add field: to read, or send: to tell the device something")
	case p.Field != "":
		k.checkField(o, p.Field)
	}
	if o.has("expect") && !o.has("send") {
		k.problem(o.pos("expect"), "expect is the answer to send; add send:, or remove it")
	}
	if p.When != "" && p.As != "bool" {
		k.problem(o.valuePos("as"), "as: with when the point is a bool; remove as")
	}
	s := shape{fixed: true, why: article(p.As)}
	s.integer = p.As == "int64"
	s.numeric = s.integer || p.As == "float64"
	if s.numeric {
		s.why = "a field of what the device says"
	}
	return p, s
}

// checkField reports a field that is no group of the device's match.
func (k *kitReader) checkField(o *object, name string) {
	if k.dev.badMatch {
		return
	}
	if k.dev.Match == nil {
		k.problem(o.valuePos("field"), "field: the device has no match:, whose groups are the fields; add one such as '^(?P<weight>[0-9.]+) g$'")
		return
	}
	groups := slices.DeleteFunc(slices.Clone(k.dev.Match.SubexpNames()), func(s string) bool { return s == "" })
	if !slices.Contains(groups, name) {
		k.problem(o.valuePos("field"), "field: match has no group %s%s; add (?P<%s>…)", quote(name), suggest(name, groups), name)
	}
}
