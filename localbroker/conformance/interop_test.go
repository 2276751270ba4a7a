//go:build interop

package conformance

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// note is a message as other clients know it.
type note struct {
	Topic       string   `json:"topic"`
	Payload     string   `json:"payload"`
	QoS         byte     `json:"qos"`
	Retain      bool     `json:"retain"`
	ContentType string   `json:"content_type,omitempty"` // MQTT 5, and with it the user properties a=1 and a=2
	User        []string `json:"user,omitempty"`
}

// A library is a client that others have written.
type library interface {
	// connect connects as id, with a session that is kept or a fresh one, and
	// reports whether there was one.
	connect(id string, keep bool, will *note) (present bool, err error)
	subscribe(filter string, qos byte) error
	publish(n note) error // returns when it is acknowledged
	next() (note, error)  // waits for the next message
	disconnect() error
	drop() error // ends the connection without a word
}

// libraries are those that are tested, each with its versions.
var libraries = []struct {
	name     string
	versions []packet.Version
	open     func(t *testing.T, b *broker, v packet.Version) library
}{
	{"paho python", []packet.Version{packet.V311, packet.V5}, func(t *testing.T, b *broker, v packet.Version) library {
		return command(t, b, v, exec.Command("/usr/bin/python3", "testdata/paho_peer.py"))
	}},
	{"mqtt.js", []packet.Version{packet.V311, packet.V5}, func(t *testing.T, b *broker, v packet.Version) library {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("node", "testdata/mqttjs_peer.js")
		cmd.Env = append(os.Environ(), "NODE_PATH="+filepath.Join(cache, "fieldferry", "peers", "node_modules")) // where .ci/peers installs it
		return command(t, b, v, cmd)
	}},
	{"paho.golang", []packet.Version{packet.V5}, func(_ *testing.T, b *broker, _ packet.Version) library { return &pahoFive{addr: b.addr()} }},
	{"paho.mqtt.golang", []packet.Version{packet.V311}, func(_ *testing.T, b *broker, _ packet.Version) library { return &pahoOld{addr: b.addr()} }},
}

// TestInteropLibraries lets each client do what clients do.
func TestInteropLibraries(t *testing.T) {
	for _, l := range libraries {
		for _, v := range l.versions {
			t.Run(l.name+"/"+v.String(), func(t *testing.T) {
				t.Parallel()
				s := stage(t, v, plain.shared)
				i := interop{s, func() library { return l.open(t, s.b, v) }}
				i.messages()
				i.retained()
				i.will()
				i.session()
			})
		}
	}
}

type interop struct {
	*scene
	open func() library
}

func (i *interop) must(err error) {
	i.Helper()
	if err != nil {
		i.Fatal(err)
	}
}

func (i *interop) client(id string, keep bool, will *note) (library, bool) {
	i.Helper()
	l := i.open()
	present, err := l.connect(i.prefix+id, keep, will)
	i.must(err)
	return l, present
}

func (i *interop) want(l library, want note) {
	i.Helper()
	got, err := l.next()
	i.must(err)
	if got.Topic != want.Topic || got.Payload != want.Payload || got.QoS != want.QoS || got.Retain != want.Retain || got.ContentType != want.ContentType || !slices.Equal(got.User, want.User) {
		i.Errorf("got %+v, want %+v", got, want)
	}
}

// messages goes through every QoS of publisher and subscriber.
func (i *interop) messages() {
	i.Helper()
	pub, _ := i.client("pub", false, nil)
	for granted := range byte(3) {
		sub, _ := i.client("sub", false, nil)
		i.must(sub.subscribe(i.topic("m/+"), granted))
		for qos := range byte(3) {
			for k := range 4 {
				n := note{Topic: i.topic(fmt.Sprint("m/", qos)), Payload: fmt.Sprintf("%d ü", k), QoS: qos}
				if i.five() {
					n.ContentType = "text/plain"
				}
				i.must(pub.publish(n))
				if n.QoS = min(qos, granted); i.five() {
					n.User = []string{"a=1", "a=2"}
				}
				i.want(sub, n)
			}
		}
		i.must(sub.disconnect())
	}
	i.must(pub.disconnect())
}

func (i *interop) retained() {
	i.Helper()
	pub, _ := i.client("pub", false, nil)
	n := note{Topic: i.topic("r"), Payload: "kept", QoS: 1, Retain: true}
	i.must(pub.publish(n))
	sub, _ := i.client("sub", false, nil)
	i.must(sub.subscribe(n.Topic, 2))
	i.want(sub, n)
	i.must(pub.publish(note{Topic: n.Topic, QoS: 1, Retain: true}))
	i.want(sub, note{Topic: n.Topic, QoS: 1})
	i.must(sub.disconnect())
	sub, _ = i.client("sub", false, nil)
	i.must(sub.subscribe(n.Topic, 2))
	i.must(pub.publish(note{Topic: n.Topic, Payload: "live", QoS: 2}))
	i.want(sub, note{Topic: n.Topic, Payload: "live", QoS: 2})
	i.must(sub.disconnect())
	i.must(pub.disconnect())
}

func (i *interop) will() {
	i.Helper()
	sub, _ := i.client("sub", false, nil)
	i.must(sub.subscribe(i.topic("w"), 1))
	w := note{Topic: i.topic("w"), Payload: "gone", QoS: 1}
	cut, _ := i.client("cut", false, &w)
	i.must(cut.drop())
	i.want(sub, w)
	polite, _ := i.client("polite", false, &w)
	i.must(polite.publish(note{Topic: w.Topic, Payload: "bye", QoS: 1}))
	i.must(polite.disconnect())
	i.want(sub, note{Topic: w.Topic, Payload: "bye", QoS: 1})
	i.must(sub.disconnect())
}

