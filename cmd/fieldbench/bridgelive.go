package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fieldferry/fieldferry/bridge"
	"github.com/fieldferry/fieldferry/buffer"
)

const upstreamTopic = "bench/bench/telemetry"

// measureThrough has a client publish on a local broker while its bridge carries the
// messages on: ours, which stores them, and Mosquitto's, which does not, in turns.
func (b *bridgeBench) measureThrough(ctx context.Context) error {
	const qos = 1
	var ours, theirs, ratios []float64
	for range b.rounds {
		our, err := b.through(ctx, benchTopic, func(dir, upstream string) (*peer, error) {
			site := fmt.Sprintf(siteFill, "%s", upstream, qos)
			site = strings.Replace(site, "zone: bench}", fmt.Sprintf("zone: bench, data_dir: %q}", filepath.Join(dir, "data")), 1)
			return startOurs(ctx, dir, site)
		})
		if err != nil {
			return fmt.Errorf("fieldferry: %w", err)
		}
		their, err := b.through(ctx, upstreamTopic, func(dir, upstream string) (*peer, error) {
			return startMosquittoWith(ctx, dir, fmt.Sprintf(
				"max_inflight_messages %d\npersistence false\nconnection upstream\naddress %s\ntopic # out %d\ncleansession false\nrestart_timeout 1\n", underWay, upstream, qos))
		})
		if err != nil {
			return fmt.Errorf("mosquitto: %w", err)
		}
		ours, theirs, ratios = append(ours, our), append(theirs, their), append(ratios, our/their)
	}
	name := fmt.Sprintf("QoS %d, while they are published", qos)
	b.add("through", name+": fieldferry", median(ours), "messages/s")
	b.add("through", name+": mosquitto's bridge", median(theirs), "messages/s")
	b.atLeast("through", name+": ratio to mosquitto's bridge", median(ratios), 1.2, "")
	return nil
}

// through measures one broker with a bridge, from the first arrival to the last.
func (b *bridgeBench) through(ctx context.Context, topic string, start func(dir, upstream string) (*peer, error)) (perSecond float64, err error) {
	dir, err := os.MkdirTemp(b.dir, "through-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	up := filepath.Join(dir, "upstream")
	if err := os.Mkdir(up, 0o700); err != nil {
		return 0, err
	}
	upstream, err := startMosquittoWith(ctx, up, "max_inflight_messages 0\n")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, upstream.stop()) }()
	counter, err := dialMQTT(ctx, upstream.Addr, "counter", true)
	if err != nil {
		return 0, err
	}
	defer counter.Close()
	if err := counter.subscribe("#", 0); err != nil {
		return 0, err
	}
	p, err := start(dir, upstream.Addr)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	if err := probe(ctx, p.Addr, topic, counter); err != nil {
		return 0, err
	}
	w, err := dialRaw(ctx, p.Addr)
	if err != nil {
		return 0, err
	}
	defer w.Close()
	w.topic = topic
	published := make(chan error, 1)
	go func() { published <- w.publish(1, b.messages) }()
	took, err := counter.countTo(b.messages)
	if err = errors.Join(err, w.Close()); err != nil {
		return 0, errors.Join(err, ignoreClosed(<-published))
	}
	return float64(b.messages-1) / took.Seconds(), ignoreClosed(<-published)
}

// probe publishes small messages until one has come through the bridge.
func probe(ctx context.Context, addr, topic string, counter *mqttConn) error {
	c, err := dialMQTT(ctx, addr, "probe", true)
	if err != nil {
		return err
	}
	defer c.Close()
	p := append([]byte{0x30, byte(3 + len(topic)), 0, byte(len(topic))}, topic...)
	p = append(p, 'p')
	for range 200 {
		if _, err := c.Write(p); err != nil {
			return err
		}
		if err := counter.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			return err
		}
		first, _, err := counter.packet()
		switch {
		case err == nil && first>>4 == 3:
			return counter.SetReadDeadline(time.Time{})
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
	}
	return errors.New("nothing comes through the bridge")
}

// backlogged is a buffer with a bridge.
type backlogged struct {
	*bufferStore
	out    bridge.Outboxes
	reader *buffer.Reader
	bridge *bridge.Bridge
	timed  bool // payloads begin with the time
	live   bool // messages that cannot go soon are replayed
}

