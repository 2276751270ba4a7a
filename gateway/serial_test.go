package gateway

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/serial"
	"github.com/fieldferry/fieldferry/adapters/simulate"
	"github.com/fieldferry/fieldferry/gateway/config"
	"github.com/fieldferry/fieldferry/localbroker"
)

// A profile of examples/serial, and what is known of its device.
type serialProfile struct {
	file   string
	point  string              // whose value is looked at
	value  func(n int) float64 // raw, of the n-th message
	want   func(n int) string  // the value as it is shown
	checks bool                // its messages have a check
}

var serialProfiles = []serialProfile{
	{file: "scale-mt-sics", point: "weight", value: func(n int) float64 { return float64(10000+n) / 100 }, want: func(n int) string { return fmt.Sprint(float64(10000+n) / 100) }},
	{file: "scale-ohaus", point: "weight", value: func(n int) float64 { return float64(10000+n) / 100 }, want: func(n int) string { return fmt.Sprint(float64(10000+n) / 100) }},
	{file: "receiver-nmea", point: "altitude", value: func(n int) float64 { return float64(5000+n) / 10 }, want: func(n int) string { return fmt.Sprint(float64(5000+n) / 10) }, checks: true},
	{file: "meter-iec62056-21", point: "taken", value: func(n int) float64 { return float64(12345+n) / 10 }, want: func(n int) string { return fmt.Sprint(float64(12345+n) / 10) }, checks: true},
	{file: "meter-mbus", point: "volume", value: func(n int) float64 { return float64(12345 + n) }, want: func(n int) string { return fmt.Sprint(float64(12345+n) / 1000) }, checks: true},
	{file: "scanner-barcode", point: "code", value: func(n int) float64 { return float64(100000 + 10*n) }, want: func(n int) string { return ean(fmt.Sprintf("4006381%05d", 10000+n)) }, checks: true},
}

// ean adds the check digit.
func ean(digits string) string {
	sum := 0
	for i, c := range digits {
		sum += int(c-'0') * (1 + 2*(i%2))
	}
	return digits + string(rune('0'+(10-sum%10)%10))
}

// plug is a port that can be pulled out.
type plug struct {
	t       *testing.T
	path    string
	talkers []*simulate.Talker
	pty     *simulate.PTY
	cancel  context.CancelFunc
	done    chan struct{}
}

// in makes the port.
func (p *plug) in() {
	p.t.Helper()
	pty, err := simulate.OpenPTY()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := os.Symlink(pty.Path, p.path); err != nil {
		p.t.Fatal(err)
	}
	p.serve(pty)
}

func (p *plug) serve(pty *simulate.PTY) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	p.pty, p.cancel, p.done = pty, cancel, done
	go func() {
		defer close(done)
		_ = simulate.ServeTalkers(ctx, pty, p.talkers...) // pulled out, mostly
	}()
}

// out takes it away.
func (p *plug) out() {
	if p.cancel == nil {
		return
	}
	os.Remove(p.path)
	p.cancel()
	<-p.done
	p.cancel = nil
}

// heard is a sink that keeps the values of one point.
type heard struct {
	point string
	news  chan struct{}

	mu      sync.Mutex // guards what follows
	good    []string
	bad     int
	offline bool
}

func (h *heard) Emit(_ context.Context, r adapters.Reading) error {
	h.mu.Lock()
	for i := range r.Samples {
		if s := &r.Samples[i]; s.Point.Name == h.point {
			if s.Quality == adapters.Good {
				h.good = append(h.good, s.Value.String())
			} else {
				h.bad++
			}
		}
	}
	h.mu.Unlock()
	h.tell()
	return nil
}

func (h *heard) Status(_ context.Context, s adapters.Status) error {
	h.mu.Lock()
	h.offline = !s.Online
	h.mu.Unlock()
	h.tell()
	return nil
}

func (h *heard) tell() {
	select {
	case h.news <- struct{}{}:
	default:
	}
}

