package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/fieldferry/fieldferry/adapters/simulate"
	"github.com/fieldferry/fieldferry/localbroker/client"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// The rig: so many devices with so many points each, every one a float32.
const (
	benchDevices = 50
	benchPoints  = 500
)

// modbusBench is one run over rates and forms of messages.
type modbusBench struct {
	bench
	window time.Duration
}

func modbusCommand() *cobra.Command {
	b := &modbusBench{}
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "modbus",
		Short: "Measure the reading of 50 Modbus devices with 500 values each",
		Long: `modbus simulates 50 devices with 500 float32 each, in a process of their own, and has a
gateway read them: each second with a message a device, each second with a message a
value, and ten times a second. A subscriber with a session that is kept counts what
arrives; processor time and memory are the gateway's alone.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b.out = cmd.ErrOrStderr()
			remove, err := b.beginIn(b.dir)
			if err != nil {
				return err
			}
			defer remove()
			for _, c := range []struct {
				name     string
				every    time.Duration
				perPoint bool
			}{{"a message a device, each second", time.Second, false}, {"a message a value, each second", time.Second, true}, {"a message a device, each 100 ms", 100 * time.Millisecond, false}} {
				if err := b.measure(cmd.Context(), c.name, c.every, c.perPoint); err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
			}
			return b.end(cmd.OutOrStdout(), asJSON)
		},
	}
	cmd.Flags().StringVar(&b.dir, "dir", "", "a `FOLDER` on the disk to measure (default: the system's temporary folder)")
	cmd.Flags().DurationVar(&b.window, "for", 20*time.Second, "how long each is measured")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.AddCommand(fieldCommand())
	return cmd
}

// fieldCommand serves the devices and prints their addresses.
func fieldCommand() *cobra.Command {
	return &cobra.Command{
		Use: "field", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			group, ctx := errgroup.WithContext(cmd.Context())
			var addresses []string
			for range benchDevices {
				s := simulate.New()
				u := s.Unit(1)
				for i := range benchPoints {
					u.Drive(simulate.Holding, uint16(2*i), simulate.Float32(), simulate.Ramp(0, 1000, time.Duration(i+1)*time.Second))
				}
				if err := s.Open("127.0.0.1:0"); err != nil {
					return err
				}
				addresses = append(addresses, s.Addr().String())
				group.Go(func() error { return s.Run(ctx) })
			}
			if err := json.NewEncoder(cmd.OutOrStdout()).Encode(addresses); err != nil {
				return err
			}
			return group.Wait()
		},
	}
}

// startField starts the devices in a process of their own.
func startField(ctx context.Context) (addresses []string, stop func() error, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, self, "modbus", "field")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, nil, err
	}
	stop = func() error {
		cancel()
		_ = cmd.Wait() // it was killed
		return nil
	}
	if err := json.NewDecoder(out).Decode(&addresses); err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	return addresses, stop, nil
}

// modbusSite is the site file; the first %s is for startOurs.
func modbusSite(addresses []string, every time.Duration, per string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "gateway: {id: bench-gateway}\nbroker:\n  listeners: [{name: plain, listen: \"%%s\"}]\n  limits: {queued_messages: 10000000, queued_bytes: 1GiB}\npayload: {per: %s}\n", per)
	fmt.Fprintf(&b, "profiles:\n  meter:\n    every: %s\n    points:\n      \"p-{1..%d}\": {holding: 0, as: float32}\n", every, benchPoints)
	b.WriteString("adapters:\n  field:\n    modbus: tcp\n    timeout: 2s\n    devices:\n")
	for i, a := range addresses {
		fmt.Fprintf(&b, "      dev-%d: {at: %q, unit_id: 1, profile: meter}\n", i, a)
	}
	return b.String()
}

func (b *modbusBench) measure(ctx context.Context, name string, every time.Duration, perPoint bool) (err error) {
	addresses, stopField, err := startField(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopField()) }()
	dir, remove, err := b.folder()
	if err != nil {
		return err
	}
	defer remove()
	per, messages := "device", float64(benchDevices)
	if perPoint {
		per, messages = "point", benchDevices*benchPoints
	}
	g, err := startOurs(ctx, dir, modbusSite(addresses, every, per))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.stop()) }()
	var received atomic.Int64
	c, err := client.Connect(ctx, client.Options{
		Address: g.Addr, ClientID: "bench", SessionExpiry: time.Hour, Handler: func(*client.Message) { received.Add(1) },
	})
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Subscribe(ctx, packet.Subscription{Filter: "devices/+/telemetry/#", QoS: 1}); err != nil {
		return err
	}
	const settle = 3 * time.Second // connections and first polls
	if err := pass(ctx, settle); err != nil {
		return err
	}
	before, cpu, began := received.Load(), g.cpu(), time.Now()
	if err := pass(ctx, b.window); err != nil {
		return err
	}
	n, took := float64(received.Load()-before), time.Since(began)
	cpu = g.cpu() - cpu
	_, anonymous := g.memory()
	expected := messages * took.Seconds() / every.Seconds()
	b.add("modbus", name+": values", n/took.Seconds()*benchDevices*benchPoints/messages, "a second")
	b.atLeast("modbus", name+": arrived, of what was due", n/expected, 0.99, "")
	b.add("modbus", name+": processor", cpu.Seconds()/took.Seconds(), "cores")
	b.add("modbus", name+": memory, RssAnon", float64(anonymous)/(1<<20), "MiB")
	return nil
}

// pass lets time pass.
func pass(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
