package opcua

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

// A Link is one server with all devices on it.
type Link struct {
	config  Config
	devices []*device
	log     *slog.Logger
	poller  *adapters.Poller // nil: it is told of changes
	bus     *bus             // of the poller

	mu      sync.Mutex // guards what follows
	running bool
	session *session            // nil: there is none
	pulses  []pulse             // to be ended
	failure string              // that was logged last
	certs   []*x509.Certificate // of the last session

	connected               atomic.Bool
	connects, polls, failed atomic.Uint64
	skipped, refused        atomic.Uint64
	online, offline         atomic.Int64
}

// New returns a link. It does not connect, and reads no file. An error names the
// device and the point that cannot be read as they are described.
func New(c Config) (*Link, error) {
	c.Timeout = cmp.Or(c.Timeout, answerTimeout)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Timeout < 0 {
		return nil, errors.New("the timeout must not be negative")
	}
	if _, err := parseEndpoint(c.Endpoint); err != nil {
		return nil, err
	}
	mode, ok := modes[c.Mode]
	if _, known := policies[c.Policy]; !known || !ok || c.secure() != (mode != modes["None"]) {
		return nil, fmt.Errorf("security policy %q and mode %q do not go together", c.Policy, c.Mode)
	}
	if c.secure() && (c.Cert == "" || c.Key == "" || c.Trust.Folder == "") {
		return nil, errors.New("security needs a certificate, its key and a folder of trusted certificates")
	}
	l := &Link{config: c, log: c.Log.With("link", c.Name)}
	for i := range c.Devices {
		d, err := newDevice(&c.Devices[i])
		if err != nil {
			return nil, fmt.Errorf("device %s: %w", c.Devices[i].Device.Name, err)
		}
		l.devices = append(l.devices, d)
	}
	if c.Poll {
		l.bus = newBus(l)
		l.poller = adapters.NewPoller(c.Name, l.bus, adapters.PollerOptions{Log: c.Log})
		l.bus.plan()
	}
	return l, nil
}

// policies are those that a channel may have. The others are broken, OPC UA Part 7
// §6.6.
var policies = map[string]bool{"": true, "None": true, "Basic256Sha256": true, "Aes128_Sha256_RsaOaep": true, "Aes256_Sha256_RsaPss": true}

// String returns the name of the link.
func (l *Link) String() string { return l.config.Name }

// Stats returns what was counted so far. Told of changes, a poll is a message of the
// server with values of a device, a skipped one such in which the server says that it
// has lost values, and a failed one a lost connection.
func (l *Link) Stats() adapters.Stats {
	if l.poller != nil {
		return l.poller.Stats()
	}
	l.mu.Lock()
	failure := l.failure
	l.mu.Unlock()
	return adapters.Stats{
		Connected: l.connected.Load(),
		LastError: failure,
		Connects:  l.connects.Load(),
		Polls:     l.polls.Load(),
		Failed:    l.failed.Load(),
		Skipped:   l.skipped.Load(),
		Refused:   l.refused.Load(),
		Online:    int(l.online.Load()),
		Offline:   int(l.offline.Load()),
	}
}

// Run reads until ctx ends, as [adapters.Link] has it. It returns within a second or
// two: the server is told that the session ends.
func (l *Link) Run(ctx context.Context, sink adapters.Sink) error {
	l.setRunning(true)
	defer l.setRunning(false)
	if l.poller != nil {
		return l.poll(ctx, sink)
	}
	return l.watch(ctx, sink)
}

// watch keeps a session and is told of changes.
func (l *Link) watch(ctx context.Context, sink adapters.Sink) error {
	w := newWatch(l, sink)
	var old *orphan
	wait := retryFirst
	for ctx.Err() == nil {
		s, err := l.connect(ctx, old)
		if err != nil {
			if ctx.Err() == nil {
				w.lost(ctx, connectReason(err))
				wait = l.pause(ctx, err, wait)
			}
			continue
		}
		old, wait = nil, retryFirst
		err = w.serveGuarded(ctx, s)
		l.setSession(nil)
		if ctx.Err() != nil {
			l.finishPulses(s)
			s.close(closeTimeout)
			break
		}
		l.failed.Add(1)
		l.log.Warn("the connection is lost", "error", err)
		w.lost(ctx, reasonOf(err))
		patience := time.Duration(0)
		if !unknown(err) { // it still answers
			patience = closeTimeout
		}
		old = s.close(patience)
	}
	return nil
}

// connect opens a session and lets writers have it.
func (l *Link) connect(ctx context.Context, old *orphan) (*session, error) {
	s, err := connectGuarded(ctx, &l.config, old)
	if err != nil {
		return nil, err
	}
	l.connects.Add(1)
	l.log.Info("connected", "policy", cmp.Or(l.config.Policy, "None"), "mode", cmp.Or(l.config.Mode, "None"))
	l.setSession(s)
	return s, nil
}

// connectGuarded takes a panic in the library for an error.
func connectGuarded(ctx context.Context, c *Config, old *orphan) (s *session, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic in a protocol library: %v", r)
		}
	}()
	return connect(ctx, c, old)
}