func (h *heard) until(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		h.mu.Lock()
		ok := is()
		h.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-h.news:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (h *heard) more(t *testing.T, n int) {
	t.Helper()
	h.mu.Lock()
	from := len(h.good)
	h.mu.Unlock()
	h.until(t, fmt.Sprintf("%d good values", n), func() bool { return len(h.good) >= from+n })
}

// rig is a profile that runs against its simulated device.
type rig struct {
	*heard
	*plug
	link *serial.Link

	mu2  sync.Mutex // guards what follows
	sent int        // messages
}

func startProfile(t *testing.T, p *serialProfile) *rig {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("serial lines are simulated on Linux only")
	}
	c, problems := config.Load(filepath.Join("..", "examples", "serial", p.file+".yaml"), config.Options{})
	if c == nil {
		t.Fatal(problems)
	}
	if wrong := serialProblems(c); len(wrong) > 0 {
		t.Fatal(wrong)
	}
	a := &c.Adapters[0]
	sc := SerialConfig(a, nil)
	sc.Port = filepath.Join(t.TempDir(), "port")
	sc.Devices = sc.Devices[:1]
	d := &sc.Devices[0]
	if d.Every > 0 {
		d.Every = 50 * time.Millisecond
	}
	for i := range d.Points {
		if d.Points[i].Every > 0 {
			d.Points[i].Every = d.Every
		}
	}
	sc.Timeout = 200 * time.Millisecond
	r := &rig{heard: &heard{point: p.point, news: make(chan struct{}, 1)}, plug: &plug{t: t, path: sc.Port}}
	say := func() []byte {
		r.mu2.Lock()
		r.sent++
		n := r.sent
		r.mu2.Unlock()
		b, err := d.Compose(a.Devices[0].Simulate, func(name string) float64 {
			if name == p.point {
				return p.value(n)
			}
			return 7
		})
		if err != nil {
			t.Error(err)
		}
		return b
	}
	r.talkers = []*simulate.Talker{talkerOf(&a.Devices[0], d, a.Serial.Line.Baud, say)}
	var err error
	if r.link, err = serial.New(sc); err != nil {
		t.Fatal(err)
	}
	r.in()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.link.Run(ctx, r.heard) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		r.out()
		r.honest(t, p)
	})
	return r
}

// honest checks that all values that were shown as good had been sent, in order and
// each once.
func (r *rig) honest(t *testing.T, p *serialProfile) {
	t.Helper()
	n := 0
	for _, v := range r.good {
		from := n
		for n++; n <= r.sent && p.want(n) != v; n++ {
		}
		if n > r.sent {
			t.Fatalf("%s was shown as good, which was not sent after message %d", v, from)
		}
	}
	t.Logf("%d sent, %d good, %d bad, %+v", r.sent, len(r.good), r.bad, r.link.Frames())
}

func talkerOf(of *config.Device, d *serial.Device, baud int, say func() []byte) *simulate.Talker {
	switch {
	case of.ID == "meter-0001":
		return &simulate.Talker{Answers: []simulate.TalkerAnswer{
			{Request: d.Steps[0].Send, Baud: baud, Reply: func() []byte { return []byte(of.Steps[0].Reply) }},
			{Request: d.Steps[1].Send, Baud: baud, Reply: say, Replies: d.Steps[1].Baud},
		}}
	case len(d.Steps) > 0:
		return &simulate.Talker{Answers: []simulate.TalkerAnswer{
			{Request: d.Steps[0].Send, Reply: func() []byte { return d.Steps[0].Expect }}, {Request: d.Request, Reply: say},
		}}
	case len(d.Request) > 0:
		return &simulate.Talker{Answers: []simulate.TalkerAnswer{{Request: d.Request, Reply: say}}}
	}
	every := 50 * time.Millisecond
	if d.Frame.Idle > 0 {
		every = 3 * d.Frame.Idle
	}
	return &simulate.Talker{Every: every, Say: say}
}

