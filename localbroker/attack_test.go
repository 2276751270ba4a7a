package localbroker

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// rawDial connects to a listener, with nothing of what stands above TCP.
func rawDial(t testing.TB, b *Broker, listener string) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", b.Addr(listener).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return nc
}

// drip writes p a byte at a time, over and over, and answers nothing, until the other
// side has closed the connection or patience ends.
func drip(t *testing.T, nc net.Conn, p string) {
	t.Helper()
	over := make(chan struct{})
	go func() {
		defer close(over)
		_, _ = io.Copy(io.Discard, nc)
	}()
	end := time.After(patience)
	for i := 0; ; i++ {
		select {
		case <-over:
			return
		case <-end:
			t.Error("is still open")
			nc.Close()
			<-over
			return
		case <-time.After(10 * time.Millisecond):
			if p != "" {
				_, _ = nc.Write([]byte{p[i%len(p)]})
			}
		}
	}
}

// Who is not let in does not stay, whatever it says how slowly.
func TestNobodyStaysWhoIsNotLetIn(t *testing.T) {
	b, _, alice := secured(t, Options{Limits: Limits{ConnectTimeout: 300 * time.Millisecond}})
	upgrade := "GET /mqtt HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: mqtt\r\n"
	shake := func(t *testing.T, nc net.Conn, cert ...tls.Certificate) net.Conn {
		c := tls.Client(nc, &tls.Config{InsecureSkipVerify: true, Certificates: cert})
		if err := c.Handshake(); err != nil {
			t.Error(err)
		}
		return c
	}
	long := string((&packet.Connect{Version: packet.V5, ClientID: strings.Repeat("c", 1000)}).Append(nil))
	for _, c := range []struct {
		name, listener, whole, slowly string
		shakes                        bool
	}{
		{name: "silent", listener: "plain"},
		{name: "CONNECT byte by byte", listener: "plain", slowly: long},
		{name: "five bytes that claim 256 MB", listener: "plain", whole: "\x10\xff\xff\xff\x7f"},
		{name: "silent before TLS", listener: "tls"},
		{name: "half a ClientHello", listener: "tls", whole: "\x16\x03\x01\x40\x00\x01\x00\x3f\xfc", slowly: "x"},
		{name: "silent behind TLS", listener: "tls", shakes: true},
		{name: "CONNECT byte by byte behind TLS", listener: "mutual", shakes: true, slowly: long},
		{name: "silent before HTTP", listener: "ws"},
		{name: "a line of HTTP", listener: "ws", whole: "GET /mqtt HTTP/1.1\r\n"},
		{name: "headers byte by byte", listener: "ws", whole: upgrade, slowly: "X-Y: z\r\n"},
		{name: "headers without end", listener: "ws", whole: upgrade + strings.Repeat("X-Y: "+strings.Repeat("z", 1000)+"\r\n", 1000)},
		{name: "other pages over and over", listener: "ws", slowly: "GET / HTTP/1.1\r\nHost: x\r\n\r\n"},
		{name: "a body that does not come", listener: "ws", whole: "POST /mqtt HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n", slowly: "x"},
		{name: "upgraded and silent", listener: "ws", whole: upgrade + "\r\n"},
		{name: "pings over and over", listener: "ws", whole: upgrade + "\r\n", slowly: "\x89\x80\x00\x00\x00\x00"},
		{name: "empty frames over and over", listener: "ws", whole: upgrade + "\r\n", slowly: "\x82\x80\x00\x00\x00\x00"},
		{name: "a frame that claims 2^62 bytes", listener: "ws", whole: upgrade + "\r\n\x82\xff\x40\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x10", slowly: "\x00"},
		{name: "silent before TLS and HTTP", listener: "wss"},
		{name: "silent behind TLS and before HTTP", listener: "wss", shakes: true},
		{name: "upgraded behind TLS and silent", listener: "wss", shakes: true, whole: upgrade + "\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			nc := rawDial(t, b, c.listener)
			if c.shakes {
				nc = shake(t, nc, alice)
			}
			_, _ = io.WriteString(nc, c.whole)
			drip(t, nc, c.slowly)
		})
	}
	t.Cleanup(func() { // when the subtests are over
		for deadline := time.Now().Add(patience); b.Stats().Connections > 0; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d connections are left", b.Stats().Connections)
			}
		}
	})
}

