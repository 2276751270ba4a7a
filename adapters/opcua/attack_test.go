package opcua

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gopcua/opcua/ua"
	"github.com/gopcua/opcua/uapolicy"
)

// A scripted server speaks for a test, chunk by chunk and without security.
type scripted struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
	seq  uint32
}

// next reads what comes, or nil if the client has gone.
func (s *scripted) next() []byte {
	head, err := s.r.Peek(8)
	if err != nil {
		return nil
	}
	b := make([]byte, binary.LittleEndian.Uint32(head[4:]))
	if _, err := io.ReadFull(s.r, b); err != nil {
		return nil
	}
	return b
}

func (s *scripted) send(b []byte) {
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)))
	s.conn.Write(b) // whether the client takes it is not our business
}

// greet answers a hello, and reports whether one came.
func (s *scripted) greet() bool {
	if b := s.next(); b == nil || string(b[:3]) != "HEL" {
		return false
	}
	b := []byte("ACKF\x00\x00\x00\x00")
	for _, n := range []uint32{0, maxChunk, maxChunk, 0, 0} {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	s.send(b)
	return true
}

// answer answers a request of a channel without security.
func (s *scripted) answer(request []byte, res ua.Response) {
	s.t.Helper()
	body, err := encodeService(res)
	if err != nil {
		s.t.Error(err)
		return
	}
	s.answerRaw(request, body)
}

func (s *scripted) answerRaw(request, body []byte) {
	kind := string(request[:3])
	b := append([]byte(kind), "F\x00\x00\x00\x00"...)
	b = binary.LittleEndian.AppendUint32(b, 7) // channel
	at := 16
	if kind == "OPN" {
		b = appendBytes(appendBytes(appendText(b, ua.SecurityPolicyURINone), nil), nil)
		w := walker{b: request[12:]}
		for range 3 {
			w.text()
		}
		at = len(request) - len(w.b)
	} else {
		b = binary.LittleEndian.AppendUint32(b, 9) // token
	}
	s.seq++
	b = binary.LittleEndian.AppendUint32(b, s.seq)
	b = append(b, request[at+4:at+8]...) // the number of the request
	s.send(append(b, body...))
}

// opened answers the opening of a channel without security.
func (s *scripted) opened(request []byte) {
	s.answer(request, &ua.OpenSecureChannelResponse{
		ResponseHeader: header(), SecurityToken: &ua.ChannelSecurityToken{ChannelID: 7, TokenID: 9, CreatedAt: time.Now(), RevisedLifetime: 3_600_000}, ServerNonce: []byte{},
	})
}

// serve hands each connection to f, until the test ends.
func serve(t *testing.T, f func(*scripted)) (endpoint string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(20 * time.Second))
			f(&scripted{t: t, conn: c, r: bufio.NewReader(c)})
			c.Close()
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
	})
	return "opc.tcp://" + ln.Addr().String()
}

// offer answers who asks for the endpoints with one that is secured by a certificate.
func (s *scripted) offer(opening []byte, cert []byte, policies ...string) {
	s.opened(opening)
	request := s.next()
	if request == nil {
		return
	}
	res := &ua.GetEndpointsResponse{ResponseHeader: header()}
	for _, p := range policies {
		mode := ua.MessageSecurityModeSignAndEncrypt
		if p == "None" {
			mode = ua.MessageSecurityModeNone
		}
		res.Endpoints = append(res.Endpoints, &ua.EndpointDescription{
			EndpointURL: "opc.tcp://somewhere:4840", ServerCertificate: cert, SecurityMode: mode, SecurityPolicyURI: policyURI(p),
			Server:             &ua.ApplicationDescription{ApplicationURI: "urn:a", ApplicationName: ua.NewLocalizedText("a"), DiscoveryURLs: []string{}},
			UserIdentityTokens: []*ua.UserTokenPolicy{{PolicyID: "name", TokenType: ua.UserTokenTypeUserName}, {PolicyID: "anonymous"}},
		})
	}
	s.answer(request, res)
}

