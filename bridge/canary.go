package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// ErrDoubt says that a probe did not come back, and that messages are acknowledged
// all the same, or that nothing was allowed to be sent.
var ErrDoubt = errors.New("the upstream does not send our own message back")

// canary is a message to ourselves by way of the upstream.
type canary struct {
	mu      sync.Mutex // guards what follows
	sent    uint64
	waits   map[string]chan struct{} // by the payload
	refused string                   // why the upstream does not let us subscribe
	pongs   []chan struct{}          // who waits for a PINGRESP
}

// canaryExpiry is the Message Expiry Interval in seconds of what Probe sends.
const canaryExpiry = 5

// Probe sends a message to Options.Canary and returns how long it took to come back.
// It goes with QoS 0, beside the outboxes, so it waits for no backlog and appears in
// no count. Without that topic the upstream is pinged. Probe fails if the bridge is not
// connected, and with ErrDoubt where nobody can tell. It may be called concurrently, and
// ends when ctx does.
func (b *Bridge) Probe(ctx context.Context) (time.Duration, error) {
	b.mu.Lock()
	c, s := b.conn, b.status
	b.mu.Unlock()
	switch {
	case c == nil && s.LastError != "":
		return 0, fmt.Errorf("not connected: %s", s.LastError)
	case c == nil:
		return 0, errors.New("not connected yet")
	case b.o.Canary == "":
		return c.pinged(ctx)
	}
	p := &b.canary
	p.mu.Lock()
	refused := p.refused
	if refused != "" {
		p.mu.Unlock()
		return 0, fmt.Errorf("%w: it refused the subscription to %s: %s", ErrDoubt, b.o.Canary, refused)
	}
	if p.waits == nil {
		p.waits = make(map[string]chan struct{})
	}
	p.sent++
	payload := strconv.FormatInt(time.Now().UnixNano(), 36) + "-" + strconv.FormatUint(p.sent, 36)
	back := make(chan struct{})
	p.waits[payload] = back
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.waits, payload)
	}()
	began, acknowledged := time.Now(), b.delivered.Load()
	if err := c.sendCanary(payload); err != nil {
		return 0, err
	}
	select {
	case <-back:
		return time.Since(began), nil
	case <-ctx.Done():
	}
	if b.delivered.Load() > acknowledged {
		return 0, fmt.Errorf("%w, but acknowledges others: allow %s to publish and to subscribe to %s", ErrDoubt, b.user(), b.o.Canary)
	}
	return 0, fmt.Errorf("connected, and nothing comes back: %w", ctx.Err())
}

// pinged returns how long the upstream takes to answer a PINGREQ, or one that was
// on its way already.
func (c *conn) pinged(ctx context.Context) (time.Duration, error) {
	began, back := time.Now(), make(chan struct{})
	p := &c.b.canary
	p.mu.Lock()
	p.pongs = append(p.pongs, back)
	p.mu.Unlock()
	c.mu.Lock()
	c.owed = append(c.owed, packets.PINGREQ<<4, 0)
	c.mu.Unlock()
	c.wakeWriter()
	select {
	case <-back:
		return time.Since(began), nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pongs = slices.DeleteFunc(p.pongs, func(w chan struct{}) bool { return w == back })
	return 0, fmt.Errorf("connected, and no ping is answered: %w", ctx.Err())
}

// pong takes a PINGRESP.
func (b *Bridge) pong() {
	p := &b.canary
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, back := range p.pongs {
		close(back)
	}
	p.pongs = nil
}

// user names us, for people.
func (b *Bridge) user() string {
	if b.o.Username != "" {
		return "user " + b.o.Username
	}
	return "client " + strconv.Quote(b.o.ClientID)
}

// sendCanary has the writer send a message to ourselves.
func (c *conn) sendCanary(payload string) error {
	var buf bytes.Buffer
	expiry := uint32(canaryExpiry)
	p := packets.Publish{Topic: c.b.o.Canary, Payload: []byte(payload), Properties: &packets.Properties{MessageExpiry: &expiry}}
	if _, err := p.WriteTo(&buf); err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if buf.Len() > c.limits.packet {
		return fmt.Errorf("%w: it takes packets of %d bytes at most", ErrDoubt, c.limits.packet)
	}
	c.mu.Lock()
	c.owed = append(c.owed, buf.Bytes()...)
	c.mu.Unlock()
	c.wakeWriter()
	return nil
}

// canaryFilter subscribes to our own messages, of which those of before are of no use.
func (c *conn) canaryFilter() packets.SubOptions {
	return packets.SubOptions{Topic: c.b.o.Canary, QoS: 0, RetainHandling: 2}
}

// canarySubscribed takes the upstream's answer to that.
func (c *conn) canarySubscribed(code byte) {
	p := &c.b.canary
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refused = ""; code >= codeRefused {
		p.refused = refusal(code, "")
	}
}

// canaryCame takes a message from the upstream if it is one of ours to ourselves.
func (c *conn) canaryCame(m *packets.Publish) bool {
	if c.b.o.Canary == "" || m.Topic != c.b.o.Canary || m.QoS != 0 {
		return false
	}
	p := &c.b.canary
	p.mu.Lock()
	defer p.mu.Unlock()
	if back := p.waits[string(m.Payload)]; back != nil {
		close(back)
		delete(p.waits, string(m.Payload))
	}
	return true
}
