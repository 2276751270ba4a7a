package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/fieldferry/fieldferry/bridge"
	"github.com/fieldferry/fieldferry/buffer"
)

// connection is one of those that a bridge spreads its devices over: a session of its
// own, with outboxes of its own.
type connection struct {
	number   int // from 0
	outboxes bridge.Outboxes
	reader   *buffer.Reader
	bridge   *bridge.Bridge
}

// spread is how a bridge's devices are or were spread: the outboxes of all its
// connections. Their names say it, so that it is known again after a restart.
type spread struct {
	generation  int // grows with each change of how many there are
	connections []bridge.Outboxes
}

// outboxName is K, K-of-N where there are several, with @G after the G-th change.
var outboxName = regexp.MustCompile(`^(\d{1,3})(?:-of-(\d{1,3}))?(?:@(\d{1,9}))?(?:/replay)?$`)

func spreadName(base string, k, of, generation int) string {
	name := base + strconv.Itoa(k)
	if of > 1 {
		name += "-of-" + strconv.Itoa(of)
	}
	if generation > 0 {
		name += "@" + strconv.Itoa(generation)
	}
	return name
}

// openSpreads finds how a bridge is spread, and how it was when something is still
// stored from then; the last one is how it is. Base is how the names of its outboxes
// begin.
//
// The number of connections changes only when there is nothing left from before the last
// change: otherwise a device's messages would stand in three places, and who goes first
// would have to be known of each. A change that has to wait for that is waiting.
func openSpreads(buf *buffer.Buffer, base string, connections int) (all []spread, waiting bool, err error) {
	found := make(map[int]int) // connections, by generation
	for _, o := range buf.Outboxes() {
		if len(o.Name()) < len(base) || o.Name()[:len(base)] != base {
			continue
		}
		if m := outboxName.FindStringSubmatch(o.Name()[len(base):]); m != nil {
			of, generation := 1, 0
			if m[2] != "" {
				of, _ = strconv.Atoi(m[2])
			}
			if m[3] != "" {
				generation, _ = strconv.Atoi(m[3])
			}
			found[generation] = of
		}
	}
	for _, g := range slices.Sorted(maps.Keys(found)) {
		s, err := openSpread(buf, base, found[g], g)
		if err != nil {
			return nil, false, err
		}
		all = append(all, s)
	}
	// What has drained goes, but for the last.
	for i := 0; i < len(all)-1; {
		if !all[i].empty() {
			i++
			continue
		}
		if err := all[i].handOver(all[len(all)-1]); err != nil {
			return nil, false, err
		}
		if err := all[i].remove(buf); err != nil {
			return nil, false, err
		}
		all = slices.Delete(all, i, i+1)
	}
	switch {
	case len(all) > 0 && len(all[len(all)-1].connections) == connections:
		return all, false, nil
	case len(all) > 1:
		return all, true, nil
	}
	generation := 0
	if len(all) > 0 {
		generation = all[0].generation + 1
	}
	s, err := openSpread(buf, base, connections, generation)
	if err != nil {
		return nil, false, err
	}
	if len(all) == 0 {
		return []spread{s}, false, nil
	}
	old := all[0]
	if !old.empty() {
		return []spread{old, s}, false, nil
	}
	if err := old.handOver(s); err != nil {
		return nil, false, err
	}
	return []spread{s}, false, old.remove(buf)
}

func openSpread(buf *buffer.Buffer, base string, connections, generation int) (spread, error) {
	s := spread{generation: generation}
	for k := range connections {
		out, err := bridge.OpenOutboxes(buf, spreadName(base, k, connections, generation))
		if err != nil {
			return spread{}, err
		}
		s.connections = append(s.connections, out)
	}
	return s, nil
}

func (s *spread) empty() bool {
	return !slices.ContainsFunc(s.connections, func(o bridge.Outboxes) bool { return !o.Empty() })
}

// handOver lets the connections of another spread go on with the sessions of this one,
// as far as it has as many.
func (s *spread) handOver(to spread) error {
	for k := range min(len(s.connections), len(to.connections)) {
		has, err := to.connections[k].HasSession()
		if err != nil {
			return err
		}
		if has { // it was handed over before a crash, and went on
			continue
		}
		if err := bridge.HandOver(s.connections[k], to.connections[k]); err != nil {
			return err
		}
	}
	return nil
}

// remove ends the outboxes, but for those of which something was parked, which must be
// found again. The ledger of the buffer keeps what they counted.
func (s *spread) remove(buf *buffer.Buffer) error {
	var gone []*buffer.Outbox
	for _, c := range s.connections {
		for _, o := range c {
			if o.Ledger().Parked == 0 {
				gone = append(gone, o)
			}
		}
	}
	return buf.Remove(gone...)
}

