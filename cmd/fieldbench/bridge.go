package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/spf13/cobra"

	"github.com/fieldferry/fieldferry/bridge"
	"github.com/fieldferry/fieldferry/buffer"
)

// bridgeBench is one run over ways to bring messages to an upstream broker.
type bridgeBench struct {
	bench
	messages int
}

const (
	upstreamTopic = "bench/bench/telemetry"
	bridgeWindow  = 1000 // messages under way
	stalled       = 5 * time.Minute
)

func bridgeCommand() *cobra.Command {
	b := &bridgeBench{}
	var parts []string
	var asJSON bool
	names := []string{"rates", "through", "trip", "backlog"}
	cmd := &cobra.Command{
		Use:   "bridge",
		Short: "Measure the bridge against a raw pipelined writer and Mosquitto's own bridge",
		Long: `Measures how fast messages of 200 bytes that are stored come to a subscriber of a
Mosquitto upstream: by the bridge, by a raw pipelined writer on paho.golang/packets
that stores nothing, and by another Mosquitto's bridge, all with 1,000 under way,
measured in turns. Then the bridge with a round trip of 50 ms, and with a backlog of an outage.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b.out = cmd.ErrOrStderr()
			b.report = report{CPUs: runtime.NumCPU(), Go: runtime.Version(), Messages: messageBytes}
			if b.dir == "" {
				dir, err := os.MkdirTemp("", "fieldbench-")
				if err != nil {
					return err
				}
				defer os.RemoveAll(dir)
				b.dir = dir
			}
			var err error
			if b.report.SyncP50, err = syncTime(b.dir); err != nil {
				return err
			}
			for i, f := range []func(context.Context) error{b.measureRates, b.measureThrough, b.measureTrip, b.measureBacklog} {
				if len(parts) > 0 && !slices.Contains(parts, names[i]) {
					continue
				}
				if err := f(cmd.Context()); err != nil {
					return fmt.Errorf("%s: %w", names[i], err)
				}
			}
			if err := b.print(cmd.OutOrStdout(), asJSON); err != nil {
				return err
			}
			if slices.ContainsFunc(b.report.Figures, func(f figure) bool { return f.Met != nil && !*f.Met }) {
				return errMissed
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&parts, "part", nil, "what to measure: "+strings.Join(names, ", ")+" (default all)")
	f.StringVar(&b.dir, "dir", "", "a folder on the disk to measure (default a temporary one)")
	f.IntVar(&b.rounds, "rounds", 3, "how often each rate is measured; the median counts")
	f.IntVar(&b.messages, "messages", 100_000, "messages of a turn")
	f.BoolVar(&b.full, "full", false, "measure a backlog of 2.6 million; else a tenth")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// upstreamPeer is a Mosquitto with a gate before it, and somebody who counts what
// comes.
type upstreamPeer struct {
	*peer
	gate *gate
	conn *mqttConn

	mu          sync.Mutex // guards what follows
	n           int
	first, last time.Time
	took        []time.Duration // of payloads that begin with a time
	done        chan struct{}   // closed when enough came
	want        int
}

func (b *bridgeBench) upstream(ctx context.Context, delay time.Duration, want, inflight int) (*upstreamPeer, error) {
	dir, err := os.MkdirTemp(b.dir, "upstream-")
	if err != nil {
		return nil, err
	}
	u := &upstreamPeer{want: want, done: make(chan struct{})}
	if u.peer, err = startMosquittoWith(ctx, dir, fmt.Sprintf("max_inflight_messages %d\n", inflight)); err != nil {
		return nil, err
	}
	stop := u.peer.stop
	u.peer.stop = func() error {
		u.gate.Close()
		u.conn.Close()
		return errors.Join(stop(), os.RemoveAll(dir))
	}
	if u.gate, err = newGate(u.Addr, delay); err != nil {
		return nil, err
	}
	if u.conn, err = dialMQTT(ctx, u.Addr, "bench-counter", true); err != nil {
		return nil, err
	}
	if err := u.conn.subscribe(upstreamTopic, 1); err != nil {
		return nil, err
	}
	go u.count()
	return u, nil
}

// count takes what the upstream delivers, until the connection ends.
func (u *upstreamPeer) count() {
	var acks []byte
	for {
		first, body, err := u.conn.packet()
		if err != nil {
			return
		}
		if first>>4 != packets.PUBLISH {
			continue
		}
		now := time.Now()
		at := 2 + int(binary.BigEndian.Uint16(body))
		if first>>1&3 > 0 {
			acks = append(acks, packets.PUBACK<<4, 2, body[at], body[at+1])
			at += 2
		}
		u.mu.Lock()
		if u.n++; u.n == 1 {
			u.first = now
		}
		u.last = now
		if p := body[at:]; len(p) > 8 && p[0] != '{' {
			u.took = append(u.took, now.Sub(time.Unix(0, int64(binary.BigEndian.Uint64(p)))))
		}
		if u.n == u.want {
			close(u.done)
		}
		u.mu.Unlock()
		if u.conn.r.Buffered() == 0 || len(acks) > 16<<10 {
			if _, err := u.conn.Write(acks); err != nil {
				return
			}
			acks = acks[:0]
		}
	}
}

// rate waits until all have come, and is how many came a second.
func (u *upstreamPeer) rate(ctx context.Context) (float64, error) {
	select {
	case <-u.done:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-time.After(stalled):
		u.mu.Lock()
		defer u.mu.Unlock()
		return 0, fmt.Errorf("stalled: %d of %d came", u.n, u.want)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return float64(u.n-1) / u.last.Sub(u.first).Seconds(), nil
}

// measureRates measures the three in turns.
func (b *bridgeBench) measureRates(ctx context.Context) error {
	for _, qos := range []byte{1, 2} {
		var raws, ours, theirs, toRaw, toTheirs []float64
		for range b.rounds {
			raw, err := b.turn(ctx, func(u *upstreamPeer) error { return rawWriter(ctx, u.gate.addr(), upstreamTopic, qos, b.messages) })
			if err != nil {
				return fmt.Errorf("raw writer, QoS %d: %w", qos, err)
			}
			our, err := b.bridged(ctx, qos, 0, b.messages, 0, nil)
			if err != nil {
				return fmt.Errorf("bridge, QoS %d: %w", qos, err)
			}
			raws, ours, toRaw = append(raws, raw), append(ours, our), append(toRaw, our/raw)
			if qos == 2 {
				continue // Mosquitto 2.0.11's own stalls with it
			}
			their, err := b.turn(ctx, func(u *upstreamPeer) error { return b.mosquittoStored(ctx, u, qos) })
			if err != nil {
				return fmt.Errorf("Mosquitto's bridge, QoS %d: %w", qos, err)
			}
			theirs, toTheirs = append(theirs, their), append(toTheirs, our/their)
		}
		name := fmt.Sprintf("QoS %d", qos)
		b.add("rates", name+": ours", median(ours), "messages/s")
		b.add("rates", name+": raw writer", median(raws), "messages/s")
		b.atLeast("rates", name+": ratio to the raw writer", median(toRaw), 0.6, "")
		if len(theirs) == 0 {
			continue
		}
		b.add("rates", name+": Mosquitto's bridge", median(theirs), "messages/s")
		b.add("rates", name+": ratio to Mosquitto's bridge", median(toTheirs), "")
	}
	return nil
}

// measureThrough has a client publish on the local broker while the bridge carries
// the messages on, ours and Mosquitto's in turns.
func (b *bridgeBench) measureThrough(ctx context.Context) error {
	for _, qos := range []byte{1} {
		var ours, theirs, ratios []float64
		for range b.rounds {
			our, err := b.through(ctx, func(dir string, u *upstreamPeer) (*peer, error) {
				return startOurs(ctx, dir, siteInFolder(dir)+fmt.Sprintf(throughBridge, u.gate.addr(), qos))
			}, benchTopic, qos)
			if err != nil {
				return fmt.Errorf("ours: %w", err)
			}
			their, err := b.through(ctx, func(dir string, u *upstreamPeer) (*peer, error) {
				return startMosquittoWith(ctx, dir, mosquittoBridge(u.gate.addr(), qos))
			}, upstreamTopic, qos)
			if err != nil {
				return fmt.Errorf("Mosquitto: %w", err)
			}
			ours, theirs, ratios = append(ours, our), append(theirs, their), append(ratios, our/their)
		}
		name := fmt.Sprintf("QoS %d, publisher to upstream", qos)
		b.add("through", name+": ours", median(ours), "messages/s")
		b.add("through", name+": Mosquitto's bridge", median(theirs), "messages/s")
		b.atLeast("through", name+": ratio to Mosquitto's bridge", median(ratios), 1.2, "")
	}
	return nil
}

// siteInFolder is siteAlone with its data in a folder.
func siteInFolder(dir string) string {
	return strings.Replace(siteAlone, "zone: bench}", fmt.Sprintf("zone: bench, data_dir: %q}", filepath.Join(dir, "data")), 1)
}

const throughBridge = `
adapters:
  talkers:
    mqtt: local
    devices: {bench: {type: bench, zone: bench}}
bridges:
  cloud: {upstream: ["mqtt://%s"], client_id: bench, topic: "bench/{device}/{data}", data: {telemetry: {qos: %d}}}
`

// through measures one broker that has a bridge.
func (b *bridgeBench) through(ctx context.Context, start func(dir string, u *upstreamPeer) (*peer, error), topic string, qos byte) (rate float64, err error) {
	u, err := b.upstream(ctx, 0, b.messages, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, u.stop()) }()
	dir, remove, err := b.folder()
	if err != nil {
		return 0, err
	}
	defer remove()
	u.gate.open()
	p, err := start(dir, u)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	for !u.gate.used() { // until the bridge is there
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return 0, err
		}
	}
	if err := sleep(ctx, time.Second); err != nil { // and has its CONNACK
		return 0, err
	}
	if err := rawWriter(ctx, p.Addr, topic, qos, b.messages); err != nil {
		return 0, err
	}
	return u.rate(ctx)
}

// turn has something send to a fresh upstream.
func (b *bridgeBench) turn(ctx context.Context, send func(*upstreamPeer) error) (rate float64, err error) {
	u, err := b.upstream(ctx, 0, b.messages, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, u.stop()) }()
	u.gate.open()
	if err := send(u); err != nil {
		return 0, err
	}
	return u.rate(ctx)
}

// measureTrip looks at how much of the Receive Maximum is used at a round trip of
// 50 ms.
func (b *bridgeBench) measureTrip(ctx context.Context) error {
	const trip, most = 50 * time.Millisecond, 500
	full := most / trip.Seconds()
	var used []float64
	rate, err := b.bridged(ctx, 1, trip, int(5*full), most, func(s bridge.Status) { used = append(used, float64(s.InFlight)) })
	if err != nil {
		return err
	}
	b.add("trip", "QoS 1 at 50 ms, Receive Maximum 500", rate, "messages/s")
	b.atLeast("trip", "QoS 1 at 50 ms: of the Receive Maximum in use", median(used)/most, 0.9, "")
	return nil
}

// bridged fills a buffer and has a bridge empty it to a fresh upstream. look, which
// may be nil, is told of the bridge now and then.
func (b *bridgeBench) bridged(ctx context.Context, qos byte, delay time.Duration, n, inflight int, look func(bridge.Status)) (rate float64, err error) {
	u, err := b.upstream(ctx, delay, n, inflight)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, u.stop()) }()
	s, remove, err := b.openSource(u, qos)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	if err := fillFast(s, n); err != nil {
		return 0, err
	}
	u.gate.open()
	stop := s.run(ctx)
	defer stop()
	var looking sync.WaitGroup
	if look != nil {
		looking.Go(func() {
			for tick := time.NewTicker(10 * time.Millisecond); ; {
				select {
				case <-u.done:
					tick.Stop()
					return
				case <-tick.C:
					look(s.bridge.Status())
				}
			}
		})
	}
	if rate, err = u.rate(ctx); err != nil {
		return rate, err
	}
	looking.Wait()
	stop()
	if l := s.out.Ledger(); l.Delivered+l.Stored != uint64(n) || l.Difference() != 0 {
		err = fmt.Errorf("ledger %+v", l)
	}
	return rate, err
}

// source is a buffer with a bridge.
type source struct {
	*bufferStore
	out    bridge.Outboxes
	reader *buffer.Reader
	bridge *bridge.Bridge
	qos    byte
	timed  bool // payloads begin with the time
	live   bool // messages that cannot go soon are replayed
}

func (b *bridgeBench) openSource(u *upstreamPeer, qos byte) (*source, func() error, error) {
	dir, remove, err := b.folder()
	if err != nil {
		return nil, nil, err
	}
	s := &source{qos: qos}
	if s.bufferStore, err = openBuffer(dir, buffer.Options{}); err != nil {
		return nil, nil, err
	}
	if s.out, err = bridge.OpenOutboxes(s.b, "bridge/bench/0"); err != nil {
		return nil, nil, err
	}
	if s.reader, err = s.b.Reader(s.out[:]...); err != nil {
		return nil, nil, err
	}
	s.bridge, err = bridge.New(s.reader, s.out, bridge.Options{
		Upstream: []string{"mqtt://" + u.gate.addr()}, ClientID: "bench", Window: bridgeWindow,
		Backoff: bridge.Backoff{First: 50 * time.Millisecond, Max: 200 * time.Millisecond},
	})
	return s, func() error {
		s.reader.Close()
		err := s.close()
		remove()
		return err
	}, err
}

func (s *source) append(payload []byte, urgent bool, r buffer.Receipt) error {
	out := s.out[buffer.Telemetry]
	if s.live && !s.bridge.Live() {
		out = s.out[bridge.Replay]
	}
	if s.timed {
		payload = slices.Clone(payload)
		binary.BigEndian.PutUint64(payload, uint64(time.Now().UnixNano()))
	}
	m := &buffer.Message{Topic: upstreamTopic, Payload: payload, QoS: 1, Urgent: urgent, Copies: []buffer.Copy{{Outbox: out, QoS: s.qos}}}
	return s.b.Append(context.Background(), buffer.Telemetry, m, r)
}

// run runs the bridge until stop.
func (s *source) run(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.bridge.Run(ctx) // what it did not do is missing
	}()
	return func() {
		cancel()
		<-ended
	}
}

// measureBacklog measures how fast what an outage has left drains while 1,000 a
// second come in, and with live-first how long those take.
func (b *bridgeBench) measureBacklog(ctx context.Context) error {
	n := b.size(2_600_000)
	for _, live := range []bool{false, true} {
		if err := b.backlog(ctx, n, live); err != nil {
			return err
		}
	}
	return nil
}

func (b *bridgeBench) backlog(ctx context.Context, n int, live bool) (err error) {
	u, err := b.upstream(ctx, 0, n, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, u.stop()) }()
	s, remove, err := b.openSource(u, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	s.live = live
	if err := fillFast(s, n); err != nil {
		return err
	}
	u.gate.open()
	stop := s.run(ctx)
	defer stop()
	for !s.bridge.Status().Connected {
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
	s.timed = true
	feeding, enough := context.WithCancel(ctx)
	defer enough()
	var fed sync.WaitGroup
	var feedErr error
	var receipts batch
	fed.Go(func() {
		_, feedErr = appendAt(feeding, s, 1000, true, func() buffer.Receipt { receipts.Add(1); return &receipts })
	})
	rate, err := u.rate(ctx) // of as many as the backlog has, live ones among them
	enough()
	fed.Wait()
	if err = errors.Join(err, feedErr, receipts.wait()); err != nil {
		return err
	}
	name := fmt.Sprintf("%d stored, 1,000/s live, ordered", n)
	if live {
		name = fmt.Sprintf("%d stored, 1,000/s live, live-first", n)
	}
	b.atLeast("backlog", name+": drained", rate, 10_000, "messages/s")
	u.mu.Lock()
	defer u.mu.Unlock()
	if live {
		b.atMost("backlog", name+": p99 of the live ones", percentile(u.took, 99).Seconds(), 2, "s")
	}
	return nil
}

// rawWriter sends as fast as it can with a window, and waits for all answers.
func rawWriter(ctx context.Context, addr, topic string, qos byte, n int) error {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer nc.Close()
	r, w := bufio.NewReaderSize(nc, 16<<10), bufio.NewWriterSize(nc, 64<<10)
	connect := packets.Connect{ProtocolName: "MQTT", ProtocolVersion: 5, ClientID: "bench-raw", CleanStart: true, KeepAlive: 60, Properties: &packets.Properties{}}
	if _, err := connect.WriteTo(w); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if _, err := packets.ReadPacket(r); err != nil {
		return err
	}
	var mu sync.Mutex // guards w
	slots := make(chan struct{}, bridgeWindow)
	answered := make(chan error, 1)
	go func() {
		for left := n; qos > 0 && left > 0; {
			p, err := packets.ReadPacket(r)
			if err != nil {
				answered <- err
				return
			}
			switch p.Type {
			case packets.PUBREC:
				mu.Lock()
				rel := packets.Pubrel{PacketID: p.PacketID(), Properties: &packets.Properties{}}
				rel.WriteTo(w)
				mu.Unlock()
			case packets.PUBACK, packets.PUBCOMP:
				<-slots
				left--
			}
			if qos == 2 && r.Buffered() == 0 {
				mu.Lock()
				w.Flush()
				mu.Unlock()
			}
		}
		answered <- nil
	}()
	p := packets.Publish{Topic: topic, QoS: qos, Properties: &packets.Properties{}}
	for i := range n {
		if qos > 0 {
			select {
			case slots <- struct{}{}:
			default:
				mu.Lock()
				err := w.Flush()
				mu.Unlock()
				if err != nil {
					return err
				}
				select {
				case slots <- struct{}{}:
				case err := <-answered:
					return err
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
			p.PacketID = uint16(i%60_000 + 1)
		}
		p.Payload = payloads()[i%len(payloads())]
		mu.Lock()
		_, err := p.WriteTo(w)
		mu.Unlock()
		if err != nil {
			return err
		}
	}
	mu.Lock()
	err = w.Flush()
	mu.Unlock()
	return errors.Join(err, <-answered)
}

// mosquittoStored has another Mosquitto queue all messages for a bridge that cannot
// connect, and then lets it.
func (b *bridgeBench) mosquittoStored(ctx context.Context, u *upstreamPeer, qos byte) error {
	dir, remove, err := b.folder()
	if err != nil {
		return err
	}
	defer remove()
	u.gate.shut()
	p, err := startMosquittoWith(ctx, dir, mosquittoBridge(u.gate.addr(), qos))
	if err != nil {
		return err
	}
	err = rawWriter(ctx, p.Addr, upstreamTopic, qos, b.messages)
	if err == nil {
		u.gate.open()
		_, err = u.rate(ctx)
	}
	return errors.Join(err, p.stop())
}

// mosquittoBridge is the configuration of a bridge that carries everything.
func mosquittoBridge(addr string, qos byte) string {
	return fmt.Sprintf("max_inflight_messages %d\nconnection bench\naddress %s\nbridge_protocol_version mqttv311\ntopic # out %d\nrestart_timeout 1\ncleansession false\nnotifications false\ntry_private false\n", bridgeWindow, addr, qos)
}

// startMosquittoWith starts a Mosquitto with more lines of configuration.
func startMosquittoWith(ctx context.Context, dir, more string) (*peer, error) {
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/mosquitto"); err != nil {
			return nil, errors.New("there is no mosquitto to compare with: install it")
		}
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(addr)
	file := filepath.Join(dir, "mosquitto.conf")
	conf := fmt.Sprintf("listener %s 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\npersistence false\nuser root\nlog_type error\n%s", port, more)
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	return startPeer(ctx, "mosquitto", addr, exec.Command(path, "-c", file))
}

// gate is a TCP proxy that lets nobody through until it is opened, and can make the
// way long.
type gate struct {
	to    string
	delay time.Duration // of a round trip
	ln    net.Listener
	wg    sync.WaitGroup

	mu     sync.Mutex // guards what follows
	isOpen bool
	closed bool
	conns  []net.Conn
}

func newGate(to string, delay time.Duration) (*gate, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	g := &gate{to: to, delay: delay, ln: ln}
	g.wg.Go(g.accept)
	return g, nil
}

func (g *gate) addr() string { return g.ln.Addr().String() }

func (g *gate) open() { g.set(true) }
func (g *gate) shut() { g.set(false) }

// used reports whether somebody came through.
func (g *gate) used() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.conns) > 0
}

func (g *gate) set(open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.isOpen = open
}

func (g *gate) accept() {
	for {
		in, err := g.ln.Accept()
		if err != nil {
			return
		}
		g.mu.Lock()
		open := g.isOpen && !g.closed
		g.mu.Unlock()
		out, err := net.Dial("tcp", g.to)
		if !open || err != nil {
			in.Close()
			if err == nil {
				out.Close()
			}
			continue
		}
		g.mu.Lock()
		g.conns = append(g.conns, in, out)
		g.mu.Unlock()
		g.wg.Go(func() { g.carry(out, in) })
		g.wg.Go(func() { g.carry(in, out) })
	}
}

// carry copies until one side ends.
func (g *gate) carry(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	if g.delay == 0 {
		_, _ = io.Copy(to, from) // an end is an end
		return
	}
	type late struct {
		p  []byte
		at time.Time
	}
	way := make(chan late, 4096)
	g.wg.Go(func() {
		for l := range way {
			time.Sleep(time.Until(l.at))
			if _, err := to.Write(l.p); err != nil {
				from.Close()
			}
		}
	})
	defer close(way)
	for {
		p := make([]byte, 16<<10)
		n, err := from.Read(p)
		if n > 0 {
			way <- late{p[:n], time.Now().Add(g.delay / 2)}
		}
		if err != nil {
			return
		}
	}
}

// Close ends all connections and waits for them.
func (g *gate) Close() {
	g.mu.Lock()
	g.closed = true
	conns := g.conns
	g.mu.Unlock()
	g.ln.Close()
	for _, c := range conns {
		c.Close()
	}
	g.wg.Wait()
}
