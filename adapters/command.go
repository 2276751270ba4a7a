package adapters

import (
	"context"
	"time"
)

// A Command is what somebody wants of a device.
type Command struct {
	ID      string
	Device  string
	Action  string       // "write", "read", or the name of an action of the device
	Values  []Assignment // of a write, in the order to write them
	Points  []string     // of a read
	Expires time.Time    // not to be started after this
}

// An Assignment gives a point a value, in the unit of the point: scale and
// offset are undone by the link.
type Assignment struct {
	Point string
	Value Value
}

// Outcome is how a command ended.
type Outcome string

const (
	Executed Outcome = "executed"
	Rejected Outcome = "rejected" // not started: not allowed, not possible or not understood
	Expired  Outcome = "expired"  // not started: too late
	Failed   Outcome = "failed"   // started, and the device refused or did not answer
	Unknown  Outcome = "unknown"  // started, and whether it was done is not known
)

// A Result answers a command.
type Result struct {
	CommandID string
	Status    Outcome
	Values    []Sample // read back
	Error     string   // empty if executed
	Time      time.Time
}

// A Writer is a link that can write.
type Writer interface {
	// Write gives points of a device their values, in order, each at most once,
	// and returns what it reads back afterwards. It blocks until that is done,
	// or ctx ends before it has begun; what was begun is finished. It
	// may be called concurrently, and while Run runs; it fails before and after.
	// On an error the samples say how far it came: a point that was written and
	// not read back is Uncertain, one that was not written is missing.
	// A point that is a method of the device is called by writing its arguments to
	// it: true for none, the value itself for one, a list for several; what it
	// returns is its sample.
	Write(ctx context.Context, device string, values []Assignment) ([]Sample, error)
}

// A Checker is a link that can say of a write or read that it is not possible, without
// sending anything: a point that is not there, a value beyond its limits or of another
// type. The errors begin with the point's name. They may be called at any time.
type Checker interface {
	CheckWrite(device string, values []Assignment) error
	CheckRead(device string, points []string) error
}

// A Reader is a link that can read when asked, beside its polls.
type Reader interface {
	// Read returns the present values of points of a device. It blocks until
	// they are there, or ctx ends, and may be called as Write may.
	Read(ctx context.Context, device string, points []string) ([]Sample, error)
}
