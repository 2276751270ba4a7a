package payload_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/gateway/payload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var when = time.Date(2026, 9, 21, 14, 13, 20, 123456789, time.FixedZone("CEST", 2*60*60))

func good(name string, v adapters.Value) adapters.Sample {
	return adapters.Sample{Point: &adapters.Point{Name: name}, Value: v}
}

func bad(name, reason string) adapters.Sample {
	return adapters.Sample{Point: &adapters.Point{Name: name}, Quality: adapters.Bad, Reason: reason}
}

func reading(samples ...adapters.Sample) adapters.Reading {
	return adapters.Reading{Device: &adapters.Device{Name: "dev"}, Time: when, Samples: samples}
}

func TestReading(t *testing.T) {
	flags := adapters.Flags(&adapters.FlagNames{"running", "fault"}, 0b01)
	tests := []struct {
		name    string
		config  payload.Config
		samples []adapters.Sample
		want    string
	}{
		{"flat", payload.Config{}, []adapters.Sample{good("temperature", adapters.Float64(23.5)), good("humidity", adapters.Int(65))},
			`{"temperature":23.5,"humidity":65,"timestamp":1789992800123}`},
		{"one is bad", payload.Config{}, []adapters.Sample{bad("humidity", "timeout"), good("temperature", adapters.Float32(23.4))},
			`{"temperature":23.4,"timestamp":1789992800123,"bad":{"humidity":"timeout"}}`},
		{"all are bad", payload.Config{}, []adapters.Sample{bad("a", "exception-2"), bad("b", "")},
			`{"timestamp":1789992800123,"bad":{"a":"exception-2","b":"bad"}}`},
		{"uncertain", payload.Config{}, []adapters.Sample{{Point: &adapters.Point{Name: "mode"}, Value: adapters.Int(9), Quality: adapters.Uncertain, Reason: "not-in-enum"}},
			`{"timestamp":1789992800123,"bad":{"mode":"not-in-enum"}}`},
		{"no JSON for it", payload.Config{}, []adapters.Sample{good("a", adapters.Float64(math.NaN())), good("b", adapters.Float32(float32(math.Inf(-1)))), good("c", adapters.Value{})},
			`{"timestamp":1789992800123,"bad":{"a":"not-a-number","b":"not-a-number","c":"not-a-number"}}`},
		{"none", payload.Config{}, nil, `{"timestamp":1789992800123}`},
		{"kinds", payload.Config{}, []adapters.Sample{good("on", adapters.Bool(true)), good("state", flags), good("text", adapters.String("a\"b\\\n\x01\tü\xff€\u2028")),
			good("list", adapters.List([]adapters.Value{adapters.Int(1), adapters.Float64(math.NaN()), adapters.Float32(0.5)})), good("empty", adapters.List(nil))},
			`{"on":true,"state":{"running":true,"fault":false},"text":"a\"b\\\n\u0001\tü` + "\uFFFD€\u2028" + `","list":[1,null,0.5],"empty":[],"timestamp":1789992800123}`},
		{"numbers", payload.Config{}, []adapters.Sample{good("a", adapters.Float64(1e21)), good("b", adapters.Float64(-1e20)), good("c", adapters.Float32(1e-7)), good("d", adapters.Float64(0.000001)),
			good("e", adapters.Int64(math.MinInt64)), good("f", adapters.Uint64(math.MaxUint64)), good("g", adapters.Float64(math.Copysign(0, -1)))},
			`{"a":1e+21,"b":-100000000000000000000,"c":1e-07,"d":0.000001,"e":-9223372036854775808,"f":18446744073709551615,"g":-0,"timestamp":1789992800123}`},
		{"64 bits as strings", payload.Config{Int64String: true}, []adapters.Sample{good("a", adapters.Int(5)), good("b", adapters.Int64(-5)), good("c", adapters.List([]adapters.Value{adapters.Uint64(5)}))},
			`{"a":5,"b":"-5","c":["5"],"timestamp":1789992800123}`},
		{"name to escape", payload.Config{}, []adapters.Sample{good(`a"`, adapters.Int(1)), bad("b\n", "c\x7f")},
			`{"a\"":1,"timestamp":1789992800123,"bad":{"b\n":"c` + "\x7f" + `"}}`},
		{"s", payload.Config{Time: payload.Seconds}, nil, `{"timestamp":1789992800}`},
		{"ns", payload.Config{Time: payload.Nanos}, nil, `{"timestamp":1789992800123456789}`},
		{"ns as a string", payload.Config{Time: payload.Nanos, Int64String: true}, nil, `{"timestamp":"1789992800123456789"}`},
		{"iso", payload.Config{Time: payload.ISO}, nil, `{"timestamp":"2026-09-21T12:13:20.123Z"}`},
		{"seq", payload.Config{Seq: true}, []adapters.Sample{good("a", adapters.Int(1)), bad("b", "timeout")},
			`{"a":1,"timestamp":1789992800123,"bad":{"b":"timeout"},"seq":"00ff00ff.7.42"}`},
	}
	for _, test := range tests {
		got := string(test.config.AppendReading([]byte("before"), reading(test.samples...), payload.Seq{Origin: "00ff00ff", Boot: 7, N: 42}))
		if got != "before"+test.want {
			t.Errorf("%s:\n got %s\nwant %s", test.name, got, test.want)
		}
		if !json.Valid([]byte(test.want)) {
			t.Errorf("%s: not JSON", test.name)
		}
	}
}

