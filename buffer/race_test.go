//go:build race

package buffer

// slower is how much less the longest tests do under the race detector, where
// each of their steps costs several times as much.
const slower = 5
