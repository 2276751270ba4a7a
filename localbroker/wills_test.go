package localbroker

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// That a will was published is noted in the log, but not where room in it is made.
func TestWillsWhileTheLogIsBusy(t *testing.T) {
	h := openHouse(t, t.TempDir(), houseOptions{Options: Options{Limits: Limits{QueuedMessages: 10}}})
	away, _ := keep(t, h.Broker, packet.V5, "away")
	away.sub("#")
	away.goodbye()
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer stop()
	var published, connections atomic.Int64
	large := make([]byte, 1<<20-100)
	for range 40 { // more than may wait for the disk
		all.Go(func() {
			r := make(told, 1)
			for ctx.Err() == nil {
				if h.Publish(ctx, &Message{Topic: "a", Payload: large, QoS: 1, Urgent: true}, r) == nil && <-r == nil {
					published.Add(1)
				}
			}
		})
	}
	for i := range 20 {
		all.Go(func() {
			for ctx.Err() == nil {
				c := dial(t, h.Broker, packet.V5)
				p := packet.Connect{Version: packet.V5, CleanStart: true, ClientID: fmt.Sprint(i)}
				withWill("will", 0)(&p)
				c.send(p.Append(nil))
				if _, _, err := c.read(time.Minute); err == nil {
					connections.Add(1)
				}
				c.nc.Close()
			}
		})
	}
	last := time.Now()
	for seen := int64(0); published.Load() < 60 || connections.Load() < 20; time.Sleep(time.Millisecond) {
		if n := published.Load() + connections.Load(); n > seen {
			seen, last = n, time.Now()
		}
		if time.Since(last) > patience {
			go panic("nothing goes on any more") // what waits for what is in the trace
			select {}
		}
	}
}

// The will of a client that was connected when the process died is published, also if
// the client is back before anybody looks.
func TestWillAfterACrash(t *testing.T) {
	for _, c := range []struct {
		name  string
		delay uint32
		keep  bool
		want  bool
	}{{"kept", 0, true, true}, {"kept, to be delayed", 60, true, false}, {"not kept", 60, false, true}} {
		t.Run(c.name, func(t *testing.T) {
			h := openHouse(t, t.TempDir(), houseOptions{})
			sub, _ := keep(t, h.Broker, packet.V5, "sub")
			sub.sub("#")
			start := connect
			if c.keep {
				start = func(t testing.TB, b *Broker, v packet.Version, id string, change ...func(*packet.Connect)) *wire {
					w, _ := keep(t, b, v, id, change...)
					return w
				}
			}
			start(t, h.Broker, packet.V5, "c", withWill("will", c.delay))
			h = openHouse(t, h.crashed(), houseOptions{})
			back := start(t, h.Broker, packet.V5, "c")
			back.publish("back", "x", 1, 1)
			back.expectAck(1)
			sub, _ = keep(t, h.Broker, packet.V5, "sub")
			if c.want {
				sub.want("will=gone q1")
			}
			sub.want("back=x q1")
			sub.nothing()
			// And that was that.
			back.goodbye()
			h.stop()
			h = openHouse(t, h.dir, houseOptions{})
			sub, _ = keep(t, h.Broker, packet.V5, "sub")
			sub.nothing()
		})
	}
}

// A will that cannot be published, or comes when the broker stops, does not come at
// the next start.
func TestWillComesOnce(t *testing.T) {
	for _, keeps := range []bool{false, true} {
		limits := Limits{RetainedMessages: 1}
		h := openHouse(t, t.TempDir(), houseOptions{Options: Options{Limits: limits}})
		sub, _ := keep(t, h.Broker, packet.V5, "sub")
		sub.sub("#")
		if err := h.Publish(t.Context(), &Message{Topic: "a", Payload: []byte("x"), Retain: true}, nil); err != nil {
			t.Fatal(err)
		}
		sub.want("a=x q0")
		is := func(p *packet.Connect) {
			if keeps {
				stay(p)
			}
		}
		retained := func(p *packet.Connect) { p.Will.Retain = true }
		refused := connect(t, h.Broker, packet.V5, "refused", withWill("b", 0), retained, is)
		refused.nc.Close()
		eventually(t, "it is not refused", func() bool { return h.Stats().PublishesRefused == 1 })
		connect(t, h.Broker, packet.V5, "refused").goodbye()
		connect(t, h.Broker, packet.V5, "cut", withWill("c", 0), is)
		h.stop()
		h = openHouse(t, h.dir, houseOptions{})
		sub, _ = keep(t, h.Broker, packet.V5, "sub")
		end := connect(t, h.Broker, packet.V5, "end")
		end.publish("end", "x", 1, 1)
		end.expectAck(1)
		sub.want("c=gone q1", "end=x q1")
	}
}

// A will is no way around what a client must not publish.
func TestWillToOwnTopic(t *testing.T) {
	b := start(t, Options{})
	c := dial(t, b, packet.V5)
	if ack := c.connect("c", withWill("$SYS/broker/alarms/x", 1)); ack.Reason != packet.NotAuthorized {
		t.Errorf("CONNECT with a will to $SYS: %v", ack.Reason)
	}
}
