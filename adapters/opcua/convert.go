package opcua

import (
	"encoding/base64"
	"encoding/json"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gopcua/opcua/ua"

	"github.com/fieldferry/fieldferry/adapters"
)

// reasonStructure is why a value that is a structure has no value here.
const reasonStructure = "unknown-structure"

// converter turns what a server says of a variable into a sample.
type converter struct {
	linear   bool // scale and offset are to be reckoned
	scale    float64
	offset   float64
	exact    int // decimals of scale and offset; -1: they are not meant in decimals
	decimals int // to round to; -1 does not
	enum     map[int64]adapters.Value
}

func newConverter(p *Point) converter {
	c := converter{scale: p.Scale, offset: p.Offset, decimals: -1}
	if c.scale == 0 {
		c.scale = 1
	}
	if p.Decimals != nil {
		c.decimals = *p.Decimals
	}
	c.linear = c.scale != 1 || c.offset != 0
	if c.exact = max(decimalsOf(c.scale), decimalsOf(c.offset)); c.exact > 12 {
		c.exact = -1
	}
	if p.Enum != nil {
		c.enum = make(map[int64]adapters.Value, len(p.Enum))
		for n, name := range p.Enum {
			c.enum[n] = adapters.String(name)
		}
	}
	return c
}

// decimalsOf is how many decimals a person wrote a number with.
func decimalsOf(f float64) int {
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if i := strings.IndexByte(s, '.'); i >= 0 {
		return len(s) - i - 1
	}
	return 0
}

// A told is what a server says of a variable at a time.
type told struct {
	value   adapters.Value
	quality adapters.Quality
	reason  string
	time    time.Time
	down    bool // the server has no value, by the status
}

// take converts a data value; now is the time of one that has none.
func (c *converter) take(dv *ua.DataValue, now time.Time) told {
	t := told{time: timeOf(dv, now)}
	status := dv.Status
	if !dv.Has(ua.DataValueStatusCode) {
		status = ua.StatusOK
	}
	t.quality = qualityOf(status)
	if t.quality == adapters.Bad {
		t.reason, t.down = statusName(status), true
		return t
	}
	var why string
	if dv.Has(ua.DataValueValue) && dv.Value != nil {
		t.value, why = c.value(dv.Value.Value())
	} else {
		why = adapters.ReasonInvalid
	}
	switch {
	case why == adapters.ReasonNotInEnum:
		t.quality, t.reason = adapters.Uncertain, why
	case why != "":
		t.value, t.quality, t.reason = adapters.Value{}, adapters.Bad, why
	case t.quality == adapters.Uncertain:
		t.reason = statusName(status)
	}
	return t
}

// timeOf is when a value was had from its source, or at least by the server.
func timeOf(dv *ua.DataValue, now time.Time) time.Time {
	switch {
	case dv.Has(ua.DataValueSourceTimestamp) && plausible(dv.SourceTimestamp):
		return dv.SourceTimestamp
	case dv.Has(ua.DataValueServerTimestamp) && plausible(dv.ServerTimestamp):
		return dv.ServerTimestamp
	}
	return now
}

// plausible leaves out what stands for no time, and the first days of a clock that
// was never set.
func plausible(t time.Time) bool { return t.Year() > 1970 && t.Year() < 9999 }

// value converts what the library made of a value, or says why there is none.
func (c *converter) value(v any) (adapters.Value, string) {
	if r := reflect.ValueOf(v); r.Kind() == reflect.Slice {
		if b, ok := v.([]byte); ok {
			if b == nil {
				return adapters.Value{}, adapters.ReasonInvalid
			}
			return adapters.String(base64.StdEncoding.EncodeToString(b)), ""
		}
		return c.list(r)
	}
	return c.scalar(v)
}

func (c *converter) list(r reflect.Value) (adapters.Value, string) {
	if r.IsNil() {
		return adapters.Value{}, adapters.ReasonInvalid
	}
	all := make([]adapters.Value, r.Len())
	unsure := ""
	for i := range all {
		var why string
		all[i], why = c.value(r.Index(i).Interface())
		if why == adapters.ReasonNotInEnum {
			unsure = why
		} else if why != "" {
			return adapters.Value{}, why
		}
	}
	return adapters.List(all), unsure
}

