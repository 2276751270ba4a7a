//go:build interop

package opcua

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

func init() {
	removeShared = func() { os.RemoveAll(filepath.Join(os.TempDir(), fmt.Sprintf("fieldferry-pki-%d", os.Getpid()))) }
}

// A nodeServer is an OPC UA server on node-opcua, in a process of its own.
type nodeServer struct {
	t       *testing.T
	options map[string]any
	cmd     *exec.Cmd
	in      io.WriteCloser
	lines   chan string
}

// startNode starts a server. Its certificate is kept in the folder pki, which all
// share that name none: to make one takes seconds.
func startNode(t *testing.T, options map[string]any) *nodeServer {
	t.Helper()
	s := &nodeServer{t: t, options: map[string]any{"port": freePort(t)}}
	for k, v := range options {
		s.options[k] = v
	}
	if s.options["pki"] == nil {
		s.options["pki"] = filepath.Join(os.TempDir(), fmt.Sprintf("fieldferry-pki-%d", os.Getpid()))
	}
	s.start()
	t.Cleanup(s.kill)
	return s
}

func (s *nodeServer) start() {
	s.t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		s.t.Fatal(err)
	}
	modules := filepath.Join(cache, "fieldferry", "opcua-peers", "node_modules")
	if _, err := os.Stat(filepath.Join(modules, "node-opcua")); err != nil {
		s.t.Fatalf("%v: .ci/peers installs it", err)
	}
	b, err := json.Marshal(s.options)
	if err != nil {
		s.t.Fatal(err)
	}
	s.cmd = exec.Command("node", "testdata/nodeopcua_server.js", string(b))
	s.cmd.Env = append(os.Environ(), "NODE_PATH="+modules)
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		s.t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	errs := &strings.Builder{}
	s.cmd.Stderr = errs
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	lines := make(chan string, 100)
	s.lines = lines
	go func() { // ends with the process
		defer close(lines)
		for r := bufio.NewScanner(out); r.Scan(); {
			lines <- r.Text()
		}
	}()
	s.line("ready")
}

// line returns the next line that begins so.
func (s *nodeServer) line(begin string) string {
	s.t.Helper()
	deadline := time.After(60 * time.Second)
	for {
		select {
		case l, ok := <-s.lines:
			if !ok {
				s.t.Fatalf("the server ended: %v", s.cmd.Stderr)
			}
			if strings.HasPrefix(l, begin) {
				return l
			}
		case <-deadline:
			s.t.Fatalf("the server does not say %q", begin)
		}
	}
}

func (s *nodeServer) ask(question, begin string) string {
	s.t.Helper()
	if _, err := fmt.Fprintln(s.in, question); err != nil {
		s.t.Fatal(err)
	}
	return s.line(begin)
}

func (s *nodeServer) kill() {
	if s.cmd != nil {
		s.cmd.Process.Signal(syscall.SIGCONT)
		s.cmd.Process.Kill()
		s.cmd.Wait()
		s.in.Close()
		for range s.lines { // its reader ends
		}
		s.cmd = nil
	}
}

func (s *nodeServer) endpoint() string {
	return fmt.Sprintf("opc.tcp://127.0.0.1:%v", s.options["port"])
}

// secured is a configuration with security that trusts the server.
func (s *nodeServer) secured(dir string) Config {
	s.t.Helper()
	c := Config{
		Name: "test", Gateway: "gw-test", Endpoint: s.endpoint(), Policy: "Basic256Sha256", Mode: "SignAndEncrypt",
		Cert: filepath.Join(dir, "own.crt"), Key: filepath.Join(dir, "own.key"), Trust: Trust{Folder: filepath.Join(dir, "trusted")},
	}
	s.trust(c.Trust)
	return c
}

func (s *nodeServer) trust(in Trust) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cert, _, err := ServerCertificate(ctx, s.endpoint())
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := in.Accept(cert.Raw, false); err != nil {
		s.t.Fatal(err)
	}
}

func pressDevice(points ...Point) Device {
	return Device{Device: &adapters.Device{Name: "press"}, Every: 100 * time.Millisecond, Sampling: 50 * time.Millisecond, Points: points}
}

func pressPoint(name string) Point {
	return Point{Point: &adapters.Point{Name: strings.ToLower(name)}, Node: "nsu=urn:acme:press;s=Press." + name}
}

// makeCertificate makes a certificate of an application and its key, as files.
func makeCertificate(t *testing.T, dir, uri string, hosts []string, from, to time.Time) (cert, key string) {
	t.Helper()
	return makeLongCertificate(t, 2048, dir, uri, hosts, from, to)
}