// growth is by how much f lets the memory in use grow, in bytes.
func growth(f func()) int {
	used := func() int {
		runtime.GC()
		runtime.GC() // what pools hold goes with the second
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc + m.StackInuse)
	}
	before := used()
	f()
	return used() - before
}

// What somebody who is not let in can make us hold, both ends of the connection
// counted: the client's is here, too.
func TestMemoryOfWhoIsNotLetIn(t *testing.T) {
	if slower > 1 {
		t.Skip("the race detector takes memory of its own")
	}
	const n = 1000
	b, _, _ := secured(t, Options{Limits: Limits{ConnectTimeout: time.Minute, ClientsPerAddress: 2 * n}})
	for _, c := range []struct {
		name, listener, says string
		most                 int // bytes of a connection
	}{
		{"silent", "plain", "", 16 << 10},
		{"a claim of 256 MB, but for its last byte", "plain", "\x10\xff\xff\xff", 16 << 10},
		{"a claim of what is allowed", "plain", "\x10\xfc\x7f", 16 << 10},
		{"and some of it", "plain", "\x10\xfc\x7f" + strings.Repeat("x", 300), 24 << 10}, // with packet.BlockSize to read it into
		{"silent before TLS", "tls", "", 16 << 10},
		{"a claim of the longest record", "tls", "\x16\x03\x01\x40\x00", 36 << 10}, // crypto/tls makes room for it at once
		{"silent before HTTP", "ws", "", 16 << 10},
		{"a header that is not finished", "ws", "GET /mqtt HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 7000), 28 << 10}, // net/http's buffers and the header itself
	} {
		t.Run(c.name, func(t *testing.T) {
			conns := make([]net.Conn, 0, n)
			grown := growth(func() {
				before := runtime.NumGoroutine()
				for range n {
					nc := rawDial(t, b, c.listener)
					_, _ = io.WriteString(nc, c.says)
					conns = append(conns, nc)
				}
				waitUntil(t, func() bool { return runtime.NumGoroutine() >= before+n })
			})
			t.Logf("%d bytes a connection", grown/n)
			if grown/n > c.most {
				t.Errorf("%d bytes a connection, %d are allowed", grown/n, c.most)
			}
			before := runtime.NumGoroutine()
			for _, nc := range conns {
				nc.Close()
			}
			waitUntil(t, func() bool { return runtime.NumGoroutine() <= before-n })
		})
	}
}

// A topic of 65,000 levels is refused, and costs no more than any other of its length.
func TestDeepTopic(t *testing.T) {
	b := start(t, Options{})
	deep, flat := strings.Repeat("a/", 32_499)+"a", strings.Repeat("a", 64_999)
	w := connect(t, b, packet.V5, "w")
	id := uint16(0)
	publish := func(topic string, want packet.Reason) {
		id++
		w.publish(topic, "x", 1, id)
		if r := w.expectAck(id); r != want {
			t.Errorf("publish: %v", r)
		}
	}
	subscribe := func(filter string, want packet.Reason) {
		id++
		w.send((&packet.Subscribe{PacketID: id, Subscriptions: []packet.Subscription{{Filter: filter}}}).Append(nil, w.v))
		_, body := w.receive()
		var ack packet.Suback
		if err := ack.Decode(w.v, packet.SUBACK, body); err != nil || ack.Reasons[0] != want {
			t.Errorf("subscribe: %v, %v", ack.Reasons, err)
		}
	}
	unsubscribe := func(filter string) {
		id++
		w.send((&packet.Unsubscribe{PacketID: id, Filters: []string{filter}}).Append(nil, w.v))
		_, body := w.receive()
		var ack packet.Suback
		if err := ack.Decode(w.v, packet.UNSUBACK, body); err != nil || ack.Reasons[0] != packet.NoSubscriptionExisted {
			t.Errorf("unsubscribe: %v, %v", ack.Reasons, err)
		}
	}
	cost := func(f func()) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 100 {
			f()
		}
		runtime.ReadMemStats(&after)
		return (after.Mallocs - before.Mallocs) / 100
	}
	for name, c := range map[string][2]func(){
		"publish":     {func() { publish(deep, packet.TopicNameInvalid) }, func() { publish(flat, packet.NoMatchingSubscribers) }},
		"subscribe":   {func() { subscribe(deep, packet.TopicFilterInvalid) }, func() { subscribe(flat[:60_000], 0) }},
		"unsubscribe": {func() { unsubscribe(deep) }, func() { unsubscribe(flat) }},
	} {
		if d, f := cost(c[0]), cost(c[1]); d > f+50 {
			t.Errorf("%s: %d allocations, and %d for a topic of one level", name, d, f)
		}
	}
	if n, _ := b.index.count(); n != 1 {
		t.Errorf("%d subscriptions", n)
	}
	late := dial(t, b, packet.V5)
	if ack := late.connect("late", func(p *packet.Connect) { p.Will = &packet.Will{Topic: deep[:8001], Payload: []byte("x")} }); ack.Reason != packet.TopicNameInvalid {
		t.Errorf("a will with 4,001 levels: %v", ack.Reason)
	}
	later := dial(t, b, packet.V5)
	later.send((&packet.Connect{Version: packet.V5, ClientID: "later", Will: &packet.Will{Topic: deep}}).Append(nil))
	later.closed(0)
}

