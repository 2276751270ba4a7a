package bridge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/fieldferry/fieldferry/buffer"
)

const (
	maxBatch     = 256             // copies taken from the buffer at once
	maxUnflushed = 1024            // QoS 0 messages
	maxOwed      = 64 << 10        // bytes of answers the upstream may make us pile up
	stopTimeout  = 2 * time.Second // for the goodbye

	reasonTimeout = time.Second // for the upstream's DISCONNECT when a write fails
)

// errRenew ends a connection that is to be made anew.
var errRenew = errors.New("the connection is made anew")

// conn is one connection to the upstream. Five goroutines serve it: the fetcher
// takes copies from the buffer, as many as may be sent; the writer sends them, and
// nobody else writes; the reader settles them as they are acknowledged; the
// committer makes what was received with QoS 2 durable, and has it released. The
// last one hands over what comes down.
type conn struct {
	b      *Bridge
	line   *line
	r      *bufio.Reader // the reader's
	limits limits
	window *window

	want    chan int               // from the writer: how many to fetch at most
	fetched chan []buffer.Delivery // to the writer
	wake    chan struct{}          // to the writer: there is room, or something is owed
	pubrecs chan struct{}          // to the committer
	down    chan delivery          // what came from the upstream
	renew   chan struct{}          // to the writer: the connection is to be made anew
	number  uint64                 // of the session
	over    <-chan struct{}        // closed when the connection ends

	// The writer's.
	w         *bufio.Writer
	unflushed []copyID  // QoS 0, to be settled when they are in the socket
	flushed   time.Time // when w was last empty
	largest0  int       // bytes of the largest QoS 0 packet sent
	aliases   aliases
	next      [len(Outboxes{})]uint64 // ordinals that should come next

	// How the session stood when it was resumed; zero in a new one.
	resumed [len(Outboxes{})]uint64 // what has a PUBREC is up to here
	doubt   doubt                   // about those
	settled bool                    // the committer's: nothing is in doubt any more

	// The reader's.
	declined    bool          // it declined a message
	recs        bool          // PUBRECs came that the committer was not told of
	statusPause time.Duration // before the gateway's status goes again, the last time

	mu        sync.Mutex // guards what follows
	owed      []byte     // packets the reader wants sent
	rels      []byte     // PUBRELs
	statusDue time.Time  // the gateway's status is to go again then; zero is not
}

func newConn(b *Bridge, l *line) *conn {
	return &conn{
		b:       b,
		line:    l,
		r:       bufio.NewReaderSize(l, readBuffer),
		w:       bufio.NewWriterSize(l, writeBuffer),
		want:    make(chan int, 1),
		fetched: make(chan []buffer.Delivery, 1),
		wake:    make(chan struct{}, 1),
		pubrecs: make(chan struct{}, 1),
		down:    make(chan delivery, maxWaiting),
		renew:   make(chan struct{}, 1),
		flushed: time.Now(),
	}
}

// run serves the connection until it fails or ctx ends, and closes it.
func (c *conn) run(ctx context.Context) error {
	up, cut := context.WithCancelCause(ctx) // ends with the connection
	c.over = up.Done()
	reading, done := make(chan struct{}), make(chan struct{})
	c.line.onWait = c.wakeOthers // so they get all answers that came together
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(reading)
		cut(c.read())
	})
	wg.Go(func() {
		if err := c.fetch(up); err != nil {
			cut(err)
		}
	})
	wg.Go(func() { c.commit(up) })
	wg.Go(func() { c.deliverDown(up) })
	wg.Go(func() {
		<-up.Done()
		if ctx.Err() != nil || errors.Is(context.Cause(up), errRenew) { // the writer may say goodbye
			select {
			case <-done:
			case <-time.After(stopTimeout):
			}
		}
		c.line.Close()
	})
	err := c.write(up)
	if errors.Is(err, errSend) { // an upstream that closed may have said why, and it is still to be read
		select {
		case <-reading:
		case <-time.After(reasonTimeout):
		}
	}
	cut(err)
	if (ctx.Err() != nil || errors.Is(err, errRenew)) && c.goodbye(ctx) == nil {
		<-reading // the upstream closes; a close of ours before could take the goodbye back
	}
	close(done)
	wg.Wait()
	return context.Cause(up)
}

