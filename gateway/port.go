package gateway

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// portOwner names who listens where we want to, as far as Linux lets us see: proc is
// its /proc.
func portOwner(proc, address string) string {
	const unknown = "another program (`sudo ss -ltnp` names it)"
	want, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return unknown
	}
	there := listening(proc, want.AddrPort())
	if len(there) == 0 {
		return unknown
	}
	for _, s := range there {
		if name, pid, ok := holder(proc, s.inode); ok {
			return fmt.Sprintf("%s (pid %d)", name, pid)
		}
	}
	// Only root sees the files of others.
	name := "uid " + there[0].uid
	if u, err := user.LookupId(there[0].uid); err == nil {
		name = "user " + u.Username
	}
	return fmt.Sprintf("a program of %s (`sudo ss -ltnp` names it)", name)
}

// listener is a socket that listens.
type listener struct {
	addr       netip.AddrPort
	uid, inode string
}

// listening returns the sockets that keep us from an address, one that has exactly
// that first.
func listening(proc string, want netip.AddrPort) (there []listener) {
	want = netip.AddrPortFrom(want.Addr().Unmap(), want.Port())
	for _, file := range []string{"tcp", "tcp6"} {
		p, err := os.ReadFile(filepath.Join(proc, "net", file))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(p)) {
			// Linux, Documentation/networking/proc_net_tcp.rst
			f := strings.Fields(line)
			if len(f) < 10 || f[3] != "0A" { // TCP_LISTEN
				continue
			}
			s := listener{uid: f[7], inode: f[9]}
			var ok bool
			if s.addr, ok = parseSocketAddr(f[1]); !ok || s.addr.Port() != want.Port() {
				continue
			}
			a, b := s.addr.Addr(), want.Addr()
			all := !b.IsValid() || a.IsUnspecified() || b.IsUnspecified()
			if a == b {
				there = slices.Insert(there, 0, s)
			} else if all {
				there = append(there, s)
			}
		}
	}
	return there
}

// parseSocketAddr reads what proc has: the address in words of 32 bits as the
// machine has them, and the port, as "0100007F:075B".
func parseSocketAddr(s string) (netip.AddrPort, bool) {
	host, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	n, perr := strconv.ParseUint(port, 16, 16)
	if err != nil || perr != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	addr, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), ok
}

// holder finds the process that has a socket open.
func holder(proc, inode string) (name string, pid int, ok bool) {
	files, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "fd", "*"))
	for _, path := range files {
		if to, err := os.Readlink(path); err != nil || to != "socket:["+inode+"]" {
			continue
		}
		dir := filepath.Dir(filepath.Dir(path))
		comm, err := os.ReadFile(filepath.Join(dir, "comm"))
		if pid, aerr := strconv.Atoi(filepath.Base(dir)); err == nil && aerr == nil {
			return string(bytes.TrimSpace(comm)), pid, true
		}
	}
	return "", 0, false
}
