package conformance

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// What follows moves many messages, from any goroutine: it returns errors and
// fails no test.

// payloadOf is the i-th payload of a load, size bytes long at least.
func payloadOf(i, size int) []byte { return fmt.Appendf(nil, "%-*d", size, i) }

// numberOf is the i of payloadOf.
func numberOf(payload []byte) (int, error) {
	for i, c := range payload {
		if c == ' ' {
			payload = payload[:i]
			break
		}
	}
	return strconv.Atoi(string(payload))
}

// pump publishes the payloads of from to to with QoS 1, window of them at a
// time, and returns how many are acknowledged: all before the first that is not.
func (w *wire) pump(topic string, from, to, window, size int) (acked int, err error) {
	var out []byte
	for i := from; i < to; {
		n := min(window, to-i)
		out = out[:0]
		ids := make([]uint16, n)
		for k := range n {
			ids[k] = w.next()
			p := packet.Publish{Topic: topic, Payload: payloadOf(i+k, size), QoS: 1, PacketID: ids[k]}
			out = p.Append(out, w.v)
		}
		if err := w.write(out); err != nil {
			return acked, err
		}
		for k := range n {
			f, err := w.read(patience)
			if err != nil {
				return acked, fmt.Errorf("while waiting for PUBACK %d: %w", i+k, err)
			}
			var a packet.Ack
			if f.kind() != packet.PUBACK {
				return acked, fmt.Errorf("%v in the place of PUBACK", f)
			}
			if err := a.Decode(w.v, packet.PUBACK, f.body); err != nil {
				return acked, err
			}
			if a.PacketID != ids[k] || a.Reason.Failed() {
				return acked, fmt.Errorf("PUBACK %d with %v, want one for %d", a.PacketID, a.Reason, ids[k])
			}
			acked++
		}
		i += n
	}
	return acked, nil
}

// A tally is what a subscriber of a load has received.
type tally struct {
	next       int // the number that comes next, if nothing is lost
	duplicates int // of messages that came again, marked as such
}

// add takes a message; it is an error if one is missing before it, or if it
// comes again without a mark.
func (t *tally) add(p *packet.Publish) error {
	n, err := numberOf(p.Payload)
	switch {
	case err != nil:
		return err
	case n == t.next:
		t.next++
	case n > t.next:
		return fmt.Errorf("message %d comes after %d", n, t.next-1)
	case !p.Dup:
		return fmt.Errorf("message %d comes again and is not marked", n)
	default:
		t.duplicates++
	}
	return nil
}

// drink receives messages of QoS 0 and 1 until t has n, acknowledging them in
// portions. Before each read it calls slow, if there is one.
func (w *wire) drink(t *tally, n int, slow func()) error {
	var acks []byte
	flush := func() error {
		if len(acks) == 0 {
			return nil
		}
		err := w.write(acks)
		acks = acks[:0]
		return err
	}
	for t.next < n {
		if !w.r.Buffered() {
			if err := flush(); err != nil {
				return err
			}
			if slow != nil {
				slow()
			}
		}
		f, err := w.read(patience)
		if err != nil {
			return errors.Join(fmt.Errorf("%d of %d have come: %w", t.next, n, err), flush())
		}
		if f.kind() != packet.PUBLISH {
			continue
		}
		var p packet.Publish
		if err := p.Decode(w.v, f.first, f.body); err != nil {
			return err
		}
		if err := t.add(&p); err != nil {
			return err
		}
		if p.QoS == 1 {
			acks = append(acks, byte(packet.PUBACK)<<4, 2)
			acks = binary.BigEndian.AppendUint16(acks, p.PacketID)
		}
	}
	return flush()
}

// timed is how long f takes.
func timed(f func()) time.Duration {
	began := time.Now()
	f()
	return time.Since(began)
}
