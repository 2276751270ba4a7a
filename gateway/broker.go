package gateway

import (
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"syscall"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/gateway/config"
	"github.com/fieldferry/fieldferry/localbroker"
)

func brokerOptions(c *config.Broker, routes router, buf *buffer.Buffer, log *slog.Logger) localbroker.Options {
	o := localbroker.Options{
		Buffer: buf, Router: routes, Logger: log,
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
		},
	}
	for _, l := range c.Listeners {
		o.Listeners = append(o.Listeners, localbroker.Listener{Name: l.Name, Addr: l.Listen, AllowAnonymous: l.AllowAnonymous})
	}
	return o
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