func BenchmarkDeepTopic(b *testing.B) {
	br := New(Options{})
	c := newConn(br, &wsConn{remote: wsAddr("")}, Listener{})
	c.version, c.session, c.publisher, c.closed = packet.V5, &session{b: br, subscriptions: map[string]*subscription{}}, new(publisher), true
	raw := (&packet.Publish{Topic: strings.Repeat("/", 65_000), Payload: []byte("x"), QoS: 1, PacketID: 1}).Append(nil, packet.V5)
	body := raw[4:]
	b.ReportAllocs()
	for b.Loop() {
		if err := c.handle(b.Context(), raw[0], body); err != nil {
			b.Fatal(err)
		}
		c.control = c.control[:0]
	}
}

// What a client makes us keep is bounded in bytes, too.
func TestBytesThatAreKept(t *testing.T) {
	b := start(t, Options{Limits: Limits{RetainedBytes: 100_000}})
	w := connect(t, b, packet.V5, "w")
	refused := 0
	for i := range uint16(20) {
		w.publish(fmt.Sprint("r/", i), strings.Repeat("x", 10_000), 1, i+1, retain)
		if r := w.expectAck(i + 1); r == packet.QuotaExceeded {
			refused++
		}
	}
	if s := b.Stats(); refused != 11 || s.RetainedMessages != 9 || s.RetainedBytes > 100_000 {
		t.Errorf("%d refused, %d retained with %d bytes", refused, s.RetainedMessages, s.RetainedBytes)
	}
	w.publish("r/1", strings.Repeat("x", 10_001), 1, 30, retain) // 1 more, and there is room
	if r := w.expectAck(30); r.Failed() {
		t.Error(r)
	}
	w.publish("r/1", strings.Repeat("x", 50_000), 1, 31, retain)
	if r := w.expectAck(31); r != packet.QuotaExceeded {
		t.Error(r)
	}
	if err := b.Publish(t.Context(), &Message{Topic: "own", Payload: make([]byte, 50_000), Retain: true}, nil); err == nil || !strings.Contains(err.Error(), "100000 bytes") {
		t.Errorf("the gateway's own: %v", err)
	}
	w.publish("r/2", "", 1, 32, retain)
	w.expectAck(32)
	w.publish("r/1", strings.Repeat("x", 15_000), 1, 33, retain)
	if r := w.expectAck(33); r.Failed() {
		t.Error(r)
	}

	topic := func(i int) string { return fmt.Sprintf("%060000d", i) }
	granted := 0
	for i := range 50 { // of 1,000 KiB
		w.send((&packet.Subscribe{PacketID: 1, Subscriptions: []packet.Subscription{{Filter: topic(i)}}}).Append(nil, w.v))
		_, body := w.receive()
		var ack packet.Suback
		w.check(ack.Decode(w.v, packet.SUBACK, body))
		if !ack.Reasons[0].Failed() {
			granted++
		}
	}
	if granted != 17 {
		t.Errorf("%d subscriptions with 60,000 bytes each", granted)
	}
	w.send((&packet.Unsubscribe{PacketID: 1, Filters: []string{topic(0)}}).Append(nil, w.v))
	w.expect(packet.UNSUBACK, 1)
	w.sub("short")

	for i := range uint16(100) {
		err := w.tryPublish(&packet.Publish{Topic: topic(int(i) + 100), Alias: i + 1})
		if _, _, err2 := w.read(20 * time.Millisecond); err != nil || err2 != nil && !isTimeout(err2) {
			t.Fatalf("ended without a word after %d aliases: %v, %v", i, err, err2)
		} else if err2 == nil {
			if i < 1 || i > 2 {
				t.Errorf("DISCONNECT after %d aliases of 60,000 bytes; 102,400 are allowed", i)
			}
			return
		}
	}
	t.Error("aliases for 6 MB of topics")
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error)
	return ok && ne.Timeout()
}