func makeLongCertificate(t *testing.T, bits int, dir, uri string, hosts []string, from, to time.Time) (cert, key string) {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"}, NotBefore: from, NotAfter: to, URIs: []*url.URL{u},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment | x509.KeyUsageKeyEncipherment | x509.KeyUsageDataEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := errors.Join(
		os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644),
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)}), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func TestInteropSecurity(t *testing.T) {
	s := startNode(t, nil)
	dir := t.TempDir()
	base := s.secured(dir)
	base.Devices = []Device{pressDevice(pressPoint("Double"))}
	userCert, userKey := makeCertificate(t, filepath.Join(dir, "user"), "urn:test:user", nil, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	users := map[string]*User{
		"anonymous":   nil,
		"password":    {Name: "gateway", Password: func() (string, error) { return "secret", nil }},
		"certificate": {Cert: userCert, Key: userKey},
	}
	for _, policy := range []string{"Basic256Sha256", "Aes128_Sha256_RsaOaep", "Aes256_Sha256_RsaPss"} {
		for _, mode := range []string{"Sign", "SignAndEncrypt"} {
			for name, user := range users {
				t.Run(policy+"/"+mode+"/"+name, func(t *testing.T) {
					c := base
					c.Policy, c.Mode, c.User = policy, mode, user
					reads(t, c)
				})
			}
		}
	}
	t.Run("None", func(t *testing.T) {
		c := base
		c.Policy, c.Mode = "None", "None"
		reads(t, c)
	})
	refuse := func(name, want string, change func(*testing.T, *Config)) {
		t.Run(name, func(t *testing.T) {
			c := base
			change(t, &c)
			client, err := Dial(context.Background(), c)
			if err == nil {
				client.Close()
				t.Fatal("it connects")
			}
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v; want %q in it", err, want)
			}
		})
	}
	refuse("wrong password", `check the name "gateway" and its password`, func(_ *testing.T, c *Config) {
		c.User = &User{Name: "gateway", Password: func() (string, error) { return "wrong", nil }}
	})
	refuse("untrusted", "is not trusted: see that it is the server's own, then trust it with `fieldferry opcua trust`", func(t *testing.T, c *Config) {
		c.Trust = Trust{Folder: t.TempDir()}
		t.Cleanup(func() {
			if all, err := c.Trust.Rejected(); err != nil || len(all) != 1 {
				t.Errorf("%d certificates were kept: %v", len(all), err)
			}
		})
	})
	refuse("wrong host", "and not of localhost: write one of these hosts in opcua:", func(_ *testing.T, c *Config) {
		c.Endpoint = strings.Replace(c.Endpoint, "127.0.0.1", "localhost", 1)
	})
	refuse("password without encryption", "a password is sent encrypted only", func(_ *testing.T, c *Config) {
		c.Policy, c.Mode, c.User = "None", "None", users["password"]
	})
	t.Run("expired", func(t *testing.T) {
		cert, key := makeCertificate(t, filepath.Join(dir, "expired"), "urn:test:expired", []string{"127.0.0.1"}, time.Now().Add(-48*time.Hour), time.Now().Add(-24*time.Hour))
		old := startNode(t, map[string]any{"cert": cert, "key": key, "uri": "urn:test:expired"})
		c := old.secured(t.TempDir())
		_, err := Dial(context.Background(), c)
		if err == nil || !strings.Contains(err.Error(), "has expired on") || !strings.Contains(err.Error(), "have the server make a new one") {
			t.Errorf("%v; want it to have expired", err)
		}
	})
	t.Run("swapped", func(t *testing.T) {
		other := startNode(t, map[string]any{"pki": filepath.Join(t.TempDir(), "pki")})
		c := other.secured(t.TempDir())
		c.Endpoint = s.endpoint() // another server at the address
		_, err := Dial(context.Background(), c)
		if err == nil || !strings.Contains(err.Error(), "is not trusted") {
			t.Errorf("%v; want it not to be trusted", err)
		}
	})
}

