package config

import (
	"regexp"
	"time"
)

// Adapter is one bus, one connection or one server with every device on it.
// One of Modbus, OPCUA, Serial and MQTT says what it speaks.
type Adapter struct {
	Pos     Pos
	Name    string
	Modbus  *Modbus
	OPCUA   *OPCUA
	Serial  *Serial
	MQTT    bool     // its devices speak to the local broker themselves
	Devices []Device // in the order of the file, ranges expanded
}

// Modbus is how an adapter reaches Modbus devices.
type Modbus struct {
	Pos          Pos
	Transport    string // "tcp", "tcp+tls", "udp", "rtu", "rtuovertcp", "rtuoverudp" or "rtuovertcp-listen"
	Address      string // host:port, or the path of a port; empty: each device has its own
	TLS          *ClientTLS
	Line         Line // of rtu
	Timeout      time.Duration
	Retries      int
	Settle       time.Duration // wait after connecting
	Pause        time.Duration // wait between requests
	MaxGap       int
	MaxRegisters int
	MaxBits      int

	perDevice bool // each device has its own address
}

// ClientTLS is what we show and trust as a client. File names are absolute.
type ClientTLS struct {
	Pos           Pos
	CA, Cert, Key string
}

// OPCUA is how an adapter reaches an OPC UA server.
type OPCUA struct {
	Pos       Pos
	Endpoint  string // opc.tcp://host:port/path
	Policy    string // "None", "Basic256Sha256", "Aes128_Sha256_RsaOaep" or "Aes256_Sha256_RsaPss"
	Mode      string // "None", "Sign" or "SignAndEncrypt"
	Cert, Key string // files, absolute
	Trust     string // folder of trusted certificates, absolute
	User      *OPCUAUser
	Poll      bool // read by polling, else by subscription
}

// OPCUAUser is who we are to the server: a name and password, or a certificate.
type OPCUAUser struct {
	Pos       Pos
	Name      string
	Password  Secret
	Cert, Key string // files, absolute
}

// Serial is how an adapter reaches devices on a serial line.
type Serial struct {
	Pos     Pos
	Port    string // path of a port, or empty
	Address string // host:port of a serial server, or empty
	Line    Line
	Timeout time.Duration
	Retries int
	Settle  time.Duration // wait after opening
	Pause   time.Duration // wait between requests
}

// Line is how a serial port is set.
type Line struct {
	Pos      Pos
	Baud     int
	DataBits int    // 7 or 8
	Parity   string // "none", "even" or "odd"
	StopBits int    // 1 or 2
	RS485    *RS485 // nil: the transceiver switches itself
}

// RS485 is how the direction of a line is switched.
type RS485 struct {
	Pos           Pos
	RTS           bool // the level of RTS while sending
	Before, After time.Duration
}

// Device is one thing in the field, its profile merged in.
type Device struct {
	Pos     Pos
	ID      string // for MQTT it may be a pattern with *
	Type    string // may be empty, as Zone, if no bridge's topic needs it
	Zone    string
	Profile string            // may be empty
	Tags    map[string]string // may be nil
	Every   time.Duration     // of points that have none of their own; for OPC UA the publishing interval
	Data    []DataOverride
	Points  []Point // in the order of the file; devices that are alike share them
	Alerts  []Alert
	Actions []Action

	// Modbus
	Address      string // host:port; the adapter's, or its own
	UnitID       uint8
	MaxRegisters int
	MaxBits      int

	// OPC UA
	Sampling time.Duration

	// Serial
	Request  string // the bytes, as all that is sent; empty, and no Steps: it talks unasked, and Every may be 0
	Steps    []SerialStep
	Silent   time.Duration // 0 is never
	Frame    Frame
	Match    *regexp.Regexp // nil: none
	Split    string         // between columns; empty: there are none
	Holds    []Hold         // in the order of their places
	Simulate string         // a message, for fieldferry simulate; may be empty

	broken   bool // it could not be read
	badType  bool // it has one, which is no good
	badUnit  bool // its unit id is not known
	badMatch bool // it has one, which is no good
}

// Frame says where a message of a serial device begins and ends.
type Frame struct {
	Pos      Pos
	Start    string // bytes, as all that is sent or received
	End      string
	Tail     int    // bytes behind the end
	Escape   string // one byte
	Invert   byte
	Length   int
	LengthAt *LengthAt // nil: it does not say its length
	Idle     time.Duration
	Max      int
	Check    *FrameCheck // nil: none
}

