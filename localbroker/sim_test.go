package localbroker

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/buffer/simulated"
)

var (
	seeds = flag.Int("seeds", 0, "how many seeds TestSimulation runs")
	seed  = flag.Uint64("seed", 0, "run TestSimulation with this seed only, or with -seeds from this one on")
)

// TestSimulation runs the broker with its buffer and its state on a machine that fails
// in every way a machine can, and clients that connect to it over a network that is no
// better: connections are cut at any byte, taken over and never read from. Clients of
// both versions publish and subscribe with every QoS, with sessions that end and such
// that do not, wills, shared subscriptions and retained messages; they acknowledge
// late, out of order or never, and come back with what was not acknowledged to them.
// After each crash a new broker opens what is left. All along, and in the end when
// everything was delivered, what clients have seen is held against what they were
// promised. All from a seed: but goroutines run as they like, so a seed that has failed
// may have to be run more than once.
func TestSimulation(t *testing.T) {
	first, n := uint64(1), uint64(1000/slower)
	if testing.Short() {
		n = min(n, 100)
	}
	if *seed != 0 {
		first, n = *seed, 1
	}
	if *seeds != 0 {
		n = uint64(*seeds)
	}
	var next atomic.Uint64
	next.Store(first)
	var mu sync.Mutex // guards sum
	var sum simCounts
	t.Run("seeds", func(t *testing.T) {
		for i := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				for s := next.Add(1) - 1; s < first+n && !t.Failed(); s = next.Add(1) - 1 {
					synctest.Test(t, func(t *testing.T) {
						w := newSimWorld(t, s)
						w.run()
						mu.Lock()
						defer mu.Unlock()
						sum.add(&w.counts)
					})
					if t.Failed() {
						next.Store(first + n)
						t.Fatalf("seed %d failed: run again with -seed %d", s, s)
					}
				}
			})
		}
	})
	if n > 50 && !t.Failed() {
		for i, k := range sum {
			if k == 0 {
				t.Errorf("the simulation does nothing of: %s", simNames[i])
			}
		}
	}
	t.Logf("%d seeds, %s", n, sum.String())
}

// simCounts counts what has happened, so that a simulation that does less than it says
// is noticed.
type simCounts [len(simNames)]int

const (
	simCrashes = iota
	simStops
	simOutages
	simConnects
	simTakeovers
	simCuts
	simPublished
	simAcked
	simRefused
	simDelivered
	simAgain
	simBridged
	simExpired
	simDropped
	simWills
	simEnded
	simKept
	simShared
	simReplayed
)

var simNames = [...]string{
	simCrashes:   "crashes",
	simStops:     "stops",
	simOutages:   "times a broken disk",
	simConnects:  "connections",
	simTakeovers: "takeovers",
	simCuts:      "cuts",
	simPublished: "publishes",
	simAcked:     "acknowledged",
	simRefused:   "refused",
	simDelivered: "deliveries",
	simAgain:     "of them again",
	simBridged:   "to the bridge",
	simExpired:   "expired",
	simDropped:   "dropped",
	simWills:     "wills",
	simEnded:     "sessions ended",
	simKept:      "sessions resumed",
	simShared:    "shared deliveries",
	simReplayed:  "retained deliveries",
}

func (c *simCounts) add(o *simCounts) {
	for i, n := range o {
		c[i] += n
	}
}

func (c *simCounts) String() string {
	s := ""
	for i, n := range c {
		if i > 0 {
			s += ", "
		}
		s += fmt.Sprintf("%d %s", n, simNames[i])
	}
	return s
}

