package issue

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"strings"
	"testing"
	"time"
)

func parse(t *testing.T, p Pair) *x509.Certificate {
	t.Helper()
	pair, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf
}

func TestCertificates(t *testing.T) {
	ca, err := NewAuthority("site", 100*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	a, err := OpenAuthority(ca)
	if err != nil {
		t.Fatal(err)
	}
	server, err := a.Server([]string{"broker.example.com", "10.0.0.7", "::1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	client, err := a.Client("gw-1", 1000*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(parse(t, ca))
	for _, host := range []string{"broker.example.com", "10.0.0.7", "::1"} {
		if _, err := parse(t, server).Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	c := parse(t, client)
	if _, err := c.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil || c.Subject.CommonName != "gw-1" {
		t.Errorf("%s: %v", c.Subject, err)
	}
	if _, err := c.Verify(x509.VerifyOptions{Roots: roots}); err == nil {
		t.Error("a client's certificate serves a server")
	}
	if !c.NotAfter.Equal(parse(t, ca).NotAfter) {
		t.Errorf("a certificate outlives its authority, until %s", c.NotAfter)
	}
	for _, bad := range []Pair{client, {ca.Cert, client.Key}} {
		if _, err := OpenAuthority(bad); err == nil {
			t.Error("that is an authority")
		}
	}
	if _, err := a.Client("site", time.Hour); err == nil || !strings.Contains(err.Error(), "choose another") {
		t.Errorf("a client with the authority's name: %v", err)
	}
}

func TestRequest(t *testing.T) {
	p, err := Request("gw-2", []string{"gw-2.example.com", "10.0.0.8"})
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(p.Cert)
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if r.CheckSignature() != nil || r.Subject.CommonName != "gw-2" || r.DNSNames[0] != "gw-2.example.com" || !r.IPAddresses[0].Equal(net.IPv4(10, 0, 0, 8)) {
		t.Errorf("%+v", r)
	}
}

func TestCheckHost(t *testing.T) {
	for host, good := range map[string]bool{
		"localhost": true, "a.example.com": true, "*.example.com": true, "10.0.0.7": true, "::1": true, "gw_1": true,
		"": false, "a:8883": false, "a/b": false, ".a": false, "a..b": false, "-a": false, "ä.de": false, strings.Repeat("a", 254): false,
	} {
		if err := CheckHost(host); (err == nil) != good {
			t.Errorf("%q: %v", host, err)
		}
	}
}
