package opcua

import (
	"log/slog"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

// Config describes one server and what is read there.
type Config struct {
	Name     string // of the link, for people
	Gateway  string // the gateway's id, part of our ApplicationURI
	Endpoint string // opc.tcp://host:port/path

	// How the channel is secured: nothing less is accepted. Policy is "None" (also if
	// empty), "Basic256Sha256", "Aes128_Sha256_RsaOaep" or "Aes256_Sha256_RsaPss", Mode
	// is "None" (also if empty), "Sign" or "SignAndEncrypt". Cert and Key are the files
	// with our certificate, PEM or DER; they are made if neither is there.
	Policy, Mode string
	Cert, Key    string
	Trust        Trust

	User    *User         // nil is anonymous
	Poll    bool          // read in cycles, else be told of changes
	Timeout time.Duration // for one answer; 0 is 4 s

	Devices []Device
	Log     *slog.Logger // nil discards

	life time.Duration // of the channel's keys; 0 is an hour
}

// User is who we are to the server, beside the certificate of the channel: a name and
// password, or a certificate.
type User struct {
	Name      string
	Password  func() (string, error) // called for every session
	Cert, Key string
}

// A Device is some of the variables and methods of a server.
type Device struct {
	Device   *adapters.Device
	Every    time.Duration // between messages of the server, or polls; 0 is 1 s
	Sampling time.Duration // between the server's looks at a value; 0 is Every
	Points   []Point
}

// A Point is a variable, or a method.
type Point struct {
	Point  *adapters.Point
	Node   string        // of the variable, as "ns=2;s=Pump.Speed"; empty for a method
	Call   string        // of the method
	Object string        // that has the method
	Every  time.Duration // 0 is the device's

	Scale    float64 // 0 is 1
	Offset   float64
	Decimals *int             // rounds half away from zero to so many decimals, 0 to 15; nil does not round
	Enum     map[int64]string // makes it a string; a number that is not in it is uncertain

	// A change up to Deadband is none, and is not told; with Relative it is a part of
	// the value told last. A value is told again after Heartbeat, 0 is never. Neither
	// counts in polls.
	Deadband  float64
	Relative  bool
	Heartbeat time.Duration

	Hidden bool   // not read, but it may be written
	Write  *Write // nil: it may not be written
}

// Write allows a point to be written, within limits.
type Write struct {
	Min, Max *float64      // nil is no limit
	Values   []float64     // that may be written; nil is all
	Pulse    time.Duration // after which the opposite is written; 0 is never
}

// Times that are not for the site file to say.
const (
	answerTimeout  = 4 * time.Second
	dialTimeout    = 2 * time.Second
	connectTimeout = 8 * time.Second // all that a session takes to begin
	closeTimeout   = time.Second
	pulseTimeout   = 500 * time.Millisecond // of one try to end a pulse: nothing else is seen to meanwhile
	sessionTimeout = 20 * time.Second       // that the server keeps a session which says nothing

	silence   = 3 * time.Second // nothing came from the server: it is lost
	probeIdle = time.Second     // nothing came: it is asked
	beatEvery = time.Second     // of the server's clock, which shows that it looks at values
	tickEvery = 250 * time.Millisecond

	retryFirst  = 200 * time.Millisecond // to connect again
	retryMax    = 500 * time.Millisecond
	unfitWait   = 2 * time.Second // after a refusal that has its cause in a configuration
	refusedWait = 30 * time.Second

	itemFirst = time.Second // to try an item again that the server does not have
	itemMax   = 10 * time.Second
)

func (c *Config) secure() bool { return c.Policy != "" && c.Policy != "None" }
