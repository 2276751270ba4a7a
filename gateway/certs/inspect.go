package certs

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"time"
)

// Found is a certificate in a file, and what fits together with it.
type Found struct {
	File      string    `json:"file"`
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	DaysLeft  int       `json:"daysLeft"` // whole ones; negative once it has expired
	Hosts     []string  `json:"hosts,omitempty"`
	CA        bool      `json:"ca"`
	Servers   bool      `json:"servers"` // it is one for servers
	Clients   bool      `json:"clients"`
	Pin       string    `json:"pin"`             // of its key, as in tls.pins
	Key       string    `json:"key,omitempty"`   // file of its key
	Chain     string    `json:"chain,omitempty"` // file of the authority that it leads to; "system" is the system's
	Problems  []string  `json:"problems,omitempty"`

	cert *x509.Certificate
}

// Inspection is what is in some files.
type Inspection struct {
	Certificates []*Found `json:"certificates"`
	Problems     []string `json:"problems,omitempty"` // of files, and of keys that fit nothing
}

// OK reports whether nothing is wrong.
func (i *Inspection) OK() bool {
	for _, f := range i.Certificates {
		if len(f.Problems) > 0 {
			return false
		}
	}
	return len(i.Problems) == 0
}

// Inspect reads files of certificates, keys, requests and revocation lists, in PEM, and
// says how they fit together at a time. pin names a certificate's key. A certificate must
// lead to an authority among them, or to one of the system's.
func Inspect(files []string, pin func(*x509.Certificate) string, now time.Time) *Inspection {
	i := &Inspection{Certificates: []*Found{}}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	type privateKey struct {
		file   string
		public crypto.PublicKey
	}
	var keys []privateKey
	var requested []crypto.PublicKey
	var revoked revocations
	problem := func(format string, args ...any) { i.Problems = append(i.Problems, fmt.Sprintf(format, args...)) }
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			problem("%v", err)
			continue
		}
		blocks := 0
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			blocks++
			switch {
			case block.Type == "CERTIFICATE":
				c, err := x509.ParseCertificate(block.Bytes)
				if err != nil {
					problem("%s: the certificate cannot be read: %v", file, err)
					continue
				}
				i.Certificates = append(i.Certificates, found(file, c, pin, now))
				if c.IsCA && bytes.Equal(c.RawIssuer, c.RawSubject) {
					roots.AddCert(c)
				} else if c.IsCA {
					between.AddCert(c)
				}
			case strings.HasSuffix(block.Type, "PRIVATE KEY"):
				public, err := publicKey(block.Bytes)
				if err != nil {
					problem("%s: the key cannot be read: %v", file, err)
					continue
				}
				keys = append(keys, privateKey{file, public})
				if info, err := os.Stat(file); err == nil && info.Mode().Perm()&0o007 != 0 {
					problem("%s: everybody on this machine may read the key (mode %04o): chmod 600 %s", file, info.Mode().Perm(), file)
				}
			case block.Type == "CERTIFICATE REQUEST":
				r, err := x509.ParseCertificateRequest(block.Bytes)
				if err == nil {
					err = r.CheckSignature()
				}
				if err != nil {
					problem("%s: the request cannot be used: %v", file, err)
					continue
				}
				requested = append(requested, r.PublicKey)
			case block.Type == "X509 CRL":
				list, err := x509.ParseRevocationList(block.Bytes)
				if err != nil {
					problem("%s: the revocation list cannot be read: %v", file, err)
					continue
				}
				revoked = append(revoked, list)
				if !list.NextUpdate.IsZero() && now.After(list.NextUpdate) {
					problem("%s: the revocation list should have been replaced on %s", file, list.NextUpdate.Format(time.DateOnly))
				}
			}
		}
		if blocks == 0 {
			problem("%s holds nothing in PEM: it must have lines such as -----BEGIN CERTIFICATE-----", file)
		}
	}
	for _, f := range i.Certificates {
		f.chain(roots, between, revoked, i.Certificates, now)
	}
	for _, k := range keys {
		is := func(other crypto.PublicKey) bool {
			public, ok := other.(interface{ Equal(crypto.PublicKey) bool })
			return ok && public.Equal(k.public)
		}
		fits := slices.ContainsFunc(requested, is)
		for _, f := range i.Certificates {
			if is(f.cert.PublicKey) {
				f.Key, fits = k.file, true
			}
		}
		if !fits && len(i.Certificates) > 0 {
			problem("%s is the key of none of these certificates", k.file)
		}
	}
	return i
}

