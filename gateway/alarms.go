package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/fieldferry/fieldferry/bridge"
	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/buffer/log"
	"github.com/fieldferry/fieldferry/gateway/alarm"
	"github.com/fieldferry/fieldferry/gateway/config"
	"github.com/fieldferry/fieldferry/localbroker"
)

const (
	alarmEvery  = 5 * time.Second
	verifyFirst = 10 * time.Minute // after the start, when the disk is less busy
	verifyEvery = 24 * time.Hour
	verifyRate  = 1 << 20 // bytes a second: 4 GiB in 70 minutes
	commitHangs = 5 * time.Second
)

// alarms watches the gateway: it feeds the alarm engine every five seconds, tells
// of what is raised and cleared in the log and on $SYS/broker/alarms/{name}, and
// has the buffer recounted once a day.
type alarms struct {
	engine  *alarm.Engine
	buffer  *buffer.Buffer
	disk    commitTimes // of the buffer
	dir     string      // of the buffer
	max     int64       // bytes the buffer may take; 0 is no limit
	clock   log.Clock
	broker  *localbroker.Broker
	publish func(context.Context, *localbroker.Message, buffer.Receipt) error
	log     *slog.Logger

	rejected uint64 // appends that failed, at the last look
	bridges  []*bridgeLook
	unlisted func() []alarm.Sample // nil without bridges
	certs    []certLook

	mu       sync.Mutex       // guards what follows
	verified *buffer.Verified // the last recount; nil before the first
}

// commitTimes says how long the disk takes for a commit; see buffer.Buffer.
type commitTimes interface {
	CommitP99() time.Duration
	CommitUnderWay() time.Duration
}

func newAlarms(c *config.Config, b *buffer.Buffer, broker *localbroker.Broker, clock log.Clock, logger *slog.Logger) (*alarms, error) {
	engine, err := alarm.New(alarm.Options{Thresholds: alarmThresholds(c.Alarms.Thresholds)})
	if err != nil {
		return nil, fmt.Errorf("alarms: %w", err)
	}
	return &alarms{
		engine: engine, buffer: b, disk: b, dir: filepath.Join(c.Gateway.DataDir, "buffer"), max: c.Buffer.MaxBytes,
		broker: broker, publish: broker.Publish, clock: clock, log: logger,
	}, nil
}

// bridgeLook is how a bridge stood at the last looks.
type bridgeLook struct {
	name   string
	status func() bridge.Status
	taken  []uint64 // Status.TakenOver, for a minute, the oldest first
	parked uint64
}

func (b *bridgeLook) samples(now time.Time) []alarm.Sample {
	s := b.status()
	down := alarm.Sample{Name: alarm.BridgeDown, Subject: b.name, Detail: s.LastError}
	if !s.Connected && !s.Since.IsZero() {
		down.Value = now.Sub(s.Since).Seconds()
	}
	if keep := int(time.Minute / alarmEvery); len(b.taken) > keep {
		b.taken = b.taken[1:]
	}
	b.taken = append(b.taken, s.TakenOver)
	twin := alarm.Sample{Name: alarm.BridgeTwin, Subject: b.name, Value: float64(s.TakenOver - b.taken[0])}
	parked := alarm.Sample{Name: alarm.BridgeParked, Subject: b.name, Value: float64(s.Parked - b.parked)}
	b.parked = s.Parked
	return []alarm.Sample{down, twin, parked}
}

// forUpstream reports whether an outbox is a bridge's.
func forUpstream(o *buffer.Outbox) bool { return strings.HasPrefix(o.Name(), bridgeOutbox) }

// watch has the alarms look at bridges too, each connection by itself: one that is dead
// among others that are not is to be seen.
func (a *alarms) watch(bridges []*upstream) {
	a.unlisted = func() []alarm.Sample { return unlistedSamples(bridges) }
	for _, u := range bridges {
		for k := range u.latest() {
			status := func() bridge.Status { return u.at(k).bridge.Status() }
			a.bridges = append(a.bridges, &bridgeLook{name: connectionName(u.name, k), status: status, taken: []uint64{0}})
		}
		if u.way.files != nil {
			a.certs = append(a.certs, certLook{"bridge/" + u.name, u.way.problem, u.way.files.Chain})
		}
	}
}

