// Package gateway builds a gateway from a site file: it opens the buffer, the
// local broker, the bridges and the adapters' links, wires them to each other, and
// runs and stops them in order. It is the only package, beside the commands, that
// knows them all.
//
// A reading goes from a link through the field, which makes it a message, into
// the broker; the router says which bridges carry it; the buffer makes it durable
// with a copy for each; then local subscribers get it, and the bridges send their
// copies.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/bridge"
	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/buffer/log"
	"github.com/fieldferry/fieldferry/gateway/config"
	"github.com/fieldferry/fieldferry/gateway/health"
	"github.com/fieldferry/fieldferry/localbroker"
)

// Options of a gateway; the zero value works.
type Options struct {
	Logger  *slog.Logger // nil discards
	Clock   log.Clock    // what is known of time.Now; nil is the machine's
	Version string       // of the program, as in $SYS
}

// Gateway is a gateway that is open: its data folder is in use and its listeners
// are bound.
type Gateway struct {
	config  *config.Config
	log     *slog.Logger
	clock   log.Clock
	buffer  *buffer.Buffer
	version string
	state   *localbroker.State
	broker  *localbroker.Broker
	bridges []*upstream
	alarms  *alarms
	command *commands
	field   *field
	links   []adapters.Link
	canary  *canary
	health  *health.Checker
	control *web // nil if there is none
	http    *web // nil if there is none
	started time.Time
	pid     int

	stopLinks chan struct{} // closed by StopLinks
	linksOnce sync.Once
}

// Open builds a gateway from a site file that is good. Parts of the file that
// this version does not have yet are errors; see Unsupported.
func Open(c *config.Config, o Options) (*Gateway, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = log.SystemClock{}
	}
	if missing := append(Unsupported(c), alarmProblems(c)...); len(missing) > 0 {
		return nil, join(missing)
	}
	g := &Gateway{config: c, log: o.Logger, clock: o.Clock, version: o.Version, started: time.Now().UTC(), pid: os.Getpid(), stopLinks: make(chan struct{})}
	if err := g.open(); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

func (g *Gateway) open() (err error) {
	c := g.config
	guard, problems := newGuard(c)
	if guard == nil {
		return join(problems)
	}
	for _, p := range problems {
		g.log.Warn(p.Text, "file", p.File, "line", p.Line)
	}
	o := bufferOptions(&c.Buffer, g.log.With("part", "buffer"))
	o.Clock = g.clock
	if g.buffer, err = buffer.Open(filepath.Join(c.Gateway.DataDir, "buffer"), o); err != nil {
		return dataDirError(c, err)
	}
	if err := forgetTaken(c, g.buffer); err != nil {
		return dataDirError(c, err)
	}
	var routes router
	for i := range c.Bridges {
		u, err := openUpstream(c, &c.Bridges[i], g.buffer, g.log)
		if err != nil {
			return fmt.Errorf("bridge %s: %w", c.Bridges[i].Name, err)
		}
		g.bridges = append(g.bridges, u)
		routes = append(routes, u.mapper)
	}
	brokerLog := g.log.With("part", "broker")
	if g.state, err = localbroker.OpenState(filepath.Join(c.Gateway.DataDir, "state.db"), g.buffer, brokerLog); err != nil {
		return dataDirError(c, err)
	}
	if g.command, err = openCommands(c, g.buffer, g.bridges, g.log.With("part", "commands")); err != nil {
		return dataDirError(c, err)
	}
	options := brokerOptions(&c.Broker, commandRouter{routes, g.command}, g.buffer, g.state, brokerLog)
	options.Version = g.version
	var listeners []certLook
	if options.Listeners, listeners, err = openListeners(&c.Broker, brokerLog); err != nil {
		return err
	}
	if guard.guards() {
		options.Access = guard
	}
	g.broker = localbroker.New(options)
	if g.command != nil {
		g.command.broker = g.broker
		if guard.guards() {
			g.command.recall = guard.Recall
		}
	}
	for _, u := range g.bridges {
		u.publish = g.broker.Publish
	}
	if g.alarms, err = newAlarms(c, g.buffer, g.broker, g.clock, g.log.With("part", "alarms")); err != nil {
		return err
	}
	g.alarms.watch(g.bridges)
	g.alarms.certs = append(g.alarms.certs, listeners...)
	g.field = newField(g.broker, g.buffer, &c.Payload, g.log.With("part", "field"))
	if g.command != nil {
		g.command.last = g.field.last
	}
	if g.links, err = openLinks(c, g.field, g.command, g.log); err != nil {
		return err
	}
	g.alarms.certs = append(g.alarms.certs, linkCertificates(g.links)...)
	if g.field.memory, err = openAlerts(filepath.Join(c.Gateway.DataDir, "alerts.db"), g.field.order, g.log.With("part", "alerts")); err != nil {
		return dataDirError(c, err)
	}
	if err := listen(g.broker, c); err != nil {
		return err
	}
	return g.openHealth()
}

