package dial

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	"github.com/fieldferry/fieldferry/gateway/certs/certstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve has each connection to a listener served, until the test ends.
func serve(t *testing.T, ln net.Listener, each func(net.Conn)) string {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer nc.Close()
				each(nc)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// nobody is an address at which nothing listens nor will: that of our end of a connection
// to somebody.
func nobody(t *testing.T, somebody string) string {
	t.Helper()
	nc, err := net.Dial("tcp", somebody)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return nc.LocalAddr().String()
}

func echo(nc net.Conn) { _, _ = io.Copy(nc, nc) }

// webEcho serves WebSocket at /mqtt with a query, and answers what it is told.
func webEcho(subprotocol string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /mqtt", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery != "token=1" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{subprotocol}, CompressionMode: websocket.CompressionDisabled})
		if err != nil {
			return
		}
		defer ws.CloseNow()
		ws.SetReadLimit(-1)
		for {
			kind, p, err := ws.Read(r.Context())
			if err != nil {
				return
			}
			// In frames of another size than those that came.
			for len(p) > 0 {
				n := min(len(p), 1000)
				if ws.Write(r.Context(), kind, p[:n]) != nil {
					return
				}
				p = p[n:]
			}
		}
	})
	return mux
}

// proxy is an HTTP proxy for CONNECT that looks every name up as 127.0.0.1.
type proxy struct {
	user  string // USER:PASSWORD, if it wants that
	code  int    // of its answer, if not 200
	mu    sync.Mutex
	asked []string // addresses
}

func (p *proxy) serve(nc net.Conn) {
	r := bufio.NewReader(nc)
	req, err := http.ReadRequest(r)
	if err != nil || req.Method != http.MethodConnect {
		fmt.Fprint(nc, "HTTP/1.1 400 Bad Request\r\n\r\n")
		return
	}
	p.mu.Lock()
	p.asked = append(p.asked, req.Host)
	p.mu.Unlock()
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(p.user))
	if p.user != "" && req.Header.Get("Proxy-Authorization") != want {
		fmt.Fprint(nc, "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 3\r\n\r\nno!")
		return
	}
	if p.code != 0 {
		fmt.Fprintf(nc, "HTTP/1.1 %d %s\r\n\r\n", p.code, http.StatusText(p.code))
		return
	}
	_, port, _ := net.SplitHostPort(req.Host)
	to, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		fmt.Fprint(nc, "HTTP/1.1 502 Bad Gateway\r\n\r\n")
		return
	}
	defer to.Close()
	fmt.Fprint(nc, "HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n")
	done := make(chan bool, 2)
	go func() { _, _ = io.Copy(to, r); to.(*net.TCPConn).CloseWrite(); done <- true }()
	go func() { _, _ = io.Copy(nc, to); nc.Close(); done <- true }()
	<-done
	<-done
}

// world is an authority, a server of each scheme that it vouches for, and clients.
type world struct {
	ca    *certstest.CA
	pool  *x509.CertPool
	ours  tls.Certificate
	chain tls.Certificate // the servers'
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{ca: certstest.New(t, "test ca"), pool: x509.NewCertPool()}
	w.pool.AddCert(w.ca.Cert)
	w.chain, w.ours = w.issue(t, nil), w.issue(t, nil)
	return w
}

func (w *world) issue(t *testing.T, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	cert, key := w.ca.Issue("upstream", change)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// config is a server's that wants certificates of clients.
func (w *world) config() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{w.chain}, ClientCAs: w.pool, ClientAuth: tls.RequireAndVerifyClientCert}
}

func (w *world) client() *tls.Config {
	return &tls.Config{RootCAs: w.pool, Certificates: []tls.Certificate{w.ours}, MinVersion: tls.VersionTLS12}
}

// upstreams serves all four schemes.
func (w *world) upstreams(t *testing.T) []string {
	t.Helper()
	plain := serve(t, listen(t), echo)
	secure := serve(t, tls.NewListener(listen(t), w.config()), echo)
	web := httptest.NewServer(webEcho("mqtt"))
	t.Cleanup(web.Close)
	webTLS := httptest.NewUnstartedServer(webEcho("mqtt"))
	webTLS.TLS = w.config()
	webTLS.StartTLS()
	t.Cleanup(webTLS.Close)
	at := func(s string) string { return s[strings.LastIndex(s, "/")+1:] }
	return []string{"mqtt://" + plain, "mqtts://" + secure, "ws://" + at(web.URL) + "/mqtt?token=1", "wss://" + at(webTLS.URL) + "/mqtt?token=1"}
}

