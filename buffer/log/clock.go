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
