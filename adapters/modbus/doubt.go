package modbus

import (
	"encoding/binary"
	"slices"
	"time"
)

// A doubt is what a unit may still answer: the requests since its last answer that
// brought none.
type doubt struct {
	sizes [64][]int // of answers, by function
	last  time.Time // the last of these requests
}

// forgetAfter is for how long a unit may be late. After ten timeouts, and not
// less than ten seconds, an answer is not expected any more.
func (l *line) forgetAfter() time.Duration { return max(10*l.timeout, 10*time.Second) }

// unanswered notes that a request may be answered late.
func (l *line) unanswered(unit uint8, pdu []byte) {
	d := l.doubts[unit]
	if d == nil {
		d = &doubt{}
		l.doubts[unit] = d
	}
	d.last = time.Now()
	f := pdu[0] & 63
	if n := answerSize(pdu); !slices.Contains(d.sizes[f], n) {
		d.sizes[f] = append(d.sizes[f], n)
	}
}

// settle sees to it that nothing older can pass for the answer to a request.
func (l *line) settle(unit uint8, pdu []byte) error {
	d := l.doubts[unit]
	switch {
	case d == nil:
		return nil
	case time.Since(d.last) > l.forgetAfter():
		delete(l.doubts, unit)
		return nil
	case d.sizes[pdu[0]&63] == nil:
		return nil // whatever the answer is, it is to this
	}
	_, err := l.ask(unit, l.probe(unit, d, pdu))
	if err != nil && exception(err) != 0 {
		return nil
	}
	return err
}

// probe returns a read whose answer cannot be taken for one that is owed.
func (l *line) probe(unit uint8, d *doubt, pdu []byte) []byte {
	start, count := uint16(0), 2
	reads := pdu[0] >= fnReadCoils && pdu[0] <= fnReadInput
	if reads {
		start, count = binary.BigEndian.Uint16(pdu[1:]), int(binary.BigEndian.Uint16(pdu[3:]))
	}
	for _, f := range []byte{fnReadHolding, fnReadInput, fnReadCoils, fnReadDiscrete} {
		if l.spoken[unit]>>f&1 != 0 && d.sizes[f] == nil {
			return probePDU(f, start, 1)
		}
	}
	f, step := byte(fnReadHolding), 1
	if reads {
		f = pdu[0]
	}
	most := maxRegisters
	if f == fnReadCoils || f == fnReadDiscrete {
		step, most = 8, maxBits // the answer has whole bytes
	}
	free := func(n int) bool {
		return n >= 1 && n <= most && int(start)+n <= 1<<16 && !slices.Contains(d.sizes[f], answerSize(probePDU(f, start, n)))
	}
	// Fewer are there if as many as these are; more may not be.
	for n := count; n >= 1; n -= step {
		if free(n) {
			return probePDU(f, start, n)
		}
	}
	for n := count + step; n <= most; n += step {
		if free(n) {
			return probePDU(f, start, n)
		}
	}
	return probePDU(f, start, 1)
}

func probePDU(f byte, start uint16, n int) []byte {
	pdu := []byte{f, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(pdu[1:], start)
	binary.BigEndian.PutUint16(pdu[3:], uint16(n))
	return pdu
}

// accept reports whether a frame of the right unit and function is the answer to
// a request, and to no other.
func (l *line) accept(unit uint8, pdu, answer []byte) bool {
	var owed []int
	if d := l.doubts[unit]; d != nil {
		owed = d.sizes[pdu[0]&63]
	}
	if answer[0]&0x80 != 0 {
		return owed == nil // it could be the exception of any of them
	}
	return answers(answer, pdu) && !slices.Contains(owed, len(answer))
}
