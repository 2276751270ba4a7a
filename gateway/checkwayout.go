package gateway

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"time"

	"github.com/fieldferry/fieldferry/bridge/dial"
	"github.com/fieldferry/fieldferry/gateway/certs"
	"github.com/fieldferry/fieldferry/gateway/config"
)

// checkWayOut says what is wrong with the way of a bridge to its upstreams, as far as
// that can be said without going it.
func checkWayOut(c *config.Config, b *config.Bridge, now time.Time) (all []config.Problem) {
	pos := func(key string) config.Pos {
		if at, there := c.Position("bridges", b.Name, key); there {
			return at
		}
		return b.Pos
	}
	warn := func(at config.Pos, format string, args ...any) {
		all = append(all, config.Problem{Pos: at, Warning: true, Text: fmt.Sprintf(format, args...)})
	}
	if b.Proxy != nil && b.Proxy.User != nil && b.Proxy.Scheme == "http" && !loopbackHost(b.Proxy.Hostname()) {
		warn(pos("proxy"), "the password goes to the proxy %s without encryption; write https:// if it speaks TLS", b.Proxy.Host)
	}
	if !secure(b) {
		return all
	}
	files, err := certs.OpenClient(clientFiles(b), nil)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		warn(b.TLS.Pos, "tls: %v; the gateway does not start without it", err)
		return all
	case err != nil:
		return append(all, config.Problem{Pos: b.TLS.Pos, Text: fmt.Sprintf("tls: %v", err)})
	}
	all = append(all, expiryWarnings(b.TLS.Pos, "tls", files.Chain(), now)...)
	if leaf := files.Leaf(); leaf != nil && len(leaf.ExtKeyUsage) > 0 &&
		!slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny) {
		warn(b.TLS.Pos, "tls: the certificate %q is not one for clients, so the upstream will not take it; have one made with the extended key usage clientAuth", leaf.Subject.String())
	}
	for _, u := range b.Upstream {
		if !dial.Secure(u.Scheme) && (b.TLS.Cert != "" || len(b.TLS.Pins) > 0) {
			warn(pos("upstream"), "the upstream %s is without TLS, unlike others of this bridge: what is sent there can be read and changed on its way", u.Redacted())
		}
	}
	return all
}

func loopbackHost(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
