package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/fieldferry/fieldferry/adapters/simulate"
	"github.com/fieldferry/fieldferry/gateway/config"
)

// serveDevices is the command "devices": units 1 and 3 behind $DEVICES until the
// script ends. Unit 1 holds the float32 230.5 at 100 and 0 to 3 at 0 to 3.
func serveDevices(ts *testscript.TestScript, _ bool, _ []string) {
	s := simulate.New()
	u := s.Unit(1)
	u.Set(simulate.Holding, 0, 0, 1, 2, 3)
	u.Set(simulate.Holding, 100, 0x4366, 0x8000)
	u.Set(simulate.Coil, 3, 0)
	u.Identify(map[byte]string{0: "Acme", 1: "M-1", 2: "2.0"})
	s.Unit(3).Set(simulate.Input, 0, 1)
	ts.Check(s.Open("127.0.0.1:0"))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	ts.Defer(func() {
		cancel()
		<-done
	})
	ts.Setenv("DEVICES", s.Addr().String())
}

// TestSimulate serves a site over several transports and reads it back by its own
// file.
func TestSimulate(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	path := filepath.Join(dir, "site.yaml")
	text := fmt.Sprintf(`
profiles:
  all:
    points:
      a: {input: 0, as: float32, order: CDAB, unit: V}
      b: {holding: 1, as: int16, scale_by: sf}
      sf: {holding: 2, as: int16, publish: false}
      c: {holding: 10, as: string, bytes: 5}
      d: {holding: 20, as: uint16, enum: {4: ok, 5: bad}}
      e: {holding: 30, as: int32, count: 3}
      f: {coil: 1, write: {}}
      g: {discrete: 1}
      h: {holding: 40, as: uint16, range: {raw: [4000, 20000], to: [0, 100]}}
      i: {holding: 50, as: float64, write: {max: 30}}
adapters:
  net: {modbus: "tcp://%s", timeout: 300ms, devices: {one: {unit_id: 1, profile: all}, two: {unit_id: 2, profile: all}}}
  bus: {modbus: "rtu://%s/bus", devices: {three: {unit_id: 3, profile: all}}}
`, address, dir)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, problems := config.Load(path, config.Options{})
	if c == nil {
		t.Fatal(problems)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	var out bytes.Buffer
	go func() {
		done <- simulateSite(ctx, c, map[string]simulate.Fault{"two": {Dead: true}}, 15020, &out)
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if !strings.Contains(out.String(), "net: 2 devices of tcp://"+address+" served at "+address) {
			t.Error(out.String())
		}
		if _, err := os.Lstat(filepath.Join(dir, "bus")); err == nil {
			t.Error("the link of the line is still there")
		}
	}()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		_, err := os.Lstat(filepath.Join(dir, "bus"))
		if err == nil || time.Now().After(deadline) {
			break
		}
	}
	for _, device := range []string{"one", "three"} {
		var stdout, stderr bytes.Buffer
		if code := run([]string{"read", path, device, "--json"}, nil, &stdout, &stderr); code != 0 {
			t.Fatalf("read %s: %d %s %s", device, code, &stdout, &stderr)
		}
		var samples []shownSample
		if err := json.Unmarshal(stdout.Bytes(), &samples); err != nil || len(samples) != 9 {
			t.Fatalf("%s: %v", &stdout, err)
		}
		for _, s := range samples {
			if s.Quality != "good" {
				t.Errorf("%s %s: %+v", device, s.Point, s)
			}
			switch v := s.Value.(type) {
			case float64:
				if v < 0 || v > 100 {
					t.Errorf("%s: %v", s.Point, v)
				}
			case string:
				if s.Point == "c" && v != "c" || s.Point == "d" && v != "ok" {
					t.Errorf("%s: %v", s.Point, v)
				}
			}
		}
		stdout.Reset()
		if code := run([]string{"write", path, device, "f=true", "i=12.5", "--json"}, nil, &stdout, &stderr); code != 0 || !strings.Contains(stdout.String(), `"value":12.5`) {
			t.Errorf("write %s: %d %s %s", device, code, &stdout, &stderr)
		}
	}
	var stdout, stderr bytes.Buffer
	if code := run([]string{"read", path, "two", "a"}, nil, &stdout, &stderr); code != 1 || !strings.Contains(stdout.String(), "bad: timeout") {
		t.Errorf("the dead one: %d %s %s", code, &stdout, &stderr)
	}
}

func TestFaultsAreParsed(t *testing.T) {
	for word, want := range map[string]simulate.Fault{
		"d=dead": {Dead: true}, "d=slow:30ms": {Delay: 30 * time.Millisecond}, "d=late:1s": {Late: true, Delay: time.Second},
		"d=exception:6": {Exception: 6}, "d=wrong-crc": {WrongCRC: true}, "d=drop": {Hangup: true, Dead: true},
	} {
		if device, got, err := parseFault(word); err != nil || device != "d" || got != want {
			t.Errorf("%s: %s %+v %v", word, device, got, err)
		}
	}
	for _, word := range []string{"d", "d=slow", "d=slow:x", "d=exception:0", "d=tired"} {
		if _, _, err := parseFault(word); err == nil {
			t.Errorf("%s is accepted", word)
		}
	}
}
