package conformance

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// numbered is how many statements each section of MQTT 5 has, by its Appendix B.
// Those of §2.2.1 begin with the second.
var numbered5 = map[string]int{
	"1.5.4": 3, "1.5.5": 1, "1.5.7": 1, "2.1.3": 1, "2.2.1": 6, "2.2.2": 1, "3.1.0": 2, "3.1.2": 30, "3.1.3": 12, "3.1.4": 6,
	"3.2.0": 2, "3.2.2": 22, "3.3.1": 13, "3.3.2": 20, "3.3.4": 10, "3.4.2": 3, "3.5.2": 3, "3.6.1": 1, "3.6.2": 3, "3.7.2": 3,
	"3.8.1": 1, "3.8.3": 5, "3.8.4": 8, "3.9.2": 2, "3.9.3": 2, "3.10.1": 1, "3.10.3": 2, "3.10.4": 6, "3.11.2": 2, "3.11.3": 2,
	"3.12.4": 1, "3.14.0": 1, "3.14.1": 1, "3.14.2": 4, "3.14.4": 3, "3.15.1": 1, "3.15.2": 3, "4.1.0": 2, "4.2": 1, "4.3.1": 1,
	"4.3.2": 5, "4.3.3": 13, "4.4.0": 2, "4.5.0": 2, "4.6.0": 6, "4.7.0": 1, "4.7.1": 2, "4.7.2": 1, "4.7.3": 4, "4.8.2": 6,
	"4.9.0": 3, "4.12.0": 7, "4.12.1": 2, "4.13.1": 1, "4.13.2": 1, "6.0.0": 4,
}

// numbered311 is the same of MQTT 3.1.1.
var numbered311 = map[string]int{
	"1.5.3": 3, "2.2.2": 2, "2.3.1": 7, "3.1.0": 2, "3.1.2": 24, "3.1.3": 11, "3.1.4": 5, "3.2.0": 1, "3.2.2": 6, "3.3.1": 12,
	"3.3.2": 3, "3.3.4": 1, "3.3.5": 2, "3.6.1": 1, "3.8.1": 1, "3.8.3": 4, "3.8.4": 6, "3.9.3": 2, "3.10.1": 1, "3.10.3": 2,
	"3.10.4": 6, "3.12.4": 1, "3.14.1": 1, "3.14.4": 3, "4.1.0": 2, "4.3.1": 1, "4.3.2": 2, "4.3.3": 2, "4.4.0": 1, "4.5.0": 2,
	"4.6.0": 6, "4.7.1": 3, "4.7.2": 1, "4.7.3": 4, "4.8.0": 2, "6.0.0": 4,
}

const (
	client    = "binds the client alone"
	auth      = "we offer no authentication method, so the exchange never begins"
	capable   = "binds a broker that lacks what ours has"
	elsewhere = "WebSocket, which has tests of its own"
)

// unheld5 are the statements of MQTT 5 that no clause holds, and why.
var unheld5 = map[string]string{
	"3.1.2-20": client, "3.1.2-30": client, "3.2.2-4": client, "3.2.2-5": client, "3.2.2-11": client, "3.2.2-18": client, "3.3.2-10": client,
	"3.3.4-8": client, "4.5.0-2": client, "4.6.0-1": client, "4.6.0-4": client, "3.2.2-14": client, "3.1.3-8": capable,
	"4.12.0-2": auth, "4.12.0-3": auth, "4.12.0-5": auth, "4.12.1-1": auth, "3.15.2-2": auth, "3.15.2-3": auth, "3.15.2-1": client,
	"6.0.0-1": elsewhere, "6.0.0-2": elsewhere, "6.0.0-3": elsewhere, "6.0.0-4": elsewhere,
}

// unheld311 are those of MQTT 3.1.1.
var unheld311 = map[string]string{
	"3.1.2-23": client, "3.2.2-6": "each refusal of ours has a return code", "3.8.3-2": capable, "4.5.0-2": client, "4.6.0-4": client,
	"4.8.0-2": "nobody can make a transient error from outside",
	"6.0.0-1": elsewhere, "6.0.0-2": elsewhere, "6.0.0-3": elsewhere, "6.0.0-4": elsewhere,
}

// TestStatements checks that every numbered statement is held by a clause or
// listed with the reason why not, and that no clause names one that there is
// not.
func TestStatements(t *testing.T) {
	held5, held311 := map[string]bool{}, map[string]bool{}
	for _, chapter := range chapters {
		for _, c := range chapter.clauses {
			for _, id := range statements(c.v5) {
				held5[id] = true
			}
			for _, id := range statements(c.v311) {
				held311[id] = true
			}
		}
	}
	account(t, "MQTT 5", numbered5, held5, unheld5)
	account(t, "MQTT 3.1.1", numbered311, held311, unheld311)
}

func account(t *testing.T, standard string, numbered map[string]int, held map[string]bool, unheld map[string]string) {
	all := map[string]bool{}
	for section, n := range numbered {
		for i := 1; i <= n; i++ {
			if id := fmt.Sprintf("%s-%d", section, i); id != "2.2.1-1" || standard != "MQTT 5" {
				all[id] = true
			}
		}
	}
	count := 0
	for _, id := range slices.Sorted(maps.Keys(all)) {
		why, listed := unheld[id]
		switch {
		case held[id] && listed:
			t.Errorf("%s [MQTT-%s] is held, and listed as not", standard, id)
		case held[id]:
			count++
		case !listed || why == "":
			t.Errorf("%s [MQTT-%s] is held by no clause", standard, id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(held)) {
		if !all[id] {
			t.Errorf("%s has no statement [MQTT-%s]", standard, id)
		}
	}
	for id := range unheld {
		if !all[id] {
			t.Errorf("%s has no statement [MQTT-%s], which is listed", standard, id)
		}
	}
	t.Logf("%s: %d of %d statements are held; not held: %s", standard, count, len(all), strings.Join(slices.Sorted(maps.Keys(unheld)), " "))
}
