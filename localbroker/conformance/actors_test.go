package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// An actor is a client that outlives the broker: whenever its connection ends
// it comes back, with what it remembers of its session.
type actor struct {
	addr  string
	id    string
	v     packet.Version
	keeps bool // has a session that outlives the connection
	will  *packet.Will
	had   bool // there was a CONNACK, so the session has to be there

	mu   sync.Mutex // guards conn
	conn net.Conn   // the connection that life has
}

// errLost is that the broker does not know the session any more.
var errLost = errors.New("the session is lost")

// connect connects once.
func (a *actor) connect() (*wire, error) {
	nc, err := net.Dial("tcp", a.addr)
	if err != nil {
		return nil, err
	}
	w := &wire{v: a.v, nc: nc, r: packet.NewReader(nc, new(packet.Blocks), packet.MaxLength)}
	w.r.SetVersion(a.v)
	p := packet.Connect{Version: a.v, ClientID: a.id, CleanStart: !a.keeps, Will: a.will}
	if a.keeps && a.v == packet.V5 {
		p.Props = p.Props.AppendUint(packet.SessionExpiry, 3600)
	}
	err = w.write(p.Append(nil))
	var f frame
	if err == nil {
		f, err = w.read(patience)
	}
	if err == nil {
		err = w.connack.Decode(a.v, f.body)
	}
	if err == nil && w.connack.Reason != packet.Success {
		err = fmt.Errorf("%s is not let in: %v", a.id, w.connack.Reason)
	}
	if err != nil {
		return nil, errors.Join(err, nc.Close())
	}
	if a.keeps && a.had && !w.connack.SessionPresent {
		return nil, errors.Join(fmt.Errorf("%s: %w", a.id, errLost), nc.Close())
	}
	a.had = true
	return w, nil
}

