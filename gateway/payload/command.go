package payload

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

// A Command is what a payload on a device's commands or rpc topic asks for.
type Command struct {
	ID      string          // "" if there is none
	RawID   json.RawMessage // as it came; nil if there is none
	Action  string          // "write", "read", or another
	Values  []adapters.Assignment
	Points  []string
	Expires time.Time // zero is never
	ReplyTo string    // of a call: the topic for the answer
}

// GetConfig is the method of a call that asks what the site file says of a device.
const GetConfig = "getConfig"

const (
	maxID     = 256  // bytes
	maxValues = 1000 // of one command, elements of lists too
	maxDepth  = 4    // of lists and objects in a value
)

// ParseCommand reads a command:
//
//	{"id":"req-1","action":"write","values":{"setpoint":24.5},"expires":1790000000000}
//	{"id":"req-2","action":"read","points":["setpoint"]}
//	{"id":"req-3","action":"recalibrate"}
//
// With an error, the command has an id if that could be read. Keys it does not know
// are passed over.
func ParseCommand(p []byte) (Command, error) {
	var c Command
	err := object(p, "the command", func(d *json.Decoder, key string) (err error) {
		switch key {
		case "id":
			err = c.id(d)
		case "action":
			c.Action, err = text(d, key)
		case "expires":
			c.Expires, err = expires(d)
		default:
			return c.argument(d, key)
		}
		return err
	})
	switch {
	case err != nil:
		return c, err
	case c.Action == "":
		return c, errors.New(`action: is missing; it is "write", "read" or an action of the device's profile`)
	}
	return c, c.complete("")
}

// ParseCall reads a call:
//
//	{"id":7,"method":"write","params":{"setpoint":24.5},"replyTo":"responses/app-1"}
//	{"id":8,"method":"read","params":{"points":["setpoint"]},"replyTo":"responses/app-1"}
//	{"id":9,"method":"getConfig","replyTo":"responses/app-1"}
//
// The params of a write may also be {"values":{…}}.
func ParseCall(p []byte) (Command, error) {
	var c Command
	var params json.RawMessage
	err := object(p, "the call", func(d *json.Decoder, key string) (err error) {
		switch key {
		case "id":
			err = c.id(d)
		case "method":
			c.Action, err = text(d, key)
		case "params":
			err = d.Decode(&params)
		case "replyTo":
			c.ReplyTo, err = text(d, key)
		case "expires":
			c.Expires, err = expires(d)
		default:
			return skip(d)
		}
		return err
	})
	switch {
	case err != nil:
		return c, err
	case c.Action != "write" && c.Action != "read" && c.Action != GetConfig:
		return c, errors.New(`method: it is "write", "read" or "getConfig"`)
	}
	if trimmed := bytes.TrimSpace(params); len(trimmed) > 0 && string(trimmed) != "null" {
		err = c.params(trimmed)
	}
	if err != nil {
		return c, err
	}
	return c, c.complete("params: ")
}

// params reads those of a call.
func (c *Command) params(p []byte) error {
	switch {
	case c.Action == "read" && p[0] == '[':
		return c.argument(json.NewDecoder(bytes.NewReader(p)), "points")
	case c.Action == "write":
		whole := false // {"values":{…}}, and nothing beside it
		keys := 0
		err := object(p, "params", func(d *json.Decoder, key string) error {
			keys++
			var v json.RawMessage
			err := d.Decode(&v)
			whole = whole || key == "values" && len(v) > 0 && v[0] == '{'
			return err
		})
		if err != nil {
			return err
		}
		if !whole || keys > 1 {
			d := json.NewDecoder(bytes.NewReader(p))
			d.UseNumber()
			return c.argument(d, "values")
		}
	}
	return object(p, "params", c.argument)
}

// argument reads what a command is about.
func (c *Command) argument(d *json.Decoder, key string) error {
	switch key {
	case "values":
		room := maxValues
		return members(d, key, func(point string) error {
			if point == "" {
				return errors.New("values: a point without a name")
			}
			if slices.ContainsFunc(c.Values, func(a adapters.Assignment) bool { return a.Point == point }) {
				return fmt.Errorf("%s: is there twice", point)
			}
			v, err := value(d, maxDepth, &room)
			if err != nil {
				return fmt.Errorf("%s: %w", point, err)
			}
			c.Values = append(c.Values, adapters.Assignment{Point: point, Value: v})
			return nil
		})
	case "points":
		var points []string
		if err := d.Decode(&points); err != nil {
			return errors.New(`points: is a list of names, as ["setpoint"]`)
		}
		if len(points) > maxValues {
			return fmt.Errorf("points: has more than %d", maxValues)
		}
		c.Points = points
		return nil
	}
	return skip(d)
}

// complete reports what is missing.
func (c *Command) complete(where string) error {
	if c.Action == "write" && len(c.Values) == 0 {
		return errors.New(where + `values: are missing; write {"point": value}`)
	}
	return nil
}

