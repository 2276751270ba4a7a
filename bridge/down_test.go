package bridge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/fieldferry/fieldferry/bridge/upstreamtest"
	"github.com/fieldferry/fieldferry/buffer"
)

// taker is where messages from the upstream go.
type taker struct {
	taken *Taken // nil: nothing is durable
	rig   *rig

	mu    sync.Mutex // guards what follows
	came  []*Inbound
	late  bool // receipts come when told to
	owing []buffer.Receipt
	fail  func(m *Inbound) error
}

func (k *taker) down(filters ...Filter) *Downward {
	return &Downward{Filters: filters, Taken: k.taken, Deliver: func(ctx context.Context, m *Inbound, r buffer.Receipt) error {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.fail != nil {
			if err := k.fail(m); err != nil {
				return err
			}
		}
		k.came = append(k.came, m)
		if k.late {
			k.owing = append(k.owing, r)
			return nil
		}
		if m.Copy != nil && k.rig != nil {
			const class = buffer.Local
			return k.rig.buffer.Append(ctx, class, &buffer.Message{Topic: m.Topic, Payload: m.Payload, Urgent: true, Copies: []buffer.Copy{m.Copy(class)}}, r)
		}
		r.Stored(nil)
		return nil
	}}
}

// remember makes the taker one that remembers what came over a restart.
func (k *taker) remember(r *rig) {
	r.t.Helper()
	k.rig = r
	if k.taken != nil {
		k.taken.Close()
	}
	var err error
	if k.taken, err = OpenTaken(r.buffer, "test"); err != nil {
		r.t.Fatal(err)
	}
}

func (k *taker) payloads() (list []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range k.came {
		list = append(list, string(m.Payload))
	}
	return list
}

func send(r *rig, qos byte, payloads ...string) {
	for _, p := range payloads {
		r.up.Send(upstreamtest.Message{Topic: "up/x", Payload: p, QoS: qos})
	}
}

func TestDown(t *testing.T) {
	var k taker
	run(t, "all there is of a message", Options{Down: k.down(Filter{"up/+", 2}, Filter{"other/#", 0})}, func(t *testing.T, r *rig) {
		r.start()
		synctest.Wait()
		if got := r.up.Filters(); !slices.Equal(got, []string{"other/#", "up/+"}) {
			t.Errorf("subscribed to %q", got)
		}
		r.up.Send(upstreamtest.Message{Topic: "up/x", Payload: "p", QoS: 1, Retain: true, Expiry: 9, User: []packets.User{{Key: "k", Value: "v"}}})
		synctest.Wait()
		if len(k.came) != 1 {
			t.Fatalf("%d came", len(k.came))
		}
		if m := k.came[0]; m.Topic != "up/x" || string(m.Payload) != "p" || m.QoS != 1 || !m.Retain || m.Expiry != 9*time.Second || string(m.Props) != string(appendUser(nil, "k", "v")) {
			t.Errorf("came %+v", m)
		}
		if n := r.up.Unanswered(); n != 0 {
			t.Errorf("%d are not answered", n)
		}
	})
	for qos := byte(1); qos <= 2; qos++ {
		k := &taker{late: true}
		run(t, fmt.Sprintf("QoS %d is not answered before it is stored", qos), Options{Down: k.down(Filter{"#", 2})}, func(t *testing.T, r *rig) {
			r.start()
			synctest.Wait()
			send(r, qos, "a", "b", "c")
			synctest.Wait()
			if n := r.up.Unanswered(); n != 3 {
				t.Errorf("%d are not answered, want all", n)
			}
			k.owing[2].Stored(nil)
			synctest.Wait()
			if n := r.up.Unanswered(); n != 3 {
				t.Errorf("the third was answered before the first")
			}
			k.owing[0].Stored(nil)
			k.owing[1].Stored(nil)
			synctest.Wait()
			if n := r.up.Unanswered(); n != 0 {
				t.Errorf("%d are not answered, want none", n)
			}
		})
		k = &taker{fail: func(m *Inbound) error {
			switch string(m.Payload) {
			case "bad":
				return errors.New("no")
			case "full":
				return buffer.ErrFull
			}
			return nil
		}}
		run(t, fmt.Sprintf("QoS %d that is not taken is refused", qos), Options{Down: k.down(Filter{"#", 2})}, func(t *testing.T, r *rig) {
			r.start()
			synctest.Wait()
			send(r, qos, "a", "bad", "b", "full", "c")
			synctest.Wait()
			if got := k.payloads(); !slices.Equal(got, []string{"a", "b", "c"}) {
				t.Errorf("got %q", got)
			}
			if c := r.up.Connects(); !slices.Equal(c[0].Refused, []byte{0x83, 0x97}) {
				t.Errorf("refused with % x", c[0].Refused)
			}
			if n := r.up.Unanswered(); n != 0 {
				t.Errorf("%d are not answered", n)
			}
		})
	}
}

