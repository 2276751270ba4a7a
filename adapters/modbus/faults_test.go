package modbus

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/serial/port"
)

// faults is how many answers each of the fault tests has; the full run has
// 10,000,000.
var faults = flag.Int("faults", 20_000, "answers of a server that answers wrongly")

// wordOf is what every register of the fault servers holds: no two that are near
// each other are alike.
func wordOf(unit, function byte, address int) uint16 {
	return uint16(int(unit)*0x3001 + int(function)*0x0507 + address*0x0101)
}

func bitOf(unit, function byte, address int) bool {
	return wordOf(unit, function, address)>>3&1 != 0
}

// rightAnswer is the answer of a device that is well. Addresses from 1000 do not
// exist.
func rightAnswer(unit byte, pdu []byte) []byte {
	start, n := int(binary.BigEndian.Uint16(pdu[1:])), int(binary.BigEndian.Uint16(pdu[3:]))
	switch f := pdu[0]; f {
	case fnReadHolding, fnReadInput:
		if start+n > 1000 {
			return []byte{f | 0x80, illegalAddress}
		}
		answer := []byte{f, byte(2 * n)}
		for i := range n {
			answer = binary.BigEndian.AppendUint16(answer, wordOf(unit, f, start+i))
		}
		return answer
	case fnReadCoils, fnReadDiscrete:
		if start+n > 1000 {
			return []byte{f | 0x80, illegalAddress}
		}
		answer := append([]byte{f, byte((n + 7) / 8)}, make([]byte, (n+7)/8)...)
		for i := range n {
			if bitOf(unit, f, start+i) {
				answer[2+i/8] |= 1 << (i % 8)
			}
		}
		return answer
	default:
		return pdu[:5]
	}
}

// faultKind is one way to answer wrongly.
type faultKind int

const (
	noFault faultKind = iota
	late
	truncated
	duplicated
	wrongUnit
	wrongFunction
	wrongCheck // the CRC, or the transaction
	silent
	byteByByte
	closedAmid
	noiseBefore
	bitFlipped // one that the checksum finds
	faultKinds
)

// anyFault is none for half of the answers.
func anyFault(r *rand.Rand) faultKind {
	if r.IntN(2) == 0 {
		return noFault
	}
	return faultKind(r.IntN(int(faultKinds)))
}

// crowd asks for this and that over a wire, and checks what it gets.
type crowd struct {
	random            *rand.Rand
	good, bad, refuse int
}

func (c *crowd) ask(ctx context.Context, t *testing.T, w wire, unit byte) {
	r := c.random
	table := Table(r.IntN(4))
	count := []uint16{1, 1, 2, 2, 10, 40}[r.IntN(6)]
	start := uint16(r.IntN(12) * 40)
	if r.IntN(20) == 0 {
		start = 2000
	}
	var err error
	right := true
	if r.IntN(20) == 0 {
		_, err = w.exchange(unit, []byte{fnWriteRegister, 0, byte(r.IntN(4)), 0, byte(r.IntN(4))})
	} else if table.holdsBits() {
		var on []bool
		if on, err = w.readBits(unit, table, start, count); err == nil {
			right = len(on) == int(count)
			for i, b := range on {
				right = right && b == bitOf(unit, readFunction(table), int(start)+i)
			}
		}
	} else {
		var b []byte
		if b, err = w.readRegisters(unit, table, start, count); err == nil {
			right = len(b) == int(2*count)
			for i := 0; right && i < int(count); i++ {
				right = binary.BigEndian.Uint16(b[2*i:]) == wordOf(unit, readFunction(table), int(start)+i)
			}
		}
	}
	switch {
	case err == nil && !right:
		t.Errorf("unit %d, %s %d, %d of them: a wrong value is shown as good", unit, table, start, count)
	case err == nil:
		c.good++
	case exception(err) != 0:
		c.refuse++
		if exception(err) == illegalAddress && start < 1000 {
			t.Errorf("unit %d, %s %d: an exception that is another request's", unit, table, start)
		}
	default:
		c.bad++
	}
	if err != nil && w.spent(err) {
		w.close()
		for w.open(ctx) != nil && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
	}
}

// faultyLine is a line with devices that answer in the order they were asked, and
// often wrongly.
type faultyLine struct {
	random *rand.Rand
	queue  []chunk
	busy   time.Time // until then with an answer
	broken bool
	asked  int
	recent [12]exchangeNote // requests, and what was made of their answers
}

