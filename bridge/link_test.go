package bridge

import (
	"bytes"
	"context"
	"errors"
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

// A link that goes dead without a word is noticed within 1.5 times keepalive,
// whatever the bridge is doing.
func TestDeadLink(t *testing.T) {
	const keepalive = 20 * time.Second
	for _, tt := range []struct {
		name   string
		script upstreamtest.Script
		qos    byte
		steady bool // a message every second
	}{
		{"idle, frozen", upstreamtest.Script{Publish: from(1, answer{Do: upstreamtest.Freeze})}, 1, false},
		{"idle, swallowing", upstreamtest.Script{Publish: from(1, answer{Do: upstreamtest.Swallow})}, 1, false},
		{"publishing QoS 1, frozen", upstreamtest.Script{Publish: from(1, answer{Do: upstreamtest.Freeze})}, 1, true},
		{"publishing QoS 1, swallowing", upstreamtest.Script{Publish: from(1, answer{Do: upstreamtest.Swallow})}, 1, true},
		{"publishing QoS 0, frozen", upstreamtest.Script{Publish: from(1, answer{Do: upstreamtest.Freeze})}, 0, true},
		{"publishing QoS 0, swallowing", upstreamtest.Script{Publish: from(1, answer{Do: upstreamtest.Swallow})}, 0, true},
	} {
		run(t, tt.name, Options{Keepalive: keepalive}, func(t *testing.T, r *rig) {
			r.start()
			time.Sleep(time.Minute) // a quiet link is kept up by pings
			if c := r.up.Connects(); len(c) != 1 || c[0].Pings < 3 {
				t.Fatalf("after a quiet minute: %+v", c)
			}
			dead := time.Now()
			r.put(buffer.Telemetry, buffer.Copy{QoS: tt.qos}, message("x"))
			for len(r.up.Connects()) == 1 {
				if time.Since(dead) > keepalive*3/2 {
					t.Fatalf("not noticed after %v", time.Since(dead))
				}
				time.Sleep(time.Second)
				if tt.steady {
					r.put(buffer.Telemetry, buffer.Copy{QoS: tt.qos}, message("x"))
				}
			}
			r.untilEmpty()
		}, tt.script, upstreamtest.Script{})
	}
}

func TestServerKeepAliveIsObeyed(t *testing.T) {
	run(t, "shorter", Options{Keepalive: time.Minute}, func(t *testing.T, r *rig) {
		r.start()
		time.Sleep(time.Minute) // the server notes it as a violation if nothing comes
		if c := r.up.Connects(); len(c) != 1 || c[0].Pings < 12 {
			t.Errorf("connections %+v, want one with a ping at least each 4 s", c)
		}
	}, upstreamtest.Script{Limits: packets.Properties{ServerKeepAlive: ptr(uint16(4))}})
}

// An upstream that ends the connection without a DISCONNECT has not said why.
func TestClosedWithoutAReason(t *testing.T) {
	run(t, "cut", Options{}, func(t *testing.T, r *rig) {
		r.start()
		time.Sleep(time.Minute)
		r.up.Cut()
		r.until("another connection", func() bool { return len(r.up.Connects()) >= 2 && r.bridge.Status().Connected })
		if s := r.bridge.Status(); !strings.Contains(s.LastError, "the upstream closed the connection and did not say why") {
			t.Errorf("the error is %q", s.LastError)
		}
	}, upstreamtest.Script{}, upstreamtest.Script{})
}

// A twin with our client id takes the session again and again: the bridge comes
// back at once after the first time, and then at most once a second, slower and
// slower.
func TestTakeover(t *testing.T) {
	run(t, "twin", Options{}, func(t *testing.T, r *rig) {
		r.start()
		time.Sleep(time.Minute)
		r.up.Disconnect(0x8E)
		r.until("ten connections", func() bool { return len(r.up.Connects()) >= 10 })
		c := r.up.Connects()
		if d := c[1].At.Sub(c[0].At); d != time.Minute {
			t.Errorf("back %v after a minute of a stable connection, want at once", d-time.Minute)
		}
		for i := 2; i < len(c); i++ {
			if d := c[i].At.Sub(c[i-1].At); d < time.Second {
				t.Errorf("attempt %d came after %v", i, d)
			}
		}
		if d := c[9].At.Sub(c[1].At); d < 15*time.Second {
			t.Errorf("eight attempts in %v: no back-off", d)
		}
		if s := r.bridge.Status(); s.TakenOver < 9 || !strings.Contains(s.LastError, "client_id") {
			t.Errorf("status %+v does not tell of the twin", s)
		}
	}, upstreamtest.Script{}, upstreamtest.Script{Disconnect: 0x8E})
}

// Not even a short back-off lets two clients with one id chase each other.
func TestTakeoverWithShortBackoff(t *testing.T) {
	run(t, "twin", Options{Backoff: Backoff{First: 10 * time.Millisecond, Max: 10 * time.Millisecond}}, func(t *testing.T, r *rig) {
		r.start()
		r.until("ten connections", func() bool { return len(r.up.Connects()) >= 10 })
		c := r.up.Connects()
		for i := 1; i < len(c); i++ {
			if d := c[i].At.Sub(c[i-1].At); d < time.Second {
				t.Errorf("attempt %d came after %v", i, d)
			}
		}
	}, upstreamtest.Script{Disconnect: 0x8E})
}

func TestBackoff(t *testing.T) {
	b := Backoff{First: 100 * time.Millisecond, Max: time.Second}.withDefaults()
	var longest [8]time.Duration
	for range 2000 {
		for n := range longest {
			d := b.delay(n)
			longest[n] = max(longest[n], d)
			if n > 0 && (d < b.First || d > min(b.Max, b.First<<n)) {
				t.Fatalf("attempt %d waits %v", n, d)
			}
		}
	}
	if longest[0] != 0 {
		t.Errorf("the first attempt waits %v", longest[0])
	}
	if longest[1] < 150*time.Millisecond || longest[7] < 900*time.Millisecond {
		t.Errorf("longest waits %v, want them spread up to 200ms and 1s", longest)
	}
	if d := (Backoff{}).withDefaults().delay(1 << 20); d < time.Second || d > time.Minute {
		t.Errorf("late attempt waits %v", d)
	}
}

// The upstreams are tried in turn, without a wait until one answers; after a stable
// connection the same one is tried first, because it has the session.
func TestUpstreamsInTurn(t *testing.T) {
	run(t, "three", Options{Upstream: []string{"mqtt://a", "mqtt://b", "mqtt://c"}}, func(t *testing.T, r *rig) {
		r.start()
		time.Sleep(30 * time.Second)
		r.up.Cut()
		synctest.Wait()
		var urls []string
		for _, c := range r.up.Connects() {
			urls = append(urls, strings.TrimPrefix(c.URL, "mqtt://"))
			if d := c.At.Sub(r.up.Connects()[0].At) % (30 * time.Second); d != 0 {
				t.Errorf("%s was tried after a wait of %v", c.URL, d)
			}
		}
		if got := strings.Join(urls, " "); got != "a b c c a" {
			t.Errorf("tried %s", got)
		}
	}, upstreamtest.Script{Unreachable: true}, upstreamtest.Script{Code: 0x9C}, upstreamtest.Script{},
		upstreamtest.Script{Unreachable: true}, upstreamtest.Script{})
}

func TestPresence(t *testing.T) {
	presence := &Presence{Topic: "gw/status", Payload: func(online bool, reason string, _ time.Time) []byte {
		return fmt.Appendf(nil, "%t %s", online, reason)
	}}
	run(t, "online, will, offline", Options{Presence: presence, Username: "u", Password: func() (string, error) { return "p", nil }, SessionExpiry: time.Hour}, func(t *testing.T, r *rig) {
		r.start()
		synctest.Wait()
		r.stop()
		c := r.up.Connects()[0]
		p := c.Packet
		if p.WillTopic != "gw/status" || string(p.WillMessage) != "false connection lost" || p.WillQOS != 1 || !p.WillRetain {
			t.Errorf("will %q %q QoS %d retain %t", p.WillTopic, p.WillMessage, p.WillQOS, p.WillRetain)
		}
		if !p.CleanStart || *p.Properties.SessionExpiryInterval != 3600 || p.Username != "u" || string(p.Password) != "p" || p.ClientID != "gw-1" || p.KeepAlive != 30 {
			t.Errorf("CONNECT %v", p)
		}
		r.wantPayloads("true ", "false stopped")
		for _, p := range r.up.Publishes() {
			if p.QoS != 1 || !p.Retain || p.ID >= idBlock {
				t.Errorf("status was sent as %+v", p)
			}
		}
		if !c.Goodbye {
			t.Error("no DISCONNECT")
		}
	})
	run(t, "full window at the stop", Options{Presence: presence}, func(t *testing.T, r *rig) {
		r.fill(3)
		r.start()
		synctest.Wait()
		r.up.Release() // the first status
		synctest.Wait()
		r.stop()
		r.wantPayloads("true ", "t-1", "false stopped")
		if got := r.up.Publishes()[2].QoS; got != 0 {
			t.Errorf("offline went with QoS %d", got)
		}
		if l := r.out.Ledger(); l.Stored != 3 {
			t.Errorf("ledger %+v", l)
		}
	}, upstreamtest.Script{Limits: packets.Properties{ReceiveMaximum: ptr(uint16(1))}, Publish: hold})
	run(t, "upstream takes no retained will and no QoS 1", Options{Presence: presence}, func(t *testing.T, r *rig) {
		r.start()
		r.until("connected", func() bool { return r.bridge.Status().Connected })
		if p := r.up.Connects()[2].Packet; p.WillRetain || p.WillQOS != 0 {
			t.Errorf("will with QoS %d, retain %t", p.WillQOS, p.WillRetain)
		}
	}, upstreamtest.Script{Code: 0x9A}, upstreamtest.Script{Code: 0x9B}, upstreamtest.Script{})
	run(t, "refused status harms nothing", Options{Presence: presence}, func(t *testing.T, r *rig) {
		r.fill(2)
		r.start()
		r.untilEmpty()
		if s := r.bridge.Status(); s.Parked != 0 || s.Connections != 1 {
			t.Errorf("status %+v", s)
		}
	}, upstreamtest.Script{Publish: on(map[int]answer{1: {Code: 0x87}})})
	run(t, "status that is refused for now goes again", Options{Presence: presence}, func(t *testing.T, r *rig) {
		r.start()
		r.until("three times", func() bool { return len(r.up.Publishes()) == 3 })
		time.Sleep(time.Minute) // of the bubble: nothing more comes
		r.wantPayloads("true ", "true ", "true ")
		p := r.up.Publishes()
		for i, want := range []time.Duration{1, 2} {
			if got := p[i+1].At.Sub(p[i].At); got != want*time.Second {
				t.Errorf("pause %d is %v, want %v", i, got, want*time.Second)
			}
		}
	}, upstreamtest.Script{Publish: on(map[int]answer{1: {Code: 0x97}, 2: {Code: 0x97}})})
}

// What an old session still sends is declined, and answers to nothing harm nothing.
func TestNotAskedFor(t *testing.T) {
	run(t, "declined", Options{}, func(t *testing.T, r *rig) {
		r.fill(3)
		r.start()
		r.untilEmpty()
		r.wantPayloads(series(1, 3, "")...)
		r.until("three answers", func() bool { return len(r.up.Connects()[0].Refused) == 3 })
		if c := r.up.Connects(); len(c) != 1 || !bytes.Equal(c[0].Refused, []byte{0x83, 0x83, 0x92}) {
			t.Errorf("connections %+v", c)
		}
		if s := r.bridge.Status(); s.Delivered != 3 || s.Parked != 0 || s.Refused != 0 {
			t.Errorf("status %+v", s)
		}
	}, upstreamtest.Script{Publish: on(map[int]answer{2: {Do: upstreamtest.Inject}})})
}

func TestAssignedClientID(t *testing.T) {
	up := upstreamtest.New()
	defer up.Close()
	b, err := New(nil, Outboxes{}, Options{Upstream: []string{"mqtt://x"}, Dial: up.Dial})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"", "assigned"} {
		c, err := b.connect(t.Context(), b.urls[0])
		if err != nil {
			t.Fatal(err)
		}
		c.line.Close()
		list := up.Connects()
		if got := list[len(list)-1].Packet.ClientID; got != want {
			t.Errorf("client id %q, want %q", got, want)
		}
	}
}

