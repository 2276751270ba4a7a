package modbus

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/adapters/simulate"
)

// wires are all transports, each with a server of its own.
var wires = []string{"tcp", "tcp+tls", "udp", "rtu", "rtuovertcp", "rtuoverudp", "rtuovertcp-listen"}

// reach serves units over a transport until the test ends, and returns what
// reaches them.
func reach(t *testing.T, s *simulate.Server, transport string, timeout time.Duration) Config {
	t.Helper()
	c := Config{Name: "line", Transport: transport, Timeout: timeout}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	serve := func(run func() error) {
		wg.Go(func() {
			if err := run(); err != nil {
				t.Errorf("%s: %v", transport, err)
			}
		})
	}
	switch transport {
	case "tcp", "tcp+tls", "rtuovertcp":
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		c.Address = l.Addr().String()
		if transport == "tcp+tls" {
			var server *tls.Config
			server, c.TLS = certificates(t)
			l = tls.NewListener(l, server)
		}
		if transport == "rtuovertcp" {
			serve(func() error { return s.ServeLines(ctx, l) })
		} else {
			serve(func() error { return s.Serve(ctx, l) })
		}
	case "udp", "rtuoverudp":
		conn, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		c.Address = conn.LocalAddr().String()
		serve(func() error { return s.ServePackets(ctx, conn, transport == "rtuoverudp") })
	case "rtu":
		p, err := simulate.OpenPTY()
		if err != nil {
			t.Skip(err)
		}
		c.Address = p.Path
		serve(func() error { return s.ServeLine(ctx, p) })
	case "rtuovertcp-listen":
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		c.Address = l.Addr().String()
		l.Close()
		serve(func() error { // the modem dials again and again
			for ctx.Err() == nil {
				conn, err := net.Dial("tcp", c.Address)
				if err != nil {
					time.Sleep(time.Millisecond)
					continue
				}
				if err := s.ServeLine(ctx, conn); err != nil && ctx.Err() == nil {
					t.Logf("the modem: %v", err)
				}
			}
			return nil
		})
	}
	return c
}

// certificates makes an authority and a certificate that serves both sides.
func certificates(t *testing.T) (*tls.Config, *TLSFiles) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "device"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	files := &TLSFiles{Cert: write("crt", "CERTIFICATE", der), Key: write("key", "PRIVATE KEY", keyDER)}
	files.CA = files.Cert
	cert, roots, err := files.load()
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert}, files
}

// openWire opens a wire until the test ends.
func openWire(t *testing.T, c Config) wire {
	t.Helper()
	w, err := newWire(&c)
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for err = w.open(t.Context()); err != nil && time.Now().Before(deadline); err = w.open(t.Context()) {
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.close(); err != nil {
			t.Error(err)
		}
		w.end()
	})
	return w
}

