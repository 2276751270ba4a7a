package bridge

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fieldferry/fieldferry/buffer"
)

func plantOptions(t testing.TB) MapperOptions {
	t.Helper()
	buf, err := buffer.Open(t.TempDir(), buffer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { buf.Close() })
	out, err := OpenOutboxes(buf, "bridge/cloud/0")
	if err != nil {
		t.Fatal(err)
	}
	return MapperOptions{
		Gateway: "gw-1", Org: "acme", Site: "berlin", Origin: "0a1b2c3d", Boot: 7,
		Data: map[string]Data{
			"telemetry":         {QoS: 1, Class: buffer.Telemetry},
			"heartbeat":         {QoS: 0, Class: buffer.Telemetry},
			"status":            {QoS: 1, Class: buffer.Status, Retain: true},
			"alerts":            {QoS: 1, Class: buffer.Alert},
			"commands/response": {QoS: 1, Class: buffer.Command},
			"commands":          {Direction: Down, QoS: 2, Class: buffer.Command},
		},
		Devices: []Device{
			{ID: "em-1", Zone: "a", Type: "meter"},
			{ID: "em-2", Zone: "b", Type: "meter", Data: map[string]Override{"telemetry": {QoS: ptr(byte(2)), Retain: ptr(true)}, "wave": {QoS: ptr(byte(1)), Class: ptr(buffer.Telemetry)}}},
			{ID: "ts-*", Zone: "c", Type: "sensor"},
			{ID: "ts-b-*", Zone: "d", Type: "sensor"},
			{ID: "ts-b-9", Zone: "e", Type: "sensor"},
		},
		Forward: []Forward{
			{Local: "plant/+/raw/#", Upstream: "{org}/{site}/raw/{1}/{#}", QoS: 0, Class: buffer.Telemetry},
			{Local: "plant/#", Upstream: "all/{#}", QoS: 1, Class: buffer.Status},
			{Local: "down/#", Upstream: "x/{#}", Direction: Down},
		},
		Outboxes: []Outboxes{out},
	}
}

func TestRoute(t *testing.T) {
	m, err := NewMapper(plantOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		local  string
		retain bool
		want   string // topic, QoS, class, retain; "" is not carried
	}{
		{"devices/em-1/telemetry", true, "acme/berlin/a/meter/em-1/telemetry 1 telemetry false"},
		{"devices/em-1/telemetry/power/l1", false, "acme/berlin/a/meter/em-1/telemetry/power/l1 1 telemetry false"},
		{"devices/em-1/telemetry2", false, ""},
		{"devices/em-1/heartbeat", false, "acme/berlin/a/meter/em-1/heartbeat 0 telemetry false"},
		{"devices/em-1/status", false, "acme/berlin/a/meter/em-1/status 1 status true"},
		{"devices/em-1/alerts", false, "acme/berlin/a/meter/em-1/alerts 1 alert false"},
		{"devices/em-1/commands", false, ""},
		{"devices/em-1/commands/x", false, ""},
		{"devices/em-1/commands/response", false, "acme/berlin/a/meter/em-1/commands/response 1 command false"},
		{"devices/em-1/commands/response/x", false, "acme/berlin/a/meter/em-1/commands/response/x 1 command false"},
		{"devices/em-2/telemetry", false, "acme/berlin/b/meter/em-2/telemetry 2 telemetry true"},
		{"devices/em-2/wave", false, "acme/berlin/b/meter/em-2/wave 1 telemetry false"},
		{"devices/em-1/wave", false, ""},
		{"devices/ts-1/telemetry", false, "acme/berlin/c/sensor/ts-1/telemetry 1 telemetry false"},
		{"devices/ts-b-1/telemetry", false, "acme/berlin/d/sensor/ts-b-1/telemetry 1 telemetry false"},
		{"devices/ts-b-9/telemetry", false, "acme/berlin/e/sensor/ts-b-9/telemetry 1 telemetry false"},
		{"devices/em-1", false, ""},
		{"devices/em-1/", false, ""},
		{"devices", false, ""},
		{"plant/7/raw/a/b", true, "acme/berlin/raw/7/a/b 0 telemetry true"},
		{"plant/7/other", false, "all/7/other 1 status false"},
		{"down/a", false, ""},
		{"elsewhere", false, ""},
	} {
		got := ""
		for range 2 { // found, and remembered
			if r, ok := m.Route(tt.local, tt.retain, nil); ok {
				c := r.Copy(r.Class)
				got = fmt.Sprintf("%s %d %s %t", c.Topic, c.QoS, r.Class, c.Retain)
				if c.Outbox.Class() != r.Class {
					t.Errorf("%s: copy in the outbox of %s", tt.local, c.Outbox.Class())
				}
			}
			if got != tt.want {
				t.Errorf("%s: got %q, want %q", tt.local, got, tt.want)
			}
		}
	}
	if r, _ := m.Route("devices/em-1/telemetry", false, nil); r.Copy(buffer.Alert).Outbox.Class() != buffer.Alert {
		t.Error("a copy does not follow the class that the message has")
	}
	if s := m.Stats(); s.Unknown != 0 {
		t.Errorf("stats %+v", s)
	}
	if got, err := m.UpstreamTopic("em-1", "status"); err != nil || got != "acme/berlin/a/meter/em-1/status" {
		t.Errorf("got %s, %v", got, err)
	}
	if _, err := m.UpstreamTopic("no", "status"); err == nil {
		t.Error("an unknown device has an upstream topic")
	}
}

