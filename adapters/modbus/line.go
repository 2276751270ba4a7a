package modbus

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/simonvetter/modbus"

	"github.com/fieldferry/fieldferry/adapters/serial/port"
)

// maxRTU is the longest frame on a line. Modbus over Serial Line 1.02 §2.5.1.1.
const maxRTU = 256

// turnaround is how long units have to act on a broadcast. Modbus over Serial
// Line 1.02 §2.4.1.
const turnaround = 100 * time.Millisecond

// line is a wire of RTU frames. These have no transaction numbers: an answer says
// which unit it is from, the function, and how long it is, and no more. So an
// answer that comes late could pass for that of a later request that looks alike.
// A line therefore notes every request that was not answered, and before it sends
// one to that unit whose answer could be taken for theirs, it asks for something
// whose answer cannot. Units answer in order: when that has come, nothing older
// comes any more. doubt.go has the rules.
type line struct {
	dial     func(context.Context) (port.Port, error)
	release  func() // may be nil
	timeout  time.Duration
	char     time.Duration // that one character takes; 0 if it is not known
	gap      time.Duration // of silence between frames
	stream   bool          // a connection that may break without a sign
	capacity [1024]byte

	port    port.Port
	last    time.Time // something came or went
	silence int       // requests in a row that brought nothing
	doubts  map[uint8]*doubt
	spoken  map[uint8]uint64 // functions that a unit has answered, one bit each

	dropped uint64 // bytes that were no answer
}

// newLine returns the line of a configuration.
func newLine(c *Config) (*line, error) {
	l := &line{timeout: c.Timeout, doubts: map[uint8]*doubt{}, spoken: map[uint8]uint64{}}
	switch c.Transport {
	case "rtu":
		s := c.Line
		if err := fill(&s); err != nil {
			return nil, err
		}
		// Modbus over Serial Line 1.02 §2.5.1.1: 11 bits to a character, 3.5 of
		// them between frames, and 1.75 ms above 19200 baud
		l.char = 11 * time.Second / time.Duration(s.Baud)
		l.gap = max(l.char*7/2, 1750*time.Microsecond)
		l.dial = func(context.Context) (port.Port, error) { return port.Open(c.Address, s) }
	case "rtuovertcp-listen":
		in := &dialIn{address: c.Address, patience: min(c.Timeout, time.Second)}
		l.dial, l.release, l.stream = in.accept, in.end, true
		l.gap = netGap
	default:
		network := "tcp"
		if c.Transport == "rtuoverudp" {
			network = "udp"
		}
		l.dial = func(ctx context.Context) (port.Port, error) { return port.Dial(ctx, network, c.Address) }
		l.stream = true
		l.gap = netGap
	}
	return l, nil
}

func (l *line) open(ctx context.Context) error {
	p, err := l.dial(ctx)
	if err != nil {
		return err
	}
	l.port, l.silence = p, 0
	return nil
}

func (l *line) close() error {
	if l.port == nil {
		return nil
	}
	p := l.port
	l.port = nil
	return p.Close()
}

func (l *line) end() {
	if l.release != nil {
		l.release()
	}
}

// spent reports whether the port is to be opened again. Silence is no reason on a
// serial port; a network connection may have died without a sign.
func (l *line) spent(err error) bool {
	if errors.Is(err, modbus.ErrRequestTimedOut) {
		return l.stream && l.silence >= 3
	}
	return exception(err) == 0
}

func (l *line) readBits(unit uint8, t Table, start, count uint16) ([]bool, error) {
	if count < 1 || count > maxBits {
		return nil, fmt.Errorf("a request cannot ask for %d bits", count)
	}
	answer, err := l.exchange(unit, readPDU(t, start, count))
	if err != nil {
		return nil, err
	}
	return unpackBits(answer[2:], int(count)), nil
}

func (l *line) readRegisters(unit uint8, t Table, start, count uint16) ([]byte, error) {
	if count < 1 || count > maxRegisters {
		return nil, fmt.Errorf("a request cannot ask for %d registers", count)
	}
	answer, err := l.exchange(unit, readPDU(t, start, count))
	if err != nil {
		return nil, err
	}
	return answer[2:], nil
}

