package gateway

import (
	"crypto/x509"
	"fmt"
	"time"

	"github.com/fieldferry/fieldferry/gateway/alarm"
	"github.com/fieldferry/fieldferry/gateway/config"
)

// certLook looks at the certificates of a bridge or of a listener.
type certLook struct {
	subject string
	problem func() error               // why those on the disk are not used
	chain   func() []*x509.Certificate // in use
}

func (l *certLook) samples(now time.Time) []alarm.Sample {
	files := alarm.Sample{Name: alarm.CertificateFiles, Subject: l.subject}
	if err := l.problem(); err != nil {
		files.Value, files.Detail = 1, err.Error()
	}
	first := soonest(l.chain())
	if first == nil {
		return []alarm.Sample{files}
	}
	return []alarm.Sample{files, {Name: alarm.CertificateExpiry, Subject: l.subject, Value: first.NotAfter.Sub(now).Seconds(), Detail: expiry(first, now)}}
}

// soonest is the certificate that expires first; nil of none.
func soonest(chain []*x509.Certificate) (first *x509.Certificate) {
	for _, c := range chain {
		if first == nil || c.NotAfter.Before(first.NotAfter) {
			first = c
		}
	}
	return first
}

// expiry says when a certificate expires.
func expiry(c *x509.Certificate, now time.Time) string {
	at := c.NotAfter.UTC().Format("2006-01-02 15:04 UTC")
	switch left := c.NotAfter.Sub(now); {
	case left < 0:
		return fmt.Sprintf("%q has expired on %s", c.Subject.String(), at)
	case left < 48*time.Hour:
		return fmt.Sprintf("%q in %.0f hours, on %s", c.Subject.String(), left.Hours(), at)
	default:
		return fmt.Sprintf("%q in %.0f days, on %s", c.Subject.String(), left.Hours()/24, at)
	}
}

// expiryWarnings are what a check says of a certificate that expires soon, or is of no use
// any more.
func expiryWarnings(pos config.Pos, what string, chain []*x509.Certificate, now time.Time) []config.Problem {
	for _, c := range chain {
		if now.Before(c.NotBefore) {
			return []config.Problem{{Pos: pos, Warning: true, Text: fmt.Sprintf("%s: the certificate %q is not valid before %s; check this machine's clock", what, c.Subject.String(), c.NotBefore.UTC().Format("2006-01-02 15:04 UTC"))}}
		}
	}
	if first := soonest(chain); first != nil && first.NotAfter.Sub(now) < warnExpiry {
		return []config.Problem{{Pos: pos, Warning: true, Text: fmt.Sprintf("%s: the certificate expires: %s", what, expiry(first, now))}}
	}
	return nil
}

// warnExpiry is the alarm's first threshold.
const warnExpiry = 30 * 24 * time.Hour
