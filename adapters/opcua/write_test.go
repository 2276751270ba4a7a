package opcua

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gopcua/opcua/server"
	"github.com/gopcua/opcua/ua"

	"github.com/fieldferry/fieldferry/adapters"
)

// mapRig is a rig with variables that can be written.
func mapRig(t *testing.T, values map[string]any) *rig {
	r := newRig(t, nil, 0)
	ns := server.NewMapNamespace(r.srv, "urn:fieldferry:map")
	ns.Data = values
	r.open()
	return r
}

func mapPoint(name string, w *Write) Point {
	return Point{Point: &adapters.Point{Name: name}, Node: "nsu=urn:fieldferry:map;s=" + name, Write: w}
}

func TestWriteAndReadBack(t *testing.T) {
	r := mapRig(t, map[string]any{"float": 1.5, "int": int16(0), "text": "a", "switch": false})
	ten := 10.0
	scaled := mapPoint("int", &Write{Max: &ten})
	scaled.Scale = 0.1
	for _, poll := range []bool{false, true} {
		name := "subscribe"
		if poll {
			name = "poll"
		}
		t.Run(name, func(t *testing.T) {
			d := Device{Device: &adapters.Device{Name: "d"}, Every: 50 * time.Millisecond, Points: []Point{
				mapPoint("float", &Write{}), scaled, mapPoint("text", nil), mapPoint("switch", &Write{Pulse: 300 * time.Millisecond}), mapPoint("gone", &Write{}),
			}}
			l, p, stop := run(t, Config{Endpoint: r.url(), Poll: poll, Devices: []Device{d}})
			p.await(t, 0, "a value", isGood("float"))
			ctx := context.Background()
			write := func(values ...adapters.Assignment) ([]adapters.Sample, error) { return l.Write(ctx, "d", values) }
			set := func(point string, v adapters.Value) adapters.Assignment {
				return adapters.Assignment{Point: point, Value: v}
			}
			samples, err := write(set("float", adapters.Float64(2.5)), set("int", adapters.Float64(1.2)))
			if err != nil || len(samples) != 2 || samples[0].Value.String() != "2.5" || samples[1].Value.String() != "1.2" {
				t.Fatalf("%v, %v", samples, err)
			}
			for _, c := range []struct {
				values []adapters.Assignment
				want   string
			}{
				{nil, "nothing to write"},
				{[]adapters.Assignment{set("text", adapters.String("x"))}, "text: may not be written"},
				{[]adapters.Assignment{set("int", adapters.Int(11))}, "int: 11 is above its limit 10"},
				{[]adapters.Assignment{set("float", adapters.Int(1)), set("float", adapters.Int(2))}, "written twice"},
				{[]adapters.Assignment{set("other", adapters.Int(1))}, "has no point other"},
				{[]adapters.Assignment{set("gone", adapters.Int(1))}, "gone: the server has no such node"},
			} {
				samples, err := write(c.values...)
				if err == nil || !strings.Contains(err.Error(), c.want) || len(samples) != 0 {
					t.Errorf("%v: %v, %v; want %q", c.values, samples, err, c.want)
				}
				// What only the server knows shows when it is tried.
				if checked := l.CheckWrite("d", c.values); (checked == nil) != strings.HasPrefix(c.want, "gone") || checked != nil && checked.Error() != err.Error() {
					t.Errorf("%v: checked %v, written %v", c.values, checked, err)
				}
			}
			if err := l.CheckRead("d", []string{"float", "other"}); err == nil || !strings.Contains(err.Error(), "has no point other") {
				t.Errorf("a read of a point that is not there: %v", err)
			}
			if err := errors.Join(l.CheckRead("d", []string{"float"}), l.CheckWrite("d", []adapters.Assignment{set("float", adapters.Int(1))})); err != nil {
				t.Error(err)
			}
			// What comes behind a failure is not written; what came before is read back.
			samples, err = write(set("float", adapters.Float64(3.5)), set("gone", adapters.Int(1)), set("int", adapters.Int(2)))
			if err == nil || len(samples) != 1 || samples[0].Value.String() != "3.5" {
				t.Errorf("%v, %v", samples, err)
			}
			if samples, err := l.Read(ctx, "d", []string{"int"}); err != nil || samples[0].Value.String() != "1.2" {
				t.Errorf("the point behind it is %v, %v", samples, err)
			}
			if _, err := write(set("switch", adapters.Bool(true))); err != nil {
				t.Fatal(err)
			}
			off := func() bool {
				samples, err := l.Read(ctx, "d", []string{"switch"})
				return err == nil && !samples[0].Value.Bool()
			}
			for deadline := time.Now().Add(10 * time.Second); !off(); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the pulse does not end")
				}
			}
			// One that has begun ends also when the link does.
			if _, err := write(set("switch", adapters.Bool(true))); err != nil {
				t.Fatal(err)
			}
			stop()
			if _, err := write(set("float", adapters.Int(1))); !errors.Is(err, adapters.ErrNotRunning) {
				t.Errorf("after its end: %v", err)
			}
			c, err := Dial(ctx, Config{Name: "c", Endpoint: r.url(), Devices: []Device{d}})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if samples, err := c.Read(ctx, "d", []string{"switch"}); err != nil || samples[0].Value.Bool() {
				t.Errorf("the pulse has not ended: %v, %v", samples, err)
			}
		})
	}
}

