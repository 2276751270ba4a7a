package config

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

func (d *decoder) serial(o *object) *Serial {
	s := &Serial{
		Pos:     o.pos("serial"),
		Timeout: o.duration("timeout", time.Second, time.Millisecond, minute),
		Retries: o.int("retries", 1, 0, 100),
		Settle:  o.duration("settle", 0, 0, minute),
		Pause:   o.duration("pause", 0, 0, minute),
	}
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

// unasked reports whether a serial device talks without being asked.
func (dev *Device) unasked() bool { return dev.Request == "" && len(dev.Steps) == 0 }

// serial reads what a device has beside its points.
func (k *kitReader) serial(o *object) {
	dev := k.dev
	dev.Request = o.bytes("request")
	dev.Steps = k.steps(o)
	dev.Silent = o.duration("silent", 0, time.Millisecond, 0)
	dev.Simulate = o.bytes("simulate")
	frame := o.object("frame")
	dev.Frame = k.frame(frame)
	o.need("frame", "frame is missing; say where a message ends, as frame: {end: \"\\r\\n\"}")
	k.holds(o.object("holds"))
	dev.Split = o.bytes("split")
	switch f := &dev.Frame; {
	case !dev.unasked() && o.has("silent"):
		k.problem(o.pos("silent"), "silent is for devices that talk unasked; one that is asked is offline when it does not answer, so remove it")
	case o.has("request") || o.has("steps"):
	case !o.has("every"):
		dev.Every = 0 // every message is a reading
		fallthrough
	default:
		if f.Length > 0 && f.Start == "" && f.End == "" && f.Idle == 0 && f.Check == nil {
			k.problem(frame.pos("length"), "length: when a byte is lost, all messages of a device that talks unasked are cut at the wrong place; add start:, check:, or idle: with the pause between messages")
		}
	}
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

// steps reads what is done before a device answers.
func (k *kitReader) steps(o *object) []SerialStep {
	const most = 32
	all := o.list("steps", false)
	if len(all) > most {
		k.problem(o.pos("steps"), "more than %d steps; remove some", most)
		return nil
	}
	var steps []SerialStep
	for _, n := range all {
		s := k.object(n.pos(), n, "steps")
		if !s.there() {
			continue
		}
		step := SerialStep{
			Send: s.bytes("send"), Expect: s.bytes("expect"), Reply: s.bytes("reply"),
			Baud: s.int("baud", 0, 50, 4_000_000), Wait: s.duration("wait", 0, 0, minute),
		}
		if f := s.object("frame"); f.there() {
			frame := k.frame(f)
			step.Frame = &frame
			if !s.has("expect") {
				k.problem(f.at, "frame: the step awaits no answer; add expect:, or remove it")
			}
		}
		if firstOf(s, "send", "expect", "baud", "wait") == "" {
			k.problem(n.pos(), "steps: the step does nothing; add send:, expect:, baud: or wait:")
		}
		s.done()
		steps = append(steps, step)
	}
	return steps
}

// holds reads the places of a message that have certain bytes.
func (k *kitReader) holds(o *object) {
	if !o.there() {
		return
	}
	for _, e := range o.n.entries {
		num, err := parseNumber(e.key)
		at, ok := num.Int64()
		if err != nil || !ok || at < -maxFrameLength || at > maxFrameLength {
			k.problem(e.key.pos(), "holds: expected the place of a byte, found %s; write {0: \"\\x68\", 5: \"\\x01\"}", e.key.quote())
			continue
		}
		o.known = append(o.known, e.key.text)
		k.dev.Holds = append(k.dev.Holds, Hold{int(at), o.bytes(e.key.text)})
	}
	slices.SortFunc(k.dev.Holds, func(a, b Hold) int { return a.At - b.At })
}

const maxFrameLength = 65_536

func (d *decoder) frame(o *object) Frame {
	f := Frame{
		Pos:    o.posIfThere(),
		Start:  o.bytes("start"),
		End:    o.bytes("end"),
		Tail:   o.int("tail", 0, 0, 16),
		Escape: o.bytes("escape"),
		Invert: byte(o.int("invert", 0, 0, 255)),
		Idle:   o.duration("idle", 0, time.Millisecond, minute),
		Max:    o.int("max_length", 0, 1, maxFrameLength),
		Check:  d.frameCheck(o),
	}
	if n := o.n.value("length"); n != nil && n.kind == mapping {
		f.LengthAt = d.lengthAt(o.object("length"))
	} else {
		f.Length = o.int("length", 0, 1, maxFrameLength)
	}
	switch {
	case firstOf(o, "end", "length", "idle") == "":
		o.need("end", "frame does not say where a message ends; add end:, length: or idle:")
	case f.Length > 0 && o.has("end"):
		d.problem(o.pos("length"), "length: a message of a fixed length needs no other end; remove one")
	case o.has("length") && o.has("idle") && (o.has("start") || f.LengthAt != nil):
		d.problem(o.pos("idle"), "idle: such a message needs no pause before it; remove it")
	case f.Max > 0 && f.Length > f.Max:
		d.problem(o.valuePos("max_length"), "max_length: it is less than length; remove it")
	}
	switch {
	case o.has("tail") && (!o.has("end") || o.has("idle") || o.has("length")):
		d.problem(o.pos("tail"), "tail is how many bytes follow end: in messages that have no other end; remove it")
	case o.has("escape") && (!o.has("start") || !o.has("end") || o.has("length") || o.has("idle")):
		d.problem(o.pos("escape"), "escape is for messages with start: and end: alone; add them, or remove it")
	case len(f.Escape) > 1:
		d.problem(o.valuePos("escape"), "escape: expected one byte, found %s", o.n.value("escape").quote())
	case o.has("invert") && !o.has("escape"):
		d.problem(o.pos("invert"), "invert changes the byte behind escape:; add that, or remove it")
	}
	o.done()
	return f
}

func (d *decoder) lengthAt(o *object) *LengthAt {
	l := &LengthAt{
		At:       o.int("at", 0, 0, 255),
		Size:     o.int("size", 1, 1, 2),
		LowFirst: o.enum("order", "high-first", "high-first", "low-first") == "low-first",
		Plus:     o.int("plus", 0, -255, 255),
	}
	o.need("at", "length needs at: with the place of the byte that has it, from 0")
	o.done()
	return l
}

var checkKinds = []string{"xor", "sum8", "lrc", "crc16", "ccitt", "xmodem", "x25", "ean"}

// frameCheck reads check, which is a word, or says also where it is.
func (d *decoder) frameCheck(o *object) *FrameCheck {
	n := o.n.value("check")
	if n == nil || n.kind != mapping {
		if kind := o.enum("check", "", checkKinds...); kind != "" {
			return &FrameCheck{Kind: kind}
		}
		return nil
	}
	c := o.object("check")
	f := &FrameCheck{Kind: c.enum("kind", "", checkKinds...), Hex: c.enum("as", "binary", "binary", "hex") == "hex"}
	c.need("kind", "check needs kind:, %s", oneOf(checkKinds))
	if at, ok := c.integer("at", -maxFrameLength, maxFrameLength); ok {
		f.At = &at
	}
	var over [2]float64
	if c.pair("over", &over) {
		whole := [2]int{int(over[0]), int(over[1])}
		if float64(whole[0]) != over[0] || float64(whole[1]) != over[1] || whole[0] < -maxFrameLength || whole[1] > maxFrameLength {
			d.problem(c.valuePos("over"), "over: expected two places of a message, as [1, -3]")
		}
		f.Over = &whole
	}
	if c.has("order") {
		low := c.enum("order", "high-first", "high-first", "low-first") == "low-first"
		f.LowFirst = &low
	}
	c.done()
	return f
}

// bytes is text in which white space counts, and of which each character is one
// byte: "\xE5" is the byte E5.
func (o *object) bytes(key string) string {
	n := o.scalar(key, "text")
	if n == nil {
		return ""
	}
	if n.text == "" {
		o.d.problem(n.pos(), "%s is empty; give it a value, or remove it", key)
	}
	if n.plain && strings.Contains(n.text, `\`) || !n.plain && !n.computed && escapes.MatchString(n.text) {
		o.d.problem(n.pos(), `%s: put it in double quotes, as "\r\n"; elsewhere a \ is just that`, key)
	}
	out := make([]byte, 0, len(n.text))
	for _, r := range n.text {
		if r > 0xFF {
			o.d.problem(n.pos(), "%s: %s is no byte; devices are sent characters up to U+00FF, and \"\\xE5\" is the byte E5", key, quote(string(r)))
			return ""
		}
		out = append(out, byte(r))
	}
	return string(out)
}

// escapes are those that text in single quotes was meant to have.
var escapes = regexp.MustCompile(`\\(r|n|x[0-9A-Fa-f]{2})`)

// The types of serial points, by where these are.
var (
	textTypes  = []string{"string", "int64", "float64", "bool", "hex", "degrees"}
	placeTypes = []string{"bool", "int8", "uint8", "int16", "uint16", "int24", "uint24", "int32", "uint32", "int48", "uint48", "int64", "uint64",
		"float32", "float64", "bcd8", "bcd16", "bcd24", "bcd32", "bcd48", "bcd64", "string"}
)

// wheres are the keys that say what a serial point is.
var wheres = []string{"field", "column", "chars", "at", "send"}

func (k *kitReader) serialPoint(o *object) (*SerialPoint, shape) {
	p := &SerialPoint{
		Field:    o.text("field", ""),
		Column:   o.int("column", 0, 1, 10_000),
		When:     o.text("when", ""),
		Send:     o.bytes("send"),
		Expect:   o.bytes("expect"),
		Bytes:    o.int("bytes", 0, 1, maxFrameLength),
		UnitFrom: o.text("unit_from", ""),
		Units:    k.units(o.object("units")),
	}
	if at, ok := o.integer("at", -maxFrameLength, maxFrameLength); ok {
		p.At = &at
		p.Order = o.enum("order", "ABCD", orders...)
	}
	o.known = append(o.known, "order")
	k.chars(o, p)
	def := "string"
	if p.When != "" {
		def = "bool"
	}
	types := textTypes
	if o.has("at") {
		types, def = placeTypes, ""
	}
	p.As = o.enum("as", def, types...)
	if o.has("at") {
		o.need("as", "as is missing; write what the bytes hold: %s", oneOf(placeTypes))
	}
	var is []string
	for _, key := range wheres {
		if o.has(key) {
			is = append(is, key)
		}
	}
	switch {
	case len(is) == 0:
		o.needOneOf(wheres, k.misplaced(), "the point does not say what it is; add field:, column:, chars: or at: to read, or send: to tell the device something")
	case len(is) > 1:
		k.problem(o.pos(is[1]), "the point has %s and %s; make two points of it", is[0], is[1])
	case is[0] == "send":
		for _, key := range []string{"as", "when", "bytes", "order", "unit_from", "units", "every"} {
			if o.has(key) {
				k.problem(o.pos(key), "%s is for points that are read; remove it", key)
			}
		}
		return p, shape{why: "a thing to send"}
	case p.Field != "":
		k.checkField(o, "field", p.Field)
	case o.has("column") && k.dev.Split == "":
		k.problem(o.pos("column"), "column: the device has no split:, which says what is between columns; add one such as split: \",\"")
	}
	k.serialExtras(o, p)
	s := shape{fixed: true, why: article(cmp.Or(p.As, "string"))}
	s.integer = p.As == "hex" || strings.HasPrefix(strings.TrimPrefix(p.As, "u"), "int") || strings.HasPrefix(p.As, "bcd")
	s.numeric = s.integer || strings.HasPrefix(p.As, "float") || p.As == "degrees"
	if bits, err := strconv.Atoi(strings.TrimLeft(p.As, "abcdefghijklmnopqrstuvwxyz")); err == nil {
		s.width = bits
	}
	if s.numeric {
		s.why = "a value of what the device says"
	}
	return p, s
}

// serialExtras checks what belongs to only some points.
func (k *kitReader) serialExtras(o *object, p *SerialPoint) {
	at := o.has("at")
	switch {
	case o.has("expect"):
		k.problem(o.pos("expect"), "expect is the answer to send; add send:, or remove it")
	case p.When != "" && at:
		k.problem(o.pos("when"), "when is for text; write bits: or enum:, or remove it")
	case p.When != "" && p.As != "bool":
		k.problem(o.valuePos("as"), "as: with when the point is a bool; remove as")
	}
	switch {
	case p.As == "string" && at:
		o.need("bytes", "a string at a place needs bytes: with its length")
	case o.has("bytes"):
		k.problem(o.pos("bytes"), "bytes is the length of a string with at:; remove it")
	}
	if o.has("order") && !at {
		k.problem(o.pos("order"), "order is that of the bytes of a point with at:; remove it")
	}
	if odd := map[string]bool{"int8": true, "uint8": true, "bcd8": true, "bool": true, "int24": true, "uint24": true, "bcd24": true}[p.As]; odd && (p.Order == "CDAB" || p.Order == "BADC") {
		k.problem(o.valuePos("order"), "order: %s has no words to change; write ABCD or DCBA", article(p.As))
	}
	if k.dev.unasked() && o.has("every") {
		k.problem(o.pos("every"), "every: a device that talks unasked sends its values together; give the device every:, or remove it")
	}
	switch _, err := strconv.Atoi(p.UnitFrom); {
	case p.UnitFrom == "" && o.has("units"):
		k.problem(o.pos("units"), "units are those that the device names; add unit_from: with the group of match that does")
	case p.UnitFrom == "":
	case err == nil && k.dev.Split == "":
		k.problem(o.valuePos("unit_from"), "unit_from: the device has no split:, which says what is between columns")
	case err != nil:
		k.checkField(o, "unit_from", p.UnitFrom)
	}
	if o.has("unit_from") && !o.has("units") && !o.has("unit") {
		o.need("units", "unit_from needs unit: with the only unit that is good, or units: {g: 1, kg: 1000}")
	}
}

// chars reads the first and the last character of a value.
func (k *kitReader) chars(o *object, p *SerialPoint) {
	var ends [2]float64
	if !o.pair("chars", &ends) {
		return
	}
	p.Chars = [2]int{int(ends[0]), int(ends[1])}
	if float64(p.Chars[0]) != ends[0] || float64(p.Chars[1]) != ends[1] || p.Chars[0] < 1 || p.Chars[1] < p.Chars[0] || p.Chars[1] > maxFrameLength {
		k.problem(o.valuePos("chars"), "chars: expected the first and the last character of the value, counted from 1, as [5, 14]")
	}
}

// units reads what values in other units are multiplied by.
func (k *kitReader) units(o *object) map[string]float64 {
	if !o.there() {
		return nil
	}
	all := make(map[string]float64, len(o.n.entries))
	for _, e := range o.n.entries {
		num, ok := k.number(e.val, fmt.Sprintf("units: %s", e.key.text))
		if ok && num.Float64() == 0 {
			k.problem(e.val.pos(), "units: with 0 every value is 0; write what a value in %s is multiplied by", e.key.text)
		}
		all[e.key.text] = num.Float64()
	}
	return all
}

// checkField reports a field that is no group of the device's match.
func (k *kitReader) checkField(o *object, key, name string) {
	if k.dev.badMatch {
		return
	}
	if k.dev.Match == nil {
		k.problem(o.valuePos(key), "%s: the device has no match:, whose groups are the fields; add one such as '^(?P<weight>[0-9.]+) g$'", key)
		return
	}
	groups := slices.DeleteFunc(slices.Clone(k.dev.Match.SubexpNames()), func(s string) bool { return s == "" })
	if !slices.Contains(groups, name) {
		k.problem(o.valuePos(key), "%s: match has no group %s%s; add (?P<%s>…)", key, quote(name), suggest(name, groups), name)
	}
}