func (l *line) exchange(unit uint8, pdu []byte) ([]byte, error) {
	if l.port == nil {
		return nil, errors.New("the line is not open")
	}
	if unit == 0 {
		return l.broadcast(pdu)
	}
	if err := l.settle(unit, pdu); err != nil {
		return nil, err
	}
	return l.ask(unit, pdu)
}

// broadcast sends a request to all units, none of which answers.
func (l *line) broadcast(pdu []byte) ([]byte, error) {
	switch pdu[0] {
	case fnWriteCoil, fnWriteRegister, fnWriteCoils, fnWriteRegisters, fnMaskWrite:
	default:
		return nil, errors.New("unit 0 is all of them, and none answers; it can only be written to")
	}
	if err := l.send(0, pdu); err != nil {
		return nil, err
	}
	time.Sleep(turnaround)
	return pdu[:min(len(pdu), answerSize(pdu))], nil
}

// ask sends a request and waits for its answer.
func (l *line) ask(unit uint8, pdu []byte) ([]byte, error) {
	if err := l.send(unit, pdu); err != nil {
		return nil, err
	}
	size := answerSize(pdu)
	if size == 0 {
		size = maxRTU
	}
	until := time.Now().Add(l.timeout + l.char*time.Duration(len(pdu)+3+size+3))
	buf := l.capacity[:0]
	heard := false
	for {
		if len(buf) == cap(buf) { // nothing but noise
			l.dropped += uint64(maxRTU)
			buf = append(buf[:0], buf[maxRTU:]...)
		}
		n, err := l.port.Read(buf[len(buf):cap(buf)], until)
		if err != nil {
			l.unanswered(unit, pdu)
			return nil, err
		}
		if n == 0 {
			l.unanswered(unit, pdu)
			l.dropped += uint64(len(buf))
			if l.silence++; heard {
				l.silence = 0
			}
			return nil, modbus.ErrRequestTimedOut
		}
		heard = true
		l.last = time.Now()
		buf = buf[:len(buf)+n]
		answer, rest := l.find(buf, unit, pdu, false)
		if answer != nil {
			buf = l.toSilence(buf)
			answer, rest = l.find(buf, unit, pdu, true)
		}
		if answer == nil {
			l.dropped += uint64(len(buf) - len(rest))
			buf = append(l.capacity[:0], rest...)
			continue
		}
		l.dropped += uint64(len(buf) - len(answer) - 3)
		l.silence = 0
		if len(rest) > 0 { // it came twice, and may come once more
			l.unanswered(unit, pdu)
		} else {
			delete(l.doubts, unit)
		}
		l.spoken[unit] |= 1 << (pdu[0] & 63)
		return takeAnswer(append([]byte(nil), answer...), pdu)
	}
}

// toSilence reads on until nothing came for the gap between frames.
func (l *line) toSilence(buf []byte) []byte {
	for len(buf) < cap(buf) {
		n, err := l.port.Read(buf[len(buf):cap(buf)], time.Now().Add(l.gap))
		if n == 0 || err != nil { // the next request finds out about the error
			break
		}
		l.last = time.Now()
		buf = buf[:len(buf)+n]
	}
	return buf
}

// send waits for silence and sends a request.
func (l *line) send(unit uint8, pdu []byte) error {
	if err := l.drain(); err != nil {
		return err
	}
	frame := make([]byte, 0, len(pdu)+3)
	frame = append(append(frame, unit), pdu...)
	frame = binary.LittleEndian.AppendUint16(frame, crc16(frame))
	if len(frame) > maxRTU {
		return errors.New("the request is longer than a frame")
	}
	err := l.port.Write(frame)
	l.last = time.Now()
	return err
}

var errBabble = errors.New("the line is never silent")

// drain drops what comes until nothing came for the gap between frames.
func (l *line) drain() error {
	giveUp := time.Now().Add(max(l.timeout, 10*l.gap))
	quiet := max(l.gap-time.Since(l.last), l.gap/8)
	for {
		n, err := l.port.Read(l.capacity[:], time.Now().Add(quiet))
		switch {
		case err != nil:
			return err
		case n == 0:
			return nil
		case time.Now().After(giveUp):
			return errBabble
		}
		quiet = l.gap
		l.last = time.Now()
		l.dropped += uint64(n)
	}
}