func found(file string, c *x509.Certificate, pin func(*x509.Certificate) string, now time.Time) *Found {
	f := &Found{
		File: file, Subject: c.Subject.String(), Issuer: c.Issuer.String(), NotBefore: c.NotBefore, NotAfter: c.NotAfter,
		DaysLeft: int(math.Floor(c.NotAfter.Sub(now).Hours() / 24)), Hosts: c.DNSNames, CA: c.IsCA, Pin: pin(c), cert: c,
	}
	for _, ip := range c.IPAddresses {
		f.Hosts = append(f.Hosts, ip.String())
	}
	any := len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0
	f.Servers, f.Clients = any && !c.IsCA, any && !c.IsCA
	for _, u := range c.ExtKeyUsage {
		f.Servers = f.Servers || u == x509.ExtKeyUsageServerAuth || u == x509.ExtKeyUsageAny
		f.Clients = f.Clients || u == x509.ExtKeyUsageClientAuth || u == x509.ExtKeyUsageAny
	}
	switch {
	case now.Before(c.NotBefore):
		f.Problems = append(f.Problems, fmt.Sprintf("it is not valid before %s: check this machine's clock", c.NotBefore.UTC().Format("2006-01-02 15:04 UTC")))
	case now.After(c.NotAfter):
		f.Problems = append(f.Problems, fmt.Sprintf("it has expired on %s: have it renewed", c.NotAfter.UTC().Format("2006-01-02 15:04 UTC")))
	}
	if f.Servers && !f.Clients && len(f.Hosts) == 0 {
		f.Problems = append(f.Problems, "it is for servers and names no host (subject alternative name): no client will take it")
	}
	return f
}

// chain says to which authority the certificate leads.
func (f *Found) chain(roots, between *x509.CertPool, revoked revocations, all []*Found, now time.Time) {
	o := x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, CurrentTime: now}
	if now.Before(f.NotBefore) || now.After(f.NotAfter) { // that is said already
		o.CurrentTime = f.NotBefore.Add(f.NotAfter.Sub(f.NotBefore) / 2)
	}
	chains, err := f.cert.Verify(o)
	if err != nil {
		o.Roots = nil
		if _, serr := f.cert.Verify(o); serr == nil {
			f.Chain = "system"
			return
		}
		var unknown x509.UnknownAuthorityError
		if errors.As(err, &unknown) {
			f.Problems = append(f.Problems, fmt.Sprintf("its authority %q is neither among these files nor one of the system's: give its certificate as well", f.Issuer))
		} else {
			f.Problems = append(f.Problems, fmt.Sprintf("it does not lead to its authority: %v", err))
		}
		return
	}
	if err := revoked.check(chains); err != nil {
		f.Problems = append(f.Problems, err.Error())
	}
	root := chains[0][len(chains[0])-1]
	for _, other := range all {
		if other.cert.Equal(root) {
			f.Chain = other.File
		}
	}
}

func publicKey(der []byte) (crypto.PublicKey, error) {
	var key any
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		if ec, eerr := x509.ParseECPrivateKey(der); eerr == nil {
			key, err = ec, nil
		} else if rsa, rerr := x509.ParsePKCS1PrivateKey(der); rerr == nil {
			key, err = rsa, nil
		}
	}
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("it cannot sign")
	}
	return signer.Public(), nil
}
