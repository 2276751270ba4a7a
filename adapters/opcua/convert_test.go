package opcua

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/gopcua/opcua/ua"

	"github.com/fieldferry/fieldferry/adapters"
)

// checkTold checks what a sample promises.
func checkTold(t *testing.T, v told) {
	t.Helper()
	if (v.value.Kind() == adapters.KindNone) != (v.quality == adapters.Bad) {
		t.Errorf("value %v, quality %v", v.value, v.quality)
	}
	if (v.reason == "") != (v.quality == adapters.Good) {
		t.Errorf("quality %v, reason %q", v.quality, v.reason)
	}
	if f, ok := v.value.Float64(); ok && (math.IsNaN(f) || math.IsInf(f, 0)) {
		t.Errorf("%v is shown", f)
	}
	if v.time.IsZero() {
		t.Error("no time")
	}
}

func TestTake(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	source, server := now.Add(-2*time.Second), now.Add(-time.Second)
	one := 1
	for name, c := range map[string]struct {
		point Point
		v     any
		want  string
	}{
		"bool":              {Point{}, true, "true"},
		"sbyte":             {Point{}, int8(-7), "-7"},
		"int64":             {Point{}, int64(math.MaxInt64), "9223372036854775807"},
		"uint64":            {Point{}, uint64(math.MaxUint64), "18446744073709551615"},
		"float":             {Point{}, float32(0.1), "0.1"},
		"nan":               {Point{}, math.NaN(), "bad not-a-number"},
		"infinity":          {Point{}, float32(math.Inf(-1)), "bad not-a-number"},
		"nan in a list":     {Point{}, []float64{1, math.NaN()}, "bad not-a-number"},
		"text":              {Point{}, "grün", "grün"},
		"no utf-8":          {Point{}, "\xff", "bad not-text"},
		"time":              {Point{}, now, "2026-03-01T12:00:00Z"},
		"no time":           {Point{}, time.Time{}, "bad invalid"},
		"bytes":             {Point{}, []byte{1, 2, 3}, "AQID"},
		"byte array":        {Point{}, ua.ByteArray{1, 2}, "[1 2]"},
		"localized":         {Point{}, ua.NewLocalizedText("offen"), "offen"},
		"guid":              {Point{}, ua.NewGUID("72962B91-FA75-4AE6-8D28-B404DC7DAF63"), "72962B91-FA75-4AE6-8D28-B404DC7DAF63"},
		"node id":           {Point{}, ua.NewStringNodeID(2, "a"), "ns=2;s=a"},
		"status":            {Point{}, ua.StatusBadNodeIDUnknown, "BadNodeIdUnknown"},
		"matrix":            {Point{}, [][]int32{{1, 2}, {3, 4}}, "[[1 2] [3 4]]"},
		"structure":         {Point{}, ua.NewExtensionObject(&ua.Range{Low: 0, High: 10}), `{"Low":0,"High":10}`},
		"unknown structure": {Point{}, &ua.ExtensionObject{TypeID: ua.NewTwoByteExpandedNodeID(0)}, "bad unknown-structure"},
		"scaled integer":    {Point{Scale: 0.1}, int16(3), "0.3"},
		"scaled float":      {Point{Scale: 2, Offset: 1}, float32(1.5), "4"},
		"decimals":          {Point{Decimals: &one}, 1.25, "1.3"},
		"scaled int64":      {Point{Scale: 0.5}, int64(7), "3.5"},
		"scaled uint64":     {Point{Offset: 1}, uint64(7), "8"},
		"enum":              {Point{Enum: map[int64]string{2: "run"}}, int32(2), "run"},
		"not in enum":       {Point{Enum: map[int64]string{2: "run"}}, int32(3), "3 uncertain not-in-enum"},
		"list with enum":    {Point{Enum: map[int64]string{2: "run"}}, []int32{2, 3}, "[run 3] uncertain not-in-enum"},
		"nested variant":    {Point{}, ua.MustVariant(int32(5)), "5"},
	} {
		conv := newConverter(&c.point)
		got := conv.take(&ua.DataValue{EncodingMask: ua.DataValueValue | ua.DataValueSourceTimestamp | ua.DataValueServerTimestamp, Value: ua.MustVariant(c.v), SourceTimestamp: source, ServerTimestamp: server}, now)
		checkTold(t, got)
		show := got.value.String()
		if got.quality == adapters.Bad {
			show = "bad " + got.reason
		} else if got.quality == adapters.Uncertain {
			show += " uncertain " + got.reason
		}
		if show != c.want {
			t.Errorf("%s: %s, want %s", name, show, c.want)
		}
		if !got.time.Equal(source) {
			t.Errorf("%s: time %v, want that of the source", name, got.time)
		}
	}
}

func TestQuality(t *testing.T) {
	now := time.Now()
	plain := newConverter(&Point{})
	for _, c := range []struct {
		status ua.StatusCode
		null   bool
		want   adapters.Quality
		reason string
		down   bool
	}{
		{ua.StatusOK, false, adapters.Good, "", false},
		{ua.StatusGoodLocalOverride, false, adapters.Good, "", false},
		{ua.StatusOK | overflow, false, adapters.Good, "", false},
		{ua.StatusUncertainLastUsableValue, false, adapters.Uncertain, "UncertainLastUsableValue", false},
		{ua.StatusUncertainLastUsableValue, true, adapters.Bad, adapters.ReasonInvalid, false},
		{ua.StatusBadSensorFailure, false, adapters.Bad, "BadSensorFailure", true},
		{ua.StatusBadNodeIDUnknown, true, adapters.Bad, "BadNodeIdUnknown", true},
		{ua.StatusOK, true, adapters.Bad, adapters.ReasonInvalid, false},
		{0x80FF0000, true, adapters.Bad, "bad-0x80FF0000", true},
	} {
		dv := &ua.DataValue{EncodingMask: ua.DataValueValue | ua.DataValueStatusCode, Value: ua.MustVariant(1.0), Status: c.status}
		if c.null {
			dv.EncodingMask = ua.DataValueStatusCode
			dv.Value = &ua.Variant{}
		}
		got := plain.take(dv, now)
		checkTold(t, got)
		if got.quality != c.want || got.reason != c.reason || got.down != c.down || !got.time.Equal(now) {
			t.Errorf("%v: %+v, want %v %q", c.status, got, c.want, c.reason)
		}
	}
}