func openBacklogged(dir, upstream string, live bool) (*backlogged, error) {
	s := &backlogged{live: live}
	var err error
	if s.bufferStore, err = openBuffer(dir, buffer.Options{}); err != nil {
		return nil, err
	}
	if s.out, err = bridge.OpenOutboxes(s.b, "bridge/bench/0"); err == nil {
		s.reader, err = s.b.Reader(s.out[:]...)
	}
	if err == nil {
		s.bridge, err = bridge.New(s.reader, s.out, bridge.Options{Upstream: []string{"mqtt://" + upstream}, ClientID: "bench"})
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *backlogged) append(payload []byte, urgent bool, r buffer.Receipt) error {
	out := s.out[buffer.Telemetry]
	if s.live && !s.bridge.Live() {
		out = s.out[bridge.Replay]
	}
	if s.timed {
		payload = slices.Clone(payload)
		binary.BigEndian.PutUint64(payload, uint64(time.Now().UnixNano()))
	}
	m := &buffer.Message{Topic: upstreamTopic, Payload: payload, QoS: 1, Urgent: urgent, Copies: []buffer.Copy{{Outbox: out, QoS: 1}}}
	return s.b.Append(context.Background(), buffer.Telemetry, m, r)
}

// arrivals are what a subscriber of the upstream gets.
type arrivals struct {
	perSecond float64
	took      []time.Duration // of those whose payload begins with the time
}

// arrive takes n messages, all of them JSON but those that begin with the time.
func (c *mqttConn) arrive(n int) (a arrivals, err error) {
	var began time.Time
	for got := 0; got < n; got++ {
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			return a, err
		}
		first, body, err := c.packet()
		if err != nil {
			return a, fmt.Errorf("after %d of %d messages: %w", got, n, err)
		}
		if first>>4 != 3 {
			got--
			continue
		}
		now := time.Now()
		if got == 0 {
			began = now
		}
		if p := body[2+binary.BigEndian.Uint16(body):]; len(p) > 8 && p[0] != '{' {
			a.took = append(a.took, now.Sub(time.Unix(0, int64(binary.BigEndian.Uint64(p)))))
		}
	}
	a.perSecond = float64(n-1) / time.Since(began).Seconds()
	return a, nil
}

// measureBacklog measures how fast drains what an outage of 43 minutes at 1,000 a
// second has left, while 1,000 a second come in, and with live-first how long those
// take.
func (b *bridgeBench) measureBacklog(ctx context.Context) error {
	for _, live := range []bool{false, true} {
		if err := b.backlog(ctx, b.size(2_600_000), live); err != nil {
			return err
		}
	}
	return nil
}

func (b *bridgeBench) backlog(ctx context.Context, n int, live bool) (err error) {
	dir, err := os.MkdirTemp(b.dir, "backlog-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	up := filepath.Join(dir, "upstream")
	if err := os.Mkdir(up, 0o700); err != nil {
		return err
	}
	upstream, err := startMosquittoWith(ctx, up, "max_inflight_messages 0\n")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, upstream.stop()) }()
	counter, err := dialMQTT(ctx, upstream.Addr, "counter", true)
	if err != nil {
		return err
	}
	defer counter.Close()
	if err := counter.subscribe(upstreamTopic, 0); err != nil {
		return err
	}
	s, err := openBacklogged(filepath.Join(dir, "buffer"), upstream.Addr, live)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	defer s.reader.Close()
	if err := fillFast(s, n); err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	var ran sync.WaitGroup
	defer ran.Wait()
	defer stop()
	var runErr, feedErr error
	ran.Go(func() { runErr = s.bridge.Run(running) })
	for !s.bridge.Status().Connected {
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
	s.timed = true
	var stored batch
	ran.Go(func() {
		_, feedErr = appendAt(running, s, 1000, true, func() buffer.Receipt { stored.Add(1); return &stored })
	})
	a, err := counter.arrive(n) // as many as the backlog has, live ones among them
	stop()
	ran.Wait()
	if err = errors.Join(err, runErr, feedErr, stored.wait()); err != nil {
		return err
	}
	name := fmt.Sprintf("%d stored, 1,000/s live, ordered", n)
	if live {
		name = fmt.Sprintf("%d stored, 1,000/s live, live-first", n)
	}
	b.atLeast("backlog", name+": drained", a.perSecond, 10_000, "messages/s")
	if live {
		b.atMost("backlog", name+": p99 of the live ones", percentile(a.took, 99).Seconds(), 2, "s")
	}
	return nil
}