// simWorld is a machine with a broker, the clients of it, and the model of what they
// were promised. All but the broker is one goroutine's.
type simWorld struct {
	t       *testing.T
	seed    uint64
	dice    *rand.Rand
	machine *simulated.Machine
	rare    int // of faults
	faults  bool
	limits  Limits
	options buffer.Options

	// Of this life of the machine.
	life    *simulated.Life
	lifeNo  int
	opened  time.Time
	buffer  *buffer.Buffer
	state   *State
	broker  *Broker
	net     *simListener
	stop    []context.CancelFunc // the broker, the state
	stopped []chan error
	broken  bool // the disk is
	told    *simReceipts
	inside  *simInside

	clients []*simClient
	watcher *simClient // gets every will
	bridge  simBridge
	strays  []*simLink // that clients have left open
	ended   time.Time  // the last life
	rough   time.Time  // the last that may have crashed, or failed as it ended

	moment    int    // counts what happens
	refused   uint64 // publishes, by brokers that have ended
	next      int    // number of the next publish
	published map[int]*simPublish
	retained  map[string][]*simPublish
	wills     []*simWill
	groups    map[string]*simGroup
	shares    []*simGrant // of all shared subscriptions there ever were
	drops     uint64      // of sessions that have ended
	counts    simCounts
}

func newSimWorld(t *testing.T, s uint64) *simWorld {
	w := &simWorld{
		t: t, seed: s, machine: simulated.New(s), dice: rand.New(rand.NewPCG(s, 9)),
		published: make(map[int]*simPublish), retained: make(map[string][]*simPublish), groups: make(map[string]*simGroup),
	}
	w.rare = []int{1, 3, 10}[w.dice.IntN(3)]
	w.machine.Latency([]time.Duration{0, 5 * time.Millisecond, 50 * time.Millisecond}[w.dice.IntN(3)])
	level := slog.LevelInfo
	if *seed != 0 && *seeds == 0 {
		level = slog.LevelDebug
	}
	w.options = buffer.Options{
		GenerationBytes: 1 << (10 + w.dice.IntN(6)),
		Compress:        w.dice.IntN(4) == 0,
		Clock:           w.machine,
		Logger:          slog.New(slog.NewTextHandler(w.machine, &slog.HandlerOptions{Level: level})),
	}
	w.limits = Limits{ReceiveMaximum: 1 + w.dice.IntN(20), SessionExpiry: time.Hour, QueuedMessages: 1000}
	switch w.dice.IntN(6) {
	case 0:
		w.limits.QueuedMessages = 3 + w.dice.IntN(10)
	case 1:
		w.options.Limits = buffer.Limits{MaxBytes: 64 << 10, RejectNew: w.dice.IntN(2) == 0}
	}
	w.bridge.begin(w)
	for i := range 6 {
		w.clients = append(w.clients, newSimClient(w, i))
	}
	w.watcher = w.clients[0]
	return w
}

// fail ends the test with what happened before.
func (w *simWorld) fail(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("seed %d: moment %d: "+format, append([]any{w.seed, w.moment}, args...)...)
}

func (w *simWorld) note(format string, args ...any) { w.machine.Note(format, args...) }

// now is the next moment. What has the lower one happened before.
func (w *simWorld) now() int {
	w.moment++
	return w.moment
}

// one is true once in n.
func (w *simWorld) one(n int) bool { return w.dice.IntN(n) == 0 }

func (w *simWorld) run() {
	defer func() {
		if w.t.Failed() {
			w.t.Log(w.machine.Trace())
		}
	}()
	defer w.end()
	lives := 2 + w.dice.IntN(4)
	for range lives {
		w.fault(true)
		if w.reboot(); !w.start(true) {
			continue // it crashed again while it opened
		}
		for steps := 20 + w.dice.IntN(100); steps > 0 && !w.machine.Off(); steps-- {
			w.step()
			switch w.dice.IntN(4) {
			case 0, 1:
				w.settle()
			case 2:
				time.Sleep(time.Duration(w.dice.IntN(20)) * time.Millisecond)
			}
			w.check()
		}
		w.end()
	}
	w.fault(false)
	w.reboot()
	w.start(false)
	w.finish()
}

