package simulate

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// A Server serves units over TCP, UDP and serial lines.
type Server struct {
	listener net.Listener

	mu    sync.Mutex // guards units
	units map[uint8]*Unit
}

// New returns a server without units.
func New() *Server { return &Server{units: map[uint8]*Unit{}} }

// Unit returns the unit with an id, which exists from then on. It may be called
// at any time.
func (s *Server) Unit(id uint8) *Unit {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.units[id]
	if u == nil {
		u = newUnit()
		s.units[id] = u
	}
	return u
}

// Open listens on host:port; port 0 takes a free one. Run closes the listener.
func (s *Server) Open(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("cannot serve devices: %w", err)
	}
	s.listener = l
	return nil
}

// Addr returns the address that Open listens on.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run serves what Open listens on until ctx ends, closes the listener and all
// connections, and returns nil. After another Open it may be run again, with the
// same units.
func (s *Server) Run(ctx context.Context) error { return s.Serve(ctx, s.listener) }

// Serve serves Modbus TCP on a listener, which may be one of TLS, as Run does.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	return serveAll(ctx, l, func(ctx context.Context, conn net.Conn) { s.serve(ctx, conn) })
}

// ServeLines serves frames of a serial line on a listener, as a serial server has
// them, as Run does.
func (s *Server) ServeLines(ctx context.Context, l net.Listener) error {
	return serveAll(ctx, l, func(ctx context.Context, conn net.Conn) { _ = s.ServeLine(ctx, conn) })
}

func serveAll(ctx context.Context, listener net.Listener, serve func(context.Context, net.Conn)) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		<-ctx.Done()
		listener.Close()
	})
	for {
		conn, err := listener.Accept()
		switch {
		case err == nil:
			wg.Go(func() { serve(ctx, conn) })
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("cannot serve devices: %w", err)
		default: // too many open files, say
			sleep(ctx, 100*time.Millisecond)
		}
	}
}

// serve answers what comes over a connection, in turn.
func (s *Server) serve(ctx context.Context, conn net.Conn) {
	in := bufio.NewReaderSize(conn, maxFrame)
	var request, answer []byte
	s.inTurn(ctx, conn, func() (frame []byte, fault Fault, err error) {
		if request, err = readFrame(in, request); err != nil {
			return nil, fault, err
		}
		answer, fault = s.frame(answer[:0], request)
		return answer, fault, nil
	})
}

// frame appends the answer to a request: frames of Modbus TCP both.
func (s *Server) frame(dst, request []byte) ([]byte, Fault) {
	dst = append(dst, request[:headerSize]...)
	var fault Fault
	if u := s.find(request[headerSize-1]); u == nil {
		dst = append(dst, request[headerSize]|0x80, gatewayTarget)
	} else {
		fault = u.asked()
		dst = u.answer(dst, request[headerSize:], fault.Exception)
	}
	binary.BigEndian.PutUint16(dst[4:], uint16(len(dst)-headerSize+1))
	return fault.spoil(dst), fault
}

// inTurn sends the answers that next makes, as their faults have it, until next
// fails or ctx ends, and closes the connection.
func (s *Server) inTurn(ctx context.Context, conn io.WriteCloser, next func() ([]byte, Fault, error)) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		<-ctx.Done()
		conn.Close()
	})
	for {
		answer, fault, err := next()
		if err != nil {
			return
		}
		if fault.Late && !fault.Dead {
			late := append([]byte(nil), answer...)
			wg.Go(func() {
				if sleep(ctx, fault.Delay) {
					_ = fault.send(conn, late)
				}
			})
			continue
		}
		if !sleep(ctx, fault.Delay) {
			return
		}
		if !fault.Dead {
			if err := fault.send(conn, answer); err != nil {
				return
			}
		}
		if fault.Hangup {
			return
		}
	}
}

func (s *Server) find(id uint8) *Unit {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.units[id]
}

// sleep waits and reports true, or false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// Exceptions. Modbus Application Protocol 1.1b3 §7.
const (
	illegalFunction = 1
	illegalAddress  = 2
	illegalValue    = 3
	gatewayTarget   = 11
)

// A frame is a header of transaction, protocol, length and unit, and a PDU. Its
// length is bounded by the 253 bytes of the longest PDU. MODBUS Messaging on
// TCP/IP Implementation Guide 1.0b §3.1.3, §4.2.1.
const (
	headerSize = 7
	maxFrame   = headerSize + 253
)

var errFrame = errors.New("not a Modbus TCP frame")

// readFrame reads a frame into buf, which it returns, longer if need be.
func readFrame(r io.Reader, buf []byte) ([]byte, error) {
	if cap(buf) < maxFrame {
		buf = make([]byte, maxFrame)
	}
	buf = buf[:headerSize]
	if _, err := io.ReadFull(r, buf); err != nil {
		return buf, err
	}
	n := headerSize - 1 + int(binary.BigEndian.Uint16(buf[4:])) // the length counts the unit
	if binary.BigEndian.Uint16(buf[2:]) != 0 || n <= headerSize || n > maxFrame {
		return buf, errFrame
	}
	buf = buf[:n]
	_, err := io.ReadFull(r, buf[headerSize:])
	return buf, err
}

// answer appends the answer to a request: PDUs both, of at least one byte.
func (u *Unit) answer(dst, pdu []byte, exception byte) []byte {
	function, start := pdu[0], len(dst)
	if exception == 0 {
		dst, exception = u.serve(append(dst, function), pdu)
	}
	if exception != 0 {
		dst = append(dst[:start], function|0x80, exception)
	}
	return dst
}