// serveGuarded takes a panic in the library, or over what it made of a message, for an
// error.
func (w *watch) serveGuarded(ctx context.Context, s *session) (err error) {
	defer func() {
		if r := recover(); r != nil {
			w.link.log.Error("panic in a protocol library", "panic", r, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return w.serve(ctx, s)
}

// pause waits after a failed attempt, and returns how long to wait after the next.
func (l *Link) pause(ctx context.Context, err error, wait time.Duration) time.Duration {
	l.tellFailure(err)
	var config *ConfigError
	if errors.As(err, &config) {
		wait = config.wait
	}
	select {
	case <-ctx.Done():
	case <-time.After(wait):
	}
	return min(2*wait, retryMax)
}

// tellFailure logs why there is no connection, each reason once.
func (l *Link) tellFailure(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := err.Error()
	var op *net.OpError
	if errors.As(err, &op) { // without our port, which is another each time
		text = op.Op + " " + op.Err.Error()
	}
	if text != l.failure {
		l.failure = text
		l.log.Warn("cannot connect", "error", err)
	}
}

// Why a device is offline whose server does not take us, or is not the one we trust.
const (
	reasonUntrusted = "certificate-untrusted"
	reasonRefused   = "refused"
)

func connectReason(err error) string {
	var untrusted *TrustError
	var config *ConfigError
	switch {
	case errors.As(err, &untrusted), errors.Is(err, errForged):
		return reasonUntrusted
	case errors.As(err, &config):
		return reasonRefused
	}
	return adapters.ReasonNotConnected
}

func (l *Link) setRunning(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running = on
}

func (l *Link) setSession(s *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.session = s
	l.connected.Store(s != nil)
	if s != nil {
		l.failure, l.certs = "", s.certs
	}
}

// Certificates returns those of the last session: ours and the server's. It may be
// called at any time.
func (l *Link) Certificates() []*x509.Certificate {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.certs
}

// open returns the session, if there is one.
func (l *Link) open() (*session, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !l.running:
		return nil, adapters.ErrNotRunning
	case l.session == nil:
		return nil, adapters.ErrNotConnected
	}
	return l.session, nil
}

func (l *Link) device(name string) (*device, error) {
	for _, d := range l.devices {
		if d.Name == name {
			return d, nil
		}
	}
	return nil, fmt.Errorf("there is no device %s on %s", name, l)
}

// Write writes points of a device and calls methods, as [adapters.Writer] has it. A
// method is called by writing its arguments to its point: true for none, the value
// itself for one, a list for several; what it returns is what is read back. A pulse
// is ended by the link, also when it stops meanwhile.
func (l *Link) Write(ctx context.Context, device string, values []adapters.Assignment) ([]adapters.Sample, error) {
	d, err := l.device(device)
	if err != nil {
		return nil, err
	}
	points, err := d.check(values)
	if err != nil {
		return nil, err
	}
	s, err := l.open()
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	// What was begun is finished: half of it would be worse than none.
	samples, pulses, err := s.write(context.WithoutCancel(ctx), points, values)
	l.mu.Lock()
	l.pulses = append(l.pulses, pulses...)
	ended := !l.running
	l.mu.Unlock()
	if ended { // Run has ended what it knew of
		err = errors.Join(err, l.finishPulses(s))
	}
	return samples, err
}

// CheckWrite is what [adapters.Checker] has. Whether a value is of the variable's type
// only the server knows.
func (l *Link) CheckWrite(device string, values []adapters.Assignment) error {
	d, err := l.device(device)
	if err == nil {
		_, err = d.check(values)
	}
	return err
}

// CheckRead is what [adapters.Checker] has.
func (l *Link) CheckRead(device string, points []string) error {
	d, err := l.device(device)
	if err == nil {
		_, err = d.named(points)
	}
	return err
}

// Read reads points of a device, as [adapters.Reader] has it.
func (l *Link) Read(ctx context.Context, device string, points []string) ([]adapters.Sample, error) {
	d, err := l.device(device)
	if err != nil {
		return nil, err
	}
	asked, err := d.named(points)
	if err != nil {
		return nil, err
	}
	s, err := l.open()
	if err != nil {
		return nil, err
	}
	return s.readNow(ctx, asked)
}

// endPulses ends the pulses that are due, or all.
func (l *Link) endPulses(ctx context.Context, s *session, all bool) error {
	l.mu.Lock()
	due := l.pulses[:0:0]
	var later []pulse
	for _, p := range l.pulses {
		if all || !time.Now().Before(p.at) {
			due = append(due, p)
		} else {
			later = append(later, p)
		}
	}
	l.pulses = later
	l.mu.Unlock()
	var errs []error
	for _, p := range due {
		err := s.endPulse(ctx, p)
		if err == nil {
			continue
		}
		p.tries--
		p.at = time.Now().Add(time.Second)
		l.log.Error("cannot end a pulse", "point", p.point.Point.Point.Name, "error", err, "tries_left", p.tries)
		errs = append(errs, fmt.Errorf("%s: the pulse was begun and could not be ended: %w", p.point.Point.Point.Name, err))
		if p.tries > 0 && !all {
			l.mu.Lock()
			l.pulses = append(l.pulses, p)
			l.mu.Unlock()
		}
	}
	return errors.Join(errs...)
}

// finishPulses ends all pulses when the link stops.
func (l *Link) finishPulses(s *session) error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return l.endPulses(ctx, s, true)
}