// fault lets things go wrong by themselves, or not.
func (w *simWorld) fault(on bool) {
	w.faults = on
	if on {
		w.machine.Faults(w.rare)
	} else {
		w.machine.Faults(0)
	}
}

// reboot lets some time pass, and may start the machine anew.
func (w *simWorld) reboot() {
	time.Sleep(time.Duration(w.dice.IntN(10)) * time.Second)
	w.broken = false
	w.machine.Break(false)
	if w.one(3) {
		w.machine.Reboot(w.one(2))
		w.machine.SetClock(0, w.one(2))
	}
}

// start opens everything on what is there. Only a machine that has faults may fail.
func (w *simWorld) start(faults bool) bool {
	w.life = w.machine.On()
	w.lifeNo++
	w.now()
	if err := w.open(); err != nil {
		if !faults {
			w.fail("start: %v", err)
		}
		w.note("start: %v", err)
		w.machine.Kill()
		w.end()
		return false
	}
	return true
}

func (w *simWorld) open() (err error) {
	parts := buffer.Parts{Meta: w.life.Store("meta")}
	for c := range buffer.NumClasses {
		parts.Disks[c] = w.life.Disk(c.String())
	}
	if w.buffer, err = buffer.OpenParts(parts, w.options); err != nil {
		return err
	}
	router, err := w.bridge.start(w.buffer)
	if err != nil {
		return err
	}
	log := w.options.Logger
	if w.state, err = openState(w.life.Store("state"), w.buffer, log); err != nil {
		return err
	}
	w.broker = New(Options{
		Listeners: []Listener{{Name: "sim", AllowAnonymous: true}}, Limits: w.limits,
		Buffer: w.buffer, State: w.state, Router: router, Logger: log,
	})
	w.net = newSimListener(w.life)
	w.broker.listeners = []net.Listener{w.net}
	w.opened = time.Now()
	w.told = &simReceipts{life: w.life}
	w.restartWills()
	for _, run := range []func(context.Context) error{w.broker.Run, w.state.Run} {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		w.stop, w.stopped = append(w.stop, cancel), append(w.stopped, done)
		go func() { done <- run(ctx) }()
	}
	w.inside = w.subscribeInside()
	return nil
}

// end stops the process that runs, well or because the machine is off.
func (w *simWorld) end() {
	if w.t.Failed() {
		w.machine.Kill()
	}
	crash := w.machine.Off()
	if crash && !w.t.Failed() {
		w.counts[simCrashes]++
		w.rough = time.Now()
		w.now()
		w.note("crash")
		for _, c := range w.clients { // what was under way may have arrived
			c.arrive(w.dice.IntN(1000))
			c.lose()
		}
	} else if !crash && w.broker != nil {
		w.counts[simStops]++
		w.note("stop")
	}
	if w.inside != nil && !crash {
		w.inside.cancel()
	}
	for i, cancel := range w.stop {
		cancel()
		if err := <-w.stopped[i]; err != nil {
			w.t.Errorf("seed %d: stop: %v", w.seed, err)
		}
	}
	w.stop, w.stopped = nil, nil
	if w.inside != nil && crash {
		w.inside.cancel()
	}
	w.inside = nil
	if !crash {
		for _, c := range w.clients {
			c.arrive(1 << 20)
			c.lose()
		}
	}
	for _, k := range w.strays {
		k.close()
	}
	w.strays = nil
	w.bridge.close()
	if w.state != nil {
		w.state.Close() // fails on a machine that is off
	}
	if w.buffer != nil {
		w.buffer.Close()
	}
	if w.broker != nil && w.broker.Stats().Panics > 0 {
		w.t.Errorf("seed %d: a connection has panicked", w.seed)
	}
	if w.ended = time.Now(); w.faults {
		w.rough = w.ended
	}
	w.refused = w.refusals()
	w.buffer, w.state, w.broker, w.net = nil, nil, nil, nil
	synctest.Wait()
	if !crash {
		w.machine.Kill() // so that the next life is another
	}
}
