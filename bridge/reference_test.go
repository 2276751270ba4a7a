package bridge

import (
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/bridge/upstreamtest"
)

func TestRefersTo(t *testing.T) {
	for _, tt := range []struct {
		ref, url string
		want     bool
	}{
		{"b.example.com", "mqtts://b.example.com:8883", true},
		{"B.example.com:8883", "mqtts://b.example.com", true},
		{"b.example.com:1883", "mqtts://b.example.com:8883", false},
		{"mqtts://b.example.com:8883", "mqtts://b.example.com:8883", true},
		{"10.0.0.1", "mqtt://10.0.0.1:1883", true},
		{"[::1]:1883", "mqtt://[::1]:1883", true},
		{"[::1]", "mqtt://[::1]:1883", true},
		{"c.example.com", "mqtt://b.example.com:1883", false},
		{"", "mqtt://b.example.com:1883", false},
		{"://", "mqtt://b.example.com:1883", false},
		{":1883", "mqtt://b.example.com:1883", false},
	} {
		u, err := url.Parse(tt.url)
		if err != nil {
			t.Fatal(err)
		}
		if got := refersTo(tt.ref, u); got != tt.want {
			t.Errorf("%q means %s: %v", tt.ref, tt.url, got)
		}
	}
}

// An upstream that says to use another is left for that one, if it is listed; for the
// next one if it is not, and then the error says what to add.
func TestServerReference(t *testing.T) {
	urls := []string{"mqtt://a:1883", "mqtt://b:1883", "mqtt://c:1883"}
	tried := func(r *rig) (all []string) {
		for _, c := range r.up.Connects() {
			all = append(all, c.URL)
		}
		return all
	}
	up := upstreamtest.Script{}
	for _, tt := range []struct {
		name   string
		script upstreamtest.Script
		want   []string
		add    bool // the error says what to add
	}{
		{"CONNACK, use another", upstreamtest.Script{Code: 0x9C, Server: "c:1883"}, []string{urls[0], urls[2]}, false},
		{"CONNACK, moved, the second of its references is ours", upstreamtest.Script{Code: 0x9D, Server: "elsewhere c"}, []string{urls[0], urls[2]}, false},
		{"CONNACK, not listed", upstreamtest.Script{Code: 0x9D, Server: "evil.example.com:1883"}, []string{urls[0], urls[1]}, true},
		{"CONNACK, itself", upstreamtest.Script{Code: 0x9C, Server: "a:1883"}, []string{urls[0], urls[1]}, true},
		{"CONNACK, no reference", upstreamtest.Script{Code: 0x9C}, []string{urls[0], urls[1]}, false},
		{"DISCONNECT, use another", upstreamtest.Script{Disconnect: 0x9C, Server: "c:1883"}, []string{urls[0], urls[2]}, false},
		{"DISCONNECT, not listed", upstreamtest.Script{Disconnect: 0x9D, Server: "d"}, []string{urls[0], urls[1]}, true},
	} {
		run(t, tt.name, Options{Upstream: urls}, func(t *testing.T, r *rig) {
			r.start()
			r.until("two attempts", func() bool { return len(tried(r)) >= 2 && r.bridge.Status().Connected })
			if got := tried(r); !slices.Equal(got, tt.want) {
				t.Errorf("tried %q, want %q", got, tt.want)
			}
			told := r.bridge.Status().LastError
			if got := strings.Contains(told, "add it to upstream"); got != tt.add {
				t.Errorf("the error is %q", told)
			}
		}, tt.script, up)
	}
	run(t, "after a long connection", Options{Upstream: urls}, func(t *testing.T, r *rig) {
		r.start()
		time.Sleep(time.Minute)
		before := time.Now()
		r.up.Disconnect(0x9C)
		r.until("two attempts", func() bool { return len(tried(r)) >= 2 && r.bridge.Status().Connected })
		if got := tried(r); !slices.Equal(got, []string{urls[0], urls[2]}) || r.up.Connects()[1].At.Sub(before) > time.Second {
			t.Errorf("tried %q", got)
		}
	}, upstreamtest.Script{Server: "c:1883"}, up)
	run(t, "two that refer to each other", Options{Upstream: urls[:2], Backoff: Backoff{First: time.Second, Max: time.Second}}, func(t *testing.T, r *rig) {
		r.start()
		time.Sleep(time.Minute)
		if n := len(tried(r)); n < 10 || n > 140 {
			t.Errorf("%d attempts in a minute", n)
		}
	}, upstreamtest.Script{Code: 0x9C, Server: "a b"})
}

// A connection that is made anew has the same session, and nothing is lost or sent
// twice that was acknowledged; the upstream hears no will and no goodbye of the gateway.
func TestRenew(t *testing.T) {
	var told []string
	presence := &Presence{Topic: "gw/status", Payload: func(online bool, reason string, _ time.Time) []byte {
		if online {
			return []byte("online")
		}
		return []byte("offline " + reason)
	}}
	run(t, "twenty times", Options{Presence: presence, Attempted: func(_ *url.URL, err error) {
		if err != nil {
			told = append(told, err.Error())
		} else {
			told = append(told, "up")
		}
	}}, func(t *testing.T, r *rig) {
		r.bridge.Renew() // there is none: nothing
		r.start()
		for i := range 20 {
			r.fillQoS(2, 5)
			r.untilEmpty()
			before := time.Now()
			r.bridge.Renew()
			r.until("a new connection", func() bool { return len(r.up.Connects()) == i+2 && r.bridge.Status().Connected })
			if took := time.Since(before); took > time.Second {
				t.Fatalf("it took %v", took)
			}
			c := r.up.Connects()
			if !c[i].Goodbye || c[i+1].Packet.CleanStart || !r.bridge.Status().SessionPresent {
				t.Fatalf("goodbye %v, clean start %v, status %+v", c[i].Goodbye, c[i+1].Packet.CleanStart, r.bridge.Status())
			}
		}
		n := 0
		for _, p := range r.up.Publishes() {
			switch {
			case p.Topic != "gw/status":
				n++
			case p.Payload != "online":
				t.Errorf("the upstream was told %q", p.Payload)
			}
		}
		if n != 100 || len(told) != 21 || slices.ContainsFunc(told, func(s string) bool { return s != "up" }) {
			t.Errorf("%d messages, told %q", n, told)
		}
	})
}

// An upstream can say what it likes in a reference: only hosts that are listed are
// found in it.
func FuzzReference(f *testing.F) {
	for _, s := range []string{"b:1883", "mqtts://b:1883/x", "[::1]:1883 b", "b b b", "://", "%zz://b", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		b, err := New(nil, Outboxes{}, Options{Upstream: []string{"mqtt://a:1883", "mqtt://b:1883", "mqtt://[::1]:1883"}})
		if err != nil {
			t.Fatal(err)
		}
		at, err := b.nextAfter(0, &ReasonError{Packet: "CONNACK", Code: codeUseAnother, Server: ref})
		if at < 1 || at > 2 || err == nil {
			t.Errorf("%q leads to %d", ref, at)
		}
		if at == 2 && !strings.Contains(ref, "::1") {
			t.Errorf("%q leads to ::1", ref)
		}
	})
}
