//go:build unix

package config

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// What a pipe gives is read as a site file, but it could keep one waiting that
// names it for an include or a table.
func TestPipe(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Skip(err)
	}
	for _, text := range []string{
		"include: pipe\nbroker: {}\n",
		"broker: {}\nhttp: {tokens: {admin: \"${file:pipe}\"}}\n",
		"adapters: {a: {modbus: tcp://10.0.0.1:502, devices: {d: {points_file: pipe}}}}\n",
	} {
		write(t, dir, "site.yaml", text)
		c, ps := Load(filepath.Join(dir, "site.yaml"), Options{})
		if c != nil || len(ps) != 1 || !strings.HasSuffix(ps[0].Text, pipe+" is no regular file") {
			t.Errorf("%s: %s", text, problems(ps))
		}
	}
	written := make(chan error, 1)
	go func() { written <- os.WriteFile(pipe, []byte("broker: {}\n"), 0) }()
	c, ps := Load(pipe, Options{})
	if err := <-written; err != nil || c == nil {
		t.Errorf("%v, %s", err, problems(ps))
	}
	// a device ends by the bound
	c, ps = Load("/dev/zero", Options{})
	if c != nil || strings.TrimSpace(problems(ps)) != "/dev/zero:1:1: the file is larger than 512 KiB" {
		t.Error(problems(ps))
	}
	c, ps = Load(dir, Options{})
	if c != nil || strings.TrimSpace(problems(ps)) != dir+":1:1: the file is a folder" {
		t.Error(problems(ps))
	}
}
