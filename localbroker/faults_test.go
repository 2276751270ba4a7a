package localbroker

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/buffer/simulated"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// What the simulation has found, and can be shown without one.

// rig is a broker on a simulated machine.
type rig struct {
	t       *testing.T
	machine *simulated.Machine
	broker  *Broker
	buffer  *buffer.Buffer
	pending chan net.Conn
	stop    func()
}

// onMachine runs a test with a broker on a machine, in a bubble.
func onMachine(t *testing.T, test func(r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, machine: simulated.New(1)}
		r.start()
		defer func() { r.stop() }()
		test(r)
	})
}

func (r *rig) start() {
	life := r.machine.On()
	parts := buffer.Parts{Meta: life.Store("meta")}
	for c := range buffer.NumClasses {
		parts.Disks[c] = life.Disk(c.String())
	}
	b, err := buffer.OpenParts(parts, buffer.Options{Clock: r.machine})
	if err != nil {
		r.t.Fatal(err)
	}
	s, err := openState(life.Store("state"), b, slog.New(slog.DiscardHandler))
	if err != nil {
		r.t.Fatal(err)
	}
	r.buffer = b
	r.broker = New(Options{Listeners: []Listener{{Name: "plain", AllowAnonymous: true}}, Buffer: b, State: s})
	l := newSimListener(life)
	r.pending = l.pending
	r.broker.listeners = []net.Listener{l}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- r.broker.Run(ctx) }()
	go func() { done <- s.Run(ctx) }()
	r.stop = func() {
		cancel()
		<-done
		<-done
		s.Close()
		b.Close()
		synctest.Wait()
	}
}

// kill ends the process, and starts another one on what is left.
func (r *rig) kill() {
	r.machine.Kill()
	r.stop()
	r.start()
}

func (r *rig) dial(v packet.Version) *wire {
	near, far := net.Pipe()
	r.pending <- far
	w := &wire{t: r.t, v: v, nc: near, r: packet.NewReader(near, new(packet.Blocks), packet.MaxLength)}
	w.r.SetVersion(v)
	return w
}

// connect connects with a session that lasts for an hour.
func (r *rig) connect(id string, change ...func(*packet.Connect)) (*wire, packet.Connack) {
	w := r.dial(packet.V5)
	ack := w.connect(id, append([]func(*packet.Connect){func(p *packet.Connect) {
		p.CleanStart = false
		p.Props = p.Props.AppendUint(packet.SessionExpiry, 3600)
	}}, change...)...)
	return w, ack
}

// publish publishes as the gateway, and waits until that is safe.
func (r *rig) publish(topic, payload string) {
	r.t.Helper()
	done := make(told, 1)
	if err := r.broker.Publish(r.t.Context(), &Message{Topic: topic, Payload: []byte(payload), QoS: 1, Urgent: true}, done); err != nil {
		r.t.Fatal(err)
	}
	if err := <-done; err != nil {
		r.t.Fatal(err)
	}
}

func gone(p *packet.Connect) {
	p.Will = &packet.Will{Topic: "will", Payload: []byte("gone"), QoS: 1}
}

func delayed(p *packet.Connect) {
	p.Will.Props = p.Will.Props.AppendUint(packet.WillDelay, 5)
}

// A client that is not let in has changed nothing: its session waits for it with all
// that it has, and its earlier will is due as it was.
func TestNotLetIn(t *testing.T) {
	onMachine(t, func(r *rig) {
		watcher, _ := r.connect("watcher")
		watcher.sub("will")
		c, _ := r.connect("c", gone, delayed)
		c.sub("a")
		c.nc.Close()
		synctest.Wait()
		r.publish("a", "1")
		time.Sleep(time.Second)
		r.machine.Break(true)
		c, ack := r.connect("c", gone)
		if ack.Reason != packet.ImplementationSpecific {
			t.Fatalf("let in with a will that is not stored: %v", ack.Reason)
		}
		c.nc.Close()
		time.Sleep(time.Second)
		r.machine.Break(false)
		time.Sleep(5 * time.Second)
		watcher.want("will=gone q1")
		watcher.nothing()
		if c, ack = r.connect("c"); !ack.SessionPresent {
			t.Fatal("the session is gone")
		}
		c.want("a=1 q1")
		c.nothing()
	})
}

