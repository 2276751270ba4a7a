// Package issue makes authorities, certificates and requests for them: enough to try TLS
// with, and to run a site that has no authority of its own. It writes no files. What is
// made has a key of ECDSA P-256.
package issue

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"regexp"
	"time"
)

// Pair is a certificate, or a request for one, and its key, in PEM.
type Pair struct{ Cert, Key []byte }

// early is how much before now a certificate begins, for machines whose clock is behind.
const early = time.Hour

// Authority signs certificates.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// NewAuthority makes an authority that signs itself.
func NewAuthority(name string, life time.Duration) (Pair, error) {
	template := template(name, life)
	template.IsCA, template.BasicConstraintsValid, template.MaxPathLenZero = true, true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	return sign(template, nil)
}

// OpenAuthority takes one up that was made before.
func OpenAuthority(p Pair) (*Authority, error) {
	pair, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		return nil, err
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	switch {
	case !ok:
		return nil, errors.New("its key cannot sign")
	case !pair.Leaf.IsCA:
		return nil, fmt.Errorf("the certificate %q is not one of an authority", pair.Leaf.Subject.String())
	case time.Now().After(pair.Leaf.NotAfter):
		return nil, fmt.Errorf("the authority %q has expired on %s", pair.Leaf.Subject.String(), pair.Leaf.NotAfter.Format(time.DateOnly))
	}
	return &Authority{pair.Leaf, key}, nil
}

// Name is the authority's.
func (a *Authority) Name() string { return a.cert.Subject.CommonName }

// Server makes a certificate for a server that is known under these hosts, of which the
// first is its name.
func (a *Authority) Server(hosts []string, life time.Duration) (Pair, error) {
	t := template(hosts[0], life)
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	t.DNSNames, t.IPAddresses = split(hosts)
	return sign(t, a)
}

// Client makes a certificate for a client of this name: the common name, and if it could
// be one of a host, the alternative name as well.
func (a *Authority) Client(name string, life time.Duration) (Pair, error) {
	t := template(name, life)
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if hostName.MatchString(name) {
		t.DNSNames = []string{name}
	}
	return sign(t, a)
}

// Request makes a key, and a request to another authority for a certificate of it.
func Request(name string, hosts []string) (Pair, error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return Pair{}, err
	}
	t := &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}
	t.DNSNames, t.IPAddresses = split(hosts)
	der, err := x509.CreateCertificateRequest(rand.Reader, t, key)
	if err != nil {
		return Pair{}, err
	}
	return Pair{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), keyPEM}, nil
}

var hostName = regexp.MustCompile(`^(\*\.)?[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?)*$`)

// CheckHost says what is wrong with the name or address of a host.
func CheckHost(host string) error {
	if net.ParseIP(host) == nil && (!hostName.MatchString(host) || len(host) > 253) {
		return fmt.Errorf("%q is no name or address of a host; write it without a port, as in broker.example.com or 10.0.0.7", host)
	}
	return nil
}

func split(hosts []string) (names []string, addresses []net.IP) {
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			addresses = append(addresses, ip)
		} else {
			names = append(names, h)
		}
	}
	return names, addresses
}

func template(name string, life time.Duration) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		Subject:   pkix.Name{CommonName: name},
		NotBefore: now.Add(-early), NotAfter: now.Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
}

func newKey() (key *ecdsa.PrivateKey, text []byte, err error) {
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// sign makes a key and signs its certificate, by itself if there is no authority.
func sign(t *x509.Certificate, by *Authority) (Pair, error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return Pair{}, err
	}
	// At random, so that two authorities of one name do not give the same (RFC 5280 §4.1.2.2).
	if t.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return Pair{}, err
	}
	parent, signer := t, crypto.Signer(key)
	if by != nil {
		if t.Subject.CommonName == by.Name() { // it would look as if it had signed itself, and OpenSSL take it for that
			return Pair{}, fmt.Errorf("%q is the name of the authority itself; choose another", by.Name())
		}
		parent, signer = by.cert, by.key
		if t.NotAfter.After(parent.NotAfter) {
			t.NotAfter = parent.NotAfter
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), signer)
	if err != nil {
		return Pair{}, err
	}
	return Pair{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM}, nil
}
