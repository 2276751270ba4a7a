package opcua

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gopcua/opcua/server"
	"github.com/gopcua/opcua/ua"

	"github.com/fieldferry/fieldferry/adapters"
)

// space is the namespace of a rig's variables.
const space = "urn:fieldferry:test"

// A rig is the library's own server, which knows no security, with variables of
// devices, behind a gate.
type rig struct {
	*gate
	srv    *server.Server
	ns     *server.NodeNameSpace
	value  atomic.Int64
	silent sync.Map // device name: bool
	nodes  map[string][]*ua.NodeID
}

// newRig starts a server; its gate is shut.
func newRig(t *testing.T, devices []string, points int) *rig {
	log.SetOutput(io.Discard) // the library's server logs to everybody's
	port := freePort(t)
	r := &rig{nodes: map[string][]*ua.NodeID{}}
	r.gate = newGate(t, fmt.Sprintf("127.0.0.1:%d", port))
	_, at, _ := net.SplitHostPort(r.gate.address)
	gatePort, _ := strconv.Atoi(at)
	r.srv = server.New(server.EndPoint("127.0.0.1", port), server.EndPoint("127.0.0.1", gatePort), server.EnableSecurity("None", ua.MessageSecurityModeNone), server.EnableAuthMode(ua.UserTokenTypeAnonymous))
	r.ns = server.NewNodeNameSpace(r.srv, space)
	for _, d := range devices {
		for i := range points {
			n := server.NewVariableNode(ua.NewStringNodeID(r.ns.ID(), fmt.Sprintf("%s.p%d", d, i)), fmt.Sprintf("p%d", i), func() *ua.DataValue {
				if on, _ := r.silent.Load(d); on == true {
					return &ua.DataValue{EncodingMask: ua.DataValueStatusCode | ua.DataValueServerTimestamp, Status: ua.StatusBadNoCommunication, ServerTimestamp: time.Now()}
				}
				return dataValue(float64(r.value.Load()))
			})
			r.ns.AddNode(n)
			r.nodes[d] = append(r.nodes[d], n.ID())
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := r.srv.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.gate.shut()
		cancel()
		r.srv.Close()
	})
	return r
}

func dataValue(v any) *ua.DataValue {
	now := time.Now()
	return &ua.DataValue{
		EncodingMask: ua.DataValueValue | ua.DataValueSourceTimestamp | ua.DataValueServerTimestamp, Value: ua.MustVariant(v), SourceTimestamp: now, ServerTimestamp: now,
	}
}

// changed tells those who have subscribed.
func (r *rig) changed() {
	for _, ids := range r.nodes {
		for _, id := range ids {
			r.srv.ChangeNotification(id)
		}
	}
}

func (r *rig) set(v int) {
	r.value.Store(int64(v))
	r.changed()
}

func (r *rig) silence(device string, on bool) {
	r.silent.Store(device, on)
	r.changed()
}

// devices are those of a link to the rig.
func (r *rig) devices(names []string, points int, every time.Duration) (all []Device) {
	for _, name := range names {
		d := Device{Device: &adapters.Device{Name: name}, Every: every}
		for i := range points {
			d.Points = append(d.Points, Point{
				Point: &adapters.Point{Name: fmt.Sprintf("p%d", i)}, Node: fmt.Sprintf("nsu=%s;s=%s.p%d", space, name, i), Heartbeat: every,
			})
		}
		all = append(all, d)
	}
	return all
}

func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// A gate is a way to a server that can be shut, with all connections, and held, so
// that nothing comes through while the connections stay.
type gate struct {
	t       *testing.T
	to      string
	address string

	mu    sync.Mutex // guards what follows
	ln    net.Listener
	conns map[net.Conn]bool
	free  chan struct{} // closed while bytes may pass
	wait  sync.WaitGroup
}

func newGate(t *testing.T, to string) *gate {
	g := &gate{t: t, to: to, conns: map[net.Conn]bool{}, free: make(chan struct{}), address: fmt.Sprintf("127.0.0.1:%d", freePort(t))}
	close(g.free)
	return g
}

func (g *gate) url() string { return "opc.tcp://" + g.address }

