package opcua

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/gopcua/opcua/ua"

	"github.com/fieldferry/fieldferry/adapters"
)

// allowed reports what is beyond the limits of a point, all elements of a list.
func (p *Point) allowed(v adapters.Value) error {
	if p.Call != "" {
		return nil
	}
	w := p.Write
	if w == nil {
		return errors.New("may not be written; write: {} in the site file allows it")
	}
	if v.Kind() == adapters.KindList {
		for _, e := range v.List() {
			if err := p.allowed(e); err != nil {
				return err
			}
		}
		return nil
	}
	f, number := v.Float64()
	show := func(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }
	switch {
	case !number && (w.Min != nil || w.Max != nil || len(w.Values) > 0) && p.Enum == nil:
		return fmt.Errorf("takes a number, not %s", v)
	case !number:
	case math.IsNaN(f) || math.IsInf(f, 0):
		return errors.New("takes a finite number")
	case w.Min != nil && f < *w.Min:
		return fmt.Errorf("%s is below its limit %s", show(f), show(*w.Min))
	case w.Max != nil && f > *w.Max:
		return fmt.Errorf("%s is above its limit %s", show(f), show(*w.Max))
	case len(w.Values) > 0 && !slices.Contains(w.Values, f):
		return fmt.Errorf("%s is not among the values that may be written: %v", show(f), w.Values)
	}
	return nil
}

// raw undoes what take does with a number or a name, for a variable of a type.
func (c *converter) raw(t ua.TypeID, v adapters.Value) (adapters.Value, error) {
	if v.Kind() == adapters.KindList {
		all := make([]adapters.Value, len(v.List()))
		for i, e := range v.List() {
			var err error
			if all[i], err = c.raw(t, e); err != nil {
				return v, err
			}
		}
		return adapters.List(all), nil
	}
	if c.enum != nil {
		for n, name := range c.enum {
			if name.Text() == v.Text() && v.Kind() == adapters.KindString {
				return adapters.Int64(n), nil
			}
			if f, ok := v.Float64(); ok && f == float64(n) {
				return adapters.Int64(n), nil
			}
		}
		return v, fmt.Errorf("%s is none of its names", v)
	}
	f, number := v.Float64()
	if !c.linear || !number {
		return v, nil
	}
	f = (f - c.offset) / c.scale
	if t == ua.TypeIDFloat || t == ua.TypeIDDouble {
		return adapters.Float64(f), nil
	}
	r := math.Round(f)
	if math.Abs(f-r) > 1e-6*max(1, math.Abs(r)) {
		return v, fmt.Errorf("%s is between two steps of it; a step is %v", v, c.scale)
	}
	return adapters.Float64(r), nil
}

// encode makes a value that a variable of a type takes.
func encode(t ua.TypeID, array bool, v adapters.Value) (*ua.Variant, error) {
	if !array {
		if v.Kind() == adapters.KindList {
			return nil, fmt.Errorf("takes a single %s, not a list", typeName(t))
		}
		x, err := scalarOf(t, v)
		if err != nil {
			return nil, err
		}
		return ua.NewVariant(x)
	}
	if v.Kind() != adapters.KindList {
		return nil, fmt.Errorf("takes a list of %s", typeName(t))
	}
	if t == ua.TypeIDByte {
		b := ua.ByteArray{}
		for _, e := range v.List() {
			x, err := scalarOf(t, e)
			if err != nil {
				return nil, err
			}
			b = append(b, x.(byte))
		}
		return ua.NewVariant(b)
	}
	goType, ok := scalarTypes[t]
	if t == ua.TypeIDGUID || t == ua.TypeIDLocalizedText || t == ua.TypeIDQualifiedName {
		goType = reflect.PointerTo(goType)
	}
	if !ok {
		return nil, fmt.Errorf("is a list of %s, which cannot be written", typeName(t))
	}
	all := reflect.MakeSlice(reflect.SliceOf(goType), 0, len(v.List()))
	for _, e := range v.List() {
		x, err := scalarOf(t, e)
		if err != nil {
			return nil, err
		}
		all = reflect.Append(all, reflect.ValueOf(x))
	}
	return ua.NewVariant(all.Interface())
}

// typeNames are the standard's names of types.
var typeNames = map[ua.TypeID]string{
	ua.TypeIDBoolean: "Boolean", ua.TypeIDSByte: "SByte", ua.TypeIDByte: "Byte", ua.TypeIDInt16: "Int16", ua.TypeIDUint16: "UInt16",
	ua.TypeIDInt32: "Int32", ua.TypeIDUint32: "UInt32", ua.TypeIDInt64: "Int64", ua.TypeIDUint64: "UInt64", ua.TypeIDFloat: "Float",
	ua.TypeIDDouble: "Double", ua.TypeIDString: "String", ua.TypeIDDateTime: "DateTime", ua.TypeIDGUID: "Guid", ua.TypeIDByteString: "ByteString",
	ua.TypeIDXMLElement: "XmlElement", ua.TypeIDNodeID: "NodeId", ua.TypeIDExpandedNodeID: "ExpandedNodeId", ua.TypeIDStatusCode: "StatusCode",
	ua.TypeIDQualifiedName: "QualifiedName", ua.TypeIDLocalizedText: "LocalizedText", ua.TypeIDExtensionObject: "Structure",
	ua.TypeIDDataValue: "DataValue", ua.TypeIDVariant: "BaseDataType", ua.TypeIDDiagnosticInfo: "DiagnosticInfo",
}

