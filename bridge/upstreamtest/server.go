// Package upstreamtest is an MQTT 5 broker for tests that is as unkind as its
// script says: it refuses, delays, drops, freezes, cuts at any byte, forgets
// sessions and takes them over. It keeps a truthful record of what it was sent,
// and of everything in it that the standard or its own announced limits forbid.
//
// It speaks over net.Pipe, so that it can be used inside testing/synctest, or over
// TCP. It has no subscribers and does not route: Delivered is what a subscriber
// would have got.
package upstreamtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// Script is how one connection goes. The zero value is a kind broker.
type Script struct {
	Unreachable bool                 // the dial fails
	Mute        bool                 // CONNECT is not answered
	Code        byte                 // of the CONNACK; 0x80 and above refuse the connection
	Limits      packets.Properties   // of the CONNACK; the server checks that they are kept
	LoseSession bool                 // the session is gone
	Publish     func(Publish) Answer // what to do with each PUBLISH, it may sleep; nil acknowledges it
	Pubrel      func(uint16) Answer  // likewise with each PUBREL; a code is that of the PUBCOMP, and Hold takes it for good without one
	AtRelease   bool                 // QoS 2 messages are delivered at PUBREL, not at PUBLISH
	InUse       bool                 // a repeated QoS 2 PUBLISH gets PUBREC with 0x91
	Repeat      bool                 // each PUBREC is sent twice
	Lenient     bool                 // PUBCOMP has code 0 also for an id that is not known
	Disconnect  byte                 // if not 0, DISCONNECT with this code right after the CONNACK
	Server      string               // Server Reference of that DISCONNECT, and of a CONNACK that refuses
	CutReceived int                  // if not 0, the connection is cut after so many bytes from the client
	CutSent     int                  // if not 0, likewise for bytes to the client
}

// Answer is what the server does about a PUBLISH.
type Answer struct {
	Do   Action
	Code byte // reason code of the PUBACK, PUBREC, PUBCOMP or DISCONNECT
}

// Action is a way to answer a PUBLISH.
type Action byte

// The actions. All but the first four are for the connection as a whole.
const (
	Ack        Action = iota // PUBACK or PUBREC with the code
	Hold                     // the same, when Release is called
	Ignore                   // none
	Inject                   // as Ack, after messages nobody asked for and answers to nothing
	Cut                      // close without a word
	Disconnect               // DISCONNECT with the code
	Freeze                   // read and write no more, leave the connection open
	Swallow                  // read on, write no more
)

// Publish is a PUBLISH that the server got completely.
type Publish struct {
	Conn    int // which connection, from 0
	At      time.Time
	Topic   string
	Payload string
	QoS     byte
	Dup     bool
	Retain  bool
	ID      uint16
	Expiry  *uint32 // seconds
	User    []packets.User
	Alias   uint16 // that it came with
	Size    int    // bytes of the packet
	Answer  Answer // what was done about it
}

// Taken reports whether the server took the message: got it with QoS 0, or said
// so in a PUBACK, or will.
func (p *Publish) Taken() bool {
	return p.QoS == 0 || p.Answer.Code < 0x80 && (p.Answer.Do == Ack || p.Answer.Do == Hold || p.Answer.Do == Inject)
}

// Connect is one attempt of the client.
type Connect struct {
	At      time.Time
	URL     string           // dialled; "" over TCP
	Packet  *packets.Connect // nil if none came
	Goodbye bool             // the client sent DISCONNECT with code 0
	Pings   int
	Refused []byte // reason codes of the client's PUBACK, PUBREC and PUBCOMP for what Inject sent
}

// Server is the broker. Its methods may be called concurrently.
type Server struct {
	wg sync.WaitGroup

	mu         sync.Mutex // guards what follows
	scripts    []Script
	first      int // connection that got the first of them
	connects   []Connect
	publishes  []Publish
	violations []string
	delivered  []Delivered
	begun      int // sessions
	sessions   map[string]*session
	live       map[*conn]bool
	listeners  []net.Listener
	closed     bool
	changed    chan struct{} // closed, and made anew, when anything above changes
}

// New makes a server that gives each connection the next script, and the last one
// to all that follow. Without any it is kind to all.
func New(scripts ...Script) *Server {
	if len(scripts) == 0 {
		scripts = []Script{{}}
	}
	return &Server{
		scripts:  scripts,
		sessions: map[string]*session{},
		live:     map[*conn]bool{},
		changed:  make(chan struct{}),
	}
}

// Go gives the connections from the next one on these scripts.
func (s *Server) Go(scripts ...Script) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scripts, s.first = scripts, len(s.connects)
}

// Dial connects in process, over net.Pipe.
func (s *Server) Dial(ctx context.Context, u *url.URL) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	client, server := net.Pipe()
	if !s.serve(server, u.String()) {
		client.Close()
		return nil, errors.New("connection refused")
	}
	return client, nil
}

// Listen accepts connections on 127.0.0.1 and returns the URL.
func (s *Server) Listen() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	s.listeners = append(s.listeners, l)
	s.mu.Unlock()
	s.wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			s.serve(nc, "")
		}
	})
	return "mqtt://" + l.Addr().String(), nil
}

