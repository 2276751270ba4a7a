package gateway

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"syscall"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/gateway/certs"
	"github.com/fieldferry/fieldferry/gateway/config"
	"github.com/fieldferry/fieldferry/localbroker"
)

func brokerOptions(c *config.Broker, routes localbroker.Router, buf *buffer.Buffer, state *localbroker.State, log *slog.Logger) localbroker.Options {
	o := localbroker.Options{
		Buffer: buf, Router: routes, State: state, Logger: log, SysInterval: c.SysInterval,
		Limits: localbroker.Limits{
			Clients:                c.Limits.Clients,
			ClientsPerAddress:      c.Limits.ClientsPerAddress,
			ConnectTimeout:         c.Limits.ConnectTimeout,
			PacketSize:             int(c.Limits.PacketSize),
			ReceiveMaximum:         c.Limits.ReceiveMaximum,
			QueuedMessages:         c.Limits.QueuedMessages,
			QueuedBytes:            int(c.Limits.QueuedBytes),
			RetainedMessages:       c.Limits.RetainedMessages,
			SubscriptionsPerClient: c.Limits.SubscriptionsPerClient,
			TopicLevels:            c.Limits.TopicLevels,
			TopicAliases:           c.Limits.TopicAliases,
			Keepalive:              c.Limits.Keepalive,
			MessagesPerSecond:      int(c.Limits.MessagesPerSecond),
			SessionExpiry:          c.Limits.SessionExpiry,
		},
	}
	return o
}

// openListeners reads the certificates of the broker's listeners.
func openListeners(c *config.Broker, log *slog.Logger) (all []localbroker.Listener, looks []certLook, err error) {
	var errs []error
	for i := range c.Listeners {
		l := &c.Listeners[i]
		one := localbroker.Listener{Name: l.Name, Addr: l.Listen, AllowAnonymous: l.AllowAnonymous, WebSocket: l.WebSocket, Origins: l.Origins}
		if t := l.TLS; t != nil {
			failed := func(err error) {
				log.Error("certificates have changed and cannot be used; those from before stay in use", "listener", l.Name, "err", err)
			}
			server, err := certs.OpenServer(serverFiles(t), failed)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: broker.listeners: %s: %w", t.Pos, l.Name, err))
				continue
			}
			one.TLS, one.Identity = server.Config(), identity(t.Identity)
			looks = append(looks, certLook{"listener/" + l.Name, server.Err, server.Chain})
		}
		all = append(all, one)
	}
	return all, looks, errors.Join(errs...)
}

func serverFiles(t *config.ListenerTLS) certs.ServerFiles {
	return certs.ServerFiles{Cert: t.Cert, Key: t.Key, ClientCA: t.ClientCA, Require: t.RequireClientCert, CRL: t.CRL, MinVersion: t.MinVersion}
}

// identity says what of a certificate is the user name; nil if nothing is.
func identity(kind string) func(*x509.Certificate) string {
	switch kind {
	case "cn":
		return func(c *x509.Certificate) string { return c.Subject.CommonName }
	case "san":
		return func(c *x509.Certificate) string {
			switch {
			case len(c.DNSNames) > 0:
				return c.DNSNames[0]
			case len(c.EmailAddresses) > 0:
				return c.EmailAddresses[0]
			case len(c.URIs) > 0:
				return c.URIs[0].String()
			}
			return ""
		}
	}
	return nil
}

// listen binds the broker's listeners. What is most often wrong is said with the
// way out.
func listen(b *localbroker.Broker, c *config.Config) error {
	err := b.Listen()
	var failed *localbroker.ListenError
	if !errors.As(err, &failed) {
		return err
	}
	key := fmt.Sprintf("broker.listeners[%d].listen", failed.Index)
	another := "choose another port for " + key
	pos, there := c.Position("broker", "listeners", strconv.Itoa(failed.Index), "listen")
	if !there { // the default one
		key = "broker.listeners"
		another = `choose another port with broker: {listeners: [{listen: "127.0.0.1:1884"}]}`
		if pos, there = c.Position("broker"); !there {
			pos, _ = c.Position()
		}
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s: %s is in use by %s: %s, or stop it", pos, failed.Addr, portOwner("/proc", failed.Addr), another)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%s: %s: %w; ports below 1024 need CAP_NET_BIND_SERVICE", pos, key, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s: %s: %w; this machine has no such address (`ip address` lists them)", pos, key, err)
	}
	return fmt.Errorf("%s: %s: %w", pos, key, err)
}
