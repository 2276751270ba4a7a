package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/bridge"
	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/gateway/alarm"
	"github.com/fieldferry/fieldferry/gateway/health"
)

// Status is how a gateway stands, as `fieldferry status --json` prints it. Counts are
// since the start of the process, those of a ledger since the data folder was made.
type Status struct {
	Gateway  string         `json:"gateway"`
	Version  string         `json:"version"`
	PID      int            `json:"pid"`
	Started  time.Time      `json:"started"`
	Health   *health.Report `json:"health"`
	Broker   BrokerState    `json:"broker"`
	Bridges  []BridgeState  `json:"bridges"`
	Adapters []AdapterState `json:"adapters"`
	Devices  []DeviceState  `json:"devices"` // polled ones
	Buffer   BufferState    `json:"buffer"`
	Alarms   []alarm.Alarm  `json:"alarms"` // that are raised
}

// BrokerState is how the local broker stands.
type BrokerState struct {
	Clients       int    `json:"clients"` // connected
	SessionsKept  int    `json:"sessionsKept"`
	Subscriptions int    `json:"subscriptions"`
	Retained      int    `json:"retained"`
	Received      uint64 `json:"received"` // publishes
	Sent          uint64 `json:"sent"`     // publishes
	Refused       uint64 `json:"refused"`  // publishes
	Dropped       uint64 `json:"dropped"`  // subscribers too slow
}

// BridgeState is how a bridge stands.
type BridgeState struct {
	Name           string        `json:"name"`
	Connected      bool          `json:"connected"`
	URL            string        `json:"url,omitempty"` // connected to, or last tried
	Since          *time.Time    `json:"since,omitempty"`
	SessionPresent bool          `json:"sessionPresent"`
	LastError      string        `json:"lastError,omitempty"`
	Connections    uint64        `json:"connections"` // that were made
	InFlight       int           `json:"inFlight"`
	Down           uint64        `json:"down"` // messages that came from the upstream
	Ledger         buffer.Ledger `json:"ledger"`
}

// AdapterState is how an adapter's connection or bus stands.
type AdapterState struct {
	Name string `json:"name"`
	// Counts are left out for a link that counts nothing.
	*LinkCounts
	Messages []MessageCounts `json:"messages,omitempty"` // of each device, where they may not be what was described
}

// LinkCounts are the counts of a link.
type LinkCounts struct {
	Connected bool   `json:"connected"`
	LastError string `json:"lastError,omitempty"` // why it could not connect
	Connects  uint64 `json:"connects"`
	Polls     uint64 `json:"polls"`
	Failed    uint64 `json:"failed"`  // polls that were not answered
	Late      uint64 `json:"late"`    // cycles left out because the link was busy
	Refused   uint64 `json:"refused"` // readings that could not be stored
	Online    int    `json:"online"`  // devices
	Offline   int    `json:"offline"` // devices
}

// DeviceState is how a polled device stands.
type DeviceState struct {
	ID       string     `json:"id"`
	State    string     `json:"state"` // online, offline, or unknown before the first answer
	Reason   string     `json:"reason,omitempty"`
	Since    *time.Time `json:"since,omitempty"` // of State
	Readings uint64     `json:"readings"`
	Last     *time.Time `json:"last,omitempty"` // reading
}

// BufferState is how the buffer stands.
type BufferState struct {
	Ledger    buffer.Ledger `json:"ledger"`
	Rejected  uint64        `json:"rejected"` // messages that had no room or met a failing disk; nobody was told that they are safe
	DiskBytes int64         `json:"diskBytes"`
	MaxBytes  int64         `json:"maxBytes,omitempty"`
	OldestAge float64       `json:"oldestAgeSeconds"` // of what is stored for an upstream
}

// Health asks the broker and the bridges; see health.Checker. Run must be running.
func (g *Gateway) Health(ctx context.Context) (*health.Report, error) { return g.health.Check(ctx) }

// newHealth makes the checker of the gateway's parts.
func (g *Gateway) newHealth() *health.Checker {
	parts := []health.Part{{Name: "local", Local: true, Probe: g.canary.probe}}
	for _, u := range g.bridges {
		for k := range u.latest() {
			parts = append(parts, health.Part{Name: "bridge " + connectionName(u.name, k), Probe: func(ctx context.Context) (time.Duration, error) {
				took, err := u.at(k).bridge.Probe(ctx)
				if errors.Is(err, bridge.ErrDoubt) {
					err = fmt.Errorf("%w: %w", health.ErrDoubt, err)
				}
				return took, err
			}})
		}
	}
	return health.NewChecker(parts...)
}

// Status tells how the gateway stands. It takes as long as Health.
func (g *Gateway) Status(ctx context.Context) (*Status, error) {
	report, err := g.Health(ctx)
	if err != nil {
		return nil, err
	}
	b := g.broker.Stats()
	s := &Status{
		Gateway: g.config.Gateway.ID, Version: g.version, PID: g.pid, Started: g.started, Health: report,
		Broker: BrokerState{
			Clients: b.Clients, SessionsKept: b.SessionsKept, Subscriptions: b.Subscriptions, Retained: b.RetainedMessages,
			Received: b.PublishesReceived, Sent: b.PublishesSent, Refused: b.PublishesRefused, Dropped: b.MessagesDropped,
		},
		Bridges: []BridgeState{}, Adapters: []AdapterState{}, Devices: []DeviceState{}, Alarms: g.alarms.engine.Active(),
	}
	if s.Alarms == nil {
		s.Alarms = []alarm.Alarm{}
	}
	for _, b := range g.Bridges() {
		s.Bridges = append(s.Bridges, BridgeState{
			Name: b.Name, Connected: b.Connected, URL: b.URL, Since: known(b.Since), SessionPresent: b.SessionPresent,
			LastError: b.LastError, Connections: b.Connections, InFlight: b.InFlight, Down: b.Down, Ledger: b.Ledger,
		})
	}
	for _, l := range g.links {
		a := AdapterState{Name: l.String()}
		if counter, ok := l.(adapters.Counter); ok {
			n := counter.Stats()
			a.LinkCounts = &LinkCounts{n.Connected, n.LastError, n.Connects, n.Polls, n.Failed, n.Skipped, n.Refused, n.Online, n.Offline}
		}
		if framed, ok := l.(adapters.Framed); ok {
			a.Messages = messageCounts(framed.Frames())
		}
		s.Adapters = append(s.Adapters, a)
	}
	for _, d := range g.Devices() {
		one := DeviceState{ID: d.ID, State: "unknown", Reason: d.Reason, Since: known(d.Since), Readings: d.Readings, Last: known(d.Last)}
		switch {
		case d.Known && d.Online:
			one.State = "online"
		case d.Known:
			one.State = "offline"
		}
		s.Devices = append(s.Devices, one)
	}
	st := g.buffer.Stats()
	s.Buffer = BufferState{Ledger: st.Ledger, DiskBytes: st.DiskBytes, MaxBytes: g.config.Buffer.MaxBytes}
	for _, class := range st.Classes {
		s.Buffer.Rejected += class.Rejected
	}
	age, _ := g.buffer.OldestAge(forUpstream)
	s.Buffer.OldestAge = age.Seconds()
	return s, nil
}

// known is a time, nil if it is none.
func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
