package conformance

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// A scene is one test in one version of the protocol, with names of its own for
// topics and clients, since the broker may be shared.
type scene struct {
	*testing.T
	v      packet.Version
	b      *broker
	prefix string
}

// stage prepares a scene on b, which it starts if need be.
func stage(t *testing.T, v packet.Version, b *broker) *scene {
	t.Helper()
	b.start(t)
	t.Cleanup(func() {
		if t.Failed() && b.died() {
			t.Logf("the broker has died:\n%s", b.said())
		}
	})
	return &scene{T: t, v: v, b: b, prefix: fmt.Sprintf("s%d", b.scenes.Add(1))}
}

// ours reports whether the broker is the one of this module, of which more is
// asked than the standards ask.
func (s *scene) ours() bool { return *peer == "fieldferry" }

func (s *scene) five() bool { return s.v == packet.V5 }

// topic is a topic or filter of this scene's own.
func (s *scene) topic(name string) string { return s.prefix + "/" + name }

// A wire is a client that says and hears packets, and keeps no rules.
type wire struct {
	s       *scene
	v       packet.Version
	nc      net.Conn
	r       *packet.Reader
	connack packet.Connack
	last    uint16  // the last packet identifier it used
	about   string  // what it is to show, for what is said of a failure
	stash   []frame // received while something else was waited for
}

// A frame is a packet from the wire; body is its own.
type frame struct {
	first byte
	body  []byte
}

func (f frame) kind() packet.Type { return packet.TypeOf(f.first) }

func (f frame) String() string { return fmt.Sprintf("%v % x", f.kind(), f.body) }

func (s *scene) dial() *wire { return s.dialAs(s.v) }

func (s *scene) dialAs(v packet.Version) *wire {
	s.Helper()
	nc, err := net.Dial("tcp", s.b.addr())
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { nc.Close() })
	w := &wire{s: s, v: v, nc: nc, r: packet.NewReader(nc, new(packet.Blocks), packet.MaxLength)}
	w.r.SetVersion(v)
	return w
}

// An option changes a CONNECT.
type option func(*packet.Connect)

// fresh begins a session that ends with the connection; it is what a client
// does that has no options.
func fresh(*packet.Connect) {}

// keep makes the session outlive the connection.
func keep(p *packet.Connect) {
	if p.Version == packet.V5 {
		p.Props = p.Props.AppendUint(packet.SessionExpiry, 3600)
	} else {
		p.CleanStart = false // 3.1.1 has one flag for both
	}
}

// resume is keep for a client that has been there.
func resume(p *packet.Connect) {
	keep(p)
	p.CleanStart = false
}

func number(id packet.Property, n uint32) option {
	return func(p *packet.Connect) { p.Props = p.Props.AppendUint(id, n) }
}

func keepalive(seconds uint16) option { return func(p *packet.Connect) { p.KeepAlive = seconds } }

func dirty(p *packet.Connect) { p.CleanStart = false }

func version(v packet.Version) option { return func(p *packet.Connect) { p.Version = v } }

// login is for the guarded site.
func login(user string) option {
	return func(p *packet.Connect) {
		p.HasUsername, p.Username = true, user
		p.HasPassword, p.Password = true, []byte(backwards(user))
	}
}

// connect connects a client that has to be let in.
func (s *scene) connect(id string, o ...option) *wire {
	s.Helper()
	w := s.try(s.prefix+id, o...)
	if w.connack.Reason != packet.Success {
		s.Fatalf("%s is not let in: %v", id, w.connack.Reason)
	}
	return w
}

// try connects a client under exactly this id and returns it with its CONNACK,
// whatever that says.
func (s *scene) try(id string, o ...option) *wire {
	s.Helper()
	p := packet.Connect{Version: s.v, ClientID: id, CleanStart: true}
	for _, f := range o {
		f(&p)
	}
	w := s.dialAs(p.Version)
	w.send(p.Append(nil))
	w.takeConnack()
	return w
}

func (w *wire) takeConnack() {
	w.s.Helper()
	f := w.receive()
	if f.kind() != packet.CONNACK {
		w.s.Fatalf("%v in the place of CONNACK", f)
	}
	w.check(w.connack.Decode(w.v, f.body))
}

func (w *wire) check(err error) {
	w.s.Helper()
	if err != nil {
		w.s.Fatal(err)
	}
}

func (w *wire) send(raw ...[]byte) {
	w.s.Helper()
	w.check(w.write(bytes.Join(raw, nil)))
}

// write is send for any goroutine.
func (w *wire) write(raw []byte) error {
	_ = w.nc.SetWriteDeadline(time.Now().Add(patience))
	_, err := w.nc.Write(raw)
	return err
}

