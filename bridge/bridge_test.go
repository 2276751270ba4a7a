package bridge

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/fieldferry/fieldferry/bridge/upstreamtest"
	"github.com/fieldferry/fieldferry/buffer"
)

type answer = upstreamtest.Answer

// on answers the n-th PUBLISH of a connection, from 1, and acknowledges others.
func on(answers map[int]answer) func(upstreamtest.Publish) answer {
	n := 0
	return func(upstreamtest.Publish) answer {
		n++
		return answers[n]
	}
}

// from answers the n-th PUBLISH of a connection and all after it.
func from(n int, a answer) func(upstreamtest.Publish) answer {
	return func(upstreamtest.Publish) answer {
		if n--; n <= 0 {
			return a
		}
		return answer{}
	}
}

// TestScripts sends t-1 … t-n and looks at what the upstream got, what became of
// it, and how many connections it took.
func TestScripts(t *testing.T) {
	big := strings.Repeat("x", 300)
	rm := func(n uint16) packets.Properties { return packets.Properties{ReceiveMaximum: &n} }
	tests := []struct {
		name      string
		options   Options
		scripts   []upstreamtest.Script
		n         int
		big       int // this one has 300 bytes, from 1
		want      []string
		parked    uint64
		delivered uint64 // 0 is all that was not parked
		conns     int
	}{
		{
			name:  "all in order",
			n:     50,
			want:  series(1, 50, ""),
			conns: 1,
		},
		{
			name: "reconnect in the middle of a window repeats what was not acknowledged",
			scripts: []upstreamtest.Script{
				{Publish: on(map[int]answer{3: {Do: upstreamtest.Ignore}, 4: {Do: upstreamtest.Ignore}, 5: {Do: upstreamtest.Cut}})},
				{},
			},
			options: Options{Window: 3},
			n:       8,
			want:    slices.Concat(series(1, 5, ""), series(3, 5, "*"), series(6, 8, "")),
			conns:   2,
		},
		{
			name: "nothing is acknowledged, and the Receive Maximum falls on reconnect",
			scripts: []upstreamtest.Script{
				{Limits: rm(20), Publish: from(1, answer{Do: upstreamtest.Ignore})},
				{Limits: rm(10)},
			},
			options: Options{Keepalive: 4 * time.Second},
			n:       40,
			want:    slices.Concat(series(1, 20, ""), series(1, 20, "*"), series(21, 40, "")),
			conns:   2,
		},
		{
			name:    "not authorised is parked and the line goes on",
			scripts: []upstreamtest.Script{{Publish: on(map[int]answer{2: {Code: 0x87}, 5: {Code: 0x99}})}},
			n:       7,
			want:    series(1, 7, ""),
			parked:  2,
			conns:   1,
		},
		{
			name:    "no matching subscribers is delivered",
			scripts: []upstreamtest.Script{{Publish: on(map[int]answer{1: {Code: 0x10}})}},
			n:       2,
			want:    series(1, 2, ""),
			conns:   1,
		},
		{
			name:    "quota exceeded is sent again in order, before what follows",
			scripts: []upstreamtest.Script{{Limits: rm(1), Publish: on(map[int]answer{2: {Code: 0x97}, 3: {Code: 0x97}})}},
			n:       4,
			want:    slices.Concat(series(1, 2, ""), series(2, 2, ""), series(2, 4, "")),
			conns:   1,
		},
		{
			name:    "packet id in use is tried again",
			scripts: []upstreamtest.Script{{Publish: on(map[int]answer{1: {Code: 0x91}})}},
			options: Options{Window: 1},
			n:       2,
			want:    []string{"t-1", "t-1", "t-2"},
			conns:   1,
		},
		{
			name:    "oversize is parked unsent",
			scripts: []upstreamtest.Script{{Limits: packets.Properties{MaximumPacketSize: ptr(uint32(200))}}},
			n:       5, big: 3,
			want:   []string{"t-1", "t-2", "t-4", "t-5"},
			parked: 1,
			conns:  1,
		},
		{
			name: "packet too large without an announced maximum is found and parked",
			scripts: []upstreamtest.Script{
				{Publish: func(p upstreamtest.Publish) answer {
					if p.Size > 200 {
						return answer{Do: upstreamtest.Disconnect, Code: 0x95}
					}
					return answer{}
				}},
			},
			n: 5, big: 3, // all in one write: what follows was sent before the upstream complains
			parked: 1,
			want:   []string{"t-1", "t-2", big, "t-4*", "t-5*"},
			conns:  2,
		},
		{
			name: "session lost, QoS 1 is sent again",
			scripts: []upstreamtest.Script{
				{Publish: on(map[int]answer{1: {Do: upstreamtest.Ignore}, 2: {Do: upstreamtest.Cut}})},
				{LoseSession: true},
			},
			n:       3,
			want:    []string{"t-1", "t-2", "t-1*", "t-2*", "t-3"},
			options: Options{Window: 2},
			conns:   2,
		},
		{
			name:    "connection refused, then not",
			scripts: []upstreamtest.Script{{Unreachable: true}, {Code: 0x88}, {Code: 0x86}, {Mute: true}, {}},
			n:       3,
			want:    series(1, 3, ""),
			conns:   5,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, tt.options, tt.scripts...)
				var list []buffer.Message
				for _, p := range series(1, tt.n, "") {
					list = append(list, message(p))
				}
				if tt.big > 0 {
					list[tt.big-1] = message(big)
				}
				r.put(buffer.Telemetry, buffer.Copy{QoS: 1}, list...)
				r.start()
				r.untilEmpty()
				if tt.want != nil {
					r.wantPayloads(tt.want...)
				}
				l := r.out.Ledger()
				if l.Parked != tt.parked || l.Delivered != uint64(tt.n)-tt.parked {
					t.Errorf("ledger %+v, want %d parked and all others delivered", l, tt.parked)
				}
				s := r.bridge.Status()
				if s.Delivered != l.Delivered || s.Parked != l.Parked {
					t.Errorf("status %+v differs from the ledger", s)
				}
				if got := len(r.up.Connects()); got != tt.conns {
					t.Errorf("%d connections, want %d", got, tt.conns)
				}
				r.stop()
			})
		})
	}
}