// serve starts a connection. It reports false, with nc closed, if the script does
// not let it come about.
func (s *Server) serve(nc net.Conn, url string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.connects)
	script := s.scripts[min(n-s.first, len(s.scripts)-1)]
	s.connects = append(s.connects, Connect{At: time.Now(), URL: url})
	s.notify()
	if s.closed || script.Unreachable {
		nc.Close()
		return false
	}
	c := newConn(s, nc, n, script)
	s.live[c] = true
	s.wg.Go(func() {
		c.run()
		s.update(func() {
			delete(s.live, c)
			if c.session != nil && c.session.conn == c {
				c.session.conn = nil
			}
		})
	})
	return true
}

// update changes the server's record.
func (s *Server) update(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	s.notify()
}

// notify is called with mu held.
func (s *Server) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Server) violation(n int, format string, args ...any) {
	s.update(func() {
		s.violations = append(s.violations, fmt.Sprintf("connection %d: ", n)+fmt.Sprintf(format, args...))
	})
}

// Await waits until cond, which is asked after each change of the record, is true.
func (s *Server) Await(ctx context.Context, cond func() bool) error {
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if cond() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Connects is the record of all attempts, the oldest first.
func (s *Server) Connects() []Connect {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.connects)
}

// Publishes is the record of all PUBLISH packets in the order they came.
func (s *Server) Publishes() []Publish {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.publishes)
}

// Count is how many PUBLISH packets came.
func (s *Server) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.publishes)
}

// Delivered is what a subscriber gets.
type Delivered struct {
	Payload string
	Topic   string
	QoS     byte
	Session int // of the client, counted from 1

	// Unmet says that the client has sent nothing on the connection that began the
	// session: it may not even know that it did.
	Unmet bool
}

// Delivered are the messages that a subscriber would have got, in order. With QoS 2
// one that the client repeats is there once, as long as its session is not lost.
func (s *Server) Delivered() []Delivered {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.delivered)
}

// Message is what the server sends to its clients.
type Message struct {
	Topic, Payload string
	QoS            byte
	Retain         bool
	Expiry         uint32 // seconds; 0 is never
	User           []packets.User
}

// Send sends a message to all sessions, whatever they subscribed to, now or when the
// client is back: with QoS 1 until it is acknowledged, with QoS 2 once.
func (s *Server) Send(m Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, session := range s.sessions {
		session.send(m)
	}
}

// Unanswered is how many messages of Send are not acknowledged, in all sessions.
func (s *Server) Unanswered() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, session := range s.sessions {
		n += len(session.out)
	}
	return n
}

// Filters are what the clients have subscribed to, sorted.
func (s *Server) Filters() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := map[string]bool{}
	for _, session := range s.sessions {
		for _, f := range session.filters {
			seen[f] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// Half is how many QoS 2 messages wait for their PUBREL, in all sessions.
func (s *Server) Half() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, session := range s.sessions {
		n += len(session.half)
	}
	return n
}

// ForgetSessions has the server lose all sessions, as one that is restarted.
func (s *Server) ForgetSessions() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.sessions)
}

// session is what the server keeps of a client.
type session struct {
	met  bool                // the client has sent something on the connection that began it
	n    int                 // counted from 1
	half map[uint16]*Publish // QoS 2: what waits for its PUBREL

	filters []string
	conn    *conn
	lastID  uint16
	out     []*outgoing
}

// end forgets a session. s.mu is held.
func (s *Server) end(gone *session) {
	maps.DeleteFunc(s.sessions, func(_ string, one *session) bool { return one == gone })
}

// outgoing is a message on its way to the client.
type outgoing struct {
	Message
	id       uint16
	received bool // a PUBREC came
	sent     bool // over some connection
}

func (s *session) send(m Message) {
	o := &outgoing{Message: m}
	if m.QoS > 0 {
		s.lastID++
		o.id = s.lastID
		s.out = append(s.out, o)
	}
	if s.conn != nil {
		s.conn.sendOut(o)
	}
}

// resend goes on with what the client has not acknowledged.
func (s *session) resend() {
	for _, o := range s.out {
		s.conn.sendOut(o)
	}
}

// Violations are what the client did and must not do.
func (s *Server) Violations() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.violations)
}

// Release answers every PUBLISH that was held, in the order they came.
func (s *Server) Release() {
	for _, c := range s.connections() {
		c.release()
	}
}

// Disconnect ends every connection with DISCONNECT and this code: 0x8E is what a
// twin with the same client id does.
func (s *Server) Disconnect(code byte) {
	for _, c := range s.connections() {
		c.disconnect(code)
	}
}

// Cut closes every connection without a word.
func (s *Server) Cut() {
	for _, c := range s.connections() {
		c.nc.Close()
	}
}

func (s *Server) connections() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*conn
	for c := range s.live {
		list = append(list, c)
	}
	return list
}

// Close ends all connections and waits for them.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	listeners := s.listeners
	s.mu.Unlock()
	for _, l := range listeners {
		l.Close()
	}
	s.Cut()
	s.wg.Wait()
}