// A stop does not wait for an upstream that is dead.
func TestStop(t *testing.T) {
	for name, script := range map[string]upstreamtest.Script{
		"mute":       {Mute: true},
		"frozen":     {Publish: from(1, answer{Do: upstreamtest.Freeze})},
		"swallowing": {Publish: from(1, answer{Do: upstreamtest.Swallow})},
		"refusing":   {Unreachable: true},
	} {
		run(t, name, Options{}, func(t *testing.T, r *rig) {
			r.fill(500)
			r.start()
			time.Sleep(100 * time.Millisecond)
			began := time.Now()
			r.stop()
			if d := time.Since(began); d > stopTimeout {
				t.Errorf("stopping took %v", d)
			}
			if l := r.out.Ledger(); l.Stored != 500 {
				t.Errorf("ledger %+v", l)
			}
		}, script)
	}
}

// A buffer that cannot be read ends Run: somebody must know.
func TestBufferFails(t *testing.T) {
	up := upstreamtest.New()
	defer up.Close()
	broken := errors.New("disk is gone")
	b, err := New(brokenSource{broken}, Outboxes{}, Options{Upstream: []string{"mqtt://x"}, Dial: up.Dial})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Run(t.Context()); !errors.Is(err, broken) {
		t.Errorf("Run: %v, want %v", err, broken)
	}
}

