package opcua

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/gopcua/opcua/ua"
)

// Limits of what is decoded.
const (
	maxDepth    = 32    // of values in values
	maxElements = 65535 // of an array in a value, as the library has it
	maxDims     = 16
)

var (
	errShort = errors.New("the message ends in the middle of something")
	errDeep  = errors.New("the message has values in values too deep")
	errArray = errors.New("the message has an array with an impossible length")
)

// wellFormed looks through an encoded service message before the library decodes
// it. The library allocates arrays of the length that a message claims, and follows
// values in values until the stack ends, which no recover catches.
func wellFormed(b []byte) error {
	w := walker{b: b}
	id, err := w.nodeID(true)
	if err != nil {
		return err
	}
	t := serviceType(id)
	if t == nil {
		return fmt.Errorf("the message is of the unknown type i=%d", id)
	}
	return w.value(t)
}

// serviceTypes and objectTypes are the library's types by their ids. Ids that it
// does not know are not kept.
var serviceTypes, objectTypes sync.Map // uint32 -> reflect.Type

// serviceType returns the type of a message; nil if the library knows none.
func serviceType(id uint32) reflect.Type {
	if t, ok := serviceTypes.Load(id); ok {
		return t.(reflect.Type)
	}
	if id > 0xffff {
		return nil
	}
	// The library does not show its table; it makes a value before it fails to fill it.
	_, v, _ := ua.DecodeService(binary.LittleEndian.AppendUint16([]byte{1, 0}, uint16(id)))
	if v == nil {
		return nil
	}
	t := reflect.TypeOf(v).Elem()
	serviceTypes.Store(id, t)
	return t
}

// objectType returns the type of an extension object; nil if the library knows none.
func objectType(id uint32) reflect.Type {
	if t, ok := objectTypes.Load(id); ok {
		return t.(reflect.Type)
	}
	if id > 0xffff {
		return nil
	}
	var o ua.ExtensionObject
	b := binary.LittleEndian.AppendUint16([]byte{1, 0}, uint16(id))
	_, _ = o.Decode(append(b, ua.ExtensionObjectBinary, 1, 0, 0, 0, 0))
	if o.Value == nil {
		return nil
	}
	t := reflect.TypeOf(o.Value).Elem()
	objectTypes.Store(id, t)
	return t
}

// The types that the library decodes by methods of their own.
var (
	typeDataValue      = reflect.TypeFor[ua.DataValue]()
	typeDiagnosticInfo = reflect.TypeFor[ua.DiagnosticInfo]()
	typeExpandedNodeID = reflect.TypeFor[ua.ExpandedNodeID]()
	typeObject         = reflect.TypeFor[ua.ExtensionObject]()
	typeGUID           = reflect.TypeFor[ua.GUID]()
	typeLocalizedText  = reflect.TypeFor[ua.LocalizedText]()
	typeNodeID         = reflect.TypeFor[ua.NodeID]()
	typeTime           = reflect.TypeFor[time.Time]()
	typeVariant        = reflect.TypeFor[ua.Variant]()
)

// A walker goes through an encoded message. OPC UA Part 6 §5.2.2.
type walker struct {
	b     []byte // what is left
	depth int
}

func (w *walker) skip(n int) error {
	if n < 0 || n > len(w.b) {
		return errShort
	}
	w.b = w.b[n:]
	return nil
}

func (w *walker) byte() (byte, error) {
	if len(w.b) == 0 {
		return 0, errShort
	}
	c := w.b[0]
	w.b = w.b[1:]
	return c, nil
}

func (w *walker) uint32() (uint32, error) {
	if len(w.b) < 4 {
		return 0, errShort
	}
	n := binary.LittleEndian.Uint32(w.b)
	w.b = w.b[4:]
	return n, nil
}

// text skips a string or a byte string.
func (w *walker) text() error {
	n, err := w.uint32()
	if err != nil || n == 0xffffffff {
		return err
	}
	if n > uint32(len(w.b)) {
		return errShort
	}
	return w.skip(int(n))
}

// deeper goes one value in a value deeper.
func (w *walker) deeper(f func() error) error {
	if w.depth++; w.depth > maxDepth {
		return errDeep
	}
	err := f()
	w.depth--
	return err
}

