package port_test

import (
	"bytes"
	"errors"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fieldferry/fieldferry/adapters/serial/port"
	"github.com/fieldferry/fieldferry/adapters/simulate"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var plain = port.Settings{Baud: 115200, DataBits: 8, Parity: "none", StopBits: 1}

// open makes a port and opens it, until the test ends.
func open(t *testing.T, s port.Settings) (*simulate.PTY, port.Port) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("serial lines are simulated on Linux only")
	}
	pty, err := simulate.OpenPTY()
	if err != nil {
		t.Fatal(err)
	}
	p, err := port.Open(pty.Path, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		pty.Close()
	})
	return pty, p
}

func write(t *testing.T, pty *simulate.PTY, text string) {
	t.Helper()
	if _, err := pty.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func TestReadsWhatComes(t *testing.T) {
	pty, p := open(t, plain)
	write(t, pty, "hello")
	var got []byte
	buf := make([]byte, 2)
	for len(got) < 5 {
		n, err := p.Read(buf, time.Now().Add(10*time.Second))
		if n == 0 || err != nil {
			t.Fatalf("%q, then %d %v", got, n, err)
		}
		got = append(got, buf[:n]...)
	}
	if string(got) != "hello" {
		t.Errorf("%q", got)
	}
	if n, err := p.Read(buf, time.Now()); n != 0 || err != nil {
		t.Errorf("of nothing: %d %v", n, err)
	}
	if err := p.Write([]byte("back")); err != nil {
		t.Fatal(err)
	}
	back := make([]byte, 4)
	if n, err := pty.Read(back); err != nil || string(back[:n]) != "back" {
		t.Errorf("%q %v", back, err)
	}
}

// What had come before the port was opened is not taken for what comes now.
func TestOpensDrained(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("serial lines are simulated on Linux only")
	}
	pty, err := simulate.OpenPTY()
	if err != nil {
		t.Fatal(err)
	}
	defer pty.Close()
	write(t, pty, "old")
	p, err := port.Open(pty.Path, plain)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	write(t, pty, "new")
	buf := make([]byte, 16)
	n, err := p.Read(buf, time.Now().Add(10*time.Second))
	if err != nil || string(buf[:n]) != "new" {
		t.Errorf("%q %v", buf[:n], err)
	}
}

// A port that is pulled out or hung up says so, whatever is under way.
func TestGone(t *testing.T) {
	for name, end := range map[string]func(p *simulate.PTY) error{"pulled out": (*simulate.PTY).Close, "hung up": (*simulate.PTY).HangUp} {
		t.Run(name, func(t *testing.T) {
			pty, p := open(t, plain)
			if err := end(pty); err != nil {
				t.Skip(err)
			}
			buf := make([]byte, 16)
			if n, err := p.Read(buf, time.Now().Add(10*time.Second)); !errors.Is(err, port.ErrGone) {
				t.Errorf("%d %v", n, err)
			}
			if n, err := p.Read(buf, time.Now().Add(10*time.Second)); !errors.Is(err, port.ErrGone) {
				t.Errorf("again: %d %v", n, err)
			}
		})
	}
}

// A device that takes nothing holds nobody up for ever.
func TestTakesNothing(t *testing.T) {
	_, p := open(t, plain)
	if err := port.SetBaud(p, 4_000_000); err != nil { // what the line needs is waited for too
		t.Fatal(err)
	}
	err := p.Write(bytes.Repeat([]byte("x"), 1<<18))
	if err == nil || !strings.Contains(err.Error(), "takes nothing") {
		t.Error(err)
	}
}

// What cannot be kept is noticed.
func TestOverrun(t *testing.T) {
	pty, p := open(t, plain)
	for deadline := time.Now().Add(20 * time.Second); port.Overruns(p) == 0; {
		if time.Now().After(deadline) {
			t.Fatal("nothing is noticed")
		}
		write(t, pty, "x")
		time.Sleep(time.Millisecond) // for the reader to take this one by itself
	}
	buf := make([]byte, 4096)
	if n, err := p.Read(buf, time.Now().Add(10*time.Second)); n == 0 || err != nil {
		t.Errorf("afterwards: %d %v", n, err)
	}
}

func TestSetBaud(t *testing.T) {
	pty, p := open(t, plain)
	if pty.Baud() != 115200 {
		t.Errorf("%d baud", pty.Baud())
	}
	if err := port.SetBaud(p, 300); err != nil || pty.Baud() != 300 {
		t.Errorf("%d baud: %v", pty.Baud(), err)
	}
	if err := port.SetBaud(p, 250000); err == nil || pty.Baud() != 300 {
		t.Errorf("%d baud: %v", pty.Baud(), err)
	}
	write(t, pty, "x")
	buf := make([]byte, 16)
	if n, err := p.Read(buf, time.Now().Add(10*time.Second)); n != 1 || err != nil {
		t.Errorf("at another rate: %d %v", n, err)
	}
}

func TestSettings(t *testing.T) {
	for _, c := range []struct {
		change func(*port.Settings)
		want   string
	}{
		{func(s *port.Settings) {}, ""},
		{func(s *port.Settings) { s.Baud = 250000 }, "230400 and 460800"},
		{func(s *port.Settings) { s.Baud = 0 }, "baud"},
		{func(s *port.Settings) { s.Baud = 1 << 30 }, "4000000"},
		{func(s *port.Settings) { s.DataBits = 9 }, "data bits"},
		{func(s *port.Settings) { s.Parity = "mark" }, `no parity "mark"`},
		{func(s *port.Settings) { s.StopBits = 3 }, "stop bits"},
	} {
		s := plain
		c.change(&s)
		err := s.Check()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", s, err)
		}
	}
	meter := port.Settings{Baud: 300, DataBits: 7, Parity: "even", StopBits: 1}
	if got := meter.Char(); got != 10*time.Second/300 {
		t.Errorf("a character takes %v", got)
	}
}

func TestConn(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p, err := port.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	if n, err := p.Read(buf, time.Now().Add(time.Millisecond)); n != 0 || err != nil {
		t.Errorf("of nothing: %d %v", n, err)
	}
	if _, err := far.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, err := p.Read(buf, time.Now().Add(10*time.Second)); n != 1 || err != nil {
		t.Errorf("%d %v", n, err)
	}
	if err := port.SetBaud(p, 300); err != nil || port.Overruns(p) != 0 {
		t.Errorf("a connection has a rate: %v", err)
	}
	far.Close()
	if _, err := p.Read(buf, time.Now().Add(10*time.Second)); err == nil {
		t.Error("its end is not noticed")
	}
}