// fetch takes copies from the buffer when the writer wants some.
func (c *conn) fetch(ctx context.Context) error {
	var batches [2][maxBatch]buffer.Delivery // the writer has one while the other is filled
	for i := 0; ; i ^= 1 {
		select {
		case n := <-c.want:
			got, err := c.b.source.Next(ctx, batches[i][:n])
			switch {
			case ctx.Err() != nil:
				return nil
			case err != nil:
				return &bufferError{err}
			}
			if !c.reserve(ctx, batches[i][:got]) {
				return nil
			}
			c.fetched <- batches[i][:got] // has room: one is wanted at a time
		case <-ctx.Done():
			return nil
		}
	}
}

// write sends what there is to send, until the connection fails or ctx ends.
func (c *conn) write(ctx context.Context) error {
	ping := time.NewTicker(c.limits.keepalive / 4)
	defer ping.Stop()
	err := errors.Join(c.announce(true, ""), c.subscribe())
	var pending []buffer.Delivery // handed out and not yet sent
	asked := false
	var paced time.Duration // how long to wait until more may go
	ask := func() {
		n := min(c.window.room()-len(pending), maxBatch)
		if asked || n <= 0 {
			return
		}
		if c.b.pace.limited() {
			// No more than may go at once, so that an alert that comes meanwhile is next.
			var may int
			if may, paced = c.b.pace.allowed(time.Now()); len(pending) > 0 {
				may = 0
			}
			if n = min(n, may); n == 0 {
				return
			}
		}
		c.want <- n
		asked = true
	}
	for err == nil {
		if err = c.writeOwed(); err != nil {
			break
		}
		var wait time.Duration
		if wait, err = c.writeRefused(); err != nil {
			break
		}
		var status time.Duration
		if status, err = c.announceAgain(time.Now()); err != nil {
			break
		}
		wait = soonest(wait, status)
		paced = 0
		if !c.b.pace.limited() {
			ask() // the next batch comes while this one is written
		}
		if pending, err = c.writeBatch(pending); err != nil {
			break
		}
		ask() // with QoS 0 it left room
		fetched := c.fetched
		if len(pending) > 0 {
			fetched = nil
		}
		if len(c.unflushed) < maxUnflushed {
			select { // is there more to go with the same flush?
			case pending = <-fetched:
				asked = false
				continue
			default:
			}
		}
		if err = c.flush(); err != nil {
			break
		}
		var resume <-chan time.Time
		if wait = soonest(wait, paced); wait > 0 {
			resume = time.After(wait)
		}
		select {
		case pending = <-fetched:
			asked = false
		case <-c.wake:
		case <-c.renew:
			return errRenew
		case <-resume:
		case <-ping.C:
			err = c.ping()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return err
}

// soonest is the shorter of two waits, of which 0 is none.
func soonest(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// wakeOthers is called by the reader before it waits.
func (c *conn) wakeOthers() {
	if c.recs || c.window.holding() {
		c.recs = false
		c.wakeCommitter()
	}
	c.wakeWriter()
}

func (c *conn) wakeCommitter() {
	select {
	case c.pubrecs <- struct{}{}:
	default:
	}
}

func (c *conn) wakeWriter() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// ping asks the upstream for a sign of life if it gave none for a while, or if we
// sent it nothing. An upstream that answers pings and nothing else is dead as well:
// what is under way may be sent again on a new connection only (MQTT 5 §4.4).
func (c *conn) ping() error {
	quiet := c.limits.keepalive / 2
	now := time.Now()
	if c.window.stuck(now, 2*c.limits.keepalive) {
		return fmt.Errorf("upstream acknowledges nothing for %v", 2*c.limits.keepalive)
	}
	if now.Sub(time.Unix(0, c.line.received.Load())) < quiet && now.Sub(c.flushed) < quiet {
		return nil
	}
	_, err := c.w.Write([]byte{packets.PINGREQ << 4, 0})
	return err
}

// writeBatch sends copies in their order and returns those that have to wait.
func (c *conn) writeBatch(batch []buffer.Delivery) ([]buffer.Delivery, error) {
	for i := range batch {
		if ok, err := c.send(&batch[i]); !ok || err != nil {
			return batch[i:], err
		}
	}
	c.judge(c.doubt.pass(func(lane int, upTo uint64, undecided int) bool {
		o := c.b.out[lane]
		return o == nil || c.next[lane] > upTo || o.Marks().Settled >= upTo || o.Stored() == uint64(undecided)
	}))
	return nil, nil
}

// send writes one copy, or settles it if it cannot go. It reports false if the
// copy has to wait.
func (c *conn) send(d *buffer.Delivery) (bool, error) {
	lane := c.b.out.lane(d.Outbox)
	at := &c.b.progress[lane]
	if !c.closeGap(lane, d.Ordinal) {
		return false, nil
	}
	at.seen = max(at.seen, d.Ordinal)
	if d.QoS == 2 {
		if done, ok := c.resume(d, at); done {
			return ok, nil
		}
	}
	again := d.Ordinal <= at.written // also if the upstream has lost the session since
	p := c.packet(d)
	var alive bool
	if p.expiry, alive = timeLeft(d, time.Now()); !alive && !again {
		c.expire(d)
		return true, nil
	}
	if p.qos > 0 {
		p.id = packetID(lane, d.Ordinal)
		p.dup = again
	}
	size := p.size()
	reason := ""
	switch {
	case size > c.limits.packet || p.remaining() > maxRemaining:
		reason = fmt.Sprintf("its packet has %d bytes, the upstream takes %d", size, c.limits.packet)
	case len(d.Topic) > maxString:
		reason = "its topic is longer than 65,535 bytes"
	}
	switch {
	case reason != "" && again && d.QoS == 2 && c.limits.sessionPresent:
		// The upstream may have it, and then has its id in use.
		return c.releaseOnly(d, buffer.Uncertain), nil
	case reason != "":
		if d.QoS == 2 {
			c.window.pass(d.Outbox, d.Ordinal)
		}
		return true, c.b.park(d, reason)
	}
	if p.qos == 2 && !c.reusable(d, at) || !c.window.add(d, p.id, p.qos, p.dup, size) {
		return false, nil
	}
	at.written = max(at.written, d.Ordinal)
	if p.qos == 0 {
		c.unflushed = append(c.unflushed, copyID{d.Outbox, d.Ordinal})
		c.largest0 = max(c.largest0, size)
	}
	c.b.sent.Add(1)
	c.b.pace.sent(size)
	c.aliases.use(&p)
	return true, p.writeTo(c.w)
}

// packet is what this connection makes of a copy.
func (c *conn) packet(d *buffer.Delivery) publish {
	p := publish{d: d, qos: min(d.QoS, c.limits.qos), retain: d.Retain && c.limits.retain}
	p.alias, p.known = c.aliases.find(d.Topic)
	return p
}

// writeRefused sends again what the upstream had no quota for. It returns how
// long to wait until the next may go. Its id was set free by the refusal, so it is
// a new PUBLISH and not a duplicate (MQTT 5 §4.4).
func (c *conn) writeRefused() (time.Duration, error) {
	for {
		d, ok, wait := c.window.retry(time.Now())
		if !ok {
			return wait, nil
		}
		p := c.packet(&d)
		p.id = packetID(c.b.out.lane(d.Outbox), d.Ordinal)
		var alive bool
		if p.expiry, alive = timeLeft(&d, time.Now()); !alive {
			c.window.drop(p.id)
			d.Outbox.Settle(d.Ordinal, buffer.DroppedExpired)
			c.b.expired.Add(1)
			continue
		}
		c.b.sent.Add(1)
		c.b.pace.sent(p.size())
		c.aliases.use(&p)
		if err := p.writeTo(c.w); err != nil {
			return 0, err
		}
	}
}

// timeLeft is a copy's Message Expiry Interval in seconds, rounded up, 0 for none.
// It reports false for a copy that has expired, with the 1 s it is given if it must
// be sent all the same.
func timeLeft(d *buffer.Delivery, now time.Time) (seconds uint32, alive bool) {
	if d.Expiry <= 0 {
		return 0, true
	}
	left := d.Expiry - max(now.Sub(d.Enqueued), 0)
	if left <= 0 {
		return 1, false
	}
	return uint32(min((left+time.Second-1)/time.Second, 1<<32-1)), true
}

func (c *conn) expire(d *buffer.Delivery) {
	c.end(d, buffer.DroppedExpired)
	c.b.expired.Add(1)
}

// park keeps a copy that can never be delivered.
func (b *Bridge) park(d *buffer.Delivery, reason string) error {
	if err := d.Outbox.Park(d, reason); err != nil {
		return err
	}
	b.parked.Add(1)
	b.log.Warn("message parked", "topic", d.Topic, "class", d.Outbox.Class().String(), "ordinal", d.Ordinal, "reason", reason)
	return nil
}

// parkLargest finds what a DISCONNECT with "packet too large" was about, and
// remembers the size, because an upstream that announces no limit may have one. It
// is called when the connection has ended.
func (c *conn) parkLargest() error {
	d, size := c.window.largest()
	if size <= c.largest0 { // it may have been one with QoS 0, which is settled
		c.b.maxPacket = max(c.largest0-1, 0)
		return nil
	}
	c.b.maxPacket = size - 1
	c.window.drop(packetID(c.b.out.lane(d.Outbox), d.Ordinal))
	return c.b.park(&d, fmt.Sprintf("the upstream closed the connection over a packet of %d bytes", size))
}

// writeOwed sends what the reader and the committer want sent.
func (c *conn) writeOwed() error {
	c.mu.Lock()
	owed, rels := c.owed, c.rels
	c.owed, c.rels = nil, nil
	c.mu.Unlock()
	c.w.Write(owed)
	_, err := c.w.Write(rels) // a bufio.Writer's first error stays
	return err
}

// flush brings everything into the socket; QoS 0 messages are delivered with that.
func (c *conn) flush() error {
	if c.w.Buffered() > 0 {
		if err := c.w.Flush(); err != nil {
			return err
		}
		c.flushed = time.Now()
	}
	for _, id := range c.unflushed {
		id.outbox.Settle(id.ordinal, buffer.Delivered)
	}
	c.b.delivered.Add(uint64(len(c.unflushed)))
	if len(c.unflushed) > 0 && c.window.holding() { // it may have waited for these
		c.wakeCommitter()
	}
	c.unflushed = c.unflushed[:0]
	return nil
}

// announce publishes the gateway's own status. It takes a slot of the window, and
// if that has none it goes with QoS 0.
func (c *conn) announce(online bool, reason string) error {
	s := c.b.o.Presence
	if s == nil {
		return nil
	}
	d := buffer.Delivery{Topic: s.Topic, Payload: s.Payload(online, reason, time.Now())}
	p := publish{d: &d, retain: c.limits.retain}
	if c.limits.qos > 0 && c.window.add(&d, idPresence, 1, false, 0) {
		p.id, p.qos = idPresence, 1
	}
	return p.writeTo(c.w)
}

// announceAgain publishes the status that the upstream could not take before. If it
// is not time yet, it returns how long to wait.
func (c *conn) announceAgain(now time.Time) (wait time.Duration, err error) {
	c.mu.Lock()
	due := c.statusDue
	if due.IsZero() || now.Before(due) {
		c.mu.Unlock()
		if due.IsZero() {
			return 0, nil
		}
		return due.Sub(now), nil
	}
	c.statusDue = time.Time{}
	c.mu.Unlock()
	return 0, c.announce(true, "")
}

// goodbye tells the upstream that the connection is over, and if no other follows that
// the gateway stops.
func (c *conn) goodbye(ctx context.Context) error {
	goodbye := []byte{packets.DISCONNECT << 4, 0}
	switch why := context.Cause(ctx); {
	case why == nil || errors.Is(why, ErrHandOver):
	case errors.Is(why, ErrEnd): // Session Expiry Interval 0, MQTT 5 §3.14.2.2.2
		goodbye = []byte{packets.DISCONNECT << 4, 7, 0, 5, packets.PropSessionExpiryInterval, 0, 0, 0, 0}
	default:
		if err := c.announce(false, "stopped"); err != nil {
			return err
		}
	}
	if _, err := c.w.Write(goodbye); err != nil {
		return err
	}
	return c.flush()
}