// open lets connections through.
func (g *gate) open() {
	g.t.Helper()
	var ln net.Listener
	var err error
	for range 100 { // the port may still be in the hands of a connection that ends
		if ln, err = net.Listen("tcp", g.address); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		g.t.Fatal(err)
	}
	g.mu.Lock()
	g.ln = ln
	g.mu.Unlock()
	g.wait.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", g.to)
			if err != nil {
				in.Close()
				continue
			}
			g.mu.Lock()
			closed := g.ln != ln
			g.conns[in], g.conns[out] = true, true
			g.mu.Unlock()
			if closed {
				in.Close()
				out.Close()
			}
			g.wait.Go(func() { g.pass(in, out) })
			g.wait.Go(func() { g.pass(out, in) })
		}
	})
}

func (g *gate) pass(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		g.mu.Lock()
		free := g.free
		g.mu.Unlock()
		<-free
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

// hold stops what passes, and returns what lets it go on.
func (g *gate) hold() (release func()) {
	free := make(chan struct{})
	g.mu.Lock()
	g.free = free
	g.mu.Unlock()
	release = sync.OnceFunc(func() { close(free) })
	g.t.Cleanup(release)
	return release
}

// cut ends the connections that there are.
func (g *gate) cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.conns {
		c.Close()
	}
	clear(g.conns)
}

// shut ends all connections and takes no new ones.
func (g *gate) shut() {
	g.mu.Lock()
	if g.ln != nil {
		g.ln.Close()
		g.ln = nil
	}
	g.mu.Unlock()
	g.cut()
	g.wait.Wait()
}

// A tape is a sink that keeps what it is told.
type tape struct {
	mu     sync.Mutex // guards what follows
	events []event
	news   chan struct{}
}

// An event is a call of a sink.
type event struct {
	device string
	at     time.Time // that it was told
	time   time.Time
	status bool
	online bool
	reason string
	values map[string]adapters.Sample
}

func (e event) String() string {
	if e.status {
		return fmt.Sprintf("%s online=%v %s", e.device, e.online, e.reason)
	}
	var b strings.Builder
	for n, s := range e.values {
		fmt.Fprintf(&b, " %s=%s/%s/%s", n, s.Value, s.Quality, s.Reason)
	}
	return e.device + b.String()
}

func newTape() *tape { return &tape{news: make(chan struct{}, 1)} }

func (p *tape) add(e event) {
	e.at = time.Now()
	p.mu.Lock()
	p.events = append(p.events, e)
	p.mu.Unlock()
	select {
	case p.news <- struct{}{}:
	default:
	}
}

func (p *tape) Emit(_ context.Context, r adapters.Reading) error {
	e := event{device: r.Device.Name, time: r.Time, values: map[string]adapters.Sample{}}
	for _, s := range r.Samples {
		e.values[s.Point.Name] = s
	}
	p.add(e)
	return nil
}

func (p *tape) Status(_ context.Context, s adapters.Status) error {
	p.add(event{device: s.Device.Name, time: s.Time, status: true, online: s.Online, reason: s.Reason})
	return nil
}

// await returns the first event from an index on that fits, and the index behind it.
func (p *tape) await(t *testing.T, from int, what string, fits func(event) bool) (event, int) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		p.mu.Lock()
		for ; from < len(p.events); from++ {
			if e := p.events[from]; fits(e) {
				p.mu.Unlock()
				return e, from + 1
			}
		}
		last := p.events[max(0, len(p.events)-5):]
		p.mu.Unlock()
		select {
		case <-p.news:
		case <-deadline:
			t.Fatalf("waited in vain for %s; last came %v", what, last)
		}
	}
}

// run runs a link until the test ends.
func run(t *testing.T, c Config) (*Link, *tape, func()) {
	t.Helper()
	if c.Name == "" {
		c.Name = "test"
	}
	l, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := newTape()
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, p) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return l, p, stop
}

func isGood(point string) func(event) bool {
	return func(e event) bool {
		s, ok := e.values[point]
		return ok && s.Quality == adapters.Good
	}
}

func isBadPoint(point string) func(event) bool {
	return func(e event) bool {
		s, ok := e.values[point]
		return ok && s.Quality == adapters.Bad
	}
}
