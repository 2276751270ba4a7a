package bridge

import (
	"fmt"
	"testing"
)

// What was spread one way yesterday must be today: these are not to be changed.
func TestSpreadOver(t *testing.T) {
	for key, want := range map[string][4]int{"em-0001": {0, 1, 0, 1}, "": {0, 1, 2, 5}, "acme/works/raw/1": {0, 1, 2, 3}} {
		var got [4]int
		for i, n := range []int{1, 2, 3, 8} {
			got[i] = SpreadOver(n, key)
		}
		if got != want {
			t.Errorf("%q: %v, want %v", key, got, want)
		}
	}
	var count [4]int
	for i := range 4000 {
		count[SpreadOver(4, fmt.Sprintf("em-%04d", i))]++
	}
	for k, n := range count {
		if n < 800 || n > 1200 {
			t.Errorf("connection %d has %d of 4000 devices", k, n)
		}
	}
}