// A session is there after the process was killed as soon as its client was told so,
// and until then nobody is told.
func TestSessionIsStoredFirst(t *testing.T) {
	onMachine(t, func(r *rig) {
		r.machine.Break(true)
		if _, ack := r.connect("c"); ack.Reason != packet.ImplementationSpecific {
			t.Fatalf("let in with a session that is not stored: %v", ack.Reason)
		}
		r.machine.Break(false)
		if _, ack := r.connect("c"); ack.Reason != packet.Success || ack.SessionPresent {
			t.Fatalf("%+v", ack)
		}
		r.kill()
		c, ack := r.connect("c")
		if !ack.SessionPresent {
			t.Fatal("the session is gone")
		}
		c.sub("a")
		r.kill()
		r.publish("a", "1")
		c, _ = r.connect("c")
		c.want("a=1 q1")
	})
}

// A session that has ended stays away, though the disk was broken when it did.
func TestSessionStaysAway(t *testing.T) {
	onMachine(t, func(r *rig) {
		c, _ := r.connect("c")
		c.sub("a")
		c.nc.Close()
		synctest.Wait()
		anew := func(p *packet.Connect) { p.CleanStart, p.Props = true, nil }
		r.machine.Break(true)
		if _, ack := r.connect("c", anew); ack.Reason != packet.ImplementationSpecific {
			t.Fatalf("let in while the earlier session is still stored: %v", ack.Reason)
		}
		r.machine.Break(false)
		if _, ack := r.connect("c", anew); ack.Reason != packet.Success || ack.SessionPresent {
			t.Fatalf("%+v", ack)
		}
		r.kill()
		if _, ack := r.connect("c"); ack.SessionPresent {
			t.Error("the session is back")
		}
	})
}

// A will that is due when the disk is broken is published when it works again, and
// one that is due is not forgotten because its client is back first.
func TestWillThatWaits(t *testing.T) {
	onMachine(t, func(r *rig) {
		watcher, _ := r.connect("watcher")
		watcher.sub("will")
		for _, c := range []*wire{first(r.connect("c", gone)), first(r.connect("d", gone, func(p *packet.Connect) { p.CleanStart, p.Props = true, nil }))} {
			r.machine.Break(true)
			c.nc.Close()
			time.Sleep(3 * time.Second)
			watcher.nothing()
			r.machine.Break(false)
			time.Sleep(3 * time.Second)
			watcher.want("will=gone q1")
			watcher.nothing()
		}
		if _, ack := r.connect("c", gone); !ack.SessionPresent {
			t.Fatal("the session is gone")
		}
		time.Sleep(3 * time.Second) // until what the watcher has acknowledged is durable
		r.kill()
		watcher, _ = r.connect("watcher")
		r.connect("c")
		time.Sleep(3 * time.Second)
		watcher.want("will=gone q1")
		watcher.nothing()
	})
}

// A will that was taken back while the disk was broken is not published by the next
// process.
func TestWillTakenBack(t *testing.T) {
	onMachine(t, func(r *rig) {
		watcher, _ := r.connect("watcher")
		watcher.sub("will")
		c, _ := r.connect("c", gone)
		r.machine.Break(true)
		c.send((&packet.Disconnect{}).Append(nil, packet.V5, packet.DISCONNECT))
		time.Sleep(3 * time.Second)
		r.machine.Break(false)
		watcher.sub("other") // what was written in between and failed is void with this
		time.Sleep(3 * time.Second)
		r.kill()
		watcher, _ = r.connect("watcher")
		time.Sleep(3 * time.Second)
		watcher.nothing()
	})
}

