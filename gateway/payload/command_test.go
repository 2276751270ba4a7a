package payload

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fieldferry/fieldferry/adapters"
)

// show is a command as text.
func show(c Command, err error) string {
	var b strings.Builder
	if err != nil {
		return "error " + err.Error()
	}
	fmt.Fprintf(&b, "%s %s", c.RawID, c.Action)
	for _, a := range c.Values {
		fmt.Fprintf(&b, " %s=%v", a.Point, a.Value)
		if a.Value.Kind() == adapters.KindFlags {
			names, _ := a.Value.Flags()
			fmt.Fprint(&b, names)
		}
	}
	if c.Points != nil {
		fmt.Fprintf(&b, " points %v", c.Points)
	}
	if !c.Expires.IsZero() {
		fmt.Fprintf(&b, " expires %d", c.Expires.UnixMilli())
	}
	if c.ReplyTo != "" {
		fmt.Fprintf(&b, " reply %s", c.ReplyTo)
	}
	return b.String()
}

func TestParseCommand(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{`{"id":"req-1","action":"write","values":{"setpoint":24.5}}`, `"req-1" write setpoint=24.5`},
		{`{"id":"r","action":"write","values":{"z":1,"a":true,"m":"auto","l":[1,2.5],"n":18446744073709551615}}`, `"r" write z=1 a=true m=auto l=[1 2.5] n=18446744073709551615`},
		{`{"id":"r","action":"write","values":{"state":{"fault":true,"run":false}}}`, `"r" write state={fault}[fault run]`},
		{`{"id":7,"action":"read","points":["a","b"]}`, `7 read points [a b]`},
		{`{"id":"r","action":"read"}`, `"r" read`},
		{`{"id":"r","action":"recalibrate","expires":1790000000000,"who":{"else":[1]}}`, `"r" recalibrate expires 1790000000000`},
		{`{"action":"read"}`, ` read`},
		{` {"id":"r","action":"read"} ` + "\n", `"r" read`},
		{``, `error the payload is no JSON: it ends too early`},
		{`{"id":"r","action":"read"`, `error the payload is no JSON: it ends too early`},
		{`{"id":"r" "action"}`, `error the payload is no JSON: invalid character '"' after object key:value pair at byte 10`},
		{`[1]`, `error the command: is no JSON object`},
		{`{"id":"r","action":"read"}{}`, `error the command is followed by something else`},
		{`{"id":"r","id":"s","action":"read"}`, `error id: is there twice`},
		{`{"id":{},"action":"read"}`, `error id: is a text, as "req-1"`},
		{`{"id":"","action":"read"}`, `error id: is empty`},
		{`{"id":"` + strings.Repeat("x", 300) + `","action":"read"}`, `error id: is longer than 256 bytes`},
		{`{"id":"r"}`, `error action: is missing; it is "write", "read" or an action of the device's profile`},
		{`{"id":"r","action":5}`, `error action: is a text`},
		{`{"id":"r","action":"write"}`, `error values: are missing; write {"point": value}`},
		{`{"id":"r","action":"write","values":{}}`, `error values: are missing; write {"point": value}`},
		{`{"id":"r","action":"write","values":{"a":1,"a":2}}`, `error a: is there twice`},
		{`{"id":"r","action":"write","values":{"a":null}}`, `error a: takes a value, not null`},
		{`{"id":"r","action":"write","values":{"a":1e999}}`, `error a: 1e999 is beyond all numbers`},
		{`{"id":"r","action":"write","values":{"a":[[[[[1]]]]]}}`, `error a: has too many lists in each other`},
		{`{"id":"r","action":"write","values":{"a":{"b":1}}}`, `error a: the bit b is true or false`},
		{`{"id":"r","action":"write","values":{"a":[` + strings.Repeat("1,", 1000) + `1]}}`, `error a: has more than 1000 values`},
		{`{"id":"r","action":"read","points":[1]}`, `error points: is a list of names, as ["setpoint"]`},
		{`{"id":"r","action":"read","expires":5000}`, `error expires: is a time in milliseconds since 1970, as 1790000000000`},
	} {
		if got := show(ParseCommand([]byte(tt.text))); got != tt.want {
			t.Errorf("%.80s\n got %s\nwant %s", tt.text, got, tt.want)
		}
	}
	if c, err := ParseCommand([]byte(`{"id":"r","action":"write"}`)); err == nil || c.ID != "r" {
		t.Errorf("a command that is wrong has id %q and error %v", c.ID, err)
	}
}