func parse(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// talk sends 300,000 bytes in writes of all sizes, and wants them back.
func talk(t *testing.T, nc net.Conn) {
	t.Helper()
	want := make([]byte, 300_000)
	for i := range want {
		want[i] = byte(i * 7 / 3)
	}
	if err := nc.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	go func() {
		var err error
		for left, n := want, 1; len(left) > 0 && err == nil; n = n*3 + 1 {
			k := min(n, len(left), 64<<10)
			_, err = nc.Write(left[:k])
			left = left[k:]
		}
		sent <- err
	}()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(nc, got); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("other bytes came back")
	}
}

func TestDial(t *testing.T) {
	w := newWorld(t)
	upstreams := w.upstreams(t)
	leaf, err := x509.ParseCertificate(w.chain.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	free, guarded := &proxy{}, &proxy{user: "bob:s3cret:x"}
	proxyTLS := w.config()
	proxyTLS.ClientAuth = tls.NoClientCert
	freeAt := "http://" + serve(t, listen(t), free.serve)
	guardedAt := "https://bob:s3cret:x@" + serve(t, tls.NewListener(listen(t), proxyTLS), guarded.serve)
	for _, way := range []struct {
		name  string
		proxy string
		pins  []string
	}{
		{"directly", "", nil},
		{"the server's key is pinned", "", []string{"sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", Pin(leaf)}},
		{"the authority's key is pinned", "", []string{Pin(w.ca.Cert)}},
		{"through a proxy", freeAt, nil},
		{"through a proxy with TLS and a password", guardedAt, nil},
	} {
		for _, up := range upstreams {
			u := parse(t, up)
			t.Run(way.name+" "+u.Scheme, func(t *testing.T) {
				d := &Dialer{TLS: w.client, Pins: way.pins}
				if way.proxy != "" {
					d.Proxy = parse(t, way.proxy)
					u.Host = "localhost:" + u.Port()
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				nc, err := d.Dial(ctx, u)
				cancel() // what was opened stays
				if err != nil {
					t.Fatal(err)
				}
				defer nc.Close()
				talk(t, nc)
				if err := nc.SetReadDeadline(time.Now()); err != nil {
					t.Fatal(err)
				}
				if _, err := nc.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("after the deadline: %v", err)
				}
			})
		}
	}
	if len(free.asked) != 4 || !strings.HasPrefix(free.asked[0], "localhost:") {
		t.Errorf("the proxy was asked for %q: it must look up the name", free.asked)
	}
}

// Refusals name the place, what is wrong and what to check.
func TestRefusals(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	change := func(f func(*x509.Certificate)) *world {
		changed := *w
		changed.chain = w.issue(t, f)
		return &changed
	}
	plain := serve(t, listen(t), echo)
	closing := serve(t, listen(t), func(net.Conn) {})
	talking := serve(t, listen(t), func(nc net.Conn) { fmt.Fprint(nc, "220 hello\r\n"); _, _ = io.Copy(io.Discard, nc) })
	secure := func(w *world) string { return "mqtts://" + serve(t, tls.NewListener(listen(t), w.config()), echo) }
	good := secure(w)
	at := func(s string) string { return s[strings.LastIndex(s, "/")+1:] }
	web := httptest.NewServer(webEcho("mqtt"))
	defer web.Close()
	chat := httptest.NewServer(webEcho("chat"))
	defer chat.Close()
	gone := nobody(t, plain)
	only12 := w.config()
	only12.MaxVersion = tls.VersionTLS12
	old := "mqtts://" + serve(t, tls.NewListener(listen(t), only12), echo)
	as := func(c tls.Certificate) func() *tls.Config {
		return func() *tls.Config {
			own := w.client()
			own.Certificates = nil
			if len(c.Certificate) > 0 {
				own.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c, nil }
			}
			own.MaxVersion = tls.VersionTLS12 // so the handshake has the server's word
			return own
		}
	}
	through := func(p *proxy, scheme string) *url.URL { return parse(t, scheme+"://"+serve(t, listen(t), p.serve)) }
	for _, tt := range []struct {
		name string
		d    Dialer
		url  string
		want []string
	}{
		{"other authority", Dialer{TLS: other.client}, good, []string{`signed by "CN=test ca"`, "tls.ca"}},
		{"expired", Dialer{TLS: w.client}, secure(change(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })), []string{`"CN=upstream"`, "expired on", "by our clock"}},
		{"not yet valid", Dialer{TLS: w.client}, secure(change(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
		})), []string{"is not valid before", "this machine's clock"}},
		{"another host", Dialer{TLS: w.client}, secure(change(func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = []string{"a.example.com", "b.example.com"}, nil })),
			[]string{"is for a.example.com, b.example.com and not for 127.0.0.1"}},
		{"no host", Dialer{TLS: w.client}, secure(change(func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = nil, nil })), []string{"is for no host at all"}},
		{"no server", Dialer{TLS: w.client}, secure(change(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })), []string{"serverAuth"}},
		{"another key", Dialer{TLS: w.client, Pins: []string{"sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}}, good, []string{"its own key is sha256/", "tls.pins"}},
		{"no certificate of ours", Dialer{TLS: as(tls.Certificate{})}, good, []string{"certificate", "tls.cert"}},
		{"a certificate of another authority", Dialer{TLS: as(other.ours)}, good, []string{"does not know the authority of our certificate"}},
		{"an old certificate of ours", Dialer{TLS: as(w.issue(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }))}, good, []string{"our certificate has expired"}},
		{"a certificate for servers", Dialer{TLS: as(w.issue(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }))}, good, []string{"certificate", "tls.cert"}},
		{"old TLS", Dialer{TLS: func() *tls.Config { c := w.client(); c.MinVersion = tls.VersionTLS13; return c }}, old, []string{"tls.min_version"}},
		{"TLS to a plain port", Dialer{TLS: w.client}, "mqtts://" + talking, []string{talking + " does not speak TLS: write mqtt://"}},
		{"TLS to an echo", Dialer{TLS: w.client}, "mqtts://" + plain, []string{"TLS with " + plain + " failed"}},
		{"TLS to a port that closes", Dialer{TLS: w.client}, "mqtts://" + closing, []string{"closed the connection without a word", "speaks TLS"}},
		{"WebSocket with TLS to a plain one", Dialer{TLS: w.client}, "wss://" + at(web.URL) + "/mqtt", []string{"does not speak TLS: write ws://"}},
		{"no such path", Dialer{}, web.URL[:0] + "ws://" + at(web.URL) + "/nothing", []string{"has nothing at /nothing (404)"}},
		{"a path that is refused", Dialer{}, "ws://" + at(web.URL) + "/mqtt?token=2", []string{"refuses WebSocket at /mqtt?token=2 (403)"}},
		{"WebSocket for something else", Dialer{}, "ws://" + at(chat.URL) + "/mqtt?token=1", []string{"not for MQTT"}},
		{"nobody there", Dialer{}, "mqtt://" + gone, []string{"nothing listens at " + gone}},
		{"no such host", Dialer{}, "mqtt://nowhere.invalid:1883", []string{"nowhere.invalid"}},
		{"a scheme that is none", Dialer{}, "http://127.0.0.1", []string{"write mqtt, mqtts, ws or wss"}},
		{"proxy: password", Dialer{Proxy: through(&proxy{user: "a:b"}, "http")}, "mqtt://" + plain, []string{"does not let us in", "USER:PASSWORD"}},
		{"proxy: forbidden", Dialer{Proxy: through(&proxy{code: 403}, "http")}, "mqtt://" + plain, []string{"does not allow connections to " + plain}},
		{"proxy: does not get there", Dialer{Proxy: through(&proxy{}, "http")}, "mqtt://" + gone, []string{"does not reach"}},
		{"proxy: other", Dialer{Proxy: through(&proxy{code: 418}, "http")}, "mqtt://" + plain, []string{"it answered 418"}},
		{"proxy: no TLS", Dialer{Proxy: through(&proxy{}, "https")}, "mqtt://" + plain, []string{"proxy"}},
		{"proxy: nobody there", Dialer{Proxy: parse(t, "http://"+gone)}, "mqtt://" + plain, []string{"proxy: nothing listens"}},
		{"proxy: no proxy", Dialer{Proxy: parse(t, "http://"+plain)}, "mqtt://" + plain, []string{"check that it is an HTTP proxy"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			nc, err := tt.d.Dial(ctx, parse(t, tt.url))
			if err == nil {
				nc.Close()
				t.Fatal("connected")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "x509:") || strings.Contains(err.Error(), "tls:") {
				t.Errorf("%q is not for people", err)
			}
		})
	}
}