func (c *Command) id(d *json.Decoder) error {
	var raw json.RawMessage
	if err := d.Decode(&raw); err != nil {
		return notJSON(err)
	}
	var s string
	switch {
	case len(raw) > 6*maxID || raw[0] != '"' && len(raw) > maxID:
		return fmt.Errorf("id: is longer than %d bytes", maxID)
	case raw[0] == '"':
		if json.Unmarshal(raw, &s) != nil || len(s) > maxID {
			return fmt.Errorf("id: is longer than %d bytes", maxID)
		}
		if s == "" {
			return errors.New("id: is empty")
		}
		raw = appendString(nil, s) // UTF-8, whatever it was
	case raw[0] == '-' || raw[0] >= '0' && raw[0] <= '9':
		s = string(raw)
	default:
		return errors.New(`id: is a text, as "req-1"`)
	}
	c.ID, c.RawID = s, raw
	return nil
}

// object reads one JSON object and nothing after it.
func object(p []byte, what string, member func(d *json.Decoder, key string) error) error {
	d := json.NewDecoder(bytes.NewReader(p))
	d.UseNumber()
	seen := make(map[string]bool)
	err := members(d, what, func(key string) error {
		if seen[key] {
			return fmt.Errorf("%s: is there twice", key)
		}
		seen[key] = true
		return member(d, key)
	})
	if err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("%s is followed by something else", what)
	}
	return nil
}

// members reads an object, whose values member must take from d.
func members(d *json.Decoder, what string, member func(key string) error) error {
	t, err := d.Token()
	if err != nil {
		return notJSON(err)
	}
	if t != json.Delim('{') {
		return fmt.Errorf("%s: is no JSON object", what)
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return notJSON(err)
		}
		key, _ := t.(string) // the decoder lets no others through
		if err := member(key); err != nil {
			return err
		}
	}
	if _, err := d.Token(); err != nil {
		return notJSON(err)
	}
	return nil
}

func notJSON(err error) error {
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("the payload is no JSON: %v at byte %d", err, syntax.Offset)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the payload is no JSON: it ends too early")
	}
	return fmt.Errorf("the payload is no JSON: %w", err)
}

func skip(d *json.Decoder) error {
	var any json.RawMessage
	if err := d.Decode(&any); err != nil {
		return notJSON(err)
	}
	return nil
}

func text(d *json.Decoder, key string) (string, error) {
	var v any
	if err := d.Decode(&v); err != nil {
		return "", notJSON(err)
	}
	s, ok := v.(string)
	if !ok || s == "" {
		return "", fmt.Errorf("%s: is a text", key)
	}
	return s, nil
}

// firstExpiry is the least time that can be meant by milliseconds since 1970: below it
// is a duration, which expires is not.
const firstExpiry = 1_000_000_000_000 // September 2001

func expires(d *json.Decoder) (time.Time, error) {
	var v any
	if err := d.Decode(&v); err != nil {
		return time.Time{}, notJSON(err)
	}
	n, _ := v.(json.Number)
	f, err := n.Float64()
	if err != nil || f < firstExpiry || f > 1e15 {
		return time.Time{}, errors.New("expires: is a time in milliseconds since 1970, as 1790000000000")
	}
	return time.UnixMilli(int64(f)), nil
}

// value reads the value for a point. room is how many more there may be.
func value(d *json.Decoder, depth int, room *int) (adapters.Value, error) {
	if *room--; *room < 0 {
		return adapters.Value{}, fmt.Errorf("has more than %d values", maxValues)
	}
	t, err := d.Token()
	if err != nil {
		return adapters.Value{}, notJSON(err)
	}
	switch t := t.(type) {
	case bool:
		return adapters.Bool(t), nil
	case string:
		return adapters.String(t), nil
	case json.Number:
		return number(string(t))
	case json.Delim:
		if depth == 0 {
			return adapters.Value{}, errors.New("has too many lists in each other")
		}
		if t == '[' {
			return list(d, depth-1, room)
		}
		return bits(d)
	}
	return adapters.Value{}, errors.New("takes a value, not null")
}

func number(s string) (adapters.Value, error) {
	if i, err := strconv.ParseInt(s, 10, 64); err == nil {
		return adapters.Int64(i), nil
	}
	if u, err := strconv.ParseUint(s, 10, 64); err == nil {
		return adapters.Uint64(u), nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return adapters.Value{}, fmt.Errorf("%s is beyond all numbers", s)
	}
	return adapters.Float64(f), nil
}

func list(d *json.Decoder, depth int, room *int) (adapters.Value, error) {
	all := []adapters.Value{}
	for d.More() {
		v, err := value(d, depth, room)
		if err != nil {
			return v, err
		}
		all = append(all, v)
	}
	if _, err := d.Token(); err != nil {
		return adapters.Value{}, notJSON(err)
	}
	return adapters.List(all), nil
}

// bits reads {"running":true}, whose opening brace was read.
func bits(d *json.Decoder) (adapters.Value, error) {
	var names adapters.FlagNames
	var set uint64
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return adapters.Value{}, notJSON(err)
		}
		name, _ := t.(string)
		if slices.Contains(names, name) {
			return adapters.Value{}, fmt.Errorf("the bit %s is there twice", name)
		}
		v, err := d.Token()
		on, ok := v.(bool)
		switch {
		case err != nil:
			return adapters.Value{}, notJSON(err)
		case !ok:
			return adapters.Value{}, fmt.Errorf("the bit %s is true or false", name)
		case len(names) == 64:
			return adapters.Value{}, errors.New("has more than 64 bits")
		}
		if on {
			set |= 1 << len(names)
		}
		names = append(names, name)
	}
	if _, err := d.Token(); err != nil {
		return adapters.Value{}, notJSON(err)
	}
	return adapters.Flags(&names, set), nil
}
