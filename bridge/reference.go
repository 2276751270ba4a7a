package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/fieldferry/fieldferry/bridge/dial"
)

// maxReferences is how many of an upstream's references to others are looked at.
const maxReferences = 16

// elsewhere reports whether an upstream said that another is to be used.
func elsewhere(err error) bool {
	var r *ReasonError
	return errors.As(err, &r) && (r.Code == codeUseAnother || r.Code == codeMoved)
}

// nextAfter says which upstream is to be tried after the one at this place ended with
// err: the next, or the one that it refers to (MQTT 5 §4.11). Only what is listed is
// followed: who can answer as an upstream must not be able to send our data and
// passwords anywhere. A reference takes the place of the next one in turn, so two
// upstreams that refer to each other are not asked more often than two that are down.
func (b *Bridge) nextAfter(at int, err error) (int, error) {
	next := (at + 1) % len(b.urls)
	var r *ReasonError
	if !elsewhere(err) || !errors.As(err, &r) || r.Server == "" {
		return next, err
	}
	references := strings.Fields(r.Server)
	for _, ref := range references[:min(len(references), maxReferences)] {
		if i := slices.IndexFunc(b.urls, func(u *url.URL) bool { return refersTo(ref, u) }); i >= 0 && i != at {
			return i, err
		}
	}
	return next, fmt.Errorf("%w; it refers to %q, which is no other of the upstreams that are listed: if it is right, add it to upstream", err, r.Server)
}

// refersTo reports whether a reference, such as name, name:port, [address]:port or a
// whole URL, means an upstream.
func refersTo(ref string, u *url.URL) bool {
	if strings.Contains(ref, "://") {
		r, err := url.Parse(ref)
		if err != nil {
			return false
		}
		ref = r.Host
	}
	host, port, err := net.SplitHostPort(ref)
	if err != nil { // without a port
		host, port = strings.Trim(ref, "[]"), ""
	}
	return host != "" && strings.EqualFold(host, u.Hostname()) && (port == "" || strings.EqualFold(net.JoinHostPort(host, port), dial.Address(u)))
}