// TestUnsynced has a clock that is not known to be right.
func TestUnsynced(t *testing.T) {
	r := reading(good("a", adapters.Int(1)), bad("b", "timeout"))
	r.Time, r.Unsynced = time.UnixMilli(5000), true
	status := adapters.Status{Reason: "timeout", Time: r.Time, Unsynced: true}
	c := payload.Config{Seq: true}
	seq := payload.Seq{Origin: "o", Boot: 1, N: 2}
	for _, test := range []struct{ got, want string }{
		{string(c.AppendReading(nil, r, seq)), `{"a":1,"timestamp":5000,"clock":"unsynced","bad":{"b":"timeout"},"seq":"o.1.2"}`},
		{string(c.AppendSample(nil, r, &r.Samples[0], seq)), `{"a":1,"timestamp":5000,"clock":"unsynced","seq":"o.1.2"}`},
		{string(c.AppendSample(nil, r, &r.Samples[1], seq)), `{"timestamp":5000,"clock":"unsynced","bad":{"b":"timeout"},"seq":"o.1.2"}`},
		{string(c.AppendStatus(nil, status)), `{"status":"offline","timestamp":5000,"clock":"unsynced","reason":"timeout"}`},
		{string(c.AppendStatus(nil, adapters.Status{Reason: "gone", Unsynced: true})), `{"status":"offline","reason":"gone"}`}, // no time, no clock
	} {
		if test.got != test.want {
			t.Errorf("got  %s\nwant %s", test.got, test.want)
		}
	}
}

func TestSample(t *testing.T) {
	r := reading(good("a", adapters.Int(1)), bad("b", "timeout"))
	c := payload.Config{Seq: true}
	for i, want := range []string{
		`{"a":1,"timestamp":1789992800123,"seq":"o.1.2"}`,
		`{"timestamp":1789992800123,"bad":{"b":"timeout"},"seq":"o.1.2"}`,
	} {
		if got := string(c.AppendSample(nil, r, &r.Samples[i], payload.Seq{Origin: "o", Boot: 1, N: 2})); got != want {
			t.Errorf("got %s\nwant %s", got, want)
		}
	}
}

func TestStatus(t *testing.T) {
	for _, test := range []struct {
		s    adapters.Status
		want string
	}{
		{adapters.Status{Online: true, Time: when}, `{"status":"online","timestamp":1789992800123}`},
		{adapters.Status{Reason: "timeout", Time: when}, `{"status":"offline","timestamp":1789992800123,"reason":"timeout"}`},
	} {
		if got := string(payload.Config{}.AppendStatus(nil, test.s)); got != test.want {
			t.Errorf("got %s\nwant %s", got, test.want)
		}
	}
}

