package bridge

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/bridge/upstreamtest"
	"github.com/fieldferry/fieldferry/buffer"
)

// A session is handed over to other outboxes when its own are empty, and goes on there:
// nothing is lost of what comes down, and no packet id is taken for one from before.
func TestHandOver(t *testing.T) {
	presence := &Presence{Topic: "gw/status", Payload: func(online bool, reason string, _ time.Time) []byte {
		if online {
			return []byte("online")
		}
		return []byte("offline " + reason)
	}}
	o := Options{Presence: presence}
	run(t, "two outboxes", o, func(t *testing.T, r *rig) {
		other, err := OpenOutboxes(r.buffer, "bridge/test/1")
		if err != nil {
			t.Fatal(err)
		}
		r.fillQoS(2, 30)
		if err := HandOver(r.out, other); err == nil || !strings.Contains(err.Error(), "not all that is stored is delivered") {
			t.Fatalf("handed over with copies in it: %v", err)
		}
		begin := func() (stop func(error)) {
			ctx, cancel := context.WithCancelCause(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- r.bridge.Run(ctx) }()
			return func(why error) {
				t.Helper()
				cancel(why)
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}
		}
		stop := begin()
		r.untilEmpty()
		stop(ErrHandOver)
		if has, err := other.HasSession(); has || err != nil {
			t.Errorf("there is a session already: %v", err)
		}
		if err := HandOver(r.out, other); err != nil {
			t.Fatal(err)
		}
		if has, err := other.HasSession(); !has || err != nil {
			t.Errorf("there is no session: %v", err)
		}
		// The bridge goes on with the other outboxes.
		r.reader.Close()
		r.out = other
		if r.reader, err = r.buffer.Reader(other[:]...); err != nil {
			t.Fatal(err)
		}
		r.make("other", o)
		r.fillQoS(2, 30)
		stop = begin()
		r.untilEmpty()
		stop(ErrEnd)
		c := r.up.Connects()
		if len(c) != 2 || c[1].Packet.CleanStart || !c[0].Goodbye || !c[1].Goodbye || !r.bridge.Status().SessionPresent {
			t.Errorf("connections %+v", c)
		}
		n := 0
		for _, d := range r.up.Delivered() {
			switch {
			case d.Topic != "gw/status":
				n++
			case d.Payload != "online":
				t.Errorf("the upstream was told %q", d.Payload)
			}
		}
		if n != 60 {
			t.Errorf("%d messages came, want 60", n)
		}
		// The upstream has forgotten the session that ended for good.
		r.make("again", o)
		r.put(buffer.Telemetry, buffer.Copy{QoS: 1}, message("last"))
		stop = begin()
		r.untilEmpty()
		if r.bridge.Status().SessionPresent {
			t.Error("the session is still there")
		}
		stop(nil)
	}, upstreamtest.Script{})
}

// What was never connected has no session to hand over.
func TestHandOverOfNothing(t *testing.T) {
	run(t, "new", Options{}, func(t *testing.T, r *rig) {
		other, err := OpenOutboxes(r.buffer, "bridge/test/1")
		if err != nil {
			t.Fatal(err)
		}
		if err := HandOver(r.out, other); err != nil {
			t.Error(err)
		}
		if has, err := other.HasSession(); has || err != nil {
			t.Errorf("there is a session: %v", err)
		}
	})
}

// What comes down with QoS 2 comes once also when the session is handed over in between,
// with the connection cut anywhere.
func TestDownOverHandOvers(t *testing.T) {
	for seed := range uint64(30) {
		k := &taker{}
		o := Options{Backoff: Backoff{First: 100 * time.Millisecond, Max: 100 * time.Millisecond}}
		rnd := rand.New(rand.NewPCG(seed, 3))
		var scripts []upstreamtest.Script
		for range 20 {
			var s upstreamtest.Script
			if rnd.IntN(2) == 0 {
				s.CutSent = 11 + rnd.IntN(150)
			} else {
				s.CutReceived = 60 + rnd.IntN(60)
			}
			scripts = append(scripts, s)
		}
		run(t, fmt.Sprint("seed ", seed), o, func(t *testing.T, r *rig) {
			k.remember(r)
			defer func() { k.taken.Close() }()
			begin := func() {
				o.Down = k.down(Filter{"#", 2})
				r.make("again", o)
				r.start()
			}
			begin()
			handed := 0
			handOver := func() {
				t.Helper()
				r.halt()
				r.up.Cut()
				handed++
				other, err := OpenOutboxes(r.buffer, fmt.Sprint("bridge/test/0@", handed))
				if err != nil {
					t.Fatal(err)
				}
				if err := HandOver(r.out, other); err != nil {
					t.Fatal(err)
				}
				k.taken.Rewind()
				r.reader.Close()
				r.out = other
				if r.reader, err = r.buffer.Reader(other[:]...); err != nil {
					t.Fatal(err)
				}
				begin()
			}
			r.until("connected", func() bool { return r.bridge.Status().Connected })
			for i := range 40 {
				send(r, 2, fmt.Sprint(i))
				if i%7 == 6 {
					handOver()
				}
				time.Sleep(20 * time.Millisecond)
			}
			r.until("all answered", func() bool { return r.up.Unanswered() == 0 })
			times := map[string]int{}
			for _, p := range k.payloads() {
				times[p]++
			}
			for i := range 40 {
				if n := times[fmt.Sprint(i)]; n != 1 {
					t.Errorf("%d came %d times", i, n)
				}
			}
		}, append(scripts, upstreamtest.Script{})...)
	}
}
