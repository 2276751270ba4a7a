package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// The site files that are measured; %s is where the broker listens.
const (
	siteAlone = `
gateway: {id: bench-gateway, org: bench, site: bench, zone: bench}
broker:
  listeners: [{name: plain, listen: "%s"}]
  allow_anonymous: true
  limits: {clients_per_address: 20000, clients: 20000, retained_messages: 200000, receive_maximum: 65535}
`
	siteBridged = siteAlone + `
adapters:
  talkers:
    mqtt: local
    devices: {bench: {type: bench, zone: bench}}
bridges:
  cloud: {upstream: ["mqtt://127.0.0.1:1"], client_id: bench, topic: "bench/{device}/{data}"}
`
	benchTopic = "devices/bench/telemetry"
)

// brokerBench is one run over brokers.
type brokerBench struct {
	bench
	each   time.Duration
	other  string // another broker to compare with
	filter string
}

// shape is a way that messages go.
type shape struct {
	name       string
	pubs, subs int
	qos        byte
	ratio      float64 // that is to be reached
	cpu        float64 // of the peer's CPU for each message, at the most; 0 is no limit
}

var shapes = []shape{
	{"1→1 QoS 0", 1, 1, 0, 1, 0},
	{"1→1 QoS 1", 1, 1, 1, 2, 1},
	{"1→1 QoS 2", 1, 1, 2, 2, 0},
	{"50→1 QoS 0", 50, 1, 0, 1, 0},
	{"50→1 QoS 1", 50, 1, 1, 1.2, 1},
	{"1→100 QoS 0", 1, 100, 0, 1.5, 0},
	{"1→100 QoS 1", 1, 100, 1, 1.2, 1},
}

func (b *brokerBench) load(s shape) load {
	l := load{Publishers: s.pubs, Subscribers: s.subs, QoS: s.qos, Payload: messageBytes, Window: 1000, Topic: benchTopic, Warm: b.each / 4, For: b.each}
	if s.pubs > 1 {
		l.Window = 100
	}
	return l
}

// turns measures two loads in turns, and returns the medians.
func (b *brokerBench) turns(ctx context.Context, one, other func(context.Context) (loaded, error)) (x, y loaded, err error) {
	var xs, ys []loaded
	for range b.rounds {
		for i, f := range []func(context.Context) (loaded, error){one, other} {
			v, err := f(ctx)
			if err != nil {
				return x, y, err
			}
			if i == 0 {
				xs = append(xs, v)
			} else {
				ys = append(ys, v)
			}
		}
	}
	middle := func(all []loaded) loaded {
		rates, cpus := make([]float64, len(all)), make([]float64, len(all))
		for i, v := range all {
			rates[i], cpus[i] = v.Delivered, v.CPU
		}
		slices.Sort(rates)
		slices.Sort(cpus)
		return loaded{rates[len(rates)/2], cpus[len(cpus)/2]}
	}
	return middle(xs), middle(ys), nil
}

// measurePeers compares with another broker.
func (b *brokerBench) measurePeers(ctx context.Context, ours *peer) error {
	dir, remove, err := b.folder()
	if err != nil {
		return err
	}
	defer remove()
	other := &peer{Name: b.other, Addr: b.other}
	if b.other == "mosquitto" {
		if other, err = startMosquitto(ctx, dir); err != nil {
			return err
		}
		defer other.stop()
	}
	for _, s := range shapes {
		if !strings.Contains(s.name, b.filter) {
			continue
		}
		l := b.load(s)
		x, y, err := b.turns(ctx,
			func(ctx context.Context) (loaded, error) { return l.run(ctx, ours.Addr, ours.cpu) },
			func(ctx context.Context) (loaded, error) { return l.run(ctx, other.Addr, other.cpu) })
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		b.add("peers", s.name+": ours", x.Delivered, "messages/s")
		b.add("peers", s.name+": "+other.Name, y.Delivered, "messages/s")
		b.atLeast("peers", s.name+": ratio", x.Delivered/y.Delivered, s.ratio, "")
		if y.CPU > 0 {
			b.add("peers", s.name+": CPU, ours", x.CPU, "µs a message")
			if s.cpu > 0 {
				b.atMost("peers", s.name+": CPU, ratio", x.CPU/y.CPU, s.cpu, "")
			} else {
				b.add("peers", s.name+": CPU, ratio", x.CPU/y.CPU, "")
			}
		}
	}
	return nil
}

