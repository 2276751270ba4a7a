package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/buffer/rows"
	"github.com/fieldferry/fieldferry/gateway/config"
	"github.com/fieldferry/fieldferry/gateway/payload"
	"github.com/fieldferry/fieldferry/localbroker"
)

// deviceAlert is one alert of one device. The device's link alone uses it.
type deviceAlert struct {
	*config.Alert
	point  *adapters.Point
	raised bool
	beyond time.Time // since when the value is, while the alert is not raised; zero if it is not
}

func newDeviceAlerts(d *config.Device, points []*adapters.Point) (all []*deviceAlert) {
	for i := range d.Alerts {
		a := &d.Alerts[i]
		for _, p := range points {
			if p.Name == a.Point {
				all = append(all, &deviceAlert{Alert: a, point: p})
			}
		}
	}
	return all
}

// watch tells when an alert begins or ends. What could not be told is so at the
// next reading.
func (f *field) watch(ctx context.Context, d *device, a *deviceAlert, r *adapters.Reading) {
	for i := range r.Samples {
		s := &r.Samples[i]
		if s.Point != a.point || s.Quality != adapters.Good || !a.changes(s.Value, r.Time) {
			continue
		}
		p := payload.Alert{
			Type: a.Name, Message: strings.ReplaceAll(a.Message, "{value}", s.Value.String()), Critical: a.Critical,
			Raised: !a.raised, Value: s.Value, Time: r.Time, Unsynced: r.Unsynced,
		}
		if err := f.tellAlert(ctx, d, &p); err != nil {
			f.log.Warn("an alert could not be stored, and is told again at the next reading", "device", d.Name, "alert", a.Name, "error", err)
			return
		}
		a.raised, a.beyond = !a.raised, time.Time{}
		if err := f.memory.note(d.Name, a.Name, a.raised); err != nil {
			f.log.Error("an alert was told, and may be told again after a restart", "device", d.Name, "alert", a.Name, "error", err)
		}
	}
}

// tellAlert publishes an alert and waits until it is stored. That holds the link up for
// one commit, but alerts are rare, and what is remembered of them must not be
// ahead of what was told.
func (f *field) tellAlert(ctx context.Context, d *device, a *payload.Alert) error {
	stored := make(receipt, 1)
	m := &localbroker.Message{Topic: "devices/" + d.Name + "/alerts", Payload: f.format.AppendAlert(nil, a), QoS: 1, Received: time.Now(), Urgent: true}
	if a.Unsynced {
		m.Props = unsynced
	}
	if err := f.broker.Publish(ctx, m, stored); err != nil {
		f.stored.refused.Add(1)
		return err
	}
	select {
	case err := <-stored:
		f.stored.Stored(err)
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// receipt takes how a publish ended.
type receipt chan error

func (r receipt) Stored(err error) { r <- err }

// changes reports whether a value begins or ends the alert.
func (a *deviceAlert) changes(v adapters.Value, now time.Time) bool {
	f, ok := extreme(v, a.Above != nil)
	if !ok {
		return false
	}
	if a.raised {
		return a.Above != nil && f <= a.Clear || a.Below != nil && f >= a.Clear
	}
	if a.Above != nil && f <= *a.Above || a.Below != nil && f >= *a.Below {
		a.beyond = time.Time{}
		return false
	}
	if a.beyond.IsZero() || now.Before(a.beyond) {
		a.beyond = now
	}
	return now.Sub(a.beyond) >= a.For
}

// extreme is the number that an alert looks at: of a list the highest or the lowest.
func extreme(v adapters.Value, highest bool) (f float64, ok bool) {
	if v.Kind() != adapters.KindList {
		return v.Float64()
	}
	for _, e := range v.List() {
		g, number := e.Float64()
		if number && (!ok || highest == (g > f)) {
			f, ok = g, true
		}
	}
	return f, ok
}

// alertMemory remembers over a restart which alerts are raised. Nil remembers
// nothing.
type alertMemory struct{ table rows.Store }

const raisedBucket = "raised"

// openAlerts tells the alerts of the devices which of them are raised. Without any
// there is no file.
func openAlerts(path string, devices []*device, log *slog.Logger) (*alertMemory, error) {
	byKey := map[string]*deviceAlert{}
	for _, d := range devices {
		for _, a := range d.alerts {
			byKey[alertKey(d.Name, a.Name)] = a
		}
	}
	if len(byKey) == 0 {
		return nil, nil
	}
	table, err := rows.Open(path, []string{raisedBucket}, rows.Options{})
	if errors.Is(err, rows.ErrDamaged) {
		log.Error("what was remembered of alerts is damaged; alerts that are raised are told again", "error", err)
		if err := rows.SetAside(path); err != nil {
			return nil, err
		}
		table, err = rows.Open(path, []string{raisedBucket}, rows.Options{})
	}
	if err != nil {
		return nil, err
	}
	m := &alertMemory{table}
	err = table.Update(func(tx rows.Tx) error {
		var gone [][]byte
		for key := range tx.Rows(raisedBucket, nil) {
			if a := byKey[string(key)]; a != nil {
				a.raised = true
			} else {
				gone = append(gone, append([]byte(nil), key...))
			}
		}
		for _, key := range gone { // the site file has it no more
			device, name, _ := strings.Cut(string(key), "\x00")
			log.Warn("an alert that was raised is not in the site file any more; it will not be told that it ended", "device", device, "alert", name)
			if err := tx.Delete(raisedBucket, key); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, m.close())
	}
	return m, nil
}

func alertKey(device, alert string) string { return device + "\x00" + alert }

// note remembers whether an alert is raised. It is durable on return.
func (m *alertMemory) note(device, alert string, raised bool) error {
	err := m.table.Update(func(tx rows.Tx) error {
		key := []byte(alertKey(device, alert))
		if raised {
			return tx.Put(raisedBucket, key, []byte{1})
		}
		return tx.Delete(raisedBucket, key)
	})
	if err != nil {
		return fmt.Errorf("remember the alert: %w", err)
	}
	return nil
}

func (m *alertMemory) close() error {
	if m == nil {
		return nil
	}
	return m.table.Close()
}