// session lets messages come while their subscriber is away.
func (i *interop) session() {
	i.Helper()
	sub, present := i.client("kept", true, nil)
	if present {
		i.Error("there is a session before there was a client")
	}
	i.must(sub.subscribe(i.topic("s/#"), 2))
	i.must(sub.disconnect())
	pub, _ := i.client("pub", false, nil)
	for k := range 20 {
		i.must(pub.publish(note{Topic: i.topic("s/x"), Payload: strconv.Itoa(k / 2), QoS: byte(1 + k%2)}))
	}
	i.must(pub.disconnect())
	sub, present = i.client("kept", true, nil)
	if !present {
		i.Error("the session is gone")
	}
	var next [3]int // some clients hand a message of QoS 2 on when it is released, which is later
	for range 20 {
		n, err := sub.next()
		i.must(err)
		if n.Topic != i.topic("s/x") || n.Payload != strconv.Itoa(next[n.QoS]) {
			i.Errorf("got %+v, want number %d", n, next[n.QoS])
		}
		next[n.QoS]++
	}
	i.must(sub.disconnect())
	last, present := i.client("kept", false, nil) // a fresh one ends it
	if present {
		i.Error("a fresh session is an old one")
	}
	i.must(last.disconnect())
}

// told is a client in a process of its own that is told what to do.
type told struct {
	in  io.Writer
	out *bufio.Scanner
}

// command starts cmd with the port and the version as its last arguments.
func command(t *testing.T, b *broker, v packet.Version, cmd *exec.Cmd) library {
	t.Helper()
	cmd.Args = append(cmd.Args, strconv.Itoa(b.port), v.String())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	dieWithParent(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close() // which ends it
		_ = cmd.Wait()
	})
	return &told{in: in, out: bufio.NewScanner(out)}
}

func (c *told) do(order map[string]any, answer any) error {
	raw, err := json.Marshal(order)
	if err != nil {
		return err
	}
	if _, err := c.in.Write(append(raw, '\n')); err != nil {
		return err
	}
	if !c.out.Scan() {
		return fmt.Errorf("%v: no answer: %w", order["do"], errors.Join(c.out.Err(), io.ErrUnexpectedEOF))
	}
	var failed struct{ Error string }
	if err := json.Unmarshal(c.out.Bytes(), &failed); err != nil {
		return err
	}
	if failed.Error != "" {
		return fmt.Errorf("%v: %s", order["do"], failed.Error)
	}
	return json.Unmarshal(c.out.Bytes(), answer)
}

func (c *told) connect(id string, keep bool, will *note) (bool, error) {
	order := map[string]any{"do": "connect", "id": id, "keep": keep}
	if will != nil {
		order["will"] = will
	}
	var answer struct{ Present bool }
	err := c.do(order, &answer)
	return answer.Present, err
}

func (c *told) subscribe(filter string, qos byte) error {
	var answer struct{ Reason byte }
	err := c.do(map[string]any{"do": "subscribe", "topic": filter, "qos": qos}, &answer)
	if err == nil && answer.Reason != qos {
		err = fmt.Errorf("subscription to %s: %d", filter, answer.Reason)
	}
	return err
}

func (c *told) publish(n note) error {
	return c.do(map[string]any{"do": "publish", "topic": n.Topic, "payload": n.Payload, "qos": n.QoS, "retain": n.Retain, "content_type": n.ContentType}, &struct{}{})
}

func (c *told) next() (n note, err error) {
	err = c.do(map[string]any{"do": "next"}, &n)
	return n, err
}

func (c *told) disconnect() error { return c.do(map[string]any{"do": "disconnect"}, &struct{}{}) }

func (c *told) drop() error { return c.do(map[string]any{"do": "drop"}, &struct{}{}) }

// TestInteropMosquittoClients lets the commands of Debian's mosquitto-clients
// talk over the broker, with every QoS, a will, and a session that waits.
func TestInteropMosquittoClients(t *testing.T) {
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			s := stage(t, v, plain.shared)
			version := map[packet.Version]string{packet.V311: "mqttv311", packet.V5: "mqttv5"}[v]
			run := func(name string, args ...string) string {
				t.Helper()
				out, err := exec.Command("/usr/bin/"+name, append([]string{"-p", strconv.Itoa(s.b.port), "-V", version}, args...)...).CombinedOutput()
				if err != nil {
					t.Fatalf("%s %v: %v\n%s", name, args, err, out)
				}
				return string(out)
			}
			kept := []string{"-c", "-i", s.prefix + "kept", "-q", "2", "-t", s.topic("#"), "-F", "%t %q %r %p"}
			if v == packet.V5 {
				kept = append(kept, "-x", "3600")
			}
			run("mosquitto_sub", append(kept, "-E")...) // subscribes and leaves
			var want strings.Builder
			for qos := 1; qos <= 2; qos++ {
				for k := range 20 {
					run("mosquitto_pub", "-q", strconv.Itoa(qos), "-t", s.topic("t"), "-m", strconv.Itoa(k))
					fmt.Fprintf(&want, "%s %d 0 %d\n", s.topic("t"), qos, k)
				}
			}
			if got := run("mosquitto_sub", append(kept, "-C", "40", "-W", "20")...); got != want.String() {
				t.Errorf("got\n%s\nwant\n%s", got, want.String())
			}
			run("mosquitto_pub", "-q", "2", "-t", s.topic("r"), "-m", "retained", "-r")
			if got := run("mosquitto_sub", "-q", "2", "-t", s.topic("r"), "-C", "1", "-W", "20", "-F", "%q %r %p"); got != "2 1 retained\n" {
				t.Errorf("got %q", got)
			}
		})
	}
}