// measureDurable compares what goes through the disk with what does not.
func (b *brokerBench) measureDurable(ctx context.Context, ours *peer) error {
	dir, remove, err := b.folder()
	if err != nil {
		return err
	}
	defer remove()
	bridged, err := startOurs(ctx, dir, siteBridged)
	if err != nil {
		return err
	}
	defer bridged.stop()
	for _, s := range shapes {
		if s.qos != 1 || !strings.Contains(s.name, b.filter) {
			continue
		}
		l := b.load(s)
		kept := l
		kept.Kept = true
		for _, way := range []struct {
			name string
			run  func(context.Context) (loaded, error)
		}{
			{"kept sessions", func(ctx context.Context) (loaded, error) { return kept.run(ctx, ours.Addr, ours.cpu) }},
			{"a bridge", func(ctx context.Context) (loaded, error) { return l.run(ctx, bridged.Addr, bridged.cpu) }},
		} {
			x, y, err := b.turns(ctx, way.run, func(ctx context.Context) (loaded, error) { return l.run(ctx, ours.Addr, ours.cpu) })
			if err != nil {
				return fmt.Errorf("%s, %s: %w", s.name, way.name, err)
			}
			b.add("durable", s.name+" with "+way.name, x.Delivered, "messages/s")
			b.add("durable", s.name+" without", y.Delivered, "messages/s")
			b.atLeast("durable", s.name+" with "+way.name+": ratio", x.Delivered/y.Delivered, 0.5, "")
		}
	}
	return nil
}

// measureStuck compares with a subscriber that reads nothing.
func (b *brokerBench) measureStuck(ctx context.Context, ours *peer) error {
	l := b.load(shape{pubs: 1, subs: 4, qos: 1})
	stuck := l
	stuck.Stuck = 1
	x, y, err := b.turns(ctx,
		func(ctx context.Context) (loaded, error) { return stuck.run(ctx, ours.Addr, ours.cpu) },
		func(ctx context.Context) (loaded, error) { return l.run(ctx, ours.Addr, ours.cpu) })
	if err != nil {
		return err
	}
	b.add("stuck", "1→4 QoS 1", y.Delivered, "messages/s")
	b.atLeast("stuck", "1→4 QoS 1 with a fifth that reads nothing: ratio", x.Delivered/y.Delivered, 0.9, "")
	return nil
}

// measureIdle measures what connections take that do nothing.
func (b *brokerBench) measureIdle(ctx context.Context) error {
	dir, remove, err := b.folder()
	if err != nil {
		return err
	}
	defer remove()
	ours, err := startOurs(ctx, dir, siteAlone)
	if err != nil {
		return err
	}
	defer ours.stop()
	const n = 5000
	before, _ := ours.memory()
	for i := range n {
		c, err := dialMQTT(ctx, ours.Addr, fmt.Sprintf("idle-%d", i), true)
		if err != nil {
			return err
		}
		defer c.Close()
	}
	if err := sleep(ctx, 5*time.Second); err != nil {
		return err
	}
	after, _ := ours.memory()
	b.atMost("idle", fmt.Sprintf("%d connections: resident each", n), float64(after-before)/n/1024, 12, "KiB")
	return nil
}

