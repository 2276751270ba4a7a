package dial

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"slices"
)

// Pin is that of a certificate's public key, as it stands in tls.pins.
func Pin(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return "sha256/" + base64.StdEncoding.EncodeToString(sum[:])
}

// PinError says that no certificate of a server's chain has a key that is pinned.
type PinError struct{ Seen string } // the pin of the server's own certificate

func (e *PinError) Error() string { return "no key is pinned; the server's is " + e.Seen }

func checkPins(pins []string, s *tls.ConnectionState) error {
	for _, chain := range s.VerifiedChains {
		for _, c := range chain {
			if slices.Contains(pins, Pin(c)) {
				return nil
			}
		}
	}
	return &PinError{Pin(s.PeerCertificates[0])}
}
