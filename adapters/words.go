// Package adapters holds the words of the field and the contract of its links.
//
// A [Link] is one bus, one connection or one server with every device on it.
// It reads the devices' points and hands what it read to a [Sink]. The package
// also has what links of every protocol share: [Plan] merges points into
// requests, and a [Poller] decides what is asked when, keeps a dead device from
// costing the others their turn, and tells which devices are online.
//
// It knows no protocol, no topic, no payload and no broker.
package adapters

import "time"

// A Device is one thing in the field. It does not change while a link runs.
type Device struct {
	Name string            // unique on the site, the device level of its topics
	Type string            // the device-type level of its topics; may be empty
	Tags map[string]string // constants for topics and payloads; may be nil
}

// A Point is one thing that can be read from or written to a device. It does
// not change while a link runs.
type Point struct {
	Name string // unique in its device
	Unit string // of measurement, as "°C"; may be empty
}

// Quality says how far a value is to be believed. As in OPC UA Part 8 §A.4.3,
// the zero value is good.
type Quality uint8

const (
	Good      Quality = iota
	Uncertain         // a value came, but it is not known to be right
	Bad               // there is no value
)

func (q Quality) String() string {
	switch q {
	case Good:
		return "good"
	case Uncertain:
		return "uncertain"
	default:
		return "bad"
	}
}

// Why a value is not good, or why a device is offline. Protocols add their own,
// such as "exception-2" for a Modbus exception.
const (
	ReasonTimeout      = "timeout"         // no answer in time
	ReasonNotConnected = "not-connected"   // the link has no connection
	ReasonConnection   = "connection-lost" // the connection broke while the answer was awaited
	ReasonProtocol     = "protocol-error"  // what came is no answer to what was asked
	ReasonInternal     = "internal-error"  // our own fault
	ReasonInvalid      = "invalid"         // the device says that there is no value
	ReasonNotANumber   = "not-a-number"    // NaN or infinite
	ReasonNotText      = "not-text"        // a string that is no UTF-8
	ReasonNotInEnum    = "not-in-enum"     // a number without a name; quality Uncertain
)

// A Sample is one value of one point. Its time is that of its reading.
type Sample struct {
	Point   *Point
	Value   Value // none if the quality is Bad
	Quality Quality
	Reason  string // why it is not Good; empty if it is
}

// A Reading is what one poll of one device brought: the points of one rate.
// Samples that are not good are in it too.
type Reading struct {
	Device  *Device
	Time    time.Time // when the last answer came; with no answer, when that was known
	Samples []Sample

	Unsynced bool // Time is of a clock that is not known to be right; for the sink to say
}

// A Status says that a device came online or went offline.
type Status struct {
	Device *Device
	Online bool
	Reason string // why it is offline; empty if it is online
	Time   time.Time

	Unsynced bool // as in Reading
}