// reads connects and reads a value.
func reads(t *testing.T, c Config) {
	t.Helper()
	client, err := Dial(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	samples, err := client.Read(context.Background(), "press", nil)
	if err != nil {
		t.Fatal(err)
	}
	if f, _ := samples[0].Value.Float64(); f != 3.25 {
		t.Errorf("%v, want 3.25", samples[0].Value)
	}
}

func TestInteropValues(t *testing.T) {
	s := startNode(t, nil)
	c := s.secured(t.TempDir())
	want := map[string]string{
		"Boolean": "true", "SByte": "-7", "Byte": "200", "Int16": "-1234", "UInt16": "54321", "Int32": "-123456789", "UInt32": "3123456789",
		"Int64": "9223372036854775807", "UInt64": "18446744073709551615", "Float": "1.5", "Double": "3.25", "NaN": "bad not-a-number", "String": "grüße",
		"DateTime": "2026-03-01T12:00:00Z", "Guid": "72962B91-FA75-4AE6-8D28-B404DC7DAF63", "ByteString": "AQID", "LocalizedText": "offen",
		"Array": "[1 2 3]", "Matrix": "[[1 2] [3 4]]", "Range": `{"Low":0,"High":100}`, "Uncertain": "5 uncertain UncertainLastUsableValue",
		"Bad": "bad BadSensorFailure", "Nothing": "bad BadNodeIdUnknown",
	}
	d := pressDevice()
	for name := range want {
		d.Points = append(d.Points, pressPoint(name))
	}
	show := func(smp adapters.Sample) string {
		switch smp.Quality {
		case adapters.Good:
			return smp.Value.String()
		case adapters.Uncertain:
			return smp.Value.String() + " uncertain " + smp.Reason
		}
		return "bad " + smp.Reason
	}
	for _, poll := range []bool{false, true} {
		t.Run(fmt.Sprintf("poll=%v", poll), func(t *testing.T) {
			c := c
			c.Poll, c.Devices = poll, []Device{d}
			_, tape, stop := run(t, c)
			got := map[string]string{}
			for from := 0; len(got) < len(want); {
				var e event
				e, from = tape.await(t, from, "values", func(e event) bool { return !e.status })
				for name := range want {
					if smp, ok := e.values[strings.ToLower(name)]; ok && smp.Reason != adapters.ReasonNotConnected {
						got[name] = show(smp)
					}
				}
			}
			for name, w := range want {
				if got[name] != w {
					t.Errorf("%s: %s, want %s", name, got[name], w)
				}
			}
			stop()
		})
	}
}

func TestInteropWrites(t *testing.T) {
	s := startNode(t, nil)
	c := s.secured(t.TempDir())
	d := pressDevice(pressPoint("Setpoint"), pressPoint("Int16"), pressPoint("String"), pressPoint("Boolean"), pressPoint("ReadOnly"), pressPoint("Array"), pressPoint("DateTime"), pressPoint("Int64"),
		Point{Point: &adapters.Point{Name: "add"}, Call: "nsu=urn:acme:press;s=Press.Add", Object: "nsu=urn:acme:press;s=Press"},
		Point{Point: &adapters.Point{Name: "reset"}, Call: "nsu=urn:acme:press;s=Press.Reset", Object: "nsu=urn:acme:press;s=Press"})
	for i := range d.Points {
		if d.Points[i].Call == "" {
			d.Points[i].Write = &Write{}
		}
	}
	d.Points[1].Scale = 0.1
	d.Points[3].Write.Pulse = 300 * time.Millisecond
	c.Devices = []Device{d}
	l, tape, _ := run(t, c)
	tape.await(t, 0, "a value", isGood("setpoint"))
	ctx := context.Background()
	list := func(all ...adapters.Value) adapters.Value { return adapters.List(all) }
	for _, w := range []struct {
		point string
		value adapters.Value
		want  string // that is read back, or of the error
	}{
		{"setpoint", adapters.Float64(22.5), "22.5"},
		{"setpoint", adapters.Int(23), "23"},
		{"int16", adapters.Float64(12.3), "12.3"},
		{"int16", adapters.Float64(1e9), "does not fit into a Int16"},
		{"int16", adapters.Float64(1.23), "between two steps"},
		{"string", adapters.String("neu"), "neu"},
		{"datetime", adapters.String("2027-01-02T03:04:05Z"), "2027-01-02T03:04:05Z"},
		{"int64", adapters.Int64(-5), "-5"},
		{"array", list(adapters.Int(7), adapters.Int(8)), "[7 8]"},
		{"array", adapters.Int(7), "takes a list of Int32"},
		{"readonly", adapters.Float64(1), "BadNotWritable"},
		{"setpoint", adapters.String("x"), "takes a Double"},
		{"add", list(adapters.Float64(2), adapters.Float64(40)), "42"},
		{"add", adapters.Float64(2), "2 arguments"},
		{"reset", adapters.Bool(true), "true"},
		{"reset", adapters.Float64(2), "without arguments"},
	} {
		samples, err := l.Write(ctx, "press", []adapters.Assignment{{Point: w.point, Value: w.value}})
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			got = samples[0].Value.String()
		}
		if got != w.want && (err == nil || !strings.Contains(got, w.want)) {
			t.Errorf("%s := %s: %s, want %s", w.point, w.value, got, w.want)
		}
	}
	// A pulse: off after a while.
	_, at := tape.await(t, 0, "on", isGood("boolean"))
	if _, err := l.Write(ctx, "press", []adapters.Assignment{{Point: "boolean", Value: adapters.Bool(true)}}); err != nil {
		t.Fatal(err)
	}
	tape.await(t, at, "off", func(e event) bool { smp, ok := e.values["boolean"]; return ok && !smp.Value.Bool() })
}

