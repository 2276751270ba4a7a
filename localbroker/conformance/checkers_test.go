package conformance

import (
	"errors"
	"strings"
	"testing"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// Those who look for losses have to find them: each is shown a broker that is
// wrong.

func message(n int, dup bool) packet.Publish {
	return packet.Publish{Topic: "t", Payload: payloadOf(n, 10), QoS: 1, Dup: dup}
}

func TestTallyFindsLoss(t *testing.T) {
	for _, c := range []struct {
		name    string
		numbers []int // negative is a duplicate that is marked
		good    bool
	}{
		{"in order", []int{0, 1, 2}, true},
		{"again, marked", []int{0, 1, -1, 2}, true},
		{"a gap", []int{0, 2}, false},
		{"again, not marked", []int{0, 1, 1}, false},
		{"the first is missing", []int{1}, false},
	} {
		var sum tally
		var err error
		for _, n := range c.numbers {
			p := message(max(n, -n), n < 0)
			err = errors.Join(err, sum.add(&p))
		}
		if (err == nil) != c.good {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestAwayFindsLoss(t *testing.T) {
	l := awayLoad{next: 5, acked: []int{0, 1, 3}}
	for _, c := range []struct {
		name    string
		got     []packet.Publish
		missing int
		wrong   int
	}{
		{"all", []packet.Publish{message(0, false), message(1, false), message(3, false)}, 0, 0},
		{"also what was not acknowledged", []packet.Publish{message(0, false), message(1, false), message(2, false), message(3, false), message(4, false)}, 0, 0},
		{"one is lost", []packet.Publish{message(0, false), message(3, false)}, 1, 0},
		{"all are lost", nil, 3, 0},
		{"another order", []packet.Publish{message(1, false), message(0, false), message(3, false)}, 0, 1},
		{"twice, marked", []packet.Publish{message(0, false), message(0, true), message(1, false), message(3, false)}, 0, 0},
		{"twice, not marked", []packet.Publish{message(0, false), message(0, false), message(1, false), message(3, false)}, 0, 1},
		{"never sent", []packet.Publish{message(0, false), message(1, false), message(3, false), message(9, false)}, 0, 1},
	} {
		missing, wrong := l.judge(c.got)
		if len(missing) != c.missing || len(wrong) != c.wrong {
			t.Errorf("%s: missing %v, wrong %q", c.name, missing, wrong)
		}
	}
}

func TestOnceFindsDuplicates(t *testing.T) {
	publish := func(n int, id uint16, dup bool) frame {
		raw := (&packet.Publish{Topic: "t", Payload: payloadOf(n, 10), QoS: 2, PacketID: id, Dup: dup}).Append(nil, packet.V5)
		return frame{raw[0], raw[2:]}
	}
	ack := func(t packet.Type, id uint16, reason packet.Reason) frame {
		raw := (&packet.Ack{PacketID: id, Reason: reason}).Append(nil, packet.V5, t)
		return frame{raw[0], raw[2:]}
	}
	for _, c := range []struct {
		name   string
		frames []frame
		want   string // of the error; "" is none
	}{
		{"one after the other", []frame{publish(0, 1, false), ack(packet.PUBREL, 1, 0), publish(1, 1, false)}, ""},
		{"again, marked", []frame{publish(0, 1, false), publish(0, 1, true)}, ""},
		{"again, not marked", []frame{publish(0, 1, false), publish(0, 1, false)}, "not marked"},
		{"again under another identifier", []frame{publish(0, 1, false), publish(0, 2, true)}, "where 1 was to come"},
		{"again after its release", []frame{publish(0, 1, false), ack(packet.PUBREL, 1, 0), publish(0, 1, true)}, "where 1 was to come"},
		{"a gap", []frame{publish(0, 1, false), publish(2, 2, false)}, "where 1 was to come"},
	} {
		r := onceReceiver{actor: actor{v: packet.V5}, held: map[uint16]bool{}}
		var err error
		for _, f := range c.frames {
			err = errors.Join(err, r.take(f))
		}
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("receiver, %s: %v", c.name, err)
		}
	}
	for _, c := range []struct {
		name   string
		frames []frame
		want   string
	}{
		{"a handshake", []frame{ack(packet.PUBREC, 1, 0), ack(packet.PUBCOMP, 1, 0)}, ""},
		{"PUBCOMP first", []frame{ack(packet.PUBCOMP, 1, 0)}, "before PUBREC"},
		{"refused", []frame{ack(packet.PUBREC, 1, packet.QuotaExceeded)}, "quota"},
		{"not found at its first PUBREL", []frame{ack(packet.PUBREC, 1, 0), ack(packet.PUBCOMP, 1, packet.PacketIDNotFound)}, "not found"},
		{"PUBREC for nothing", []frame{ack(packet.PUBREC, 7, 0)}, "not under way"},
	} {
		s := onceSender{actor: actor{v: packet.V5}, open: []flight{{n: 0, id: 1}}}
		var err error
		for _, f := range c.frames {
			err = errors.Join(err, s.take(f))
		}
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("sender, %s: %v", c.name, err)
		}
	}
}
