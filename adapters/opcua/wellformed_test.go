package opcua

import (
	"bytes"
	"encoding/binary"
	"math"
	"testing"
	"time"

	"github.com/gopcua/opcua/id"
	"github.com/gopcua/opcua/ua"
)

// header is that of an answer.
func header() *ua.ResponseHeader {
	return &ua.ResponseHeader{Timestamp: time.Now(), ServiceDiagnostics: &ua.DiagnosticInfo{}, StringTable: []string{}, AdditionalHeader: ua.NewExtensionObject(nil)}
}

// readAnswer is the answer to a read.
func readAnswer(values ...any) *ua.ReadResponse {
	r := &ua.ReadResponse{ResponseHeader: header(), DiagnosticInfos: []*ua.DiagnosticInfo{{EncodingMask: ua.DiagnosticInfoInnerDiagnosticInfo, InnerDiagnosticInfo: &ua.DiagnosticInfo{}}}}
	for _, v := range values {
		r.Results = append(r.Results, dataValue(v))
	}
	return r
}

// someValues are of every type.
func someValues() []any {
	return []any{
		true, int8(-1), uint8(2), int16(-3), uint16(4), int32(-5), uint32(6), int64(-7), uint64(8), float32(1.5), 2.5, math.NaN(), "text", time.Now(), ua.NewGUID("72962B91-FA75-4AE6-8D28-B404DC7DAF63"),
		[]byte{1, 2}, ua.XMLElement("<a/>"), ua.NewStringNodeID(2, "x"), ua.NewNumericExpandedNodeID(1, 70000), ua.StatusBadTimeout, &ua.QualifiedName{Name: "q"}, ua.NewLocalizedTextWithLocale("text", "en"),
		ua.NewExtensionObject(&ua.Range{Low: 1, High: 2}), []int32{1, 2, 3}, [][]float64{{1, 2}, {3, 4}}, []string{"a", ""}, ua.ByteArray{1, 2}, ua.MustVariant(int32(5)), []*ua.Variant{ua.MustVariant("x")},
		&ua.DataValue{EncodingMask: ua.DataValueValue, Value: ua.MustVariant(int32(1))},
	}
}

