package certs

import (
	"crypto/tls"
	"errors"
)

// ClientFiles are the files of who connects to a server.
type ClientFiles struct {
	CA         string // whom servers' certificates may be of, PEM; empty: the system's authorities
	Cert, Key  string // PEM; the certificate first, then those that lead to its root; empty: none
	MinVersion uint16 // 0 is TLS 1.2
}

// Client is the TLS of who connects. Its methods may be called concurrently.
type Client struct{ watched }

// OpenClient reads the files. failed, which may be nil, is told when they change and
// cannot be used.
func OpenClient(files ClientFiles, failed func(error)) (*Client, error) {
	c := &Client{watched{names: []string{files.CA, files.Cert, files.Key}, load: files.load, failed: failed}}
	return c, c.open()
}

// Current is as the files are, or were when they could last be used. It is the same
// until they change, and must not be changed.
func (c *Client) Current() *tls.Config { return c.current() }

func (f *ClientFiles) load() (*tls.Config, error) {
	c := &tls.Config{MinVersion: max(f.MinVersion, tls.VersionTLS12)}
	var err error
	if f.CA != "" {
		if c.RootCAs, err = LoadPool(f.CA); err != nil {
			return nil, err
		}
	}
	switch {
	case f.Cert == "" && f.Key == "":
		return c, nil
	case f.Cert == "" || f.Key == "":
		return nil, errors.New("a certificate and its key go together")
	}
	pair, err := LoadPair(f.Cert, f.Key)
	if err != nil {
		return nil, err
	}
	c.Certificates = []tls.Certificate{pair}
	// Shown also to a server that names other authorities than ours: it then says what it
	// has against it, and not that there is none.
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	return c, nil
}
