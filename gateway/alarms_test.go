package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/buffer/log"
	"github.com/fieldferry/fieldferry/gateway/alarm"
	"github.com/fieldferry/fieldferry/gateway/config"
	"github.com/fieldferry/fieldferry/localbroker"
)

const alarmSite = `
gateway: {id: gw-test, data_dir: %q}
broker: {listeners: [{name: plain, listen: "127.0.0.1:0"}]}
buffer: {max_bytes: 1MiB}
alarms:
  thresholds:
    disk-free: {warning: 0, critical: 0}
    clock: {warning: 0}
    buffer-age: {warning: 60s, critical: 1h}
`

// told is what alarms told on the broker.
type told struct {
	mu   sync.Mutex // guards what follows
	list []alarmMessage
	bad  []string
}

func (t *told) publish(_ context.Context, m *localbroker.Message, _ buffer.Receipt) error {
	var a struct {
		alarmMessage
		Severity string `json:"severity"`
	}
	err := json.Unmarshal(m.Payload, &a)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil || !m.Retain || m.Topic != "$SYS/broker/alarms/"+a.Name || a.Text == "" || a.Since.IsZero() || a.Severity == "" || a.Threshold == 0 {
		t.bad = append(t.bad, fmt.Sprintf("%s: %s, %v", m.Topic, m.Payload, err))
	}
	t.list = append(t.list, a.alarmMessage)
	return nil
}

// take returns what was told of an alarm since the last call, as "raised cleared".
func (t *told) take(name string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var states []string
	rest := t.list[:0]
	for _, a := range t.list {
		if a.Name == name {
			states = append(states, a.State)
		} else {
			rest = append(rest, a)
		}
	}
	t.list = rest
	return strings.Join(states, " ")
}

// TestAlarms has each figure of the buffer go wrong and come right, with a real
// buffer: each alarm is told of once, and cleared once.
func TestAlarms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c := site(t, alarmSite, dir)
		b, err := buffer.Open(filepath.Join(dir, "buffer"), buffer.Options{Clock: bubbleClock{time.Now()}})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		var lines bytes.Buffer
		a, err := newAlarms(c, b, localbroker.New(localbroker.Options{}), bubbleClock{time.Now()}, slog.New(slog.NewTextHandler(&lines, nil)))
		if err != nil {
			t.Fatal(err)
		}
		var told told
		a.publish = told.publish
		disk := new(fakeDisk)
		a.disk = disk
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		expect := func(name, want string) {
			t.Helper()
			time.Sleep(2 * alarmEvery)
			synctest.Wait()
			if got := told.take(name); got != want {
				t.Errorf("%s: told %q, want %q", name, got, want)
			}
			if want == "raised" { // and hovers
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				if got := told.take(name); got != "" {
					t.Errorf("%s: told %q while nothing changed", name, got)
				}
			}
		}
		o, err := b.Outbox("bridge/cloud", buffer.Telemetry)
		if err != nil {
			t.Fatal(err)
		}
		expect(alarm.BufferAge, "")

		// A damaged file is set aside, and removed by the operator.
		aside := filepath.Join(dir, "buffer", "telemetry", "quarantine")
		if err := os.MkdirAll(aside, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(aside, "000001-g.db"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		expect(alarm.Quarantine, "raised")
		if err := os.RemoveAll(aside); err != nil {
			t.Fatal(err)
		}
		expect(alarm.Quarantine, "cleared")

		// The recount finds a difference, and the next one none.
		recounted := func(v *buffer.Verified) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.verified = v
		}
		recounted(&buffer.Verified{Outboxes: []buffer.Recount{{Ledger: buffer.Ledger{Accepted: 5, Stored: 5}, Found: 3}}})
		expect(alarm.Ledger, "raised")
		recounted(&buffer.Verified{})
		expect(alarm.Ledger, "cleared")

		// The disk becomes slow, hangs, and is fast again.
		disk.set(120*time.Millisecond, 0)
		expect(alarm.Fsync, "raised")
		disk.set(120*time.Millisecond, 4*time.Second) // one slow commit
		expect(alarm.Fsync, "")
		disk.set(120*time.Millisecond, 20*time.Second)
		expect(alarm.Fsync, "raised") // to critical
		disk.set(95*time.Millisecond, 0)
		expect(alarm.Fsync, "raised") // back to a warning
		disk.set(5*time.Millisecond, 0)
		expect(alarm.Fsync, "cleared")

		// The buffer fills, and is drained.
		stored := make(stores, 1)
		for range 9 {
			m := &buffer.Message{Topic: "t", Payload: make([]byte, 100<<10), Urgent: true, Copies: []buffer.Copy{{Outbox: o}}}
			if err := b.Append(ctx, buffer.Telemetry, m, stored); err != nil {
				t.Fatal(err)
			}
			if err := <-stored; err != nil {
				t.Fatal(err)
			}
		}
		expect(alarm.BufferFill, "raised")
		expect(alarm.BufferAge, "raised") // 10 minutes ago by now
		r, err := b.Reader(o)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		all := make([]buffer.Delivery, 9)
		for {
			n, err := r.TryNext(all)
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				break
			}
			for _, d := range all[:n] {
				o.Settle(d.Ordinal, buffer.Delivered)
			}
		}
		expect(alarm.BufferAge, "cleared")
		time.Sleep(time.Minute) // until the drained files are gone
		expect(alarm.BufferFill, "cleared")

		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		told.mu.Lock()
		defer told.mu.Unlock()
		if len(told.bad) > 0 || len(told.list) > 0 {
			t.Errorf("malformed: %q; told besides: %+v", told.bad, told.list)
		}
		for _, text := range []string{"one commit in a hundred takes 120 ms or longer", "a commit that has not ended has taken 20 s or longer"} {
			if n := strings.Count(lines.String(), text); n != 1 {
				t.Errorf("%q stands %d times in the log", text, n)
			}
		}
		for _, name := range []string{alarm.Quarantine, alarm.Ledger, alarm.Fsync, alarm.BufferFill, alarm.BufferAge} {
			if n := strings.Count(lines.String(), "alarm="+name+" what=raised"); n != 1 {
				t.Errorf("%s stands %d times in the log", name, n)
			}
		}
	})
}