func TestEncode(t *testing.T) {
	ten := 10.0
	for _, c := range []struct {
		point Point
		typ   ua.TypeID
		array bool
		v     adapters.Value
		want  any // or part of the error
	}{
		{Point{}, ua.TypeIDBoolean, false, adapters.Int(1), true},
		{Point{}, ua.TypeIDBoolean, false, adapters.Int(2), "takes a Boolean"},
		{Point{}, ua.TypeIDByte, false, adapters.Int(255), uint8(255)},
		{Point{}, ua.TypeIDByte, false, adapters.Int(256), "does not fit into a Byte"},
		{Point{}, ua.TypeIDInt16, false, adapters.Float64(-3), int16(-3)},
		{Point{}, ua.TypeIDInt16, false, adapters.Float64(-3.5), "whole number"},
		{Point{}, ua.TypeIDUint64, false, adapters.Uint64(math.MaxUint64), uint64(math.MaxUint64)},
		{Point{}, ua.TypeIDInt64, false, adapters.Uint64(math.MaxUint64), "does not fit"},
		{Point{}, ua.TypeIDFloat, false, adapters.Float64(1e300), "does not fit"},
		{Point{}, ua.TypeIDDouble, false, adapters.Int(3), 3.0},
		{Point{Scale: 0.1}, ua.TypeIDInt16, false, adapters.Float64(24.5), int16(245)},
		{Point{Scale: 0.1}, ua.TypeIDInt16, false, adapters.Float64(24.55), "between two steps"},
		{Point{Enum: map[int64]string{1: "auto"}}, ua.TypeIDInt32, false, adapters.String("auto"), int32(1)},
		{Point{Enum: map[int64]string{1: "auto"}}, ua.TypeIDInt32, false, adapters.String("x"), "none of its names"},
		{Point{}, ua.TypeIDString, false, adapters.Int(1), "takes a String"},
		{Point{}, ua.TypeIDDateTime, false, adapters.String("yesterday"), "takes a time"},
		{Point{}, ua.TypeIDByteString, false, adapters.String("AQI="), []byte{1, 2}},
		{Point{}, ua.TypeIDInt32, true, adapters.List([]adapters.Value{adapters.Int(1)}), []int32{1}},
		{Point{}, ua.TypeIDByte, true, adapters.List([]adapters.Value{adapters.Int(1)}), ua.ByteArray{1}},
		{Point{}, ua.TypeIDInt32, true, adapters.Int(1), "takes a list"},
		{Point{}, ua.TypeIDInt32, false, adapters.List(nil), "takes a single"},
		{Point{}, ua.TypeIDVariant, false, adapters.Bool(true), true},
		{Point{}, ua.TypeIDExtensionObject, false, adapters.String("x"), "takes a Structure"},
		{Point{Write: &Write{Max: &ten}}, ua.TypeIDDouble, false, adapters.Int(11), "above its limit 10"},
		{Point{Write: &Write{Values: []float64{1, 2}}}, ua.TypeIDDouble, false, adapters.Int(3), "not among the values"},
		{Point{Write: &Write{}}, ua.TypeIDDouble, false, adapters.Float64(math.NaN()), "finite"},
	} {
		if c.point.Write == nil {
			c.point.Write = &Write{}
		}
		conv := newConverter(&c.point)
		err := c.point.allowed(c.v)
		var raw adapters.Value
		if err == nil {
			raw, err = conv.raw(c.typ, c.v)
		}
		var got *ua.Variant
		if err == nil {
			got, err = encode(c.typ, c.array, raw)
		}
		if err != nil {
			if want, ok := c.want.(string); !ok || !strings.Contains(err.Error(), want) {
				t.Errorf("%s as %s: %v, want %v", c.v, typeName(c.typ), err, c.want)
			}
			continue
		}
		a, _ := json.Marshal(got.Value())
		b, _ := json.Marshal(c.want)
		if string(a) != string(b) {
			t.Errorf("%s as %s: %v, want %v", c.v, typeName(c.typ), got.Value(), c.want)
		}
	}
	if err := (&Point{}).allowed(adapters.Int(1)); err == nil {
		t.Error("a point without write: may be written")
	}
}

func FuzzVariant(f *testing.F) {
	for _, v := range someValues() {
		b, err := ua.MustVariant(v).Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, 1.0, 0.0)
	}
	f.Fuzz(func(t *testing.T, b []byte, scale, offset float64) {
		if math.IsNaN(scale+offset) || math.IsInf(scale+offset, 0) {
			return
		}
		w := walker{b: b}
		if w.variant() != nil {
			return
		}
		var v ua.Variant
		n, err := v.Decode(b)
		if err != nil {
			return
		}
		if left := len(b) - n; left != len(w.b) {
			t.Fatalf("the library leaves %d bytes, we %d", left, len(w.b))
		}
		conv := newConverter(&Point{Scale: scale, Offset: offset})
		checkTold(t, conv.take(&ua.DataValue{EncodingMask: ua.DataValueValue, Value: &v}, time.Unix(1e9, 0)))
	})
}