func encoded(t testing.TB, res any) []byte {
	t.Helper()
	b, err := encodeService(res)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// someAnswers are what servers answer.
func someAnswers(t testing.TB) [][]byte {
	n := &ua.DataChangeNotification{DiagnosticInfos: []*ua.DiagnosticInfo{}}
	for i, v := range someValues() {
		n.MonitoredItems = append(n.MonitoredItems, &ua.MonitoredItemNotification{ClientHandle: uint32(i), Value: dataValue(v)})
	}
	return [][]byte{
		encoded(t, readAnswer(someValues()...)),
		encoded(t, &ua.ServiceFault{ResponseHeader: header()}),
		encoded(t, &ua.PublishResponse{ResponseHeader: header(), SubscriptionID: 1, NotificationMessage: &ua.NotificationMessage{NotificationData: []*ua.ExtensionObject{ua.NewExtensionObject(n)}}}),
		encoded(t, &ua.GetEndpointsResponse{ResponseHeader: header(), Endpoints: []*ua.EndpointDescription{{
			EndpointURL: "opc.tcp://x", Server: &ua.ApplicationDescription{ApplicationName: ua.NewLocalizedText("x")}, UserIdentityTokens: []*ua.UserTokenPolicy{{PolicyID: "a"}},
		}}}),
		encoded(t, &ua.BrowseResponse{ResponseHeader: header(), Results: []*ua.BrowseResult{{References: []*ua.ReferenceDescription{{
			ReferenceTypeID: ua.NewTwoByteNodeID(35), NodeID: ua.NewStringExpandedNodeID(1, "x"), BrowseName: &ua.QualifiedName{Name: "x"}, DisplayName: ua.NewLocalizedText("x"), TypeDefinition: ua.NewTwoByteExpandedNodeID(0),
		}}}}}),
	}
}

func TestWellFormedTakesWhatServersSay(t *testing.T) {
	for i, b := range someAnswers(t) {
		if err := wellFormed(b); err != nil {
			t.Errorf("answer %d: %v", i, err)
			continue
		}
		if _, err := decodeResponse(b); err != nil {
			t.Errorf("answer %d: %v", i, err)
		}
	}
}

// TestWellFormedRefuses tries what the library's decoder does not survive, or takes
// gigabytes for.
func TestWellFormedRefuses(t *testing.T) {
	read := encoded(t, readAnswer(int32(0x11223344)))
	at := bytes.Index(read, []byte{byte(ua.TypeIDInt32), 0x44, 0x33, 0x22, 0x11}) // the value
	if at < 0 {
		t.Fatal("the value is not where it was expected")
	}
	with := func(value ...byte) []byte { return append(bytes.Clone(read[:at]), value...) }
	le := func(n uint32) []byte { return binary.LittleEndian.AppendUint32(nil, n) }
	array := func(mask byte, n uint32, rest ...byte) []byte {
		return with(append(append([]byte{mask}, le(n)...), rest...)...)
	}
	deepObject := []byte{}
	for range 100 { // a DataValue in a variant, again and again
		deepObject = append(deepObject, byte(ua.TypeIDDataValue), ua.DataValueValue)
	}
	diagnostic := encoded(t, &ua.ServiceFault{ResponseHeader: header()})
	diagnostic = append(diagnostic[:4+8+4+4:4+8+4+4], bytes.Repeat([]byte{ua.DiagnosticInfoInnerDiagnosticInfo}, 50_000)...)
	for name, b := range map[string][]byte{
		"nothing":                      nil,
		"an unknown message":           {1, 0, 0xff, 0xff},
		"a message cut short":          read[:len(read)-10],
		"variants in variants":         with(bytes.Repeat([]byte{byte(ua.TypeIDVariant)}, 50_000)...),
		"values in values":             with(deepObject...),
		"diagnostics in diagnostics":   diagnostic,
		"an array of 2^31":             array(byte(ua.TypeIDInt32)|ua.VariantArrayValues, 1<<31),
		"an array of -2":               array(byte(ua.TypeIDInt32)|ua.VariantArrayValues, 0xfffffffe),
		"an array of too much":         array(byte(ua.TypeIDBoolean)|ua.VariantArrayValues, 60_000),
		"a value of an unknown type":   with(26),
		"a string of 2^31":             array(byte(ua.TypeIDString), 1<<31),
		"dimensions that overflow":     array(byte(ua.TypeIDInt32)|ua.VariantArrayValues|ua.VariantArrayDimensions, 0, append(append(le(2), le(65536)...), le(65536)...)...),
		"more dimensions than numbers": array(byte(ua.TypeIDByte)|ua.VariantArrayValues|ua.VariantArrayDimensions, 2, append([]byte{1, 2}, append(le(1), le(3)...)...)...),
		"2^30 results":                 append(bytes.Clone(read[:bytes.Index(read, []byte{1, 0, 0, 0, ua.DataValueValue | ua.DataValueSourceTimestamp | ua.DataValueServerTimestamp})]), le(1<<30)...),
	} {
		if err := wellFormed(b); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzResponse(f *testing.F) {
	for _, b := range someAnswers(f) {
		f.Add(b)
	}
	plain := newConverter(&Point{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > maxMessage {
			return
		}
		res, err := decodeResponse(b) // a panic in the library is one here
		if err != nil {
			return
		}
		switch r := res.(type) {
		case *ua.ReadResponse:
			for _, dv := range r.Results {
				checkTold(t, plain.take(dv, time.Unix(1e9, 0)))
			}
		case *ua.PublishResponse:
			if r.NotificationMessage == nil {
				return
			}
			for _, o := range r.NotificationMessage.NotificationData {
				if n, ok := o.Value.(*ua.DataChangeNotification); ok {
					for _, m := range n.MonitoredItems {
						checkTold(t, plain.take(m.Value, time.Unix(1e9, 0)))
					}
				}
			}
		}
	})
}

// TestTypesAreKnown guards the trick by which the library's types are found.
func TestTypesAreKnown(t *testing.T) {
	if got := serviceType(id.ReadResponse_Encoding_DefaultBinary); got == nil || got.Name() != "ReadResponse" {
		t.Errorf("the type of the answer to a read is %v", got)
	}
	if got := objectType(id.DataChangeNotification_Encoding_DefaultBinary); got == nil || got.Name() != "DataChangeNotification" {
		t.Errorf("the type of a notification is %v", got)
	}
	if serviceType(0xffff) != nil || objectType(0xffff) != nil || serviceType(1<<20) != nil {
		t.Error("there are types for ids that nobody has")
	}
}
