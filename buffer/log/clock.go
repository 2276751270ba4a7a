package log

import "time"

// Clock is what a log knows of time. The wall clock of a gateway may be wrong
// for hours after a boot without a network; the uptime never is.
type Clock interface {
	// Now is the wall clock.
	Now() time.Time
	// Uptime is the time since the machine booted, sleep included, and the id
	// of that boot, which is not 0.
	Uptime() (since time.Duration, boot uint64)
}

// SyncedClock is a Clock that knows whether something keeps its wall clock right,
// such as NTP.
type SyncedClock interface {
	Clock
	Synced() bool
}

// KeptClock is a Clock that knows whether something goes on counting while the
// machine is off. Where nothing does, the wall clock starts from when the machine
// was last on, or from when its image was made: it looks right and is not.
type KeptClock interface {
	Clock
	Kept() bool
}