func typeName(t ua.TypeID) string {
	if name, ok := typeNames[t]; ok {
		return name
	}
	return "unknown type"
}

// scalarOf is a single value as the library takes it.
func scalarOf(t ua.TypeID, v adapters.Value) (any, error) {
	unfit := func() (any, error) { return nil, fmt.Errorf("takes a %s, not %s", typeName(t), v) }
	switch t {
	case ua.TypeIDBoolean:
		f, ok := v.Float64()
		if !ok || f != 0 && f != 1 {
			return unfit()
		}
		return f == 1, nil
	case ua.TypeIDSByte:
		i, err := integerOf(t, v, math.MinInt8, math.MaxInt8)
		return int8(i), err
	case ua.TypeIDByte:
		i, err := integerOf(t, v, 0, math.MaxUint8)
		return uint8(i), err
	case ua.TypeIDInt16:
		i, err := integerOf(t, v, math.MinInt16, math.MaxInt16)
		return int16(i), err
	case ua.TypeIDUint16:
		i, err := integerOf(t, v, 0, math.MaxUint16)
		return uint16(i), err
	case ua.TypeIDInt32:
		i, err := integerOf(t, v, math.MinInt32, math.MaxInt32)
		return int32(i), err
	case ua.TypeIDUint32:
		i, err := integerOf(t, v, 0, math.MaxUint32)
		return uint32(i), err
	case ua.TypeIDInt64:
		return integerOf(t, v, math.MinInt64, math.MaxInt64)
	case ua.TypeIDUint64:
		if v.Kind() == adapters.KindUint64 {
			return v.Uint64(), nil
		}
		i, err := integerOf(t, v, 0, math.MaxInt64)
		return uint64(i), err
	case ua.TypeIDFloat:
		f, ok := v.Float64()
		if !ok {
			return unfit()
		}
		if math.Abs(f) > math.MaxFloat32 {
			return nil, fmt.Errorf("%s does not fit into a Float", v)
		}
		return float32(f), nil
	case ua.TypeIDDouble:
		f, ok := v.Float64()
		if !ok {
			return unfit()
		}
		return f, nil
	}
	if v.Kind() != adapters.KindString {
		if t == ua.TypeIDVariant { // any type will do
			return anyOf(v)
		}
		return unfit()
	}
	s := v.Text()
	switch t {
	case ua.TypeIDString, ua.TypeIDVariant:
		return s, nil
	case ua.TypeIDDateTime:
		at, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			return nil, fmt.Errorf("takes a time such as 2026-03-01T12:00:00Z, not %q", s)
		}
		return at.UTC(), nil
	case ua.TypeIDByteString:
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			return nil, fmt.Errorf("takes bytes in base64, not %q", s)
		}
		return b, nil
	case ua.TypeIDGUID:
		if g := ua.NewGUID(s); g != nil && len(s) == 36 {
			return g, nil
		}
	case ua.TypeIDLocalizedText:
		return ua.NewLocalizedText(s), nil
	case ua.TypeIDQualifiedName:
		return &ua.QualifiedName{Name: s}, nil
	case ua.TypeIDXMLElement:
		return ua.XMLElement(s), nil
	}
	return unfit()
}

// anyOf is a value in the type that it has here.
func anyOf(v adapters.Value) (any, error) {
	switch v.Kind() {
	case adapters.KindBool:
		return v.Bool(), nil
	case adapters.KindInt, adapters.KindInt64:
		return v.Int64(), nil
	case adapters.KindUint64:
		return v.Uint64(), nil
	case adapters.KindFloat32:
		return v.Float32(), nil
	case adapters.KindFloat64:
		f, _ := v.Float64()
		return f, nil
	}
	return nil, fmt.Errorf("takes a single value, not %s", v)
}

// integerOf is a number as an integer, if it is one and fits.
func integerOf(t ua.TypeID, v adapters.Value, least, most int64) (int64, error) {
	var i int64
	switch v.Kind() {
	case adapters.KindInt, adapters.KindInt64:
		i = v.Int64()
	case adapters.KindUint64:
		if v.Uint64() > math.MaxInt64 {
			return 0, fmt.Errorf("%s does not fit into a %s", v, typeName(t))
		}
		i = int64(v.Uint64())
	default:
		f, ok := v.Float64()
		if !ok || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
			return 0, fmt.Errorf("takes a whole number, not %s", v)
		}
		i = int64(f)
	}
	if i < least || i > most {
		return 0, fmt.Errorf("%s does not fit into a %s", v, typeName(t))
	}
	return i, nil
}
