//go:build interop

package serial_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/serial"
	"github.com/fieldferry/fieldferry/adapters/serial/port"
)

// start runs a program until stop is called, or the test ends.
func start(t *testing.T, name string, args ...string) (stop func()) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cmd.Process.Kill()
			cmd.Wait()
		}
	}
	t.Cleanup(stop)
	return stop
}

// TestInteropSocat reads a scale that is a Python program at the other end of a line
// of socat's, which is killed again and again.
func TestInteropSocat(t *testing.T) {
	dir := t.TempDir()
	ours, theirs := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	var unplug, leave func()
	plug := func() {
		unplug = start(t, "socat", "pty,raw,echo=0,link="+ours, "pty,raw,echo=0,link="+theirs)
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if _, err := os.Stat(theirs); err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("socat has made no port")
			}
		}
		leave = start(t, "/usr/bin/python3", "testdata/scale.py", theirs)
	}
	point := func(name string) *adapters.Point { return &adapters.Point{Name: name} }
	link := newLink(t, serial.Config{
		Name: "scale", Port: ours, Timeout: 300 * time.Millisecond, Line: port.Settings{Baud: 9600, DataBits: 8, Parity: "none", StopBits: 1},
		Devices: []serial.Device{{
			Device: &adapters.Device{Name: "scale"}, Every: 20 * time.Millisecond, Request: []byte("SI\r\n"),
			Frame: serial.Frame{End: []byte("\r\n")}, Match: regexp.MustCompile(`^S S (?P<w>[ 0-9.]{10}) g$`),
			Points: []serial.Point{{Point: point("w"), Field: "w", Type: serial.Float64}, {Point: point("tare"), Send: []byte("T\r\n"), Expect: []byte("T S")}},
		}},
	})
	s := newSink()
	run(t, link, s)
	for range 3 {
		plug()
		s.mu.Lock()
		from := len(s.good["scale"])
		s.mu.Unlock()
		s.until(t, "values", func() bool { return len(s.good["scale"]) >= from+20 })
		if samples, err := link.Write(t.Context(), "scale", []adapters.Assignment{{Point: "tare", Value: adapters.Bool(true)}}); err != nil || samples[0].Quality != adapters.Good {
			t.Errorf("tare: %v %v", samples, err)
		}
		unplug()
		leave()
		os.Remove(ours) // killed, it leaves its links
		os.Remove(theirs)
		s.mu.Lock()
		last := 0.0
		for _, v := range s.good["scale"][from:] {
			w, err := strconv.ParseFloat(v, 64)
			if err != nil || w <= last || w > last+0.2 {
				t.Fatalf("%s after %v", v, last)
			}
			last = w
		}
		s.mu.Unlock()
		s.until(t, "its absence to be noticed", func() bool { return s.offline["scale"] })
	}
}
