package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/fieldferry/fieldferry/adapters/simulate"
	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/gateway"
	"github.com/fieldferry/fieldferry/gateway/config"
	"github.com/fieldferry/fieldferry/localbroker"
)

func demoCommand() *cobra.Command {
	var length time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the whole way on this machine, with nothing installed",
		Long: `demo simulates Modbus devices, one of them dead and one slow, runs a gateway on
them, and an upstream broker behind a line that is cut and mended again. It ends
with the ledger: what was accepted, and what a subscriber of the upstream has
received. It exits with 1 if anything was lost.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if length < 2*time.Second {
				return usageError{fmt.Errorf("--for %s is too short to show an outage; give it 2s or more", length)}
			}
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			return demo(ctx, length, asJSON, cmd.OutOrStdout())
		},
	}
	cmd.Flags().DurationVar(&length, "for", 30*time.Second, "how long")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print only the figures at the end, as JSON")
	return cmd
}

// demoResult is the demo's figures. Delivered, Lost and Duplicates are counted at the
// upstream's subscriber, the others by the gateway.
type demoResult struct {
	Polled     uint64            `json:"polled"` // readings that the adapters brought
	Accepted   uint64            `json:"accepted"`
	Delivered  uint64            `json:"delivered"`
	Stored     uint64            `json:"stored"`
	Parked     uint64            `json:"parked"`
	Uncertain  uint64            `json:"uncertain"`
	Dropped    map[string]uint64 `json:"dropped"`
	Lost       uint64            `json:"lost"`
	Duplicates uint64            `json:"duplicates"`
	Outages    int               `json:"outages"`
}

// demoSite is the demo's site file; the addresses and the data folder are filled
// in.
const demoSite = `
gateway: {id: demo-gateway, org: demo, site: here, zone: hall-1, data_dir: %q}
broker:
  listeners: [{name: plain, listen: "127.0.0.1:0"}]
profiles:
  meter:
    type: energy-meter
    every: 100ms
    points:
      voltage: {input: 0, as: float32, unit: V, decimals: 1}
      current: {input: 2, as: float32, unit: A, decimals: 2}
      power:   {input: 4, as: float32, unit: W, decimals: 0}
      state:   {holding: 0, as: uint16, enum: {0: "off", 1: "on"}}
      energy:  {holding: 10, as: uint32, unit: Wh, every: 1s}
adapters:
  line:
    modbus: %q
    timeout: 100ms
    devices:
      "em-{01..10}": {unit_id: "{1..10}", profile: meter}
bridges:
  cloud:
    upstream: [%q]
    backoff: {first: 200ms, max: 1s}
buffer: {max_bytes: 256MiB, min_free: 16MiB, linger: 50ms}
`

const (
	demoUnits = 10
	demoSlow  = 9  // answers late
	demoDead  = 10 // never answers
)

// demoRig is everything the demo runs.
type demoRig struct {
	field    *simulate.Server
	upstream *localbroker.Broker
	cable    *cable
	gateway  *gateway.Gateway
	cloud    *recorder

	outages int
	cutAt   time.Time // zero while the line is whole
}

func demo(ctx context.Context, length time.Duration, asJSON bool, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "fieldferry-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// The parts outlive ctx: Ctrl-C ends the demo early, but with its ledger.
	parts, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	group, parts := errgroup.WithContext(parts)
	defer func() {
		end()
		err = errors.Join(err, group.Wait())
	}()
	rig, err := openDemo(parts, group, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rig.cloud.Close()) }()
	gatewayCtx, stopGateway := context.WithCancel(parts)
	gatewayDone := make(chan error, 1)
	go func() { gatewayDone <- rig.gateway.Run(gatewayCtx) }()
	stopped := false
	defer func() {
		stopGateway()
		if !stopped {
			err = errors.Join(err, <-gatewayDone)
		}
		err = errors.Join(err, rig.gateway.Close())
	}()

	view := newDemoView(out, asJSON, length)
	began := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for elapsed := time.Duration(0); elapsed < length && ctx.Err() == nil; elapsed = time.Since(began) {
		select {
		case <-ctx.Done():
		case <-tick.C:
		case err := <-gatewayDone:
			stopped = true
			return errors.Join(errors.New("the gateway ended before its time"), err)
		}
		rig.setCut(demoCut(elapsed, length))
		view.show(rig, elapsed)
	}
	rig.setCut(false)
	rig.gateway.StopLinks()
	rig.drain(view, began)
	result := rig.result()
	l := rig.gateway.Buffer().Stats().Ledger
	view.end(result, l)
	if result.Lost > 0 || result.Stored > 0 || l.Difference() != 0 {
		return errNo
	}
	return nil
}

// demoCut says when the line is cut: for three seconds of every ten, or for a
// third of a shorter demo.
func demoCut(elapsed, length time.Duration) bool {
	period := min(length, 10*time.Second)
	at := elapsed % period
	return at >= 3*period/10 && at < 6*period/10
}

func openDemo(ctx context.Context, group *errgroup.Group, dir string) (*demoRig, error) {
	rig := &demoRig{field: simulate.New()}
	for id := uint8(1); id <= demoUnits; id++ {
		simulateMeter(rig.field.Unit(id), id)
	}
	if err := rig.field.Open("127.0.0.1:0"); err != nil {
		return nil, err
	}
	group.Go(func() error { return rig.field.Run(ctx) })

	rig.upstream = localbroker.New(localbroker.Options{
		Listeners: []localbroker.Listener{{Name: "upstream", Addr: "127.0.0.1:0", AllowAnonymous: true}},
	})
	if err := rig.upstream.Listen(); err != nil {
		return nil, err
	}
	group.Go(func() error { return rig.upstream.Run(ctx) })
	address := rig.upstream.Addr("upstream").String()

	var err error
	if rig.cable, err = newCable(address); err != nil {
		return nil, err
	}
	group.Go(func() error { return rig.cable.run(ctx) })

	if rig.cloud, err = newRecorder(ctx, address, "#"); err != nil {
		return nil, err
	}
	site := fmt.Sprintf(demoSite, filepath.Join(dir, "data"), "tcp://"+rig.field.Addr().String(), "mqtt://"+rig.cable.addr())
	c, problems := config.Parse("demo.yaml", []byte(site), config.Options{})
	if c == nil {
		return nil, fmt.Errorf("the demo's site file: %v", problems)
	}
	rig.gateway, err = gateway.Open(c, gateway.Options{Logger: slog.New(slog.DiscardHandler)})
	return rig, err
}

// simulateMeter makes a unit a meter with values that move.
func simulateMeter(u *simulate.Unit, id uint8) {
	period := time.Duration(5+id) * time.Second
	voltage, current := simulate.Sine(228, 232, period), simulate.Sine(2, 16, 2*period)
	u.Drive(simulate.Input, 0, simulate.Float32(), voltage)
	u.Drive(simulate.Input, 2, simulate.Float32(), current)
	u.Drive(simulate.Input, 4, simulate.Float32(), func(t time.Duration, reads uint64) float64 { return voltage(t, reads) * current(t, reads) })
	u.Switch(simulate.Holding, 0, simulate.Blink(period))
	u.Drive(simulate.Holding, 10, simulate.Int32(), func(t time.Duration, _ uint64) float64 {
		return math.Floor(1000*float64(id) + t.Seconds()*0.6)
	})
	switch id {
	case demoSlow:
		u.SetFault(simulate.Fault{Delay: 40 * time.Millisecond})
	case demoDead:
		u.SetFault(simulate.Fault{Dead: true})
	}
}

// setCut cuts or mends the line, and counts the outages that the bridge has seen.
func (r *demoRig) setCut(cut bool) {
	if cut == r.cutAt.IsZero() {
		r.cable.set(cut)
		r.cutAt = time.Time{}
		if cut {
			r.cutAt = time.Now()
			for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
				if !r.gateway.Bridges()[0].Connected {
					r.outages++
					break
				}
			}
		}
	}
}

// drain waits until the buffer is empty and the subscriber has everything, or
// nothing comes any more.
func (r *demoRig) drain(view *demoView, began time.Time) {
	deadline := time.Now().Add(15 * time.Second)
	for time.Now().Before(deadline) {
		l := r.ledger()
		if l.Stored == 0 && r.cloud.Distinct() >= l.Delivered {
			return
		}
		view.show(r, time.Since(began))
		time.Sleep(20 * time.Millisecond)
	}
}

func (r *demoRig) ledger() buffer.Ledger { return r.gateway.Bridges()[0].Ledger }

func (r *demoRig) result() demoResult {
	l := r.ledger()
	res := demoResult{
		Polled: r.gateway.Readings(), Accepted: l.Accepted, Delivered: r.cloud.Distinct(), Duplicates: r.cloud.Duplicates(),
		Stored: l.Stored, Parked: l.Parked, Uncertain: l.Uncertain, Dropped: l.Dropped, Outages: r.outages,
	}
	if res.Dropped == nil {
		res.Dropped = map[string]uint64{} // {} in JSON, not null
	}
	accounted := res.Delivered + res.Stored + res.Parked + res.Uncertain
	for _, n := range res.Dropped {
		accounted += n
	}
	// What the gateway has accepted and nobody can account for, and what is
	// missing between the numbers that did arrive.
	if res.Accepted > accounted {
		res.Lost = res.Accepted - accounted
	}
	res.Lost = max(res.Lost, r.cloud.Missing())
	return res
}
