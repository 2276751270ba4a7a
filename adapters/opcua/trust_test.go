package opcua

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A maker makes certificates for tests.
type maker struct {
	t   *testing.T
	key *rsa.PrivateKey // of all: to make one takes long
}

func newMaker(t *testing.T) *maker {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return &maker{t, k}
}

// cert makes a certificate of an application, signed by another or by itself.
func (m *maker) cert(uri string, hosts []string, from, to time.Time, by *x509.Certificate) *x509.Certificate {
	m.t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: uri}, NotBefore: from, NotAfter: to,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, BasicConstraintsValid: true,
	}
	if uri == "" {
		tmpl.Subject.CommonName, tmpl.IsCA, tmpl.KeyUsage = "authority", true, x509.KeyUsageCertSign
	} else {
		u, err := url.Parse(uri)
		if err != nil {
			m.t.Fatal(err)
		}
		tmpl.URIs = []*url.URL{u}
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	if by == nil {
		by = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, by, m.key.Public(), m.key)
	if err != nil {
		m.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

func TestTrust(t *testing.T) {
	m := newMaker(t)
	now := time.Now()
	day := 24 * time.Hour
	good := m.cert("urn:a", []string{"plc", "10.0.0.1"}, now.Add(-day), now.Add(day), nil)
	old := m.cert("urn:a", []string{"plc"}, now.Add(-2*day), now.Add(-day), nil)
	early := m.cert("urn:a", []string{"plc"}, now.Add(day), now.Add(2*day), nil)
	ca := m.cert("", nil, now.Add(-9*day), now.Add(9*day), nil)
	signed := m.cert("urn:a", []string{"plc"}, now.Add(-day), now.Add(day), ca)
	signedOld := m.cert("urn:a", []string{"plc"}, now.Add(-2*day), now.Add(-day), ca)
	write := func(t *testing.T, dir, name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	inPEM := func(c *x509.Certificate) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	for name, c := range map[string]struct {
		file  string
		b     []byte
		chain []byte
		uri   string
		host  string
		want  string // in the error; empty is none
	}{
		"in DER":            {"a.der", good.Raw, good.Raw, "urn:a", "plc", ""},
		"in PEM":            {"a.pem", inPEM(good), good.Raw, "urn:a", "PLC", ""},
		"by address":        {"a.crt", good.Raw, good.Raw, "urn:a", "10.0.0.1", ""},
		"not there":         {"a.der", old.Raw, good.Raw, "urn:a", "plc", "is not trusted: see that it is the server's own"},
		"no such folder":    {"", nil, good.Raw, "urn:a", "plc", "is not trusted"},
		"another kind":      {"a.txt", good.Raw, good.Raw, "urn:a", "plc", "is not trusted"},
		"unreadable":        {"a.der", []byte("x"), good.Raw, "urn:a", "plc", "files there cannot be read: a.der"},
		"expired":           {"a.der", old.Raw, old.Raw, "urn:a", "plc", "has expired on"},
		"not yet":           {"a.der", early.Raw, early.Raw, "urn:a", "plc", "set the clock of this machine or of the server"},
		"wrong host":        {"a.der", good.Raw, good.Raw, "urn:a", "other", "is of plc, 10.0.0.1 and not of other: write one of these hosts"},
		"wrong application": {"a.der", good.Raw, good.Raw, "urn:b", "plc", `the server calls itself "urn:b", but its certificate is of "urn:a"`},
		"by authority":      {"ca.pem", inPEM(ca), signed.Raw, "urn:a", "plc", ""},
		"expired, signed":   {"ca.pem", inPEM(ca), signedOld.Raw, "urn:a", "plc", "has expired on"},
		"with its chain":    {"a.der", signed.Raw, append(signed.Raw[:len(signed.Raw):len(signed.Raw)], ca.Raw...), "urn:a", "plc", ""},
		"pinned":            {"pins", []byte("# servers\n" + Fingerprint(good.Raw) + " # the press\n"), good.Raw, "urn:a", "plc", ""},
		"pinned, any host":  {"pins", []byte(Fingerprint(good.Raw) + " any-host"), good.Raw, "urn:a", "other", ""},
		"pinned, one host":  {"pins", []byte(Fingerprint(good.Raw)), good.Raw, "urn:a", "other", "not of other"},
		"pinned another":    {"pins", []byte(Fingerprint(old.Raw)), good.Raw, "urn:a", "plc", "is not trusted"},
		"a broken pin":      {"pins", []byte("12345"), good.Raw, "urn:a", "plc", `pins:1: "12345" is no SHA-256 fingerprint`},
		"no certificate":    {"a.der", good.Raw, []byte("x"), "urn:a", "plc", "cannot be read"},
		"only half of it":   {"a.der", good.Raw, good.Raw[:100], "urn:a", "plc", "cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if c.file == "" {
				dir = filepath.Join(dir, "none")
			} else {
				write(t, dir, c.file, c.b)
			}
			_, err := Trust{dir}.Check(c.chain, c.uri, c.host, now)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

func TestTrustByWayOfRejected(t *testing.T) {
	m := newMaker(t)
	now := time.Now()
	c := m.cert("urn:a", []string{"plc"}, now.Add(-time.Hour), now.Add(time.Hour), nil)
	tr := Trust{filepath.Join(t.TempDir(), "trusted")}
	for range 2 { // it comes again and again
		if err := tr.Reject(c.Raw); err != nil {
			t.Fatal(err)
		}
	}
	all, err := tr.Rejected()
	if err != nil || len(all) != 1 || !all[0].Equal(c) {
		t.Fatalf("kept %d, %v", len(all), err)
	}
	if _, err := tr.Check(c.Raw, "urn:a", "plc", now); err == nil {
		t.Fatal("what was rejected is trusted")
	}
	if _, err := tr.Accept(c.Raw, false); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.Check(c.Raw, "urn:a", "plc", now); err != nil {
		t.Error(err)
	}
	if all, err := tr.Rejected(); err != nil || len(all) != 0 {
		t.Errorf("%d are still rejected, %v", len(all), err)
	}
	var untrusted *TrustError
	if _, err := tr.Check(c.Raw, "urn:a", "other", now); !errors.As(err, &untrusted) {
		t.Errorf("another host: %v", err)
	}
	if _, err := tr.Accept(c.Raw, true); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.Check(c.Raw, "urn:a", "other", now); err != nil {
		t.Error(err)
	}
}

func TestRejectedIsBounded(t *testing.T) {
	m := newMaker(t)
	tr := Trust{t.TempDir()}
	for range maxRejected + 5 {
		c := m.cert("urn:a", nil, time.Now(), time.Now().Add(time.Hour), nil)
		if err := tr.Reject(c.Raw); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := tr.Rejected(); err != nil || len(all) != maxRejected {
		t.Errorf("%d kept, %v; want %d", len(all), err, maxRejected)
	}
}

func TestIdentityIsMadeOnce(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "ua", "own.crt"), filepath.Join(dir, "ua", "own.key")
	now := time.Now()
	id, made, err := ensureIdentity(cert, key, "gw-1", now)
	if err != nil || !made {
		t.Fatalf("made %v, %v", made, err)
	}
	if want := ApplicationURI("gw-1"); id.uri() != want {
		t.Errorf("its URI is %q, want %q", id.uri(), want)
	}
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key has mode %v, %v", info.Mode(), err)
	}
	again, made, err := ensureIdentity(cert, key, "gw-1", now)
	if err != nil || made || !again.cert.Equal(id.cert) {
		t.Errorf("made again %v, %v", made, err)
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if _, made, err := ensureIdentity(cert, key, "gw-1", now); err == nil || made {
		t.Error("a certificate without its key was replaced")
	}
	_, other, err := newIdentity("gw-2", now)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, other, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ensureIdentity(cert, key, "gw-1", now); err == nil || !strings.Contains(err.Error(), "is not that of the certificate") {
		t.Errorf("the key of another certificate: %v", err)
	}
}

func FuzzFingerprint(f *testing.F) {
	f.Add("2be2306a1521829be997fac576f6d5adf1ca54ca3986cfaaa97c45b24ea7a11f")
	f.Add("sha256/K+IwahUhgpvpl/rFdvbVrfHKVMo5hs+qqXxFsk6noR8=")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parseFingerprint(s)
		if err != nil {
			return
		}
		if again, err := parseFingerprint(p); err != nil || again != p || len(p) != 64 {
			t.Errorf("%q becomes %q", s, p)
		}
	})
}
