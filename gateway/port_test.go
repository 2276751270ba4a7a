package gateway

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fieldferry/fieldferry/localbroker"
)

// procNet is a table of sockets as in /proc/net/tcp.
func procNet(t *testing.T, proc, file string, lines ...string) {
	t.Helper()
	text := "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	for i, l := range lines {
		f := strings.Fields(l) // local, state, uid, inode
		text += fmt.Sprintf("%4d: %s 00000000:0000 %s 00000000:00000000 00:00000000 00000000 %5s        0 %s 1 0000000000000000 100 0 0 10 0\n", i, f[0], f[1], f[2], f[3])
	}
	if err := os.MkdirAll(filepath.Join(proc, "net"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(proc, "net", file), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestPortOwner(t *testing.T) {
	proc := t.TempDir()
	const any6 = "00000000000000000000000000000000"
	procNet(t, proc, "tcp",
		"00000000:075B 0A 4294967 11", // a wildcard of somebody whose files are hidden
		"0100007F:075B 0A 104 12",
		"0100007F:075C 01 104 13", // connected, not listening
		"0200007F:075C 0A 104 14",
		"0100007F:075D 0A 4294967 15",
		"broken 0A 0 16",
	)
	procNet(t, proc, "tcp6", any6+":075E 0A 104 17", "0000000000000000FFFF00000100007F:0760 0A 104 12", "00000000000000000000000001000000:0761 0A 104 12")
	for pid, fds := range map[string][]string{"812": {"pipe:[12]", "socket:[12]", "socket:[17]"}, "900": {"socket:[14]"}, "self": {"socket:[12]"}} {
		dir := filepath.Join(proc, pid, "fd")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for i, to := range fds {
			if err := os.Symlink(to, filepath.Join(dir, fmt.Sprint(i))); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(proc, pid, "comm"), []byte("p"+pid+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const unknown, hidden = "another program (`sudo ss -ltnp` names it)", "a program of uid 4294967 (`sudo ss -ltnp` names it)"
	for address, want := range map[string]string{
		"127.0.0.1:1883": "p812 (pid 812)", // that with the very address, not the wildcard
		"127.0.0.2:1883": hidden,
		":1884":          "p900 (pid 900)",
		"127.0.0.1:1884": unknown, // 127.0.0.2 does not keep us from it
		"127.0.0.1:1885": hidden,
		"127.0.0.1:1886": "p812 (pid 812)", // [::] has IPv4, too
		"127.0.0.1:1888": "p812 (pid 812)", // as IPv6 writes it
		"[::1]:1889":     "p812 (pid 812)",
		"127.0.0.1:1999": unknown,
		"no such:port":   unknown,
	} {
		if got := portOwner(proc, address); got != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
	}
	if got := portOwner(filepath.Join(proc, "none"), "127.0.0.1:1883"); got != unknown {
		t.Errorf("without /proc: %s", got)
	}
}

// TestDefaultListenerInUse has the port taken that a file without a broker asks for.
func TestDefaultListenerInUse(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c := site(t, "gateway: {data_dir: %q}\nadapters: {l: {modbus: \"tcp://127.0.0.1:1\", devices: {d: {unit_id: 1, points: {v: {holding: 0, as: int16}}}}}}\n", t.TempDir())
	b := localbroker.New(localbroker.Options{Listeners: []localbroker.Listener{
		{Name: "first", Addr: "127.0.0.1:0"}, // bound, and let go again
		{Name: "default", Addr: ln.Addr().String()},
	}})
	err = listen(b, c)
	want := fmt.Sprintf("site.yaml:1:1: %s is in use by ", ln.Addr())
	const way = `: choose another port with broker: {listeners: [{listen: "127.0.0.1:1884"}]}, or stop it`
	if err == nil || !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), way) {
		t.Errorf("error %v", err)
	}
	if b.Addr("first") != nil {
		t.Error("a listener is bound although another could not be")
	}
}
