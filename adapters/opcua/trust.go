package opcua

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// What is in a folder of trusted certificates beside them.
const (
	pinsFile       = "pins"     // fingerprints, one a line
	rejectedFolder = "rejected" // certificates that were shown and are not trusted
	maxRejected    = 32         // that are kept
	anyHost        = "any-host" // behind a fingerprint: whatever names the certificate has
	maxCertificate = 64 << 10   // bytes of a file
)

// Trust is a folder of certificates: of servers, or of authorities that sign those of
// servers, in PEM or DER. A file pins in it may hold SHA-256 fingerprints of servers'
// certificates instead, one a line.
type Trust struct {
	Folder string
}

// Fingerprint is the SHA-256 of a certificate in hexadecimal.
func Fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// A TrustError says why a server's certificate is not accepted.
type TrustError struct {
	Fingerprint string
	Text        string
}

func (e *TrustError) Error() string { return e.Text }

func refused(der []byte, format string, args ...any) error {
	return &TrustError{Fingerprint(der), fmt.Sprintf(format, args...)}
}

// trusted is what a folder says.
type trusted struct {
	servers     [][]byte // DER
	authorities []*x509.Certificate
	pins        map[string]bool // fingerprint: any host
	troubles    []string        // files that cannot be read
}

func (t Trust) load() (*trusted, error) {
	all := &trusted{pins: map[string]bool{}}
	entries, err := os.ReadDir(t.Folder)
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the folder of trusted certificates: %w", err)
	}
	for _, e := range entries {
		name := filepath.Join(t.Folder, e.Name())
		switch strings.ToLower(filepath.Ext(e.Name())) {
		case ".pem", ".crt", ".cer", ".der":
		default:
			if e.Name() == pinsFile {
				if err := all.readPins(name); err != nil {
					return nil, err
				}
			}
			continue
		}
		b, err := readSmall(name)
		if err == nil {
			err = all.add(b)
		}
		if err != nil {
			all.troubles = append(all.troubles, fmt.Sprintf("%s: %v", e.Name(), err))
		}
	}
	return all, nil
}

func readSmall(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxCertificate {
		return nil, fmt.Errorf("%s is no file of at most %d bytes", name, maxCertificate)
	}
	return os.ReadFile(name)
}

func (all *trusted) add(b []byte) error {
	ders, err := certificates(b)
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		if c.IsCA && c.KeyUsage&x509.KeyUsageCertSign != 0 && len(c.URIs) == 0 {
			all.authorities = append(all.authorities, c)
		} else {
			// One with the URI of an application is that application's, even if it
			// could sign: most servers make such ones for themselves.
			all.servers = append(all.servers, der)
		}
	}
	return err
}

// certificates returns those of a file in PEM or DER.
func certificates(b []byte) (ders [][]byte, err error) {
	if !bytes.Contains(b, []byte("-----BEGIN")) {
		if _, err := x509.ParseCertificate(b); err != nil {
			return nil, err
		}
		return [][]byte{b}, nil
	}
	for {
		var p *pem.Block
		if p, b = pem.Decode(b); p == nil {
			break
		}
		if p.Type == "CERTIFICATE" {
			ders = append(ders, p.Bytes)
		}
	}
	if len(ders) == 0 {
		return nil, errors.New("has no certificate")
	}
	return ders, nil
}

func (all *trusted) readPins(name string) error {
	b, err := readSmall(name)
	if err != nil {
		return err
	}
	for i, line := range strings.Split(string(b), "\n") {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		pin, err := parseFingerprint(words[0])
		if err != nil || len(words) > 2 || len(words) == 2 && words[1] != anyHost {
			return fmt.Errorf("%s:%d: %q is no SHA-256 fingerprint, with %s behind it or not", name, i+1, strings.TrimSpace(line), anyHost)
		}
		all.pins[pin] = len(words) == 2
	}
	return nil
}

// parseFingerprint reads hexadecimal, with colons or without, or sha256/BASE64.
func parseFingerprint(s string) (string, error) {
	if b64, ok := strings.CutPrefix(s, "sha256/"); ok {
		sum, err := base64.StdEncoding.DecodeString(b64)
		if err != nil || len(sum) != sha256.Size {
			return "", errors.New("no SHA-256 in base64")
		}
		return hex.EncodeToString(sum), nil
	}
	s = strings.ToLower(strings.ReplaceAll(s, ":", ""))
	sum, err := hex.DecodeString(s)
	if err != nil || len(sum) != sha256.Size {
		return "", errors.New("no SHA-256 in hexadecimal")
	}
	return s, nil
}

// firstCertificate is the server's own of a chain of certificates in DER. What is no
// certificate is returned as it is.
func firstCertificate(chain []byte) []byte {
	// A DER sequence with a length of two bytes, as every RSA certificate has.
	if len(chain) > 4 && chain[0] == 0x30 && chain[1] == 0x82 {
		if n := 4 + int(chain[2])<<8 + int(chain[3]); n <= len(chain) {
			return chain[:n]
		}
	}
	return chain
}

