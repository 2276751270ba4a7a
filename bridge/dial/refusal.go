package dial

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"
)

// Refusal says in one sentence why there is no connection, and what to check.
type Refusal struct {
	Text string
	Err  error // what the libraries said

	// Ours says that what we are is at fault, as our certificate: another one may do.
	Ours bool

	// TLS says that it is about TLS or certificates, and not about the network.
	TLS bool
}

func (e *Refusal) Error() string { return e.Text }
func (e *Refusal) Unwrap() error { return e.Err }

// What a port can turn out to speak when MQTT was tried there.
var (
	errSpeaksTLS  = errors.New("the answer is TLS")
	errSpeaksHTTP = errors.New("the answer is HTTP")
)

// Recognise returns an error for the beginning of an answer that is no MQTT but
// something well known.
func Recognise(head []byte) error {
	switch {
	case len(head) >= 2 && head[0] == 21 && head[1] == 3: // an alert, RFC 8446 §5.1
		return errSpeaksTLS
	case bytes.HasPrefix(head, []byte("HT")): // TP/1.1 400
		return errSpeaksHTTP
	}
	return nil
}

// Explain makes a Refusal of an error of Dial, or of a connection that ended before
// the upstream's CONNACK. It leaves errors alone of which it knows no more than they
// say.
func Explain(u *url.URL, err error) error {
	var known *Refusal
	if err == nil || errors.As(err, &known) {
		return err
	}
	e := explainer{u: u, at: Address(u), err: err}
	text := e.explain()
	if text == "" {
		return err
	}
	return &Refusal{Text: text, Err: err, Ours: e.ours, TLS: e.tls}
}

type explainer struct {
	u    *url.URL
	at   string
	err  error
	ours bool
	tls  bool
}

func (e *explainer) explain() string {
	var proxy *ProxyError
	if errors.As(e.err, &proxy) {
		return e.proxy(proxy)
	}
	if text := cmp.Or(e.certificate(e.at, "tls.ca"), e.alert()); text != "" {
		e.tls = true
		return text
	}
	var upgrade *UpgradeError
	if errors.As(e.err, &upgrade) && upgrade.Status != 0 {
		return e.upgrade(upgrade)
	}
	if text := network(e.at, "upstream", e.err); text != "" {
		return text
	}
	return e.silence()
}

// certificate explains what is wrong with a server's certificate. ca is where its
// authority would be given.
func (e *explainer) certificate(at, ca string) string {
	var pin *PinError
	if errors.As(e.err, &pin) {
		return fmt.Sprintf("no certificate of %s has a key that is in tls.pins: its own key is %s; if that is right, put it there", at, pin.Seen)
	}
	var authority x509.UnknownAuthorityError
	if errors.As(e.err, &authority) {
		by := "an authority"
		if c := authority.Cert; c != nil {
			if by = fmt.Sprintf("%q", c.Issuer.String()); !c.IsCA && bytes.Equal(c.RawIssuer, c.RawSubject) {
				return fmt.Sprintf("the certificate of %s is signed by itself, %s: if it is the right one, put it into %s", at, by, ca)
			}
		}
		return fmt.Sprintf("the certificate of %s is signed by %s, which is not trusted: check that %s has the certificate of that authority", at, by, ca)
	}
	var host x509.HostnameError
	if errors.As(e.err, &host) {
		return fmt.Sprintf("the certificate of %s is for %s and not for %s: write the name in the URL as the certificate has it, or have one made for this name", at, names(host.Certificate), host.Host)
	}
	var invalid x509.CertificateInvalidError
	if errors.As(e.err, &invalid) {
		c := invalid.Cert
		now := time.Now()
		switch {
		case invalid.Reason == x509.Expired && now.Before(c.NotBefore):
			return fmt.Sprintf("the certificate %q of %s is not valid before %s, and it is %s by our clock: check this machine's clock (timedatectl)",
				c.Subject.String(), at, stamp(c.NotBefore), stamp(now))
		case invalid.Reason == x509.Expired:
			return fmt.Sprintf("the certificate %q of %s expired on %s, and it is %s by our clock: have it renewed, or check this machine's clock (timedatectl)",
				c.Subject.String(), at, stamp(c.NotAfter), stamp(now))
		case invalid.Reason == x509.IncompatibleUsage:
			return fmt.Sprintf("the certificate of %s is not one for servers: have one made with the extended key usage serverAuth", at)
		}
		return fmt.Sprintf("the certificate of %s is not valid: %v; have a new one made", at, invalid)
	}
	var roots x509.SystemRootsError
	if errors.As(e.err, &roots) {
		return fmt.Sprintf("this machine has no list of trusted authorities: install ca-certificates, or give the authority of %s in %s", at, ca)
	}
	return ""
}

