package bridge

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/fieldferry/fieldferry/bridge/upstreamtest"
	"github.com/fieldferry/fieldferry/buffer"
)

func TestLimitsAreObeyed(t *testing.T) {
	limits := packets.Properties{MaximumQOS: ptr(byte(0)), RetainAvailable: ptr(byte(0))}
	run(t, "QoS 0 and no retain", Options{}, func(t *testing.T, r *rig) {
		r.put(buffer.Status, buffer.Copy{QoS: 2, Retain: true}, message("online"))
		r.start()
		r.untilEmpty()
		if p := r.up.Publishes(); len(p) != 1 || p[0].QoS != 0 || p[0].Retain {
			t.Errorf("got %+v", p)
		}
	}, upstreamtest.Script{Limits: limits})
	run(t, "as it is", Options{}, func(t *testing.T, r *rig) {
		r.put(buffer.Status, buffer.Copy{Topic: "up/stream", QoS: 1, Retain: true, Props: appendUser(nil, "b", "2")},
			buffer.Message{Topic: "local", Payload: []byte("online"), Props: appendUser(nil, "a", "1")})
		r.start()
		r.untilEmpty()
		p := r.up.Publishes()
		if len(p) != 1 || p[0].Topic != "up/stream" || p[0].QoS != 1 || !p[0].Retain || p[0].Expiry != nil {
			t.Fatalf("got %+v", p)
		}
		if want := []packets.User{{Key: "a", Value: "1"}, {Key: "b", Value: "2"}}; !slices.Equal(p[0].User, want) {
			t.Errorf("user properties %v, want %v", p[0].User, want)
		}
	})
}

// QoS 0 is delivered when it is in the socket, needs no slot of the window, and is
// not repeated.
func TestQoS0(t *testing.T) {
	limits := packets.Properties{ReceiveMaximum: ptr(uint16(1))}
	run(t, "past a full window", Options{}, func(t *testing.T, r *rig) {
		r.put(buffer.Alert, buffer.Copy{QoS: 1}, message("held"))
		var list []buffer.Message
		for i := range 3000 {
			list = append(list, message(fmt.Sprint(i)))
		}
		r.put(buffer.Telemetry, buffer.Copy{}, list...)
		r.start()
		synctest.Wait()
		r.up.Release()
		r.untilEmpty()
		for i, p := range r.payloads()[1:] {
			if p != fmt.Sprint(i) {
				t.Fatalf("number %d is %s", i, p)
			}
		}
		if got := r.up.Count(); got != 3001 {
			t.Errorf("%d messages came", got)
		}
	}, upstreamtest.Script{Limits: limits, Publish: hold})
}

func TestExpiry(t *testing.T) {
	put := func(r *rig, payload string, expiry time.Duration) {
		r.put(buffer.Telemetry, buffer.Copy{QoS: 1}, buffer.Message{Topic: "t", Payload: []byte(payload), Expiry: expiry})
	}
	run(t, "before it is sent", Options{}, func(t *testing.T, r *rig) {
		put(r, "short", 5*time.Second)
		put(r, "long", time.Minute)
		put(r, "ever", 0)
		time.Sleep(10*time.Second + time.Millisecond)
		r.start()
		r.untilEmpty()
		r.wantPayloads("long", "ever")
		if p := r.up.Publishes(); p[0].Expiry == nil || *p[0].Expiry != 50 || p[1].Expiry != nil {
			t.Errorf("expiry %v and %v, want 50 s and none", p[0].Expiry, p[1].Expiry)
		}
		if l := r.out.Ledger(); l.Delivered != 2 || l.Dropped["expired"] != 1 {
			t.Errorf("ledger %+v", l)
		}
		if s := r.bridge.Status(); s.Expired != 0 { // the buffer did not even hand it out
			t.Errorf("status %+v", s)
		}
	})
	run(t, "not once it may have been sent", Options{Window: 1}, func(t *testing.T, r *rig) {
		put(r, "sent", 5*time.Second)
		put(r, "unsent", 5*time.Second)
		r.start()
		synctest.Wait()
		time.Sleep(10 * time.Second)
		r.up.Cut()
		r.untilEmpty()
		r.wantPayloads("sent", "sent*")
		if p := r.up.Publishes()[1]; p.Expiry == nil || *p.Expiry != 1 {
			t.Errorf("repeated with expiry %v, want 1 s", p.Expiry)
		}
		if l := r.out.Ledger(); l.Delivered != 1 || l.Dropped["expired"] != 1 {
			t.Errorf("ledger %+v", l)
		}
	}, upstreamtest.Script{Publish: ignore}, upstreamtest.Script{})
	run(t, "while it waits for a quota", Options{Window: 1}, func(t *testing.T, r *rig) {
		put(r, "late", 500*time.Millisecond)
		put(r, "next", 0)
		r.start()
		r.untilEmpty()
		r.wantPayloads("late", "next")
	}, upstreamtest.Script{Publish: on(map[int]answer{1: {Code: 0x97}})})
}

// A quota that stays exhausted is asked for less and less, and the order holds.
func TestQuota(t *testing.T) {
	refusals := 0
	publish := func(p upstreamtest.Publish) answer {
		if p.Payload != "t-1" && refusals < 6 {
			refusals++
			return answer{Code: 0x97}
		}
		return answer{}
	}
	run(t, "pauses grow", Options{}, func(t *testing.T, r *rig) {
		r.fill(4)
		r.start()
		r.untilEmpty()
		// t-2, t-3 and t-4 are refused together, then t-2 alone three times
		r.wantPayloads("t-1", "t-2", "t-3", "t-4", "t-2", "t-2", "t-2", "t-2", "t-3", "t-4")
		p := r.up.Publishes()
		for i, want := range []time.Duration{1, 2, 4, 8} {
			if got := p[4+i].At.Sub(p[3+i].At); got != want*time.Second {
				t.Errorf("pause %d is %v, want %v", i, got, want*time.Second)
			}
		}
		if s := r.bridge.Status(); s.Refused != 6 || s.Parked != 0 {
			t.Errorf("status %+v", s)
		}
	}, upstreamtest.Script{Publish: publish})
}
