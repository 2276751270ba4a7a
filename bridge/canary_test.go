package bridge

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fieldferry/fieldferry/bridge/upstreamtest"
)

// echo has the upstream send what is published on a topic back after a while.
func echo(r *rig, topic string, after time.Duration) (stop func()) {
	sent, done := 0, make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(done)
		for {
			var came []upstreamtest.Publish
			if r.up.Await(ctx, func() bool { came = r.up.Publishes(); return len(came) > sent }) != nil {
				return
			}
			for ; sent < len(came); sent++ {
				if came[sent].Topic == topic {
					time.Sleep(after)
					r.up.Send(upstreamtest.Message{Topic: topic, Payload: came[sent].Payload})
				}
			}
		}
	}()
	return func() { cancel(); <-done }
}

func TestProbe(t *testing.T) {
	const topic = "acme/plant/hall/gateway/gw-1/canary"
	probe := func(r *rig) (time.Duration, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		return r.bridge.Probe(ctx)
	}
	run(t, "comes back", Options{Canary: topic}, func(t *testing.T, r *rig) {
		if _, err := probe(r); err == nil || err.Error() != "not connected yet" {
			t.Errorf("before the start: %v", err)
		}
		r.start()
		synctest.Wait()
		defer echo(r, topic, 30*time.Millisecond)()
		for range 3 {
			if took, err := probe(r); err != nil || took < 30*time.Millisecond || took > 40*time.Millisecond {
				t.Errorf("%v, %v", took, err)
			}
		}
		for _, p := range r.up.Publishes() {
			if p.QoS != 0 || p.Retain || p.Expiry == nil || *p.Expiry != canaryExpiry {
				t.Errorf("sent %+v", p)
			}
		}
		if s := r.bridge.Status(); s.Down != 0 || s.Delivered != 0 {
			t.Errorf("it was counted: %+v", s)
		}
	})
	run(t, "with a backlog that nobody acknowledges", Options{Canary: topic, Window: 4}, func(t *testing.T, r *rig) {
		r.start()
		r.fill(100)
		synctest.Wait()
		defer echo(r, topic, time.Millisecond)()
		if took, err := probe(r); err != nil || took > 100*time.Millisecond {
			t.Errorf("%v, %v", took, err)
		}
	}, upstreamtest.Script{Publish: func(upstreamtest.Publish) upstreamtest.Answer { return upstreamtest.Answer{Do: upstreamtest.Ignore} }})
	run(t, "never comes back", Options{Canary: topic}, func(t *testing.T, r *rig) {
		r.start()
		synctest.Wait()
		_, err := probe(r)
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrDoubt) {
			t.Error(err)
		}
		// Others are acknowledged meanwhile: then it may be an access list.
		go func() {
			time.Sleep(time.Second)
			r.fill(1)
		}()
		if _, err = probe(r); !errors.Is(err, ErrDoubt) || !strings.Contains(err.Error(), `allow client "gw-1" to publish and to subscribe to `+topic) {
			t.Error(err)
		}
	})
	run(t, "unreachable", Options{Canary: topic}, func(t *testing.T, r *rig) {
		r.start()
		synctest.Wait()
		if _, err := probe(r); err == nil || !strings.HasPrefix(err.Error(), "not connected: ") {
			t.Error(err)
		}
	}, upstreamtest.Script{Unreachable: true})
	run(t, "no topic", Options{}, func(t *testing.T, r *rig) {
		r.start()
		synctest.Wait()
		if took, err := probe(r); err != nil || took > time.Second {
			t.Errorf("%v, %v", took, err)
		}
	})
	run(t, "no topic, frozen", Options{Keepalive: time.Minute}, func(t *testing.T, r *rig) {
		r.start()
		r.fill(1)
		synctest.Wait()
		if _, err := probe(r); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if n := len(r.bridge.canary.pongs); n != 0 {
			t.Errorf("%d still wait", n)
		}
	}, upstreamtest.Script{Publish: func(upstreamtest.Publish) upstreamtest.Answer { return upstreamtest.Answer{Do: upstreamtest.Freeze} }})
}