// alarmThresholds are those of the site file.
func alarmThresholds(list []config.Threshold) map[string]alarm.Threshold {
	level := func(l *config.Level) *float64 {
		if l == nil {
			return nil
		}
		v := l.Share + l.Duration.Seconds() + l.Count // two are 0
		return &v
	}
	all := make(map[string]alarm.Threshold)
	for _, t := range list {
		all[t.Alarm] = alarm.Threshold{Warning: level(t.Warning), Critical: level(t.Critical)}
	}
	return all
}

// alarmProblems is what is wrong with the thresholds of a site file.
func alarmProblems(c *config.Config) []config.Problem {
	var problems []config.Problem
	for _, t := range c.Alarms.Thresholds {
		if _, err := alarm.New(alarm.Options{Thresholds: alarmThresholds([]config.Threshold{t})}); err != nil {
			problems = append(problems, config.Problem{Pos: t.Pos, Text: fmt.Sprintf("alarms.thresholds: %v", err)})
		}
	}
	return problems
}

// Run watches until ctx ends.
func (a *alarms) Run(ctx context.Context) error {
	cancel := a.engine.Listen(func(e alarm.Event) { a.tell(ctx, e) })
	defer cancel()
	var recount sync.WaitGroup
	defer recount.Wait()
	recount.Go(func() { a.recount(ctx) })
	tick := time.NewTicker(alarmEvery)
	defer tick.Stop()
	for {
		a.engine.Observe(time.Now(), a.samples()...)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// recount verifies the buffer now and then.
func (a *alarms) recount(ctx context.Context) {
	next := time.NewTimer(verifyFirst)
	defer next.Stop()
	for {
		select {
		case <-next.C:
		case <-ctx.Done():
			return
		}
		v, err := a.buffer.Verify(ctx, verifyRate)
		if err != nil { // ctx has ended
			return
		}
		a.log.Info("the buffer was recounted", "blocks", v.Blocks, "bytes", v.Bytes, "differences", v.Differences(), "damaged", v.Damaged)
		a.mu.Lock()
		a.verified = v
		a.mu.Unlock()
		next.Reset(verifyEvery)
	}
}

// samples are the figures as they are. One that cannot be had is left out.
func (a *alarms) samples() []alarm.Sample {
	s := a.buffer.Stats()
	all := []alarm.Sample{a.rejecting(&s), a.ledger(&s), a.commits()}
	if a.max > 0 {
		all = append(all, alarm.Sample{Name: alarm.BufferFill, Value: float64(s.DiskBytes) / float64(a.max)})
	}
	// What waits for sessions of the local broker waits for clients that are away.
	age, _ := a.buffer.OldestAge(forUpstream)
	all = append(all, alarm.Sample{Name: alarm.BufferAge, Value: age.Seconds()}, a.drops())
	for _, b := range a.bridges {
		all = append(all, b.samples(time.Now())...)
	}
	if a.unlisted != nil {
		all = append(all, a.unlisted()...)
	}
	for _, c := range a.certs {
		all = append(all, c.samples(time.Now())...)
	}
	if free, ok := diskFree(a.dir); ok {
		all = append(all, alarm.Sample{Name: alarm.DiskFree, Value: free})
	}
	if c, ok := a.clock.(log.SyncedClock); ok {
		all = append(all, alarm.Sample{Name: alarm.Clock, Value: number(!c.Synced())})
	}
	if q, ok := a.quarantine(); ok {
		all = append(all, q)
	}
	return all
}

// drops is what the local broker has dropped since the last look because clients do
// not take it.
func (a *alarms) drops() alarm.Sample {
	s := alarm.Sample{Name: alarm.SessionDrops}
	var worst uint64
	for client, n := range a.broker.TakeDrops() {
		s.Value += float64(n)
		if n > worst {
			worst, s.Detail = n, client
		}
	}
	return s
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// rejecting is whether the buffer refuses messages, or could not store some since
// the last look.
func (a *alarms) rejecting(s *buffer.Stats) alarm.Sample {
	var classes []string
	for _, c := range a.buffer.Rejecting() {
		classes = append(classes, c.String())
	}
	var rejected uint64
	for _, c := range s.Classes {
		rejected += c.Rejected
	}
	since := rejected - a.rejected
	a.rejected = rejected
	detail := "no room for " + strings.Join(classes, ", ")
	if len(classes) == 0 {
		detail = fmt.Sprintf("%d just now", since)
	}
	return alarm.Sample{Name: alarm.BufferRejecting, Value: number(len(classes) > 0 || since > 0), Detail: detail}
}

// ledger is by how much the running ledger, or else the last recount, is out.
func (a *alarms) ledger(s *buffer.Stats) alarm.Sample {
	sample := alarm.Sample{Name: alarm.Ledger, Detail: "by its own figures"}
	for _, c := range s.Classes { // two classes must not balance each other
		d := c.Ledger.Difference()
		sample.Value += float64(max(d, -d))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if sample.Value == 0 && a.verified != nil {
		sample.Value = float64(a.verified.Differences())
		sample.Detail = "by a recount of the disk"
	}
	return sample
}

// commits is how long the disk takes for one.
func (a *alarms) commits() alarm.Sample {
	s := alarm.Sample{Name: alarm.Fsync, Value: a.disk.CommitP99().Seconds(), Detail: "one commit in a hundred takes"}
	// One that never ends is never counted.
	if d := a.disk.CommitUnderWay(); d >= commitHangs && d.Seconds() > s.Value {
		s.Value, s.Detail = d.Seconds(), "a commit that has not ended has taken"
	}
	return s
}

// quarantine is how many damaged files were set aside, and damaged places the
// last recount found.
func (a *alarms) quarantine() (alarm.Sample, bool) {
	files, err := buffer.Quarantine(a.dir)
	if err != nil {
		return alarm.Sample{}, false
	}
	sample := alarm.Sample{Name: alarm.Quarantine, Value: float64(len(files)), Detail: "nothing any more"}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case len(files) > 0:
		sample.Detail = filepath.Join(a.dir, files[len(files)-1].File)
	case a.verified != nil && len(a.verified.Damage) > 0:
		sample.Detail = filepath.Join(a.dir, a.verified.Damage[0].File)
	}
	if a.verified != nil {
		sample.Value += float64(a.verified.Damaged)
	}
	return sample, true
}

// alarmMessage is an alarm as it is published.
type alarmMessage struct {
	alarm.Alarm
	State string `json:"state"` // raised | cleared
}

// tell says in the log and on the broker what happened to an alarm.
func (a *alarms) tell(ctx context.Context, e alarm.Event) {
	level, state := slog.LevelWarn, "raised"
	switch {
	case e.Kind == alarm.Cleared:
		level, state = slog.LevelInfo, "cleared"
	case e.Severity == alarm.Critical:
		level = slog.LevelError
	}
	attrs := []slog.Attr{slog.String("alarm", e.Name), slog.String("what", e.Kind.String()), slog.String("severity", e.Severity.String()),
		slog.Float64("value", e.Value), slog.Float64("threshold", e.Threshold), slog.String("text", e.Text)}
	topic := "$SYS/broker/alarms/" + e.Name
	if e.Subject != "" {
		attrs = append(attrs, slog.String("subject", e.Subject))
		topic += "/" + e.Subject
	}
	a.log.LogAttrs(ctx, level, "alarm", attrs...)
	payload, err := json.Marshal(alarmMessage{e.Alarm, state})
	if err == nil {
		err = a.publish(ctx, &localbroker.Message{Topic: topic, Payload: payload, QoS: 1, Retain: true}, nil)
	}
	if err != nil && ctx.Err() == nil {
		a.log.Warn("an alarm could not be published", "alarm", e.Name, "err", err)
	}
}
