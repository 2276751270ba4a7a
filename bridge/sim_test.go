package bridge

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/fieldferry/fieldferry/bridge/upstreamtest"
	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/buffer/simulated"
)

var (
	seeds = flag.Int("seeds", 1000/slower, "how many seeds TestSimulation runs")
	seed  = flag.Uint64("seed", 0, "run TestSimulation with this seed only")
)

// TestSimulation runs a bridge and its buffer on a machine on which everything that
// can fail does, at random but from a seed, against an upstream that is as unkind:
// the process is killed and the power cut before and after every write, writes fail,
// connections are cut at any byte, frozen, refused and taken over, limits change,
// messages expire and are dropped for want of room, and in some seeds the upstream
// loses our session. In the end every message that was acknowledged must have been
// delivered or stand in the ledger as something else, the first arrivals of a class
// in order; one with QoS 2 once, unless the upstream lost the session in between. What
// comes down with QoS 2 must be stored once whatever happens, and nothing that was
// acknowledged to the upstream may be missing.
func TestSimulation(t *testing.T) {
	first, n := uint64(1), uint64(*seeds)
	if testing.Short() {
		n = min(n, 100)
	}
	if *seed != 0 {
		first, n = *seed, 1
	}
	var sum simCounts
	for s := first; s < first+n; s++ {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, s)
			w.run()
			sum.add(&w.counts)
		})
		if t.Failed() {
			t.Fatalf("seed %d failed: run again with -seed %d", s, s)
		}
	}
	if n > 50 && min(sum.crashes, sum.delivered, sum.repeated, sum.lost, sum.uncertain, sum.expired, sum.dropped, sum.parked, sum.down, sum.downAgain) == 0 {
		t.Error("the simulation does nothing")
	}
	t.Logf("%d seeds: %+v", n, sum)
}

// simCounts say what a simulation has seen.
type simCounts struct {
	crashes, delivered, repeated, lost, uncertain, expired, dropped, parked int
	down, downAgain                                                         int // came down; with QoS 1 more than once
}

func (c *simCounts) add(o *simCounts) {
	c.crashes += o.crashes
	c.delivered += o.delivered
	c.repeated += o.repeated
	c.lost += o.lost
	c.uncertain += o.uncertain
	c.expired += o.expired
	c.dropped += o.dropped
	c.parked += o.parked
	c.down += o.down
	c.downAgain += o.downAgain
}

// world is a gateway's bridge on its machine, and the upstream.
type world struct {
	t       *testing.T
	seed    uint64
	dice    *rand.Rand
	machine *simulated.Machine
	life    *simulated.Life
	up      *upstreamtest.Server
	counts  simCounts

	loses, drops bool // the upstream loses sessions; what that makes uncertain is dropped
	release      bool // the upstream delivers QoS 2 at PUBREL
	limits       buffer.Limits

	b      *buffer.Buffer
	out    Outboxes
	reader *buffer.Reader
	bridge *Bridge
	cancel context.CancelFunc
	ended  chan error

	began time.Time
	next  int // number of the last message
	qos   map[int]byte
	dies  map[int]bool // expires
	mu    sync.Mutex   // guards acked
	acks  map[int]bool

	taken  *Taken
	sinks  [buffer.NumClasses]*buffer.Outbox // where what comes down goes
	sink   *buffer.Reader
	inside map[string]map[copyOf]bool // what of it is stored, by payload
	sent   map[string]byte            // QoS, by payload
	mu2    sync.Mutex                 // guards refuse
	refuse map[string]bool
}