type exchangeNote struct {
	request, answer []byte
	kind            faultKind
	after           time.Duration
}

type chunk struct {
	at time.Time
	b  []byte // nil: the line breaks
}

func (l *faultyLine) Close() error { return nil }

func (l *faultyLine) Write(frame []byte) error {
	if l.broken {
		return io.ErrClosedPipe
	}
	if crc16(frame) != 0 {
		return errors.New("a request with a wrong checksum")
	}
	l.asked++
	r := l.random
	unit, pdu := frame[0], frame[1:len(frame)-2]
	answer := append([]byte{unit}, rightAnswer(unit, pdu)...)
	at := time.Now().Add(time.Duration(r.IntN(20)) * time.Millisecond)
	if at.Before(l.busy) {
		at = l.busy
	}
	kind := anyFault(r)
	if at.After(time.Now().Add(9 * time.Second)) {
		kind, at = silent, l.busy // no device takes up any number of requests
	}
	switch kind {
	case late:
		most := 30
		if r.IntN(50) == 0 {
			most = 900
		}
		at = at.Add(time.Duration(r.IntN(most)) * 10 * time.Millisecond)
	case wrongUnit:
		answer[0] = answer[0]%3 + 1
	case wrongFunction:
		answer[1] ^= 1
	}
	breaks := slices.ContainsFunc(l.queue, func(c chunk) bool { return c.b == nil })
	if (kind == wrongUnit || kind == wrongFunction) && (breaks || at.After(time.Now().Add(50*time.Millisecond))) {
		kind = silent // late and wrong at once: nobody could tell
	}
	answer = binary.LittleEndian.AppendUint16(answer, crc16(answer))
	switch kind {
	case wrongCheck:
		answer[len(answer)-1]++
	case bitFlipped:
		answer[r.IntN(len(answer))] ^= 1 << r.IntN(8)
	case truncated:
		answer = answer[:r.IntN(len(answer))]
	case duplicated:
		answer = append(answer, answer...)
	case noiseBefore:
		noise := make([]byte, 1+r.IntN(5))
		for i := range noise {
			noise[i] = byte(r.Uint32())
		}
		answer = append(noise, answer...)
	case silent:
		answer = nil
	case closedAmid:
		answer = answer[:r.IntN(len(answer))]
	}
	l.recent[l.asked%len(l.recent)] = exchangeNote{frame, answer, kind, time.Until(at)}
	l.busy = at
	switch kind {
	case byteByByte:
		for i := range answer {
			l.queue = append(l.queue, chunk{l.busy, answer[i : i+1]})
			l.busy = l.busy.Add(time.Millisecond / 2)
		}
	default:
		if len(answer) > 0 {
			l.queue = append(l.queue, chunk{at, answer})
		}
		if kind == closedAmid {
			l.queue = append(l.queue, chunk{at, nil})
		}
	}
	return nil
}

func (l *faultyLine) Read(p []byte, until time.Time) (int, error) {
	if l.broken {
		return 0, io.EOF
	}
	if len(l.queue) == 0 || l.queue[0].at.After(until) {
		time.Sleep(time.Until(until))
		return 0, nil
	}
	c := &l.queue[0]
	time.Sleep(time.Until(c.at))
	if c.b == nil {
		l.queue = l.queue[1:]
		l.broken = true
		return 0, io.EOF
	}
	n := copy(p, c.b)
	if c.b = c.b[n:]; len(c.b) == 0 {
		l.queue = l.queue[1:]
	}
	return n, nil
}

// No answer of a line that is late, damaged, doubled, cut or of another is taken
// for the one that is due.
func TestFaultsOfALine(t *testing.T) {
	for seed := range uint64(4) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 7))
			far := &faultyLine{random: random}
			l, err := newLine(&Config{Transport: "rtuovertcp", Timeout: 100 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			l.dial = func(context.Context) (port.Port, error) {
				far.broken = false
				return far, nil
			}
			if err := l.open(t.Context()); err != nil {
				t.Fatal(err)
			}
			c := &crowd{random: random}
			for far.asked < *faults/4 && !t.Failed() {
				c.ask(t.Context(), t, l, byte(random.IntN(3)+1))
				if random.IntN(500) == 0 {
					time.Sleep(time.Minute)
				}
			}
			for i := range far.recent {
				if n := far.recent[(far.asked+1+i)%len(far.recent)]; t.Failed() {
					t.Logf("% x: fault %d, % x after %v", n.request, n.kind, n.answer, n.after)
				}
			}
			t.Logf("seed %d: %d answers, %d good, %d refused, %d bad, %d bytes dropped", seed, far.asked, c.good, c.refuse, c.bad, l.dropped)
			if min(c.good, c.bad) < *faults/100 || c.refuse == 0 {
				t.Errorf("%d good, %d refused, %d bad: not what was to be tested", c.good, c.refuse, c.bad)
			}
		})
	}
}

