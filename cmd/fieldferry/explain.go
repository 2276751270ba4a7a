package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// explain adds to an error of a connection what to check.
func (c *connection) explain(err error) error {
	if hint := c.hint(err); hint != "" {
		return fmt.Errorf("%w; %s", err, hint)
	}
	return err
}

func (c *connection) hint(err error) string {
	if e, ok := errors.AsType[*packet.Error](err); ok {
		return c.hintOf(e.Reason)
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		if dns.IsNotFound {
			return "check the name of the host, and whether this machine can resolve it"
		}
		return "the name server does not answer; check the network"
	}
	if hint := hintTLS(err); hint != "" {
		return hint
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens at " + c.address + "; check --broker, and whether the broker runs"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return fmt.Sprintf("no answer from %s within %s; check --broker, the network and its firewalls, and whether the port wants TLS (mqtts://)", c.address, c.timeout)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "this machine has no way to " + c.address + "; check the network"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		if c.tls == nil {
			return "the broker closed the connection and did not say why; check whether the port wants TLS (mqtts://), whether it speaks MQTT " + c.version + " (--mqtt), and its log"
		}
		return "the broker closed the connection and did not say why; check whether the port speaks TLS (mqtt:// if not), whether it wants a certificate (--cert, --key), whether it speaks MQTT " + c.version + " (--mqtt), and its log"
	}
	return ""
}

func (c *connection) hintOf(r packet.Reason) string {
	switch r {
	case packet.UnsupportedVersion:
		if c.mqtt == packet.V5 {
			return "try --mqtt 3.1.1"
		}
		return "try --mqtt 5"
	case packet.BadUserNameOrPassword:
		return "check --user and --password, or $" + envUser + " and $" + envPassword
	case packet.NotAuthorized:
		if c.user == "" {
			return "the broker may want a user name: --user and --password, or $" + envUser + " and $" + envPassword
		}
		return fmt.Sprintf("check what the user %q may do there (the acl_file, if it is Fieldferry or Mosquitto), and the password", c.user)
	case packet.ClientIDNotValid:
		return "choose another client id: --client-id"
	case packet.SessionTakenOver:
		return "another client has the same client id; choose another: --client-id"
	case packet.Malformed, packet.ProtocolError:
		return "check whether an MQTT broker is at " + c.address + ", and whether it speaks MQTT " + c.version + " (--mqtt)"
	case packet.ServerUnavailable, packet.ServerBusy, packet.ServerShuttingDown, packet.ConnectionRateExceeded:
		return "try again later"
	case packet.QuotaExceeded:
		return "a limit of the broker is reached; its log says which"
	case packet.QoSNotSupported:
		return "choose a lower --qos"
	case packet.RetainNotSupported:
		return "leave --retain out"
	case packet.PacketTooLarge:
		return "send less, or raise the broker's limit for packets"
	case packet.TopicNameInvalid, packet.TopicFilterInvalid:
		return "the broker does not take this topic; it may have too many levels"
	}
	return ""
}

// hintTLS says what to check when TLS fails.
func hintTLS(err error) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "give the certificate of its authority with --ca"
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "write the host in --broker as the certificate has it"
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		return "renew the broker's certificate, or set this machine's clock"
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "the port does not speak TLS; try mqtt://"
	}
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == "remote error" { // as crypto/tls tells an alert
		return "check whether it wants a certificate (--cert, --key) and takes the one it got"
	}
	return ""
}
