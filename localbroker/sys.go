package localbroker

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"strconv"
	"time"
)

// The names of $SYS are Mosquitto's (mosquitto(8)), so that what reads those reads
// these. Numbers are since the start; loads are moving averages, for one minute each.

// sys publishes the broker's figures every interval until ctx ends.
func (b *Broker) sys(ctx context.Context, interval time.Duration) {
	s := sysState{b: b, last: make(map[string]string), loads: make(map[string]*[3]float64), at: time.Now()}
	s.before = b.Stats()
	s.publish("version", "fieldferry "+b.options.Version)
	_ = b.guard("$SYS", func() { s.figures(s.before) })
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			is := b.Stats()
			_ = b.guard("$SYS", func() {
				s.figures(is)
				s.load(is, now)
			})
			s.before, s.at = is, now
		}
	}
}

// sysState is what was published last.
type sysState struct {
	b       *Broker
	last    map[string]string
	loads   map[string]*[3]float64
	before  Stats
	at      time.Time
	maximum uint64 // of the heap
}

// publish publishes what has changed, retained, and keeps it in memory only.
func (s *sysState) publish(name, value string) {
	if s.last[name] == value {
		return
	}
	s.last[name] = value
	m := &Message{Topic: "$SYS/broker/" + name, Payload: []byte(value), Retain: true, Received: time.Now(), stamp: s.b.stamps.Add(1)}
	f := s.b.fanouts.Get().(*fanout)
	s.b.route(m, nil, f)
	f.wake()
	s.b.fanouts.Put(f)
}

func (s *sysState) number(name string, v uint64) { s.publish(name, strconv.FormatUint(v, 10)) }

func (s *sysState) figures(is Stats) {
	s.publish("uptime", fmt.Sprintf("%d seconds", int(is.Uptime.Seconds())))
	away := uint64(is.SessionsKept - is.SessionsOnline)
	for _, f := range []struct {
		name string
		v    uint64
	}{
		{"clients/connected", uint64(is.Clients)},
		{"clients/active", uint64(is.Clients)},
		{"clients/disconnected", away},
		{"clients/inactive", away},
		{"clients/total", uint64(is.Clients) + away},
		{"clients/maximum", is.ClientsMaximum},
		{"clients/expired", is.SessionsExpired},
		{"messages/received", is.PacketsReceived},
		{"messages/sent", is.PacketsSent},
		{"publish/messages/received", is.PublishesReceived},
		{"publish/messages/sent", is.PublishesSent},
		{"publish/messages/dropped", is.MessagesDropped},
		{"publish/bytes/received", is.PayloadReceived},
		{"publish/bytes/sent", is.PayloadSent},
		{"bytes/received", is.BytesReceived},
		{"bytes/sent", is.BytesSent},
		{"retained messages/count", uint64(is.RetainedMessages)},
		{"store/messages/bytes", uint64(is.RetainedBytes)},
		{"subscriptions/count", uint64(is.Subscriptions)},
		{"shared_subscriptions/count", uint64(is.SharedSubscriptions)},
	} {
		s.number(f.name, f.v)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	s.maximum = max(s.maximum, m.HeapAlloc)
	s.number("heap/current", m.HeapAlloc)
	s.number("heap/maximum", s.maximum)
}

// load publishes the moving averages.
func (s *sysState) load(is Stats, now time.Time) {
	took := now.Sub(s.at)
	if took <= 0 {
		return
	}
	for _, f := range []struct {
		name    string
		is, was uint64
	}{
		{"messages/received", is.PacketsReceived, s.before.PacketsReceived},
		{"messages/sent", is.PacketsSent, s.before.PacketsSent},
		{"publish/received", is.PublishesReceived, s.before.PublishesReceived},
		{"publish/sent", is.PublishesSent, s.before.PublishesSent},
		{"publish/dropped", is.MessagesDropped, s.before.MessagesDropped},
		{"bytes/received", is.BytesReceived, s.before.BytesReceived},
		{"bytes/sent", is.BytesSent, s.before.BytesSent},
		{"sockets", is.Sockets, s.before.Sockets},
		{"connections", is.Connects, s.before.Connects},
	} {
		a := s.loads[f.name]
		if a == nil {
			a = new([3]float64)
			s.loads[f.name] = a
		}
		rate := float64(f.is-f.was) / took.Minutes()
		for i, minutes := range []float64{1, 5, 15} {
			fade := math.Exp(-took.Minutes() / minutes)
			a[i] = rate + fade*(a[i]-rate)
			s.publish(fmt.Sprintf("load/%s/%dmin", f.name, int(minutes)), strconv.FormatFloat(a[i], 'f', 2, 64))
		}
	}
}
