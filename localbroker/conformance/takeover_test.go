package conformance

import (
	"fmt"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// receiver is what a client has to remember of QoS 2 for as long as its session lasts.
type receiver struct {
	next int             // the number of the message that comes next, if none is lost or comes twice
	open map[uint16]bool // packet identifiers whose PUBREL has not come
}

// receive takes packets until n messages are complete, and answers them.
func (w *wire) receiveOnce(r *receiver, n int) error {
	for r.next < n {
		f, err := w.read(patience)
		if err != nil {
			return fmt.Errorf("%d of %d have come: %w", r.next, n, err)
		}
		var answer packet.Ack
		kind := packet.PUBREC
		switch f.kind() {
		case packet.PUBLISH:
			var p packet.Publish
			if err := p.Decode(w.v, f.first, f.body); err != nil {
				return err
			}
			if !r.open[p.PacketID] {
				if i, err := numberOf(p.Payload); err != nil || i != r.next {
					return fmt.Errorf("message %d in the place of %d: %v", i, r.next, err)
				}
				r.next++
				r.open[p.PacketID] = true
			}
			answer.PacketID = p.PacketID
		case packet.PUBREL:
			if err := answer.Decode(w.v, packet.PUBREL, f.body); err != nil {
				return err
			}
			delete(r.open, answer.PacketID)
			answer, kind = packet.Ack{PacketID: answer.PacketID}, packet.PUBCOMP
		default:
			return fmt.Errorf("%v from nowhere", f)
		}
		if err := w.write(answer.Append(nil, w.v, kind)); err != nil {
			return err
		}
	}
	return nil
}

// pumpOnce publishes with QoS 2 from number first on, window of them at a time, until
// stop is closed, and returns the number after the last.
func (w *wire) pumpOnce(topic string, first, window int, stop <-chan struct{}) (int, error) {
	for i := first; ; i += window {
		select {
		case <-stop:
			return i, nil
		default:
		}
		var out []byte
		ids := make([]uint16, window)
		for k := range ids {
			ids[k] = w.next()
			p := packet.Publish{Topic: topic, Payload: payloadOf(i+k, 50), QoS: 2, PacketID: ids[k]}
			out = p.Append(out, w.v)
		}
		for _, step := range []packet.Type{packet.PUBREC, packet.PUBCOMP} {
			if err := w.write(out); err != nil {
				return i, err
			}
			out = out[:0]
			for _, id := range ids {
				f, err := w.read(patience)
				if err != nil {
					return i, fmt.Errorf("while waiting for %v %d: %w", step, id, err)
				}
				var a packet.Ack
				if f.kind() != step || a.Decode(w.v, step, f.body) != nil || a.PacketID != id || a.Reason.Failed() {
					return i, fmt.Errorf("%v in the place of %v %d", f, step, id)
				}
				rel := packet.Ack{PacketID: id}
				out = rel.Append(out, w.v, packet.PUBREL)
			}
		}
	}
}

// takeoversOnce is takeovers with QoS 2, of a session that is left with messages in every
// state: all come, in order, and none comes twice.
func (s *scene) takeoversOnce() {
	c := s.connect("c", keep)
	c.sub(s.topic("t"), 2)
	pub := s.connect("pub")
	type end struct {
		n   int
		err error
	}
	stop, done := make(chan struct{}), make(chan end, 1)
	go func() {
		n, err := pub.pumpOnce(s.topic("t"), 0, 20, stop)
		done <- end{n, err}
	}()
	r := receiver{open: make(map[uint16]bool)}
	const takeovers = 240
	began := time.Now()
	for i := range takeovers {
		next := s.connect("c", resume)
		if !next.connack.SessionPresent {
			s.Fatal("the session is gone")
		}
		c.drop()
		c = next
		if err := c.receiveOnce(&r, r.next+1+i%30); err != nil {
			s.Fatalf("after %d takeovers: %v", i, err)
		}
	}
	took := time.Since(began)
	close(stop)
	all := <-done
	if all.err != nil {
		s.Error(all.err)
	}
	if err := c.receiveOnce(&r, all.n); err != nil {
		s.Errorf("after %d takeovers: %v", takeovers, err)
	}
	s.Logf("%d takeovers in %v, %d messages", takeovers, took.Round(10*time.Millisecond), all.n)
	c = s.connect("c", resume)
	for f, err := c.read(ms(500)); err == nil; f, err = c.read(ms(500)) { // only what is left of handshakes
		if f.kind() == packet.PUBLISH {
			var p packet.Publish
			if err := p.Decode(c.v, f.first, f.body); err != nil || !r.open[p.PacketID] {
				s.Errorf("%v comes after all have", f)
			}
		}
	}
}
