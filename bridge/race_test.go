//go:build race

package bridge

// slower is how much less the longest tests do under the race detector.
const slower = 10
