package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fieldferry/fieldferry/localbroker/client"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// The environment variables for what should not stand on a command line.
const (
	envUser     = "FIELDFERRY_USER"
	envPassword = "FIELDFERRY_PASSWORD"
)

// connection is how pub and tail reach a broker: any broker.
type connection struct {
	broker         string
	user, password string
	clientID       string
	version        string
	ca, cert, key  string
	insecure       bool
	timeout        time.Duration

	address string // host:port
	tls     *tls.Config
	mqtt    packet.Version
}

func (c *connection) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&c.broker, "broker", "b", "mqtt://127.0.0.1:1883", "the broker's `URL`: mqtt://HOST:PORT, or mqtts:// with TLS")
	f.StringVarP(&c.user, "user", "u", "", "the user `NAME` ($"+envUser+")")
	f.StringVarP(&c.password, "password", "P", "", "the `PASSWORD`, which others can see here but not in $"+envPassword)
	f.StringVarP(&c.clientID, "client-id", "i", "", "the client `ID` (default one at random)")
	f.StringVar(&c.version, "mqtt", "5", "the `VERSION` of MQTT: 5 or 3.1.1")
	f.StringVar(&c.ca, "ca", "", "the `FILE` with the certificates of the authorities that are trusted (default the system's)")
	f.StringVar(&c.cert, "cert", "", "the `FILE` with the client's certificate")
	f.StringVar(&c.key, "key", "", "the `FILE` with the key of --cert")
	f.BoolVar(&c.insecure, "insecure", false, "do not check the broker's certificate")
	f.DurationVar(&c.timeout, "timeout", 10*time.Second, "how long the broker may take for an answer")
}

// resolve takes what was given apart. The error is in usage, or a file's.
func (c *connection) resolve() error {
	switch c.version {
	case "5":
		c.mqtt = packet.V5
	case "3.1.1":
		c.mqtt = packet.V311
	default:
		return usageError{fmt.Errorf("--mqtt %s: there is no such version; write 5 or 3.1.1", c.version)}
	}
	if c.timeout <= 0 {
		return usageError{fmt.Errorf("--timeout %s is no time to wait", c.timeout)}
	}
	secure, err := c.parse()
	if err != nil {
		return usageError{err}
	}
	c.user = cmp.Or(c.user, os.Getenv(envUser))
	c.password = cmp.Or(c.password, os.Getenv(envPassword))
	if c.password != "" && c.user == "" && c.mqtt == packet.V311 {
		return usageError{errors.New("a password needs a user name with MQTT 3.1.1; give --user as well")}
	}
	if c.clientID == "" {
		c.clientID = "fieldferry" + rand.Text()[:10] // what every broker must take, 3.1.1 §3.1.3.1
	}
	return c.secure(secure)
}

// parse takes the broker's URL apart.
func (c *connection) parse() (secure bool, err error) {
	text := c.broker
	if !strings.Contains(text, "://") {
		text = "mqtt://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		if err == nil && (u.Scheme == "ws" || u.Scheme == "wss") {
			return false, fmt.Errorf("--broker: %s:// is not in this version; write mqtt://HOST:PORT or mqtts://HOST:PORT", u.Scheme)
		}
		return false, errors.New("--broker is no address of a broker; write mqtt://HOST:PORT or mqtts://HOST:PORT") // it may hold a password
	}
	port := "1883"
	switch u.Scheme {
	case "mqtt", "tcp":
	case "mqtts", "ssl", "tls":
		secure, port = true, "8883"
	case "ws", "wss":
		return false, fmt.Errorf("--broker: %s:// is not in this version; write mqtt://HOST:PORT or mqtts://HOST:PORT", u.Scheme)
	default:
		return false, fmt.Errorf("--broker: %s:// is not for brokers; write mqtt://HOST:PORT or mqtts://HOST:PORT", u.Scheme)
	}
	c.address = net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port))
	if u.User != nil {
		password, _ := u.User.Password()
		c.user, c.password = cmp.Or(c.user, u.User.Username()), cmp.Or(c.password, password)
	}
	return secure, nil
}

// secure reads the files of TLS.
func (c *connection) secure(yes bool) error {
	switch {
	case !yes && (c.ca != "" || c.cert != "" || c.key != "" || c.insecure):
		return usageError{errors.New("--ca, --cert, --key and --insecure are for TLS; write --broker mqtts://HOST:PORT")}
	case (c.cert == "") != (c.key == ""):
		return usageError{errors.New("--cert and --key go together; give both")}
	case !yes:
		return nil
	}
	host, _, err := net.SplitHostPort(c.address)
	if err != nil {
		return usageError{err}
	}
	c.tls = &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12, InsecureSkipVerify: c.insecure}
	if c.ca != "" {
		text, err := os.ReadFile(c.ca)
		if err != nil {
			return fmt.Errorf("--ca: %w", err)
		}
		c.tls.RootCAs = x509.NewCertPool()
		if !c.tls.RootCAs.AppendCertsFromPEM(text) {
			return fmt.Errorf("--ca: there is no certificate in %s; it must be in PEM, with a line BEGIN CERTIFICATE", c.ca)
		}
	}
	if c.cert != "" {
		pair, err := tls.LoadX509KeyPair(c.cert, c.key)
		if err != nil {
			return fmt.Errorf("--cert and --key: %w", err)
		}
		c.tls.Certificates = []tls.Certificate{pair}
	}
	return nil
}

// dial connects. The error ends with what to check.
func (c *connection) dial(ctx context.Context, handler func(*client.Message)) (*client.Client, error) {
	o := client.Options{
		Address:   c.address,
		Version:   c.mqtt,
		ClientID:  c.clientID,
		Username:  c.user,
		MaxPacket: packet.MaxLength + 5,
		Handler:   handler,
	}
	if c.mqtt == packet.V311 {
		// A 3.1.1 broker cannot say how many it takes. Mosquitto 2.0 acknowledges
		// more than 20 with QoS 2 at a time and loses the rest.
		o.MaxInflight = 20
	}
	if c.password != "" {
		o.Password = []byte(c.password)
	}
	if c.tls != nil {
		o.Dial = func(ctx context.Context) (net.Conn, error) {
			return (&tls.Dialer{Config: c.tls}).DialContext(ctx, "tcp", c.address)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	conn, err := client.Connect(ctx, o)
	if err != nil {
		return nil, c.explain(err)
	}
	return conn, nil
}
