package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/spf13/cobra"
)

// bridgeBench is one run over ways upstream.
type bridgeBench struct {
	bench
	messages int
}

// The site files; the first %s of the second is the upstream, the second QoS.
const (
	siteFill = `
gateway: {id: bench-gateway, org: bench, site: bench, zone: bench}
broker:
  listeners: [{name: plain, listen: "%s"}]
  allow_anonymous: true
  limits: {receive_maximum: 65535}
adapters:
  talkers:
    mqtt: local
    devices: {bench: {type: bench, zone: bench}}
bridges:
  cloud:
    upstream: ["mqtt://%s"]
    client_id: bench
    topic: "bench/{device}/{data}"
    backoff: {first: 100ms, max: 1s}
    data: {telemetry: {direction: up, qos: %d, class: telemetry}}
`
	nowhere = "127.0.0.1:1"

	// underWay is how many messages the raw writer has unacknowledged at the most.
	underWay = 1000
)

// A way is one that messages take upstream. It stores n messages, then calls go, when
// the upstream is there and they may leave, and lets them.
type way struct {
	name string
	run  func(ctx context.Context, dir string, qos byte, n int, ready func() (addr string, err error)) (stop func() error, err error)
}

func ways() []way {
	return []way{{"raw writer", rawWay}, {"fieldferry", ourWay}, {"mosquitto's bridge", mosquittoWay}}
}

// rawWay writes with paho.golang/packets, pipelined, and stores nothing.
func rawWay(ctx context.Context, _ string, qos byte, n int, ready func() (string, error)) (func() error, error) {
	addr, err := ready()
	if err != nil {
		return nil, err
	}
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return rawOver(nc, qos, n)
}

// rawOver has the raw writer write on a connection.
func rawOver(nc net.Conn, qos byte, n int) (func() error, error) {
	w, err := newRaw(nc)
	if err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() { done <- w.publish(qos, n) }()
	return func() error { return errors.Join(w.Close(), ignoreClosed(<-done)) }, nil
}

// ourWay fills the buffer of a gateway whose upstream is away, and starts it anew with
// one that is there.
func ourWay(ctx context.Context, dir string, qos byte, n int, ready func() (string, error)) (func() error, error) {
	return ourSite(ctx, dir, n, ready, func(upstream string) string { return fmt.Sprintf(siteFill, "%s", upstream, qos) })
}

// ourSite does that with the site file that site makes for an upstream.
func ourSite(ctx context.Context, dir string, n int, ready func() (string, error), site func(upstream string) string) (func() error, error) {
	filling, err := startOurs(ctx, dir, site(nowhere))
	if err != nil {
		return nil, err
	}
	if err := errors.Join(fillBroker(ctx, filling.Addr, benchTopic, n), filling.stop()); err != nil {
		return nil, err
	}
	addr, err := ready()
	if err != nil {
		return nil, err
	}
	g, err := startOurs(ctx, dir, site(addr))
	if err != nil {
		return nil, err
	}
	return g.stop, nil
}

// mosquittoWay does the same with a Mosquitto, its database and its bridge.
func mosquittoWay(ctx context.Context, dir string, qos byte, n int, ready func() (string, error)) (func() error, error) {
	start := func(upstream string) (*peer, error) {
		return startMosquittoWith(ctx, dir, fmt.Sprintf(
			"persistence true\npersistence_location %s/\nconnection upstream\naddress %s\ntopic # out %d\ncleansession false\nrestart_timeout 1\n", dir, upstream, qos))
	}
	filling, err := start(nowhere)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(fillBroker(ctx, filling.Addr, benchTopic, n), filling.stop()); err != nil {
		return nil, err
	}
	addr, err := ready()
	if err != nil {
		return nil, err
	}
	m, err := start(addr)
	if err != nil {
		return nil, err
	}
	return m.stop, nil
}

// fillBroker publishes n messages with QoS 2, which each way lowers to what it carries.
func fillBroker(ctx context.Context, addr, topic string, n int) error {
	w, err := dialRaw(ctx, addr)
	if err != nil {
		return err
	}
	w.topic = topic
	return errors.Join(w.publish(2, n), w.Close())
}

