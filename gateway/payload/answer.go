package payload

import (
	"encoding/json"

	"github.com/fieldferry/fieldferry/adapters"
)

// AppendAnswer appends the answer to a command:
//
//	{"commandId":"req-1","status":"executed","values":{"setpoint":24.5},"timestamp":1790000000000}
//	{"commandId":"req-2","status":"unknown","values":{},"uncertain":{"setpoint":"timeout"},"error":"…","timestamp":1790000000000}
//
// values are what was read back; what was written and could not be read back, or is not
// known to be right, is named under uncertain with the reason. An answer to what had no
// id has none.
func (c Config) AppendAnswer(dst []byte, r *adapters.Result, rawID json.RawMessage, unsynced bool) []byte {
	dst = append(dst, '{')
	if len(rawID) > 0 {
		dst = append(append(dst, `"commandId":`...), rawID...)
		dst = append(dst, ',')
	}
	dst = append(dst, `"status":"`...)
	dst = append(dst, r.Status...)
	dst = append(dst, '"')
	if len(r.Values) > 0 {
		dst = c.appendValues(append(dst, `,"values":`...), r.Values)
		dst = appendUncertain(dst, r.Values)
	}
	if r.Error != "" {
		dst = appendString(append(dst, `,"error":`...), r.Error)
	}
	dst = c.appendStamp(append(dst, ','), r.Time, unsynced)
	return append(dst, '}')
}

// AppendReply appends the answer to a call:
//
//	{"id":7,"result":{"setpoint":24.5}}
//	{"id":7,"error":{"message":"setpoint: 40 is above its limit 30"}}
//
// config, if there is any, is the result instead of the values.
func (c Config) AppendReply(dst []byte, r *adapters.Result, rawID, config json.RawMessage) []byte {
	dst = append(dst, '{')
	if len(rawID) > 0 {
		dst = append(append(dst, `"id":`...), rawID...)
		dst = append(dst, ',')
	}
	if r.Status == adapters.Executed {
		dst = append(dst, `"result":`...)
		if config != nil {
			dst = append(dst, config...)
		} else {
			dst = c.appendValues(dst, r.Values)
		}
		dst = appendUncertain(dst, r.Values)
		return append(dst, '}')
	}
	dst = appendString(append(dst, `"error":{"message":`...), r.Error)
	dst = append(append(append(dst, `,"status":"`...), r.Status...), '"')
	if len(r.Values) > 0 {
		dst = c.appendValues(append(dst, `,"values":`...), r.Values)
		dst = appendUncertain(dst, r.Values)
	}
	return append(dst, '}', '}')
}

// appendValues appends the values that can be believed as an object.
func (c Config) appendValues(dst []byte, samples []adapters.Sample) []byte {
	dst = append(dst, '{')
	sep := false
	for i := range samples {
		if s := &samples[i]; good(s) {
			if sep {
				dst = append(dst, ',')
			}
			sep = true
			dst = append(appendString(dst, s.Point.Name), ':')
			dst = c.appendValue(dst, s.Value)
		}
	}
	return append(dst, '}')
}

// appendUncertain names those that cannot.
func appendUncertain(dst []byte, samples []adapters.Sample) []byte {
	sep := `,"uncertain":{`
	for i := range samples {
		if s := &samples[i]; !good(s) {
			dst = appendBad(append(dst, sep...), s)
			sep = ","
		}
	}
	if sep == "," {
		dst = append(dst, '}')
	}
	return dst
}