func (w *walker) value(t reflect.Type) error {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t {
	case typeTime:
		return w.skip(8)
	case typeGUID:
		return w.skip(16)
	case typeNodeID:
		_, err := w.nodeID(false)
		return err
	case typeExpandedNodeID:
		_, err := w.nodeID(true)
		return err
	case typeLocalizedText:
		return w.localizedText()
	case typeVariant:
		return w.deeper(w.variant)
	case typeDataValue:
		return w.deeper(w.dataValue)
	case typeObject:
		return w.deeper(w.object)
	case typeDiagnosticInfo:
		return w.deeper(w.diagnosticInfo)
	}
	switch t.Kind() {
	case reflect.Bool, reflect.Int8, reflect.Uint8:
		return w.skip(1)
	case reflect.Int16, reflect.Uint16:
		return w.skip(2)
	case reflect.Int32, reflect.Uint32, reflect.Float32:
		return w.skip(4)
	case reflect.Int64, reflect.Uint64, reflect.Float64:
		return w.skip(8)
	case reflect.String:
		return w.text()
	case reflect.Slice:
		return w.slice(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			if err := w.value(t.Field(i).Type); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("the message has a %s, which nothing is known of", t)
}

func (w *walker) slice(of reflect.Type) error {
	if of.Kind() == reflect.Uint8 {
		return w.text()
	}
	n, err := w.uint32()
	if err != nil || n == 0xffffffff {
		return err
	}
	if n > uint32(len(w.b)) { // each takes a byte at least
		return errArray
	}
	for range n {
		if err := w.value(of); err != nil {
			return err
		}
	}
	return nil
}

// nodeID returns the number of a numeric id in namespace 0, and 0 for any other.
func (w *walker) nodeID(expanded bool) (id uint32, err error) {
	mask, err := w.byte()
	if err != nil {
		return 0, err
	}
	ns := uint16(0)
	switch mask & 0xf {
	case 0:
		c, err := w.byte()
		if err != nil {
			return 0, err
		}
		id = uint32(c)
	case 1:
		if len(w.b) < 3 {
			return 0, errShort
		}
		ns, id = uint16(w.b[0]), uint32(binary.LittleEndian.Uint16(w.b[1:]))
		err = w.skip(3)
	case 2:
		if len(w.b) < 6 {
			return 0, errShort
		}
		ns, id = binary.LittleEndian.Uint16(w.b), binary.LittleEndian.Uint32(w.b[2:])
		err = w.skip(6)
	case 3, 5:
		if err = w.skip(2); err == nil {
			err = w.text()
		}
	case 4:
		err = w.skip(18)
	default:
		return 0, fmt.Errorf("the message has a node id of the unknown kind %d", mask&0xf)
	}
	if err == nil && expanded && mask&0x80 != 0 {
		err = w.text()
	}
	if err == nil && expanded && mask&0x40 != 0 {
		err = w.skip(4)
	}
	if ns != 0 {
		id = 0
	}
	return id, err
}

func (w *walker) localizedText() error {
	mask, err := w.byte()
	if err == nil && mask&ua.LocalizedTextLocale != 0 {
		err = w.text()
	}
	if err == nil && mask&ua.LocalizedTextText != 0 {
		err = w.text()
	}
	return err
}

func (w *walker) dataValue() error {
	mask, err := w.byte()
	if err == nil && mask&ua.DataValueValue != 0 {
		err = w.value(typeVariant)
	}
	for _, f := range []struct {
		bit  byte
		size int
	}{{ua.DataValueStatusCode, 4}, {ua.DataValueSourceTimestamp, 8}, {ua.DataValueSourcePicoseconds, 2}, {ua.DataValueServerTimestamp, 8}, {ua.DataValueServerPicoseconds, 2}} {
		if err == nil && mask&f.bit != 0 {
			err = w.skip(f.size)
		}
	}
	return err
}

func (w *walker) diagnosticInfo() error {
	mask, err := w.byte()
	for _, bit := range []byte{ua.DiagnosticInfoSymbolicID, ua.DiagnosticInfoNamespaceURI, ua.DiagnosticInfoLocale, ua.DiagnosticInfoLocalizedText} {
		if err == nil && mask&bit != 0 {
			err = w.skip(4)
		}
	}
	if err == nil && mask&ua.DiagnosticInfoAdditionalInfo != 0 {
		err = w.text()
	}
	if err == nil && mask&ua.DiagnosticInfoInnerStatusCode != 0 {
		err = w.skip(4)
	}
	if err == nil && mask&ua.DiagnosticInfoInnerDiagnosticInfo != 0 {
		err = w.value(typeDiagnosticInfo)
	}
	return err
}

func (w *walker) object() error {
	id, err := w.nodeID(true)
	if err != nil {
		return err
	}
	mask, err := w.byte()
	if err != nil || mask == ua.ExtensionObjectEmpty {
		return err
	}
	n, err := w.uint32()
	if err != nil || n == 0 || n == 0xffffffff {
		return err
	}
	if n > uint32(len(w.b)) {
		return errShort
	}
	body := walker{b: w.b[:n], depth: w.depth}
	w.b = w.b[n:]
	if mask == ua.ExtensionObjectXML {
		return body.text()
	}
	if id == 0 {
		return nil // the library passes it over
	}
	if t := objectType(id); t != nil {
		return body.value(t)
	}
	return nil
}

// scalarTypes are the types of a single value. OPC UA Part 6 §5.1.2.
var scalarTypes = map[ua.TypeID]reflect.Type{
	ua.TypeIDBoolean: reflect.TypeFor[bool](), ua.TypeIDSByte: reflect.TypeFor[int8](), ua.TypeIDByte: reflect.TypeFor[uint8](),
	ua.TypeIDInt16: reflect.TypeFor[int16](), ua.TypeIDUint16: reflect.TypeFor[uint16](), ua.TypeIDInt32: reflect.TypeFor[int32](),
	ua.TypeIDUint32: reflect.TypeFor[uint32](), ua.TypeIDInt64: reflect.TypeFor[int64](), ua.TypeIDUint64: reflect.TypeFor[uint64](),
	ua.TypeIDFloat: reflect.TypeFor[float32](), ua.TypeIDDouble: reflect.TypeFor[float64](), ua.TypeIDString: reflect.TypeFor[string](),
	ua.TypeIDDateTime: typeTime, ua.TypeIDGUID: typeGUID, ua.TypeIDByteString: reflect.TypeFor[[]byte](), ua.TypeIDXMLElement: reflect.TypeFor[string](),
	ua.TypeIDNodeID: typeNodeID, ua.TypeIDExpandedNodeID: typeExpandedNodeID, ua.TypeIDStatusCode: reflect.TypeFor[uint32](),
	ua.TypeIDQualifiedName: reflect.TypeFor[ua.QualifiedName](), ua.TypeIDLocalizedText: typeLocalizedText, ua.TypeIDExtensionObject: typeObject,
	ua.TypeIDDataValue: typeDataValue, ua.TypeIDVariant: typeVariant, ua.TypeIDDiagnosticInfo: typeDiagnosticInfo,
}

func (w *walker) variant() error {
	mask, err := w.byte()
	if err != nil || mask&0x3f == 0 {
		return err
	}
	t, ok := scalarTypes[ua.TypeID(mask&0x3f)]
	if !ok {
		return fmt.Errorf("the message has a value of the unknown type %d", mask&0x3f)
	}
	if mask&ua.VariantArrayValues == 0 {
		return w.value(t)
	}
	n, err := w.uint32()
	if err != nil {
		return err
	}
	if n != 0xffffffff {
		if n > maxElements || n > uint32(len(w.b)) {
			return errArray
		}
		for range n {
			if err := w.value(t); err != nil {
				return err
			}
		}
	}
	if mask&ua.VariantArrayDimensions == 0 {
		return nil
	}
	dims, err := w.uint32()
	if err != nil {
		return err
	}
	if dims > maxDims {
		return errArray
	}
	product := uint64(1)
	for range dims {
		d, err := w.uint32()
		if err != nil {
			return err
		}
		if d < 1 || d > maxElements {
			return errArray
		}
		if product *= uint64(d); product > maxElements {
			return errArray
		}
	}
	if dims > 0 && (n == 0xffffffff || product != uint64(n)) {
		return errArray
	}
	return nil
}
