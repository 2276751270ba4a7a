package dial

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
)

// maxProxyAnswer is how many bytes the head of a proxy's answer may have.
const maxProxyAnswer = 64 << 10

// ProxyError says that the proxy did not connect us.
type ProxyError struct {
	Proxy  string // host:port
	Status int    // of its answer; 0: it could not be reached, or gave none
	Err    error  // why, if there is no status
}

func (e *ProxyError) Error() string {
	if e.Status == 0 {
		return fmt.Sprintf("proxy %s: %v", e.Proxy, e.Err)
	}
	return fmt.Sprintf("proxy %s answered %d %s", e.Proxy, e.Status, http.StatusText(e.Status))
}

func (e *ProxyError) Unwrap() error { return e.Err }

// throughProxy has the proxy connect us to an address.
func (d *Dialer) throughProxy(ctx context.Context, address string) (net.Conn, error) {
	host := proxyAddress(d.Proxy)
	failed := func(err error) error { return &ProxyError{Proxy: host, Err: err} }
	var nd net.Dialer
	nc, err := nd.DialContext(ctx, "tcp", host)
	if err != nil {
		return nil, failed(err)
	}
	if d.Proxy.Scheme == "https" {
		c := &tls.Config{ServerName: d.Proxy.Hostname(), MinVersion: tls.VersionTLS12}
		if d.TLS != nil { // its authorities alone: what we are is for the upstream
			if own := d.TLS(); own != nil {
				c.RootCAs = own.RootCAs
			}
		}
		if nc, err = handshake(ctx, nc, c); err != nil {
			return nil, failed(err)
		}
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	tunnel, err := askProxy(nc, d.Proxy.User, host, address)
	if !stop() && err == nil {
		err = failed(context.Cause(ctx))
	}
	if err != nil {
		nc.Close()
		if ctx.Err() != nil {
			err = failed(context.Cause(ctx)) // not that the connection was closed, which we did
		}
		return nil, err
	}
	return tunnel, nil
}

func proxyAddress(proxy *url.URL) string {
	port := proxy.Port()
	if port == "" {
		if port = "80"; proxy.Scheme == "https" {
			port = "443"
		}
	}
	return net.JoinHostPort(proxy.Hostname(), port)
}

// askProxy asks for a tunnel on a connection to a proxy.
func askProxy(nc net.Conn, user *url.Userinfo, proxy, address string) (net.Conn, error) {
	request := "CONNECT " + address + " HTTP/1.1\r\nHost: " + address + "\r\n"
	if user != nil {
		password, _ := user.Password()
		request += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)) + "\r\n"
	}
	if _, err := io.WriteString(nc, request+"\r\n"); err != nil {
		return nil, &ProxyError{Proxy: proxy, Err: err}
	}
	r, err := readAnswer(nc, proxy)
	if err != nil {
		return nil, err
	}
	if r.Buffered() == 0 {
		return nc, nil
	}
	return &begun{nc, r}, nil
}

// readAnswer reads the head of a proxy's answer, which must be good. What the reader
// holds then is the upstream's.
func readAnswer(from io.Reader, proxy string) (*bufio.Reader, error) {
	limited := &io.LimitedReader{R: from, N: maxProxyAnswer}
	r := bufio.NewReader(limited)
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	switch {
	case err != nil && limited.N == 0:
		err = errors.New("the head of its answer is too long")
	case err == nil && resp.StatusCode/100 == 2:
		return r, nil
	case err == nil:
		return nil, &ProxyError{Proxy: proxy, Status: resp.StatusCode}
	}
	return nil, &ProxyError{Proxy: proxy, Err: fmt.Errorf("its answer is no HTTP: %w", err)}
}

// begun is a connection of which some bytes were read already.
type begun struct {
	net.Conn
	r *bufio.Reader
}

func (c *begun) Read(p []byte) (int, error) {
	if n := c.r.Buffered(); n > 0 {
		return c.r.Read(p[:min(len(p), n)])
	}
	return c.Conn.Read(p)
}