// rawWriter publishes with paho.golang/packets, and does nothing beside.
type rawWriter struct {
	net.Conn
	r      *bufio.Reader
	topic  string
	window int

	mu   sync.Mutex // guards what follows
	room sync.Cond
	open int
	rels []uint16
	done int
	err  error
}

func dialRaw(ctx context.Context, addr string) (*rawWriter, error) {
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return newRaw(nc)
}

func newRaw(nc net.Conn) (*rawWriter, error) {
	w := &rawWriter{Conn: nc, r: bufio.NewReaderSize(nc, 64<<10), topic: "bench/bench/telemetry", window: underWay}
	w.room.L = &w.mu
	connect := packets.NewControlPacket(packets.CONNECT)
	c := connect.Content.(*packets.Connect)
	c.ProtocolName, c.ProtocolVersion, c.ClientID, c.CleanStart = "MQTT", 5, "raw-writer", true
	if _, err := connect.WriteTo(nc); err != nil {
		return nil, errors.Join(err, nc.Close())
	}
	p, err := packets.ReadPacket(w.r)
	if err != nil {
		return nil, errors.Join(err, nc.Close())
	}
	ack, ok := p.Content.(*packets.Connack)
	if !ok || ack.ReasonCode != 0 {
		return nil, errors.Join(fmt.Errorf("%s does not let the writer in: %v", nc.RemoteAddr(), p), nc.Close())
	}
	if m := ack.Properties.ReceiveMaximum; m != nil {
		w.window = min(w.window, int(*m))
	}
	return w, nil
}

// publish returns when n messages are acknowledged.
func (w *rawWriter) publish(qos byte, n int) error {
	go w.answers(n)
	payload := make([]byte, messageBytes)
	for i := range payload {
		payload[i] = byte('a' + i%26)
	}
	out := bufio.NewWriterSize(w, 64<<10)
	var rels []uint16
	for sent := 0; ; {
		w.mu.Lock()
		for w.err == nil && w.done < n && len(w.rels) == 0 && (sent == n || w.open >= w.window) {
			w.room.Wait()
		}
		if w.err != nil || w.done == n {
			err := w.err
			w.mu.Unlock()
			return err
		}
		rels, w.rels = w.rels, rels[:0]
		k := min(n-sent, w.window-w.open, 64)
		w.open += k
		w.mu.Unlock()
		for _, id := range rels {
			rel := packets.NewControlPacket(packets.PUBREL)
			rel.Content.(*packets.Pubrel).PacketID = id
			if _, err := rel.WriteTo(out); err != nil {
				return err
			}
		}
		for range k {
			p := packets.Publish{Topic: w.topic, QoS: qos, PacketID: uint16(sent%65535 + 1), Payload: payload, Properties: &packets.Properties{}}
			if _, err := p.ToControlPacket().WriteTo(out); err != nil {
				return err
			}
			sent++
		}
		if err := out.Flush(); err != nil {
			return err
		}
	}
}

