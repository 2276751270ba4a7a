package bridge

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/fieldferry/fieldferry/bridge/upstreamtest"
	"github.com/fieldferry/fieldferry/buffer"
)

// TestExactlyOnce sends t-1 … t-n with QoS 2 to an upstream that does one unkind
// thing: a subscriber gets each once and in order, the ledger balances.
func TestExactlyOnce(t *testing.T) {
	rm := func(n uint16) packets.Properties { return packets.Properties{ReceiveMaximum: &n} }
	big := strings.Repeat("x", 300)
	for _, tt := range []struct {
		name    string
		options Options
		scripts []upstreamtest.Script
		n       int
		big     int      // this one has 300 bytes, from 1
		want    []string // what a subscriber gets; nil is t-1 … t-n
		parked  uint64
		unsure  uint64 // in the ledger
		lost    uint64 // Status.Uncertain
		conns   int    // 0 is not looked at
	}{
		{name: "kind", n: 50, conns: 1},
		{name: "delivered at PUBREL", scripts: []upstreamtest.Script{{AtRelease: true}}, n: 50, conns: 1},
		{
			name:    "PUBREC never comes, then does",
			scripts: []upstreamtest.Script{{Publish: from(3, answer{Do: upstreamtest.Swallow})}, {}},
			options: Options{Keepalive: 4 * time.Second},
			n:       8, conns: 2,
		},
		{
			name:    "PUBREC is lost with the connection",
			scripts: []upstreamtest.Script{{CutSent: 11 + 4*2}, {}},
			n:       8, conns: 2,
		},
		{
			name:    "0x91 for what it has already",
			scripts: []upstreamtest.Script{{CutSent: 11 + 4*2}, {InUse: true}},
			n:       8, conns: 2,
		},
		{
			name:    "0x91 for what it cannot have: its id is set free and used again",
			scripts: []upstreamtest.Script{{Publish: on(map[int]answer{2: {Code: 0x91}})}},
			options: Options{Window: 1},
			n:       3, conns: 1,
		},
		{name: "repeated PUBREC", scripts: []upstreamtest.Script{{Repeat: true}}, n: 20, conns: 1},
		{name: "repeated PUBREC with 0x91", scripts: []upstreamtest.Script{{CutSent: 11 + 4*3, Repeat: true}, {Repeat: true, InUse: true}}, n: 20, conns: 2},
		{
			name:    "PUBCOMP is lost with the connection, and its id is not known then",
			scripts: []upstreamtest.Script{{CutSent: 11 + 4*8 + 2}, {}},
			n:       8, conns: 2,
		},
		{
			name:    "PUBREL does not get through",
			scripts: []upstreamtest.Script{{AtRelease: true, Pubrel: func(uint16) answer { return answer{Do: upstreamtest.Cut} }}, {AtRelease: true}},
			n:       8, conns: 2,
		},
		{
			name:    "Receive Maximum falls while all is halfway",
			scripts: []upstreamtest.Script{{Limits: rm(20), Pubrel: func(uint16) answer { return answer{Do: upstreamtest.Swallow} }}, {Limits: rm(3)}},
			options: Options{Keepalive: 4 * time.Second},
			n:       40, conns: 2,
		},
		{
			name:    "not authorised is parked and the line goes on",
			scripts: []upstreamtest.Script{{Publish: on(map[int]answer{2: {Code: 0x87}, 4: {Code: 0x99}, 5: {Code: 0x90}})}},
			n:       6, want: []string{"t-1", "t-3", "t-6"}, parked: 3, conns: 1,
		},
		{
			name:    "quota exceeded is sent again",
			scripts: []upstreamtest.Script{{Limits: rm(1), Publish: on(map[int]answer{2: {Code: 0x97}, 3: {Code: 0x97}})}},
			n:       4, conns: 1,
		},
		{
			name:    "quota exceeded for one while others are halfway",
			scripts: []upstreamtest.Script{{Publish: on(map[int]answer{2: {Code: 0x97}})}},
			n:       4, want: []string{"t-1", "t-3", "t-4", "t-2"}, conns: 1, // the upstream's own order
		},
		{
			name:    "DISCONNECT 0x93",
			scripts: []upstreamtest.Script{{Publish: on(map[int]answer{3: {Do: upstreamtest.Disconnect, Code: 0x93}})}, {Limits: rm(1)}},
			n:       6, conns: 2,
		},
		{
			name:    "DISCONNECT 0x97",
			scripts: []upstreamtest.Script{{Publish: on(map[int]answer{3: {Do: upstreamtest.Disconnect, Code: 0x97}})}, {}},
			n:       6, conns: 2,
		},
		{
			name:    "taken over",
			scripts: []upstreamtest.Script{{Publish: on(map[int]answer{3: {Do: upstreamtest.Disconnect, Code: 0x8E}})}, {}},
			n:       6, conns: 2,
		},
		{
			name:    "use another server",
			scripts: []upstreamtest.Script{{Code: 0x9C}, {Publish: on(map[int]answer{2: {Do: upstreamtest.Disconnect, Code: 0x9C}})}, {}},
			n:       6, conns: 3,
		},
		{
			name:    "oversize is parked unsent",
			scripts: []upstreamtest.Script{{Limits: packets.Properties{MaximumPacketSize: ptr(uint32(200))}}},
			n:       5, big: 3, want: []string{"t-1", "t-2", "t-4", "t-5"}, parked: 1, conns: 1,
		},
		{
			name: "packet too large without an announced maximum is found and parked",
			scripts: []upstreamtest.Script{{Publish: func(p upstreamtest.Publish) answer {
				if p.Size > 200 {
					return answer{Do: upstreamtest.Disconnect, Code: 0x95}
				}
				return answer{}
			}}},
			options: Options{Window: 2},
			n:       5, big: 3, want: []string{"t-1", "t-2", "t-4", "t-5"}, parked: 1, conns: 2,
		},
		{
			name:    "Maximum Packet Size falls over one that may have been received",
			scripts: []upstreamtest.Script{{Publish: on(map[int]answer{3: {Do: upstreamtest.Cut}})}, {Limits: packets.Properties{MaximumPacketSize: ptr(uint32(200))}}},
			options: Options{Window: 3},
			n:       5, big: 3, want: []string{"t-1", "t-2", "t-4", "t-5"}, unsure: 1, conns: 2,
		},
		{
			name: "session lost, what it may have had is sent again and counted",
			scripts: []upstreamtest.Script{
				{Publish: on(map[int]answer{3: {Do: upstreamtest.Cut}}), Pubrel: func(uint16) answer { return answer{Do: upstreamtest.Ignore} }},
				{LoseSession: true},
			},
			options: Options{Window: 3},
			n:       5, want: []string{"t-1", "t-2", "t-1", "t-2", "t-3", "t-4", "t-5"}, lost: 3, conns: 2,
		},
		{
			name: "session lost, what it may have had is dropped",
			scripts: []upstreamtest.Script{
				{Publish: on(map[int]answer{3: {Do: upstreamtest.Cut}})},
				{LoseSession: true},
			},
			options: Options{Window: 3, DropLost: true},
			n:       5, want: []string{"t-1", "t-2", "t-4", "t-5"}, unsure: 3, lost: 3, conns: 2,
		},
		{
			name:    "no QoS 2 and no QoS 1 upstream",
			scripts: []upstreamtest.Script{{Limits: packets.Properties{MaximumQOS: ptr(byte(0))}}},
			n:       5, conns: 1,
		},
		{
			name:    "no QoS 2 upstream",
			scripts: []upstreamtest.Script{{Limits: packets.Properties{MaximumQOS: ptr(byte(1))}}},
			n:       5, conns: 1,
		},
	} {
		run(t, tt.name, tt.options, func(t *testing.T, r *rig) {
			var list []buffer.Message
			for _, p := range series(1, tt.n, "") {
				list = append(list, message(p))
			}
			if tt.big > 0 {
				list[tt.big-1] = message(big)
			}
			r.put(buffer.Telemetry, buffer.Copy{QoS: 2}, list...)
			began := time.Now()
			r.start()
			r.untilEmpty()
			if d := time.Since(began); tt.parked > 0 && tt.conns == 1 && d > time.Second {
				t.Errorf("what was refused held up the line for %v", d)
			}
			want := tt.want
			if want == nil {
				want = series(1, tt.n, "")
			}
			if got := r.delivered(); !slices.Equal(got, want) {
				t.Errorf("a subscriber got %q, want %q", got, want)
			}
			l, s := r.out.Ledger(), r.bridge.Status()
			if l.Parked != tt.parked || l.Uncertain != tt.unsure || l.Delivered != uint64(tt.n)-tt.parked-tt.unsure {
				t.Errorf("ledger %+v, want %d parked, %d uncertain, all others delivered", l, tt.parked, tt.unsure)
			}
			if s.Delivered != l.Delivered || s.Parked != l.Parked || s.Uncertain != tt.lost {
				t.Errorf("status %+v, ledger %+v, want %d uncertain", s, l, tt.lost)
			}
			if got := len(r.up.Connects()); tt.conns > 0 && got != tt.conns {
				t.Errorf("%d connections, want %d", got, tt.conns)
			}
			if n := r.up.Half(); n != 0 {
				t.Errorf("%d messages are left halfway", n)
			}
		}, tt.scripts...)
	}
}

