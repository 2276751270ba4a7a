package bridge

import (
	"sync"

	"github.com/fieldferry/fieldferry/buffer"
)

// doubt is about copies with a PUBREC of a session that may be gone: a CONNECT went
// unanswered, and the session that is there now may be a new one. Their PUBRELs tell.
// One whose id the upstream knows shows that the session is the old one, so that the
// others were completed before. If it knows none, nobody knows what became of them.
// None is sent again: a CONNACK that got lost is more likely than a session as well.
type doubt struct {
	mu    sync.Mutex // guards what follows
	known bool       // the session is the old one
	lanes [len(Outboxes{})]laneDoubt
}

// laneDoubt is the doubt of one lane. Each decides for itself, because what waits in
// one may take the room that another needs to go on.
type laneDoubt struct {
	upTo      uint64   // copies up to here are in doubt
	passed    bool     // all PUBRELs were sent
	open      int      // PUBRELs that were not answered
	undecided []copyID // of which the upstream did not know the id
}

// begin puts the copies of a lane in doubt, before anything is sent.
func (d *doubt) begin(lane int, upTo uint64) { d.lanes[lane].upTo = upTo }

// about reports whether a copy is in doubt.
func (d *doubt) about(lane int, ordinal uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return ordinal <= d.lanes[lane].upTo
}

// sent notes that a copy's PUBREL goes.
func (d *doubt) sent(lane int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lanes[lane].open++
}

// answered notes a PUBCOMP, and returns the copies that are decided with it.
func (d *doubt) answered(lane int, id copyID, known bool) (decided []copyID, out buffer.Outcome) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := &d.lanes[lane]
	l.open--
	d.known = d.known || known
	l.undecided = append(l.undecided, id)
	return d.decide()
}

// pass notes in which lanes all PUBRELs were sent, because the line has come to what
// is not in doubt, or nothing else is left.
func (d *doubt) pass(reached func(lane int, upTo uint64, undecided int) bool) (decided []copyID, out buffer.Outcome) {
	d.mu.Lock()
	defer d.mu.Unlock()
	news := false
	for lane := range d.lanes {
		if l := &d.lanes[lane]; !l.passed && reached(lane, l.upTo, len(l.undecided)) {
			l.passed, news = true, true
		}
	}
	if !news {
		return nil, 0
	}
	return d.decide()
}

// decide is called with d.mu held.
func (d *doubt) decide() (decided []copyID, out buffer.Outcome) {
	out = buffer.Uncertain
	if d.known {
		out = buffer.Delivered
	}
	for lane := range d.lanes {
		if l := &d.lanes[lane]; d.known || l.passed && l.open == 0 {
			decided = append(decided, l.undecided...)
			l.undecided = nil
		}
	}
	return decided, out
}

// settled reports whether nothing is in doubt any more, as far as the outboxes know.
func (d *doubt) settled(out *Outboxes) (ever, settled bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	settled = true
	for lane := range d.lanes {
		upTo := d.lanes[lane].upTo
		ever = ever || upTo > 0
		if o := out[lane]; o != nil && o.Marks().Settled < upTo {
			settled = false
		}
	}
	return ever, settled
}

// judge settles what is decided.
func (c *conn) judge(decided []copyID, out buffer.Outcome) {
	for _, id := range decided {
		if out == buffer.Delivered {
			c.deliver(id)
			continue
		}
		c.b.uncertain.Add(1)
		id.outbox.Settle(id.ordinal, out)
	}
}