// scalar converts a single value. OPC UA Part 6 §5.1.2.
func (c *converter) scalar(v any) (adapters.Value, string) {
	switch v := v.(type) {
	case bool:
		return adapters.Bool(v), ""
	case int8:
		return c.integer(int64(v))
	case uint8:
		return c.integer(int64(v))
	case int16:
		return c.integer(int64(v))
	case uint16:
		return c.integer(int64(v))
	case int32:
		return c.integer(int64(v))
	case uint32:
		return c.integer(int64(v))
	case int64:
		if c.enum == nil && !c.linear {
			return adapters.Int64(v), ""
		}
		return c.integer(v)
	case uint64:
		switch {
		case c.enum == nil && !c.linear:
			return adapters.Uint64(v), ""
		case v > math.MaxInt64 && c.enum == nil:
			return c.float(float64(v)*c.scale + c.offset)
		case v > math.MaxInt64:
			return adapters.String(strconv.FormatUint(v, 10)), adapters.ReasonNotInEnum
		}
		return c.integer(int64(v))
	case float32:
		if !c.linear && c.decimals < 0 {
			if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
				return adapters.Value{}, adapters.ReasonNotANumber
			}
			return adapters.Float32(v), ""
		}
		return c.float(float64(v)*c.scale + c.offset)
	case float64:
		return c.float(v*c.scale + c.offset)
	case string:
		return text(v)
	case ua.XMLElement:
		return text(string(v))
	case time.Time:
		if v.IsZero() {
			return adapters.Value{}, adapters.ReasonInvalid
		}
		return adapters.String(v.UTC().Format(time.RFC3339Nano)), ""
	case ua.StatusCode:
		return adapters.String(statusName(v)), ""
	case *ua.GUID:
		return adapters.String(v.String()), ""
	case *ua.NodeID:
		return text(v.String())
	case *ua.ExpandedNodeID:
		return text(v.String())
	case *ua.QualifiedName:
		return text(v.Name)
	case *ua.LocalizedText:
		return text(v.Text)
	case *ua.ExtensionObject:
		return structure(v)
	case *ua.Variant:
		return c.value(v.Value())
	case *ua.DataValue:
		t := c.take(v, time.Time{})
		return t.value, t.reason
	}
	if v == nil {
		return adapters.Value{}, adapters.ReasonInvalid
	}
	return adapters.Value{}, reasonStructure
}

func text(s string) (adapters.Value, string) {
	if !utf8.ValidString(s) {
		return adapters.Value{}, adapters.ReasonNotText
	}
	return adapters.String(s), ""
}

// structure is a structure that the library knows, as JSON in a text.
func structure(o *ua.ExtensionObject) (adapters.Value, string) {
	if x, ok := o.Value.(*ua.XMLElement); ok && x != nil {
		return text(string(*x))
	}
	if o.Value == nil {
		return adapters.Value{}, reasonStructure
	}
	b, err := json.Marshal(o.Value)
	if err != nil {
		return adapters.Value{}, adapters.ReasonNotANumber
	}
	return adapters.String(string(b)), ""
}

func (c *converter) integer(i int64) (adapters.Value, string) {
	switch {
	case c.enum != nil:
		if v, ok := c.enum[i]; ok {
			return v, ""
		}
		return adapters.String(strconv.FormatInt(i, 10)), adapters.ReasonNotInEnum
	case !c.linear:
		return adapters.Int(i), ""
	}
	f := float64(i)*c.scale + c.offset
	// In decimal fractions 3 × 0.1 is 0.3; below 2^50 the error does not reach half a unit.
	if c.exact >= 0 {
		if units := math.Round(f * math.Pow10(c.exact)); math.Abs(units) < 1<<50 {
			f = units / math.Pow10(c.exact)
		}
	}
	return c.float(f)
}

func (c *converter) float(f float64) (adapters.Value, string) {
	if c.decimals >= 0 {
		if r := math.Round(f*math.Pow10(c.decimals)) / math.Pow10(c.decimals); !math.IsInf(r, 0) {
			f = r
		}
	}
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return adapters.Value{}, adapters.ReasonNotANumber
	}
	return adapters.Float64(f), ""
}