// answers takes n acknowledgements.
func (w *rawWriter) answers(n int) {
	for {
		p, err := packets.ReadPacket(w.r)
		w.mu.Lock()
		w.err = errors.Join(w.err, err)
		if err == nil {
			switch c := p.Content.(type) {
			case *packets.Pubrec:
				w.rels = append(w.rels, c.PacketID)
			case *packets.Puback, *packets.Pubcomp:
				w.open--
				w.done++
			}
		}
		ended := w.err != nil || w.done == n
		w.room.Broadcast()
		w.mu.Unlock()
		if ended {
			return
		}
	}
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// upstream is what a Mosquitto that is measured with is like.
type upstream struct {
	window  int           // its Receive Maximum; 0 is no limit
	delay   time.Duration // of the line to it, each way
	secured *secured      // nil: it is reached without TLS
}

// rate lets n messages go one way to an upstream of its own, and returns how many
// arrive there a second, from the first to the last.
func (b *bridgeBench) rate(ctx context.Context, v way, qos byte, n int, to upstream) (perSecond float64, err error) {
	dir, err := os.MkdirTemp(b.dir, "bridge-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	up := filepath.Join(dir, "upstream")
	if err := os.Mkdir(up, 0o700); err != nil {
		return 0, err
	}
	var closers []func() error
	defer func() {
		for _, c := range slices.Backward(closers) {
			err = errors.Join(err, c())
		}
	}()
	arrived := make(chan error, 1)
	var took time.Duration
	stop, err := v.run(ctx, dir, qos, n, func() (string, error) {
		conf, addr := fmt.Sprintf("max_inflight_messages %d\n", to.window), ""
		if to.secured != nil {
			if addr, err = freeAddr(); err != nil {
				return "", err
			}
			conf += to.secured.listener(addr)
		}
		m, err := startMosquittoWith(ctx, up, conf)
		if err != nil {
			return "", err
		}
		closers = append(closers, m.stop)
		addr = cmp.Or(addr, m.Addr)
		if to.delay > 0 {
			line, err := startLine(addr, to.delay)
			if err != nil {
				return "", err
			}
			closers = append(closers, line.Close)
			addr = line.Addr().String()
		}
		s, err := dialMQTT(ctx, m.Addr, "counter", true)
		if err != nil {
			return "", err
		}
		closers = append(closers, s.Close)
		if err := s.subscribe("#", 0); err != nil {
			return "", err
		}
		go func() {
			var err error
			took, err = s.countTo(n)
			arrived <- err
		}()
		return addr, nil
	})
	if err != nil {
		return 0, err
	}
	closers = append(closers, stop)
	select {
	case err := <-arrived:
		return float64(n-1) / took.Seconds(), err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// countTo waits for n messages of the size that is measured, and returns the time
// from the first to the last.
func (c *mqttConn) countTo(n int) (time.Duration, error) {
	var began time.Time
	for got := 0; got < n; {
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			return 0, err
		}
		first, body, err := c.packet()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, fmt.Errorf("after %d of %d messages, nothing arrives any more", got, n)
		} else if err != nil {
			return 0, err
		}
		if first>>4 != 3 || len(body)-2-int(binary.BigEndian.Uint16(body)) != messageBytes {
			continue
		}
		if got == 0 {
			began = time.Now()
		}
		got++
	}
	return time.Since(began), nil
}

// measureRates compares the ways.
func (b *bridgeBench) measureRates(ctx context.Context) error {
	limits := map[byte][2]float64{1: {0.6, 1.2}, 2: {0.6, 0}}
	for _, qos := range []byte{1, 2} {
		rates := make(map[string][]float64)
		for range b.rounds {
			for _, v := range ways() {
				if v.name == "mosquitto's bridge" && limits[qos][1] == 0 {
					continue
				}
				r, err := b.rate(ctx, v, qos, b.messages, upstream{})
				if err != nil {
					return fmt.Errorf("QoS %d, %s: %w", qos, v.name, err)
				}
				rates[v.name] = append(rates[v.name], r)
			}
		}
		var ratios [2][]float64
		for i, ours := range rates["fieldferry"] {
			ratios[0] = append(ratios[0], ours/rates["raw writer"][i])
			if len(rates["mosquitto's bridge"]) > 0 {
				ratios[1] = append(ratios[1], ours/rates["mosquitto's bridge"][i])
			}
		}
		for _, v := range ways() {
			if r := rates[v.name]; len(r) > 0 {
				b.add("rates", fmt.Sprintf("QoS %d: %s", qos, v.name), median(r), "messages/s")
			}
		}
		b.atLeast("rates", fmt.Sprintf("QoS %d: ratio to the raw writer", qos), median(ratios[0]), limits[qos][0], "")
		if len(ratios[1]) > 0 {
			b.atLeast("rates", fmt.Sprintf("QoS %d: ratio to mosquitto's bridge", qos), median(ratios[1]), limits[qos][1], "")
		}
	}
	return nil
}

// measureFar measures a line with a round trip of 50 ms, on which the Receive Maximum
// of the upstream is the limit.
func (b *bridgeBench) measureFar(ctx context.Context) error {
	const roundTrip, window = 50 * time.Millisecond, 200
	n := b.messages / 10
	r, err := b.rate(ctx, way{"fieldferry", ourWay}, 1, n, upstream{window: window, delay: roundTrip / 2})
	if err != nil {
		return err
	}
	most := window / roundTrip.Seconds()
	name := fmt.Sprintf("QoS 1, round trip %v, Receive Maximum %d", roundTrip, window)
	b.add("far", name, r, "messages/s")
	b.atLeast("far", name+": of what the Receive Maximum allows", r/most, 0.9, "")
	return nil
}

// line is a TCP line to a server on which everything arrives later.
type line struct {
	net.Listener
	server string
	delay  time.Duration
	ends   sync.WaitGroup
	mu     sync.Mutex // guards conns
	conns  []net.Conn
}

func startLine(server string, delay time.Duration) (*line, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l := &line{Listener: ln, server: server, delay: delay}
	l.ends.Go(l.accept)
	return l, nil
}

func (l *line) accept() {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s, err := net.Dial("tcp", l.server)
		if err != nil {
			c.Close()
			continue
		}
		l.mu.Lock()
		l.conns = append(l.conns, c, s)
		l.mu.Unlock()
		l.ends.Go(func() { l.carry(c, s) })
		l.ends.Go(func() { l.carry(s, c) })
	}
}

// carry brings what one end writes to the other, later.
func (l *line) carry(from, to net.Conn) {
	type piece struct {
		data []byte
		at   time.Time
	}
	pieces := make(chan piece, 1<<16)
	l.ends.Go(func() {
		defer to.Close()
		for p := range pieces {
			time.Sleep(time.Until(p.at))
			if _, err := to.Write(p.data); err != nil {
				from.Close()
			}
		}
	})
	defer close(pieces)
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			pieces <- piece{slices.Clone(buf[:n]), time.Now().Add(l.delay)}
		}
		if err != nil {
			return
		}
	}
}