// Every function, its refusal, and silence, over every transport.
func TestWires(t *testing.T) {
	for _, transport := range wires {
		t.Run(transport, func(t *testing.T) {
			s := simulate.New()
			u := s.Unit(1)
			for _, table := range []simulate.Table{simulate.Coil, simulate.Discrete, simulate.Holding, simulate.Input} {
				for a := range 130 {
					u.Set(table, uint16(a), uint16(a%2+int(table)/3*a))
				}
			}
			u.Identify(map[byte]string{0: "Acme", 1: "M-1", 2: "2.0"})
			w := openWire(t, reach(t, s, transport, 300*time.Millisecond))
			for _, table := range []Table{Coil, Discrete} {
				on, err := w.readBits(1, table, 3, 12)
				if err != nil || !slices.Equal(on, unpackBits([]byte{0x55, 0x05}, 12)) {
					t.Errorf("%s: %v %v", table, on, err)
				}
			}
			for _, table := range []Table{Holding, Input} {
				for _, n := range []uint16{1, 125} {
					b, err := w.readRegisters(1, table, 1, n)
					if err != nil || len(b) != int(2*n) || b[1] != 2 {
						t.Errorf("%s: % x %v", table, b, err)
					}
				}
			}
			for name, test := range map[string]struct{ pdu, want []byte }{
				"5":      {[]byte{5, 0, 2, 0xFF, 0}, []byte{5, 0, 2, 0xFF, 0}},
				"6":      {[]byte{6, 0, 4, 0x12, 0x34}, []byte{6, 0, 4, 0x12, 0x34}},
				"15":     {[]byte{15, 0, 10, 0, 9, 2, 0xFF, 0x01}, []byte{15, 0, 10, 0, 9}},
				"16":     {[]byte{16, 0, 20, 0, 2, 4, 1, 2, 3, 4}, []byte{16, 0, 20, 0, 2}},
				"22":     {[]byte{22, 0, 30, 0xFF, 0x0F, 0, 0x50}, []byte{22, 0, 30, 0xFF, 0x0F, 0, 0x50}},
				"23":     {[]byte{23, 0, 40, 0, 2, 0, 40, 0, 1, 2, 9, 9}, []byte{23, 4, 9, 9, 0, 42}},
				"43/14":  {[]byte{43, 14, 1, 0}, []byte("\x2b\x0e\x01\x83\x00\x00\x03\x00\x04Acme\x01\x03M-1\x02\x032.0")},
				"43, ex": {[]byte{43, 14, 9, 0}, nil},
			} {
				got, err := w.exchange(1, test.pdu)
				switch {
				case test.want == nil && (err == nil || exception(err) != 3):
					t.Errorf("function %s: % x %v, want exception 3", name, got, err)
				case test.want != nil && (err != nil || !slices.Equal(got, test.want)):
					t.Errorf("function %s: % x %v, want % x", name, got, err, test.want)
				}
			}
			for _, check := range []struct {
				table simulate.Table
				at    uint16
				want  uint16
			}{{simulate.Coil, 2, 1}, {simulate.Holding, 4, 0x1234}, {simulate.Coil, 10, 1}, {simulate.Coil, 18, 1}, {simulate.Holding, 21, 0x0304}, {simulate.Holding, 30, 0x50 | 30&0xF}, {simulate.Holding, 40, 0x0909}} {
				if got, ok := u.Word(check.table, check.at); !ok || got != check.want {
					t.Errorf("%d of table %d holds %#x, want %#x", check.at, check.table, got, check.want)
				}
			}
			for code := range byte(12) {
				if code == 0 {
					continue
				}
				u.SetFault(simulate.Fault{Exception: code, Times: 1})
				if _, err := w.readRegisters(1, Holding, 0, 1); err == nil || exception(err) != int(code) {
					t.Errorf("exception %d is %v", code, err)
				} else if w.spent(err) {
					t.Errorf("exception %d costs the connection", code)
				}
			}
			u.SetFault(simulate.Fault{Dead: true, Times: 1})
			if _, err := w.readRegisters(1, Holding, 0, 1); err == nil || reasonOf(err) != "timeout" {
				t.Errorf("silence is %v", err)
			} else if w.spent(err) {
				if err := w.close(); err != nil {
					t.Error(err)
				}
				if err := w.open(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if b, err := w.readRegisters(1, Holding, 7, 1); err != nil || b[1] != 8 {
				t.Errorf("after silence: % x %v", b, err)
			}
		})
	}
}

// A line that is taken away is noticed at once, and used again when it is back.
func TestSerialPortGone(t *testing.T) {
	p, err := simulate.OpenPTY()
	if err != nil {
		t.Skip(err)
	}
	w := openWire(t, Config{Transport: "rtu", Address: p.Path, Timeout: 10 * time.Second})
	time.AfterFunc(20*time.Millisecond, func() { p.Close() })
	began := time.Now()
	_, err = w.readRegisters(1, Holding, 0, 1)
	if err == nil || reasonOf(err) != "connection-lost" || !w.spent(err) || time.Since(began) > 2*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

func TestSerialPortIsOurs(t *testing.T) {
	p, err := simulate.OpenPTY()
	if err != nil {
		t.Skip(err)
	}
	defer p.Close()
	c := Config{Transport: "rtu", Address: p.Path, Timeout: time.Second}
	openWire(t, c)
	w, err := newWire(&c)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.open(t.Context()); err == nil {
		t.Error("a port was opened twice")
		w.close()
	}
}
