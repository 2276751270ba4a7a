// Package command runs commands on devices: each at most once, within its limits and
// its time, those of one device one after the other, and with an answer for each.
//
// A command is known by who sent it and the id that it gave. What became of it stands
// in a [Journal]: it is started, durably, before the first byte goes to the device, and
// answered. A command that is started and not answered when the process begins is
// never run again; its answer is that nobody knows, with what the device says now.
// Answers are remembered, and repeated for a command that comes again.
//
// The package knows no topic, no payload and no broker, and keeps nothing on disk but
// the [Log], in which stands what was asked for, by whom, and what came of it.
package command

import (
	"crypto/sha256"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

// Key is what a command is known by.
type Key struct {
	Issuer string // who it is from
	ID     string // that the issuer gave it; "" if it gave none
}

// Request is a command as it waits for its turn.
type Request struct {
	Key
	From    Issuer // the issuer, for the audit log
	Command adapters.Command
	Call    bool  // it came as a call: an answer to one is in another form
	Wrong   error // why it cannot be what it should; nil if it can

	// Age is how long ago it was accepted when Process is called, at the least. When
	// AgeUnknown, it was before the machine started, and no clock says how long.
	Age        time.Duration
	AgeUnknown bool
	Lasts      time.Duration // from its acceptance on; 0 is as long as Options say

	// Old says that it was accepted by an earlier process. With Lost, what that knew
	// of commands is lost.
	Old, Lost bool

	Reply any // the caller's own

	at time.Time // of Age
}

func (r *Request) age(now time.Time) time.Duration { return r.Age + now.Sub(r.at) }

// Issuer says who a command is from.
type Issuer struct {
	Bridge   string `json:"bridge,omitempty"` // it came from its upstream
	Client   string `json:"client,omitempty"` // of the local broker
	Username string `json:"username,omitempty"`
}

// Digest tells commands apart that have one key: what the device is to do, and in which
// form the answer is. When it expires is no part of that.
type Digest [sha256.Size]byte

// Digest is the request's.
func (r *Request) Digest() Digest {
	h := sha256.New()
	part := func(s string) {
		n := len(s)
		h.Write([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
		h.Write([]byte(s))
	}
	form := "command"
	if r.Call {
		form = "call"
	}
	for _, s := range []string{form, r.Command.Device, r.Command.Action} {
		part(s)
	}
	for _, a := range r.Command.Values {
		part(a.Point)
		part(string(rune('a' + a.Value.Kind())))
		part(a.Value.String())
	}
	part("")
	for _, p := range r.Command.Points {
		part(p)
	}
	if r.Wrong != nil {
		part(r.Wrong.Error())
	}
	return Digest(h.Sum(nil))
}

// Device is what commands can be for.
type Device struct {
	Name    string
	Writer  adapters.Writer  // nil: it cannot be written
	Reader  adapters.Reader  // nil: it cannot be read when asked
	Checker adapters.Checker // nil: what is not possible shows when it is tried
	Ready   func() bool      // whether there is a connection; nil: always
	Points  map[string]bool  // whether a command may write it
	Actions map[string][]Step
	Config  []byte // what a call of getConfig is answered; nil: nothing

	next time.Time // no command begins before
}

// Step is a part of an action: it writes points, or waits.
type Step struct {
	Write []adapters.Assignment
	Wait  time.Duration
}

// The actions that every device has.
const (
	Write     = "write"
	Read      = "read"
	GetConfig = "getConfig" // of a call
)