// delivered are the payloads that a subscriber got.
func (r *rig) delivered() (list []string) {
	for _, d := range r.up.Delivered() {
		list = append(list, d.Payload)
	}
	return list
}

// A restarted process releases what it knows to be received, and repeats the rest
// under the same ids.
func TestExactlyOnceRestart(t *testing.T) {
	run(t, "halfway", Options{}, func(t *testing.T, r *rig) {
		r.fillQoS(2, 10)
		r.start()
		synctest.Wait()
		if n := r.up.Half(); n != 10 {
			t.Fatalf("%d messages are halfway, want all", n)
		}
		r.restart("next process", Options{}, upstreamtest.Script{AtRelease: true})
		r.start()
		r.untilEmpty()
		if got := r.delivered(); !slices.Equal(got, series(1, 10, "")) {
			t.Errorf("a subscriber got %q", got)
		}
		if n := r.up.Count(); n != 10 {
			t.Errorf("%d PUBLISH packets, want no repeats", n)
		}
	}, upstreamtest.Script{AtRelease: true, Pubrel: func(uint16) answer { return answer{Do: upstreamtest.Swallow} }})
	run(t, "PUBREC lost", Options{}, func(t *testing.T, r *rig) {
		r.fillQoS(2, 10)
		r.start()
		synctest.Wait()
		r.restart("next process", Options{}, upstreamtest.Script{})
		r.start()
		r.untilEmpty()
		if got := r.delivered(); !slices.Equal(got, series(1, 10, "")) {
			t.Errorf("a subscriber got %q", got)
		}
	}, upstreamtest.Script{CutSent: 11}, upstreamtest.Script{Unreachable: true})
}