// The same without the requests that settle a doubt must fail: the test sees what
// it is to see.
func TestFaultsOfALineAreSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := &faultyLine{random: rand.New(rand.NewPCG(1, 1))}
		l, err := newLine(&Config{Transport: "rtuovertcp", Timeout: 100 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		l.port = far
		wrong := 0
		for i := range 2000 {
			far.broken = false
			clear(l.doubts)
			start := uint16(i % 7 * 10)
			if b, err := l.readRegisters(1, Holding, start, 2); err == nil && binary.BigEndian.Uint16(b) != wordOf(1, fnReadHolding, int(start)) {
				wrong++
			}
		}
		if wrong == 0 {
			t.Error("no answer was taken for another one, although nothing keeps them apart")
		}
	})
}

// faultyServer answers Modbus TCP, and often wrongly.
func faultyServer(t *testing.T, asked *atomic.Int64) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := uint64(0); ; n++ {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				faultyConn(conn, rand.New(rand.NewPCG(n, 9)), asked)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

func faultyConn(conn net.Conn, r *rand.Rand, asked *atomic.Int64) {
	var owed []byte // late
	for {
		request := make([]byte, 260)
		if _, err := io.ReadFull(conn, request[:7]); err != nil {
			return
		}
		request = request[:6+int(binary.BigEndian.Uint16(request[4:]))]
		if _, err := io.ReadFull(conn, request[7:]); err != nil {
			return
		}
		asked.Add(1)
		answer := append(bytes.Clone(request[:7]), rightAnswer(request[6], request[7:])...)
		binary.BigEndian.PutUint16(answer[4:], uint16(len(answer)-6))
		kind := anyFault(r)
		if kind == silent || kind == late || kind == truncated || kind == wrongCheck {
			if r.IntN(40) > 0 { // each costs the client its timeout
				kind = noFault
			}
		}
		switch kind {
		case late:
			owed, answer = answer, nil
		case truncated:
			answer = answer[:r.IntN(len(answer))]
		case duplicated:
			answer = append(answer, answer...)
		case wrongUnit:
			answer[6] = answer[6]%3 + 1
		case wrongFunction:
			answer[7] ^= 1
		case wrongCheck:
			answer[r.IntN(2)]++
		case silent:
			answer = nil
		case closedAmid:
			conn.Write(answer[:r.IntN(len(answer))])
			return
		case noiseBefore, bitFlipped: // in the header: nothing protects the rest
			answer[2+r.IntN(4)] ^= 1 << r.IntN(8)
		}
		if len(answer) > 0 && owed != nil && kind != late {
			answer, owed = append(owed, answer...), nil
		}
		if kind == byteByByte {
			for i := range answer {
				if _, err := conn.Write(answer[i : i+1]); err != nil {
					return
				}
			}
			continue
		}
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

func TestFaultsOverTCP(t *testing.T) {
	var asked atomic.Int64
	var wg sync.WaitGroup
	var good, bad, refused atomic.Int64
	for seed := range uint64(64) {
		address := faultyServer(t, &asked) // one for each, or the machine runs out of ports for new connections
		wg.Go(func() {
			w := openWire(t, Config{Transport: "tcp", Address: address, Timeout: 20 * time.Millisecond})
			c := &crowd{random: rand.New(rand.NewPCG(seed, 8))}
			for asked.Load() < int64(*faults) && !t.Failed() {
				c.ask(t.Context(), t, w, byte(c.random.IntN(3)+1))
			}
			good.Add(int64(c.good))
			bad.Add(int64(c.bad))
			refused.Add(int64(c.refuse))
		})
	}
	wg.Wait()
	t.Logf("%d answers, %d good, %d refused, %d bad", asked.Load(), good.Load(), refused.Load(), bad.Load())
	if n := int64(*faults / 200); good.Load() < n || bad.Load() < n || refused.Load() == 0 {
		t.Error("not what was to be tested")
	}
}

// FuzzLine has anything at all on the line: no panic, and what is shown as good
// has the length that was asked for.
func FuzzLine(f *testing.F) {
	good := []byte{1, 3, 4, 0, 1, 0, 2}
	f.Add(binary.LittleEndian.AppendUint16(good, crc16(good)), uint8(fnReadHolding), uint8(3))
	f.Add([]byte{1, 43, 14, 1, 0x83, 0, 0, 200, 0, 255}, uint8(fnEncapsulated), uint8(1))
	f.Add([]byte{1, 0x83, 2, 0xC0, 0xF1, 1, 3}, uint8(fnReadHolding), uint8(2))
	f.Fuzz(func(t *testing.T, b []byte, function, piece uint8) {
		l := &line{doubts: map[uint8]*doubt{}, spoken: map[uint8]uint64{}, port: &recorded{b: b, piece: int(piece)}}
		pdu := []byte{function&63 + 1, 0, 0, 0, 2}
		answer, err := l.ask(1, pdu)
		if err == nil && !answers(answer, pdu) {
			t.Fatalf("% x is an answer to % x", answer, pdu)
		}
	})
}

// recorded is a port that has said something.
type recorded struct {
	b     []byte
	piece int
	sent  bool
}

func (r *recorded) Close() error { return nil }

func (r *recorded) Write([]byte) error {
	r.sent = true
	return nil
}

func (r *recorded) Read(p []byte, _ time.Time) (int, error) {
	if !r.sent {
		return 0, nil
	}
	n := copy(p, r.b[:min(len(r.b), r.piece+1)])
	r.b = r.b[n:]
	return n, nil
}

// A dead unit of 32 on one line leaves the others nine tenths of their samples.
func TestDeadUnitOnALine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := &quietLine{}
		c := Config{Name: "bus", Transport: "rtuovertcp", Timeout: time.Second, Retries: 1}
		for id := range 32 {
			c.Devices = append(c.Devices, Device{
				Device: &adapters.Device{Name: string(rune('A' + id))}, UnitID: uint8(id + 1), Every: time.Second,
				Points: []Point{{Point: &adapters.Point{Name: "x"}, Address: 1}},
			})
		}
		link, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		link.bus.wire.(*line).dial = func(context.Context) (port.Port, error) { return far, nil }
		const seconds = 120
		ctx, cancel := context.WithTimeout(t.Context(), seconds*time.Second)
		defer cancel()
		n := map[string]int{}
		if err := link.Run(ctx, counting{n}); err != nil {
			t.Fatal(err)
		}
		if len(n) != 31 {
			t.Errorf("%d units answered", len(n))
		}
		for name, n := range n {
			if n < seconds*90/100 {
				t.Errorf("unit %s: %d samples in %d s", name, n, seconds)
			}
		}
	})
}

