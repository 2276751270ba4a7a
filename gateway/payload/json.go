package payload

import (
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/fieldferry/fieldferry/adapters"
)

// AppendValue appends a value as it stands in a payload.
func (c Config) AppendValue(dst []byte, v adapters.Value) []byte { return c.appendValue(dst, v) }

// appendValue appends a value. What JSON has no form for becomes null; only
// elements of arrays get here with such.
func (c Config) appendValue(dst []byte, v adapters.Value) []byte {
	switch v.Kind() {
	case adapters.KindBool:
		return strconv.AppendBool(dst, v.Bool())
	case adapters.KindInt:
		return strconv.AppendInt(dst, v.Int64(), 10)
	case adapters.KindInt64:
		return c.appendInt64(dst, v.Int64())
	case adapters.KindUint64:
		if c.Int64String {
			dst = strconv.AppendUint(append(dst, '"'), v.Uint64(), 10)
			return append(dst, '"')
		}
		return strconv.AppendUint(dst, v.Uint64(), 10)
	case adapters.KindFloat32:
		return appendFloat(dst, float64(v.Float32()), 32)
	case adapters.KindFloat64:
		f, _ := v.Float64()
		return appendFloat(dst, f, 64)
	case adapters.KindString:
		return appendString(dst, v.Text())
	case adapters.KindList:
		dst = append(dst, '[')
		for i, e := range v.List() {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = c.appendValue(dst, e)
		}
		return append(dst, ']')
	case adapters.KindFlags:
		names, set := v.Flags()
		dst = append(dst, '{')
		for i, n := range names {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(appendString(dst, n), ':')
			dst = strconv.AppendBool(dst, set>>i&1 != 0)
		}
		return append(dst, '}')
	}
	return append(dst, "null"...)
}

func (c Config) appendInt64(dst []byte, i int64) []byte {
	if !c.Int64String {
		return strconv.AppendInt(dst, i, 10)
	}
	dst = strconv.AppendInt(append(dst, '"'), i, 10)
	return append(dst, '"')
}

// appendFloat appends the fewest digits that give f back, with an exponent only
// where zeros would make it long, as ECMAScript's Number::toString has it.
func appendFloat(dst []byte, f float64, bits int) []byte {
	if !finite(f) {
		return append(dst, "null"...)
	}
	if a := math.Abs(f); a != 0 && (a < 1e-6 || a >= 1e21) {
		return strconv.AppendFloat(dst, f, 'e', -1, bits)
	}
	return strconv.AppendFloat(dst, f, 'f', -1, bits)
}

// appendString appends s as a JSON string. RFC 8259 §7: quotation mark,
// backslash and the control characters are escaped. What is not UTF-8 (§8.1)
// becomes U+FFFD.
func appendString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	start := 0 // of what needs no escaping and is not appended yet
	for i := 0; i < len(s); {
		b := s[i]
		if b >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 {
				dst = append(dst, s[start:i]...)
				dst = append(dst, "\uFFFD"...)
				start = i + 1
			}
			i += n
			continue
		}
		if b >= ' ' && b != '"' && b != '\\' {
			i++
			continue
		}
		dst = append(dst, s[start:i]...)
		switch b {
		case '"', '\\':
			dst = append(dst, '\\', b)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[b>>4], hex[b&15])
		}
		i++
		start = i
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}
