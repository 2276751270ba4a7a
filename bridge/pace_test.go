package bridge

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/fieldferry/fieldferry/bridge/upstreamtest"
	"github.com/fieldferry/fieldferry/buffer"
)

// In no second goes more than the limit and a tenth, all of it is used, and an alert
// does not wait for what was there before.
func TestLimit(t *testing.T) {
	for _, tt := range []struct {
		name     string
		limit    Limit
		size     int
		messages int // a second, what the limit comes to
	}{
		{"messages", Limit{Messages: 50}, 10, 50},
		{"one in two seconds", Limit{Messages: 0.5}, 10, 1},
		{"bytes", Limit{Bytes: 5000}, 500 - 10, 10},
		{"both, bytes are less", Limit{Messages: 50, Bytes: 5000}, 500 - 10, 10},
		{"both, messages are less", Limit{Messages: 5, Bytes: 50000}, 500 - 10, 5},
		{"larger than a second's bytes", Limit{Bytes: 250}, 500 - 10, 1},
	} {
		run(t, tt.name, Options{Limit: tt.limit}, func(t *testing.T, r *rig) {
			var list []buffer.Message
			for range 200 {
				list = append(list, message(strings.Repeat("x", tt.size)))
			}
			r.put(buffer.Telemetry, buffer.Copy{QoS: 1}, list...)
			r.start()
			synctest.Wait()
			time.Sleep(2 * time.Second)
			before := r.up.Count()
			r.put(buffer.Alert, buffer.Copy{QoS: 1}, message("alert"))
			r.untilEmptyWithin(time.Hour)
			p := r.up.Publishes()
			if at := slices.IndexFunc(p, func(p upstreamtest.Publish) bool { return p.Payload == "alert" }); at > before+1 {
				t.Errorf("the alert went as number %d, when %d had gone", at, before)
			}
			for i := range p {
				n, bytes := 0, 0
				for _, q := range p[i:] {
					if q.At.Sub(p[i].At) >= time.Second {
						break
					}
					n, bytes = n+1, bytes+q.Size
				}
				if m := tt.limit.Messages; m > 0 && float64(n) > max(m*1.1, 1) {
					t.Fatalf("%d messages in a second from number %d on", n, i)
				}
				if b := tt.limit.Bytes; b > 0 && float64(bytes) > b*1.1+500 {
					t.Fatalf("%d bytes in a second from number %d on", bytes, i)
				}
			}
			rate := float64(len(p)-1) / p[len(p)-1].At.Sub(p[0].At).Seconds()
			want := float64(tt.messages)
			switch tt.name {
			case "one in two seconds", "larger than a second's bytes":
				want = 0.5
			}
			if rate < want*0.9 {
				t.Errorf("%.2f messages a second, want %.2f", rate, want)
			}
		})
	}
}

func (r *rig) untilEmptyWithin(d time.Duration) {
	r.t.Helper()
	for end := time.Now().Add(d); ; time.Sleep(100 * time.Millisecond) {
		synctest.Wait()
		if r.out.Ledger().Stored == 0 {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("%s: outboxes are not empty: %+v", r.name, r.bridge.Status())
		}
	}
}

// With live-first, what could not go is replayed behind what is new, each in its
// order, and says so.
func TestLiveFirst(t *testing.T) {
	run(t, "outage", Options{Limit: Limit{Messages: 100}, Window: 10}, func(t *testing.T, r *rig) {
		m, err := NewMapper(MapperOptions{
			Gateway: "gw", Data: map[string]Data{"telemetry": {QoS: 2, Class: buffer.Telemetry}}, Topic: "{device}/{data}",
			Devices: []Device{{ID: "d"}}, Outboxes: []Outboxes{r.out}, Live: func(int) bool { return r.bridge.Live() },
		})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		publish := func() {
			n++
			route, ok := m.Route("devices/d/telemetry", false, nil)
			if !ok {
				t.Fatal("no route")
			}
			c := route.Copy(buffer.Telemetry)
			msg := buffer.Message{Topic: "x", Payload: fmt.Append(nil, n), Urgent: true, Copies: []buffer.Copy{c}}
			stored := make(receipt, 1)
			if err := r.buffer.Append(t.Context(), buffer.Telemetry, &msg, stored); err != nil {
				t.Fatal(err)
			}
			if err := <-stored; err != nil {
				t.Fatal(err)
			}
		}
		for range 500 { // an outage
			publish()
		}
		r.start()
		r.until("connected", func() bool { return r.bridge.Live() })
		for range 100 { // live, half of what may go
			publish()
			time.Sleep(20 * time.Millisecond)
		}
		r.untilEmpty()
		var live, late []string
		for _, p := range r.up.Publishes() {
			says := slices.ContainsFunc(p.User, func(u packets.User) bool { return u.Key == "replayed" && u.Value == "true" })
			var i int
			fmt.Sscan(p.Payload, &i)
			if says != (i <= 500) {
				t.Fatalf("%d says replayed: %t", i, says)
			}
			if says {
				late = append(late, p.Payload)
				continue
			}
			live = append(live, p.Payload)
		}
		if !slices.Equal(live, numbers(501, 600)) || !slices.Equal(late, numbers(1, 500)) {
			t.Errorf("live came %q, replayed %q", live, late)
		}
		began := r.up.Publishes()[0].At
		for _, p := range r.up.Publishes() {
			var i int
			fmt.Sscan(p.Payload, &i)
			if i > 500 {
				if wait := p.At.Sub(began) - time.Duration(i-501)*20*time.Millisecond; wait > 200*time.Millisecond {
					t.Fatalf("%d, which is live, waited about %v", i, wait)
				}
			}
		}
	})
}

func numbers(from, to int) (list []string) {
	for i := from; i <= to; i++ {
		list = append(list, fmt.Sprint(i))
	}
	return list
}
