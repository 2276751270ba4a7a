package conformance

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// TestKillUnderLoad kills the broker again and again while messages go through
// it in every way that has to survive: to a session whose client is away, to
// retained messages, and with QoS 2 in both directions, whose handshakes are in
// every state when it happens. -kills says how often.
func TestKillUnderLoad(t *testing.T) {
	for _, v := range []packet.Version{packet.V5, packet.V311} {
		t.Run(v.String(), func(t *testing.T) { killUnderLoad(t, v, max(1, *kills/2)) })
	}
}

func killUnderLoad(t *testing.T, v packet.Version, times int) {
	b := own(t, plain)
	s := stage(t, v, b)
	for id, f := range map[string]packet.Subscription{"away": filter("away", 1), "wills": filter("will/+", 1)} {
		w := s.connect(id, resume)
		w.subscribe(nil, f)
		w.leave(0)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var stopping atomic.Bool
	failed := make(chan error, 10)
	act := func(ctx context.Context, a *actor, life func(context.Context, *wire) error) (done chan struct{}) {
		a.addr, a.v = b.addr(), v
		done = make(chan struct{})
		go func() {
			defer close(done)
			if err := a.run(ctx, life); err != nil {
				failed <- fmt.Errorf("%s: %w", a.id, err)
				cancel()
			}
		}()
		return done
	}

	// The receiver first, so that nothing is published before it has subscribed.
	var total atomic.Int64 // of the messages that it has to get, once that is known
	total.Store(math.MaxInt64)
	receiver := &onceReceiver{actor: actor{id: "once receiver", keeps: true}, topic: "once", held: map[uint16]bool{}, ready: make(chan struct{})}
	receiving := act(ctx, &receiver.actor, receiver.life(func() bool { return int64(receiver.next) >= total.Load() }))
	select {
	case <-receiver.ready:
	case <-receiving:
	}
	sender := &onceSender{actor: actor{id: "once sender", keeps: true}, topic: "once", window: 20}
	away := &awayLoad{actor: actor{id: "away publisher"}}
	kept := &keptLoad{actor: actor{id: "retained publisher"}}
	publishing := []chan struct{}{
		act(ctx, &sender.actor, sender.life(stopping.Load)), act(ctx, &away.actor, away.life(stopping.Load)), act(ctx, &kept.actor, kept.life(stopping.Load)),
	}

	willsDue := map[string]bool{}
	for round := range times {
		holder := s.connect(fmt.Sprint("holder", round), will(fmt.Sprint("will/", round), "gone", 1))
		s.connect(fmt.Sprint("proper", round), will(fmt.Sprint("will/proper", round), "gone", 1)).leave(0)
		select {
		case <-time.After(ms(60 + rand.IntN(200))): // the moment is chance
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		if s.ours() {
			b.kill()
		} else { // it forgets between two savings; so only the connections end
			for _, a := range []*actor{&receiver.actor, &sender.actor, &away.actor, &kept.actor} {
				a.cut()
			}
		}
		holder.drop()
		willsDue[fmt.Sprint("will/", round)] = true
		b.start(t)
		kept.check(s)
	}
	stopping.Store(true)
	for _, done := range publishing {
		<-done
	}
	total.Store(int64(sender.next))
	select {
	case <-receiving:
	case <-time.After(patience):
		cancel()
		<-receiving
	}
	close(failed)
	for err := range failed {
		t.Error(err)
	}
	if receiver.next != sender.next {
		t.Errorf("QoS 2: %d messages were sent, %d have come", sender.next, receiver.next)
	}
	if t.Failed() {
		return
	}

	kept.check(s)
	lost := away.drain(s)
	wills := s.drain(s.back("wills"))
	got := map[string]bool{}
	for _, line := range wills {
		var name string
		if _, err := fmt.Sscanf(line, "%s", &name); err == nil {
			got[name[:len(name)-len("=gone")]] = true
		}
	}
	if s.ours() {
		for name := range willsDue {
			if !got[name] {
				t.Errorf("the will %s of a client that was there when the broker was killed is missing", name)
			}
		}
	}
	for name := range got {
		if !willsDue[name] {
			t.Errorf("the will %s of a client that had gone properly", name)
		}
	}
	t.Logf("%d kills: %d acknowledged for who was away, %d lost; %d retained; %d of QoS 2, %d PUBLISH packets came again; %d wills",
		times, len(away.acked), lost, kept.count, receiver.next, receiver.duplicates, len(got))
	if len(away.acked) < 20*times || receiver.next < 10*times || kept.count < 10*times {
		t.Error("that was no load")
	}
}

// awayLoad publishes numbers with QoS 1 for a session whose client is away, and
// never twice.
type awayLoad struct {
	actor
	next  int
	acked []int
}

func (l *awayLoad) life(stop func() bool) func(context.Context, *wire) error {
	return func(_ context.Context, w *wire) error {
		for !stop() {
			from := l.next
			l.next += 25
			n, err := w.pump("away", from, from+25, 25, 40)
			for i := range n {
				l.acked = append(l.acked, from+i)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
}

// drain takes what has come for the session, and returns how many of the
// acknowledged are missing.
func (l *awayLoad) drain(s *scene) (lost int) {
	s.Helper()
	missing, wrong := l.judge(s.drainAll(s.back("away")))
	if len(missing) > 0 {
		s.Errorf("%d messages were acknowledged and are lost, the first is %d", len(missing), missing[0])
	}
	if len(wrong) > 0 {
		s.Errorf("%d messages came wrong: %s", len(wrong), wrong[0])
	}
	return len(missing)
}

// judge holds what has come against what was acknowledged and sent.
func (l *awayLoad) judge(messages []packet.Publish) (missing []int, wrong []string) {
	got := map[int]bool{}
	last := -1
	for _, p := range messages {
		n, err := numberOf(p.Payload)
		switch {
		case err != nil || n >= l.next:
			wrong = append(wrong, fmt.Sprintf("%q, which was never sent", p.Payload))
		case got[n] && !p.Dup:
			wrong = append(wrong, fmt.Sprintf("%d again, and not marked", n))
		case !got[n] && n < last:
			wrong = append(wrong, fmt.Sprintf("%d after %d", n, last))
		}
		got[n] = true
		last = max(last, n)
	}
	for _, n := range l.acked {
		if !got[n] {
			missing = append(missing, n)
		}
	}
	return missing, wrong
}

// keptLoad publishes rising numbers on a few topics, retained.
type keptLoad struct {
	actor
	mu    sync.Mutex // guards what follows
	acked [8]int
	sent  [8]int
	count int
}

func (l *keptLoad) life(stop func() bool) func(context.Context, *wire) error {
	return func(_ context.Context, w *wire) error {
		var out []byte
		for !stop() {
			l.mu.Lock()
			out = out[:0]
			for i := range l.sent {
				l.sent[i]++
				p := packet.Publish{Topic: fmt.Sprint("kept/", i), Payload: payloadOf(l.sent[i], 0), QoS: 1, Retain: true, PacketID: uint16(i + 1)}
				out = p.Append(out, w.v)
			}
			l.mu.Unlock()
			if err := w.write(out); err != nil {
				return err
			}
			for range l.sent {
				f, err := w.read(patience)
				if err != nil {
					return err
				}
				var a packet.Ack
				if f.kind() != packet.PUBACK || a.Decode(w.v, packet.PUBACK, f.body) != nil || a.Reason.Failed() {
					return fmt.Errorf("%v", f)
				}
				l.mu.Lock()
				l.acked[a.PacketID-1] = l.sent[a.PacketID-1]
				l.count++
				l.mu.Unlock()
			}
		}
		return nil
	}
}

// check subscribes and looks whether what was acknowledged before is there, or
// what has been sent since.
func (l *keptLoad) check(s *scene) {
	s.Helper()
	l.mu.Lock()
	acked := l.acked
	l.mu.Unlock()
	w := s.connect("checker")
	w.sub("kept/+", 0)
	w.send(packet.AppendPingreq(nil))
	w.await(packet.PINGRESP)
	got := [8]int{}
	for len(w.stash) > 0 {
		p := w.message()
		var i int
		if _, err := fmt.Sscanf(p.Topic, "kept/%d", &i); err != nil {
			s.Fatal(err)
		}
		n, err := numberOf(p.Payload)
		if err != nil {
			s.Fatal(err)
		}
		if got[i] == 0 && !p.Retain {
			s.Errorf("kept/%d: the first that comes is not the retained message", i)
		}
		if got[i] == 0 && n < acked[i] {
			s.Errorf("kept/%d is %d, and %d was acknowledged", i, n, acked[i])
		}
		got[i] = n
	}
	l.mu.Lock()
	sent := l.sent
	l.mu.Unlock()
	for i := range got {
		if got[i] == 0 && acked[i] > 0 || got[i] > sent[i] {
			s.Errorf("kept/%d is %d, %d was acknowledged and %d sent", i, got[i], acked[i], sent[i])
		}
	}
	w.leave(0)
}