func (w *wire) tryPublish(p *packet.Publish) error {
	_, err := w.nc.Write(p.Append(nil, w.v))
	return err
}

// A retained message that was replaced is not held until it would have expired.
func TestReplacedIsForgotten(t *testing.T) {
	var r retained
	at := time.Now()
	const size = 1 << 20
	grown := growth(func() {
		for i := range uint64(50) {
			r.set(&Message{Topic: "t", Payload: make([]byte, size), Expiry: time.Hour + time.Duration(i%7), Received: at, stamp: i + 1})
		}
	})
	if grown > 3*size || len(r.expires.heap) != 1 {
		t.Errorf("%d bytes and %d messages are held for the one that is kept", grown, len(r.expires.heap))
	}
	for i := range 1000 {
		r.set(&Message{Topic: fmt.Sprint(i % 100), Payload: []byte("x"), Expiry: time.Duration(i*7919%1000+1) * time.Second, Received: at, stamp: uint64(i + 100)})
	}
	last := 0
	for s := 1; s <= 1001; s++ {
		for _, name := range r.expire(at.Add(time.Duration(s) * time.Second)) {
			var i int
			if _, err := fmt.Sscan(name, &i); err == nil && (900+i)*7919%1000+1 != s {
				t.Errorf("%s expires after %d s", name, s)
			}
			last++
		}
	}
	if last != 100 {
		t.Errorf("%d have expired", last)
	}
	runtime.KeepAlive(&r)
}

// Retained messages that are asked for over and over are not sent over and over.
func TestRetainedOverAndOver(t *testing.T) {
	h := openHouse(t, t.TempDir(), houseOptions{Options: Options{Limits: Limits{RetainedMessages: 100}}})
	for i := range 100 {
		if err := h.Publish(t.Context(), &Message{Topic: fmt.Sprint("r/", i), Payload: []byte("x"), QoS: byte(i % 2), Retain: true}, nil); err != nil {
			t.Fatal(err)
		}
	}
	waitUntil(t, func() bool { return h.Stats().RetainedMessages == 100 })
	for _, id := range []string{"fresh", "kept"} {
		var w *wire
		if id == "kept" {
			w, _ = keep(t, h.Broker, packet.V5, id)
		} else {
			w = connect(t, h.Broker, packet.V5, id)
		}
		p := packet.Subscribe{PacketID: 1}
		for range 1000 {
			p.Subscriptions = append(p.Subscriptions, packet.Subscription{Filter: "r/#", QoS: 1})
		}
		w.send(p.Append(nil, w.v))
		_, body := w.receive()
		var ack packet.Suback
		w.check(ack.Decode(w.v, packet.SUBACK, body))
		granted := 0
		for _, r := range ack.Reasons {
			if !r.Failed() {
				granted++
			}
		}
		if granted != 1 {
			t.Errorf("%s: %d of 1,000 were granted", id, granted)
		}
		for range 100 {
			if p := w.expectPublish(); p.QoS > 0 {
				w.ack(p.PacketID)
			}
		}
		w.nothing()
		w.publish("r/x", "live", 0, 0) // the subscription is there
		w.want("r/x=live q0")
	}
}

