package serial

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/fieldferry/fieldferry/adapters"
)

// ReasonUnit is that of a value in another unit than those of its point.
const ReasonUnit = "other-unit"

// An extractor takes the values out of the messages of a device.
type extractor struct {
	*Device
	columns int // that the points need

	// Of the message that fits was asked about last.
	frame, text []byte
	groups      []int
	fields      [][]byte
}

func newExtractor(d *Device) (*extractor, error) {
	x := &extractor{Device: d}
	for i := range d.Points {
		p := &d.Points[i]
		if err := x.check(p); err != nil {
			return nil, fmt.Errorf("point %s: %w", p.Point.Name, err)
		}
	}
	return x, nil
}

// check says what of a point the device has not.
func (x *extractor) check(p *Point) error {
	ways := 0
	for _, is := range []bool{p.Field != "", p.Column != 0, p.Chars != [2]int{}, p.At != nil, len(p.Send) > 0} {
		if is {
			ways++
		}
	}
	if ways != 1 {
		return errors.New("it has to be one of a field, a column, characters, a place, and a thing to send")
	}
	if len(p.Send) > 0 {
		return nil
	}
	for _, group := range []string{p.Field, p.unitGroup()} {
		if group != "" && (x.Match == nil || x.Match.SubexpIndex(group) < 0) {
			return fmt.Errorf("the device's match has no group %s", group)
		}
	}
	for _, column := range []int{p.Column, p.unitColumn()} {
		if column != 0 && x.Split == "" {
			return errors.New("the device's messages are not split into columns")
		}
		x.columns = max(x.columns, column)
	}
	w := types[p.Type]
	switch {
	case p.Column < 0 || p.Chars[0] < 0 || p.Chars[1] < p.Chars[0] || p.Chars[0] == 0 && p.Chars[1] != 0:
		return errors.New("columns and characters count from 1")
	case p.At == nil && !w.text:
		return fmt.Errorf("%s is no text", p.Type)
	case p.At != nil && p.Type == String && p.Bytes < 1:
		return errors.New("a string there needs its number of bytes")
	case p.At != nil && p.Type != String && w.size == 0:
		return fmt.Errorf("%s is in text alone", p.Type)
	case p.At != nil && p.When != "":
		return errors.New("when is for text")
	case p.At != nil && w.size%2 != 0 && (p.Order == CDAB || p.Order == BADC):
		return fmt.Errorf("the bytes of %s have the order ABCD or DCBA", p.Type)
	case (p.Bits != nil || p.Enum != nil) && !p.Type.integral():
		return errors.New("bits and enum are for integers")
	}
	return nil
}

func (p *Point) unitColumn() int {
	n, _ := strconv.Atoi(p.UnitFrom)
	return n
}

func (p *Point) unitGroup() string {
	if p.unitColumn() != 0 {
		return ""
	}
	return p.UnitFrom
}

// fits reports whether a message is one of the device, and looks at it for take.
func (x *extractor) fits(frame []byte) bool {
	for _, h := range x.Holds {
		at := place(h.At, len(frame))
		if at < 0 || at+len(h.Want) > len(frame) || !bytes.Equal(frame[at:at+len(h.Want)], h.Want) {
			return false
		}
	}
	x.frame, x.text = frame, x.Frame.text(frame)
	if x.Match != nil {
		if x.groups = x.Match.FindSubmatchIndex(x.text); x.groups == nil {
			return false
		}
	}
	if x.Split != "" {
		if x.fields = bytes.Split(x.text, []byte(x.Split)); len(x.fields) < x.columns {
			return false
		}
	}
	for i := range x.Points { // a frame that ends before a value is another
		if p := &x.Points[i]; p.Chars[1] > len(x.text) || p.At != nil && !p.inside(len(frame)) {
			return false
		}
	}
	return true
}

func (p *Point) size() int {
	if p.Type == String {
		return p.Bytes
	}
	return types[p.Type].size
}

func (p *Point) inside(size int) bool {
	at := place(*p.At, size)
	return at >= 0 && at+p.size() <= size
}

