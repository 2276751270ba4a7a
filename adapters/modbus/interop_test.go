//go:build interop

package modbus

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

// startPeer runs a program until the test ends.
func startPeer(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
}

// pair makes two serial ports that are connected, with socat.
func pair(t *testing.T) (ours, theirs string) {
	t.Helper()
	dir := t.TempDir()
	ours, theirs = filepath.Join(dir, "a"), filepath.Join(dir, "b")
	startPeer(t, "socat", "pty,raw,echo=0,link="+ours, "pty,raw,echo=0,link="+theirs)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		_, a := os.Stat(ours)
		_, b := os.Stat(theirs)
		if a == nil && b == nil {
			return ours, theirs
		}
	}
	t.Fatal("socat has made no ports")
	return
}

// peers start a server and say what reaches it.
func peerConfig(t *testing.T, transport string, server ...string) Config {
	t.Helper()
	c := Config{Name: "peer", Transport: transport, Timeout: 2 * time.Second, Line: Line{Parity: "none"}}
	if transport == "rtu" {
		var theirs string
		c.Address, theirs = pair(t)
		startPeer(t, server[0], append(server[1:], "rtu", theirs)...)
		return c
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.Address = l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(c.Address)
	startPeer(t, server[0], append(server[1:], "tcp", port)...)
	return c
}

func TestInteropPymodbus(t *testing.T) {
	for _, transport := range []string{"tcp", "rtu"} {
		t.Run(transport, func(t *testing.T) {
			c := peerConfig(t, transport, "/usr/bin/python3", "testdata/pymodbus_server.py")
			interop(t, c, true)
		})
	}
}

func TestInteropLibmodbus(t *testing.T) {
	program := filepath.Join(t.TempDir(), "server")
	if out, err := exec.Command("cc", "-o", program, "testdata/libmodbus_server.c", "-I/usr/include/modbus", "-lmodbus").CombinedOutput(); err != nil {
		t.Fatalf("cc: %v\n%s", err, out)
	}
	for _, transport := range []string{"tcp", "rtu"} {
		t.Run(transport, func(t *testing.T) { interop(t, peerConfig(t, transport, program), false) })
	}
}

// interop tries every function, type and exception.
func interop(t *testing.T, c Config, identifies bool) {
	c.Devices = []Device{everyType()}
	ready := c
	ready.Timeout = 200 * time.Millisecond
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) { // it takes its time to start
		client, err := Dial(t.Context(), ready)
		if err == nil {
			_, err = client.Registers(t.Context(), 1, Holding, 0, 1)
			client.Close()
		}
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	client, err := Dial(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	w := client.link.bus.wire
	for _, table := range []Table{Holding, Input} {
		for _, n := range []uint16{1, 2, 125} {
			b, err := w.readRegisters(1, table, 7, n)
			if err != nil || len(b) != int(2*n) || b[1] != 7 || b[2*n-1] != byte(6+n) {
				t.Errorf("%d of %s: % x %v", n, table, b, err)
			}
		}
	}
	for _, table := range []Table{Coil, Discrete} {
		on, err := w.readBits(1, table, 1, 19)
		if err != nil || !slices.Equal(on, unpackBits([]byte{0x55, 0x55, 0x55}, 19)) {
			t.Errorf("%s: %v %v", table, on, err)
		}
	}
	for function, pdu := range map[string][]byte{
		"5": {5, 0, 150, 0xFF, 0}, "6": {6, 0, 150, 0x12, 0x34}, "15": {15, 0, 152, 0, 9, 2, 0xFF, 1}, "16": {16, 0, 152, 0, 2, 4, 1, 2, 3, 4},
		"22": {22, 0, 12, 0, 0xF2, 0, 0x25},
	} {
		if _, err := w.exchange(1, pdu); err != nil {
			t.Errorf("function %s: %v", function, err)
		}
	}
	if b, err := w.readRegisters(1, Holding, 12, 1); err != nil || b[1] != 0x0C&0xF2|0x25&^0xF2 {
		t.Errorf("after a mask: % x %v", b, err)
	}
	if b, err := w.exchange(1, []byte{23, 0, 152, 0, 3, 0, 154, 0, 1, 2, 9, 8}); err != nil || !slices.Equal(b, []byte{23, 6, 1, 2, 3, 4, 9, 8}) {
		t.Errorf("function 23: % x %v", b, err)
	}
	for _, code := range []int{1, 2, 3, 4, 5, 6, 10, 11} {
		if _, err := w.readRegisters(1, Holding, uint16(900+code), 1); exceptionOf(err) != code {
			t.Errorf("exception %d: %v", code, err)
		}
	}
	if identifies {
		id, err := client.Identify(t.Context(), 1)
		if err != nil || id.Vendor != "Acme" || id.Product != "P-1" || id.Revision != "1.2" {
			t.Errorf("%+v %v", id, err)
		}
	}
	for name, v := range map[string]adapters.Value{
		"int16": adapters.Int(-5), "uint16": adapters.Int(65533), "int32": adapters.Int(-70000), "uint32": adapters.Int(4e9), "int64": adapters.Int64(-1 << 60),
		"uint64": adapters.Uint64(1<<64 - 2), "float16": adapters.Float32(1.5), "float32": adapters.Float32(23.4), "float64": adapters.Float64(1e300),
		"string": adapters.String("pump"), "bcd16": adapters.Int(9876), "bcd32": adapters.Int(87654321), "bool": adapters.Bool(true),
	} {
		for order := ABCD; order <= DCBA; order++ {
			point := fmt.Sprint(name, "-", order)
			samples, err := client.Write(t.Context(), "dev", []adapters.Assignment{{Point: point, Value: v}})
			if err != nil || len(samples) != 1 || samples[0].Value.String() != v.String() {
				t.Errorf("%s: %v %v, want %s", point, samples, err, v)
			}
		}
	}
}

// everyType is a device with a point of each type and order, all in one place.
func everyType() Device {
	d := Device{Device: &adapters.Device{Name: "dev"}, UnitID: 1}
	for typ := Bool; typ <= BCD32; typ++ {
		for order := ABCD; order <= DCBA; order++ {
			p := Point{Point: &adapters.Point{Name: strings.TrimSpace(fmt.Sprint(typ, "-", order))}, Address: 100, Type: typ, Order: order, Write: &Write{}}
			if typ == String {
				p.Bytes = 6
			}
			d.Points = append(d.Points, p)
		}
	}
	return d
}
