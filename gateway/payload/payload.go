// Package payload turns samples into bytes.
//
// The format is flat: one JSON object with the points' names as keys.
//
//	{"temperature":23.5,"state":{"running":true,"fault":false},"timestamp":1790000000000}
//
// A point that is not good is left out and named with its reason, so that a
// value that is shown can be believed:
//
//	{"temperature":23.5,"timestamp":1790000000000,"bad":{"humidity":"timeout"}}
//
// A time that is not known to be right says so; it is what the clock showed:
//
//	{"temperature":23.5,"timestamp":5000,"clock":"unsynced"}
//
// One message a point has the same form with that one point. An array is a JSON
// array, named bits are an object of booleans, an enum is its string. Numbers
// are written with the fewest digits that give them back exactly. Nothing that
// comes from a device can make the output invalid JSON.
//
// The package knows no topic and sends nothing.
package payload

import (
	"math"
	"strconv"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

// The keys that stand beside the points' names. No point has such a name.
const (
	KeyTimestamp = "timestamp"
	KeyClock     = "clock"
	KeyBad       = "bad"
	KeySeq       = "seq"
)

// ClockUnsynced is what stands under KeyClock, and in the MQTT 5 user property of that
// name, while the clock is not known to be right.
const ClockUnsynced = "unsynced"

// Seq identifies a message of a device, so that consumers can drop duplicates:
// N is dense per device and data within a boot of a data folder.
type Seq struct {
	Origin string // of the data folder
	Boot   uint32
	N      uint64
}

// Append appends s as "origin.boot.n".
func (s Seq) Append(dst []byte) []byte {
	dst = append(dst, s.Origin...)
	dst = append(dst, '.')
	dst = strconv.AppendUint(dst, uint64(s.Boot), 10)
	dst = append(dst, '.')
	return strconv.AppendUint(dst, s.N, 10)
}

// AppendReading appends a reading as one message. Seq is left out unless
// Config.Seq is set.
func (c Config) AppendReading(dst []byte, r adapters.Reading, seq Seq) []byte {
	dst = append(dst, '{')
	bad := false
	for i := range r.Samples {
		if s := &r.Samples[i]; good(s) {
			dst = c.appendPoint(dst, s)
		} else {
			bad = true
		}
	}
	dst = c.appendStamp(dst, r.Time, r.Unsynced)
	if bad {
		dst = append(dst, `,"bad":`...)
		sep := byte('{')
		for i := range r.Samples {
			if s := &r.Samples[i]; !good(s) {
				dst = appendBad(append(dst, sep), s)
				sep = ','
			}
		}
		dst = append(dst, '}')
	}
	return c.appendEnd(dst, seq)
}

// AppendSample appends one sample of a reading as a message of its own.
func (c Config) AppendSample(dst []byte, r adapters.Reading, s *adapters.Sample, seq Seq) []byte {
	dst = append(dst, '{')
	if good(s) {
		dst = c.appendPoint(dst, s)
		dst = c.appendStamp(dst, r.Time, r.Unsynced)
	} else {
		dst = c.appendStamp(dst, r.Time, r.Unsynced)
		dst = appendBad(append(dst, `,"bad":{`...), s)
		dst = append(dst, '}')
	}
	return c.appendEnd(dst, seq)
}

// AppendStatus appends what is retained as a device's status. Without a time, as
// in a will, which is published when nobody knows, it has no timestamp.
func (c Config) AppendStatus(dst []byte, s adapters.Status) []byte {
	if s.Online {
		dst = append(dst, `{"status":"online"`...)
	} else {
		dst = append(dst, `{"status":"offline"`...)
	}
	if !s.Time.IsZero() {
		dst = c.appendStamp(append(dst, ','), s.Time, s.Unsynced)
	}
	if s.Reason != "" {
		dst = appendString(append(dst, `,"reason":`...), s.Reason)
	}
	return append(dst, '}')
}

// An Alert is what is told when a value goes beyond a limit, and when it comes
// back.
type Alert struct {
	Type     string
	Message  string
	Critical bool
	Raised   bool
	Value    adapters.Value
	Time     time.Time
	Unsynced bool // as in a reading
}

// AppendAlert appends an alert as a message.
func (c Config) AppendAlert(dst []byte, a *Alert) []byte {
	severity, state := "warning", "cleared"
	if a.Critical {
		severity = "critical"
	}
	if a.Raised {
		state = "raised"
	}
	dst = appendString(append(dst, `{"type":`...), a.Type)
	dst = appendString(append(dst, `,"message":`...), a.Message)
	dst = append(dst, `,"severity":"`+severity+`","state":"`+state+`","value":`...)
	dst = append(c.appendValue(dst, a.Value), ',')
	return append(c.appendStamp(dst, a.Time, a.Unsynced), '}')
}

// good reports whether a sample may be shown. A number that JSON has no form
// for may not, whatever its quality says.
func good(s *adapters.Sample) bool {
	if s.Quality != adapters.Good {
		return false
	}
	switch s.Value.Kind() {
	case adapters.KindNone:
		return false
	case adapters.KindFloat32, adapters.KindFloat64:
		f, _ := s.Value.Float64()
		return finite(f)
	}
	return true
}

func finite(f float64) bool { return !math.IsNaN(f) && !math.IsInf(f, 0) }

// appendPoint appends `"name":value,`.
func (c Config) appendPoint(dst []byte, s *adapters.Sample) []byte {
	dst = appendString(dst, s.Point.Name)
	dst = append(dst, ':')
	dst = c.appendValue(dst, s.Value)
	return append(dst, ',')
}

// appendBad appends `"name":"reason"`.
func appendBad(dst []byte, s *adapters.Sample) []byte {
	reason := s.Reason
	switch {
	case reason != "":
	case s.Quality == adapters.Good: // and yet no value that JSON has a form for
		reason = adapters.ReasonNotANumber
	default:
		reason = s.Quality.String()
	}
	dst = appendString(dst, s.Point.Name)
	dst = append(dst, ':')
	return appendString(dst, reason)
}

// appendStamp appends `"timestamp":…`, and what is to be known of its clock.
func (c Config) appendStamp(dst []byte, t time.Time, unsynced bool) []byte {
	dst = c.appendTime(append(dst, `"timestamp":`...), t)
	if unsynced {
		dst = append(dst, `,"clock":"`+ClockUnsynced+`"`...)
	}
	return dst
}

func (c Config) appendTime(dst []byte, t time.Time) []byte {
	switch c.Time {
	case Seconds:
		return strconv.AppendInt(dst, t.Unix(), 10)
	case Nanos:
		return c.appendInt64(dst, t.UnixNano())
	case ISO:
		dst = append(dst, '"')
		dst = t.UTC().AppendFormat(dst, "2006-01-02T15:04:05.000Z")
		return append(dst, '"')
	default:
		return strconv.AppendInt(dst, t.UnixMilli(), 10)
	}
}

func (c Config) appendEnd(dst []byte, seq Seq) []byte {
	if c.Seq {
		// An origin is of hexadecimal digits and needs no escaping.
		dst = append(dst, `,"seq":"`...)
		dst = append(seq.Append(dst), '"')
	}
	return append(dst, '}')
}