// part is the text of a point.
func (x *extractor) part(group string, column int, chars [2]int) []byte {
	switch {
	case group != "":
		i := 2 * x.Match.SubexpIndex(group)
		if x.groups[i] < 0 {
			return nil
		}
		return x.text[x.groups[i]:x.groups[i+1]]
	case column > 0:
		return x.fields[column-1]
	default:
		return x.text[chars[0]-1 : chars[1]]
	}
}

// take fills in samples of the message that fits was asked about last.
func (x *extractor) take(readers []*reader, samples []adapters.Sample) {
	for i, r := range readers {
		s := &samples[i]
		s.Value, s.Quality, s.Reason = x.value(r)
	}
}

func bad(reason string) (adapters.Value, adapters.Quality, string) {
	return adapters.Value{}, adapters.Bad, reason
}

func (x *extractor) value(r *reader) (adapters.Value, adapters.Quality, string) {
	p := r.Point
	linear := r.linear
	var text []byte
	if p.At == nil {
		if text = x.part(p.Field, p.Column, p.Chars); p.When == "" && len(bytes.TrimSpace(text)) == 0 && (p.Type != String || text == nil) {
			return bad(adapters.ReasonInvalid) // the device has no value now
		}
	}
	if p.UnitFrom != "" {
		unit := string(bytes.TrimSpace(x.part(p.unitGroup(), p.unitColumn(), [2]int{})))
		if p.Units != nil {
			if linear = r.units[unit]; linear == nil {
				return bad(ReasonUnit)
			}
		} else if unit != p.Point.Unit {
			return bad(ReasonUnit)
		}
	}
	if p.At != nil {
		at := place(*p.At, len(x.frame))
		return r.binary(x.frame[at:at+p.size()], linear)
	}
	return r.text(text, linear)
}

// A reader makes values of what a message has of a point.
type reader struct {
	*Point
	linear *adapters.Linear // nil: the number as it is
	units  map[string]*adapters.Linear
	names  *adapters.FlagNames
	enum   map[int64]adapters.Value
	last   adapters.Value // the last string
}

func newReader(p *Point) *reader {
	r := &reader{Point: p}
	linear := func(by float64) *adapters.Linear {
		var raw, to *[2]float64
		if p.Range != nil {
			raw, to = &p.Range.Raw, &p.Range.To
		}
		scale := p.Scale
		if scale == 0 {
			scale = 1
		}
		return adapters.NewLinear(raw, to, scale*by, p.Offset, p.Decimals)
	}
	if p.Range != nil || p.Scale != 0 && p.Scale != 1 || p.Offset != 0 || p.Decimals != nil {
		r.linear = linear(1)
	}
	if p.Units != nil {
		r.units = make(map[string]*adapters.Linear, len(p.Units))
		for unit, by := range p.Units {
			r.units[unit] = linear(by)
		}
	}
	if len(p.Bits) > 0 {
		names := make(adapters.FlagNames, len(p.Bits))
		for i, b := range p.Bits {
			names[i] = b.Name
		}
		r.names = &names
	}
	if p.Enum != nil {
		r.enum = make(map[int64]adapters.Value, len(p.Enum))
		for n, name := range p.Enum {
			r.enum[n] = adapters.String(name)
		}
	}
	return r
}

// text makes a value of a text; only that of a String may be empty.
func (r *reader) text(b []byte, linear *adapters.Linear) (adapters.Value, adapters.Quality, string) {
	b = bytes.TrimSpace(b)
	if r.When != "" {
		return adapters.Bool(string(b) == r.When), adapters.Good, ""
	}
	switch r.Type {
	case String:
		return r.string(b)
	case Bool:
		return boolean(string(b))
	case Degrees:
		if len(bytes.Trim(b, ", ")) == 0 {
			return bad(adapters.ReasonInvalid)
		}
		f, ok := degrees(string(b))
		if !ok {
			return bad(adapters.ReasonNotANumber)
		}
		return r.number(f, -1, linear, adapters.Float64)
	case Hex:
		u, err := strconv.ParseUint(string(b), 16, 63)
		if err != nil {
			return bad(adapters.ReasonNotANumber)
		}
		return r.integer(int64(u), linear, true)
	}
	digits := unspaced(string(b))
	if r.Type == Int64 {
		i, err := strconv.ParseInt(digits, 10, 64)
		if err != nil {
			return bad(adapters.ReasonNotANumber)
		}
		return r.integer(i, linear, true)
	}
	if strings.Trim(digits, "0123456789.+-eE") != "" { // no words such as Inf, no hexadecimal digits
		return bad(adapters.ReasonNotANumber)
	}
	f, err := strconv.ParseFloat(digits, 64)
	if err != nil {
		return bad(adapters.ReasonNotANumber)
	}
	decimals := 0
	if _, fraction, ok := strings.Cut(digits, "."); ok {
		decimals = len(fraction)
	}
	if decimals > 12 || strings.ContainsAny(digits, "eE") {
		decimals = -1
	}
	return r.number(f, decimals, linear, adapters.Float64)
}

