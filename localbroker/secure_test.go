package localbroker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/fieldferry/fieldferry/gateway/certs/certstest"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// secured is a broker with a listener of each kind, and how to reach them.
func secured(t *testing.T, o Options) (b *Broker, dial func(listener string, cert ...tls.Certificate) *wire, alice tls.Certificate) {
	t.Helper()
	ca := certstest.New(t, "ca")
	pair := func(name string) tls.Certificate {
		cert, key := ca.Issue(name, nil)
		p, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.Cert)
	server := func() *tls.Config { return &tls.Config{Certificates: []tls.Certificate{pair("server")}} }
	mutual := server()
	mutual.ClientCAs, mutual.ClientAuth = pool, tls.RequireAndVerifyClientCert
	name := func(c *x509.Certificate) string { return c.Subject.CommonName }
	const any = "127.0.0.1:0"
	o.Listeners = []Listener{
		{Name: "plain", Addr: any, AllowAnonymous: true},
		{Name: "tls", Addr: any, AllowAnonymous: true, TLS: server()},
		{Name: "mutual", Addr: any, TLS: mutual, Identity: name},
		{Name: "ws", Addr: any, AllowAnonymous: true, WebSocket: "/mqtt"},
		{Name: "wss", Addr: any, WebSocket: "/mqtt", TLS: mutual.Clone(), Identity: name},
	}
	b = start(t, o)
	dial = func(listener string, cert ...tls.Certificate) *wire {
		t.Helper()
		nc, err := net.Dial("tcp", b.Addr(listener).String())
		if err != nil {
			t.Fatal(err)
		}
		if listener != "plain" && listener != "ws" {
			nc = tls.Client(nc, &tls.Config{RootCAs: pool, ServerName: "localhost", Certificates: cert})
		}
		if strings.HasPrefix(listener, "ws") {
			under := nc
			transport := &http.Transport{
				DialContext:    func(context.Context, string, string) (net.Conn, error) { return under, nil },
				DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return under, nil },
			}
			scheme := map[string]string{"ws": "ws", "wss": "wss"}[listener]
			ws, _, err := websocket.Dial(t.Context(), scheme+"://localhost/mqtt", &websocket.DialOptions{Subprotocols: []string{"mqtt"}, HTTPClient: &http.Client{Transport: transport}})
			if err != nil {
				t.Fatal(err)
			}
			nc = websocket.NetConn(t.Context(), ws, websocket.MessageBinary)
		}
		t.Cleanup(func() { nc.Close() })
		w := &wire{t: t, v: packet.V5, nc: nc, r: packet.NewReader(nc, new(packet.Blocks), packet.MaxLength)}
		w.r.SetVersion(packet.V5)
		return w
	}
	return b, dial, pair("alice")
}

func TestListeners(t *testing.T) {
	_, dial, alice := secured(t, Options{})
	var all []*wire
	for _, listener := range []string{"plain", "tls", "mutual", "ws", "wss"} {
		w := dial(listener, alice)
		if ack := w.connect(listener); ack.Reason != packet.Success {
			t.Fatalf("%s: %v", listener, ack.Reason)
		}
		w.sub("t/#")
		all = append(all, w)
	}
	long := strings.Repeat("0123456789", 20_000)
	for i, w := range all {
		w.publish("t/x", fmt.Sprint(i, long), 1, 5)
		if r := w.expectAck(5); r != packet.Success {
			t.Errorf("%d: %v", i, r)
		}
		for _, w := range all {
			if p := w.expectPublish(); string(p.Payload) != fmt.Sprint(i, long) {
				t.Errorf("%d: %d bytes", i, len(p.Payload))
			}
		}
	}
}

// logins keeps what clients are known by.
type logins chan Login

func (l logins) Authenticate(_ context.Context, login *Login) (Rights, error) {
	l <- *login
	return nil, nil
}

func TestIdentity(t *testing.T) {
	seen := make(logins, 1)
	_, dial, alice := secured(t, Options{Access: seen})
	for _, listener := range []string{"mutual", "wss"} {
		dial(listener, alice).connect(listener, func(p *packet.Connect) { p.Username, p.HasUsername = "mallory", true })
		if l := <-seen; l.Username != "alice" || !l.Verified || !l.Certificate {
			t.Errorf("%s: %+v", listener, l)
		}
	}
	dial("tls").connect("t", func(p *packet.Connect) { p.Username, p.HasUsername = "mallory", true })
	if l := <-seen; l.Username != "mallory" || l.Verified || l.Certificate {
		t.Errorf("%+v", l)
	}
}

