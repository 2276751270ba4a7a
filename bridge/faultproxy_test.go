package bridge

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/bridge/upstreamtest"
	"github.com/fieldferry/fieldferry/buffer"
)

// faultProxy is a TCP proxy that does to connections what networks do.
type faultProxy struct {
	to string
	ln net.Listener
	wg sync.WaitGroup

	mu    sync.Mutex // guards what follows
	mode  faultMode
	conns map[net.Conn]bool
}

// faultMode is what happens to bytes, from now on and on all connections.
type faultMode struct {
	refuse  bool          // connections end at once
	blackUp bool          // what the client sends is lost, and the connection stays
	blackDn bool          // likewise what it is sent
	chunk   int           // bytes that go at a time; 0 is as many as there are
	latency time.Duration // one way
}

func newFaultProxy(t *testing.T, to string) *faultProxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &faultProxy{to: to, ln: ln, conns: map[net.Conn]bool{}}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		ln.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *faultProxy) url() string { return "mqtt://" + p.ln.Addr().String() }

func (p *faultProxy) set(m faultMode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode = m
}

func (p *faultProxy) now() faultMode {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mode
}

// cut ends all connections.
func (p *faultProxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
	clear(p.conns)
}

func (p *faultProxy) accept() {
	for {
		in, err := p.ln.Accept()
		if err != nil {
			return
		}
		if p.now().refuse {
			in.Close()
			continue
		}
		out, err := net.Dial("tcp", p.to)
		if err != nil {
			in.Close()
			continue
		}
		p.mu.Lock()
		p.conns[in], p.conns[out] = true, true
		p.mu.Unlock()
		p.wg.Go(func() { p.carry(out, in, func(m faultMode) bool { return m.blackUp }) })
		p.wg.Go(func() { p.carry(in, out, func(m faultMode) bool { return m.blackDn }) })
	}
}

// carry copies one way until an end.
func (p *faultProxy) carry(to, from net.Conn, black func(faultMode) bool) {
	defer to.Close()
	defer from.Close()
	type late struct {
		b  []byte
		at time.Time
	}
	way := make(chan late, 1<<14)
	defer close(way)
	p.wg.Go(func() {
		defer to.Close()
		for l := range way {
			time.Sleep(time.Until(l.at)) // this is the way's length
			m := p.now()
			if black(m) {
				continue
			}
			for size := m.chunk; len(l.b) > 0; {
				if size <= 0 || size > len(l.b) {
					size = len(l.b)
				}
				if _, err := to.Write(l.b[:size]); err != nil {
					from.Close()
					break
				}
				l.b = l.b[size:]
			}
		}
	})
	for {
		b := make([]byte, 4<<10)
		n, err := from.Read(b)
		if err != nil {
			return
		}
		way <- late{b[:n], time.Now().Add(p.now().latency)}
	}
}

// proxied is a bridge over a fault proxy, in real time and over TCP.
type proxied struct {
	t      *testing.T
	up     *upstreamtest.Server
	proxy  *faultProxy
	buffer *buffer.Buffer
	out    Outboxes
	bridge *Bridge
	next   int
}

func newProxied(t *testing.T, o Options) *proxied {
	t.Helper()
	x := &proxied{t: t, up: upstreamtest.New()}
	t.Cleanup(x.up.Close)
	url, err := x.up.Listen()
	if err != nil {
		t.Fatal(err)
	}
	x.proxy = newFaultProxy(t, url[len("mqtt://"):])
	if x.buffer, err = buffer.Open(t.TempDir(), buffer.Options{}); err != nil {
		t.Fatal(err)
	}
	if x.out, err = OpenOutboxes(x.buffer, "bridge/test/0"); err != nil {
		t.Fatal(err)
	}
	reader, err := x.buffer.Reader(x.out[:]...)
	if err != nil {
		t.Fatal(err)
	}
	o.Upstream, o.ClientID = []string{x.proxy.url()}, "gw-1"
	if x.bridge, err = New(reader, x.out, o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- x.bridge.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		reader.Close()
		if err := x.buffer.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

// put appends n messages with this QoS, numbered.
func (x *proxied) put(qos byte, n int) {
	x.t.Helper()
	stored := make(receipt, n)
	for range n {
		x.next++
		m := buffer.Message{Topic: "t", Payload: fmt.Append(nil, x.next), Urgent: true, Copies: []buffer.Copy{{Outbox: x.out[buffer.Telemetry], QoS: qos}}}
		if err := x.buffer.Append(x.t.Context(), buffer.Telemetry, &m, stored); err != nil {
			x.t.Fatal(err)
		}
	}
	for range n {
		if err := <-stored; err != nil {
			x.t.Fatal(err)
		}
	}
}

// until waits for the upstream's record, or the bridge's.
func (x *proxied) until(what string, within time.Duration, cond func() bool) {
	x.t.Helper()
	for end := time.Now().Add(within); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			x.t.Fatalf("not within %v: %s; status %+v, ledger %+v", within, what, x.bridge.Status(), x.out.Ledger())
		}
	}
}

