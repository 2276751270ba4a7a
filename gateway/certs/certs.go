// Package certs serves certificates and keys that lie in files, and reads them again
// when they change. What cannot be read, because it is half written or does not fit
// together, leaves what was read before in force.
package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// ServerFiles are the files of a listener.
type ServerFiles struct {
	Cert, Key  string // PEM; the certificate first, then those that lead to its root
	ClientCA   string // who may sign clients' certificates; empty: clients are asked for none
	Require    bool   // clients must have one
	CRL        string // what was revoked, PEM or DER; empty: nothing
	MinVersion uint16 // 0 is TLS 1.2
}

// Server is the TLS of a listener. Its methods may be called concurrently.
type Server struct{ watched }

// OpenServer reads the files. failed, which may be nil, is told when they change and
// cannot be used.
func OpenServer(files ServerFiles, failed func(error)) (*Server, error) {
	s := &Server{watched{names: files.names(), load: files.load, failed: failed}}
	return s, s.open()
}

// Config returns a configuration that is as the files are at each handshake.
func (s *Server) Config() *tls.Config {
	return &tls.Config{
		MinVersion: s.config.MinVersion,
		// What is renegotiated or resumed would keep what has been replaced.
		SessionTicketsDisabled: true,
		GetConfigForClient:     func(*tls.ClientHelloInfo) (*tls.Config, error) { return s.current(), nil },
	}
}

func (f *ServerFiles) names() []string { return []string{f.Cert, f.Key, f.ClientCA, f.CRL} }

func (f *ServerFiles) load() (*tls.Config, error) {
	c := &tls.Config{MinVersion: max(f.MinVersion, tls.VersionTLS12), SessionTicketsDisabled: true}
	pair, err := LoadPair(f.Cert, f.Key)
	if err != nil {
		return nil, err
	}
	c.Certificates = []tls.Certificate{pair}
	if f.ClientCA == "" {
		return c, nil
	}
	if c.ClientCAs, err = LoadPool(f.ClientCA); err != nil {
		return nil, err
	}
	c.ClientAuth = tls.VerifyClientCertIfGiven
	if f.Require {
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	if f.CRL != "" {
		revoked, err := loadCRL(f.CRL)
		if err != nil {
			return nil, err
		}
		c.VerifyPeerCertificate = func(_ [][]byte, chains [][]*x509.Certificate) error { return revoked.check(chains) }
	}
	return c, nil
}

// LoadPair reads a certificate and its key, and says which of the two is wrong.
func LoadPair(cert, key string) (tls.Certificate, error) {
	certPEM, err := read(cert)
	if err != nil {
		return tls.Certificate{}, err
	}
	keyPEM, err := read(key)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate %s with key %s: %w", cert, key, err)
	}
	return pair, nil
}

// LoadPool reads certificates of authorities.
func LoadPool(name string) (*x509.CertPool, error) {
	p, err := read(name)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(p) {
		return nil, fmt.Errorf("%s holds no certificate: it must begin with -----BEGIN CERTIFICATE-----", name)
	}
	return pool, nil
}

func read(name string) ([]byte, error) {
	p, err := os.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w: the user that the gateway runs as must be able to read it", err)
	case err != nil:
		return nil, err
	case len(p) == 0:
		return nil, fmt.Errorf("%s is empty", name)
	}
	return p, nil
}

// revocations are the lists of some authorities.
type revocations []*x509.RevocationList

func loadCRL(name string) (lists revocations, err error) {
	p, err := read(name)
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode(p); block == nil {
		list, err := x509.ParseRevocationList(p)
		if err != nil {
			return nil, fmt.Errorf("%s is no revocation list: %w", name, err)
		}
		return revocations{list}, nil
	}
	for block, rest := pem.Decode(p); block != nil; block, rest = pem.Decode(rest) {
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s holds no revocation list: %w", name, err)
		}
		lists = append(lists, list)
	}
	return lists, nil
}

// check returns an error if no chain is free of certificates that were revoked. A list
// counts only if the authority it is of has signed it, however old it is.
func (r revocations) check(chains [][]*x509.Certificate) error {
	var err error
	for _, chain := range chains {
		if err = r.checkChain(chain); err == nil {
			return nil
		}
	}
	return err
}

func (r revocations) checkChain(chain []*x509.Certificate) error {
	for i, c := range chain[:max(len(chain)-1, 0)] {
		for _, list := range r {
			if !bytes.Equal(list.RawIssuer, c.RawIssuer) || list.CheckSignatureFrom(chain[i+1]) != nil {
				continue
			}
			for _, e := range list.RevokedCertificateEntries {
				if e.SerialNumber.Cmp(c.SerialNumber) == 0 {
					return fmt.Errorf("the certificate of %s was revoked on %s", c.Subject.CommonName, e.RevocationTime.Format(time.DateOnly))
				}
			}
		}
	}
	return nil
}
