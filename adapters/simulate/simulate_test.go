package simulate

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAnswers(t *testing.T) {
	u := newUnit()
	u.Set(Holding, 0x6B, 0x022B, 0x0000, 0x0064)
	u.Set(Input, 8, 10)
	u.Set(Coil, 19, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1)
	u.Set(Discrete, 65535, 1, 1)
	tests := []struct {
		name     string
		ask, get []byte
	}{
		// The examples of Modbus Application Protocol 1.1b3 §6.3 and §6.4.
		{"holding", []byte{3, 0, 0x6B, 0, 3}, []byte{3, 6, 2, 0x2B, 0, 0, 0, 0x64}},
		{"input", []byte{4, 0, 8, 0, 1}, []byte{4, 2, 0, 10}},
		{"coils", []byte{1, 0, 19, 0, 10}, []byte{1, 2, 0xCD, 0x03}},
		{"last discrete", []byte{2, 0xFF, 0xFF, 0, 1}, []byte{2, 1, 1}},
		{"not there", []byte{3, 0, 0x6B, 0, 4}, []byte{0x83, 2}},
		{"past the end", []byte{2, 0xFF, 0xFF, 0, 2}, []byte{0x82, 2}},
		{"other table", []byte{4, 0, 0x6B, 0, 1}, []byte{0x84, 2}},
		{"none", []byte{3, 0, 0x6B, 0, 0}, []byte{0x83, 3}},
		{"too many registers", []byte{3, 0, 0, 0, 126}, []byte{0x83, 3}},
		{"too many bits", []byte{1, 0, 0, 7, 0xD1}, []byte{0x81, 3}},
		{"too short", []byte{3, 0}, []byte{0x83, 3}},
		{"unknown function", []byte{0x2B, 14, 1, 0}, []byte{0xAB, 1}},
	}
	for _, test := range tests {
		if diff := cmp.Diff(test.get, u.answer(nil, test.ask, 0)); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", test.name, diff)
		}
	}
}