func TestWebSocketRefuses(t *testing.T) {
	b, _, _ := secured(t, Options{})
	url := "ws://" + b.Addr("ws").String()
	for _, c := range []struct {
		name, path, protocol, origin string
		want                         int
	}{
		{"no subprotocol", "/mqtt", "", "", http.StatusBadRequest},
		{"another one", "/mqtt", "chat", "", http.StatusBadRequest},
		{"another path", "/", "mqtt", "", http.StatusNotFound},
		{"a foreign page", "/mqtt", "mqtt", "https://evil.example.com", http.StatusForbidden},
	} {
		o := &websocket.DialOptions{HTTPHeader: http.Header{}}
		if c.protocol != "" {
			o.Subprotocols = []string{c.protocol}
		}
		if c.origin != "" {
			o.HTTPHeader.Set("Origin", c.origin)
		}
		_, answer, err := websocket.Dial(t.Context(), url+c.path, o)
		if err == nil || answer == nil || answer.StatusCode != c.want {
			t.Errorf("%s: %v, %v", c.name, answer, err)
		}
	}
	ws, _, err := websocket.Dial(t.Context(), url+"/mqtt", &websocket.DialOptions{Subprotocols: []string{"mqtt"}})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	if err := ws.Write(t.Context(), websocket.MessageText, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ws.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusUnsupportedData { // [MQTT-6.0.0-1]
		t.Errorf("a text frame: %v", err)
	}
}

// A packet may come in any number of frames, and a frame hold any number of packets.
func TestWebSocketFrames(t *testing.T) {
	b, _, _ := secured(t, Options{})
	ws, _, err := websocket.Dial(t.Context(), "ws://"+b.Addr("ws").String()+"/mqtt", &websocket.DialOptions{Subprotocols: []string{"mqtt"}})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	out := unhex(t, "10 0d 0004 4d515454 04 02 003c 0001 63 82 06 0001 0001 74 00 30 04 0001 74 31 c0 00")
	for _, b := range out[:20] {
		if err := ws.Write(t.Context(), websocket.MessageBinary, []byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	if err := ws.Write(t.Context(), websocket.MessageBinary, out[20:]); err != nil {
		t.Fatal(err)
	}
	nc := websocket.NetConn(t.Context(), ws, websocket.MessageBinary)
	want := unhex(t, "20 02 00 00 90 03 0001 00 30 04 0001 74 31 d0 00")
	got := make([]byte, len(want))
	if err := nc.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(nc, got); err != nil {
		t.Fatalf("%x: %v", got, err)
	}
	counts := func(p []byte) (n [256]int) {
		for _, b := range p {
			n[b]++
		}
		return n
	}
	if counts(got) != counts(want) { // the answers may come in another order
		t.Errorf("%x, want %x", got, want)
	}
}

// A deadline of a WebSocket passes, and reading goes on.
func TestWSConnDeadline(t *testing.T) {
	conns := make(chan *wsConn, 1)
	mux := http.NewServeMux()
	end := make(chan struct{})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		conns <- newWSConn(t.Context(), ws, io.NopCloser(nil), nil, wsAddr("x"))
		<-end
	})
	server := &http.Server{Handler: mux}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(ln)
	defer server.Close()
	defer close(end)
	ws, _, err := websocket.Dial(t.Context(), "ws://"+ln.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	c := <-conns
	defer c.Close()
	p := make([]byte, 10)
	for range 3 {
		c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		if n, err := c.Read(p); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(n, err)
		}
	}
	c.SetReadDeadline(time.Now().Add(patience))
	if err := ws.Write(t.Context(), websocket.MessageBinary, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(p[:3]); string(p[:n]) != "hel" || err != nil {
		t.Fatal(n, err)
	}
	if n, err := c.Read(p); string(p[:n]) != "lo" || err != nil {
		t.Fatal(n, err)
	}
	ws.Close(websocket.StatusNormalClosure, "")
	if n, err := c.Read(p); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatal(n, err)
	}
}

func TestSys(t *testing.T) {
	b := start(t, Options{SysInterval: 20 * time.Millisecond, Version: "1.2.3"})
	w := connect(t, b, packet.V5, "w")
	w.sub("$SYS/broker/version", "$SYS/broker/clients/connected", "$SYS/broker/publish/messages/received")
	want := map[string]string{"$SYS/broker/version": "fieldferry 1.2.3", "$SYS/broker/clients/connected": "1", "$SYS/broker/publish/messages/received": "3"}
	for i := range 3 {
		w.publish("nobody", "x", 1, uint16(i+1))
	}
	for len(want) > 0 {
		first, body := w.receive()
		if packet.TypeOf(first) != packet.PUBLISH {
			continue
		}
		var p packet.Publish
		if err := p.Decode(packet.V5, first, body); err != nil {
			t.Fatal(err)
		}
		if want[p.Topic] == string(p.Payload) {
			delete(want, p.Topic)
		}
	}
}
