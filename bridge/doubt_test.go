package bridge

import (
	"testing"
	"testing/synctest"

	"github.com/fieldferry/fieldferry/bridge/upstreamtest"
)

// A CONNACK is lost while ten messages are halfway, and of some the PUBCOMP is lost
// as well. What the upstream still knows of them shows that the session is the old
// one; if it knows nothing, they are uncertain; in no case is one sent again.
func TestDoubt(t *testing.T) {
	for _, tt := range []struct {
		name                 string
		completed            int // PUBRELs that get through before, with their PUBCOMP lost
		forget               bool
		delivered, uncertain uint64
	}{
		{"it knows some", 4, false, 10, 0},
		{"it knows all", 0, false, 10, 0},
		{"it knows none any more", 10, false, 0, 10},
		{"it has lost the session", 0, true, 0, 10},
	} {
		n := 0
		first := upstreamtest.Script{Pubrel: func(uint16) answer {
			if n++; n > tt.completed {
				return answer{Do: upstreamtest.Swallow}
			}
			return answer{Do: upstreamtest.Hold}
		}}
		run(t, tt.name, Options{}, func(t *testing.T, r *rig) {
			r.fillQoS(2, 10)
			r.start()
			synctest.Wait()
			if tt.forget {
				r.up.ForgetSessions()
			}
			r.untilEmpty()
			if l := r.out.Ledger(); l.Delivered != tt.delivered || l.Uncertain != tt.uncertain {
				t.Errorf("ledger %+v, want %d delivered and %d uncertain", l, tt.delivered, tt.uncertain)
			}
			if s := r.bridge.Status(); s.Uncertain != tt.uncertain {
				t.Errorf("status %+v", s)
			}
			if n := r.up.Count(); n != 10 {
				t.Errorf("%d PUBLISH packets, want no repeats", n)
			}
		}, first, upstreamtest.Script{Mute: true}, upstreamtest.Script{})
	}
}
