package certs

import (
	"crypto/x509"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/gateway/certs/certstest"
)

func TestInspect(t *testing.T) {
	dir := t.TempDir()
	ca, other := certstest.New(t, "ca"), certstest.New(t, "other")
	good, goodKey := ca.Issue("good", nil)
	bad, badKey := ca.Issue("bad", nil)
	old, oldKey := ca.Issue("old", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	early, earlyKey := ca.Issue("early", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })
	nowhere, nowhereKey := ca.Issue("nowhere", func(c *x509.Certificate) {
		c.DNSNames, c.IPAddresses, c.ExtKeyUsage = nil, nil, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	foreign, foreignKey := other.Issue("foreign", nil)
	files := map[string][]byte{
		"ca.crt": ca.PEM, "good.crt": good, "good.key": goodKey, "bad.crt": bad, "bad.key": badKey, "crl.pem": ca.Revoke(bad), "old.crt": old, "old.key": oldKey,
		"early.crt": early, "early.key": earlyKey, "nowhere.crt": nowhere, "nowhere.key": nowhereKey, "foreign.crt": foreign, "foreign.key": foreignKey,
		"text": []byte("hello"), "broken.crt": []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
	}
	certstest.Write(t, dir, files)
	pin := func(c *x509.Certificate) string { return "pin of " + c.Subject.CommonName }
	for _, tt := range []struct {
		files string
		want  string // all problems, in part; "" is none
	}{
		{"ca.crt good.crt good.key", ""},
		{"ca.crt good.crt good.key bad.crt crl.pem", "bad was revoked"},
		{"ca.crt old.crt old.key", "it has expired on"},
		{"ca.crt early.crt early.key", "it is not valid before"},
		{"ca.crt nowhere.crt nowhere.key", "names no host"},
		{"ca.crt foreign.crt foreign.key", `its authority "CN=other" is neither among these files`},
		{"ca.crt good.crt bad.key", "bad.key is the key of none of these certificates"},
		{"ca.crt text", "text holds nothing in PEM"},
		{"ca.crt broken.crt", "broken.crt: the certificate cannot be read"},
		{"ca.crt none.crt", "no such file"},
	} {
		t.Run(tt.files, func(t *testing.T) {
			var paths []string
			for name := range strings.FieldsSeq(tt.files) {
				paths = append(paths, filepath.Join(dir, name))
			}
			i := Inspect(paths, pin, time.Now())
			problems := i.Problems
			for _, f := range i.Certificates {
				problems = append(problems, f.Problems...)
			}
			got := strings.Join(problems, "; ")
			if i.OK() != (tt.want == "") || !strings.Contains(got, tt.want) || len(problems) > 1 {
				t.Errorf("problems %q, want %q", problems, tt.want)
			}
		})
	}
	i := Inspect([]string{filepath.Join(dir, "ca.crt"), filepath.Join(dir, "good.crt"), filepath.Join(dir, "good.key")}, pin, time.Now())
	f := i.Certificates[1]
	if !i.Certificates[0].CA || f.CA || !f.Servers || !f.Clients || f.Pin != "pin of good" || f.DaysLeft != 0 || filepath.Base(f.Chain) != "ca.crt" ||
		filepath.Base(f.Key) != "good.key" || strings.Join(f.Hosts, " ") != "localhost 127.0.0.1" {
		t.Errorf("%+v", f)
	}
}

// A client's files, like a server's, are read again when they change; the same is in
// force until they have.
func TestClientReads(t *testing.T) {
	dir := t.TempDir()
	ca := certstest.New(t, "ca")
	cert, key := ca.Issue("first", nil)
	certstest.Write(t, dir, map[string][]byte{"ca": ca.PEM, "cert": cert, "key": key})
	at := func(name string) string { return filepath.Join(dir, name) }
	c, err := OpenClient(ClientFiles{CA: at("ca"), Cert: at("cert"), Key: at("key")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if first := c.Current(); first != c.Current() || c.Leaf().Subject.CommonName != "first" || c.Current().RootCAs == nil || len(c.Chain()) != 1 {
		t.Errorf("%+v", c.Current())
	}
	none, err := OpenClient(ClientFiles{}, nil)
	if err != nil || none.Leaf() != nil || none.Chain() != nil || none.Err() != nil {
		t.Errorf("without files: %v", err)
	}
	for _, tt := range []struct {
		files ClientFiles
		want  string
	}{
		{ClientFiles{Cert: at("cert")}, "go together"},
		{ClientFiles{CA: at("none")}, "no such file"},
		{ClientFiles{CA: at("key")}, "holds no certificate"},
		{ClientFiles{Cert: at("cert"), Key: at("cert")}, "with key"},
	} {
		if _, err := OpenClient(tt.files, nil); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.files, err, tt.want)
		}
	}
}