type brokenSource struct{ err error }

func (s brokenSource) Next(context.Context, []buffer.Delivery) (int, error) { return 0, s.err }
func (s brokenSource) Rewind()                                              {}

func TestNewErrors(t *testing.T) {
	for _, tt := range []struct {
		upstream []string
		want     string
	}{
		{nil, "bridge: no upstream"},
		{[]string{"mqtt://"}, `upstream "mqtt:": no host`},
		{[]string{"mqtt://a", "http://u:secret@b"}, `upstream "http://u:xxxxx@b": http is not supported, use mqtt, mqtts, ws or wss`},
		{[]string{"mqtt://a", "mqtt://u:secret@a:b:c"}, `upstream 2: invalid port ":c" after host`},
	} {
		if _, err := New(nil, Outboxes{}, Options{Upstream: tt.upstream}); err == nil || err.Error() != tt.want {
			t.Errorf("%q: error %v, want %s", tt.upstream, err, tt.want)
		}
	}
}

// A password is asked for anew for each connection, and one that cannot be had is
// a failed attempt.
func TestPasswordIsReadEachTime(t *testing.T) {
	asked := 0
	password := func() (string, error) {
		if asked++; asked == 1 {
			return "", errors.New("no such file")
		}
		return fmt.Sprint("token-", asked), nil
	}
	run(t, "token", Options{Username: "u", Password: password}, func(t *testing.T, r *rig) {
		r.start()
		r.until("connected", func() bool { return r.bridge.Status().Connected })
		r.up.Cut()
		r.until("again", func() bool { return r.bridge.Status().Connections == 2 })
		var got []string
		for _, c := range r.up.Connects() {
			if c.Packet != nil {
				got = append(got, string(c.Packet.Password))
			}
		}
		if !slices.Equal(got, []string{"token-2", "token-3"}) {
			t.Errorf("passwords %q", got)
		}
	})
}