// run makes a test of a body that has a rig in a bubble.
func run(t *testing.T, name string, o Options, body func(t *testing.T, r *rig), scripts ...upstreamtest.Script) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, o, scripts...)
			body(t, r)
			r.stop()
		})
	})
}

func hold(upstreamtest.Publish) answer   { return answer{Do: upstreamtest.Hold} }
func ignore(upstreamtest.Publish) answer { return answer{Do: upstreamtest.Ignore} }

func TestWindow(t *testing.T) {
	limits := packets.Properties{ReceiveMaximum: ptr(uint16(7))}
	run(t, "it fills the Receive Maximum and no more", Options{}, func(t *testing.T, r *rig) {
		r.fill(20)
		r.start()
		for _, want := range []int{7, 14, 20} {
			synctest.Wait()
			if got := r.up.Count(); got != want {
				t.Fatalf("%d messages came, want %d", got, want)
			}
			r.up.Release()
		}
		r.untilEmpty()
		r.wantPayloads(series(1, 20, "")...)
	}, upstreamtest.Script{Limits: limits, Publish: hold})

	run(t, "only what was not acknowledged is repeated", Options{}, func(t *testing.T, r *rig) {
		r.fill(6)
		r.start()
		r.until("three delivered", func() bool { return r.bridge.Status().Delivered == 3 })
		r.up.Cut()
		r.untilEmpty()
		r.wantPayloads(append(series(1, 6, ""), "t-1*", "t-3*", "t-6*")...)
	}, upstreamtest.Script{Publish: on(map[int]answer{1: {Do: upstreamtest.Ignore}, 3: {Do: upstreamtest.Ignore}, 6: {Do: upstreamtest.Ignore}})}, upstreamtest.Script{})

	run(t, "what was not sent before the cut has no DUP", Options{Window: 2}, func(t *testing.T, r *rig) {
		r.fill(5)
		r.start()
		synctest.Wait()
		r.up.Cut()
		r.untilEmpty()
		r.wantPayloads("t-1", "t-2", "t-1*", "t-2*", "t-3", "t-4", "t-5")
	}, upstreamtest.Script{Publish: ignore}, upstreamtest.Script{})

	run(t, "another process repeats with DUP what this one may have sent", Options{Window: 2}, func(t *testing.T, r *rig) {
		r.fill(5)
		r.start()
		synctest.Wait()
		r.wantPayloads("t-1", "t-2")
		r.next("after the restart", Options{})
		r.start()
		r.untilEmpty()
		r.wantPayloads("t-1*", "t-2*", "t-3", "t-4", "t-5")
	}, upstreamtest.Script{Publish: ignore})

	run(t, "an alert goes before the telemetry that waits", Options{Window: 2}, func(t *testing.T, r *rig) {
		r.fill(6)
		r.start()
		synctest.Wait()
		r.put(buffer.Alert, buffer.Copy{QoS: 1}, message("alert"))
		for r.up.Count() < 7 {
			r.up.Release()
			synctest.Wait()
		}
		r.up.Release()
		r.untilEmpty()
		if at := slices.Index(r.payloads(), "alert"); at < 0 || at > 4 {
			t.Errorf("the alert came as number %d: %q", at+1, r.payloads())
		}
	}, upstreamtest.Script{Publish: hold})
}

func TestPacketIDsStayInTheirShares(t *testing.T) {
	seen := map[uint16]int{}
	for lane := range len(Outboxes{}) {
		for ordinal := uint64(1); ordinal <= 40_000; ordinal++ {
			id := packetID(lane, ordinal)
			if other, ok := seen[id]; ok && other != lane {
				t.Fatalf("id %d is of lanes %d and %d", id, lane, other)
			}
			if id < idBlock {
				t.Fatalf("id %d of lane %d is reserved", id, lane)
			}
			seen[id] = lane
		}
	}
	if got := len(seen); got != 7*idBlock {
		t.Errorf("%d ids in use, want %d", got, 7*idBlock)
	}
}

// An unanswered message keeps its id: the copy that is a whole share younger waits,
// and after the reconnect that follows both go.
func TestSameIDWaits(t *testing.T) {
	run(t, "alert", Options{Window: maxWindow, Keepalive: 10 * time.Second}, func(t *testing.T, r *rig) {
		r.start()
		r.put(buffer.Alert, buffer.Copy{QoS: 1, Topic: "t"}, make([]buffer.Message, idBlock+8)...)
		synctest.Wait()
		if got := r.up.Count(); got != idBlock+4 {
			t.Errorf("%d packets came before the reconnect, want those up to ordinal %d", got, idBlock+4)
		}
		r.untilEmpty()
	}, upstreamtest.Script{Publish: on(map[int]answer{5: {Do: upstreamtest.Ignore}})}, upstreamtest.Script{})
}