func first(w *wire, _ packet.Connack) *wire { return w }

// Who does not want its own messages does not get them, also when they were published
// in an earlier session, or are retained and the process that took them is gone.
func TestNoLocalInANewSession(t *testing.T) {
	onMachine(t, func(r *rig) {
		other, _ := r.connect("other")
		other.sub("a")
		anew := func(p *packet.Connect) { p.CleanStart, p.Props = true, nil }
		c, _ := r.connect("c", anew)
		r.machine.Latency(time.Second)
		c.publish("a", "x", 1, 1)
		synctest.Wait()
		c.nc.Close()
		c, _ = r.connect("c", anew)
		c.subscribe(packet.Subscription{Filter: "a", QoS: 1, NoLocal: true})
		time.Sleep(10 * time.Second)
		c.nothing()
		other.want("a=x q1")
	})
}

func TestNoLocalAfterRestart(t *testing.T) {
	onMachine(t, func(r *rig) {
		c, _ := r.connect("c")
		c.publish("mine", "c", 1, 1, retain)
		c.expectAck(1)
		r.kill()
		own := packet.Subscription{Filter: "mine", QoS: 1, NoLocal: true}
		c, _ = r.connect("c")
		c.subscribe(own)
		c.nothing()
		d, _ := r.connect("d")
		d.subscribe(own)
		d.want("mine=c q1 r")
	})
}

// A broker that stops publishes wills, and the next one knows that.
func TestWillWhenTheBrokerStops(t *testing.T) {
	onMachine(t, func(r *rig) {
		watcher, _ := r.connect("watcher")
		watcher.sub("will")
		for range 10 { // it is a matter of which goroutine is first
			r.connect("c", gone)
			r.machine.Latency(time.Minute)
			if err := r.broker.Publish(t.Context(), &Message{Topic: "will", Payload: []byte("before"), QoS: 1, Urgent: true}, nil); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			r.stop()
			r.machine.Latency(0)
			r.start()
			watcher, _ = r.connect("watcher")
			time.Sleep(3 * time.Second)
			watcher.want("will=before q1", "will=gone q1")
			watcher.nothing()
		}
	})
}

// Messages that have expired do not hold up those behind them.
func TestExpiredInBetween(t *testing.T) {
	onMachine(t, func(r *rig) {
		few := func(p *packet.Connect) { p.Props = p.Props.AppendUint(packet.ReceiveMaximum, 5) }
		c, _ := r.connect("c", few)
		c.sub("a")
		c.nc.Close()
		synctest.Wait()
		const n = 60
		for i := range n {
			m := &Message{Topic: "a", Payload: fmt.Append(nil, i), QoS: 1, Urgent: true}
			if i >= 5 && i%2 == 0 {
				m.Expiry = time.Second
			}
			done := make(told, 1)
			if err := r.broker.Publish(t.Context(), m, done); err != nil || <-done != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * time.Second)
		c, _ = r.connect("c", few)
		got := 0
		for quiet := false; !quiet; {
			var acks []byte
			for {
				first, body, err := c.read(time.Second)
				if err != nil {
					break
				}
				var p packet.Publish
				c.check(p.Decode(c.v, first, body))
				acks = (&packet.Ack{PacketID: p.PacketID}).Append(acks, c.v, packet.PUBACK)
				got++
			}
			if quiet = acks == nil; !quiet {
				c.send(acks)
			}
		}
		if want := 5 + (n-5+1)/2; got != want {
			t.Errorf("%d messages came, want %d", got, want)
		}
	})
}

// A retained message that was deleted stays so, though an older one of its topic had to
// wait for others of its publisher and is set later.
func TestDeletedRetainedStays(t *testing.T) {
	var r retained
	older, deletion := &Message{Topic: "a", Payload: []byte("1"), stamp: 1}, &Message{Topic: "a", stamp: 2}
	r.expect()
	r.expect()
	r.set(deletion)
	r.done()
	r.set(older)
	r.done()
	if n, _ := r.count(); n != 0 {
		t.Error("it is there again")
	}
	r.set(&Message{Topic: "a", Payload: []byte("3"), stamp: 3})
	if n, _ := r.count(); n != 1 || r.gone != nil {
		t.Errorf("%d messages, and %v is remembered", n, r.gone)
	}
}