// names are those that a certificate is for.
func names(c *x509.Certificate) string {
	all := append([]string(nil), c.DNSNames...)
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	const most = 5
	switch {
	case len(all) == 0:
		return "no host at all (it has no subject alternative name)"
	case len(all) > most:
		return strings.Join(all[:most], ", ") + " and others"
	}
	return strings.Join(all, ", ")
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

// alerts are what the other side can say about us in TLS (RFC 8446 §6), as crypto/tls
// words it.
var alerts = map[string]string{
	"tls: bad certificate":                "does not take our certificate (alert “bad certificate”): check tls.cert: whether it is of an authority that the upstream trusts, for clients, and not revoked; the upstream's log says more",
	"tls: unsupported certificate":        "does not take our certificate (alert “unsupported certificate”): check that tls.cert is one for clients, with the extended key usage clientAuth",
	"tls: revoked certificate":            "says that our certificate was revoked: have a new one made and put it into tls.cert",
	"tls: expired certificate":            "says that our certificate has expired or is not valid yet: renew tls.cert, or check the clocks of both machines",
	"tls: unknown certificate":            "does not take our certificate (alert “unknown certificate”): check tls.cert; the upstream's log says more",
	"tls: unknown certificate authority":  "does not know the authority of our certificate: check that tls.cert is of one that the upstream trusts, and holds the certificates in between as well",
	"tls: access denied":                  "does not let our certificate in (alert “access denied”): check the upstream's rules for tls.cert",
	"tls: certificate required":           "wants a certificate of us: give it in tls.cert and tls.key",
	"tls: error decrypting message":       "could not check our signature: check that tls.key is the key of tls.cert",
	"tls: handshake failure":              "and we have no way of TLS in common, or it wants a certificate of us: check tls.cert, and which TLS the upstream allows",
	"tls: protocol version not supported": "speaks none of our versions of TLS: check tls.min_version",
	"tls: unrecognized name":              "does not know the name %s: write the host in the URL as the upstream has it",
	"tls: insufficient security level":    "wants stronger ciphers or keys than ours: check the key of tls.cert",
	"tls: internal error":                 "failed in TLS: its log says more",
	"tls: no application protocol":        "wants a protocol to be named in TLS (ALPN) that is not MQTT: check the port",
}

// alert explains what TLS says beside certificates of the server.
func (e *explainer) alert() string {
	var op *net.OpError
	if errors.As(e.err, &op) && op.Op == "remote error" && op.Err != nil { // as crypto/tls tells an alert
		what := alerts[op.Err.Error()]
		if what == "" {
			return fmt.Sprintf("%s ended TLS with an alert (%s): its log says more", e.at, strings.TrimPrefix(op.Err.Error(), "tls: "))
		}
		e.ours = strings.Contains(what, "certificate")
		if strings.Contains(what, "%s") {
			what = fmt.Sprintf(what, e.u.Hostname())
		}
		return e.at + " " + what
	}
	var header tls.RecordHeaderError
	if errors.As(e.err, &header) {
		return fmt.Sprintf("%s does not speak TLS: write %s:// if it is meant to be without, or check the port", e.at, strings.TrimSuffix(e.u.Scheme, "s"))
	}
	if errors.Is(e.err, errSpeaksTLS) {
		return fmt.Sprintf("%s speaks TLS: write %ss://", e.at, e.u.Scheme)
	}
	if errors.Is(e.err, errSpeaksHTTP) {
		return fmt.Sprintf("%s speaks HTTP and not MQTT: write ws:// or wss:// with the path of its broker, or check the port", e.at)
	}
	if text := e.err.Error(); strings.Contains(text, "selected unsupported protocol version") {
		return fmt.Sprintf("%s speaks only versions of TLS below tls.min_version: lower that, or have the upstream raise its own", e.at)
	} else if what, ok := strings.CutPrefix(text, "tls: "); ok {
		return fmt.Sprintf("TLS with %s failed (%s): check that the port speaks TLS", e.at, what)
	}
	return ""
}

func (e *explainer) proxy(p *ProxyError) string {
	switch {
	case p.Status == http.StatusProxyAuthRequired || p.Status == http.StatusUnauthorized: // the latter is tinyproxy's word for a wrong password
		return fmt.Sprintf("the proxy %s does not let us in: give the right user and password, as proxy: http://USER:PASSWORD@%s", p.Proxy, p.Proxy)
	case p.Status == http.StatusForbidden || p.Status == http.StatusMethodNotAllowed:
		return fmt.Sprintf("the proxy %s does not allow connections to %s (%d): have its rules allow CONNECT to that host and port", p.Proxy, e.at, p.Status)
	case p.Status/100 == 5:
		return fmt.Sprintf("the proxy %s does not reach %s (%d): check upstream, and the proxy's log", p.Proxy, e.at, p.Status)
	case p.Status != 0:
		return fmt.Sprintf("the proxy %s does not connect us to %s, it answered %d: check that it is an HTTP proxy that allows CONNECT", p.Proxy, e.at, p.Status)
	}
	inner := explainer{u: e.u, at: p.Proxy, err: p.Err}
	if text := inner.certificate(p.Proxy, "tls.ca (it serves for an https:// proxy too)"); text != "" {
		return "proxy: " + text
	}
	var header tls.RecordHeaderError
	if errors.As(p.Err, &header) {
		return fmt.Sprintf("the proxy %s does not speak TLS: write proxy: http://", p.Proxy)
	}
	if text := network(p.Proxy, "proxy", p.Err); text != "" {
		return "proxy: " + text
	}
	return fmt.Sprintf("the proxy %s gave no answer that can be used (%v): check that it is an HTTP proxy, and whether it wants https://", p.Proxy, p.Err)
}

func (e *explainer) upgrade(up *UpgradeError) string {
	path := e.u.RequestURI()
	switch up.Status {
	case http.StatusSwitchingProtocols:
		return fmt.Sprintf("%s has WebSocket at %s, but not for MQTT: check the path in the URL", e.at, path)
	case http.StatusNotFound:
		return fmt.Sprintf("%s has nothing at %s (404): check the path in the URL; brokers often have /mqtt", e.at, path)
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Sprintf("%s refuses WebSocket at %s (%d): check what it wants in the URL's path or query, and its rules", e.at, path, up.Status)
	}
	return fmt.Sprintf("%s does not begin WebSocket at %s, it answered %d: check the URL", e.at, path, up.Status)
}

// network explains why nothing answers at an address, which stands under key.
func network(at, key string, err error) string {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return fmt.Sprintf("there is no host %s: check %s, and whether this machine's name server knows it", dns.Name, key)
	case errors.As(err, &dns):
		return fmt.Sprintf("the name server did not say where %s is: check the network and the name server (resolvectl status)", dns.Name)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("nothing listens at %s: check the port in %s, and whether the server runs", at, key)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return fmt.Sprintf("there is no way to %s: check the network (ip route)", at)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return fmt.Sprintf("no answer from %s in time: check the network and firewalls, and whether a proxy is needed", at)
	}
	return ""
}

// silent reports whether a connection was closed without a word.
func silent(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// silence explains a connection that was closed without a word.
func (e *explainer) silence() string {
	if !silent(e.err) {
		return ""
	}
	switch e.u.Scheme {
	case "mqtt":
		return e.at + " closed the connection without a word: check whether that port wants TLS (mqtts://) and speaks MQTT 5; the upstream's log says more"
	case "mqtts", "wss":
		return e.at + " closed the connection without a word: check whether that port speaks TLS, and whether it wants a certificate (tls.cert); the upstream's log says more"
	}
	return e.at + " closed the connection without a word: check whether that port has WebSocket, or wants TLS (wss://); the upstream's log says more"
}
