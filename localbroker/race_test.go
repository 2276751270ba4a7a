//go:build race

package localbroker

// slower says that the race detector watches.
const slower = 5