// Over TCP, with the default dialer.
func TestTCP(t *testing.T) {
	up := upstreamtest.New()
	defer up.Close()
	u, err := up.Listen()
	if err != nil {
		t.Fatal(err)
	}
	buf, err := buffer.Open(t.TempDir(), buffer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer buf.Close()
	out, err := OpenOutboxes(buf, "bridge/test/0")
	if err != nil {
		t.Fatal(err)
	}
	reader, err := buf.Reader(out[:]...)
	if err != nil {
		t.Fatal(err)
	}
	b, err := New(reader, out, Options{Upstream: []string{u}})
	if err != nil {
		t.Fatal(err)
	}
	payload := bytes.Repeat([]byte{'p'}, 300<<10) // more than a buffer
	for range 20 {
		m := buffer.Message{Topic: "t", Payload: payload, Copies: []buffer.Copy{{Outbox: out[buffer.Telemetry], QoS: 1}}}
		if err := buf.Append(t.Context(), buffer.Telemetry, &m, make(receipt, 1)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	err = up.Await(ctx, func() bool { return up.Count() == 20 })
	cancel()
	if err != nil {
		t.Errorf("%d messages came: %v", up.Count(), err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, p := range up.Publishes() {
		if p.Payload != string(payload) {
			t.Fatal("a payload differs")
		}
	}
	if v := up.Violations(); len(v) > 0 {
		t.Error(v)
	}
}
