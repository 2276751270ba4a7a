package command

import "context"

// State is how far a command is.
type State uint8

// The states that are written down. One that is accepted stands in the queue.
const (
	Started  State = 1 // something may have gone to the device
	Answered State = 2
)

// Record is what a journal knows of a command.
type Record struct {
	Key
	State  State
	Digest Digest
	Answer []byte // as it was told, when it is Answered
}

// Journal remembers commands over crashes.
type Journal interface {
	// Find returns what is known of a command. With old, an answer also that is
	// remembered longer than it need be.
	Find(k Key, old bool) (Record, bool, error)

	// Write adds lines to the audit log and then changes records. All of that is
	// durable on return of nil. After an error some may be, but no record without
	// the lines. It may be called concurrently, and blocks.
	Write(ctx context.Context, lines []Event, records ...Record) error
}
