package bridge

import (
	"context"
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
