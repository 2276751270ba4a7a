package bridge

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/fieldferry/fieldferry/bridge/upstreamtest"
)

// The connection is cut at every byte of what the bridge sends, and of what it is
// sent: nothing gets lost, nothing comes out of order, only repeats have DUP.
func TestCutAtEveryByte(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Options{})
		total := uint64(0)
		check := func(name string, s upstreamtest.Script) {
			r.next(name, Options{Backoff: Backoff{First: 100 * time.Millisecond}}, s, s, upstreamtest.Script{})
			r.fill(4)
			r.start()
			r.untilEmpty()
			r.stop()
			r.checkArrivals(4)
			total += 4
			if l := r.out.Ledger(); l.Delivered != total {
				t.Errorf("%s: ledger %+v, want all delivered", name, l)
			}
		}
		for n := 1; n < 90; n++ {
			check(fmt.Sprint("received ", n), upstreamtest.Script{CutReceived: n})
		}
		for n := 1; n < 24; n++ {
			check(fmt.Sprint("sent ", n), upstreamtest.Script{CutSent: n})
		}
	})
}

// checkArrivals wants t-1 … t-n, the first arrivals in order, and no DUP on a
// message that came for the first time on the first connection.
func (r *rig) checkArrivals(n int) {
	r.t.Helper()
	next, seen := 1, map[string]bool{}
	for _, p := range r.up.Publishes() {
		if seen[p.Payload] {
			continue
		}
		seen[p.Payload] = true
		if want := fmt.Sprintf("t-%d", next); p.Payload != want {
			r.t.Fatalf("%s: %s came first, want %s", r.name, p.Payload, want)
		}
		if p.Dup && p.Conn == 0 {
			r.t.Errorf("%s: %s came with DUP for the first time", r.name, p.Payload)
		}
		next++
	}
	if next != n+1 {
		r.t.Errorf("%s: %d messages came, want %d", r.name, next-1, n)
	}
}

// Random upstreams, each from its seed: whatever they do, every message ends as
// delivered or parked, and the first arrivals are in order.
func TestAnyUpstream(t *testing.T) {
	const messages = 60
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Options{})
		for seed := range uint64(40) {
			o := Options{Window: 16, Keepalive: 2 * time.Second, Backoff: Backoff{First: 100 * time.Millisecond, Max: time.Second}}
			r.next(fmt.Sprint("seed ", seed), o, randomScripts(rand.New(rand.NewPCG(seed, 1)))...)
			before := r.out.Ledger()
			r.fill(messages)
			r.start()
			r.untilEmpty()
			r.stop()
			r.checkArrivals(messages)
			taken, refused := map[string]bool{}, map[string]bool{}
			for _, p := range r.up.Publishes() {
				taken[p.Payload] = taken[p.Payload] || p.Taken()
				refused[p.Payload] = refused[p.Payload] || p.Answer.Code == 0x87
			}
			l := r.out.Ledger()
			delivered, parked := int(l.Delivered-before.Delivered), int(l.Parked-before.Parked)
			if delivered+parked != messages || delivered > count(taken) || parked > count(refused) { // an answer may be lost with its connection
				t.Errorf("seed %d: %d delivered of %d taken, %d parked of %d refused", seed, delivered, count(taken), parked, count(refused))
			}
		}
	})
}

func count(m map[string]bool) (n int) {
	for _, yes := range m {
		if yes {
			n++
		}
	}
	return n
}

func randomScripts(rnd *rand.Rand) []upstreamtest.Script {
	var scripts []upstreamtest.Script
	for range 12 {
		s := upstreamtest.Script{
			Unreachable: rnd.IntN(8) == 0,
			LoseSession: rnd.IntN(4) == 0,
			Limits:      packets.Properties{ReceiveMaximum: ptr(uint16(1 + rnd.IntN(20)))},
		}
		if rnd.IntN(3) == 0 {
			s.CutReceived = 1 + rnd.IntN(900)
		}
		if rnd.IntN(4) == 0 {
			s.CutSent = 1 + rnd.IntN(200)
		}
		if rnd.IntN(6) == 0 {
			s.Code = []byte{0x87, 0x88, 0x89, 0x9C, 0x9F}[rnd.IntN(5)]
		}
		s.Publish = func(upstreamtest.Publish) answer {
			switch n := rnd.IntN(200); {
			case n < 6:
				return answer{Code: 0x87}
			case n < 10:
				return answer{Do: upstreamtest.Ignore}
			case n < 14:
				return answer{Do: upstreamtest.Cut}
			case n < 16:
				return answer{Do: upstreamtest.Disconnect, Code: []byte{0x8B, 0x8E, 0x93, 0x97}[rnd.IntN(4)]}
			case n < 17:
				return answer{Do: upstreamtest.Freeze}
			case n < 18:
				return answer{Do: upstreamtest.Swallow}
			case n < 19:
				return answer{Do: upstreamtest.Inject}
			}
			return answer{}
		}
		scripts = append(scripts, s)
	}
	return append(scripts, upstreamtest.Script{})
}
