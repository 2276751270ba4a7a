package bridge

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
)

// An upstream that is silent about one message while another waits for its id to be
// set free is found out, whatever else becomes durable meanwhile.
func TestSilenceIsNoticedBehindAGap(t *testing.T) {
	run(t, "gap", Options{}, func(t *testing.T, r *rig) {
		status, telemetry := r.out[buffer.Status], r.out[buffer.Telemetry]
		c := newConn(r.bridge, nil)
		c.limits.sessionPresent = true
		c.window = newWindow(2, &r.out)
		for ordinal := uint64(1); ordinal <= 2; ordinal++ {
			id := packetID(int(buffer.Telemetry), ordinal)
			if !c.window.add(&buffer.Delivery{Outbox: telemetry, Ordinal: ordinal, QoS: 2}, id, 2, false, 10) {
				t.Fatal("no slot")
			}
		}
		if !c.window.received(packetID(int(buffer.Telemetry), 2)) { // and nothing for 1
			t.Fatal("not received")
		}
		// Copy 3 of the other lane is behind one whose id is still to be released, and
		// behind two that have ended and that a crash could bring back.
		r.bridge.progress[buffer.Status] = progress{written: 2, open: map[uint64]bool{2: true}}
		c.next[buffer.Status] = 1
		sent := time.Now()
		for time.Since(sent) < time.Minute {
			time.Sleep(time.Second)
			if c.closeGap(int(buffer.Status), 3) {
				t.Fatal("the gap is closed without a slot")
			}
			if batch := c.window.toCommit(); len(batch.ids) > 0 || batch.upTo != [len(Outboxes{})]uint64{} {
				c.window.committed(batch, nil)
			}
		}
		if n := len(c.window.waits[buffer.Status]); n != 0 {
			t.Errorf("%d entries for a gap that is open, of an outbox at %+v", n, status.Marks())
		}
		if !c.window.stuck(time.Now(), 40*time.Second) {
			t.Error("a minute of silence is not noticed")
		}
	})
}

// Marks that become durable are no answer of the upstream.
func TestMarksAreNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out Outboxes
		w := newWindow(2, &out)
		w.mu.Lock()
		w.slot(&buffer.Delivery{Ordinal: 1, QoS: 2}, 40000)
		w.mu.Unlock()
		for range 10 {
			time.Sleep(time.Second)
			w.committed(commit{upTo: [len(Outboxes{})]uint64{7}}, nil)
		}
		if !w.stuck(time.Now(), 9*time.Second) {
			t.Error("ten seconds of silence are not noticed")
		}
	})
}