// copyOf is a copy over the lives of the machine.
type copyOf struct {
	class   buffer.Class
	ordinal uint64
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, seed: seed, machine: simulated.New(seed), dice: rand.New(rand.NewPCG(seed, 5)), qos: map[int]byte{}, dies: map[int]bool{}, acks: map[int]bool{},
		inside: map[string]map[copyOf]bool{}, sent: map[string]byte{}, refuse: map[string]bool{}}
	w.began = time.Now()
	w.loses = w.dice.IntN(3) == 0
	w.drops = w.dice.IntN(2) == 0
	w.release = w.dice.IntN(2) == 0
	if w.dice.IntN(4) == 0 {
		w.limits.MaxBytes = 6 << 10
	}
	lenient, inUse := !w.loses && w.dice.IntN(2) == 0, w.dice.IntN(2) == 0
	rnd := rand.New(rand.NewPCG(seed, 6))
	var scripts []upstreamtest.Script
	for range 60 {
		s := unkind(rnd, w.loses)
		s.AtRelease, s.Lenient, s.InUse = w.release, lenient, inUse
		scripts = append(scripts, s)
	}
	scripts = append(scripts, upstreamtest.Script{AtRelease: w.release, Lenient: lenient, InUse: inUse})
	w.up = upstreamtest.New(scripts...)
	return w
}

// unkind is a connection on which something goes wrong, mostly.
func unkind(rnd *rand.Rand, loses bool) upstreamtest.Script {
	s := upstreamtest.Script{
		Unreachable: rnd.IntN(8) == 0,
		LoseSession: loses && rnd.IntN(4) == 0,
		Repeat:      rnd.IntN(4) == 0,
		Limits:      packets.Properties{ReceiveMaximum: ptr(uint16(1 + rnd.IntN(20)))},
	}
	if rnd.IntN(2) == 0 {
		s.Limits.TopicAliasMaximum = ptr(uint16(rnd.IntN(3)))
	}
	if rnd.IntN(3) == 0 {
		s.CutReceived = 1 + rnd.IntN(1200)
	}
	if rnd.IntN(4) == 0 {
		s.CutSent = 1 + rnd.IntN(200)
	}
	if rnd.IntN(8) == 0 {
		s.Code = []byte{0x87, 0x88, 0x89, 0x9C, 0x9F}[rnd.IntN(5)]
	}
	s.Publish = func(upstreamtest.Publish) answer {
		switch n := rnd.IntN(200); {
		case n < 2:
			return answer{Code: 0x87}
		case n < 6:
			return answer{Do: upstreamtest.Ignore}
		case n < 12:
			return answer{Do: upstreamtest.Cut}
		case n < 14:
			return answer{Do: upstreamtest.Disconnect, Code: []byte{0x8B, 0x8E, 0x93, 0x97}[rnd.IntN(4)]}
		case n < 15:
			return answer{Do: upstreamtest.Freeze}
		case n < 16:
			return answer{Do: upstreamtest.Swallow}
		case n < 17:
			return answer{Do: upstreamtest.Inject}
		}
		return answer{}
	}
	s.Pubrel = func(uint16) answer {
		switch n := rnd.IntN(100); {
		case n < 3:
			return answer{Do: upstreamtest.Cut}
		case n < 4:
			return answer{Do: upstreamtest.Ignore}
		case n < 5:
			return answer{Do: upstreamtest.Swallow}
		}
		return answer{}
	}
	return s
}

