package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/fieldferry/fieldferry/gateway"
	"github.com/fieldferry/fieldferry/gateway/config"
)

// peer is a broker that runs in a process of its own, or just somewhere.
type peer struct {
	Name string
	Addr string
	pid  int // 0 if it is not ours
	stop func() error
}

// cpu is the processor time it has used.
func (p *peer) cpu() time.Duration {
	if p.pid == 0 {
		return 0
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return 0
	}
	// proc(5): the name in parentheses may hold anything; utime and stime are the
	// 12th and 13th after it, in hundredths of a second.
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// memory is what of it is resident, in bytes, and of that not from files.
func (p *peer) memory() (all, anonymous int64) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(b)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kib); err == nil {
			all = kib << 10
		}
		if _, err := fmt.Sscanf(line, "RssAnon: %d kB", &kib); err == nil {
			anonymous = kib << 10
		}
	}
	return all, anonymous
}

// startPeer starts a process and waits until it listens.
func startPeer(ctx context.Context, name, addr string, cmd *exec.Cmd) (*peer, error) {
	log := new(strings.Builder)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	p := &peer{Name: name, Addr: addr, pid: cmd.Process.Pid}
	p.stop = func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
			return nil
		case <-time.After(15 * time.Second):
			return errors.Join(fmt.Errorf("%s does not stop", name), cmd.Process.Kill())
		}
	}
	for range 100 {
		if nc, err := net.Dial("tcp", addr); err == nil {
			return p, nc.Close()
		}
		select {
		case err := <-ended:
			return nil, fmt.Errorf("%s ends at once: %v\n%s", name, err, log)
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), p.stop())
		case <-time.After(100 * time.Millisecond):
		}
	}
	return nil, errors.Join(fmt.Errorf("%s does not listen on %s", name, addr), p.stop())
}

// freeAddr is an address that nobody listens on.
func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return ln.Addr().String(), ln.Close()
}

// startOurs starts Fieldferry with a site file whose broker listens on %s.
func startOurs(ctx context.Context, dir, site string) (*peer, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "site.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, site, addr), 0o600); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return startPeer(ctx, "fieldferry", addr, exec.Command(self, "serve", file))
}

// startMosquitto starts Mosquitto without limits on what is under way.
func startMosquitto(ctx context.Context, dir string) (*peer, error) {
	return startMosquittoWith(ctx, dir, "max_inflight_messages 0\npersistence false\n")
}

// startMosquittoWith starts Mosquitto with more in its configuration.
func startMosquittoWith(ctx context.Context, dir, more string) (*peer, error) {
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/mosquitto"); err != nil {
			return nil, errors.New("there is no mosquitto to compare with: install it, or name another broker with --peer")
		}
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(addr)
	file := filepath.Join(dir, "mosquitto.conf")
	conf := fmt.Sprintf("allow_anonymous true\nmax_queued_messages 0\nuser root\nlistener %s 127.0.0.1\n%s", port, more)
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	return startPeer(ctx, "mosquitto", addr, exec.Command(path, "-c", file))
}

// serveCommand is fieldferry run, as a process to be measured.
func serveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "serve FILE", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if profile := os.Getenv("FIELDBENCH_PROFILE"); profile != "" { // of the broker, not of the load
				f, err := os.CreateTemp(profile, "cpu-*.prof")
				if err != nil {
					return err
				}
				defer f.Close()
				if err := pprof.StartCPUProfile(f); err != nil {
					return err
				}
				defer pprof.StopCPUProfile()
			}
			c, problems := config.Load(args[0], config.Options{})
			for _, p := range problems {
				if !p.Warning {
					return errors.New(p.String())
				}
			}
			g, err := gateway.Open(c, gateway.Options{})
			if err != nil {
				return err
			}
			return errors.Join(g.Run(cmd.Context()), g.Close())
		},
	}
}