// Check says whether the certificate that a server shows, perhaps with those of its
// authorities behind it, is one to trust: it or its authority is in the folder, it is
// of today, of the application that the server claims to be, and of the host that we
// connect to. A *TrustError says why not and what to do.
func (t Trust) Check(chain []byte, uri, host string, now time.Time) (*x509.Certificate, error) {
	der := firstCertificate(chain)
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("the server's certificate cannot be read: %w", err)
	}
	if _, ok := c.PublicKey.(*rsa.PublicKey); !ok {
		return nil, refused(der, "the server's certificate has no RSA key, which the security policies want")
	}
	all, err := t.load()
	if err != nil {
		return nil, err
	}
	print := Fingerprint(der)
	free, pinned := all.pins[print]
	if !pinned && !slices.ContainsFunc(all.servers, func(s []byte) bool { return bytes.Equal(s, der) }) {
		if err := all.signed(c, chain[len(der):], now); err != nil {
			text := fmt.Sprintf("the server's certificate %q (SHA-256 %s) is not trusted: see that it is the server's own, then trust it with `fieldferry opcua trust`, or put it or its authority into %s", c.Subject.CommonName, print, t.Folder)
			if len(all.troubles) > 0 {
				text += "; files there cannot be read: " + strings.Join(all.troubles, ", ")
			}
			return nil, &TrustError{print, text}
		}
	}
	switch {
	case now.Before(c.NotBefore):
		return nil, refused(der, "the server's certificate is good from %s on only: set the clock of this machine or of the server", c.NotBefore.UTC().Format(time.RFC3339))
	case now.After(c.NotAfter):
		return nil, refused(der, "the server's certificate has expired on %s: have the server make a new one and trust that", c.NotAfter.UTC().Format(time.RFC3339))
	case !slices.ContainsFunc(c.URIs, func(u *url.URL) bool { return u.String() == uri }) && uri != "":
		return nil, refused(der, "the server calls itself %q, but its certificate is of %s: see which server answers there", uri, uris(c))
	}
	if !free && !names(c, host) {
		return nil, refused(der, "the server's certificate is of %s and not of %s: write one of these hosts in opcua:, have the server make a new certificate, or pin it with `fieldferry opcua trust --any-host`", hosts(c), host)
	}
	return c, nil
}

func uris(c *x509.Certificate) string {
	var all []string
	for _, u := range c.URIs {
		all = append(all, fmt.Sprintf("%q", u))
	}
	if all == nil {
		return "no application"
	}
	return strings.Join(all, ", ")
}

func hosts(c *x509.Certificate) string {
	all := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	if all == nil {
		return "no host"
	}
	return strings.Join(all, ", ")
}

// names reports whether a certificate is of a host. Unlike in the web, names without
// a dot, and names that differ in case only, are common.
func names(c *x509.Certificate, host string) bool {
	if ip := net.ParseIP(host); ip != nil {
		return slices.ContainsFunc(c.IPAddresses, ip.Equal) || slices.ContainsFunc(c.DNSNames, func(n string) bool { return ip.Equal(net.ParseIP(n)) })
	}
	return slices.ContainsFunc(c.DNSNames, func(n string) bool { return strings.EqualFold(n, host) }) || c.VerifyHostname(host) == nil
}

// signed reports whether a trusted authority has signed a certificate, perhaps by way
// of others that came with it.
func (all *trusted) signed(c *x509.Certificate, rest []byte, now time.Time) error {
	if len(all.authorities) == 0 {
		return errors.New("there is no authority")
	}
	o := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	if now.After(c.NotAfter) { // the dates are told of in their own words
		o.CurrentTime = c.NotAfter
	} else if now.Before(c.NotBefore) {
		o.CurrentTime = c.NotBefore
	}
	for _, a := range all.authorities {
		o.Roots.AddCert(a)
	}
	for len(rest) > 0 {
		der := firstCertificate(rest)
		if i, err := x509.ParseCertificate(der); err == nil {
			o.Intermediates.AddCert(i)
		}
		rest = rest[len(der):]
	}
	_, err := c.Verify(o)
	return err
}

// Reject keeps a certificate that is not trusted, for an operator to look at.
func (t Trust) Reject(der []byte) error {
	der = firstCertificate(der)
	dir := filepath.Join(t.Folder, rejectedFolder)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	name := filepath.Join(dir, Fingerprint(der)+".der")
	if _, err := os.Stat(name); err == nil {
		return nil
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) >= maxRejected {
		return nil // whoever shows us many has enough of the disk
	}
	return writeFile(name, der, 0o644)
}

// Rejected returns the certificates that were kept, and their fingerprints.
func (t Trust) Rejected() (all []*x509.Certificate, err error) {
	dir := filepath.Join(t.Folder, rejectedFolder)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		b, err := readSmall(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		if c, err := x509.ParseCertificate(b); err == nil {
			all = append(all, c)
		}
	}
	return all, err
}

// Accept trusts a certificate from now on. With any, it does so whatever names the
// certificate has.
func (t Trust) Accept(der []byte, any bool) (file string, err error) {
	if err := os.MkdirAll(t.Folder, 0o755); err != nil {
		return "", err
	}
	print := Fingerprint(der)
	name := filepath.Join(t.Folder, print[:16]+".der")
	if any {
		name = filepath.Join(t.Folder, pinsFile)
		b, err := os.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if len(b) > 0 && b[len(b)-1] != '\n' {
			b = append(b, '\n')
		}
		err = writeFile(name, fmt.Appendf(b, "%s %s\n", print, anyHost), 0o644)
		if err != nil {
			return "", err
		}
	} else if err := writeFile(name, der, 0o644); err != nil {
		return "", err
	}
	err = os.Remove(filepath.Join(t.Folder, rejectedFolder, print+".der"))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return name, err
}

// writeFile writes a file whole, or not at all.
func writeFile(name string, b []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
