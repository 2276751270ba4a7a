package conformance

import (
	"bytes"
	"cmp"
	"crypto/pbkdf2"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for what has to come.
const patience = 10 * time.Second

// fieldferry is the program that was built for the tests.
var fieldferry string

// A site is how a broker is set up. Zero leaves a limit at its default.
type site struct {
	name           string
	packetSize     int // bytes
	receiveMaximum int
	topicAliases   int
	queuedMessages int
	keepalive      int // seconds
	sessionExpiry  int // seconds
	guarded        bool
	queuedBytes    string // 4GiB if left out
	more           string // limits that only a site file knows
	shared         *broker
}

// The sites that tests share.
var (
	plain = &site{name: "plain", receiveMaximum: 1000, queuedMessages: 1_000_000}
	// limited has limits that are soon met.
	limited = &site{name: "limited", receiveMaximum: 5, topicAliases: 3, packetSize: 1000, keepalive: 30, queuedMessages: 1_000_000}
	// guarded lets in the users alice and bob, who may do what accessList says.
	guarded = &site{name: "guarded", guarded: true, sessionExpiry: 60}
	hasty   = &site{name: "hasty", more: "    connect_timeout: 300ms\n"}
)

const accessList = `
user alice
topic readwrite public/#
topic deny public/none/#
topic write inbox/#
topic read outbox/#

user bob
topic readwrite public/#
topic readwrite inbox/#
topic readwrite outbox/#

pattern readwrite users/%u/#
pattern readwrite clients/%c/#
`

// A broker is the process under test with its folder, of which only its address
// is known.
type broker struct {
	site   *site
	dir    string
	port   int
	scenes atomic.Int64 // how many tests have used it

	mu   sync.Mutex // guards what follows
	err  error      // why it could not be started
	cmd  *exec.Cmd  // nil while it does not run
	done chan struct{}
}

func newBroker(dir string, s *site) *broker { return &broker{site: s, dir: dir} }

// own starts a broker for one test.
func own(t *testing.T, s *site) *broker {
	t.Helper()
	b := newBroker(t.TempDir(), s)
	b.start(t)
	t.Cleanup(func() {
		b.kill()
		if t.Failed() {
			t.Logf("what the broker said:\n%s", b.said())
		}
	})
	return b
}

func (b *broker) addr() string { return fmt.Sprintf("127.0.0.1:%d", b.port) }

// start starts it, if it does not run, and waits until it listens. A broker that
// could not be started is not tried again.
func (b *broker) start(t testing.TB) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cmd == nil && b.err == nil {
		b.err = b.launch()
	}
	if b.err != nil {
		t.Fatal(b.err)
	}
}

func (b *broker) launch() error {
	if b.port == 0 {
		if err := os.MkdirAll(b.dir, 0o700); err != nil {
			return err
		}
		port, err := freePort()
		if err != nil {
			return err
		}
		b.port = port
	}
	configure := map[string]func() (*exec.Cmd, error){"fieldferry": b.fieldferry, "mosquitto": b.mosquitto}[*peer]
	if configure == nil {
		return fmt.Errorf("no broker %q is known here", *peer)
	}
	cmd, err := configure()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(b.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	dieWithParent(cmd)
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() { // ends with the process, which end waits for
		_ = cmd.Wait()
		close(done)
	}()
	for deadline := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		nc, err := net.Dial("tcp", b.addr())
		if err == nil {
			_ = nc.Close()
			b.cmd, b.done = cmd, done
			return nil
		}
		select {
		case <-done:
			return fmt.Errorf("the broker of the site %q does not run:\n%s", b.site.name, b.said())
		default:
		}
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			<-done
			return fmt.Errorf("the broker does not listen: %w\n%s", err, b.said())
		}
	}
}

// stop ends it in peace.
func (b *broker) stop() { b.end(syscall.SIGTERM) }

// kill ends it where it stands.
func (b *broker) kill() { b.end(syscall.SIGKILL) }

func (b *broker) end(s syscall.Signal) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cmd == nil {
		return
	}
	_ = b.cmd.Process.Signal(s)
	<-b.done
	b.cmd = nil
}

// died reports whether it has ended by itself.
func (b *broker) died() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cmd == nil {
		return false
	}
	select {
	case <-b.done:
		return true
	default:
		return false
	}
}

// said is the end of what it wrote to its log.
func (b *broker) said() []byte {
	raw, err := os.ReadFile(filepath.Join(b.dir, "log"))
	if err != nil {
		return []byte(err.Error())
	}
	return raw[max(0, len(raw)-4000):]
}