// find looks for the answer to a request in what came, and returns what is
// behind it, or what may be the beginning of it. If what came is all that comes,
// nothing but the same again may be behind it: the checksum alone is right by
// chance for one in 65,536 cuts across two frames.
func (l *line) find(buf []byte, unit uint8, pdu []byte, all bool) (answer, rest []byte) {
	for len(buf) >= 2 {
		size := frameSize(buf)
		switch {
		case size == 0 && buf[0] != unit, size < 0, size > maxRTU:
			buf = buf[1:]
			continue
		case size == 0:
			return nil, buf
		}
		ours := buf[0] == unit && buf[1]&0x7F == pdu[0]
		if len(buf) < size {
			if ours && l.fits(unit, pdu, buf, size) {
				return nil, buf
			}
			buf = buf[1:]
			continue
		}
		if crc16(buf[:size-2]) != binary.LittleEndian.Uint16(buf[size-2:]) {
			buf = buf[1:]
			continue
		}
		if ours && l.accept(unit, pdu, buf[1:size-2]) {
			if all && !repeats(buf[:size], buf[size:]) {
				buf = buf[1:]
				continue
			}
			return buf[1 : size-2], buf[size:]
		}
		buf = buf[size:] // a whole frame, and not ours
	}
	if len(buf) == 1 && buf[0] != unit {
		buf = buf[1:]
	}
	return nil, buf
}

// repeats reports whether what is behind a frame is the same again, if anything.
func repeats(frame, behind []byte) bool {
	for len(behind) > 0 {
		n := min(len(frame), len(behind))
		if !bytes.Equal(behind[:n], frame[:n]) {
			return false
		}
		behind = behind[n:]
	}
	return true
}

// fits reports whether a frame that has begun has the size that the answer has.
func (l *line) fits(unit uint8, pdu, begun []byte, size int) bool {
	want := answerSize(pdu)
	return begun[1]&0x80 != 0 || want == 0 || size == want+3
}

// frameSize returns how long the frame is that begins with these bytes: 0 if more
// are needed to know, -1 if it is none.
func frameSize(b []byte) int {
	switch f := b[1]; f {
	case fnReadCoils, fnReadDiscrete, fnReadHolding, fnReadInput, fnReadWrite:
		if len(b) < 3 {
			return 0
		}
		return 5 + int(b[2])
	case fnWriteCoil, fnWriteRegister, fnWriteCoils, fnWriteRegisters:
		return 8
	case fnMaskWrite:
		return 10
	case fnEncapsulated:
		return encapsulatedSize(b)
	default:
		if f&0x80 != 0 {
			return 5
		}
		return -1
	}
}

// encapsulatedSize is frameSize of function 43 with MEI type 14. Modbus
// Application Protocol 1.1b3 §6.21: unit, function, type, code, conformity, more,
// next, number of objects, and each of these id, length, value.
func encapsulatedSize(b []byte) int {
	const head = 8
	if len(b) >= 3 && b[2] != 14 {
		return -1
	}
	if len(b) < head {
		return 0
	}
	at := head
	for range b[head-1] {
		if len(b) < at+2 {
			return 0
		}
		at += 2 + int(b[at+1])
	}
	return at + 2
}

// crcTable is the CRC of each byte. Modbus over Serial Line 1.02 §6.2.2: the
// polynomial 0xA001, the lowest bit first.
var crcTable = func() (t [256]uint16) {
	for i := range t {
		c := uint16(i)
		for range 8 {
			if c&1 != 0 {
				c = c>>1 ^ 0xA001
			} else {
				c >>= 1
			}
		}
		t[i] = c
	}
	return t
}()

func crc16(b []byte) uint16 {
	c := uint16(0xFFFF)
	for _, x := range b {
		c = c>>8 ^ crcTable[byte(c)^x]
	}
	return c
}