func TestSignals(t *testing.T) {
	tests := []struct {
		name   string
		signal Signal
		at     time.Duration
		want   float64
	}{
		{"constant", Constant(5), time.Hour, 5},
		{"counter", Counter(), 0, 7},
		{"ramp", Ramp(10, 20, 4*time.Second), 5 * time.Second, 12.5},
		{"sine", Sine(-1, 3, 4*time.Second), time.Second, 3},
		{"sine, low", Sine(-1, 3, 4*time.Second), 7 * time.Second, -1},
		{"blink, off", Blink(2 * time.Second), 900 * time.Millisecond, 0},
		{"blink, on", Blink(2 * time.Second), 1100 * time.Millisecond, 1},
	}
	for _, test := range tests {
		if got := test.signal(test.at, 7); math.Abs(got-test.want) > 1e-9 {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

func TestDrive(t *testing.T) {
	u := newUnit()
	u.Drive(Input, 10, Float32(), Constant(23.4))
	u.Drive(Input, 4, Float64(), Constant(-1))
	u.Drive(Input, 8, Int32(), Constant(-2))
	u.Drive(Input, 12, Int16(), Constant(-3))
	u.Drive(Input, 65534, Float64(), Constant(1)) // as far as it goes
	u.Switch(Coil, 3, Constant(1))
	u.Switch(Coil, 2, Constant(0))
	want := []byte{18, 0xBF, 0xF0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFE, 0x41, 0xBB, 0x33, 0x33, 0xFF, 0xFD}
	if got, ok := u.read(nil, Input, 4, 9); !ok || !bytes.Equal(got, want) {
		t.Errorf("% x, want % x", got, want)
	}
	if got, ok := u.read(nil, Input, 11, 1); !ok || !bytes.Equal(got, []byte{2, 0x33, 0x33}) {
		t.Errorf("the second half: % x", got)
	}
	if got, ok := u.read(nil, Coil, 2, 2); !ok || !bytes.Equal(got, []byte{1, 2}) {
		t.Errorf("% x", got)
	}
	if got, ok := u.read(nil, Input, 65534, 2); !ok || !bytes.Equal(got, []byte{4, 0x3F, 0xF0, 0, 0}) {
		t.Errorf("at the end: % x", got)
	}
}

// start serves s until the test ends, and connects to it.
func start(t *testing.T, s *Server) net.Conn {
	t.Helper()
	if err := s.Open("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	return conn
}

// ask sends a request for holding register 0 and returns the n bytes that come.
func ask(t *testing.T, conn net.Conn, transaction uint16, unit byte, n int) []byte {
	t.Helper()
	frame := binary.BigEndian.AppendUint16(nil, transaction)
	if _, err := conn.Write(append(frame, 0, 0, 0, 6, unit, 3, 0, 0, 0, 1)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(conn, b); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFaults(t *testing.T) {
	right := []byte{0, 9, 0, 0, 0, 5, 1, 3, 2, 0x12, 0x34}
	with := func(at int, b byte) []byte {
		f := bytes.Clone(right)
		f[at] = b
		return f
	}
	tests := []struct {
		name   string
		fault  Fault
		want   []byte
		closed bool
	}{
		{"none", Fault{}, right, false},
		{"exception", Fault{Exception: 6}, []byte{0, 9, 0, 0, 0, 3, 1, 0x83, 6}, false},
		{"slow", Fault{Delay: time.Millisecond}, right, false},
		{"late", Fault{Delay: time.Millisecond, Late: true}, right, false},
		{"transaction", Fault{WrongTransaction: true}, with(1, 10), false},
		{"unit", Fault{WrongUnit: true}, with(6, 2), false},
		{"function", Fault{WrongFunction: true}, with(7, 2), false},
		{"twice", Fault{Duplicate: true}, append(bytes.Clone(right), right...), false},
		{"in the middle", Fault{Truncate: 8, Hangup: true}, right[:8], true},
		{"gone", Fault{Dead: true, Hangup: true}, nil, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := New()
			s.Unit(1).Set(Holding, 0, 0x1234)
			conn := start(t, s)
			test.fault.Times = 1
			s.Unit(1).SetFault(test.fault)
			if got := ask(t, conn, 9, 1, len(test.want)); !bytes.Equal(got, test.want) {
				t.Errorf("% x, want % x", got, test.want)
			}
			if test.closed {
				if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
					t.Error("the connection is open")
				}
			} else if got := ask(t, conn, 9, 1, len(right)); !bytes.Equal(got, right) {
				t.Errorf("once it was over: % x", got)
			}
		})
	}
}

// A dead unit says nothing, and does not keep the others from answering; one
// that does not exist is the gateway's to answer for.
func TestDeadUnit(t *testing.T) {
	s := New()
	s.Unit(1).SetFault(Fault{Dead: true})
	s.Unit(2).Set(Holding, 0, 7)
	conn := start(t, s)
	ask(t, conn, 1, 1, 0)
	if got, want := ask(t, conn, 2, 2, 11), []byte{0, 2, 0, 0, 0, 5, 2, 3, 2, 0, 7}; !bytes.Equal(got, want) {
		t.Errorf("% x, want % x", got, want)
	}
	if got, want := ask(t, conn, 3, 3, 9), []byte{0, 3, 0, 0, 0, 3, 3, 0x83, 11}; !bytes.Equal(got, want) {
		t.Errorf("% x, want % x", got, want)
	}
	if n := s.Unit(1).Reads(); n != 1 {
		t.Errorf("the dead unit was asked %d times", n)
	}
}

func TestRunsAgain(t *testing.T) {
	s := New()
	s.Unit(1).Set(Holding, 0, 1)
	for range 2 {
		if err := s.Open("127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		conn, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		ask(t, conn, 1, 1, 11)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("the connection is open")
		}
		conn.Close()
	}
}

// FuzzFrames feeds the server's parser a stream: it must not panic, and what it
// makes of it must be frames.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{0, 1, 0, 0, 0, 6, 1, 3, 0, 0, 0, 2})
	f.Add([]byte{0, 1, 0, 0, 0, 6, 1, 1, 0, 0, 0, 9, 0, 2, 0, 0, 0, 2, 1, 0x2B})
	f.Add([]byte{0, 1, 0, 0, 0, 1, 1})
	f.Add([]byte{0, 1, 0, 0, 0xFF, 0xFF, 1, 3})
	f.Fuzz(func(t *testing.T, stream []byte) {
		u := newUnit()
		u.Set(Holding, 0, 1, 2, 3)
		u.Drive(Input, 0xFFFD, Float64(), Counter())
		u.Set(Coil, 0, 1, 0, 1, 1, 0, 1, 1, 0, 1)
		in := bufio.NewReader(bytes.NewReader(stream))
		var frame []byte
		for used := 0; ; {
			var err error
			if frame, err = readFrame(in, frame); err != nil {
				return
			}
			if !bytes.Equal(frame, stream[used:used+len(frame)]) || len(frame) <= headerSize || len(frame) > maxFrame {
				t.Fatalf("frame % x at %d", frame, used)
			}
			used += len(frame)
			pdu := frame[headerSize:]
			answer := u.answer(nil, pdu, 0)
			switch {
			case len(answer) > maxFrame-headerSize:
				t.Fatalf("%d bytes answer % x", len(answer), pdu)
			case len(answer) == 2 && answer[0] == pdu[0]|0x80 && answer[1] >= 1 && answer[1] <= 3:
			case len(answer) >= 2 && answer[0] == pdu[0] && len(answer) == 2+int(answer[1]):
			default:
				t.Fatalf("% x answers % x", answer, pdu)
			}
		}
	})
}