// A session of which it was not stored that it has ended is there again after a restart,
// with all that it had or not at all.
func TestSessionEndsAsAWhole(t *testing.T) {
	onMachine(t, func(r *rig) {
		short := func(p *packet.Connect) { p.Props = packet.Properties{}.AppendUint(packet.SessionExpiry, 5) }
		c, _ := r.connect("c", short)
		c.sub("$share/g/a", "b")
		time.Sleep(time.Second)
		r.machine.Break(true) // or a restart would know when the client has left
		c.nc.Close()
		time.Sleep(time.Second)
		r.machine.Break(false)
		r.publish("b", "1")
		r.machine.Latency(time.Hour) // so that it takes its time to end
		for ended := false; !ended; time.Sleep(time.Second) {
			for _, o := range r.buffer.Outboxes() {
				ended = ended || o.Ledger().Dropped["ended"] > 0
			}
		}
		time.Sleep(3 * time.Second) // until that is durable
		r.kill()
		r.machine.Latency(0)
		if c, ack := r.connect("c", short); ack.SessionPresent {
			c.want("b=1 q1")
		}
	})
}

// A delayed will is gone as soon as its client is let in again, also if the process dies
// with that.
func TestWillIsGoneFirst(t *testing.T) {
	onMachine(t, func(r *rig) {
		watcher, _ := r.connect("watcher")
		watcher.sub("will")
		c, _ := r.connect("c", gone, delayed)
		c.nc.Close()
		synctest.Wait()
		if _, ack := r.connect("c"); !ack.SessionPresent {
			t.Fatal("the session is gone")
		}
		r.kill()
		time.Sleep(10 * time.Second)
		watcher, _ = r.connect("watcher")
		watcher.nothing()
	})
}

// A subscription that was to end while the disk was broken is there until its client
// asks again, and then ends for good.
func TestUnsubscribeAgain(t *testing.T) {
	onMachine(t, func(r *rig) {
		unsubscribe := func(c *wire) {
			c.send((&packet.Unsubscribe{PacketID: 9, Filters: []string{"a"}}).Append(nil, c.v))
		}
		c, _ := r.connect("c")
		c.sub("a")
		r.machine.Break(true)
		unsubscribe(c)
		c.closed(packet.ImplementationSpecific)
		time.Sleep(time.Second)
		r.machine.Break(false)
		c, _ = r.connect("c")
		unsubscribe(c)
		head, body := c.receive()
		var ack packet.Suback
		if packet.TypeOf(head) != packet.UNSUBACK || ack.Decode(c.v, packet.UNSUBACK, body) != nil || ack.Reasons[0] != packet.Success {
			t.Errorf("%v % x", packet.TypeOf(head), body)
		}
		r.kill()
		r.publish("a", "x")
		c, _ = r.connect("c")
		c.nothing()
	})
}

// A session is there with all that it has until it is stored that it has ended.
func TestSessionEndsWhenThatIsStored(t *testing.T) {
	onMachine(t, func(r *rig) {
		c, _ := r.connect("c", func(p *packet.Connect) { p.Props = packet.Properties{}.AppendUint(packet.SessionExpiry, 5) })
		c.sub("a")
		other, _ := r.connect("other") // so that something is written when the disk works again
		other.sub("a")
		time.Sleep(time.Second)
		r.machine.Break(true)
		c.nc.Close()
		time.Sleep(time.Minute)
		r.machine.Break(false)
		r.publish("a", "1")
		r.kill()
		if c, ack := r.connect("c"); ack.SessionPresent {
			c.want("a=1 q1")
		}
	})
}