// With TLS 1.3 the server's word on our certificate comes with the first read.
func TestRefusedAfterTheHandshake(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	u := parse(t, "mqtts://"+serve(t, tls.NewListener(listen(t), w.config()), echo))
	d := Dialer{TLS: func() *tls.Config {
		return &tls.Config{RootCAs: w.pool, MinVersion: tls.VersionTLS13,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &other.ours, nil }}
	}}
	nc, err := d.Dial(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_, err = nc.Read(make([]byte, 1))
	var r *Refusal
	if err = Explain(u, fmt.Errorf("wait for CONNACK: %w", err)); !errors.As(err, &r) || !r.Ours || !strings.Contains(r.Text, "authority of our certificate") {
		t.Errorf("%v", err)
	}
}

func TestRecognise(t *testing.T) {
	u := parse(t, "mqtt://127.0.0.1:8883")
	for _, tt := range []struct {
		head []byte
		want string
	}{
		{[]byte{21, 3, 3, 0, 2}, "write mqtts://"},
		{[]byte("HTTP/1.1"), "write ws://"},
		{[]byte{0x20, 3}, ""},
		{[]byte{21}, ""},
		{nil, ""},
	} {
		err := Recognise(tt.head)
		if tt.want == "" {
			if err != nil {
				t.Errorf("% x: %v", tt.head, err)
			}
			continue
		}
		if err = Explain(u, err); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("% x: %v", tt.head, err)
		}
	}
	if err := errors.New("something else"); Explain(u, err) != err || Explain(u, nil) != nil {
		t.Error("what is not known is not left alone")
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	for _, scheme := range []string{"mqtts", "ws", "proxy"} {
		release := make(chan bool)
		mute := serve(t, listen(t), func(nc net.Conn) { <-release })
		d, u := &Dialer{}, parse(t, scheme+"://"+mute)
		if scheme == "proxy" {
			d.Proxy, u = parse(t, "http://"+mute), parse(t, "mqtt://up:1883")
		}
		ctx, cancel := context.WithCancel(t.Context())
		failed := make(chan error, 1)
		go func() {
			_, err := d.Dial(ctx, u)
			failed <- err
		}()
		cancel()
		if err := <-failed; err == nil {
			t.Errorf("%s: connected", scheme)
		}
		close(release)
	}
}

