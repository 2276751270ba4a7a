package conformance

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// resident is the memory of the broker's process, in bytes.
func resident(t *testing.T, b *broker) int {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(raw)); lines.Scan(); {
		var kb int
		if _, err := fmt.Sscanf(lines.Text(), "VmRSS: %d kB", &kb); err == nil {
			return kb << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// TestClaims has a thousand connections each claim that 256 MB follow: without the last
// byte of the claim they are held, and with it they are closed. Clients come and go all
// the time.
func TestClaims(t *testing.T) {
	const n, most = 1000, 16 << 10
	b := own(t, &site{name: "claims", more: "    clients_per_address: 2000\n"})
	s := stage(t, packet.V5, b)
	s.connect("warm").leave(0)
	before := resident(t, b)
	var conns []net.Conn
	for range n {
		nc, err := net.Dial("tcp", b.addr())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		if _, err := nc.Write([]byte{0x10, 0xff, 0xff, 0xff}); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, nc)
	}
	s.connect("between").leave(0) // and those before it have been accepted
	held := resident(t, b)
	for _, nc := range conns {
		if _, err := nc.Write([]byte{0x7f}); err != nil {
			t.Fatal(err)
		}
	}
	for _, nc := range conns {
		_ = nc.SetReadDeadline(time.Now().Add(patience))
		if got, err := io.Copy(io.Discard, nc); got != 0 || err != nil {
			t.Fatalf("%d bytes, %v", got, err)
		}
	}
	after := resident(t, b)
	s.connect("after").leave(0)
	t.Logf("%d bytes a connection while they are held, %d when they have claimed", (held-before)/n, (after-before)/n)
	if max(held, after)-before > n*most {
		t.Errorf("%d and %d bytes a connection, %d are allowed", (held-before)/n, (after-before)/n, most)
	}
}
