package localbroker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/buffer/rows"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// Changes in the log and rows of state.db that are not as they should be are left out,
// and a broker begins with the rest. With row, what is given is a row of a table.
func FuzzState(f *testing.F) {
	buf, err := buffer.Open(f.TempDir(), buffer.Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := buf.Close(); err != nil {
			f.Error(err)
		}
	})
	outbox, err := buf.Outbox(stateOutbox, buffer.Local)
	if err != nil {
		f.Fatal(err)
	}
	session := savedSession{client: "c", id: 7, expiry: time.Hour, left: true}
	message := savedMessage{Message: Message{Topic: "a/b", Payload: []byte("x"), Expiry: time.Hour, QoS: 1, Retain: true}, user: "u", id: 3, delay: time.Second}
	sub := subscription{filter: "$share/g/a/+", qos: 2, noLocal: true, ids: []uint32{9}}
	one := append(sessionPrefix(7), 0, 0, 0, 0, 0, 0, 0, 0, 5)
	for kind, payload := range map[byte][]byte{
		changeSession:     session.append(appendText(nil, "c")),
		changeEnd:         append(appendText(nil, "c"), 7),
		changeSubscribe:   sub.appendRecord([]byte{7}),
		changeUnsubscribe: appendText([]byte{7}, "a"),
		changeRelease:     {7, 1},
		changeReceived:    {7, 4, 9},
		changeWill:        message.append(appendText(nil, "c")),
		changeNoWill:      append(appendText(nil, "c"), 3),
	} {
		f.Add(false, changeTopic(kind), payload, []byte{})
	}
	k := mark{flags: markID | markRetain, session: 7, packetID: 1, topic: "a/b"}
	f.Add(false, k.copyTopic(), []byte("x"), []byte{})
	f.Add(false, "a/b", []byte("x"), []byte{})
	f.Add(true, tableSessions, []byte("c"), session.append(nil))
	f.Add(true, tableSubs, append(sessionPrefix(7), "a/#"...), []byte{7, 0})
	f.Add(true, tableIDs, append(sessionPrefix(7), 0, 1), []byte{4})
	f.Add(true, tableReceived, one, []byte{})
	f.Add(true, tableRetained, []byte("a/b"), message.append(nil))
	f.Add(true, tableWills, []byte("c"), message.append(nil))
	f.Fuzz(func(t *testing.T, row bool, name string, first, second []byte) {
		table := make(memory)
		s := &State{buffer: buf, table: table}
		s.log = New(Options{}).log
		err := table.Update(func(tx rows.Tx) error {
			err := tx.Put(tableSessions, []byte("c"), session.append(nil))
			if row {
				return errors.Join(err, tx.Put(name, first, second))
			}
			d := buffer.Delivery{Topic: name, Payload: first, Props: second, Outbox: outbox}
			return errors.Join(err, ignore(apply(tx, &d, buf.Stamp)))
		})
		if err != nil {
			t.Fatal(err)
		}
		if s.saved, err = s.load(); err != nil {
			t.Fatal(err)
		}
		b := New(Options{State: s})
		for _, s := range b.sessions {
			for filter, sub := range s.subscriptions {
				if sub.qos > 2 {
					t.Errorf("%q has QoS %d", filter, sub.qos)
				}
			}
		}
		for _, m := range b.retained.match("#", func() {}) {
			if m.QoS > 2 || m.Topic == "" {
				t.Errorf("%q is retained with QoS %d", m.Topic, m.QoS)
			}
		}
	})
}

// ignore is for an error that is as it should be.
func ignore(error) error { return nil }

// What names a shared subscription in a copy's topic comes apart as it was put
// together, and nothing else breaks that.
func FuzzShare(f *testing.F) {
	f.Add("$share/g/a/#", "a/b")
	f.Fuzz(func(t *testing.T, filter, name string) {
		a, b := splitShare(joinShare(filter, name))
		if !strings.Contains(filter, "\x00") && (a != filter || b != name) {
			t.Fatalf("%q and %q come back as %q and %q", filter, name, a, b)
		}
		if filter != "" {
			splitShare(filter)
		}
	})
}

// Whatever comes over a WebSocket, before or after the upgrade, ends that connection
// at most.
func FuzzWebSocket(f *testing.F) {
	request := "GET /mqtt HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
	connect := (&packet.Connect{Version: packet.V5, ClientID: "c", CleanStart: true}).Append(nil)
	frame := append([]byte{0x82, 0x80 | byte(len(connect)), 0, 0, 0, 0}, connect...)
	f.Add(true, frame)
	f.Add(true, append(frame, 0x89, 0x80, 1, 2, 3, 4, 0x02, 0x81, 0, 0, 0, 0, 0xc0, 0x80, 0x81, 0, 0, 0, 0, 0, 0x88, 0x80, 0, 0, 0, 0))
	f.Add(true, []byte{0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})
	f.Add(false, []byte(request))
	f.Add(false, []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	f.Fuzz(func(t *testing.T, upgraded bool, raw []byte) {
		b := New(Options{})
		near, far := net.Pipe()
		ln := &oneConn{conns: make(chan net.Conn, 1), end: make(chan struct{})}
		ln.conns <- near
		var work sync.WaitGroup
		work.Go(func() {
			b.serveWebSocket(context.Background(), &boundedListener{Listener: ln, b: b}, Listener{WebSocket: "/mqtt", AllowAnonymous: true})
		})
		work.Go(func() { _, _ = io.Copy(io.Discard, far) })
		if upgraded {
			_, _ = io.WriteString(far, request)
		}
		_, _ = far.Write(raw)
		_ = far.Close()
		_ = ln.Close()
		work.Wait()
		b.connections.Wait()
		if b.Stats().Panics > 0 {
			t.Fatal("a panic")
		}
	})
}

// oneConn is a listener that has had all its connections when it is made.
type oneConn struct {
	conns chan net.Conn
	once  sync.Once
	end   chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.end:
		return nil, net.ErrClosed
	}
}
func (l *oneConn) Close() error { l.once.Do(func() { close(l.end) }); return nil }
func (*oneConn) Addr() net.Addr { return wsAddr("") }

// memory is a rows.Store that forgets.
type memory map[string]map[string][]byte

func (m memory) Update(fn func(rows.Tx) error) error { return fn(m) }
func (m memory) View(fn func(rows.Tx) error) error   { return fn(m) }
func (memory) Close() error                          { return nil }
func (memory) DiskBytes() int64                      { return 0 }

func (m memory) Get(bucket string, key []byte) []byte { return m[bucket][string(key)] }

func (m memory) Put(bucket string, key, value []byte) error {
	if m[bucket] == nil {
		m[bucket] = make(map[string][]byte)
	}
	m[bucket][string(key)] = bytes.Clone(value)
	return nil
}

func (m memory) Delete(bucket string, key []byte) error {
	delete(m[bucket], string(key))
	return nil
}

func (m memory) Rows(bucket string, prefix []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		for _, k := range slices.Sorted(maps.Keys(m[bucket])) {
			if strings.HasPrefix(k, string(prefix)) && !yield([]byte(k), m[bucket][k]) {
				return
			}
		}
	}
}