// read returns the next packet from the wire.
func (w *wire) read(d time.Duration) (frame, error) {
	_ = w.nc.SetReadDeadline(time.Now().Add(d))
	first, body, err := w.r.Next()
	return frame{first, bytes.Clone(body)}, err
}

// receive returns the next packet.
func (w *wire) receive() frame {
	w.s.Helper()
	if len(w.stash) > 0 {
		f := w.stash[0]
		w.stash = w.stash[1:]
		return f
	}
	f, err := w.read(patience)
	if err != nil {
		w.s.Fatalf("while waiting for a packet: %v", err)
	}
	return f
}

// await returns the next packet of a type. What comes before it waits its turn,
// since the order between different types is mostly the broker's choice.
func (w *wire) await(t packet.Type) frame {
	w.s.Helper()
	for i, f := range w.stash {
		if f.kind() == t {
			w.stash = slices.Delete(w.stash, i, i+1)
			return f
		}
	}
	for {
		f, err := w.read(patience)
		if err != nil {
			w.s.Fatalf("while waiting for %v: %v; came: %v", t, err, w.stash)
		}
		if f.kind() == t {
			return f
		}
		w.stash = append(w.stash, f)
	}
}

// quiet checks that nothing has come that was not asked for, and nothing comes
// before the answer to a ping.
func (w *wire) quiet() {
	w.s.Helper()
	w.send(packet.AppendPingreq(nil))
	w.await(packet.PINGRESP)
	if len(w.stash) > 0 {
		w.s.Errorf("where nothing was to come: %v", w.stash)
		w.stash = nil
	}
}

// fence waits until what was published before has reached w: it publishes on a
// topic of its own that w is subscribed to.
func (w *wire) fence(from *wire) {
	w.s.Helper()
	name := "fence/" + w.s.prefix // no filter of the scene matches it
	w.sub(name, 1)
	from.pub(name, "fence", 1)
	for {
		p := w.message()
		if p.Topic == name {
			w.finish(p)
			break
		}
		w.s.Errorf("where nothing was to come: %s", w.s.line(p))
		w.finish(p)
	}
	w.quiet()
}

// next is a packet identifier.
func (w *wire) next() uint16 {
	if w.last++; w.last == 0 {
		w.last = 1
	}
	return w.last
}

// A change alters a PUBLISH before it is sent.
type change func(*packet.Publish)

func retained(p *packet.Publish) { p.Retain = true }

func dup(p *packet.Publish) { p.Dup = true }

func expires(seconds uint32) change {
	return func(p *packet.Publish) { p.HasExpiry, p.Expiry = true, seconds }
}

func alias(n uint16) change { return func(p *packet.Publish) { p.Alias = n } }

func with(props packet.Properties) change { return func(p *packet.Publish) { p.Props = props } }

// start sends a PUBLISH and waits for nothing. It returns the packet identifier.
func (w *wire) start(topic, payload string, qos byte, o ...change) uint16 {
	w.s.Helper()
	p := packet.Publish{Topic: topic, Payload: []byte(payload), QoS: qos}
	if qos > 0 {
		p.PacketID = w.next()
	}
	for _, f := range o {
		f(&p)
	}
	w.send(p.Append(nil, w.v))
	return p.PacketID
}

// pub publishes and goes through the whole handshake. It returns the reason of
// PUBACK or PUBREC.
func (w *wire) pub(topic, payload string, qos byte, o ...change) packet.Reason {
	w.s.Helper()
	id := w.start(topic, payload, qos, o...)
	switch qos {
	case 1:
		return w.acked(packet.PUBACK, id)
	case 2:
		r := w.acked(packet.PUBREC, id)
		if r.Failed() {
			return r
		}
		w.ack(packet.PUBREL, id)
		if last := w.acked(packet.PUBCOMP, id); last.Failed() {
			return last
		}
		return r
	}
	return packet.Success
}

// ack sends an acknowledgement of type t.
func (w *wire) ack(t packet.Type, id uint16, reason ...packet.Reason) {
	w.s.Helper()
	a := packet.Ack{PacketID: id}
	if len(reason) > 0 {
		a.Reason = reason[0]
	}
	w.send(a.Append(nil, w.v, t))
}

// acked waits for an acknowledgement of type t, which has to be for id.
func (w *wire) acked(t packet.Type, id uint16) packet.Reason {
	w.s.Helper()
	a := w.anyAck(t)
	if a.PacketID != id {
		w.s.Fatalf("%v for %d, want %d", t, a.PacketID, id)
	}
	return a.Reason
}

