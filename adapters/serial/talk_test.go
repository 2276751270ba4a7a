package serial_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/serial"
	"github.com/fieldferry/fieldferry/adapters/serial/port"
	"github.com/fieldferry/fieldferry/adapters/simulate"
)

// sink keeps what it is told.
type sink struct {
	news chan struct{}

	mu      sync.Mutex // guards what follows
	good    map[string][]string
	offline map[string]bool
}

func newSink() *sink {
	return &sink{news: make(chan struct{}, 1), good: map[string][]string{}, offline: map[string]bool{}}
}

func (s *sink) Emit(_ context.Context, r adapters.Reading) error {
	s.mu.Lock()
	for _, v := range r.Samples {
		if v.Quality == adapters.Good {
			s.good[r.Device.Name] = append(s.good[r.Device.Name], v.Value.String())
		}
	}
	s.mu.Unlock()
	s.tell()
	return nil
}

func (s *sink) Status(_ context.Context, st adapters.Status) error {
	s.mu.Lock()
	s.offline[st.Device.Name] = !st.Online
	s.mu.Unlock()
	s.tell()
	return nil
}

func (s *sink) tell() {
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// until waits for a condition, which is looked at with the lock held.
func (s *sink) until(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		s.mu.Lock()
		ok := is()
		s.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-s.news:
		case <-time.After(10 * time.Millisecond): // of what no sink is told
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// run runs a link until the test ends.
func run(t *testing.T, l *serial.Link, s adapters.Sink) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, s) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// numbers is a device that answers a request with a number, and says no more of
// itself.
func numbers(name, request string) serial.Device {
	return serial.Device{
		Device: &adapters.Device{Name: name}, Every: 20 * time.Millisecond, Request: []byte(request),
		Frame: serial.Frame{End: []byte("\n")}, Match: regexp.MustCompile(`^(?P<n>\d+)$`),
		Points: []serial.Point{{Point: &adapters.Point{Name: "n"}, Field: "n", Type: serial.Int64}},
	}
}

// TestLateAnswer has a device that answers late, on a line with one whose answers
// look the same. What comes late is neither the other's nor that of a later request.
func TestLateAnswer(t *testing.T) {
	address := freeAddress(t)
	var n atomic.Int64
	slow := &simulate.Talker{Answers: []simulate.TalkerAnswer{{Request: []byte("A?"), Reply: func() []byte { return fmt.Appendf(nil, "%d\n", 1000+n.Add(1)) }}}}
	other := &simulate.Talker{Answers: []simulate.TalkerAnswer{{Request: []byte("B?"), Reply: func() []byte { return []byte("2\n") }}}}
	other.SetFault(simulate.Fault{Delay: 100 * time.Millisecond}) // so that what is late comes while its answer is awaited
	t.Cleanup(serve(t, address, slow, other))
	l := newLink(t, serial.Config{Name: "line", Address: address, Timeout: 300 * time.Millisecond, Devices: []serial.Device{numbers("a", "A?"), numbers("b", "B?")}})
	s := newSink()
	run(t, l, s)
	for range 3 {
		s.mu.Lock()
		a, b := len(s.good["a"]), len(s.good["b"])
		s.mu.Unlock()
		slow.SetFault(simulate.Fault{Late: true, Delay: 405 * time.Millisecond, Times: 1})
		s.until(t, "both", func() bool { return len(s.good["a"]) > a+2 && len(s.good["b"]) > b+2 })
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.good["b"] {
		if v != "2" {
			t.Fatalf("b is %s, which a has sent", v)
		}
	}
	seen := map[string]bool{}
	for _, v := range s.good["a"] {
		if seen[v] || len(v) != 4 {
			t.Fatalf("a is %s: twice, or of b", v)
		}
		seen[v] = true
	}
}

// TestUnaskedTogether has devices that talk on one line, each message of one of them.
func TestUnaskedTogether(t *testing.T) {
	address := freeAddress(t)
	var devices []serial.Device
	var talkers []*simulate.Talker
	for _, name := range []string{"a", "b"} {
		d := numbers(name, "")
		d.Every = 0
		d.Match = regexp.MustCompile("^" + name + `(?P<n>\d+)$`)
		devices = append(devices, d)
		n := 0
		talkers = append(talkers, &simulate.Talker{Every: 5 * time.Millisecond, Say: func() []byte { n++; return fmt.Appendf(nil, "%s%d\n", name, n) }})
	}
	t.Cleanup(serve(t, address, talkers...))
	l := newLink(t, serial.Config{Name: "line", Address: address, Devices: devices})
	s := newSink()
	run(t, l, s)
	s.until(t, "messages of both", func() bool { return len(s.good["a"]) > 50 && len(s.good["b"]) > 50 })
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, all := range s.good {
		for i := 1; i < len(all); i++ {
			var last, this int
			fmt.Sscan(all[i-1], &last)
			fmt.Sscan(all[i], &this)
			if this != last+1 {
				t.Fatalf("%s: %d after %d", name, this, last)
			}
		}
	}
	if f := l.Frames(); f[0].Other+f[0].Cut+f[0].TooLong > 0 || f[1].Good == 0 {
		t.Errorf("%+v", f)
	}
	if st := l.Stats(); st.Online != 2 || st.Connects != 1 || !st.Connected {
		t.Errorf("%+v", st)
	}
}

// TestFramesThatDoNotFit are counted, and the last is kept.
func TestFramesThatDoNotFit(t *testing.T) {
	address := freeAddress(t)
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d := numbers("a", "")
	d.Frame.Check = serial.NewCheck(serial.Sum8, true, &d.Frame)
	d.Frame.Max = 20
	d.Match = regexp.MustCompile(`^(?P<n>\d+);`)
	link := newLink(t, serial.Config{Name: "line", Address: address, Timeout: timeout, Devices: []serial.Device{d}})
	s := newSink()
	run(t, link, s)
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	say := func(body string) string {
		b, err := (&serial.Device{Frame: d.Frame}).Compose(body+"00\n", nil)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, c := range []struct {
		text  string
		count func(f *adapters.Frames) uint64
		what  string
		last  string
	}{
		{"rest of a message\n" + say("7;"), func(f *adapters.Frames) uint64 { return f.Good }, "", ""},
		{say("hello;"), func(f *adapters.Frames) uint64 { return f.Other }, "other", say("hello;")},
		{"8;00\n", func(f *adapters.Frames) uint64 { return f.Wrong }, "wrong-check", "8;00\n"},
		{strings.Repeat("x", 30) + "\n", func(f *adapters.Frames) uint64 { return f.TooLong }, "too-long", strings.Repeat("x", 30)},
		{"9;", func(f *adapters.Frames) uint64 { return f.Cut }, "cut", "9;"},
	} {
		if _, err := conn.Write([]byte(c.text)); err != nil {
			t.Fatal(err)
		}
		s.until(t, "its count", func() bool { f := link.Frames(); return c.count(&f[0]) == 1 })
		f := link.Frames()[0]
		if f.LastWhat != c.what || !strings.HasPrefix(string(f.Last), c.last) {
			t.Errorf("%q: kept is %s %q", c.text, f.LastWhat, f.Last)
		}
	}
}

// TestTell sends things and awaits their answers, on a line that is asked and on one
// whose devices talk.
func TestTell(t *testing.T) {
	for _, asked := range []bool{true, false} {
		t.Run(map[bool]string{true: "asked", false: "unasked"}[asked], func(t *testing.T) {
			address := freeAddress(t)
			d := numbers("a", "")
			talker := &simulate.Talker{}
			if asked {
				d.Request = []byte("R\n")
				talker.Answers = []simulate.TalkerAnswer{{Request: d.Request, Reply: func() []byte { return []byte("5\n") }}}
			} else {
				d.Every = 0
				talker.Every, talker.Say = 10*time.Millisecond, func() []byte { return []byte("5\n") }
			}
			least, most := 1.0, 9.0
			point := func(name, send, expect string) {
				d.Points = append(d.Points, serial.Point{Point: &adapters.Point{Name: name}, Send: []byte(send), Expect: []byte(expect), Write: &serial.Write{Min: &least, Max: &most}})
			}
			point("tare", "T\n", "T S")
			point("zero", "Z\n", "Z A")
			point("silent", "Q\n", "Q A")
			point("beep", "B\n", "")
			point("limit", "L {value};\n", "L OK")
			var got atomic.Value
			reply := func(text string) func() []byte {
				return func() []byte { got.Store(text); return []byte(text + "\n") }
			}
			for request, answer := range map[string]string{"T\n": "T S 1 g", "Z\n": "Z I", "L 2.5;": "L OK", "B\n": "", "L 99;": "99!"} {
				a := simulate.TalkerAnswer{Request: []byte(request), Reply: reply(answer)}
				if answer == "" {
					a.Reply = func() []byte { got.Store("beep"); return nil }
				}
				talker.Answers = append(talker.Answers, a)
			}
			t.Cleanup(serve(t, address, talker))
			l := newLink(t, serial.Config{Name: "line", Address: address, Timeout: timeout, Devices: []serial.Device{d}})
			if _, err := l.Write(t.Context(), "a", []adapters.Assignment{{Point: "tare", Value: adapters.Bool(true)}}); !errors.Is(err, adapters.ErrNotRunning) {
				t.Errorf("before it runs: %v", err)
			}
			s := newSink()
			run(t, l, s)
			s.until(t, "a value", func() bool { return len(s.good["a"]) > 0 })
			for _, c := range []struct {
				point   string
				value   adapters.Value
				quality adapters.Quality
				n       int    // samples
				err     string // empty: it is done
			}{
				{"tare", adapters.Bool(true), adapters.Good, 1, ""},
				{"limit", adapters.Float64(2.5), adapters.Good, 1, ""},
				{"beep", adapters.Int(1), adapters.Uncertain, 1, ""},
				{"zero", adapters.Bool(true), adapters.Uncertain, 1, `zero: the device answered "`},
				{"silent", adapters.Bool(true), adapters.Uncertain, 1, "silent: "},
				{"tare", adapters.Bool(false), 0, 0, "tare: is a thing to tell the device; write true"},
				{"limit", adapters.Int(99), 0, 0, "limit: 99 is above its limit 9"},
				{"limit", adapters.String("1\nT"), 0, 0, "limit: a text for a device has printable ASCII characters"},
				{"n", adapters.Int(1), 0, 0, "n: may not be written"},
				{"m", adapters.Int(1), 0, 0, "the device a has no point m"},
			} {
				samples, err := l.Write(t.Context(), "a", []adapters.Assignment{{Point: c.point, Value: c.value}})
				if (err == nil) != (c.err == "") || err != nil && !strings.HasPrefix(err.Error(), c.err) {
					t.Errorf("%s = %v: %v", c.point, c.value, err)
				}
				if len(samples) != c.n || c.n > 0 && samples[0].Quality != c.quality {
					t.Errorf("%s = %v: %+v", c.point, c.value, samples)
				}
			}
			if got.Load() == "99!" {
				t.Error("what is above its limit was sent")
			}
			samples, err := l.Read(t.Context(), "a", nil)
			if err != nil || len(samples) != 1 || samples[0].Value.Int64() != 5 {
				t.Errorf("%+v %v", samples, err)
			}
			if _, err := l.Read(t.Context(), "a", []string{"tare"}); err == nil {
				t.Error("a thing to send was read")
			}
		})
	}
}

// TestOverPort reads a port that is pulled out and plugged in, at a rate that steps
// change.
func TestOverPort(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("serial lines are simulated on Linux only")
	}
	p, err := simulate.OpenPTY()
	if err != nil {
		t.Fatal(err)
	}
	d := numbers("a", "")
	d.Steps = []serial.Step{{Send: []byte("hello\n"), Expect: []byte("ok")}, {Send: []byte("fast\n"), Baud: 115200}}
	talker := &simulate.Talker{Answers: []simulate.TalkerAnswer{
		{Request: []byte("hello\n"), Baud: 9600, Reply: func() []byte { return []byte("ok\n") }},
		{Request: []byte("fast\n"), Baud: 9600, Replies: 115200, Reply: func() []byte { return []byte("7\n") }},
	}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- talker.ServeLine(ctx, p) }()
	defer func() { cancel(); <-done }()
	line := port.Settings{Baud: 9600, DataBits: 8, Parity: "none", StopBits: 1}
	l := newLink(t, serial.Config{Name: "line", Port: p.Path, Line: line, Devices: []serial.Device{d}})
	s := newSink()
	run(t, l, s)
	s.until(t, "values", func() bool { return len(s.good["a"]) > 2 })

	// A second one is kept off.
	if _, err := port.Open(p.Path, line); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("opened twice: %v", err)
	}
	if _, err := serial.New(serial.Config{Name: "line", Port: p.Path, Line: port.Settings{Baud: 250000, DataBits: 8, Parity: "none", StopBits: 1}, Devices: []serial.Device{d}}); err == nil || !strings.Contains(err.Error(), "230400") {
		t.Errorf("250000 baud: %v", err)
	}
	if _, err := port.Open(filepath.Join(t.TempDir(), "none"), line); err == nil || !strings.Contains(err.Error(), "/dev/serial/by-id") {
		t.Errorf("no port: %v", err)
	}
}