func TestInteropFaults(t *testing.T) {
	s := startNode(t, nil)
	gate := newGate(t, fmt.Sprintf("127.0.0.1:%v", s.options["port"]))
	gate.open()
	defer gate.shut()
	dir := t.TempDir()
	c := s.secured(dir)
	c.Endpoint = gate.url()
	c.Devices = []Device{pressDevice(pressPoint("Counter"), pressPoint("Vanishing"))}
	_, tape, stop := run(t, c)
	_, at := tape.await(t, 0, "a value", isGood("counter"))
	_, at = tape.await(t, at-1, "a value", isGood("counter"))
	measure := func(name string, fault func(), mend func()) {
		t.Helper()
		tape.mu.Lock()
		from := len(tape.events)
		tape.mu.Unlock()
		began := time.Now()
		fault()
		bad, next := tape.await(t, from, name+": bad", isBadPoint("counter"))
		mend()
		mended := time.Now()
		good, next := tape.await(t, next, name+": good", isGood("counter"))
		t.Logf("%s: bad after %v, good %v after it was back", name, bad.at.Sub(began).Round(time.Millisecond), max(0, good.at.Sub(mended)).Round(time.Millisecond))
		at = next
	}
	for i := range 10 {
		measure(fmt.Sprintf("killed and restarted, %d", i+1), func() { s.kill() }, func() { s.start() })
	}
	measure("frozen", func() { s.cmd.Process.Signal(syscall.SIGSTOP) }, func() {
		time.Sleep(9 * time.Second) // the fault, not the test, takes so long
		s.cmd.Process.Signal(syscall.SIGCONT)
	})
	measure("cut for 0.7 s", func() { gate.shut() }, func() {
		time.Sleep(700 * time.Millisecond) // so does this one
		gate.open()
	})
	// A point that vanishes and comes back does not harm the other.
	s.ask("vanish", "vanished")
	_, at = tape.await(t, at, "the point that vanished to be bad", isBadPoint("vanishing"))
	_, at = tape.await(t, at, "the other one to be good", isGood("counter"))
	s.ask("appear", "appeared")
	_, at = tape.await(t, at, "the point to be back", isGood("vanishing"))
	// One that is gone over a restart.
	s.options["gone"] = true
	measure("restarted without a point", func() { s.kill() }, func() { s.start() })
	s.ask("appear", "appeared")
	_, at = tape.await(t, at-1, "the point to be back", isGood("vanishing"))
	// A new certificate, which is put into the folder of those to trust.
	s.options["pki"] = filepath.Join(t.TempDir(), "pki")
	measure("restarted with a new certificate", func() { s.kill() }, func() { s.start(); s.trust(c.Trust) })
	if got := s.ask("sessions", "sessions"); got != "sessions 1 1" {
		t.Errorf("%s, want one session and one subscription", got)
	}
	stop()
	if got := s.ask("sessions", "sessions"); got != "sessions 0 0" {
		t.Errorf("%s at the end, want none", got)
	}
}

// TestInteropManySessions cuts the connection again and again: the server is left with
// one session all the same.
func TestInteropManySessions(t *testing.T) {
	s := startNode(t, nil)
	gate := newGate(t, fmt.Sprintf("127.0.0.1:%v", s.options["port"]))
	gate.open()
	defer gate.shut()
	c := s.secured(t.TempDir())
	c.Endpoint = gate.url()
	c.Devices = []Device{pressDevice(pressPoint("Counter"))}
	l, tape, _ := run(t, c)
	_, at := tape.await(t, 0, "a value", isGood("counter"))
	for range 10 {
		gate.cut()
		_, at = tape.await(t, at, "bad", isBadPoint("counter"))
		_, at = tape.await(t, at, "good", isGood("counter"))
	}
	if got := s.ask("sessions", "sessions"); got != "sessions 1 1" {
		t.Errorf("%s after %d connections, want one session and one subscription", got, l.Stats().Connects)
	}
}

