package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/serial"
	"github.com/fieldferry/fieldferry/adapters/serial/port"
	"github.com/fieldferry/fieldferry/adapters/simulate"
	"github.com/fieldferry/fieldferry/localbroker/client"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// The line: back to back, as a port's FIFO of 16 bytes hands it over.
const (
	benchBaud   = 115200
	benchPiece  = 16
	benchMatch  = `^N(?P<n>\d{8}) (?P<v>[ 0-9.]{6})$`
	benchPerSec = benchBaud / 10
)

// serialBench is one run.
type serialBench struct {
	bench
	window time.Duration
}

func serialCommand() *cobra.Command {
	b := &serialBench{}
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "serial",
		Short: "Measure the reading of a serial line that never pauses",
		Long: `serial sends lines of 18 bytes back to back over a pseudo terminal, at 115,200 baud in
pieces of 16 bytes, and has them read by the adapter alone and by a whole gateway, each
in a process of its own. Each line has a number, so that a lost one is noticed. It also
measures what the adapter takes while the port is away.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b.out = cmd.ErrOrStderr()
			remove, err := b.beginIn(b.dir)
			if err != nil {
				return err
			}
			defer remove()
			if err := b.adapter(cmd.Context()); err != nil {
				return err
			}
			if err := b.gateway(cmd.Context()); err != nil {
				return err
			}
			return b.end(cmd.OutOrStdout(), asJSON)
		},
	}
	cmd.Flags().StringVar(&b.dir, "dir", "", "a `FOLDER` on the disk to measure (default: the system's temporary folder)")
	cmd.Flags().DurationVar(&b.window, "for", 20*time.Second, "how long each is measured")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.AddCommand(listenCommand())
	return cmd
}

// stream sends lines until ctx ends, as fast as the line has them.
func stream(ctx context.Context, p *simulate.PTY) {
	var pending []byte
	began, sent, n := time.Now(), 0, 0
	for tick := time.NewTicker(time.Millisecond); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
		due := int(time.Since(began).Seconds() * benchPerSec)
		for ; sent+benchPiece <= due; sent += benchPiece {
			for len(pending) < benchPiece {
				n++
				pending = fmt.Appendf(pending, "N%08d %6.2f\r\n", n%100_000_000, float64(n%10000)/100)
			}
			if _, err := p.Write(pending[:benchPiece]); err != nil {
				return
			}
			pending = pending[benchPiece:]
		}
	}
}

// plugIn makes a port that streams.
func (b *serialBench) plugIn(ctx context.Context) (path string, unplug func() error, err error) {
	p, err := simulate.OpenPTY()
	if err != nil {
		return "", nil, err
	}
	path = filepath.Join(b.dir, "port")
	if err := os.Symlink(p.Path, path); err != nil {
		return "", nil, errors.Join(err, p.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		stream(ctx, p)
	}()
	return path, func() error {
		cancel()
		err := errors.Join(os.Remove(path), p.Close())
		<-done
		return err
	}, nil
}

// listened is what the process with the adapter prints.
type listened struct {
	Seconds  float64 `json:"seconds"`
	CPU      float64 `json:"cpu"` // seconds
	Messages int64   `json:"messages"`
	Lost     int64   `json:"lost"`
}

// counter is a sink that counts lines and those that are missing.
type counter struct{ messages, lost, last atomic.Int64 }

func (c *counter) Emit(_ context.Context, r adapters.Reading) error {
	if s := &r.Samples[0]; s.Quality == adapters.Good {
		c.take(s.Value.Int64())
	}
	return nil
}

func (c *counter) take(n int64) {
	if last := c.last.Swap(n); last > 0 {
		c.lost.Add(n - last - 1)
	}
	c.messages.Add(1)
}

func (c *counter) Status(context.Context, adapters.Status) error { return nil }

// listenCommand reads a line, and prints what it took, then again what it takes while
// the line is away.
func listenCommand() *cobra.Command {
	var window time.Duration
	cmd := &cobra.Command{
		Use: "listen PORT", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			at := func(name, field string, as serial.Type) serial.Point {
				return serial.Point{Point: &adapters.Point{Name: name}, Field: field, Type: as}
			}
			link, err := serial.New(serial.Config{
				Name: "line", Port: args[0], Line: port.Settings{Baud: benchBaud, DataBits: 8, Parity: "none", StopBits: 1},
				Devices: []serial.Device{{
					Device: &adapters.Device{Name: "d"}, Frame: serial.Frame{End: []byte("\r\n")}, Match: regexp.MustCompile(benchMatch),
					Points: []serial.Point{at("n", "n", serial.Int64), at("v", "v", serial.Float64)},
				}},
			})
			if err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			c := &counter{}
			done := make(chan error, 1)
			go func() { done <- link.Run(ctx, c) }()
			for _, plugged := range []bool{true, false} {
				for link.Stats().Connected != plugged {
					if err := pass(ctx, 10*time.Millisecond); err != nil {
						return err
					}
				}
				if err := pass(ctx, time.Second); err != nil {
					return err
				}
				out := listened{Messages: -c.messages.Load(), Lost: -c.lost.Load()}
				cpu, began := processTime(), time.Now()
				if err := pass(ctx, window); err != nil {
					return err
				}
				out.CPU, out.Seconds = (processTime() - cpu).Seconds(), time.Since(began).Seconds()
				out.Messages += c.messages.Load()
				out.Lost += c.lost.Load()
				if err := json.NewEncoder(cmd.OutOrStdout()).Encode(out); err != nil {
					return err
				}
			}
			cancel()
			return <-done
		},
	}
	cmd.Flags().DurationVar(&window, "for", 10*time.Second, "")
	return cmd
}

func (b *serialBench) adapter(ctx context.Context) (err error) {
	path, unplug, err := b.plugIn(ctx)
	if err != nil {
		return err
	}
	plugged := true
	defer func() {
		if plugged {
			err = errors.Join(err, unplug())
		}
	}()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, "serial", "listen", path, "--for", b.window.String())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return err
	}
	var streaming, away listened
	d := json.NewDecoder(out)
	err = d.Decode(&streaming)
	if err == nil {
		plugged = false
		err = unplug()
	}
	if err == nil {
		err = d.Decode(&away)
	}
	if err = errors.Join(err, cmd.Wait()); err != nil {
		return err
	}
	b.add("serial", "the adapter alone: lines", float64(streaming.Messages)/streaming.Seconds, "a second")
	b.atMost("serial", "the adapter alone: lost", float64(streaming.Lost), 0, "lines")
	b.atMost("serial", "the adapter alone: processor", streaming.CPU/streaming.Seconds, 0.03, "cores")
	b.atMost("serial", "the adapter while the port is away: processor", away.CPU/away.Seconds, 0.005, "cores")
	return nil
}

// gateway measures the whole way to a subscriber.
func (b *serialBench) gateway(ctx context.Context) (err error) {
	path, unplug, err := b.plugIn(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unplug()) }()
	dir, remove, err := b.folder()
	if err != nil {
		return err
	}
	defer remove()
	site := fmt.Sprintf(`gateway: {id: bench-gateway}
broker:
  listeners: [{name: plain, listen: "%%s"}]
  limits: {queued_messages: 10000000, queued_bytes: 1GiB}
commands: {enabled: false}
adapters:
  line:
    serial: %s
    line: {baud: %d}
    devices:
      d: {frame: {end: "\r\n"}, match: '%s', points: {n: {field: n, as: int64}, v: {field: v, as: float64}}}
`, path, benchBaud, benchMatch)
	g, err := startOurs(ctx, dir, site)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.stop()) }()
	counts := &counter{}
	c, err := client.Connect(ctx, client.Options{Address: g.Addr, ClientID: "bench", SessionExpiry: time.Hour, Handler: func(m *client.Message) {
		var v struct{ N int64 }
		if json.Unmarshal(m.Payload, &v) == nil {
			counts.take(v.N)
		}
	}})
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Subscribe(ctx, packet.Subscription{Filter: "devices/+/telemetry", QoS: 1}); err != nil {
		return err
	}
	if err := pass(ctx, 2*time.Second); err != nil {
		return err
	}
	n, lost, cpu, began := counts.messages.Load(), counts.lost.Load(), g.cpu(), time.Now()
	if err := pass(ctx, b.window); err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	b.add("serial", "a whole gateway: lines at a subscriber", float64(counts.messages.Load()-n)/took, "a second")
	b.atMost("serial", "a whole gateway: lost", float64(counts.lost.Load()-lost), 0, "lines")
	b.add("serial", "a whole gateway: processor", (g.cpu()-cpu).Seconds()/took, "cores")
	return nil
}
