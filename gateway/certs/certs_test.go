package certs

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/fieldferry/fieldferry/gateway/certs/certstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shake lets a client with some certificate meet the server, and returns whose
// certificate that has.
func shake(t *testing.T, s *Server, roots *x509.CertPool, client ...tls.Certificate) (string, error) {
	t.Helper()
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	server := tls.Server(theirs, s.Config())
	ended := make(chan error, 1)
	go func() {
		err := server.Handshake()
		if err != nil {
			theirs.Close()
		}
		ended <- err
	}()
	config := &tls.Config{RootCAs: roots, ServerName: "localhost"}
	if len(client) > 0 { // also one that the server has not asked for
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &client[0], nil }
	}
	c := tls.Client(ours, config)
	err := c.Handshake()
	if err == nil {
		go c.Read(make([]byte, 1)) // the pipe holds nothing, and the server may have to say no
	}
	if serr := <-ended; serr != nil {
		return "", serr
	}
	if err != nil {
		return "", err
	}
	return c.ConnectionState().PeerCertificates[0].Subject.CommonName, nil
}

// Certificates are read again when they change, and only if they are good.
func TestServerReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		ca := certstest.New(t, "ca")
		pool := x509.NewCertPool()
		pool.AddCert(ca.Cert)
		put := func(name string) {
			cert, key := ca.Issue(name, nil)
			certstest.Write(t, dir, map[string][]byte{"cert": cert, "key": key})
		}
		put("first")
		var failed []error
		files := ServerFiles{Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key")}
		s, err := OpenServer(files, func(err error) { failed = append(failed, err) })
		if err != nil {
			t.Fatal(err)
		}
		expect := func(want string) {
			t.Helper()
			time.Sleep(2 * checkEvery)
			if got, err := shake(t, s, pool); got != want || err != nil {
				t.Fatalf("%q serves, want %q: %v", got, want, err)
			}
		}
		expect("first")
		put("second, longer")
		expect("second, longer")
		certstest.Write(t, dir, map[string][]byte{"key": []byte("half")})
		expect("second, longer")
		expect("second, longer")
		if len(failed) != 1 || !strings.Contains(failed[0].Error(), "key") || s.Err() == nil {
			t.Fatalf("told %v, %v", failed, s.Err())
		}
		if err := os.Remove(files.Cert); err != nil {
			t.Fatal(err)
		}
		expect("second, longer")
		put("third one")
		expect("third one")
		if s.Err() != nil || s.Leaf().Subject.CommonName != "third one" {
			t.Fatal(s.Err(), s.Leaf().Subject)
		}
	})
}

func TestClientCertificates(t *testing.T) {
	dir := t.TempDir()
	ca, other := certstest.New(t, "ca"), certstest.New(t, "other")
	pool := x509.NewCertPool()
	pool.AddCert(ca.Cert)
	cert, key := ca.Issue("server", nil)
	good, goodKey := ca.Issue("good", nil)
	bad, badKey := ca.Issue("bad", nil)
	foreign, foreignKey := other.Issue("good", nil)
	old, oldKey := ca.Issue("old", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	certstest.Write(t, dir, map[string][]byte{"cert": cert, "key": key, "ca": ca.PEM, "crl": ca.Revoke(bad)})
	files := ServerFiles{Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key"), ClientCA: filepath.Join(dir, "ca"), Require: true, CRL: filepath.Join(dir, "crl")}
	for _, c := range []struct {
		name      string
		cert, key []byte
		want      string // in the error; "" is none
	}{
		{"good", good, goodKey, ""},
		{"revoked", bad, badKey, "bad was revoked"},
		{"of another authority", foreign, foreignKey, "unknown authority"},
		{"expired", old, oldKey, "expired"},
		{"none", nil, nil, "didn't provide a certificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := OpenServer(files, nil)
			if err != nil {
				t.Fatal(err)
			}
			var client []tls.Certificate
			if c.cert != nil {
				pair, err := tls.X509KeyPair(c.cert, c.key)
				if err != nil {
					t.Fatal(err)
				}
				client = append(client, pair)
			}
			_, err = shake(t, s, pool, client...)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

func TestOpenServerSays(t *testing.T) {
	dir := t.TempDir()
	ca := certstest.New(t, "ca")
	cert, key := ca.Issue("server", nil)
	_, otherKey := ca.Issue("other", nil)
	certstest.Write(t, dir, map[string][]byte{"cert": cert, "key": key, "other": otherKey, "empty": nil, "text": []byte("hello")})
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, c := range []struct {
		files ServerFiles
		want  string
	}{
		{ServerFiles{Cert: at("none"), Key: at("key")}, "no such file"},
		{ServerFiles{Cert: at("empty"), Key: at("key")}, "is empty"},
		{ServerFiles{Cert: at("cert"), Key: at("other")}, "does not match"},
		{ServerFiles{Cert: at("text"), Key: at("key")}, "certificate " + at("text")},
		{ServerFiles{Cert: at("cert"), Key: at("key"), ClientCA: at("text")}, "holds no certificate"},
		{ServerFiles{Cert: at("cert"), Key: at("key"), ClientCA: at("cert"), CRL: at("text")}, "no revocation list"},
	} {
		if _, err := OpenServer(c.files, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.files, err, c.want)
		}
	}
}
