package modbus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"time"

	"github.com/simonvetter/modbus"
)

// network is a wire of frames with transaction numbers: Modbus TCP, also over TLS
// and UDP. The library has the functions 1 to 6, 15 and 16; the others are
// exchanged over a connection of our own, which takes the place of its own
// meanwhile, as many devices serve one alone.
type network struct {
	transport string
	address   string
	timeout   time.Duration
	files     *TLSFiles

	client *modbus.ModbusClient // nil while there is no connection
	txn    uint16
}

func newNetwork(c *Config) (*network, error) {
	n := &network{transport: c.Transport, address: c.Address, timeout: c.Timeout, files: c.TLS}
	if n.transport == "" {
		n.transport = "tcp"
	}
	if n.transport == "tcp+tls" && n.files == nil {
		return nil, errors.New("tcp+tls needs certificates")
	}
	return n, nil
}

// open reads the certificates anew, so that they can be renewed meanwhile.
func (n *network) open(context.Context) error {
	c := &modbus.ClientConfiguration{
		URL:     n.transport + "://" + n.address,
		Timeout: n.timeout,
		Logger:  log.New(io.Discard, "", 0), // without one it writes to stdout
	}
	if n.files != nil {
		cert, roots, err := n.files.load()
		if err != nil {
			return err
		}
		c.TLSClientCert, c.TLSRootCAs = &cert, roots
	}
	client, err := modbus.NewClient(c)
	if err != nil {
		return fmt.Errorf("cannot use %s: %w", n.address, err)
	}
	if err := client.Open(); err != nil {
		return err
	}
	n.client = client
	return nil
}

func (n *network) close() error {
	if n.client == nil {
		return nil
	}
	client := n.client
	n.client = nil
	return client.Close()
}

func (n *network) end() {}

func (n *network) spent(err error) bool { return exception(err) == 0 }

// library returns the library's client for a unit.
func (n *network) library(unit uint8) (*modbus.ModbusClient, error) {
	if n.client == nil {
		if err := n.open(context.Background()); err != nil {
			return nil, err
		}
	}
	return n.client, n.client.SetUnitId(unit)
}

func (n *network) readBits(unit uint8, t Table, start, count uint16) ([]bool, error) {
	client, err := n.library(unit)
	if err != nil {
		return nil, err
	}
	if t == Discrete {
		return client.ReadDiscreteInputs(start, count)
	}
	return client.ReadCoils(start, count)
}

func (n *network) readRegisters(unit uint8, t Table, start, count uint16) ([]byte, error) {
	client, err := n.library(unit)
	if err != nil {
		return nil, err
	}
	table := modbus.HOLDING_REGISTER
	if t == Input {
		table = modbus.INPUT_REGISTER
	}
	return client.ReadRawBytes(start, 2*count, table)
}

func (n *network) exchange(unit uint8, pdu []byte) ([]byte, error) {
	switch pdu[0] {
	case fnWriteCoil, fnWriteRegister, fnWriteCoils, fnWriteRegisters:
		client, err := n.library(unit)
		if err != nil {
			return nil, err
		}
		at, value := binary.BigEndian.Uint16(pdu[1:]), binary.BigEndian.Uint16(pdu[3:])
		switch pdu[0] {
		case fnWriteCoil:
			err = client.WriteCoilValue(at, value)
		case fnWriteRegister:
			err = client.WriteRegister(at, value)
		case fnWriteCoils:
			err = client.WriteCoils(at, unpackBits(pdu[6:], int(value)))
		case fnWriteRegisters:
			err = client.WriteRawBytes(at, pdu[6:])
		}
		return pdu[:5], err
	}
	return n.raw(unit, pdu)
}

// raw exchanges PDUs over a connection of its own.
func (n *network) raw(unit uint8, pdu []byte) ([]byte, error) {
	if err := n.close(); err != nil {
		return nil, err
	}
	deadline := time.Now().Add(max(n.timeout, 5*time.Second)) // as the library has it for connecting
	conn, err := n.dial(deadline)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	n.txn++
	// MODBUS Messaging on TCP/IP Implementation Guide 1.0b §3.1.3
	frame := binary.BigEndian.AppendUint16(nil, n.txn)
	frame = append(frame, 0, 0)
	frame = binary.BigEndian.AppendUint16(frame, uint16(1+len(pdu)))
	frame = append(append(frame, unit), pdu...)
	if err := conn.SetDeadline(time.Now().Add(n.timeout)); err != nil {
		return nil, err
	}
	if _, err := conn.Write(frame); err != nil {
		return nil, err
	}
	buf := make([]byte, 7+253)
	if n.transport == "udp" {
		got, err := conn.Read(buf)
		return n.answer(unit, pdu, buf[:got], err)
	}
	if _, err := io.ReadFull(conn, buf[:7]); err != nil {
		return n.answer(unit, pdu, nil, err)
	}
	size := 6 + int(binary.BigEndian.Uint16(buf[4:]))
	if size < 8 || size > len(buf) {
		return nil, errAnswer
	}
	_, err = io.ReadFull(conn, buf[7:size])
	return n.answer(unit, pdu, buf[:size], err)
}

// answer checks a frame. The connection is new, so that the first one is the
// answer or there is none.
func (n *network) answer(unit uint8, pdu, frame []byte, err error) ([]byte, error) {
	switch {
	case os.IsTimeout(err):
		return nil, modbus.ErrRequestTimedOut
	case err != nil:
		return nil, err
	case len(frame) < 8 || binary.BigEndian.Uint16(frame) != n.txn || frame[2] != 0 || frame[3] != 0 ||
		int(binary.BigEndian.Uint16(frame[4:])) != len(frame)-6:
		return nil, errAnswer
	case frame[6] != unit && (frame[6] != 255 || frame[7]&0x80 == 0): // a gateway's exception may be of 255
		return nil, errAnswer
	}
	return takeAnswer(frame[7:], pdu)
}

func (n *network) dial(deadline time.Time) (net.Conn, error) {
	d := net.Dialer{Deadline: deadline}
	switch n.transport {
	case "udp":
		return d.Dial("udp", n.address)
	case "tcp+tls":
		cert, roots, err := n.files.load()
		if err != nil {
			return nil, err
		}
		// MODBUS/TCP Security 3.6 §7: TLS 1.2 or later, and certificates both ways
		return tls.DialWithDialer(&d, "tcp", n.address, &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, MinVersion: tls.VersionTLS12})
	}
	return d.Dial("tcp", n.address)
}

// load reads the files.
func (f *TLSFiles) load() (tls.Certificate, *x509.CertPool, error) {
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return cert, nil, fmt.Errorf("the certificate %s and the key %s: %w", f.Cert, f.Key, err)
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return cert, nil, fmt.Errorf("the authority of the device: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return cert, nil, fmt.Errorf("the authority of the device: %s holds no certificate", f.CA)
	}
	return cert, roots, nil
}