// One that reads nothing gets less, and nobody else does; then it is cut.
func TestSubscriberThatNeverReads(t *testing.T) {
	b, dial, alice := secured(t, Options{Limits: Limits{QueuedBytes: 1 << 20}})
	good := connect(t, b, packet.V5, "good")
	good.sub("t")
	for _, listener := range []string{"plain", "tls", "ws", "wss"} {
		bad := dial(listener, alice)
		bad.connect(listener)
		bad.send((&packet.Subscribe{PacketID: 1, Subscriptions: []packet.Subscription{{Filter: "t"}}}).Append(nil, bad.v)) // QoS 0 waits for no acknowledgement
		bad.receive()
		b.mu.Lock()
		c := b.claims[listener]
		b.mu.Unlock()
		c.mu.Lock()
		c.timeout = 500 * time.Millisecond // a minute is much in a test
		c.mu.Unlock()
	}
	const n, size = 300, 100_000 // more than any sockets hold
	pub := connect(t, b, packet.V5, "pub")
	payload := strings.Repeat("x", size)
	for i := range uint16(n) {
		pub.publish("t", payload, 1, i+1)
		pub.expectAck(i + 1)
		if p := good.expectPublish(); len(p.Payload) != size {
			t.Fatalf("message %d has %d bytes", i, len(p.Payload))
		} else if p.QoS > 0 {
			good.ack(p.PacketID)
		}
	}
	if d := b.TakeDrops(); d["good"] != 0 {
		t.Errorf("dropped: %v", d)
	}
	waitUntil(t, func() bool { return b.Stats().Clients == 2 })
}

// waitUntil waits for what has to come.
func waitUntil(t testing.TB, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not come")
		}
	}
}

// Frames of a byte, pings and the rest of what RFC 6455 allows cost the connection,
// not the broker.
func TestWebSocketFloods(t *testing.T) {
	b, _, _ := secured(t, Options{})
	open := func(o *websocket.DialOptions) (*websocket.Conn, *http.Response) {
		t.Helper()
		o.Subprotocols = []string{"mqtt"}
		ws, answer, err := websocket.Dial(t.Context(), "ws://"+b.Addr("ws").String()+"/mqtt", o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ws.CloseNow() })
		return ws, answer
	}
	ws, answer := open(&websocket.DialOptions{CompressionMode: websocket.CompressionContextTakeover})
	if e := answer.Header.Get("Sec-WebSocket-Extensions"); e != "" {
		t.Errorf("compression is agreed on: %q; what is small on the wire may be of any size", e)
	}
	big := (&packet.Publish{Topic: "t", Payload: make([]byte, 5_000)}).Append(nil, packet.V5)
	all := append((&packet.Connect{Version: packet.V5, ClientID: "slow", CleanStart: true}).Append(nil), big...)
	for _, p := range append(all, 0xc0, 0) {
		if err := ws.Write(t.Context(), websocket.MessageBinary, []byte{p}); err != nil {
			t.Fatal(err)
		}
	}
	nc := websocket.NetConn(t.Context(), ws, websocket.MessageBinary)
	w := &wire{t: t, v: packet.V5, nc: nc, r: packet.NewReader(nc, new(packet.Blocks), packet.MaxLength)}
	w.r.SetVersion(packet.V5)
	for _, want := range []packet.Type{packet.CONNACK, packet.PINGRESP} {
		if first, _ := w.receive(); packet.TypeOf(first) != want {
			t.Errorf("%v in the place of %v", packet.TypeOf(first), want)
		}
	}
	// A frame whose compression nobody agreed on ends its connection.
	raw := rawDial(t, b, "ws")
	_, _ = io.WriteString(raw, "GET /mqtt HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n\xc2\x81\x00\x00\x00\x00\x00")
	drip(t, raw, "")
	waitUntil(t, func() bool { return b.Stats().Clients == 1 })
}

// An IPv6 network of 64 bits counts as one address, and an IPv4 address however it
// is written.
func TestAddressThatCounts(t *testing.T) {
	for remote, want := range map[string]string{
		"192.0.2.7:1":                          "192.0.2.7",
		"[::ffff:192.0.2.7]:1":                 "192.0.2.7",
		"[2001:db8:1:2:3:4:5:6]:1":             "2001:db8:1:2::",
		"[2001:db8:1:2:ffff:ffff:ffff:ffff]:9": "2001:db8:1:2::",
		"[2001:db8:1:3::1]:1":                  "2001:db8:1:3::",
		"[fe80::1%eth0]:1":                     "fe80::",
		"nothing":                              "invalid IP",
	} {
		if got := addressOf(&wsConn{remote: wsAddr(remote)}); got.String() != want {
			t.Errorf("%s counts for %v, want %s", remote, got, want)
		}
	}
}