// fakeDisk says how long commits take.
type fakeDisk struct{ p99, underWay atomic.Int64 }

func (d *fakeDisk) set(p99, underWay time.Duration) {
	d.p99.Store(int64(p99))
	d.underWay.Store(int64(underWay))
}
func (d *fakeDisk) CommitP99() time.Duration      { return time.Duration(d.p99.Load()) }
func (d *fakeDisk) CommitUnderWay() time.Duration { return time.Duration(d.underWay.Load()) }

// bubbleClock is a clock in a bubble of synctest, of a machine that was booted
// at its time.
type bubbleClock struct{ booted time.Time }

func (c bubbleClock) Now() time.Time                  { return time.Now() }
func (c bubbleClock) Uptime() (time.Duration, uint64) { return time.Since(c.booted), 7 }

// stores tells how appends ended.
type stores chan error

func (s stores) Stored(err error) { s <- err }

// TestAlarmsAreRetained reads an alarm from the broker, after it was raised.
func TestAlarmsAreRetained(t *testing.T) {
	dir := t.TempDir()
	b, err := buffer.Open(filepath.Join(dir, "buffer"), buffer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	broker := localbroker.New(localbroker.Options{Buffer: b})
	a, err := newAlarms(site(t, alarmSite, dir), b, broker, log.SystemClock{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	since := time.UnixMilli(1_790_000_000_000).UTC()
	e := alarm.Event{Kind: alarm.Escalated, Time: since, Alarm: alarm.Alarm{
		Name: "ledger", Severity: alarm.Critical, Value: 2, Threshold: 1, Text: "out by 2: look", Since: since}}
	a.tell(t.Context(), e)
	got := make(chan string, 10)
	cancel, err := broker.Subscribe("$SYS/broker/alarms/#", 1, func(m *localbroker.Message) { got <- m.Topic + " " + string(m.Payload) })
	if err != nil {
		t.Fatal(err)
	}
	defer cancel()
	const head = `$SYS/broker/alarms/ledger {"name":"ledger","severity":"critical","value":`
	const tail = `,"threshold":1,"text":"out by 2: look","since":"2026-09-21T14:13:20Z","state":`
	e.Kind, e.Value = alarm.Cleared, 0
	for _, want := range []string{head + "2" + tail + `"raised"}`, head + "0" + tail + `"cleared"}`} {
		select {
		case m := <-got:
			if m != want {
				t.Errorf("got  %s\nwant %s", m, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("nothing came")
		}
		a.tell(t.Context(), e)
	}
}

func TestAlarmProblems(t *testing.T) {
	c := &config.Config{Alarms: config.Alarms{Thresholds: []config.Threshold{
		{Alarm: "disk-free", Warning: &config.Level{Share: 0.3}},
		{Alarm: "buffer-fil", Warning: &config.Level{Share: 0.3}},
		{Alarm: "buffer-age", Critical: &config.Level{Duration: time.Minute}},
	}}}
	p := Check(c) // they are mistakes, not what this version lacks
	if len(p) != 2 || p[0].Warning || p[1].Warning || !strings.Contains(p[0].Text, `there is no alarm "buffer-fil"`) || !strings.Contains(p[1].Text, "critical is 1m, it must be above warning, which is 1h") {
		t.Errorf("problems are %v", p)
	}
}
