package modbus

import (
	"log/slog"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

// Config describes one connection and the units behind it. A site whose
// devices have a host each has a Config for each.
type Config struct {
	Name string // of the link, for people

	// How the devices are reached: "tcp" (also if empty), "tcp+tls", "udp", "rtu",
	// "rtuovertcp", "rtuoverudp" or "rtuovertcp-listen". Address is host:port, the
	// path of a port for rtu, and where to listen for the last.
	Transport string
	Address   string
	TLS       *TLSFiles // of tcp+tls
	Line      Line      // of rtu

	Timeout time.Duration // for one answer; 0 is 1 s
	Retries int           // more attempts at a poll that failed, of a device that was well before
	Settle  time.Duration // wait after connecting
	Pause   time.Duration // wait between requests
	MaxGap  int           // registers, and bits, that may be read in vain to save a request; 0 is none

	// The longest requests, where a device does not say otherwise.
	// 0 is the standard's 125 registers (Modbus Application Protocol 1.1b3
	// §6.3, §6.4) and 2000 bits (§6.1, §6.2), which is also the most.
	MaxRegisters int
	MaxBits      int

	Devices []Device
	Log     *slog.Logger // nil discards
}

// TLSFiles are the PEM files that a TLS connection is made with. They are read for
// each connection.
type TLSFiles struct {
	CA        string // the authorities of the device's certificate
	Cert, Key string // ours
}

// A Device is one unit, or one part of a unit: several devices may have the
// same unit id.
type Device struct {
	Device       *adapters.Device
	UnitID       uint8
	Every        time.Duration // 0 is 1 s
	MaxRegisters int           // 0 is the connection's
	MaxBits      int           // 0 is the connection's
	Points       []Point
}

// Table is one of the four kinds of data of a unit. Modbus Application Protocol
// 1.1b3 §4.3.
type Table uint8

const (
	Holding  Table = iota // 16-bit registers, function 3
	Input                 // 16-bit registers, function 4
	Coil                  // bits, function 1
	Discrete              // bits, function 2
)

// Type is how registers are read.
type Type uint8

const (
	Auto    Type = iota // uint16 in registers, bool in bits
	Bool                // in a register: anything but 0 is true
	Int16               //
	Uint16              //
	Int32               //
	Uint32              //
	Int64               //
	Uint64              //
	Float16             // IEEE 754 binary16
	Float32             //
	Float64             //
	String              // Bytes bytes, cut at the first NUL, without trailing spaces
	BCD16               // 4 decimal digits
	BCD32               // 8 decimal digits
)

// Order is the order of the bytes of a value that spans registers, with A the
// highest. For 64 bits it says likewise whether the words, and the bytes in
// each word, are reversed; for 16 bits and strings only the latter matters.
type Order uint8

const (
	ABCD Order = iota // as the standard has it
	CDAB              // words reversed
	BADC              // bytes in each word reversed
	DCBA              // both
)

// A Point is one value, or one array of values, of a device.
//
// A raw number becomes a value in this order: invalid and not-a-number checks,
// Range, ScaleBy, Scale, Offset, Decimals.
type Point struct {
	Point   *adapters.Point
	Table   Table
	Address uint16 // from 0
	Type    Type
	Order   Order
	Bytes   int           // length of a string, 1 to 250
	Count   int           // above 0, an array of so many values one after the other
	Every   time.Duration // 0 is the device's

	Scale    float64 // 0 is 1
	Offset   float64
	Range    *Range
	ScaleBy  string           // the point of this device with the power of ten, as in SunSpec
	Decimals *int             // rounds half away from zero to so many decimals, 0 to 15; nil does not round
	Invalid  []adapters.Value // raw numbers that say "no value"; NaN and infinity always do
	Bits     []Bit            // makes it a value of named bits
	Enum     map[int64]string // makes it a string; a number that is not in it is uncertain

	Write *Write // nil: it may not be written

	Hidden bool // read for the ScaleBy of others, not emitted
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