// unspaced is a number without the spaces between its sign and its digits, as
// scales fill them in.
func unspaced(s string) string {
	if s[0] == '-' || s[0] == '+' {
		return s[:1] + strings.TrimLeft(s[1:], " ")
	}
	return s
}

func boolean(s string) (adapters.Value, adapters.Quality, string) {
	switch strings.ToLower(s) {
	case "1", "true", "on", "yes":
		return adapters.Bool(true), adapters.Good, ""
	case "0", "false", "off", "no":
		return adapters.Bool(false), adapters.Good, ""
	}
	return bad(adapters.ReasonInvalid)
}

// degrees reads degrees and minutes, NMEA 0183: 4807.038,N is 48° 7.038'.
func degrees(s string) (float64, bool) {
	number, letter, ok := strings.Cut(s, ",")
	most := map[string]float64{"N": 90, "S": 90, "E": 180, "W": 180}[letter]
	dot := strings.IndexByte(number, '.')
	if dot < 0 {
		dot = len(number)
	}
	if !ok || most == 0 || dot < 3 || strings.Trim(number, "0123456789.") != "" {
		return 0, false
	}
	whole, err := strconv.ParseFloat(number[:dot-2], 64)
	minutes, err2 := strconv.ParseFloat(number[dot-2:], 64)
	f := whole + minutes/60
	if err != nil || err2 != nil || minutes >= 60 || f > most {
		return 0, false
	}
	if letter == "S" || letter == "W" {
		f = -f
	}
	return f, true
}

// string makes a value of a text, the last one again if it is the same.
func (r *reader) string(b []byte) (adapters.Value, adapters.Quality, string) {
	if r.last.Kind() == adapters.KindString && r.last.Text() == string(b) {
		return r.last, adapters.Good, ""
	}
	if !utf8.Valid(b) {
		return bad(adapters.ReasonNotText)
	}
	r.last = adapters.String(string(b))
	return r.last, adapters.Good, ""
}

// integer makes a value of an integer. One of 64 bits keeps its kind.
func (r *reader) integer(i int64, linear *adapters.Linear, wide bool) (adapters.Value, adapters.Quality, string) {
	if slices.Contains(r.Invalid, float64(i)) {
		return bad(adapters.ReasonInvalid)
	}
	plain := adapters.Int
	if wide {
		plain = adapters.Int64
	}
	switch {
	case r.names != nil:
		var set uint64
		for n, b := range r.Bits {
			set |= uint64(i) >> b.Bit & 1 << n
		}
		return adapters.Flags(r.names, set), adapters.Good, ""
	case r.enum != nil:
		if v, ok := r.enum[i]; ok {
			return v, adapters.Good, ""
		}
		return plain(i), adapters.Uncertain, adapters.ReasonNotInEnum
	case linear == nil:
		return plain(i), adapters.Good, ""
	}
	return r.number(float64(i), 0, linear, adapters.Float64)
}

// number makes a value of a number with so many decimals.
func (r *reader) number(f float64, decimals int, linear *adapters.Linear, plain func(float64) adapters.Value) (adapters.Value, adapters.Quality, string) {
	if slices.Contains(r.Invalid, f) {
		return bad(adapters.ReasonInvalid)
	}
	if linear != nil {
		f, plain = linear.Apply(f, decimals, 0), adapters.Float64
	}
	if f-f != 0 { // infinite, or not a number
		return bad(adapters.ReasonNotANumber)
	}
	return plain(f), adapters.Good, ""
}