// Only the upstream of the last CONNACK is asked for the session.
func TestCleanStart(t *testing.T) {
	two := Options{Upstream: []string{"mqtt://a", "mqtt://b"}}
	run(t, "other upstream", two, func(t *testing.T, r *rig) {
		r.start()
		r.until("four connections", func() bool { return r.bridge.Status().Connections == 2 })
		r.restart("next process", two)
		r.start()
		r.until("connected", func() bool { return r.bridge.Status().Connected })
		var got []string
		for _, c := range r.up.Connects() {
			got = append(got, fmt.Sprint(strings.TrimPrefix(c.URL, "mqtt://"), c.Packet.CleanStart))
		}
		// a is the last again: b has refused
		if want := []string{"atrue", "btrue", "afalse"}; !slices.Equal(got[:3], want) {
			t.Errorf("CONNECTs %q", got)
		}
	}, upstreamtest.Script{Publish: nil, Disconnect: 0x8B}, upstreamtest.Script{Code: 0x88}, upstreamtest.Script{})
}

// What the upstream has halfway and the disk has lost is released all the same: its
// id would otherwise swallow a message that gets it next.
func TestUnreadableIsReleased(t *testing.T) {
	run(t, "a damaged block", Options{}, func(t *testing.T, r *rig) {
		for _, p := range series(1, 10, "") {
			r.put(buffer.Telemetry, buffer.Copy{QoS: 2}, message(p)) // a block each
		}
		r.start()
		synctest.Wait()
		if n := r.up.Half(); n != 10 {
			t.Fatalf("%d messages are halfway, want all", n)
		}
		r.halt()
		r.reopen(func(dir string) {
			files, err := filepath.Glob(filepath.Join(dir, "telemetry", "*.db"))
			if err != nil || len(files) != 1 {
				t.Fatalf("files %q, %v", files, err)
			}
			p, err := os.ReadFile(files[0])
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(p, []byte("t-5")) {
				t.Fatal("t-5 does not stand in the file")
			}
			p = bytes.ReplaceAll(p, []byte("t-5"), []byte("t?5"))
			if err := os.WriteFile(files[0], p, 0o600); err != nil {
				t.Fatal(err)
			}
		})
		r.restart("next process", Options{}, upstreamtest.Script{})
		r.start()
		r.untilEmpty()
		r.until("nothing halfway", func() bool { return r.up.Half() == 0 })
		if got := r.delivered(); !slices.Equal(got, series(1, 10, "")) {
			t.Errorf("a subscriber got %q", got)
		}
		if l := r.out.Ledger(); l.Delivered != 9 || l.Dropped["quarantined"] != 1 {
			t.Errorf("ledger %+v", l)
		}
	}, upstreamtest.Script{CutSent: 11}, upstreamtest.Script{Unreachable: true})
}