// freePort is a port below those that the kernel gives to outgoing connections,
// so that it is still free when a broker comes back to it.
func freePort() (int, error) {
	for range 100 {
		port := 20000 + rand.IntN(12000)
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			return port, ln.Close()
		}
	}
	return 0, errors.New("no port is free")
}

// fieldferry runs the broker of this module on a site file that has nothing else.
func (b *broker) fieldferry() (*exec.Cmd, error) {
	s := b.site
	var f strings.Builder
	fmt.Fprintf(&f, "gateway: {id: wire, data_dir: data, log: {level: warn}}\nbroker:\n  listeners: [{name: plain, listen: %q}]\n", b.addr())
	if s.guarded {
		f.WriteString("  allow_anonymous: false\n  password_file: passwd\n  acl_file: acl\n")
		if err := b.names(); err != nil {
			return nil, err
		}
	}
	fmt.Fprintf(&f, "  limits:\n    queued_bytes: %s\n", cmp.Or(s.queuedBytes, "4GiB"))
	for _, l := range []struct {
		key   string
		value int
		unit  string
	}{
		{"packet_size", s.packetSize, "B"}, {"receive_maximum", s.receiveMaximum, ""}, {"topic_aliases", s.topicAliases, ""},
		{"queued_messages", s.queuedMessages, ""}, {"keepalive", s.keepalive, "s"}, {"session_expiry", s.sessionExpiry, "s"},
	} {
		if l.value != 0 {
			fmt.Fprintf(&f, "    %s: %d%s\n", l.key, l.value, l.unit)
		}
	}
	f.WriteString(s.more)
	file := filepath.Join(b.dir, "site.yaml")
	return exec.Command(fieldferry, "run", file), os.WriteFile(file, []byte(f.String()), 0o600)
}

// mosquitto runs Debian's on a file that says the same, as far as it can be said.
func (b *broker) mosquitto() (*exec.Cmd, error) {
	s := b.site
	queued := 0 // no limit
	if s.guarded {
		queued = 1_000_000 // without a limit 2.0.11 cuts a client after its first PUBLISH that is denied
	}
	var f strings.Builder
	fmt.Fprintf(&f, "listener %d 127.0.0.1\npersistence true\npersistence_location %s/\nuser root\nset_tcp_nodelay true\nmax_queued_messages %d\nsys_interval 1\n", b.port, b.dir, queued)
	if s.guarded {
		fmt.Fprintf(&f, "allow_anonymous false\npassword_file %[1]s/passwd\nacl_file %[1]s/acl\n", b.dir)
		if err := b.names(); err != nil {
			return nil, err
		}
	} else {
		f.WriteString("allow_anonymous true\n")
	}
	window := s.receiveMaximum
	if s == plain {
		window = -1 // no limit: beyond it, clients of 3.1.1 are cut
	}
	for _, l := range []struct {
		key   string
		value int
	}{
		{"max_packet_size", s.packetSize}, {"max_inflight_messages", window}, {"max_topic_alias", s.topicAliases}, {"max_keepalive", s.keepalive},
	} {
		if l.value != 0 {
			fmt.Fprintf(&f, "%s %d\n", l.key, max(l.value, 0))
		}
	}
	file := filepath.Join(b.dir, "mosquitto.conf")
	return exec.Command("/usr/sbin/mosquitto", "-c", file), os.WriteFile(file, []byte(f.String()), 0o600)
}

// names writes the files of users and of what they may do. Everybody's password
// is their name backwards.
func (b *broker) names() error {
	var passwords bytes.Buffer
	for _, user := range []string{"alice", "bob"} {
		salt := fmt.Appendf(nil, "%12s", user) // as long as mosquitto_passwd makes it
		key, err := pbkdf2.Key(sha512.New, backwards(user), salt, 101, 64)
		if err != nil {
			return err
		}
		fmt.Fprintf(&passwords, "%s:$7$101$%s$%s\n", user, base64.StdEncoding.EncodeToString(salt), base64.StdEncoding.EncodeToString(key))
	}
	return errors.Join(
		os.WriteFile(filepath.Join(b.dir, "passwd"), passwords.Bytes(), 0o600),
		os.WriteFile(filepath.Join(b.dir, "acl"), []byte(accessList), 0o600))
}

func backwards(s string) string {
	b := []byte(s)
	for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
		b[i], b[j] = b[j], b[i]
	}
	return string(b)
}