// run lets life use connections until ctx ends, or life returns nil. An error of
// the connection is what the broker's end looks like; any other is one of it.
func (a *actor) run(ctx context.Context, life func(context.Context, *wire) error) error {
	for ctx.Err() == nil {
		w, err := a.connect()
		if errors.Is(err, errLost) {
			return err
		}
		if err != nil {
			select {
			case <-time.After(5 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		a.mu.Lock()
		a.conn = w.nc
		a.mu.Unlock()
		stop := context.AfterFunc(ctx, a.cut)
		err = life(ctx, w)
		stop()
		a.cut()
		if _, broken := errors.AsType[*brokenRule](err); broken || err == nil {
			return err
		}
	}
	return ctx.Err()
}

// cut ends the connection from this side.
func (a *actor) cut() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conn != nil {
		_ = a.conn.Close()
	}
}

// A brokenRule is what a broker must not do.
type brokenRule struct{ text string }

func (e *brokenRule) Error() string { return e.text }

func broken(format string, args ...any) error { return &brokenRule{fmt.Sprintf(format, args...)} }

// A flight is a QoS 2 message between PUBLISH and PUBCOMP.
type flight struct {
	n        int
	id       uint16
	received bool // PUBREC has come
	again    bool // PUBREL was sent over an earlier connection
}

// onceSender publishes numbers with QoS 2, exactly once each.
type onceSender struct {
	actor
	topic  string
	window int
	next   int
	open   []flight
	id     uint16
	out    []byte
}

func (s *onceSender) publish(f flight, dup bool) {
	p := packet.Publish{Topic: s.topic, Payload: payloadOf(f.n, 40), QoS: 2, PacketID: f.id, Dup: dup}
	s.out = p.Append(s.out, s.v)
}

func (s *onceSender) ack(t packet.Type, id uint16) {
	s.out = (&packet.Ack{PacketID: id}).Append(s.out, s.v, t)
}

// life goes through the handshakes until the connection ends, or until is
// reached and nothing is open.
func (s *onceSender) life(stop func() bool) func(context.Context, *wire) error {
	return func(_ context.Context, w *wire) error {
		s.out = s.out[:0]
		for i, f := range s.open { // [MQTT-4.4.0-1], [MQTT-4.6.0-1]
			if f.received {
				s.open[i].again = true
				s.ack(packet.PUBREL, f.id)
			} else {
				s.publish(f, true)
			}
		}
		for {
			for len(s.open) < s.window && !stop() {
				if s.id++; s.id == 0 {
					s.id = 1
				}
				f := flight{n: s.next, id: s.id}
				s.open = append(s.open, f)
				s.next++
				s.publish(f, false)
			}
			if len(s.out) > 0 {
				if err := w.write(s.out); err != nil {
					return err
				}
				s.out = s.out[:0]
			}
			if len(s.open) == 0 {
				return nil
			}
			f, err := w.read(patience)
			if err != nil {
				return err
			}
			if err := s.take(f); err != nil {
				return err
			}
		}
	}
}

func (s *onceSender) take(f frame) error {
	t := f.kind()
	if t != packet.PUBREC && t != packet.PUBCOMP {
		return fmt.Errorf("%v", f) // DISCONNECT, for one
	}
	var a packet.Ack
	if err := a.Decode(s.v, t, f.body); err != nil {
		return broken("%v", err)
	}
	for i := range s.open {
		o := &s.open[i]
		switch {
		case o.id != a.PacketID:
			continue
		case t == packet.PUBREC && a.Reason.Failed():
			return broken("message %d: PUBREC %v", o.n, a.Reason)
		case t == packet.PUBREC:
			o.received = true
			s.ack(packet.PUBREL, o.id)
		case a.Reason.Failed() && !o.again:
			return broken("message %d: PUBCOMP %v", o.n, a.Reason)
		case !o.received:
			return broken("message %d: PUBCOMP before PUBREC", o.n)
		default:
			s.open = append(s.open[:i], s.open[i+1:]...)
		}
		return nil
	}
	return broken("%v for %d, which is not under way", t, a.PacketID)
}

// onceReceiver takes QoS 2 messages by the letter of §4.3.3, and acknowledges
// them with a lag, so that handshakes are in every state at any time.
type onceReceiver struct {
	actor
	topic      string
	ready      chan struct{} // closed when it has subscribed
	subscribed bool
	next       int             // the number that has to come next
	held       map[uint16]bool // identifiers received and not yet released
	duplicates int             // PUBLISH packets that came again, which is no second message
	unsent     [][]byte
}

func (r *onceReceiver) life(stop func() bool) func(context.Context, *wire) error {
	return func(_ context.Context, w *wire) error {
		r.unsent = nil
		if !r.subscribed {
			sub := packet.Subscribe{PacketID: 1, Subscriptions: []packet.Subscription{filter(r.topic, 2)}}
			if err := w.write(sub.Append(nil, r.v)); err != nil {
				return err
			}
		}
		for {
			f, err := w.read(20 * time.Millisecond)
			if isTimeout(err) {
				if stop() && len(r.held) == 0 && len(r.unsent) == 0 {
					return nil
				}
				if err := r.send(w, 0); err != nil {
					return err
				}
				continue
			}
			if err != nil {
				return err
			}
			if err := r.take(f); err != nil {
				return err
			}
			if lag := rand.IntN(12); len(r.unsent) > lag {
				if err := r.send(w, lag); err != nil {
					return err
				}
			}
		}
	}
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// send sends all but the last few acknowledgements.
func (r *onceReceiver) send(w *wire, keep int) error {
	n := len(r.unsent) - keep
	if n <= 0 {
		return nil
	}
	err := w.write(bytes.Join(r.unsent[:n], nil))
	r.unsent = r.unsent[n:]
	return err
}

func (r *onceReceiver) take(f frame) error {
	switch f.kind() {
	case packet.SUBACK:
		if !r.subscribed {
			r.subscribed = true
			close(r.ready)
		}
	case packet.PUBLISH:
		var p packet.Publish
		if err := p.Decode(r.v, f.first, f.body); err != nil {
			return broken("%v", err)
		}
		n, err := numberOf(p.Payload)
		switch {
		case err != nil || p.QoS != 2:
			return broken("QoS %d, %v", p.QoS, err)
		case r.held[p.PacketID]:
			if r.duplicates++; !p.Dup {
				return broken("message %d comes again under %d and is not marked", n, p.PacketID)
			}
		case n != r.next:
			return broken("message %d where %d was to come (dup %v, identifier %d)", n, r.next, p.Dup, p.PacketID)
		default:
			r.next++
			r.held[p.PacketID] = true
		}
		r.unsent = append(r.unsent, (&packet.Ack{PacketID: p.PacketID}).Append(nil, r.v, packet.PUBREC))
	case packet.PUBREL:
		var a packet.Ack
		if err := a.Decode(r.v, packet.PUBREL, f.body); err != nil {
			return broken("%v", err)
		}
		delete(r.held, a.PacketID)
		r.unsent = append(r.unsent, (&packet.Ack{PacketID: a.PacketID}).Append(nil, r.v, packet.PUBCOMP))
	case packet.DISCONNECT:
		return errors.New("DISCONNECT")
	default:
		return broken("%v", f)
	}
	return nil
}
