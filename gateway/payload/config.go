package payload

// Config says what payloads look like. The zero value is the default.
type Config struct {
	Time        TimeFormat
	Int64String bool // 64-bit integers, and a time in ns, as strings: JavaScript loses digits above 2^53
	Seq         bool // the sequence number also in the payload
}

// TimeFormat is how a time is written.
type TimeFormat uint8

const (
	Millis  TimeFormat = iota // milliseconds since 1970, a number
	Seconds                   // seconds since 1970, a number
	Nanos                     // nanoseconds since 1970, a number or a string (Config.Int64String)
	ISO                       // RFC 3339 in UTC with milliseconds, a string
)
