// Package config reads a site file and says everything that is wrong with it.
//
// [Load] decodes strictly, checks what the parts of the file say about each
// other, and returns a [Config]: one value that never changes, with every
// default, include, range, profile, parameter and reference resolved. Each
// mistake is a [Problem] with the place of its cause and the way out.
//
// What a file may cost is bounded before it is parsed, so a hostile one ends in
// a problem, too. Files that a site file names, such as certificates, are not
// opened here, except those of include, points_file and ${file:}. The package
// is the only one that knows YAML; it starts nothing and knows no protocol
// beyond its addresses.
package config

import (
	"fmt"
	"log/slog"
	"time"
)

// Config is a site file, resolved. It is read-only and may be shared.
type Config struct {
	Gateway  Gateway
	HTTP     *HTTP // nil: not there
	Broker   Broker
	Adapters []Adapter // in the order of the file
	Payload  Payload
	Commands Commands
	Bridges  []Bridge // in the order of the file
	Alarms   Alarms
	Buffer   Buffer

	// Files are all that were read: the site file, its includes, the tables of
	// points and the files of ${file:}.
	Files []string

	root *node
}

// Pos is a place in a file. The zero Pos is that of a default: nowhere.
type Pos struct {
	File string // as it was named
	Line int    // from 1
	Col  int    // from 1, in characters
}

// IsZero reports whether p is nowhere.
func (p Pos) IsZero() bool { return p == Pos{} }

// String is FILE:LINE:COL, or as much of it as is known.
func (p Pos) String() string {
	switch {
	case p.Line == 0:
		return p.File
	case p.Col == 0:
		return fmt.Sprintf("%s:%d", p.File, p.Line)
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Col)
}

// from is p for a reader who looks at q.
func (p Pos) from(q Pos) string {
	switch {
	case p.IsZero():
		return "by default"
	case p.File == q.File:
		return fmt.Sprintf("in line %d", p.Line)
	}
	return "at " + p.String()
}

// Problem is a mistake in a site file, or a warning.
type Problem struct {
	Pos
	Text    string
	Warning bool // the file is good all the same
}

// String is FILE:LINE:COL: text.
func (p Problem) String() string {
	text := p.Text
	if p.Warning {
		text = "warning: " + text
	}
	if p.Pos.IsZero() {
		return text
	}
	return p.Pos.String() + ": " + text
}

// Gateway says who we are.
type Gateway struct {
	Pos     Pos
	ID      string // unique in the org; default the host name
	Org     string // may be empty, as Site and Zone, if no bridge's topic needs it
	Site    string
	Zone    string
	DataDir string // absolute
	Log     Log
	Time    Time
}

// Log says what is logged, to stderr.
type Log struct {
	Level slog.Level
	JSON  bool // else text
}

// Time says how local times and an unset clock are treated.
type Time struct {
	Pos  Pos
	Zone *time.Location // of devices that send local times; default UTC
	Hold bool           // keep what was read until the clock is right, else mark it
}

// HTTP is the dashboard, the REST API, /metrics and /health.
type HTTP struct {
	Pos    Pos
	Listen string // host:port
	Cert   string // file; empty is no TLS, which is only so on loopback
	Key    string // file
	Tokens Tokens
}

// Tokens are what the three roles show. An unset one lets nobody in.
type Tokens struct{ Viewer, Operator, Admin Secret }

// Payload says what payloads look like.
type Payload struct {
	Pos         Pos
	Format      string // "flat", "full" or "template"
	PerPoint    bool   // a message a point, else one a poll
	OnlyChanged bool   // a value inside its deadband is not repeated
	Time        string // "s", "ms", "ns" or "iso"
	Int64String bool   // 64-bit integers as strings
	Seq         bool   // the sequence number also in the payload
	Batch       *Batch // nil: every poll at once
	Template    string // for Format "template", of text/template
}

// Batch puts several polls in one message.
type Batch struct {
	Pos   Pos
	Max   int           // polls
	Every time.Duration // longest wait
}

// Commands says how commands to devices are treated.
type Commands struct {
	Pos      Pos
	Enabled  bool
	MaxAge   time.Duration // of a command that carries no expiry of its own
	Remember time.Duration // how long answers are kept to be repeated
}

// Alarms says who is told, and from when.
type Alarms struct {
	Pos        Pos
	Webhook    Secret // URL; a secret because such URLs often hold a token
	Thresholds []Threshold
}

// Threshold replaces those of one alarm.
type Threshold struct {
	Pos      Pos
	Alarm    string
	Warning  *Level // nil leaves it as it is
	Critical *Level
}

// Level is a share, a duration or a count; the other two are 0.
type Level struct {
	Share    float64 // 0.8 for "80%"
	Duration time.Duration
	Count    float64
}

// Buffer bounds what is kept on disk.
type Buffer struct {
	Pos       Pos
	MaxBytes  int64
	MaxAge    time.Duration
	MinFree   int64         // bytes left to others on the disk
	Classes   []ClassBounds // one for each class, in the order of importance
	RejectNew bool          // when full, else the oldest of the least class is dropped
	Linger    time.Duration // longest that polled values wait for company
	PageSize  int           // bytes
	Compress  bool          // zstd
}

// ClassBounds are the bounds of one class.
type ClassBounds struct {
	Pos     Pos
	Class   string // "alert", "command", "status", "telemetry" or "local"
	MaxAge  time.Duration
	Reserve int64 // bytes that other classes cannot take
}