func (x *proxied) empty() bool { return x.out.Ledger().Stored == 0 }

// check wants everything to have come, in order, with QoS 2 once.
func (x *proxied) check(qos byte) {
	x.t.Helper()
	x.until("all delivered", time.Minute, x.empty)
	seen, last := map[string]bool{}, 0
	for _, d := range x.up.Delivered() {
		var n int
		fmt.Sscan(d.Payload, &n)
		switch {
		case seen[d.Payload] && qos == 2:
			x.t.Errorf("%d came twice", n)
		case seen[d.Payload]:
		case n != last+1:
			x.t.Errorf("%d came after %d", n, last)
		}
		if !seen[d.Payload] {
			last = n
		}
		seen[d.Payload] = true
	}
	if len(seen) != x.next {
		x.t.Errorf("%d of %d came", len(seen), x.next)
	}
	// A CONNACK that is cut off makes uncertain what was halfway.
	if l := x.out.Ledger(); l.Difference() != 0 || l.Delivered+l.Uncertain != uint64(x.next) || l.Uncertain > 0 && qos < 2 {
		x.t.Errorf("ledger %+v", l)
	}
	for _, v := range x.up.Violations() {
		x.t.Error("violation:", v)
	}
}

// What networks do, over TCP: nothing is lost, with QoS 2 nothing comes twice, and
// a second after the link is back the first message is there. That no goroutine is
// left, TestMain looks at.
func TestFaultProxy(t *testing.T) {
	fast := Options{Keepalive: 2 * time.Second, Backoff: Backoff{First: 50 * time.Millisecond, Max: 500 * time.Millisecond}}
	for _, qos := range []byte{1, 2} {
		for _, tt := range []struct {
			name string
			mode faultMode
		}{
			{"half-open: nothing goes up", faultMode{blackUp: true}},
			{"half-open: nothing comes down", faultMode{blackDn: true}},
			{"black hole", faultMode{blackUp: true, blackDn: true}},
		} {
			t.Run(fmt.Sprintf("QoS %d, %s", qos, tt.name), func(t *testing.T) {
				t.Parallel()
				x := newProxied(t, fast)
				x.put(qos, 100)
				x.until("delivered", 20*time.Second, x.empty)
				x.proxy.set(tt.mode)
				began := time.Now()
				x.put(qos, 100)
				x.until("noticed", 20*time.Second, func() bool { return !x.bridge.Status().Connected })
				// A second more for a machine that others use too.
				if d := time.Since(began); d > 3*time.Second+time.Second {
					t.Errorf("noticed after %v, keepalive is 2 s", d)
				}
				x.proxy.cut()
				x.back(func() { x.proxy.set(faultMode{}) })
				x.check(qos)
			})
		}
		t.Run(fmt.Sprintf("QoS %d, chunks of one byte", qos), func(t *testing.T) {
			t.Parallel()
			x := newProxied(t, fast)
			x.proxy.set(faultMode{chunk: 1})
			x.put(qos, 300)
			x.check(qos)
		})
		t.Run(fmt.Sprintf("QoS %d, 300 ms", qos), func(t *testing.T) {
			t.Parallel()
			x := newProxied(t, fast)
			x.proxy.set(faultMode{latency: 150 * time.Millisecond})
			x.put(qos, 3000)
			x.check(qos)
		})
		t.Run(fmt.Sprintf("QoS %d, 60 cuts", qos), func(t *testing.T) {
			t.Parallel()
			x := newProxied(t, Options{Keepalive: 2 * time.Second, Backoff: Backoff{First: 10 * time.Millisecond, Max: 20 * time.Millisecond}})
			for i := range 60 {
				x.put(qos, 50)
				was := x.up.Count()
				x.until("something comes", 20*time.Second, func() bool { return x.up.Count() > was+i || x.empty() })
				x.until("connected", 20*time.Second, func() bool { return x.bridge.Status().Connected })
				x.proxy.cut()
				x.until("noticed", 20*time.Second, func() bool { return x.bridge.Status().Connections > uint64(i+1) || !x.bridge.Status().Connected })
			}
			x.check(qos)
			if n := x.bridge.Status().Connections; n < 60 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

// back has the link come back, and the first message arrive within a second.
func (x *proxied) back(repair func()) {
	x.t.Helper()
	was := x.up.Count()
	half := x.up.Half()
	repair()
	began := time.Now()
	x.until("first delivery", 20*time.Second, func() bool { return x.up.Count() > was || x.up.Half() < half || x.empty() })
	if d := time.Since(began); d > time.Second {
		x.t.Errorf("first delivery %v after the link was back", d)
	}
}