// seq counts for each topic, without gaps, also when many publish at once.
func TestSeq(t *testing.T) {
	m, err := NewMapper(plantOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	props := func(topic string) string {
		r, ok := m.Route(topic, false, nil)
		if !ok {
			t.Fatalf("%s has no route", topic)
		}
		return string(r.Copy(r.Class).Number.Number())
	}
	want := func(n int) string {
		seq := fmt.Sprintf("0a1b2c3d.7.%d", n)
		return "\x26\x00\x07gateway\x00\x04gw-1\x26\x00\x03seq\x00" + string(rune(len(seq))) + seq
	}
	for n := 1; n <= 11; n++ {
		if got := props("devices/em-1/telemetry"); got != want(n) {
			t.Errorf("got %q, want %q", got, want(n))
		}
	}
	if got := props("devices/em-1/telemetry/power"); got != want(1) {
		t.Errorf("another topic: got %q, want %q", got, want(1))
	}
	var mu sync.Mutex
	seen := map[string]bool{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				p := props("devices/ts-1/telemetry")
				mu.Lock()
				seen[p] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for n := 1; n <= 800; n++ {
		if !seen[want(n)] {
			t.Errorf("number %d is missing", n)
		}
	}
}

// When more topics come than are remembered, no number comes twice.
func TestForgottenTopicsGoOnAbove(t *testing.T) {
	m, err := NewMapper(plantOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	route := func(data string) *target {
		r, ok := m.Route("devices/em-1/telemetry/"+data, false, nil)
		if !ok {
			t.Fatal("no route")
		}
		return r.target
	}
	first := route("first")
	first.n.Store(41)
	for i := range maxRoutes {
		route(fmt.Sprint(i))
	}
	if len(m.routes) > maxRoutes {
		t.Errorf("%d routes are remembered", len(m.routes))
	}
	again := route("first")
	if again == first {
		t.Fatal("it was not forgotten")
	}
	if n := again.n.Add(1); n <= 41 {
		t.Errorf("number %d comes again", n)
	}
}

func TestUnknownDevices(t *testing.T) {
	o := plantOptions(t)
	var told []string
	o.Unknown = func(device, yaml string) { told = append(told, device+": "+yaml) }
	m, err := NewMapper(o)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		for _, id := range []string{"new-1", `x"y`, ""} {
			if _, ok := m.Route("devices/"+id+"/telemetry", false, nil); ok {
				t.Errorf("%q is carried", id)
			}
		}
	}
	want := []string{
		"new-1: adapters:\n  talkers:\n    mqtt: local\n    devices:\n      new-1: {type: sensor}\n",
		`x"y: ` + "adapters:\n  talkers:\n    mqtt: local\n    devices:\n" + `      "x\"y": {type: sensor}` + "\n",
		`: ` + "adapters:\n  talkers:\n    mqtt: local\n    devices:\n" + `      "": {type: sensor}` + "\n",
	}
	if d := cmp.Diff(want, told); d != "" {
		t.Error(d)
	}
	for i := range 2 * maxUnknown {
		m.Route(fmt.Sprintf("devices/flood-%d/telemetry", i), false, nil)
	}
	if len(told) != maxUnknown {
		t.Errorf("told of %d devices, want %d at most", len(told), maxUnknown)
	}
	if s := m.Stats(); s.Unknown != 9+2*maxUnknown {
		t.Errorf("stats %+v", s)
	}
}

func TestTooLongUpstream(t *testing.T) {
	m, err := NewMapper(plantOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := m.Route("devices/em-1/telemetry/"+strings.Repeat("x", 65_501), false, nil); ok {
		t.Error("it is carried")
	}
	if s := m.Stats(); s.Unfit != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestTagsInTemplate(t *testing.T) {
	o := plantOptions(t)
	o.Topic = "{org}/{asset}/{gateway}-{device}/{data}"
	o.Devices = []Device{{ID: "em-1", Tags: map[string]string{"asset": "4711"}}}
	m, err := NewMapper(o)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := m.UpstreamTopic("em-1", "telemetry/a"); err != nil || got != "acme/4711/gw-1-em-1/telemetry/a" {
		t.Errorf("got %s, %v", got, err)
	}
}

func TestMapperErrors(t *testing.T) {
	for _, tt := range []struct {
		change func(o *MapperOptions)
		want   string
	}{
		{func(o *MapperOptions) { o.Topic = "{org" }, `topic template "{org"`},
		{func(o *MapperOptions) { o.Site = "" }, `{site} is ""`},
		{func(o *MapperOptions) { o.Topic = "{asset}/{data}" }, "device em-1: the topic template needs its {asset}"},
		{func(o *MapperOptions) { o.Devices[0].Zone = "" }, "device em-1: the topic template needs its {zone}"},
		{func(o *MapperOptions) { o.Devices[1].ID = "em-1" }, "device em-1: there twice"},
		{func(o *MapperOptions) { o.Devices[2].ID = "ts-[*" }, "device ts-[*: not a pattern"},
		{func(o *MapperOptions) { o.Data["x"] = Data{QoS: 3} }, "data x: QoS 3 is above 2"},
		{func(o *MapperOptions) { o.Data["x"] = Data{Class: buffer.Local} }, "data x: class local is not for a bridge"},
		{func(o *MapperOptions) { o.Devices[1].Data["y"] = Override{QoS: ptr(byte(9))} }, "device em-2: data y: QoS 9 is above 2"},
		{func(o *MapperOptions) { o.Forward[0].Upstream = "a/{2}" }, "forward plant/+/raw/#: "},
		{func(o *MapperOptions) { o.Forward[0].QoS = 3 }, "forward plant/+/raw/#: QoS 3 is above 2"},
	} {
		o := plantOptions(t)
		tt.change(&o)
		if _, err := NewMapper(o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("error %v, want %s", err, tt.want)
		}
	}
}

func BenchmarkRoute(b *testing.B) {
	m, err := NewMapper(plantOptions(b))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		r, _ := m.Route("devices/em-1/telemetry", false, nil)
		_ = r.Copy(r.Class)
	}
}

// What the requester of an answer names is no way to forge what devices say, nor to
// command them.
func TestMayAnswer(t *testing.T) {
	m, err := NewMapper(MapperOptions{
		Gateway: "gw-1", Org: "acme", Site: "berlin",
		Data:    map[string]Data{"telemetry": {QoS: 1}, "commands": {Direction: Down, QoS: 2}},
		Devices: []Device{{ID: "em-1", Zone: "a", Type: "meter"}, {ID: "ts-*", Zone: "a", Type: "sensor"}},
		Forward: []Forward{{Local: "recipes/#", Upstream: "{org}/recipes/{#}", Direction: Down}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		"answers/app-1":                          true,
		"acme/berlin/a/meter/em-2/answers":       true, // nobody's
		"acme/berlin/a/meter/em-1/telemetry":     false,
		"acme/berlin/b/other/em-1/anything":      false,
		"acme/berlin/a/sensor/ts-7/commands":     false,
		"acme/berlin/a/meter/em-2/commands":      false, // what the bridge subscribes to
		"acme/recipes/1":                         false,
		"$SYS/x":                                 false,
		"answers/#":                              false,
		"":                                       false,
		"acme/berlin/a/meter/em-1/x/y/telemetry": false,
	} {
		if got := m.MayAnswer(name); got != want {
			t.Errorf("%q: %t, want %t", name, got, want)
		}
	}
}

// What comes down for a device has the QoS that its data says.
func TestQoSOfWhatComesDown(t *testing.T) {
	one := byte(1)
	m, err := NewMapper(MapperOptions{
		Gateway: "gw-1", Org: "acme", Site: "berlin",
		Data:    map[string]Data{"firmware": {Direction: Down, QoS: 2}, "config": {Direction: Down, QoS: 1}},
		Devices: []Device{{ID: "a", Zone: "z", Type: "t"}, {ID: "b", Zone: "z", Type: "t", Data: map[string]Override{"firmware": {QoS: &one}}}},
		Forward: []Forward{{Local: "recipes/#", Upstream: "{org}/recipes/{#}", Direction: Down, QoS: 2}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		topic     string
		came, qos byte
	}{
		{"acme/berlin/z/t/a/firmware", 2, 2}, {"acme/berlin/z/t/a/config", 0, 1}, {"acme/berlin/z/t/b/firmware", 2, 1}, {"acme/recipes/x", 1, 1},
	} {
		if _, qos, ok := m.Local(tt.topic, tt.came); !ok || qos != tt.qos {
			t.Errorf("%s with QoS %d: %d %t, want %d", tt.topic, tt.came, qos, ok, tt.qos)
		}
	}
}