// TestImpostorGetsNothing has a server that shows the certificate of the one that is
// trusted, whose key it has not. In the library, one answer of it is enough to have the
// next attempt encrypted for it.
func TestImpostorGetsNothing(t *testing.T) {
	genuine, impostor := newMaker(t), newMaker(t)
	now := time.Now()
	cert := genuine.cert("urn:a", []string{"127.0.0.1"}, now.Add(-time.Hour), now.Add(time.Hour), nil)
	own := impostor.cert("urn:a", []string{"127.0.0.1"}, now.Add(-time.Hour), now.Add(time.Hour), nil)
	var openings [][]byte // of the secured channel
	after := 0            // what came behind them
	endpoint := serve(t, func(s *scripted) {
		if !s.greet() {
			return
		}
		b := s.next()
		switch {
		case b == nil:
		case bytes.Contains(b, []byte(ua.SecurityPolicyURINone)):
			s.offer(b, cert.Raw, "Basic256Sha256")
		default:
			openings = append(openings, b)
			garbage := make([]byte, 256)
			rand.Read(garbage)
			answer := binary.LittleEndian.AppendUint32([]byte("OPNF\x00\x00\x00\x00"), 7)
			answer = appendBytes(appendBytes(appendText(answer, policyURI("Basic256Sha256")), own.Raw), make([]byte, 20))
			s.send(append(answer, garbage...))
			for s.next() != nil {
				after++
			}
		}
	})
	dir := t.TempDir()
	c := Config{
		Name: "test", Endpoint: endpoint, Policy: "Basic256Sha256", Mode: "SignAndEncrypt", Timeout: 5 * time.Second,
		Cert: filepath.Join(dir, "own.crt"), Key: filepath.Join(dir, "own.key"), Trust: Trust{filepath.Join(dir, "trusted")},
		User: &User{Name: "gateway", Password: func() (string, error) { return "secret", nil }},
	}
	if _, err := c.Trust.Accept(cert.Raw, false); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := Dial(context.Background(), c); err == nil || !strings.Contains(err.Error(), errForged.Error()) {
			t.Fatalf("%v, want %v", err, errForged)
		}
	}
	if len(openings) != 3 || after != 0 {
		t.Fatalf("%d openings and %d messages behind them came", len(openings), after)
	}
	for i, b := range openings {
		w := walker{b: b[12:]}
		for range 3 {
			if err := w.text(); err != nil {
				t.Fatal(err)
			}
		}
		if !decrypts(t, genuine.key, w.b) {
			t.Errorf("opening %d is not for the server that is trusted", i)
		}
		if decrypts(t, impostor.key, w.b) {
			t.Errorf("opening %d is for the impostor", i)
		}
	}
}

