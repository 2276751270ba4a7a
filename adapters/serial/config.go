package serial

import (
	"log/slog"
	"regexp"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/serial/port"
)

// Config describes one line and the devices on it. They are all asked, or all talk
// unasked and then have the same Frame.
type Config struct {
	Name string // of the link, for people

	Port    string        // the path of a serial port, or empty
	Address string        // host:port of a serial server
	Line    port.Settings // of the port

	Timeout time.Duration // for an answer to begin, and for a pause in it; 0 is 1 s
	Retries int           // more attempts at a poll that failed, of a device that was well before
	Settle  time.Duration // wait after opening
	Pause   time.Duration // wait between requests

	Devices []Device
	Log     *slog.Logger // nil discards
}

// A Device is one thing on the line.
type Device struct {
	Device  *adapters.Device
	Every   time.Duration // of points that have none; 0 is 1 s; if it talks unasked, the shortest time between readings, 0 is none
	Steps   []Step        // before Request
	Request []byte        // empty, and no Steps: it talks unasked
	Silent  time.Duration // one that talks unasked is offline after so long without a message; 0 is never: it is online as long as the line is open
	Frame   Frame
	Match   *regexp.Regexp // what the text of a message matches; nil is anything
	Split   string         // what is between columns; empty: there are none
	Holds   []Hold         // bytes that a message has
	Points  []Point
}

// asked reports whether a device is asked.
func (d *Device) asked() bool { return len(d.Request) > 0 || len(d.Steps) > 0 }

// A Hold says that a message has certain bytes at a place; a negative one counts
// from behind the last byte.
type Hold struct {
	At   int
	Want []byte
}

// A Step is one thing to do before a device answers: what is not zero of it, in
// this order.
type Step struct {
	Send   []byte
	Expect []byte // what the answer begins with
	Frame  *Frame // of the answer; nil: Expect is all of it
	Baud   int    // the rate from then on, until the device is asked again
	Wait   time.Duration
}

// A Point is one value of a message, or a thing to tell the device. What it is, is
// said by one of Field, Column, Chars, At and Send.
//
// A raw number becomes a value in this order: Invalid, Range, Units, Scale, Offset,
// Decimals.
type Point struct {
	Point  *adapters.Point
	Field  string // a group of Match
	Column int    // of Split, from 1
	Chars  [2]int // the first and the last character of the text, from 1
	At     *int   // byte of the whole frame; a negative one counts from behind the last

	Type  Type
	Bytes int    // of a String at At
	Order Order  // of the bytes at At
	When  string // the value is true if the text is this; empty: it is the text

	Every    time.Duration // 0 is the device's
	Scale    float64       // 0 is 1
	Offset   float64
	Range    *Range
	Decimals *int      // rounds half away from zero; nil does not round
	Invalid  []float64 // raw numbers that say "no value"
	Bits     []Bit     // makes it a value of named bits
	Enum     map[int64]string
	UnitFrom string             // the group of Match, or the column as "3", that says the unit
	Units    map[string]float64 // what a value in such a unit is multiplied by; nil: the unit has to be Point.Unit

	Send   []byte // {value} in it stands for what is written
	Expect []byte // what the answer begins with; empty: none is awaited
	Write  *Write // limits of the value in Send

	Hidden bool // not emitted
}

// Range maps the raw numbers from Raw[0] to Raw[1] to the values from To[0] to
// To[1], in a straight line that goes on past both ends.
type Range struct {
	Raw, To [2]float64
}

// A Bit names one bit of an integer; 0 is the lowest.
type Bit struct {
	Bit  int
	Name string
}

// Write limits what may be written.
type Write struct {
	Min, Max *float64
	Values   []float64
}

// Order is the order of the bytes of a number, with A the highest; for 64 bits it
// says likewise whether the words, and the bytes in each word, are reversed.
type Order uint8

const (
	ABCD Order = iota
	CDAB
	BADC
	DCBA
)

var orderNames = [...]string{"ABCD", "CDAB", "BADC", "DCBA"}

// ParseOrder returns the order of a name.
func ParseOrder(name string) (Order, bool) {
	for i, n := range orderNames {
		if n == name {
			return Order(i), true
		}
	}
	return 0, false
}

// Type is how a value is written in a message.
type Type uint8

const (
	String  Type = iota // in text, and of Bytes bytes elsewhere, cut at the first NUL; without spaces at its ends
	Bool                // 1, true, on, yes and their opposites; elsewhere a byte, of which anything but 0 is true
	Int64               // in text, digits
	Float64             // in text, digits with a point
	Hex                 // in text, hexadecimal digits
	Degrees             // in text, degrees, minutes and a letter as in NMEA 0183: 4807.038,N
	Int8                // from here on at a place of the frame
	Uint8
	Int16
	Uint16
	Int24
	Uint24
	Int32
	Uint32
	Int48
	Uint48
	Uint64
	Float32
	BCD8 // two decimal digits a byte
	BCD16
	BCD24
	BCD32
	BCD48
	BCD64
)

var types = [...]struct {
	name string
	size int // at a place of the frame; 0 in text only
	text bool
}{
	String: {"string", 0, true}, Bool: {"bool", 1, true}, Int64: {"int64", 8, true}, Float64: {"float64", 8, true},
	Hex: {"hex", 0, true}, Degrees: {"degrees", 0, true},
	Int8: {"int8", 1, false}, Uint8: {"uint8", 1, false}, Int16: {"int16", 2, false}, Uint16: {"uint16", 2, false},
	Int24: {"int24", 3, false}, Uint24: {"uint24", 3, false}, Int32: {"int32", 4, false}, Uint32: {"uint32", 4, false},
	Int48: {"int48", 6, false}, Uint48: {"uint48", 6, false}, Uint64: {"uint64", 8, false}, Float32: {"float32", 4, false},
	BCD8: {"bcd8", 1, false}, BCD16: {"bcd16", 2, false}, BCD24: {"bcd24", 3, false}, BCD32: {"bcd32", 4, false},
	BCD48: {"bcd48", 6, false}, BCD64: {"bcd64", 8, false},
}

// ParseType returns the type of a name.
func ParseType(name string) (Type, bool) {
	for t, w := range types {
		if w.name == name {
			return Type(t), true
		}
	}
	return 0, false
}

func (t Type) String() string { return types[t].name }

// integral reports whether values of a type are integers.
func (t Type) integral() bool { return t == Int64 || t == Hex || t >= Int8 && t != Float32 }
