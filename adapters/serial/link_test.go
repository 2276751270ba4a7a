package serial_test

import (
	"context"
	"fmt"
	"net"
	"regexp"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/adaptertest"
	"github.com/fieldferry/fieldferry/adapters/serial"
	"github.com/fieldferry/fieldferry/adapters/simulate"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const timeout = 100 * time.Millisecond

// TestConformance runs the suite of all links against devices behind a serial
// server: some that are asked, and some that talk unasked.
func TestConformance(t *testing.T) {
	for _, asked := range []bool{true, false} {
		t.Run(map[bool]string{true: "asked", false: "unasked"}[asked], func(t *testing.T) {
			adaptertest.Run(t, func(t *testing.T) adaptertest.Field { return field(t, asked) })
		})
	}
}

func field(t *testing.T, asked bool) adaptertest.Field {
	address := freeAddress(t)
	config := serial.Config{Name: "line", Address: address, Timeout: timeout, Retries: 1}
	var value atomic.Int64
	var names []string
	talkers := map[string]*simulate.Talker{}
	for i := range 3 {
		name := fmt.Sprintf("dev-%d", i)
		names = append(names, name)
		d := serial.Device{
			Device: &adapters.Device{Name: name},
			Every:  20 * time.Millisecond,
			Frame:  serial.Frame{End: []byte("\r\n")},
			Match:  regexp.MustCompile(fmt.Sprintf(`^%d (?P<a>\d+) (?P<b>-?\d+\.\d)$`, i)),
			Points: []serial.Point{
				{Point: &adapters.Point{Name: "a"}, Field: "a", Type: serial.Int64},
				{Point: &adapters.Point{Name: "b"}, Field: "b", Type: serial.Float64},
			},
		}
		say := func() []byte { v := value.Load(); return fmt.Appendf(nil, "%d %d %d.0\r\n", i, v, v) }
		talker := &simulate.Talker{}
		if asked {
			d.Request = fmt.Appendf(nil, "R%d\r", i)
			talker.Answers = []simulate.TalkerAnswer{{Request: d.Request, Reply: say}}
		} else {
			d.Silent = 300 * time.Millisecond
			talker.Every, talker.Say = 20*time.Millisecond, say
		}
		talkers[name] = talker
		config.Devices = append(config.Devices, d)
	}
	var stop func()
	halt := func() {
		if stop != nil {
			stop()
			stop = nil
		}
	}
	t.Cleanup(func() { halt() })
	return adaptertest.Field{
		Devices: names,
		Link:    func() adapters.Link { return newLink(t, config) },
		Start: func() {
			stop = serve(t, address, talkers[names[0]], talkers[names[1]], talkers[names[2]])
		},
		Stop:    halt,
		Set:     func(v int) { value.Store(int64(v)) },
		Silence: func(name string, silent bool) { talkers[name].SetFault(simulate.Fault{Dead: silent}) },
		Bound:   2 * timeout,
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// serve is a serial server with a line of talkers, until stop is called.
func serve(t *testing.T, address string, talkers ...*simulate.Talker) (stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if err := simulate.ServeTalkers(ctx, conn, talkers...); err != nil {
				t.Logf("line: %v", err) // the link resets connections
			}
		}
	}()
	return func() {
		l.Close()
		cancel()
		<-done
	}
}

func newLink(t *testing.T, c serial.Config) *serial.Link {
	t.Helper()
	l, err := serial.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