// What TLS and WebSocket cut into pieces goes to the socket at one stroke.
func TestGather(t *testing.T) {
	w := newWorld(t)
	for _, up := range w.upstreams(t)[1:] {
		u := parse(t, up)
		counted := &counting{}
		d := &Dialer{TLS: w.client}
		nc, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", u.Host)
		if err != nil {
			t.Fatal(err)
		}
		counted.Conn = nc
		var c net.Conn = counted
		if Secure(u.Scheme) {
			if c, err = d.secure(t.Context(), c, u.Hostname()); err != nil {
				t.Fatal(err)
			}
		}
		if strings.HasPrefix(u.Scheme, "ws") {
			if c, err = upgrade(t.Context(), c, u); err != nil {
				t.Fatal(err)
			}
		}
		before := counted.writes
		if _, err := c.Write(make([]byte, 64<<10)); err != nil {
			t.Fatal(err)
		}
		if n := counted.writes - before; n != 1 {
			t.Errorf("%s: %d writes for one", u.Scheme, n)
		}
		c.Close()
	}
}

type counting struct {
	net.Conn
	writes int
}

func (c *counting) Write(p []byte) (int, error) {
	c.writes++
	return c.Conn.Write(p)
}

func FuzzProxyAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\n\r\nrest"))
	f.Add([]byte("HTTP/1.1 407 No\r\nContent-Length: 5\r\n\r\nhello"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"))
	f.Add([]byte("\x15\x03\x01"))
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := readAnswer(bytes.NewReader(p), "proxy:3128")
		if err != nil {
			if text := Explain(&url.URL{Scheme: "mqtt", Host: "up:1883"}, err).Error(); text == "" {
				t.Error("it says nothing")
			}
			return
		}
		rest, _ := io.ReadAll(io.LimitReader(r, int64(r.Buffered())))
		if !bytes.HasSuffix(p, rest) {
			t.Errorf("%q is not the end of %q", rest, p)
		}
	})
}