// counting is a sink that counts good samples.
type counting struct{ n map[string]int }

func (c counting) Emit(_ context.Context, r adapters.Reading) error {
	if r.Samples[0].Quality == adapters.Good {
		c.n[r.Device.Name]++
	}
	return nil
}

func (c counting) Status(context.Context, adapters.Status) error { return nil }

// quietLine has units at 19200 baud that answer after 10 ms, but for unit 7.
type quietLine struct {
	at     time.Time
	answer []byte
}

func (q *quietLine) Close() error { return nil }

func (q *quietLine) Write(frame []byte) error {
	if frame[0] == 7 {
		return nil
	}
	answer := append([]byte{frame[0]}, rightAnswer(frame[0], frame[1:len(frame)-2])...)
	q.answer = binary.LittleEndian.AppendUint16(answer, crc16(answer))
	q.at = time.Now().Add(10*time.Millisecond + time.Duration(len(frame)+len(q.answer))*11*time.Second/19200)
	return nil
}

func (q *quietLine) Read(p []byte, until time.Time) (int, error) {
	if q.answer == nil || q.at.After(until) {
		time.Sleep(time.Until(until))
		return 0, nil
	}
	time.Sleep(time.Until(q.at))
	n := copy(p, q.answer)
	q.answer = nil
	return n, nil
}