func (w *wire) anyAck(t packet.Type) packet.Ack {
	w.s.Helper()
	f := w.await(t)
	if t == packet.PUBREL && f.first != 0x62 {
		w.s.Errorf("PUBREL begins with %#02x", f.first)
	}
	var a packet.Ack
	w.check(a.Decode(w.v, t, f.body))
	return a
}

// message returns the next PUBLISH and leaves it unacknowledged.
func (w *wire) message() packet.Publish {
	w.s.Helper()
	f := w.await(packet.PUBLISH)
	var p packet.Publish
	w.check(p.Decode(w.v, f.first, f.body))
	return p
}

// finish acknowledges p to the end.
func (w *wire) finish(p packet.Publish) {
	w.s.Helper()
	switch p.QoS {
	case 1:
		w.ack(packet.PUBACK, p.PacketID)
	case 2:
		w.ack(packet.PUBREC, p.PacketID)
		w.acked(packet.PUBREL, p.PacketID)
		w.ack(packet.PUBCOMP, p.PacketID)
	}
}

// line is a PUBLISH in one line: "topic=payload q1 dup r #3", the topic without
// the scene's own prefix.
func (s *scene) line(p packet.Publish) string {
	l := fmt.Sprintf("%s=%s q%d", strings.TrimPrefix(p.Topic, s.prefix+"/"), p.Payload, p.QoS)
	if p.Dup {
		l += " dup"
	}
	if p.Retain {
		l += " r"
	}
	ids := slices.Clone(p.SubscriptionIDs)
	slices.Sort(ids)
	for _, id := range ids {
		l += fmt.Sprintf(" #%d", id)
	}
	return l
}

// want checks that these messages come, in this order, and acknowledges them.
func (w *wire) want(lines ...string) {
	w.s.Helper()
	for _, want := range lines {
		p := w.message()
		if got := w.s.line(p); got != want {
			w.s.Errorf("got %q, want %q", got, want)
		}
		w.finish(p)
	}
}

// wantAny checks that these messages come, in any order, and acknowledges them.
func (w *wire) wantAny(lines ...string) {
	w.s.Helper()
	var got []string
	for range lines {
		p := w.message()
		got = append(got, w.s.line(p))
		w.finish(p)
	}
	slices.Sort(got)
	slices.Sort(lines)
	if !slices.Equal(got, lines) {
		w.s.Errorf("got %q, want %q", got, lines)
	}
}

func filter(f string, qos byte) packet.Subscription { return packet.Subscription{Filter: f, QoS: qos} }

func (w *wire) subscribe(props packet.Properties, subs ...packet.Subscription) []packet.Reason {
	w.s.Helper()
	id := w.next()
	w.send((&packet.Subscribe{PacketID: id, Props: props, Subscriptions: subs}).Append(nil, w.v))
	a := w.suback(packet.SUBACK)
	if a.PacketID != id || len(a.Reasons) != len(subs) {
		w.s.Fatalf("SUBACK %+v, want one for %d with %d reasons", a, id, len(subs))
	}
	return a.Reasons
}

func (w *wire) suback(t packet.Type) packet.Suback {
	w.s.Helper()
	var a packet.Suback
	w.check(a.Decode(w.v, t, w.await(t).body))
	return a
}

// sub subscribes to one filter, which has to be granted as asked. id is a
// subscription identifier.
func (w *wire) sub(f string, qos byte, id ...uint32) {
	w.s.Helper()
	w.subTo(filter(f, qos), id...)
}

func (w *wire) subTo(o packet.Subscription, id ...uint32) {
	w.s.Helper()
	var props packet.Properties
	if len(id) > 0 {
		props = props.AppendUint(packet.SubscriptionID, id[0])
	}
	if r := w.subscribe(props, o); r[0] != packet.Reason(o.QoS) {
		w.s.Fatalf("subscription to %s: %v", o.Filter, r[0])
	}
}

// unsub unsubscribes and returns the reasons, of which 3.1.1 has none.
func (w *wire) unsub(filters ...string) []packet.Reason {
	w.s.Helper()
	id := w.next()
	w.send((&packet.Unsubscribe{PacketID: id, Filters: filters}).Append(nil, w.v))
	a := w.suback(packet.UNSUBACK)
	if a.PacketID != id || w.v == packet.V5 && len(a.Reasons) != len(filters) {
		w.s.Fatalf("UNSUBACK %+v, want one for %d", a, id)
	}
	return a.Reasons
}

// after waits until d has passed since a moment: on the wire, time is a fact like
// any other.
func after(moment time.Time, d time.Duration) { time.Sleep(time.Until(moment.Add(d))) }

func ms(n int) time.Duration { return time.Duration(n) * time.Millisecond }