// An upstream that sends more than our Receive Maximum, as Mosquitto 2.0 does with QoS 2,
// is read no faster than what it sends is stored.
func TestDownBeyondReceiveMaximum(t *testing.T) {
	for qos := byte(1); qos <= 2; qos++ {
		k := &taker{late: true}
		run(t, fmt.Sprintf("QoS %d", qos), Options{Down: k.down(Filter{"#", 2})}, func(t *testing.T, r *rig) {
			r.start()
			synctest.Wait()
			const n = 5 * maxInFlight
			var want []string
			for i := range n {
				want = append(want, fmt.Sprint(i))
			}
			send(r, qos, want...)
			told := 0
			r.until("all answered", func() bool {
				k.mu.Lock()
				owing := k.owing[told:]
				told = len(k.owing)
				k.mu.Unlock()
				for _, receipt := range owing {
					receipt.Stored(nil)
				}
				return r.up.Unanswered() == 0
			})
			if got := k.payloads(); !slices.Equal(got, want) {
				t.Errorf("%d came, and not all in order", len(got))
			}
			if c := r.up.Connects(); len(c) != 1 {
				t.Errorf("%d connections", len(c))
			}
		})
	}
}

// Whatever is cut, what comes down with QoS 2 comes once, with QoS 1 at least once,
// also over a restart of the bridge.
func TestDownOverCuts(t *testing.T) {
	for seed := range uint64(30) {
		k := &taker{}
		o := Options{Backoff: Backoff{First: 100 * time.Millisecond, Max: 100 * time.Millisecond}}
		rnd := rand.New(rand.NewPCG(seed, 2))
		var scripts []upstreamtest.Script
		for range 20 {
			var s upstreamtest.Script
			if rnd.IntN(2) == 0 {
				s.CutSent = 11 + rnd.IntN(150)
			} else {
				s.CutReceived = 60 + rnd.IntN(60)
			}
			scripts = append(scripts, s)
		}
		run(t, fmt.Sprint("seed ", seed), o, func(t *testing.T, r *rig) {
			again := func() {
				r.halt()
				r.up.Cut()
				synctest.Wait() // what is being stored is, or is not, before a process ends
				k.remember(r)
				o.Down = k.down(Filter{"#", 2})
				r.make("again", o)
				r.start()
			}
			again()
			defer func() { k.taken.Close() }()
			r.until("connected", func() bool { return r.bridge.Status().Connected })
			var want []string
			for i := range 40 {
				send(r, byte(1+i%2), fmt.Sprint(i))
				want = append(want, fmt.Sprint(i))
				if i%13 == 0 {
					again()
				}
				time.Sleep(20 * time.Millisecond)
			}
			r.until("all answered", func() bool { return r.up.Unanswered() == 0 })
			times := map[string]int{}
			var first []string
			for _, p := range k.payloads() {
				if times[p]++; times[p] == 1 {
					first = append(first, p)
				}
			}
			slices.Sort(first)
			slices.Sort(want)
			if !slices.Equal(first, want) {
				t.Errorf("came %q", first)
			}
			for i := 1; i < 40; i += 2 {
				if n := times[fmt.Sprint(i)]; n != 1 {
					t.Errorf("%d came %d times with QoS 2", i, n)
				}
			}
		}, append(scripts, upstreamtest.Script{})...)
	}
}