// Close ends the line and everything on it.
func (l *line) Close() error {
	err := l.Listener.Close()
	l.mu.Lock()
	for _, c := range l.conns {
		c.Close()
	}
	l.mu.Unlock()
	l.ends.Wait()
	return err
}

func bridgeCommand() *cobra.Command {
	b := &bridgeBench{}
	all := []string{"rates", "tls", "through", "far", "backlog"}
	var parts []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "bridge",
		Short: "Measure the bridge against a raw writer and Mosquitto's bridge",
		Long: `bridge stores messages of 200 bytes, starts a Mosquitto as the upstream, and
measures how fast they arrive there, from the first to the last: with Fieldferry, out
of its buffer; with a Mosquitto that has stored them for its bridge; and with a writer
that makes them with paho.golang/packets and has 1,000 under way. All in turns; each
has a new upstream, and one subscriber there that counts.

The parts: rates (QoS 1 and 2), tls (the same over TLS with certificates on both sides),
through (while a client publishes on the local broker),
far (a round trip of 50 ms), backlog (what an outage has left, while more comes in).`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b.out = cmd.ErrOrStderr()
			for _, p := range parts {
				if !slices.Contains(all, p) {
					return usageError{fmt.Errorf("there is no part %q: use some of %s", p, strings.Join(all, ", "))}
				}
			}
			remove, err := b.beginIn(b.dir)
			if err != nil {
				return err
			}
			defer remove()
			measure := map[string]func(context.Context) error{"rates": b.measureRates, "tls": b.measureTLS, "through": b.measureThrough, "far": b.measureFar, "backlog": b.measureBacklog}
			for _, p := range all {
				if len(parts) > 0 && !slices.Contains(parts, p) {
					continue
				}
				if err := measure[p](cmd.Context()); err != nil {
					return fmt.Errorf("%s: %w", p, err)
				}
			}
			return b.end(cmd.OutOrStdout(), asJSON)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&parts, "part", nil, "the parts to measure; all if it is not given")
	f.IntVar(&b.rounds, "rounds", 3, "how often all take turns; the medians count")
	f.IntVar(&b.messages, "messages", 100_000, "how many go upstream in a turn")
	f.StringVar(&b.dir, "dir", "", "folder on the disk to measure on; the temporary one if it is not given")
	f.BoolVar(&b.full, "full", false, "measure a backlog of 2.6 million; else a tenth")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