func TestParseCall(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{`{"id":7,"method":"write","params":{"setpoint":24.5,"values":3},"replyTo":"responses/a"}`, `7 write setpoint=24.5 values=3 reply responses/a`},
		{`{"id":"x","method":"write","params":{"values":{"setpoint":24.5}}}`, `"x" write setpoint=24.5`},
		{`{"id":1,"method":"write","params":{"values":3}}`, `1 write values=3`},
		{`{"id":8,"method":"read","params":{"points":["a"]}}`, `8 read points [a]`},
		{`{"id":8,"method":"read","params":["a"]}`, `8 read points [a]`},
		{`{"id":8,"method":"read"}`, `8 read`},
		{`{"id":8,"method":"read","params":null}`, `8 read`},
		{`{"id":9,"method":"getConfig","replyTo":"responses/a"}`, `9 getConfig reply responses/a`},
		{`{"id":9,"method":"reboot"}`, `error method: it is "write", "read" or "getConfig"`},
		{`{"id":9,"method":"write"}`, `error params: values: are missing; write {"point": value}`},
		{`{"id":9,"method":"write","params":[1]}`, `error params: is no JSON object`},
	} {
		if got := show(ParseCall([]byte(tt.text))); got != tt.want {
			t.Errorf("%s\n got %s\nwant %s", tt.text, got, tt.want)
		}
	}
}

func TestAnswers(t *testing.T) {
	at := time.UnixMilli(1790000000000)
	good := adapters.Sample{Point: &adapters.Point{Name: "setpoint"}, Value: adapters.Float64(24.5)}
	bad := adapters.Sample{Point: &adapters.Point{Name: "mode"}, Quality: adapters.Uncertain, Reason: "timeout", Value: adapters.Int(2)}
	for _, tt := range []struct {
		res                  adapters.Result
		unsynced             bool
		wantAnswer, wantCall string
	}{
		{adapters.Result{Status: adapters.Executed, Values: []adapters.Sample{good}, Time: at}, false,
			`{"commandId":"r","status":"executed","values":{"setpoint":24.5},"timestamp":1790000000000}`, `{"id":"r","result":{"setpoint":24.5}}`},
		{adapters.Result{Status: adapters.Rejected, Error: `say "no"`, Time: at}, true,
			`{"commandId":"r","status":"rejected","error":"say \"no\"","timestamp":1790000000000,"clock":"unsynced"}`, `{"id":"r","error":{"message":"say \"no\"","status":"rejected"}}`},
		{adapters.Result{Status: adapters.Unknown, Error: "?", Values: []adapters.Sample{good, bad}, Time: at}, false,
			`{"commandId":"r","status":"unknown","values":{"setpoint":24.5},"uncertain":{"mode":"timeout"},"error":"?","timestamp":1790000000000}`,
			`{"id":"r","error":{"message":"?","status":"unknown","values":{"setpoint":24.5},"uncertain":{"mode":"timeout"}}}`},
	} {
		var c Config
		id := json.RawMessage(`"r"`)
		if got := string(c.AppendAnswer(nil, &tt.res, id, tt.unsynced)); got != tt.wantAnswer {
			t.Error(cmp.Diff(tt.wantAnswer, got))
		}
		if got := string(c.AppendReply(nil, &tt.res, id, nil)); got != tt.wantCall {
			t.Error(cmp.Diff(tt.wantCall, got))
		}
	}
}

// Whatever comes, no command does both: be understood and ask for what cannot be, and
// its answer is valid JSON.
func FuzzCommand(f *testing.F) {
	for _, s := range []string{`{"id":"r","action":"write","values":{"a":[1,true,"x",{"b":false}]},"expires":1790000000000}`, `{"id":1e3,"method":"read","params":["a"],"replyTo":"responses/x"}`, "{\"id\":\"\xff\",\"action\":\"read\"}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, parse := range []func([]byte) (Command, error){ParseCommand, ParseCall} {
			c, err := parse(p)
			if err == nil && (c.Action == "" || c.Action == "write" && len(c.Values) == 0 || len(c.ID) > maxID) {
				t.Errorf("%q is understood as %+v", p, c)
			}
			var cfg Config
			res := adapters.Result{Status: adapters.Executed}
			for _, a := range c.Values {
				res.Values = append(res.Values, adapters.Sample{Point: &adapters.Point{Name: a.Point}, Value: a.Value})
			}
			for _, answer := range [][]byte{cfg.AppendAnswer(nil, &res, c.RawID, false), cfg.AppendReply(nil, &res, c.RawID, nil)} {
				if !json.Valid(answer) {
					t.Errorf("%q is answered %q", p, answer)
				}
			}
		}
	})
}