func TestProbe(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	for _, up := range w.upstreams(t) {
		u := parse(t, up)
		ours := tls.Certificate{}
		d := &Dialer{TLS: func() *tls.Config {
			return &tls.Config{RootCAs: w.pool, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &ours, nil }}
		}}
		ours = w.ours
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if err := d.Probe(ctx, u); err != nil {
			t.Errorf("%s: %v", u.Scheme, err)
		}
		ours = other.ours
		var r *Refusal
		if err := d.Probe(ctx, u); Secure(u.Scheme) && (!errors.As(err, &r) || !r.Ours) {
			t.Errorf("%s takes a certificate of another authority: %v", u.Scheme, err)
		}
		cancel()
	}
}

// A server that does not take our certificate says so, and closes with our bytes unread,
// so that what it said is lost: it is asked again.
func TestWhatWasSaidIsLost(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	config := w.config()
	refuse := true
	var mu sync.Mutex // guards refuse
	u := parse(t, "mqtts://"+serve(t, listen(t), func(nc net.Conn) {
		mu.Lock()
		reset := refuse
		refuse = false
		mu.Unlock()
		c := tls.Server(nc, config)
		if reset { // the first connection
			c = tls.Server(nc, &tls.Config{Certificates: []tls.Certificate{w.chain}, ClientAuth: tls.RequestClientCert})
			_ = c.Handshake()
			_ = nc.(*net.TCPConn).SetLinger(0) // TCP says reset
			return
		}
		_ = c.Handshake()
	}))
	d := Dialer{TLS: func() *tls.Config {
		return &tls.Config{RootCAs: w.pool, MinVersion: tls.VersionTLS13,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &other.ours, nil }}
	}}
	nc, err := d.Dial(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_, err = nc.Read(make([]byte, 1))
	var r *Refusal
	if !errors.As(err, &r) || !r.Ours || !strings.Contains(r.Text, "authority of our certificate") {
		t.Errorf("%v", err)
	}
}

// trickle writes a few bytes at a time.
type trickle struct{ net.Conn }

func (c trickle) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var k int
		k, err = c.Conn.Write(p[n:min(len(p), n+7+n%400)])
		n += k
	}
	return n, err
}

// Many small records are read together, in whatever pieces they come.
func TestSmallRecords(t *testing.T) {
	w := newWorld(t)
	const records = 20_000
	for name, wrap := range map[string]func(net.Conn) net.Conn{
		"whole":     func(c net.Conn) net.Conn { return c },
		"in pieces": func(c net.Conn) net.Conn { return trickle{c} },
	} {
		t.Run(name, func(t *testing.T) {
			u := parse(t, "mqtts://"+serve(t, listen(t), func(nc net.Conn) {
				under := &gather{Conn: wrap(nc)}
				c := tls.Server(under, w.config())
				if c.Handshake() != nil {
					return
				}
				for i := 0; i < records; i += 100 {
					_, err := under.together(func() (int, error) {
						for k := range 100 {
							if _, err := fmt.Fprintf(c, "%06d", i+k); err != nil {
								return 0, err
							}
						}
						return 1, nil
					})
					if err != nil {
						return
					}
				}
				_, _ = io.Copy(io.Discard, c)
			}))
			nc, err := (&Dialer{TLS: w.client}).Dial(t.Context(), u)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			if err := nc.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			var got []byte
			reads := 0
			for p := make([]byte, 4096); len(got) < 6*records; reads++ {
				n, err := nc.Read(p)
				if err != nil {
					t.Fatalf("after %d bytes: %v", len(got), err)
				}
				got = append(got, p[:n]...)
			}
			for i := range records {
				if string(got[6*i:6*i+6]) != fmt.Sprintf("%06d", i) {
					t.Fatalf("record %d is %q", i, got[6*i:6*i+6])
				}
			}
			if name == "whole" && reads >= records/2 { // how many pieces there are at a time is chance
				t.Errorf("%d reads of %d records", reads, records)
			}
		})
	}
}
