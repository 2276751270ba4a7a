package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/fieldferry/fieldferry/bridge"
	"github.com/fieldferry/fieldferry/bridge/dial"
	"github.com/fieldferry/fieldferry/gateway/certs"
	"github.com/fieldferry/fieldferry/gateway/config"
)

const (
	wayOutEvery  = time.Second      // how often certificates are looked at
	probeTimeout = 15 * time.Second // for a trial of new ones
	probeAgain   = time.Minute      // before another trial of the same
)

// wayOut is how a bridge reaches its upstreams: through what, and with which
// certificates. When those change on the disk, it tries them before it has the
// connections made anew. What the upstream does not take is not used again while what was
// used before will do: but only the certificate that we show is kept so. Whom we trust is
// always as the files say, or an authority could not be taken away.
type wayOut struct {
	files  *certs.Client // nil: no files
	dialer dial.Dialer
	log    *slog.Logger

	mu      sync.Mutex  // guards what follows
	proved  *tls.Config // that an upstream has let in last
	refused *tls.Config // newer, and not taken
	mixed   *tls.Config // the certificate of proved, the authorities of what is newest
	mixedOf *tls.Config // what was newest
	why     error       // it was not taken; nil when it was
	tried   *tls.Config // beside the connections that there are
	again   time.Time   // when that may be tried again
}

// openWayOut reads the certificates of a bridge.
func openWayOut(b *config.Bridge, log *slog.Logger) (*wayOut, error) {
	w := &wayOut{log: log, dialer: dial.Dialer{Pins: b.TLS.Pins, Proxy: b.Proxy}}
	if !secure(b) {
		return w, nil
	}
	files, err := certs.OpenClient(clientFiles(b), func(err error) {
		log.Error("certificates have changed and cannot be used; those from before stay in use", "error", err)
	})
	if err != nil {
		return nil, fmt.Errorf("%s: tls: %w", b.TLS.Pos, err)
	}
	w.files = files
	return w, nil
}

// secure reports whether a bridge has an upstream, or a proxy, with TLS.
func secure(b *config.Bridge) bool {
	for _, u := range b.Upstream {
		if dial.Secure(u.Scheme) {
			return true
		}
	}
	return b.Proxy != nil && b.Proxy.Scheme == "https"
}

func clientFiles(b *config.Bridge) certs.ClientFiles {
	return certs.ClientFiles{CA: b.TLS.CA, Cert: b.TLS.Cert, Key: b.TLS.Key, MinVersion: b.TLS.MinVersion}
}

// choose says with what to try next.
func (w *wayOut) choose() *tls.Config {
	newest := w.files.Current()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.proved == nil || newest == w.proved || newest != w.refused {
		return newest
	}
	if w.mixedOf != newest {
		w.mixed, w.mixedOf = newest.Clone(), newest
		w.mixed.Certificates, w.mixed.GetClientCertificate = w.proved.Certificates, w.proved.GetClientCertificate
	}
	return w.mixed
}

// passage is the way out of one connection. Its methods are called by the bridge, one
// at a time.
type passage struct {
	way  *wayOut
	used *tls.Config
}

func (p *passage) dial(ctx context.Context, u *url.URL) (net.Conn, error) {
	d := p.way.dialer
	if p.way.files != nil {
		p.used = p.way.choose()
		d.TLS = func() *tls.Config { return p.used }
	}
	return d.Dial(ctx, u)
}

// attempted learns from how an attempt has ended.
func (p *passage) attempted(u *url.URL, err error) {
	w := p.way
	if w.files == nil || !dial.Secure(u.Scheme) {
		return
	}
	newest := w.files.Current()
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err == nil && p.used == w.mixed && p.used != nil:
	case err == nil:
		w.proved = p.used
		if p.used == newest {
			w.refused, w.why = nil, nil
		}
	case !refusesUs(err):
	case p.used == newest && w.proved != nil && w.proved != newest:
		w.refuse(newest, err)
	case p.used == w.mixed:
		w.refused = nil // neither will do: the new one in its turn
	}
}

// refusesUs reports whether an upstream did not take who we are.
func refusesUs(err error) bool {
	var r *dial.Refusal
	if errors.As(err, &r) {
		return r.Ours
	}
	var code *bridge.ReasonError
	return errors.As(err, &code) && (code.Code == 0x86 || code.Code == 0x87)
}

// refuse notes that new certificates are not taken. w.mu is held.
func (w *wayOut) refuse(newest *tls.Config, err error) {
	if w.refused != newest {
		w.log.Error("the upstream does not take the new certificates; those from before stay in use", "error", err)
	}
	w.refused, w.why = newest, err
}

// run looks for new certificates until ctx ends.
func (w *wayOut) run(ctx context.Context, current func() []*connection) error {
	if w.files == nil {
		return nil
	}
	tick := time.NewTicker(wayOutEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			w.look(ctx, current())
		case <-ctx.Done():
			return nil
		}
	}
}

// look tries new certificates, and has the connections made anew with them.
func (w *wayOut) look(ctx context.Context, connections []*connection) {
	newest := w.files.Current()
	now := time.Now()
	w.mu.Lock()
	idle := w.proved == nil || newest == w.proved || newest == w.tried && now.Before(w.again)
	w.mu.Unlock()
	u := connectedTo(connections)
	if idle || u == nil { // who connects next takes the new ones
		return
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	d := w.dialer
	d.TLS = func() *tls.Config { return newest }
	err := d.Probe(ctx, u)
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return
	}
	w.mu.Lock()
	w.tried, w.again = newest, now.Add(probeAgain)
	var r *dial.Refusal
	switch {
	case errors.As(err, &r) && r.TLS:
		w.refuse(newest, err)
	case err != nil:
		w.log.Warn("new certificates could not be tried; those from before stay in use meanwhile", "error", err)
	default:
		w.refused = nil
	}
	w.mu.Unlock()
	if err != nil {
		return
	}
	w.log.Info("certificates have changed; the connections are made anew with them", "upstream", u.Redacted())
	for _, c := range connections {
		c.bridge.Renew()
	}
}

// connectedTo is an upstream with TLS that a connection has.
func connectedTo(connections []*connection) *url.URL {
	for _, c := range connections {
		s := c.bridge.Status()
		if u, err := url.Parse(s.URL); s.Connected && err == nil && dial.Secure(u.Scheme) {
			return u
		}
	}
	return nil
}

// problem is what keeps the certificates on the disk from being used, nil if nothing does.
func (w *wayOut) problem() error {
	if w.files == nil {
		return nil
	}
	if err := w.files.Err(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.why != nil {
		return fmt.Errorf("the upstream does not take them: %w", w.why)
	}
	return nil
}
