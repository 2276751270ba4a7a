package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/fieldferry/fieldferry/adapters/opcua"
	"github.com/fieldferry/fieldferry/localbroker/client"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// The rig: so many variables that change ten times a second, and so many nodes to
// browse.
const (
	uaValues = 1000
	uaEvery  = 100 * time.Millisecond
	uaNodes  = 5000
)

// opcuaBench reads a server on node-opcua.
type opcuaBench struct {
	bench
	window time.Duration
	script string
}

func opcuaCommand() *cobra.Command {
	b := &opcuaBench{}
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "opcua",
		Short: "Measure the reading of 1,000 OPC UA values ten times a second, and outages of the server",
		Long: `opcua starts a server on node-opcua in a process of its own, as .ci/peers installs it,
with 1,000 values that change each 100 ms, and has a gateway subscribe to them with
Basic256Sha256 and SignAndEncrypt; a subscriber counts what arrives. What the server
itself gets done is shown too: node-opcua may be what is slow. Then it browses 5,000
nodes, kills the server and freezes it, and measures how long values are good that are
not, and how soon they are good again.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b.out = cmd.ErrOrStderr()
			remove, err := b.beginIn(b.dir)
			if err != nil {
				return err
			}
			defer remove()
			if err := b.measure(cmd.Context()); err != nil {
				return err
			}
			return b.end(cmd.OutOrStdout(), asJSON)
		},
	}
	cmd.Flags().StringVar(&b.dir, "dir", "", "a `FOLDER` on the disk to measure (default: the system's temporary folder)")
	cmd.Flags().DurationVar(&b.window, "for", 20*time.Second, "how long each is measured")
	cmd.Flags().StringVar(&b.script, "server", "adapters/opcua/testdata/nodeopcua_server.js", "the `FILE` with the server")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// uaServer is the server's process.
type uaServer struct {
	cmd  *exec.Cmd
	done chan struct{}
}

func (b *opcuaBench) startServer(ctx context.Context, port int) (*uaServer, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	modules := filepath.Join(cache, "fieldferry", "opcua-peers", "node_modules")
	options, err := json.Marshal(map[string]any{"port": port, "pki": filepath.Join(b.dir, "pki"), "values": uaValues, "every": uaEvery.Milliseconds(), "tree": uaNodes})
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("node", b.script, string(options))
	cmd.Env = append(os.Environ(), "NODE_PATH="+modules)
	cmd.Stderr = os.Stderr
	if _, err = cmd.StdinPipe(); err != nil { // the server ends with us
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w; .ci/peers installs what is needed", err)
	}
	s := &uaServer{cmd: cmd, done: make(chan struct{})}
	ready := make(chan bool, 1)
	go func() { // ends with the process
		defer close(s.done)
		for r := bufio.NewScanner(out); r.Scan(); {
			if r.Text() == "ready" {
				ready <- true
			}
		}
		_ = cmd.Wait() // it was killed, or said why
		close(ready)
	}()
	select {
	case ok := <-ready:
		if ok {
			return s, nil
		}
		return nil, errors.New("the server did not start; .ci/peers installs what is needed")
	case <-ctx.Done():
		return nil, errors.Join(context.Cause(ctx), s.stop())
	}
}

func (s *uaServer) stop() error {
	thaw(s.cmd.Process)
	_ = s.cmd.Process.Kill()
	<-s.done
	return nil
}

func (b *opcuaBench) site(port int) string {
	return fmt.Sprintf(`gateway: {id: bench-gateway}
broker:
  listeners: [{name: plain, listen: "%%s"}]
  limits: {queued_messages: 10000000, queued_bytes: 1GiB}
adapters:
  server:
    opcua: opc.tcp://127.0.0.1:%d
    security: {policy: Basic256Sha256, mode: SignAndEncrypt, cert: %q, key: %q, trust: %q}
    user: {name: gateway, password: secret}
    devices:
      many:
        base: "nsu=urn:acme:press;s=V"
        every: %s
        points: {"v-{1..%d}": {node: "{1..%[6]d}"}}
      one:
        base: "nsu=urn:acme:press;s=Press."
        every: %[5]s
        points: {counter: {node: Counter}}
`, port, filepath.Join(b.dir, "own.crt"), filepath.Join(b.dir, "own.key"), b.trust().Folder, uaEvery, uaValues)
}

func (b *opcuaBench) trust() opcua.Trust { return opcua.Trust{Folder: filepath.Join(b.dir, "trusted")} }

func (b *opcuaBench) measure(ctx context.Context) (err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	port := ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	server, err := b.startServer(ctx, port)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.stop()) }()
	endpoint := fmt.Sprintf("opc.tcp://127.0.0.1:%d", port)
	cert, _, err := opcua.ServerCertificate(ctx, endpoint)
	if err != nil {
		return err
	}
	if _, err := b.trust().Accept(cert.Raw, false); err != nil {
		return err
	}
	if err := b.browse(ctx, endpoint); err != nil {
		return fmt.Errorf("browse: %w", err)
	}
	dir, remove, err := b.folder()
	if err != nil {
		return err
	}
	defer remove()
	g, err := startOurs(ctx, dir, b.site(port))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.stop()) }()
	w := newUAWatch()
	c, err := client.Connect(ctx, client.Options{Address: g.Addr, ClientID: "bench", SessionExpiry: time.Hour, Handler: w.take})
	if err != nil {
		return err
	}
	defer c.Close()
	for _, filter := range []string{"devices/+/telemetry", "devices/+/status"} {
		if _, err := c.Subscribe(ctx, packet.Subscription{Filter: filter, QoS: 1}); err != nil {
			return err
		}
	}
	if err := b.values(ctx, g, server, w); err != nil {
		return err
	}
	return b.outages(ctx, server, port, w)
}

// values measures how many arrive, and what that takes.
func (b *opcuaBench) values(ctx context.Context, g *peer, server *uaServer, w *uaWatch) error {
	if err := pass(ctx, 5*time.Second); err != nil {
		return err
	}
	node := &peer{pid: server.cmd.Process.Pid}
	nodeCPU := node.cpu()
	before, cpu, began := w.values.Load(), g.cpu(), time.Now()
	first := w.first.Load()
	if err := pass(ctx, b.window); err != nil {
		return err
	}
	n, took := float64(w.values.Load()-before), time.Since(began)
	changes := float64(w.first.Load()-first) * uaValues // the first value counts up with each change
	cpu, nodeCPU = g.cpu()-cpu, node.cpu()-nodeCPU
	_, anonymous := g.memory()
	b.add("opcua", "values at the subscriber", n/took.Seconds(), "a second")
	b.add("opcua", "changes at the server", changes/took.Seconds(), "a second")
	b.atLeast("opcua", "arrived, of what the server changed", n/changes, 0.99, "")
	b.atMost("opcua", "processor for 10,000 values a second", cpu.Seconds()/took.Seconds()*10_000/(n/took.Seconds()), 0.10, "cores")
	b.atMost("opcua", "memory, RssAnon", float64(anonymous)/(1<<20), 60, "MiB")
	b.add("opcua", "processor of the server", nodeCPU.Seconds()/took.Seconds(), "cores")
	return nil
}

// browse measures a browse of all nodes.
func (b *opcuaBench) browse(ctx context.Context, endpoint string) error {
	c, err := opcua.Dial(ctx, opcua.Config{
		Name: "bench", Endpoint: endpoint, Policy: "Basic256Sha256", Mode: "SignAndEncrypt", Cert: filepath.Join(b.dir, "own.crt"), Key: filepath.Join(b.dir, "own.key"), Trust: b.trust(),
	})
	if err != nil {
		return err
	}
	defer c.Close()
	best, nodes := time.Hour, 0
	for range 3 {
		began := time.Now()
		all, err := c.Browse(ctx, "nsu=urn:acme:press;s=Press", 0)
		if err != nil {
			return err
		}
		best, nodes = min(best, time.Since(began)), len(all)
	}
	if nodes < uaNodes {
		return fmt.Errorf("%d nodes, want %d", nodes, uaNodes)
	}
	b.atMost("opcua", "browse of 5,000 nodes with their types", best.Seconds(), 1, "s")
	return nil
}

// outages kills the server and freezes it.
func (b *opcuaBench) outages(ctx context.Context, server *uaServer, port int, w *uaWatch) error {
	var worstBad, worstBack time.Duration
	const kills = 5
	for range kills {
		w.reset()
		killed := time.Now()
		if err := server.stop(); err != nil {
			return err
		}
		if err := w.await(ctx, w.bad); err != nil {
			return err
		}
		worstBad = max(worstBad, time.Since(killed))
		w.reset()
		next, err := b.startServer(ctx, port)
		if err != nil {
			return err
		}
		*server = *next
		up := time.Now()
		if err := w.await(ctx, w.good); err != nil {
			return err
		}
		worstBack = max(worstBack, time.Since(up))
	}
	b.add("opcua", "killed: bad after, worst of 5", worstBad.Seconds(), "s")
	b.atMost("opcua", "restarted: good again after, worst of 5", worstBack.Seconds(), 2, "s")
	w.reset()
	frozen := time.Now()
	freeze(server.cmd.Process)
	if err := w.await(ctx, w.bad); err != nil {
		return err
	}
	b.atMost("opcua", "frozen: bad after", time.Since(frozen).Seconds(), 4, "s")
	if err := pass(ctx, 12*time.Second-time.Since(frozen)); err != nil {
		return err
	}
	w.reset()
	thaw(server.cmd.Process)
	thawed := time.Now()
	if err := w.await(ctx, w.good); err != nil {
		return err
	}
	b.atMost("opcua", "thawed: good again after", time.Since(thawed).Seconds(), 2, "s")
	return nil
}

// uaWatch counts values, and sees the device "many" go bad and good.
type uaWatch struct {
	values, first atomic.Int64
	bad, good     chan struct{}
}

func newUAWatch() *uaWatch {
	return &uaWatch{bad: make(chan struct{}, 1), good: make(chan struct{}, 1)}
}

func (w *uaWatch) take(m *client.Message) {
	if strings.HasSuffix(m.Topic, "/status") || !strings.HasPrefix(m.Topic, "devices/many/") {
		return
	}
	// "v-1":1.001, … without parsing: a thousand values ten times a second are many.
	n := strings.Count(string(m.Payload), `"v-`)
	text := string(m.Payload)
	if i := strings.Index(text, `"bad":{`); i >= 0 {
		n -= strings.Count(text[i:], `"v-`)
		notice(w.bad)
	}
	if n > 0 {
		notice(w.good)
	}
	w.values.Add(int64(n))
	if _, rest, ok := strings.Cut(text, `"v-1":`); ok && n > 0 {
		var f float64
		if _, err := fmt.Sscanf(rest, "%g", &f); err == nil {
			w.first.Store(int64(f))
		}
	}
}

func notice(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// reset forgets what was seen.
func (w *uaWatch) reset() {
	for _, c := range []chan struct{}{w.bad, w.good} {
		select {
		case <-c:
		default:
		}
	}
}

func (w *uaWatch) await(ctx context.Context, c chan struct{}) error {
	select {
	case <-c:
		return nil
	case <-time.After(time.Minute):
		return errors.New("nothing changes")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