func TestWriteIsConcurrent(t *testing.T) {
	r := mapRig(t, map[string]any{"a": int32(0), "b": int32(0)})
	d := Device{Device: &adapters.Device{Name: "d"}, Every: 50 * time.Millisecond, Points: []Point{mapPoint("a", &Write{}), mapPoint("b", &Write{})}}
	l, p, _ := run(t, Config{Endpoint: r.url(), Devices: []Device{d}})
	p.await(t, 0, "a value", isGood("a"))
	var wait sync.WaitGroup
	for _, name := range []string{"a", "b"} {
		wait.Go(func() {
			for i := range 20 {
				samples, err := l.Write(context.Background(), "d", []adapters.Assignment{{Point: name, Value: adapters.Int(int64(i))}})
				if err != nil || samples[0].Value.Int64() != int64(i) {
					t.Errorf("%s := %d: %v, %v", name, i, samples, err)
				}
			}
		})
	}
	wait.Wait()
}

// TestWriteWithoutAnAnswer does not know what became of what it sent.
func TestWriteWithoutAnAnswer(t *testing.T) {
	r := mapRig(t, map[string]any{"a": int32(0)})
	d := Device{Device: &adapters.Device{Name: "d"}, Every: 50 * time.Millisecond, Points: []Point{mapPoint("a", &Write{})}}
	l, p, _ := run(t, Config{Endpoint: r.url(), Timeout: time.Second, Devices: []Device{d}})
	p.await(t, 0, "a value", isGood("a"))
	ctx := context.Background()
	if _, err := l.Write(ctx, "d", []adapters.Assignment{{Point: "a", Value: adapters.Int(1)}}); err != nil { // its type is known now
		t.Fatal(err)
	}
	release := r.hold()
	samples, err := l.Write(ctx, "d", []adapters.Assignment{{Point: "a", Value: adapters.Int(2)}})
	if err == nil || len(samples) != 1 || samples[0].Quality != adapters.Uncertain || samples[0].Value.Int64() != 2 {
		t.Errorf("%v, %v; want the value to be uncertain", samples, err)
	}
	release()
}

func TestArguments(t *testing.T) {
	two := []variable{{id: ua.TypeIDDouble, name: "a"}, {id: ua.TypeIDInt32, array: true, name: "b"}}
	list := func(all ...adapters.Value) adapters.Value { return adapters.List(all) }
	for _, c := range []struct {
		args []variable
		v    adapters.Value
		n    int
		want string
	}{
		{nil, adapters.Bool(true), 0, ""},
		{nil, adapters.Value{}, 0, ""},
		{nil, adapters.Bool(false), 0, "write true"},
		{nil, adapters.Int(1), 0, "write true"},
		{two[:1], adapters.Int(1), 1, ""},
		{two[:1], list(adapters.Int(1)), 1, ""},
		{two[:1], adapters.String("x"), 0, "the argument a takes a Double"},
		{two[1:], list(adapters.Int(1), adapters.Int(2)), 1, ""},
		{two, list(adapters.Int(1), list(adapters.Int(2))), 2, ""},
		{two, adapters.Int(1), 0, "2 arguments"},
		{two, list(adapters.Int(1)), 0, "2 arguments"},
		{two, list(adapters.Int(1), adapters.Int(2)), 0, "the argument b takes a list"},
	} {
		given, err := argumentsOf(c.args, c.v)
		if c.want == "" && (err != nil || len(given) != c.n) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%v for %d arguments: %v, %v", c.v, len(c.args), given, err)
		}
	}
}

func TestBrowse(t *testing.T) {
	r := mapRig(t, map[string]any{"a": int32(0), "b": 1.5})
	c, err := Dial(context.Background(), Config{Name: "c", Endpoint: r.url()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	nodes, err := c.Browse(context.Background(), "nsu=urn:fieldferry:map;i=85", 0)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]Node{}
	for _, n := range nodes {
		got[n.ID] = n
	}
	n, ok := got["nsu=urn:fieldferry:map;s=b"]
	if len(nodes) != 2 || !ok || n.Type != "Double" || n.Class != "Variable" || n.Path != "b" {
		t.Errorf("%+v", nodes)
	}
	if _, err := c.Browse(context.Background(), "nsu=urn:nobody;i=1", 0); !errors.Is(err, errNoNode) {
		t.Errorf("a node of no namespace: %v", err)
	}
}
