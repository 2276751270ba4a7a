package gateway

import (
	"errors"
	"fmt"
	"log/slog"
	"syscall"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/gateway/config"
	"github.com/fieldferry/fieldferry/localbroker"
)

func brokerOptions(c *config.Broker, routes router, buf *buffer.Buffer, state *localbroker.State, log *slog.Logger) localbroker.Options {
	o := localbroker.Options{
		Buffer: buf, Router: routes, State: state, Logger: log,
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
	for _, l := range c.Listeners {
		o.Listeners = append(o.Listeners, localbroker.Listener{Name: l.Name, Addr: l.Listen, AllowAnonymous: l.AllowAnonymous})
	}
	return o
}

// listen binds the broker's listeners. What is most often wrong is said with the
// way out.
func listen(b *localbroker.Broker, c *config.Broker) error {
	err := b.Listen()
	if err == nil {
		return nil
	}
	where := "broker.listeners"
	if !c.Pos.IsZero() {
		where = c.Pos.String() + ": broker.listeners"
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s: %w; another program has that port (`ss -ltnp` names it): stop it, or choose another port", where, err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%s: %w; ports below 1024 need CAP_NET_BIND_SERVICE", where, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s: %w; this machine has no such address (`ip address` lists them)", where, err)
	}
	return fmt.Errorf("%s: %w", where, err)
}
