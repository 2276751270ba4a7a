package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/fieldferry/fieldferry/gateway"
	"github.com/fieldferry/fieldferry/gateway/config"
)

// TestBrokerScripts runs the scripts in testdata/broker. They have a command more:
// broker, which is a gateway's.
func TestBrokerScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/broker", RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			env.Values[brokerKey{}] = new(testBroker)
			return os.WriteFile(filepath.Join(env.WorkDir, "raw.bin"), []byte{0xFE, 0xFF, '\n', 0}, 0o600) // no text can hold it
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"broker": brokerCommand},
	})
}

type brokerKey struct{}

// testBroker is the gateway of a script.
type testBroker struct {
	address string // once it has run; it comes back there
	gateway *gateway.Gateway
	end     func()
}

// brokerCommand is the command
//
//	broker start FILE     runs the gateway of a site file, listens on $BROKER
//	broker stop
//	broker subscribed N   waits until there are so many subscriptions
//	broker tls            puts TLS before it, on $TLSBROKER, for clients with a certificate; writes ca.pem, client.pem, client.key
func brokerCommand(ts *testscript.TestScript, _ bool, args []string) {
	b := ts.Value(brokerKey{}).(*testBroker)
	switch args[0] {
	case "start":
		b.start(ts, args[1])
	case "stop":
		b.stop()
	case "subscribed":
		n, err := strconv.Atoi(args[1])
		ts.Check(err)
		for deadline := time.Now().Add(20 * time.Second); b.gateway.Broker().Stats().Subscriptions != n; {
			if time.Now().After(deadline) {
				ts.Fatalf("%d subscriptions, want %d", b.gateway.Broker().Stats().Subscriptions, n)
			}
			time.Sleep(5 * time.Millisecond)
		}
	case "tls":
		b.tls(ts)
	default:
		ts.Fatalf("broker %s?", args[0])
	}
}

func (b *testBroker) start(ts *testscript.TestScript, file string) {
	text, err := os.ReadFile(ts.MkAbs(file))
	ts.Check(err)
	if b.address != "" {
		text = []byte(strings.ReplaceAll(string(text), "127.0.0.1:0", b.address))
	}
	c, problems := config.Parse(ts.MkAbs(file), text, config.Options{})
	if c == nil {
		ts.Fatalf("%v", problems)
	}
	g, err := gateway.Open(c, gateway.Options{})
	ts.Check(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	b.gateway, b.address = g, g.Broker().Addr(c.Broker.Listeners[0].Name).String()
	b.end = sync.OnceFunc(func() {
		cancel()
		ts.Check(<-done)
		ts.Check(g.Close())
	})
	ts.Defer(b.end)
	ts.Setenv("BROKER", b.address)
}

func (b *testBroker) stop() { b.end() }

// tls is a proxy: the broker has no TLS of its own yet.
func (b *testBroker) tls(ts *testscript.TestScript) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	certify := func(c, by *x509.Certificate) *x509.Certificate {
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, c, by, &key.PublicKey, key)
		ts.Check(err)
		signed, err := x509.ParseCertificate(der)
		ts.Check(err)
		return signed
	}
	write := func(name, kind string, der []byte) {
		ts.Check(os.WriteFile(ts.MkAbs(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	ca = certify(ca, ca)
	server := certify(&x509.Certificate{SerialNumber: big.NewInt(2), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, ca)
	client := certify(&x509.Certificate{SerialNumber: big.NewInt(3), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, ca)
	write("ca.pem", "CERTIFICATE", ca.Raw)
	write("client.pem", "CERTIFICATE", client.Raw)
	der, err := x509.MarshalECPrivateKey(key)
	ts.Check(err)
	write("client.key", "EC PRIVATE KEY", der)

	trusted := x509.NewCertPool()
	trusted.AddCert(ca)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{server.Raw}, PrivateKey: key}},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: trusted,
	})
	ts.Check(err)
	var work sync.WaitGroup
	work.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer in.Close()
				if in.(*tls.Conn).Handshake() != nil {
					return
				}
				out, err := net.Dial("tcp", b.address)
				if err != nil {
					return
				}
				defer out.Close()
				work.Go(func() {
					_, _ = io.Copy(out, in)
					out.Close()
				})
				_, _ = io.Copy(in, out)
			})
		}
	})
	ts.Defer(func() {
		ts.Check(ln.Close())
		work.Wait()
	})
	ts.Setenv("TLSBROKER", ln.Addr().String())
}