// spreading are the connections of a bridge, and those from before that must deliver
// first what is stored for them.
type spreading struct {
	name   string
	buffer *buffer.Buffer
	log    *slog.Logger
	spread []spread        // the last one is what new messages go to
	conns  [][]*connection // of each

	handedOver func() // called before others go on with the sessions; may be nil

	mu   sync.Mutex // guards what follows
	live int        // place in conns of those that run
}

// drainLook is how often is looked whether connections from before have delivered all.
const drainLook = 200 * time.Millisecond

// current are the connections that run.
func (s *spreading) current() []*connection {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns[s.live]
}

// latest are the connections that new messages are for.
func (s *spreading) latest() []*connection { return s.conns[len(s.conns)-1] }

// outboxesOf are those that new messages of a device go to.
func (s *spreading) outboxesOf(device string) *bridge.Outboxes {
	list := s.latest()
	return &list[bridge.SpreadOver(len(list), device)].outboxes
}

// run runs the connections until ctx ends: first those from before, until nothing is
// stored for them any more.
func (s *spreading) run(ctx context.Context) error {
	for ; s.live < len(s.conns)-1; s.next() {
		old, to := &s.spread[s.live], s.spread[len(s.spread)-1]
		if !old.empty() {
			s.log.Info("what was stored before the number of connections changed goes first", "connections_then", len(old.connections), "connections", len(to.connections))
			if done, err := s.drain(ctx, old, len(to.connections)); !done || err != nil {
				return err
			}
		}
		if err := old.handOver(to); err != nil {
			return err
		}
		if s.handedOver != nil {
			s.handedOver()
		}
		for _, c := range s.conns[s.live] {
			c.reader.Close()
		}
		if err := old.remove(s.buffer); err != nil { // they are empty, and go with the next start
			s.log.Warn("outboxes that are not needed any more could not be removed", "error", err)
		}
	}
	return runAll(ctx, s.current(), func(c *connection) context.Context { return ctx })
}

func (s *spreading) next() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live++
}

// drain runs the connections of a spread until nothing is stored for them, and reports
// whether it came to that. Sessions that have no place among those that follow end.
func (s *spreading) drain(ctx context.Context, old *spread, follow int) (bool, error) {
	over, handOver := context.WithCancelCause(ctx)
	defer handOver(nil)
	end, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var look sync.WaitGroup
	defer look.Wait()
	looking, enough := context.WithCancel(ctx)
	defer enough()
	look.Go(func() {
		tick := time.NewTicker(drainLook)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if old.empty() {
					handOver(bridge.ErrHandOver)
					stop(bridge.ErrEnd)
					return
				}
			case <-looking.Done():
				return
			}
		}
	})
	err := runAll(ctx, s.current(), func(c *connection) context.Context {
		if c.number < follow {
			return over
		}
		return end
	})
	return err == nil && ctx.Err() == nil, err
}

// runAll runs connections until their contexts end, or one fails.
func runAll(ctx context.Context, list []*connection, of func(*connection) context.Context) error {
	failed, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var wg sync.WaitGroup
	for _, c := range list {
		own, cancel := context.WithCancelCause(of(c))
		stop := context.AfterFunc(failed, func() { cancel(context.Cause(failed)) })
		wg.Go(func() {
			defer cancel(nil)
			defer stop()
			if err := c.bridge.Run(own); err != nil {
				fail(fmt.Errorf("connection %d: %w", c.number, err))
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil || failed.Err() == nil {
		return nil
	}
	return context.Cause(failed)
}

func (s *spreading) close() {
	for _, list := range s.conns {
		for _, c := range list {
			c.reader.Close()
		}
	}
}

// status is that of all connections together: it is connected if all are, and says how
// the one stands that has been without for longest, or the first.
func (s *spreading) status() bridge.Status {
	var sum bridge.Status
	for i, c := range s.current() {
		one := c.bridge.Status()
		if i == 0 || sum.Connected && !one.Connected || !sum.Connected && !one.Connected && one.Since.Before(sum.Since) {
			sum.Connected, sum.URL, sum.Since, sum.SessionPresent, sum.LastError = one.Connected, one.URL, one.Since, one.SessionPresent, one.LastError
		}
	}
	for _, list := range s.conns {
		for _, c := range list {
			sum.Add(c.bridge.Status())
		}
	}
	return sum
}

// at is one of the connections; while those from before run, the one among them that
// stands in its place.
func (s *spreading) at(k int) *connection {
	list := s.current()
	return list[min(k, len(list)-1)]
}

// connectionName names a connection of a bridge: the first as the bridge.
func connectionName(bridge string, k int) string {
	if k == 0 {
		return bridge
	}
	return bridge + "/" + strconv.Itoa(k)
}

// ledger is that of all connections, those from before among them.
func (s *spreading) ledger() (sum buffer.Ledger) {
	s.mu.Lock()
	live := s.live
	s.mu.Unlock()
	for _, one := range s.spread[live:] {
		for _, o := range one.connections {
			sum.Add(o.Ledger())
		}
	}
	return sum
}