// TestSerialProfiles runs each profile of examples/serial against a simulated device:
// well, and with every fault. No value that is shown as good is wrong.
func TestSerialProfiles(t *testing.T) {
	for i := range serialProfiles {
		p := &serialProfiles[i]
		t.Run(p.file, func(t *testing.T) {
			t.Parallel()
			t.Run("well", func(t *testing.T) {
				t.Parallel()
				r := startProfile(t, p)
				r.more(t, 5)
			})
			t.Run("noise", func(t *testing.T) {
				t.Parallel()
				r := startProfile(t, p)
				r.more(t, 1)
				for range 2 {
					r.talkers[0].SetFault(simulate.Fault{Noise: true, Times: 2})
					r.more(t, 1)
				}
			})
			t.Run("cut", func(t *testing.T) {
				t.Parallel()
				r := startProfile(t, p)
				r.more(t, 1)
				for range 2 {
					r.talkers[0].SetFault(simulate.Fault{Truncate: 1 + rand.IntN(30), Times: 2})
					r.more(t, 1)
				}
			})
			t.Run("wrong check", func(t *testing.T) {
				if !p.checks {
					t.Skip("its messages have no check")
				}
				t.Parallel()
				r := startProfile(t, p)
				r.more(t, 1)
				for range 2 {
					r.talkers[0].SetFault(simulate.Fault{WrongCRC: true, Times: 2})
					r.more(t, 1)
				}
			})
			t.Run("pulled out", func(t *testing.T) {
				t.Parallel()
				r := startProfile(t, p)
				r.more(t, 1)
				for range 2 {
					r.talkers[0].SetFault(simulate.Fault{Truncate: 1 + rand.IntN(12), Hangup: true, Times: 1})
					<-r.done // in the middle of a message
					r.out()
					r.until(t, "its absence to be noticed", func() bool { return r.offline })
					r.in()
					back := time.Now()
					r.more(t, 1)
					t.Logf("reads again %v after the port is back", time.Since(back).Round(time.Millisecond))
				}
			})
			t.Run("hung up", func(t *testing.T) {
				t.Parallel()
				r := startProfile(t, p)
				r.more(t, 1)
				if err := r.pty.HangUp(); err != nil {
					t.Skipf("the line cannot be hung up: %v", err)
				}
				back := time.Now()
				r.more(t, 1)
				t.Logf("reads again %v after the line was hung up", time.Since(back).Round(time.Millisecond))
			})
		})
	}
}

// TestSerialDeviceOfASite reads a device of a site file and tells it something, all
// the way over the local broker.
func TestSerialDeviceOfASite(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("serial lines are simulated on Linux only")
	}
	says := func(s string) func() []byte { return func() []byte { return []byte(s) } }
	p := &plug{t: t, path: filepath.Join(t.TempDir(), "port"), talkers: []*simulate.Talker{{Answers: []simulate.TalkerAnswer{
		{Request: []byte("SI\r\n"), Reply: says("S S     100.00 g\r\n")}, {Request: []byte("T\r\n"), Reply: says("T S\r\n")},
	}}}}
	p.in()
	defer p.out()
	g, stop := start(t, site(t, `
gateway: {data_dir: %q}
broker: {listeners: [{name: plain, listen: "127.0.0.1:0"}]}
adapters:
  line:
    serial: %q
    devices:
      scale-1:
        every: 50ms
        request: "SI\r\n"
        frame: {end: "\r\n"}
        match: '^S (?P<stable>[SD]) (?P<weight>[ 0-9.]{10}) (?P<unit>\w+)$'
        points:
          weight: {field: weight, as: float64, unit: g}
          stable: {field: stable, when: S}
          tare:   {send: "T\r\n", expect: "T S"}
`, t.TempDir(), p.path))
	defer stop()
	telemetry, answers := subscribe(t, g, "devices/scale-1/telemetry"), subscribe(t, g, "devices/scale-1/commands/response")
	receive(t, telemetry, func(m *localbroker.Message) bool {
		return strings.HasPrefix(string(m.Payload), `{"weight":100,"stable":true,"timestamp":`)
	})
	if err := g.Broker().Publish(t.Context(), &localbroker.Message{Topic: "devices/scale-1/commands", Payload: []byte(`{"id":"1","action":"write","values":{"tare":true}}`), QoS: 1, Received: time.Now()}, make(stored, 1)); err != nil {
		t.Fatal(err)
	}
	receive(t, answers, func(m *localbroker.Message) bool {
		return strings.HasPrefix(string(m.Payload), `{"commandId":"1","status":"executed","values":{"tare":true}`)
	})
	s, err := g.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if m := s.Adapters[0].Messages; len(m) != 1 || m[0].Device != "scale-1" || m[0].Good == 0 {
		t.Errorf("%+v", s.Adapters)
	}
}