// openHealth makes what tells others how the gateway stands.
func (g *Gateway) openHealth() (err error) {
	if g.canary, err = openCanary(g.buffer, g.broker); err != nil {
		return err
	}
	g.health = g.newHealth()
	control, failed := g.openControl()
	if failed != nil { // the gateway does its work without
		g.log.Warn("`fieldferry status` will not reach this gateway", "err", failed)
	}
	g.control = control
	if g.config.HTTP != nil {
		g.http, err = g.openHTTP(g.config.HTTP)
	}
	return err
}

// join makes problems an error, one a line.
func join(problems []config.Problem) error {
	errs := make([]error, len(problems))
	for i, p := range problems {
		errs[i] = errors.New(p.String())
	}
	return errors.Join(errs...)
}

// dataDirError says what to do about a data folder that cannot be used.
func dataDirError(c *config.Config, err error) error {
	where := "gateway.data_dir"
	if pos, there := c.Position("gateway", "data_dir"); there {
		where = pos.String() + ": " + where
	}
	hint := ""
	switch {
	case errors.Is(err, fs.ErrPermission):
		hint = "; the user that the gateway runs as must own the folder: chown it, or set another one"
	case errors.Is(err, syscall.ENOTDIR):
		hint = "; there is a file of that name: remove it, or set another folder"
	case errors.Is(err, syscall.EROFS):
		hint = "; that disk cannot be written: set a folder on another one"
	case errors.Is(err, syscall.ENOSPC):
		hint = "; make room on that disk, or set a folder on another one"
	}
	return fmt.Errorf("%s %s: %w%s", where, c.Gateway.DataDir, err, hint)
}

// Run runs the gateway until ctx ends. It stops the links first, so that what
// they read last still goes through the broker into the buffer, then the broker,
// then the bridges. A part that fails stops the others, and is the error.
func (g *Gateway) Run(ctx context.Context) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	bridges := newStage(ctx, fail)
	for _, u := range g.bridges {
		bridges.run("bridge "+u.name, u.run)
		bridges.run("certificates of bridge "+u.name, func(ctx context.Context) error { return u.way.run(ctx, u.current) })
	}
	state := newStage(ctx, fail)
	state.run("broker state", g.state.Run)
	broker := newStage(ctx, fail)
	broker.run("broker", g.broker.Run)
	broker.run("alarms", g.alarms.Run)
	asked := newStage(ctx, fail)
	for _, w := range []*web{g.control, g.http} {
		if w != nil {
			asked.run("http", w.run)
		}
	}
	links := newStage(ctx, fail)
	commands := newStage(ctx, fail)
	if g.command != nil {
		commands.run("commands", g.command.Run)
	}
	for _, l := range g.links {
		links.run("adapter "+l.String(), func(ctx context.Context) error { return l.Run(ctx, g.field) })
	}
	g.log.Info("gateway runs", "id", g.config.Gateway.ID, "links", len(g.links), "bridges", len(g.bridges))
	select {
	case <-ctx.Done():
	case <-g.stopLinks:
		commands.stop()
		links.stop()
		<-ctx.Done()
	}
	g.log.Info("gateway stops")
	for _, s := range []*stage{asked, commands, links, broker, state, bridges} {
		s.stop()
	}
	var failed *partError
	if errors.As(context.Cause(ctx), &failed) {
		return failed
	}
	return nil
}

// StopLinks ends the reading of devices; everything else goes on, so that what
// the buffer holds can drain before Run is ended.
func (g *Gateway) StopLinks() { g.linksOnce.Do(func() { close(g.stopLinks) }) }

// Close closes what Open has opened, and makes all that the buffer knows
// durable. Run must have returned.
func (g *Gateway) Close() error {
	var errs []error
	g.control.close()
	g.http.close()
	g.canary.close()
	for _, u := range g.bridges {
		u.close()
	}
	if g.field != nil {
		errs = append(errs, g.field.memory.close())
	}
	errs = append(errs, g.command.close())
	if g.state != nil {
		errs = append(errs, g.state.Close())
	}
	if g.buffer != nil {
		errs = append(errs, g.buffer.Close())
	}
	return errors.Join(errs...)
}

// Buffer is the gateway's.
func (g *Gateway) Buffer() *buffer.Buffer { return g.buffer }

// Broker is the gateway's.
func (g *Gateway) Broker() *localbroker.Broker { return g.broker }

// Bridges are how the bridges stand, in the order of the site file.
func (g *Gateway) Bridges() []BridgeStatus {
	all := make([]BridgeStatus, len(g.bridges))
	for i, u := range g.bridges {
		all[i] = BridgeStatus{Name: u.name, Status: u.status(), Ledger: u.ledger()}
	}
	return all
}

// BridgeStatus is how a bridge stands.
type BridgeStatus struct {
	Name string
	bridge.Status
	Ledger buffer.Ledger
}

// Devices are how the polled devices stand, in the order of the site file.
func (g *Gateway) Devices() []DeviceStatus { return g.field.devices() }

// Readings is how many readings the links have brought.
func (g *Gateway) Readings() uint64 { return g.field.readings.Load() }
