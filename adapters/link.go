package adapters

import (
	"context"
	"time"
)

// A Link is one bus, one connection or one server with every device on it.
type Link interface {
	// Run opens the link, reads what is due, reconnects when the connection is
	// lost, and closes it. It blocks until ctx ends and returns nil then; an
	// answer that is awaited at that moment is waited for, so that it returns
	// within the link's timeout for one answer, or that of a connection attempt
	// under way. It never returns because hardware is away. When it has
	// returned, every goroutine of the link has ended and nothing is told to
	// sink any more. A link runs once.
	Run(ctx context.Context, sink Sink) error

	// String names the link, for people. It may be called at any time.
	String() string
}

// A Sink takes what links read. One link calls its methods one at a time; many
// links call them concurrently.
type Sink interface {
	// Emit takes a reading. It may block, but only for back pressure and not
	// past the end of ctx; the link polls nothing meanwhile and skips the cycles
	// that it misses. r's samples and the lists in them are the link's and valid
	// until Emit returns; device, points, strings and flag names may be kept.
	// An error says that the reading was refused and accounted for; the link
	// carries on with the next.
	Emit(ctx context.Context, r Reading) error

	// Status takes a device's change to online or offline. It comes before the
	// first reading of a device that is online, and after the last of one that
	// went offline; of an offline device nothing comes until it is back. It may
	// block as Emit may. After an error the link tells it again at the device's
	// next poll.
	Status(ctx context.Context, s Status) error
}

// A Counter is a link that counts what it does. Stats may be called at any
// time, concurrently with Run.
type Counter interface {
	Stats() Stats
}

// Stats are counts since the link was made.
type Stats struct {
	Connected bool
	LastError string // why it could not connect when it last tried; "" if it could
	Connects  uint64 // connections made
	Polls     uint64 // polls of one device and rate
	Failed    uint64 // polls that were not answered at all
	Skipped   uint64 // cycles left out because the link was busy
	Refused   uint64 // readings that the sink refused
	Online    int    // devices
	Offline   int    // devices; one that was not heard of yet is neither
}

// A Framed is a link whose devices send messages that may not be what was
// described. Frames may be called at any time, concurrently with Run. It returns
// one entry for each device, in a fixed order.
type Framed interface {
	Frames() []Frames
}

// Frames are counts of a device's messages since the link was made. Of devices that
// talk unasked on one line, what belongs to none counts for the first.
type Frames struct {
	Device   string
	Good     uint64 // that were read
	Other    uint64 // in order, but not what the device is described to say
	Wrong    uint64 // with a wrong check
	TooLong  uint64 // without an end where one has to be
	Cut      uint64 // that stop in the middle
	Last     []byte // the last of those that were not good, at most their last 64 bytes; nil if there was none
	LastWhat string // "other", "wrong-check", "too-long" or "cut"
	LastTime time.Time
}