func TestAlert(t *testing.T) {
	for _, test := range []struct {
		a    payload.Alert
		want string
	}{
		{payload.Alert{Type: "overload", Message: "overload, 9100 \"W\"", Critical: true, Raised: true, Value: adapters.Float32(9100.5), Time: when},
			`{"type":"overload","message":"overload, 9100 \"W\"","severity":"critical","state":"raised","value":9100.5,"timestamp":1789992800123}`},
		{payload.Alert{Type: "door", Message: "door", Value: adapters.Bool(false), Time: when, Unsynced: true},
			`{"type":"door","message":"door","severity":"warning","state":"cleared","value":false,"timestamp":1789992800123,"clock":"unsynced"}`},
	} {
		if got := string(payload.Config{}.AppendAlert(nil, &test.a)); got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
}

// FuzzReading checks that whatever a device holds, and whatever its points are
// called, gives JSON that holds the same.
func FuzzReading(f *testing.F) {
	f.Add("temperature", 23.4, int64(5), "ok", "timeout", uint8(1))
	f.Add("a\"\\\x00", math.Inf(1), int64(math.MinInt64), "\xff\xc3", "\n", uint8(0xFF))
	f.Add("\u2028", math.NaN(), int64(-1), "\U0001F600", "", uint8(0x2A))
	f.Add("x", math.SmallestNonzeroFloat64, int64(1)<<60, "\xed\xa0\x80", "é", uint8(0))
	f.Fuzz(func(t *testing.T, name string, number float64, integer int64, text, reason string, options uint8) {
		c := payload.Config{Time: payload.TimeFormat(options & 3), Int64String: options&4 != 0, Seq: options&8 != 0}
		flags := adapters.FlagNames{"0" + text, "1" + text}
		r := reading(
			good("f64"+name, adapters.Float64(number)),
			good("f32"+name, adapters.Float32(float32(number))),
			good("int"+name, adapters.Int64(integer)),
			good("uint"+name, adapters.Uint64(uint64(integer))),
			good("text"+name, adapters.String(text)),
			good("list"+name, adapters.List([]adapters.Value{adapters.Float64(number), adapters.String(text)})),
			good("flags"+name, adapters.Flags(&flags, uint64(options))),
			bad("bad"+name, reason),
		)
		out := c.AppendReading(nil, r, payload.Seq{Origin: "00ff00ff", N: uint64(options)})
		d := json.NewDecoder(strings.NewReader(string(out)))
		d.UseNumber()
		var m map[string]any
		if err := d.Decode(&m); err != nil || d.More() {
			t.Fatalf("%v: %s", err, out)
		}
		each := func(s string) string { // one replacement for each byte that is no UTF-8, as encoding/json has it
			b, _ := json.Marshal(s)
			var back string
			json.Unmarshal(b, &back)
			return back
		}
		failed, _ := m["bad"].(map[string]any)
		for bits, key := range map[int]string{64: "f64", 32: "f32"} {
			want := number
			if bits == 32 {
				want = float64(float32(number))
			}
			v, ok := m[each(key+name)].(json.Number)
			if math.IsNaN(want) || math.IsInf(want, 0) {
				if ok || failed[each(key+name)] != adapters.ReasonNotANumber {
					t.Fatalf("%v is shown: %s", want, out)
				}
				continue
			}
			got, _ := v.Float64()
			if bits == 32 {
				got = float64(float32(got))
			}
			if !ok || got != want {
				t.Fatalf("%s is %v, want %v: %s", key, v, want, out)
			}
		}
		_, asString := m[each("int"+name)].(string)
		if asString != c.Int64String {
			t.Fatalf("64 bits as a string: %v: %s", asString, out)
		}
		if m[each("text"+name)] != each(text) {
			t.Fatalf("%q is %q", text, m[each("text"+name)])
		}
		if o := m[each("flags"+name)].(map[string]any); o[each("0"+text)] != (options&1 != 0) || o[each("1"+text)] != (options&2 != 0) || len(o) != 2 {
			t.Fatalf("flags %b: %s", options, out)
		}
		if why := each(reason); failed[each("bad"+name)] != why && !(why == "" && failed[each("bad"+name)] == "bad") {
			t.Fatalf("bad because of %q: %s", reason, out)
		}
	})
}

func BenchmarkReading(b *testing.B) {
	const n = 500
	var r adapters.Reading
	r.Time = when
	for i := range n {
		r.Samples = append(r.Samples, good("point-"+string(rune('a'+i%26)), adapters.Float32(float32(i)*1.1)))
	}
	for _, bench := range []struct {
		name string
		run  func(dst []byte) []byte
	}{
		{"device", func(dst []byte) []byte { return payload.Config{}.AppendReading(dst, r, payload.Seq{}) }},
		{"point", func(dst []byte) []byte {
			for i := range r.Samples {
				dst = payload.Config{}.AppendSample(dst, r, &r.Samples[i], payload.Seq{})
			}
			return dst
		}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			var dst []byte
			b.ReportAllocs()
			for b.Loop() {
				dst = bench.run(dst[:0])
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/value")
		})
	}
}

func TestAllocatesNothing(t *testing.T) {
	r := reading(good("a", adapters.Float64(1.5)), good("b", adapters.String("x\n")), bad("c", "timeout"))
	c := payload.Config{Seq: true, Time: payload.ISO}
	dst := make([]byte, 0, 1024)
	allocs := testing.AllocsPerRun(100, func() {
		dst = c.AppendReading(dst[:0], r, payload.Seq{Origin: "o"})
		dst = c.AppendSample(dst, r, &r.Samples[0], payload.Seq{})
		dst = c.AppendStatus(dst, adapters.Status{Time: when, Reason: "timeout"})
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}