// measureRetained measures many retained messages.
func (b *brokerBench) measureRetained(ctx context.Context) error {
	dir, remove, err := b.folder()
	if err != nil {
		return err
	}
	defer remove()
	ours, err := startOurs(ctx, dir, siteAlone)
	if err != nil {
		return err
	}
	defer ours.stop()
	const n = 100_000
	idle := func() (float64, error) {
		began, used := time.Now(), ours.cpu()
		err := sleep(ctx, 12*time.Second) // longer than the pause between what is done again and again
		return (ours.cpu() - used).Seconds() / time.Since(began).Seconds() * 100, err
	}
	none, err := idle()
	if err != nil {
		return err
	}
	c, err := dialMQTT(ctx, ours.Addr, "retained", true)
	if err != nil {
		return err
	}
	defer c.Close()
	acked := make(chan error, 1)
	go func() {
		for range n {
			if _, _, err := c.packet(); err != nil {
				acked <- err
				return
			}
		}
		acked <- nil
	}()
	began := time.Now()
	for i := range n {
		topic := fmt.Sprintf("r/%d/%d", i%100, i)
		p := binary.AppendUvarint([]byte{0x33}, uint64(4+len(topic)+messageBytes))
		p = append(append(p, 0, byte(len(topic))), topic...)
		p = binary.BigEndian.AppendUint16(p, uint16(i%65535+1))
		if _, err := c.Write(append(p, make([]byte, messageBytes)...)); err != nil {
			return err
		}
	}
	if err := <-acked; err != nil {
		return err
	}
	b.add("retained", "100,000 published, QoS 1, durable", n/time.Since(began).Seconds(), "messages/s")
	for _, qos := range []byte{0, 1} {
		s, err := dialMQTT(ctx, ours.Addr, fmt.Sprint("subscriber-", qos), true)
		if err != nil {
			return err
		}
		defer s.Close()
		began = time.Now()
		if err := s.subscribe("r/#", qos); err != nil {
			return err
		}
		for got := 0; got < n; got++ {
			first, body, err := s.packet()
			if err != nil {
				return err
			}
			if first>>1&3 == 1 {
				at := 2 + int(binary.BigEndian.Uint16(body))
				if _, err := s.Write([]byte{0x40, 2, body[at], body[at+1]}); err != nil {
					return err
				}
			}
		}
		b.atMost("retained", fmt.Sprintf("100,000 to one subscription, QoS %d", qos), time.Since(began).Seconds(), 1, "s")
	}
	if err := sleep(ctx, 12*time.Second); err != nil { // state.db follows within ten
		return err
	}
	many, err := idle()
	if err != nil {
		return err
	}
	b.add("retained", "CPU of an idle broker, without", none, "%")
	b.atMost("retained", "CPU of an idle broker, with 100,000 retained: more", many-none, 1, "%")
	return nil
}

func brokerCommand() *cobra.Command {
	b := &brokerBench{}
	var parts []string
	var asJSON bool
	all := []string{"peers", "durable", "stuck", "idle", "retained"}
	cmd := &cobra.Command{
		Use:   "broker",
		Short: "Measure the local broker against another one",
		Long: `broker starts Fieldferry's broker, and Mosquitto if it is installed, each in a
process of its own, and puts the same loads on both in turns: 1→1, 50→1 and
1→100 clients of MQTT 3.1.1 with QoS 0 to 2 and 200 bytes, pipelining, messages
delivered counted. CPU is the broker's, for each message that was delivered.

The parts: peers (rates and CPU against the other broker), durable (what goes
through the disk, for kept sessions and for a bridge that is cut, against what does
not), stuck (a subscriber that reads nothing), idle (memory of 5,000 connections),
retained (100,000 messages).`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			b.out = cmd.ErrOrStderr()
			if b.dir == "" {
				b.dir = os.TempDir()
			}
			if abs, err := filepath.Abs(b.dir); err == nil {
				b.dir = abs
			}
			for _, p := range parts {
				if !slices.Contains(all, p) {
					return usageError{fmt.Errorf("there is no part %q: use some of %s", p, strings.Join(all, ", "))}
				}
			}
			if err := b.begin(); err != nil {
				return err
			}
			dir, remove, err := b.folder()
			if err != nil {
				return err
			}
			defer remove()
			ours, err := startOurs(ctx, dir, siteAlone)
			if err != nil {
				return err
			}
			defer ours.stop()
			measure := map[string]func() error{
				"peers":    func() error { return b.measurePeers(ctx, ours) },
				"durable":  func() error { return b.measureDurable(ctx, ours) },
				"stuck":    func() error { return b.measureStuck(ctx, ours) },
				"idle":     func() error { return b.measureIdle(ctx) },
				"retained": func() error { return b.measureRetained(ctx) },
			}
			for _, p := range all {
				if len(parts) > 0 && !slices.Contains(parts, p) {
					continue
				}
				if err := measure[p](); err != nil {
					return fmt.Errorf("%s: %w", p, err)
				}
			}
			return b.end(cmd.OutOrStdout(), asJSON)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&parts, "part", nil, "the parts to measure; all if it is not given")
	f.StringVar(&b.filter, "only", "", "measure only the loads whose name has this in it, such as \"QoS 1\"")
	f.StringVar(&b.other, "peer", "mosquitto", "the broker to compare with: mosquitto, which is started, or the HOST:PORT of one that runs")
	f.IntVar(&b.rounds, "rounds", 3, "how often the two take turns; the medians count")
	f.DurationVar(&b.each, "each", 2*time.Second, "how long each turn lasts")
	f.StringVar(&b.dir, "dir", "", "folder on the disk to measure on; the temporary one if it is not given")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