// decrypts reports whether a key opens an opening.
func decrypts(t *testing.T, key *rsa.PrivateKey, b []byte) bool {
	t.Helper()
	algo, err := uapolicy.Asymmetric(policyURI("Basic256Sha256"), key, &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := algo.Decrypt(b)
	return err == nil && bytes.Contains(plain, []byte{1, 0}) && len(plain) > 100
}

// TestNothingLower has servers that offer less than is wanted.
func TestNothingLower(t *testing.T) {
	m := newMaker(t)
	cert := m.cert("urn:a", []string{"127.0.0.1"}, time.Now().Add(-time.Hour), time.Now().Add(time.Hour), nil)
	openings := 0
	endpoint := serve(t, func(s *scripted) {
		if !s.greet() {
			return
		}
		if b := s.next(); b != nil {
			openings++
			s.offer(b, cert.Raw, "None", "Aes128_Sha256_RsaOaep")
		}
	})
	dir := t.TempDir()
	c := Config{
		Name: "test", Endpoint: endpoint, Policy: "Basic256Sha256", Mode: "SignAndEncrypt", Timeout: 5 * time.Second,
		Cert: filepath.Join(dir, "own.crt"), Key: filepath.Join(dir, "own.key"), Trust: Trust{filepath.Join(dir, "trusted")},
	}
	_, err := Dial(context.Background(), c)
	const want = "the server does not offer Basic256Sha256/SignAndEncrypt, but None/None, Aes128_Sha256_RsaOaep/SignAndEncrypt: switch it on there"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
	// A password is sent to no endpoint that does not encrypt it.
	c.Policy, c.Mode = "None", "None"
	c.User = &User{Name: "gateway", Password: func() (string, error) { t.Error("the password was asked for"); return "secret", nil }}
	if _, err := Dial(context.Background(), c); err == nil || !strings.Contains(err.Error(), "a password is sent encrypted only") {
		t.Errorf("a password without security: %v", err)
	}
	if openings != 2 {
		t.Errorf("%d channels, want the two that asked for endpoints", openings)
	}
}

// TestHostileServer has servers that answer with what would end the process.
func TestHostileServer(t *testing.T) {
	read := encoded(t, readAnswer(int32(0x11223344)))
	at := bytes.Index(read, []byte{byte(ua.TypeIDInt32), 0x44, 0x33, 0x22, 0x11})
	for name, body := range map[string][]byte{
		"variants in variants": append(bytes.Clone(read[:at]), bytes.Repeat([]byte{byte(ua.TypeIDVariant)}, 50_000)...),
		"an array of -2":       append(bytes.Clone(read[:at]), byte(ua.TypeIDInt32)|ua.VariantArrayValues, 0xfe, 0xff, 0xff, 0xff),
		"nothing":              {},
		"a request":            encoded(t, &ua.CloseSessionRequest{RequestHeader: &ua.RequestHeader{AuthenticationToken: ua.NewTwoByteNodeID(0)}}),
	} {
		t.Run(name, func(t *testing.T) {
			endpoint := serve(t, func(s *scripted) {
				if !s.greet() {
					return
				}
				b := s.next()
				if b == nil {
					return
				}
				s.opened(b)
				if b = s.next(); b != nil {
					s.answerRaw(b, body)
				}
				s.next()
			})
			if _, err := Dial(context.Background(), Config{Name: "test", Endpoint: endpoint, Timeout: 5 * time.Second}); err == nil || !strings.Contains(err.Error(), "message") && !strings.Contains(err.Error(), "decode") {
				t.Errorf("%v", err)
			}
		})
	}
	for name, b := range map[string]string{
		"HTTP":            "HTTP/1.1 400 Bad Request\r\n\r\n",
		"a huge chunk":    "ACKF\xff\xff\xff\x7f",
		"a tiny chunk":    "ACKF\x01\x00\x00\x00",
		"an error":        "ERRF\x10\x00\x00\x00\x00\x00\x7d\x80\xff\xff\xff\xff",
		"half an error":   "ERRF\x09\x00\x00\x00\x00",
		"an unknown part": "ACKX\x1c\x00\x00\x00",
	} {
		t.Run(name, func(t *testing.T) {
			endpoint := serve(t, func(s *scripted) {
				s.next()
				s.conn.Write([]byte(b))
			})
			if c, err := Dial(context.Background(), Config{Name: "test", Endpoint: endpoint, Timeout: 5 * time.Second}); err == nil {
				c.Close()
				t.Error("it connects")
			}
		})
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte("ACKF\x1c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("ERRF\x10\x00\x00\x00\x00\x00\x7d\x80\xff\xff\xff\xff"))
	f.Add([]byte("MSGF\x18\x00\x00\x00\x07\x00\x00\x00\x09\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00"))
	f.Add([]byte("OPNF\x20\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00\x00\x00\x01\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &channel{sec: security{policy: ua.SecurityPolicyURINone, mode: ua.MessageSecurityModeNone}, calls: map[uint32]chan<- answer{}, id: 7, known: []*keys{{token: 9}}}
		in := inbound{channel: c, parts: map[uint32][]byte{}}
		r := bufio.NewReaderSize(bytes.NewReader(b), maxChunk)
		for {
			fr, err := readFrame(r)
			if err != nil {
				return
			}
			acknowledged(fr)
			if in.take(fr) != nil {
				return
			}
		}
	})
}

func FuzzCertificate(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----"))
	f.Add([]byte{0x30, 0x82, 0x00, 0x01, 0x00, 0x30})
	f.Fuzz(func(t *testing.T, b []byte) {
		first := firstCertificate(b)
		if !bytes.HasPrefix(b, first) {
			t.Errorf("%x is not the beginning of %x", first, b)
		}
		ders, err := certificates(b)
		if err != nil {
			return
		}
		for _, der := range ders {
			_, _ = x509.ParseCertificate(der)
		}
	})
}