// All three QoS in one stream, and what is in between of another class.
func TestMixedQoS(t *testing.T) {
	run(t, "in order", Options{Window: 7}, func(t *testing.T, r *rig) {
		for i := range 300 {
			m := message(fmt.Sprintf("t-%d", i+1))
			r.put(buffer.Telemetry, buffer.Copy{QoS: byte(i % 3)}, m)
		}
		r.start()
		r.untilEmpty()
		if got := r.delivered(); !slices.Equal(got, series(1, 300, "")) {
			t.Errorf("a subscriber got %q", got)
		}
	})
}

func TestTopicAliases(t *testing.T) {
	limits := packets.Properties{TopicAliasMaximum: ptr(uint16(2))}
	run(t, "the first topics", Options{}, func(t *testing.T, r *rig) {
		for _, topic := range []string{"one/topic", "two/topic", "one/topic", "three/topic", "two/topic", "one/topic"} {
			r.put(buffer.Telemetry, buffer.Copy{QoS: 1, Topic: topic}, message("x"))
		}
		r.start()
		r.until("six", func() bool { return r.up.Count() == 6 })
		var got []string
		for _, p := range r.up.Publishes() {
			got = append(got, fmt.Sprint(p.Topic, " ", p.Alias, " ", p.Size))
		}
		want := []string{"one/topic 1 20", "two/topic 2 20", "one/topic 1 11", "three/topic 0 19", "two/topic 2 11", "one/topic 1 11"}
		if !slices.Equal(got, want) {
			t.Errorf("got %q", got)
		}
		r.up.Cut()
		r.put(buffer.Telemetry, buffer.Copy{QoS: 1, Topic: "two/topic"}, message("x"))
		r.untilEmpty()
		if p := r.up.Publishes()[6]; p.Topic != "two/topic" || p.Alias != 1 {
			t.Errorf("on a new connection %+v", p)
		}
	}, upstreamtest.Script{Limits: limits})
}

// The connection is cut at every byte, with QoS 2: each comes once.
func TestExactlyOnceCutAtEveryByte(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Options{})
		total := uint64(0)
		check := func(name string, s upstreamtest.Script) {
			r.restart(name, Options{Backoff: Backoff{First: 100 * time.Millisecond}}, s, s, upstreamtest.Script{AtRelease: s.AtRelease})
			before := len(r.up.Delivered())
			r.fillQoS(2, 4)
			r.start()
			r.untilEmpty()
			r.halt()
			if got := r.delivered()[before:]; !slices.Equal(got, series(1, 4, "")) {
				t.Errorf("%s: a subscriber got %q", name, got)
			}
			total += 4
			if l := r.out.Ledger(); l.Delivered != total {
				t.Errorf("%s: ledger %+v, want all delivered", name, l)
			}
		}
		for n := 1; n < 100; n++ {
			check(fmt.Sprint("received ", n), upstreamtest.Script{CutReceived: n, AtRelease: n%2 == 0})
		}
		for n := 1; n < 45; n++ {
			check(fmt.Sprint("sent ", n), upstreamtest.Script{CutSent: n, AtRelease: n%2 == 0})
		}
	})
}
