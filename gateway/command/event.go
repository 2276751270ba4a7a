package command

import (
	"encoding/json"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

// Event is one line of the audit log.
type Event struct {
	Time     time.Time
	Unsynced bool   // Time is of a clock that is not known to be right
	What     string // "accepted", "started", "step", "answered", "repeated"
	Device   string
	From     Issuer
	ID       string
	Action   string
	Call     bool
	Step     int // of an action, from 1; 0 is none
	Wait     time.Duration
	Writes   []adapters.Assignment
	Before   []adapters.Assignment // what the points held when they were last read
	Points   []string              // that are read
	Waited   time.Duration
	Result   *adapters.Result // nil unless something has ended
}

// Append appends the event as one line of JSON.
func (e *Event) Append(dst []byte, value func([]byte, adapters.Value) []byte) []byte {
	type line struct {
		Time     string          `json:"time"`
		Clock    string          `json:"clock,omitempty"`
		Event    string          `json:"event"`
		Device   string          `json:"device"`
		From     Issuer          `json:"from"`
		ID       string          `json:"id"`
		Action   string          `json:"action,omitempty"`
		Call     bool            `json:"call,omitempty"`
		Step     int             `json:"step,omitempty"`
		WaitMS   int64           `json:"waitMs,omitempty"`
		Write    json.RawMessage `json:"write,omitempty"`
		Before   json.RawMessage `json:"before,omitempty"`
		Read     []string        `json:"read,omitempty"`
		WaitedMS int64           `json:"waitedMs,omitempty"`
		Status   string          `json:"status,omitempty"`
		Values   json.RawMessage `json:"values,omitempty"`
		Unsure   json.RawMessage `json:"uncertain,omitempty"`
		Error    string          `json:"error,omitempty"`
	}
	l := line{
		Time: e.Time.UTC().Format("2006-01-02T15:04:05.000Z"), Event: e.What, Device: e.Device, From: e.From, ID: e.ID, Action: e.Action,
		Call: e.Call, Step: e.Step, WaitMS: e.Wait.Milliseconds(), Read: e.Points, WaitedMS: e.Waited.Milliseconds(),
	}
	if e.Unsynced {
		l.Clock = "unsynced"
	}
	var writes, before, values, unsure members
	for _, a := range e.Before {
		before.add(a.Point, value(nil, a.Value))
	}
	for _, a := range e.Writes {
		writes.add(a.Point, value(nil, a.Value))
	}
	if r := e.Result; r != nil {
		l.Status, l.Error = string(r.Status), r.Error
		for i := range r.Values {
			if s := &r.Values[i]; s.Quality == adapters.Good {
				values.add(s.Point.Name, value(nil, s.Value))
			} else {
				reason, _ := json.Marshal(s.Reason)
				unsure.add(s.Point.Name, reason)
			}
		}
	}
	l.Write, l.Before, l.Values, l.Unsure = writes.end(), before.end(), values.end(), unsure.end()
	text, err := json.Marshal(l)
	if err != nil { // nothing in it can be; a line is due all the same
		text, _ = json.Marshal(line{Time: l.Time, Event: l.Event, Device: l.Device, From: l.From, ID: l.ID, Error: err.Error()})
	}
	return append(append(dst, text...), '\n')
}

// members are those of a JSON object, in their order.
type members []byte

func (m *members) add(key string, value []byte) {
	sep := byte(',')
	if len(*m) == 0 {
		sep = '{'
	}
	name, _ := json.Marshal(key)
	*m = append(append(append(append(*m, sep), name...), ':'), value...)
}

func (m members) end() json.RawMessage {
	if len(m) == 0 {
		return nil
	}
	return json.RawMessage(append(m, '}'))
}
