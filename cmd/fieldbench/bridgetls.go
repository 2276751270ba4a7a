package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fieldferry/fieldferry/gateway/certs"
	"github.com/fieldferry/fieldferry/gateway/certs/issue"
)

// secured is an authority, a server and a client that it has given certificates, in files.
type secured struct {
	dir    string
	client *tls.Config
}

func newSecured(dir string) (*secured, error) {
	s := &secured{dir: dir}
	ca, err := issue.NewAuthority("bench authority", time.Hour)
	if err != nil {
		return nil, err
	}
	authority, err := issue.OpenAuthority(ca)
	if err != nil {
		return nil, err
	}
	server, err := authority.Server([]string{"127.0.0.1"}, time.Hour)
	if err != nil {
		return nil, err
	}
	client, err := authority.Client("bench", time.Hour)
	if err != nil {
		return nil, err
	}
	var errs []error
	for name, pair := range map[string]issue.Pair{"ca": ca, "server": server, "client": client} {
		errs = append(errs, os.WriteFile(s.path(name+".crt"), pair.Cert, 0o600), os.WriteFile(s.path(name+".key"), pair.Key, 0o600))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	files, err := certs.OpenClient(certs.ClientFiles{CA: s.path("ca.crt"), Cert: s.path("client.crt"), Key: s.path("client.key")}, nil)
	if err != nil {
		return nil, err
	}
	s.client = files.Current().Clone()
	s.client.ServerName = "127.0.0.1"
	return s, nil
}

func (s *secured) path(name string) string { return filepath.Join(s.dir, name) }

// listener is Mosquitto's configuration of one more listener.
func (s *secured) listener(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return fmt.Sprintf("listener %s 127.0.0.1\ncafile %s\ncertfile %s\nkeyfile %s\nrequire_certificate true\n", port, s.path("ca.crt"), s.path("server.crt"), s.path("server.key"))
}

// rawWay is that of rawWay, over TLS.
func (s *secured) rawWay(ctx context.Context, _ string, qos byte, n int, ready func() (string, error)) (func() error, error) {
	addr, err := ready()
	if err != nil {
		return nil, err
	}
	nc, err := (&tls.Dialer{Config: s.client}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return rawOver(nc, qos, n)
}

// ourWay is that of ourWay, over TLS.
func (s *secured) ourWay(ctx context.Context, dir string, qos byte, n int, ready func() (string, error)) (func() error, error) {
	keys := fmt.Sprintf("    tls: {ca: %q, cert: %q, key: %q}\n", s.path("ca.crt"), s.path("client.crt"), s.path("client.key"))
	return ourSite(ctx, dir, n, ready, func(upstream string) string {
		site := fmt.Sprintf(siteFill, "%s", upstream, qos)
		return strings.Replace(site, "mqtt://", "mqtts://", 1) + keys
	})
}

// measureTLS compares the bridge with the raw writer where both speak TLS and have
// certificates.
func (b *bridgeBench) measureTLS(ctx context.Context) error {
	dir, err := os.MkdirTemp(b.dir, "tls-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s, err := newSecured(dir)
	if err != nil {
		return err
	}
	for _, qos := range []byte{1, 2} {
		var raw, ours, ratios []float64
		for range b.rounds {
			r, err := b.rate(ctx, way{"raw writer", s.rawWay}, qos, b.messages, upstream{secured: s})
			if err != nil {
				return fmt.Errorf("QoS %d, raw writer: %w", qos, err)
			}
			o, err := b.rate(ctx, way{"fieldferry", s.ourWay}, qos, b.messages, upstream{secured: s})
			if err != nil {
				return fmt.Errorf("QoS %d, fieldferry: %w", qos, err)
			}
			raw, ours, ratios = append(raw, r), append(ours, o), append(ratios, o/r)
		}
		name := fmt.Sprintf("TLS, QoS %d", qos)
		b.add("tls", name+": raw writer", median(raw), "messages/s")
		b.add("tls", name+": fieldferry", median(ours), "messages/s")
		b.atLeast("tls", name+": ratio to the raw writer", median(ratios), 0.6, "")
	}
	return nil
}
