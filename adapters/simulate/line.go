package simulate

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
)

// maxRTU is the longest frame on a line. Modbus over Serial Line 1.02 §2.5.1.1.
const maxRTU = 256

// ServeLine answers the RTU frames that come over a line until it ends, or ctx
// does, and closes it. Units that do not exist are silent, as they are there.
func (s *Server) ServeLine(ctx context.Context, line io.ReadWriteCloser) error {
	var buf, answer []byte
	var failed error
	s.inTurn(ctx, line, func() ([]byte, Fault, error) {
		for {
			var request []byte
			if request, buf = takeRequest(buf); request == nil {
				chunk := make([]byte, maxRTU)
				n, err := line.Read(chunk)
				if err != nil {
					failed = err
					return nil, Fault{}, err
				}
				buf = append(buf, chunk[:n]...)
				continue
			}
			fault, ok := Fault{}, false
			if answer, fault, ok = s.lineFrame(answer[:0], request); ok {
				return answer, fault, nil
			}
		}
	})
	if ctx.Err() != nil || errors.Is(failed, io.EOF) {
		return nil
	}
	return failed
}

// ServePackets answers Modbus TCP frames, or those of a line, that come as
// datagrams until ctx ends, and closes the connection. Faults are as elsewhere, but
// the answer is always one datagram.
func (s *Server) ServePackets(ctx context.Context, conn net.PacketConn, lines bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	buf := make([]byte, maxFrame+1)
	for {
		n, from, err := conn.ReadFrom(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		var answer []byte
		var fault Fault
		if lines {
			request, _ := takeRequest(buf[:n])
			if request == nil {
				continue
			}
			var ok bool
			if answer, fault, ok = s.lineFrame(nil, request); !ok {
				continue
			}
		} else {
			if n <= headerSize || int(binary.BigEndian.Uint16(buf[4:])) != n-headerSize+1 {
				continue
			}
			answer, fault = s.frame(nil, buf[:n])
		}
		if fault.Dead || !sleep(ctx, fault.Delay) {
			continue
		}
		if _, err := conn.WriteTo(answer, from); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// lineFrame appends the answer to a request; there may be none.
func (s *Server) lineFrame(dst, request []byte) ([]byte, Fault, bool) {
	if request[0] == 0 { // for all, and none answers
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, u := range s.units {
			u.answer(nil, request[1:len(request)-2], 0)
		}
		return dst, Fault{}, false
	}
	u := s.find(request[0])
	if u == nil {
		return dst, Fault{}, false
	}
	fault := u.asked()
	dst = u.answer(append(dst, request[0]), request[1:len(request)-2], fault.Exception)
	return fault.spoilLine(dst), fault, true
}

// takeRequest takes the first whole request from what came, and returns what may
// be the beginning of the next.
func takeRequest(buf []byte) (request, rest []byte) {
	for len(buf) >= 4 {
		n := requestSize(buf)
		if n > maxRTU || n > 0 && len(buf) >= n && crc16(buf[:n]) != 0 {
			buf = buf[1:]
			continue
		}
		if n == 0 || len(buf) < n {
			return nil, buf
		}
		return buf[:n], buf[n:]
	}
	return nil, buf
}

// requestSize returns how long a request is that begins so; 0 if more is needed to
// know.
func requestSize(b []byte) int {
	counted := func(at, rest int) int {
		if len(b) <= at {
			return 0
		}
		return at + 1 + int(b[at]) + rest
	}
	switch b[1] {
	case fnWriteCoils, fnWriteRegisters:
		return counted(6, 2)
	case fnReadWrite:
		return counted(10, 2)
	case fnMaskWrite:
		return 10
	case fnEncapsulated:
		return 7
	}
	return 8
}

// crc16 is the checksum of Modbus over Serial Line 1.02 §6.2.2. That of a frame
// with its own is 0.
func crc16(b []byte) uint16 {
	c := uint16(0xFFFF)
	for _, x := range b {
		c ^= uint16(x)
		for range 8 {
			if c&1 != 0 {
				c = c>>1 ^ 0xA001
			} else {
				c >>= 1
			}
		}
	}
	return c
}

func appendCRC(b []byte) []byte { return binary.LittleEndian.AppendUint16(b, crc16(b)) }