// LengthAt is where a message says how long it is.
type LengthAt struct {
	At       int
	Size     int // 1 or 2 bytes
	LowFirst bool
	Plus     int
}

// FrameCheck is the check of a message. What is nil is where such checks mostly
// are.
type FrameCheck struct {
	Kind     string // "xor", "sum8", "lrc", "crc16", "ccitt", "xmodem", "x25" or "ean"
	Over     *[2]int
	At       *int
	Hex      bool
	LowFirst *bool
}

// Hold is a place of a message that has certain bytes.
type Hold struct {
	At   int
	Want string
}

// SerialStep is one thing to do before a device answers, in this order.
type SerialStep struct {
	Send, Expect string
	Frame        *Frame // of the answer; nil: Expect is all of it
	Baud         int    // 0: as it is
	Wait         time.Duration
	Reply        string // of a simulated device; empty: Expect
}

// Point is one value, or one array of values, of a device. One of Modbus,
// OPCUA and Serial says where it is.
type Point struct {
	Pos    Pos
	Name   string
	Modbus *ModbusPoint
	OPCUA  *OPCUAPoint
	Serial *SerialPoint

	Unit      string
	Every     time.Duration // resolved: its own or the device's
	Scale     float64       // default 1
	Offset    float64
	Decimals  *int // nil does not round
	Range     *Range
	ScaleBy   string   // the point of this device with the power of ten
	Invalid   []Number // raw numbers that say "no value"
	Bits      []Bit    // the lowest first
	Enum      map[int64]string
	Deadband  float64       // a change up to it is none
	Relative  bool          // Deadband is a part of the value that was sent last
	Heartbeat time.Duration // a value is repeated at least that often; 0 is never
	Hidden    bool          // publish: false
	Write     *Write        // nil: read only

	broken bool // it could not be read
}

// ModbusPoint is where a value is in a Modbus device.
type ModbusPoint struct {
	Table   string // "holding", "input", "coil" or "discrete"
	Address uint16 // from 0, as on the wire
	As      string // "bool", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64", "string", "bcd16" or "bcd32"
	Order   string // "ABCD", "CDAB", "BADC" or "DCBA"
	Bytes   int    // of a string
	Count   int    // above 0: an array of so many
}

// OPCUAPoint is a variable or a method of an OPC UA server. The ids are whole
// node ids.
type OPCUAPoint struct {
	Node   string // of the variable; empty for a method
	Call   string // of the method
	Object string // that has the method
}

// SerialPoint is a value of what a serial device says, or a thing to tell it. One
// of Field, Column, Chars, At and Send says what.
type SerialPoint struct {
	Field    string // a group of the device's Match
	Column   int    // from 1
	Chars    [2]int // of the text, from 1
	At       *int   // byte of the whole message
	As       string // "string", "bool", "int64", "float64"; "hex" and "degrees" of text; the others at a place
	Bytes    int    // of a string at a place
	Order    string // "ABCD", "CDAB", "BADC" or "DCBA"
	When     string // the point is true if the text is this; empty: it is the text
	UnitFrom string // a group, or the number of a column; empty: none
	Units    map[string]float64
	Send     string
	Expect   string // a good answer to Send begins so; empty: none is waited for
}

// Range maps raw numbers to values in a straight line.
type Range struct{ Raw, To [2]float64 }

// Bit names one bit; 0 is the lowest.
type Bit struct {
	Bit  int
	Name string
}

// Write allows a point to be written, within limits.
type Write struct {
	Pos      Pos
	Min, Max *float64 // nil is no limit
	Values   []float64
	Pulse    time.Duration // after which the opposite is written; 0 is never
}

// Alert is published when a point is beyond a limit.
type Alert struct {
	Pos      Pos
	Name     string
	Point    string
	Above    *float64 // one of Above and Below is set
	Below    *float64
	Clear    float64
	For      time.Duration
	Critical bool   // severity, else warning
	Message  string // {value} is the value
}

// Action is a named sequence of steps that a command may ask for.
type Action struct {
	Pos   Pos
	Name  string
	Steps []Step
}

// Step writes points, in order, or waits.
type Step struct {
	Write []Assignment
	Wait  time.Duration
}

// Assignment gives a point a value.
type Assignment struct {
	Point string
	Value any // int64, uint64, float64, bool or string
}
