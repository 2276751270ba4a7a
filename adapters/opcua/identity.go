package opcua

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// identityLife is how long a certificate that we make is good for. Its end is told
// beforehand, by an alarm.
const identityLife = 5 * 365 * 24 * time.Hour

// identity is who we are to a server.
type identity struct {
	cert *x509.Certificate
	key  *rsa.PrivateKey
}

// ApplicationURI names this gateway to OPC UA servers. OPC UA Part 4 §7.2.
func ApplicationURI(gateway string) string {
	if gateway == "" {
		gateway = "gateway"
	}
	return "urn:" + url.PathEscape(hostName()) + ":fieldferry:" + url.PathEscape(gateway)
}

func hostName() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "localhost"
	}
	return strings.ToLower(name)
}

// loadIdentity reads a certificate and its key in PEM or DER.
func loadIdentity(cert, key string) (*identity, error) {
	b, err := readSmall(cert)
	if err != nil {
		return nil, err
	}
	ders, err := certificates(b)
	if err != nil {
		return nil, fmt.Errorf("%s is no certificate: %w", cert, err)
	}
	id := &identity{}
	if id.cert, err = x509.ParseCertificate(ders[0]); err != nil {
		return nil, fmt.Errorf("%s is no certificate: %w", cert, err)
	}
	if b, err = readSmall(key); err != nil {
		return nil, err
	}
	if id.key, err = parseKey(b); err != nil {
		return nil, fmt.Errorf("%s is no RSA key: %w", key, err)
	}
	if pub, ok := id.cert.PublicKey.(*rsa.PublicKey); !ok || !pub.Equal(id.key.Public()) {
		return nil, fmt.Errorf("the key in %s is not that of the certificate in %s", key, cert)
	}
	return id, nil
}

func parseKey(b []byte) (*rsa.PrivateKey, error) {
	if p, _ := pem.Decode(b); p != nil {
		b = p.Bytes
	}
	if k, err := x509.ParsePKCS1PrivateKey(b); err == nil {
		return k, nil
	}
	k, err := x509.ParsePKCS8PrivateKey(b)
	if err != nil {
		return nil, err
	}
	if r, ok := k.(*rsa.PrivateKey); ok {
		return r, nil
	}
	return nil, errors.New("it is of another kind")
}

// ensureIdentity reads a certificate and its key, and makes them if neither file is
// there. made says that it did.
func ensureIdentity(cert, key, gateway string, now time.Time) (id *identity, made bool, err error) {
	_, certErr := os.Stat(cert)
	_, keyErr := os.Stat(key)
	if !errors.Is(certErr, fs.ErrNotExist) || !errors.Is(keyErr, fs.ErrNotExist) {
		id, err = loadIdentity(cert, key)
		return id, false, err
	}
	certPEM, keyPEM, err := newIdentity(gateway, now)
	if err != nil {
		return nil, false, err
	}
	for _, name := range []string{cert, key} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return nil, false, err
		}
	}
	if err := errors.Join(writeFile(key, keyPEM, 0o600), writeFile(cert, certPEM, 0o644)); err != nil {
		return nil, false, fmt.Errorf("cannot keep the certificate that was made: %w", err)
	}
	id, err = loadIdentity(cert, key)
	return id, true, err
}

// newIdentity makes a certificate that signs itself, as OPC UA Part 6 §6.2.2 wants it.
func newIdentity(gateway string, now time.Time) (cert, key []byte, err error) {
	k, err := rsa.GenerateKey(rand.Reader, 2048) // what every policy takes
	if err != nil {
		return nil, nil, err
	}
	uri, err := url.Parse(ApplicationURI(gateway))
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		SerialNumber:          serial.Add(serial, big.NewInt(1)),
		Subject:               pkix.Name{CommonName: "Fieldferry " + gateway, Organization: []string{"Fieldferry"}},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(identityLife),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment | x509.KeyUsageKeyEncipherment | x509.KeyUsageDataEncipherment | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		DNSNames:              []string{hostName()},
		URIs:                  []*url.URL{uri},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, k.Public(), k)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)}), nil
}

// uri is the application's, by its certificate.
func (id *identity) uri() string {
	if len(id.cert.URIs) == 0 {
		return ""
	}
	return id.cert.URIs[0].String()
}