func TestInteropBrowse(t *testing.T) {
	s := startNode(t, map[string]any{"tree": 5000})
	c := s.secured(t.TempDir())
	client, err := Dial(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	began := time.Now()
	nodes, err := client.Browse(context.Background(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d nodes in %v", len(nodes), time.Since(began).Round(time.Millisecond))
	if len(nodes) < 5000 {
		t.Errorf("%d nodes, want all 5000 and more", len(nodes))
	}
	types := map[string]int{}
	for _, n := range nodes {
		types[n.Type]++
	}
	if types["Double"] < 4900 {
		t.Errorf("types %v", types)
	}
}

// TestInteropSampling gets every value of a counter, several with each message of the
// server, in order.
func TestInteropSampling(t *testing.T) {
	s := startNode(t, nil)
	c := s.secured(t.TempDir())
	d := pressDevice(pressPoint("Counter"))
	d.Every, d.Sampling = time.Second, 20*time.Millisecond
	c.Devices = []Device{d}
	_, tape, _ := run(t, c)
	var once sync.Once
	last, missing := 0.0, 0
	var before time.Time
	for from, n := 0, 0; n < 60; n++ {
		var e event
		e, from = tape.await(t, from, "a value", isGood("counter"))
		v, _ := e.values["counter"].Value.Float64()
		once.Do(func() { last, before = v-1, e.time })
		if v <= last || e.time.Before(before) {
			t.Fatalf("%v at %v came behind %v at %v", v, e.time, last, before)
		}
		missing += int(v-last) - 1
		last, before = v, e.time
	}
	t.Logf("60 values in order, %d skipped by the server", missing)
}

// TestInteropLongKeys has keys of more than 2048 bits, whose padding is another, and
// messages of many chunks both ways.
func TestInteropLongKeys(t *testing.T) {
	dir := t.TempDir()
	from, to := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	cert, key := makeLongCertificate(t, 4096, filepath.Join(dir, "server"), "urn:test:long", []string{"127.0.0.1"}, from, to)
	s := startNode(t, map[string]any{"cert": cert, "key": key, "uri": "urn:test:long"})
	c := s.secured(dir)
	c.Devices = []Device{pressDevice(pressPoint("String"))}
	c.Devices[0].Points[0].Write = &Write{}
	c.User = &User{Name: "gateway", Password: func() (string, error) { return "secret", nil }}
	for _, bits := range []int{2048, 3072} {
		c.Cert, c.Key = makeLongCertificate(t, bits, filepath.Join(dir, fmt.Sprint(bits)), ApplicationURI("gw-test"), nil, from, to)
		for _, policy := range []string{"Basic256Sha256", "Aes128_Sha256_RsaOaep", "Aes256_Sha256_RsaPss"} {
			for _, mode := range []string{"Sign", "SignAndEncrypt"} {
				t.Run(fmt.Sprintf("%d/%s/%s", bits, policy, mode), func(t *testing.T) {
					c := c
					c.Policy, c.Mode = policy, mode
					client, err := Dial(context.Background(), c)
					if err != nil {
						t.Fatal(err)
					}
					defer client.Close()
					for _, n := range []int{1, 17, 60_000, 300_000} {
						text := strings.Repeat("x", n)
						samples, err := client.Write(context.Background(), "press", []adapters.Assignment{{Point: "string", Value: adapters.String(text)}})
						if err != nil {
							t.Fatal(err)
						}
						if samples[0].Value.Text() != text {
							t.Fatalf("a text of %d bytes comes back as one of %d", n, len(samples[0].Value.Text()))
						}
					}
				})
			}
		}
	}
}

// TestInteropRenewal has keys that last for two seconds: values go on while they are
// changed.
func TestInteropRenewal(t *testing.T) {
	s := startNode(t, nil)
	for _, mode := range []string{"Sign", "SignAndEncrypt", "None"} {
		t.Run(mode, func(t *testing.T) {
			c := s.secured(t.TempDir())
			c.life = 2 * time.Second
			c.Devices = []Device{pressDevice(pressPoint("Counter"))}
			if c.Mode = mode; mode == "None" {
				c.Policy = "None"
			}
			l, tape, _ := run(t, c)
			_, at := tape.await(t, 0, "a value", isGood("counter"))
			session, err := l.open()
			if err != nil {
				t.Fatal(err)
			}
			token := func() uint32 {
				session.ch.mu.Lock()
				defer session.ch.mu.Unlock()
				return session.ch.current.token
			}
			seen := map[uint32]bool{token(): true}
			for len(seen) < 4 {
				_, at = tape.await(t, at, "a value", isGood("counter"))
				seen[token()] = true
			}
			if n := l.Stats().Connects; n != 1 {
				t.Errorf("%d connections", n)
			}
		})
	}
}