func (w *world) run() {
	defer func() {
		if w.t.Failed() {
			w.t.Log(w.machine.Trace())
		}
	}()
	defer w.up.Close()
	for range 3 + w.dice.IntN(5) {
		w.machine.Faults(2)
		time.Sleep(time.Duration(w.dice.IntN(5000)) * time.Millisecond)
		if !w.start(true) {
			continue
		}
		for range 5 + w.dice.IntN(30) {
			if w.machine.Off() {
				break
			}
			w.step()
		}
		if w.dice.IntN(2) == 0 {
			w.machine.Kill()
		}
		w.stop()
	}
	w.machine.Faults(0)
	w.start(false)
	for range 36_000 {
		if synctest.Wait(); w.out.Ledger().Stored == 0 && w.up.Unanswered() == 0 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	w.finish()
	w.stop()
}

// mortal is a connection that ends with the process.
type mortal struct {
	net.Conn
	life *simulated.Life
}

func (c mortal) Write(p []byte) (int, error) {
	if !c.life.Do(func() {}) {
		c.Close()
		return 0, simulated.ErrOff
	}
	return c.Conn.Write(p)
}

func (w *world) start(faults bool) bool {
	life := w.machine.On()
	w.life = life
	parts := buffer.Parts{Meta: life.Store("meta")}
	for c := range buffer.NumClasses {
		parts.Disks[c] = life.Disk(c.String())
	}
	logger := slog.New(slog.NewTextHandler(w.machine, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	w.b, err = buffer.OpenParts(parts, buffer.Options{GenerationBytes: 1 << 10, Limits: w.limits, Clock: w.machine, Logger: logger})
	if err == nil {
		w.out, err = OpenOutboxes(w.b, "bridge/sim/0")
	}
	if err == nil {
		w.reader, err = w.b.Reader(w.out[:]...)
	}
	if err == nil {
		err = w.openDown()
	}
	if err == nil {
		w.bridge, err = New(w.reader, w.out, Options{
			Down:     &Downward{Filters: []Filter{{"#", 2}}, Taken: w.taken, Deliver: w.deliver},
			Upstream: []string{"mqtt://upstream"}, ClientID: "gw-1", Window: 16, Keepalive: 2 * time.Second,
			Backoff:  Backoff{First: 100 * time.Millisecond, Max: 100 * time.Millisecond},
			DropLost: w.drops, Logger: logger,
			Dial: func(ctx context.Context, u *url.URL) (net.Conn, error) {
				nc, err := w.up.Dial(ctx, u)
				if err != nil {
					return nil, err
				}
				return mortal{nc, life}, nil
			},
		})
	}
	if err != nil {
		if !faults {
			w.t.Fatalf("seed %d: start: %v", w.seed, err)
		}
		w.stop()
		return false
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel, w.ended = cancel, make(chan error, 1)
	go func() { w.ended <- w.bridge.Run(ctx) }()
	return true
}

// stop ends the life, well or not.
func (w *world) stop() {
	if w.machine.Off() {
		w.counts.crashes++
	}
	if w.cancel != nil {
		w.cancel()
		if err := <-w.ended; err != nil && !errors.Is(err, simulated.ErrOff) && !w.machine.Off() {
			w.t.Errorf("seed %d: Run: %v", w.seed, err)
		}
		w.counts.uncertain += int(w.bridge.Status().Uncertain)
		w.cancel = nil
	}
	if w.reader != nil {
		w.reader.Close()
		w.reader = nil
	}
	if w.taken != nil {
		w.taken.Close()
		w.taken = nil
	}
	if w.sink != nil {
		w.sink.Close()
		w.sink = nil
	}
	if w.b != nil {
		w.b.Close() // fails on a machine that is off
		w.b = nil
	}
	synctest.Wait()
}

// told is a receipt.
type told struct {
	w    *world
	life *simulated.Life
	n    int
}

func (r told) Stored(err error) {
	r.life.Do(func() { // or nobody is there to hear it
		if err == nil {
			r.w.mu.Lock()
			r.w.acks[r.n] = true
			r.w.mu.Unlock()
		}
	})
}

func (w *world) step() {
	switch w.dice.IntN(10) {
	case 8, 9:
		for range 1 + w.dice.IntN(6) {
			w.sendDown()
		}
	case 0, 1, 2, 3:
		for range 1 + w.dice.IntN(12) {
			w.append()
		}
	case 4:
		time.Sleep(time.Duration(w.dice.IntN(3000)) * time.Millisecond)
	case 5, 6:
		time.Sleep(time.Duration(w.dice.IntN(50)) * time.Millisecond)
	case 7:
		switch w.dice.IntN(12) {
		case 0:
			w.machine.Kill()
		case 1:
			w.machine.Crash()
		case 2:
			if w.loses {
				w.up.ForgetSessions()
				w.up.Cut()
			}
		case 3:
			w.up.Cut()
		}
	}
	synctest.Wait()
	if w.machine.Off() {
		return
	}
	w.take()
	for class, o := range w.out {
		if l := o.Ledger(); l.Difference() != 0 {
			w.t.Fatalf("seed %d: the ledger of %s is out by %d: %+v", w.seed, buffer.Class(class), l.Difference(), l)
		}
	}
}

func (w *world) append() {
	w.next++
	lane := w.dice.IntN(len(w.out))
	class := w.out[lane].Class()
	qos := byte(w.dice.IntN(3))
	w.qos[w.next] = qos
	m := buffer.Message{
		Topic: fmt.Sprintf("a/topic/%d", w.dice.IntN(3)), Payload: fmt.Appendf(nil, "%d %d", w.next, lane), Urgent: w.dice.IntN(2) == 0,
		Copies: []buffer.Copy{{Outbox: w.out[lane], QoS: qos}},
	}
	if w.dice.IntN(20) == 0 {
		w.dies[w.next] = true
		m.Expiry = time.Duration(1+w.dice.IntN(5)) * time.Second
	}
	if err := w.b.Append(w.t.Context(), class, &m, told{w, w.life, w.next}); err != nil && !errors.Is(err, buffer.ErrFull) {
		w.t.Fatalf("seed %d: append: %v", w.seed, err)
	}
}

// openDown opens where what comes down goes: outboxes from which nothing is dropped.
func (w *world) openDown() (err error) {
	if w.taken, err = OpenTaken(w.b, "sim"); err != nil {
		w.taken = nil
		return err
	}
	for class := range w.sinks {
		if w.sinks[class], err = w.b.Outbox("$sink", buffer.Class(class)); err != nil {
			return err
		}
	}
	if w.sink, err = w.b.Reader(w.sinks[:]...); err != nil {
		w.sink = nil
	}
	return err
}

// sendDown has the upstream send something.
func (w *world) sendDown() {
	w.next++
	m := upstreamtest.Message{Topic: "down", Payload: fmt.Sprint("down ", w.next), QoS: byte(1 + w.dice.IntN(2))}
	before := w.up.Unanswered()
	if w.up.Send(m); w.up.Unanswered() > before {
		w.sent[m.Payload] = m.QoS
	}
}

// deliver stores what came down, in whatever class.
func (w *world) deliver(ctx context.Context, m *Inbound, r buffer.Receipt) error {
	payload := string(m.Payload)
	var n int
	fmt.Sscanf(payload, "down %d", &n)
	class := buffer.Class(n) % buffer.NumClasses
	copies := []buffer.Copy{{Outbox: w.sinks[class]}}
	if m.Copy != nil {
		copies = append(copies, m.Copy(class))
	}
	told := downTold{w, payload, r}
	err := w.b.Append(ctx, class, &buffer.Message{Topic: m.Topic, Payload: m.Payload, Urgent: true, Copies: copies}, told)
	if err != nil {
		told.note()
	}
	return err
}

// downTold is the receipt of what came down.
type downTold struct {
	w       *world
	payload string
	r       buffer.Receipt
}

func (d downTold) Stored(err error) {
	if err != nil {
		d.note()
	}
	d.r.Stored(err)
}

// note notes that it was not taken.
func (d downTold) note() {
	d.w.mu2.Lock()
	defer d.w.mu2.Unlock()
	d.w.refuse[d.payload] = true
}

// take notes what is stored of what came down.
func (w *world) take() {
	var space [32]buffer.Delivery
	for {
		n, err := w.sink.TryNext(space[:])
		if err != nil || n == 0 {
			return
		}
		for i := range space[:n] {
			d := &space[i]
			p := string(d.Payload)
			if w.inside[p] == nil {
				w.inside[p] = map[copyOf]bool{}
			}
			w.inside[p][copyOf{d.Outbox.Class(), d.Ordinal}] = true
			d.Outbox.Settle(d.Ordinal, buffer.Delivered)
		}
	}
}

// checkDown compares what came down with what the upstream was told.
func (w *world) checkDown() {
	w.take()
	ended := w.loses // sessions, and what was for them
	for n, c := range w.up.Connects() {
		ended = ended || n > 0 && c.Packet != nil && c.Packet.CleanStart
	}
	for p, qos := range w.sent {
		times := len(w.inside[p])
		switch {
		case qos == 2 && times > 1:
			w.t.Errorf("seed %d: %q came down %d times with QoS 2", w.seed, p, times)
		case times == 0 && !ended && !w.refuse[p]:
			w.t.Errorf("seed %d: %q was acknowledged to the upstream (but for %d) and is missing; QoS %d", w.seed, p, w.up.Unanswered(), qos)
		case times > 1:
			w.counts.downAgain++
		}
		w.counts.down += min(times, 1)
	}
}

// finish compares what was delivered with what was promised.
func (w *world) finish() {
	w.checkDown()
	for _, v := range w.up.Violations() {
		w.t.Errorf("seed %d: violation: %s", w.seed, v)
	}
	l := w.out.Ledger()
	if l.Stored != 0 || l.Difference() != 0 {
		w.t.Errorf("seed %d: in the end %+v", w.seed, l)
	}
	type arrival struct{ session, times int }
	w.checkOrder()
	arrived := map[int]arrival{}
	for _, d := range w.up.Delivered() {
		var n int
		var class string
		if _, err := fmt.Sscan(d.Payload, &n, &class); err != nil {
			continue // of Inject
		}
		before, again := arrived[n]
		switch {
		case again && w.qos[n] == 2 && before.session == d.Session:
			w.t.Errorf("seed %d: %d came twice with QoS 2 in session %d", w.seed, n, d.Session)
			w.history(n)
		case again && w.qos[n] == 2:
			w.counts.lost++
			if !w.loses {
				w.t.Errorf("seed %d: %d came twice with QoS 2, in sessions %d and %d", w.seed, n, before.session, d.Session)
			}
			if w.drops && !d.Unmet {
				w.t.Errorf("seed %d: %d came twice with QoS 2, in sessions %d and %d, and what is uncertain is to be dropped", w.seed, n, before.session, d.Session)
			}
		case again:
			w.counts.repeated++
		default:
			w.counts.delivered++
		}
		arrived[n] = arrival{d.Session, before.times + 1}
	}
	missing := 0
	for n := range w.acks {
		if _, ok := arrived[n]; !ok && w.qos[n] > 0 {
			missing++
		}
	}
	accounted := l.Parked
	if w.loses {
		accounted += l.Uncertain
	}
	for _, n := range l.Dropped {
		accounted += n
	}
	if uint64(missing) > accounted {
		for n := range w.acks {
			if _, ok := arrived[n]; !ok && w.qos[n] > 0 {
				w.t.Logf("missing %d, QoS %d", n, w.qos[n])
				w.history(n)
			}
		}
		w.t.Errorf("seed %d: %d messages never came, the ledger knows of %d: %+v", w.seed, missing, accounted, l)
	}
	w.counts.parked += int(l.Parked)
	w.counts.expired += int(l.Dropped["expired"])
	w.counts.dropped += int(l.Dropped["oldest"] + l.Dropped["full"])
}

// checkOrder wants the first arrivals of a class in their order. With QoS 0, what got
// lost in a socket may come again after a crash, and so may what has expired.
func (w *world) checkOrder() {
	seen, last := map[int]bool{}, map[string]int{}
	for _, p := range w.up.Publishes() {
		var n int
		var class string
		if _, err := fmt.Sscan(p.Payload, &n, &class); err != nil || seen[n] || w.qos[n] == 0 || w.dies[n] {
			continue
		}
		if n < last[class] {
			w.t.Errorf("seed %d: %d of class %s came after %d", w.seed, n, class, last[class])
			w.history(n)
			w.history(last[class])
			return
		}
		seen[n], last[class] = true, n
	}
}

// history tells how a message came.
func (w *world) history(n int) {
	for _, p := range w.up.Publishes() {
		if strings.HasPrefix(p.Payload, fmt.Sprint(n, " ")) {
			w.t.Logf("  %v connection %d: id %d QoS %d dup %t: %+v", p.At.Sub(w.began), p.Conn, p.ID, p.QoS, p.Dup, p.Answer)
		}
	}
}
