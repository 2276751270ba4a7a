package opcua

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/gopcua/opcua/ua"
)

// Limits of a connection. OPC UA Part 6 §7.1.2.
const (
	minChunk   = 8192      // every side takes chunks of that size
	maxChunk   = 64 << 10  // that we take
	maxMessage = 2 << 20   // that we take
	maxPending = 64        // messages of which some chunks have come
	headerSize = 8         // kind, chunk type, size
	asciiText  = 4096 + 64 // longest text in an error of the server
)

// frame is one chunk, or one message of the connection itself.
type frame struct {
	kind string // "ACK", "ERR", "OPN", "MSG" or "CLO"
	part byte   // 'F' the last, 'C' more come, 'A' abandoned
	b    []byte // all of it, the header too
}

// body is what follows the header.
func (f frame) body() []byte { return f.b[headerSize:] }

// readFrame reads one. It allocates as much as has come.
func readFrame(r *bufio.Reader) (frame, error) {
	head, err := r.Peek(headerSize)
	if err != nil {
		return frame{}, err
	}
	f := frame{kind: string(head[:3]), part: head[3]}
	size := binary.LittleEndian.Uint32(head[4:])
	switch {
	case f.kind != "ACK" && f.kind != "ERR" && f.kind != "OPN" && f.kind != "MSG" && f.kind != "CLO":
		return frame{}, errors.New("what answers does not speak OPC UA")
	case f.part != 'F' && f.part != 'C' && f.part != 'A':
		return frame{}, fmt.Errorf("a chunk of the unknown kind %q came", f.part)
	case size < headerSize || size > maxChunk:
		return frame{}, fmt.Errorf("a chunk of %d bytes came; the most is %d", size, maxChunk)
	}
	f.b = make([]byte, size)
	_, err = io.ReadFull(r, f.b)
	return f, err
}

// hello is the first message of a connection. OPC UA Part 6 §7.1.2.3.
func hello(url string) []byte {
	b := []byte("HELF\x00\x00\x00\x00")
	for _, n := range []uint32{0, maxChunk, maxChunk, maxMessage, 0} { // version, buffers, most bytes and chunks of an answer
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	b = appendText(b, url)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)))
	return b
}

// acknowledged reads the answer to a hello, and returns how long our chunks may be.
func acknowledged(f frame) (chunk int, err error) {
	switch {
	case f.kind == "ERR":
		return 0, serverError(f)
	case f.kind != "ACK" || len(f.body()) < 20:
		return 0, errors.New("what answers does not speak OPC UA")
	}
	// What it receives is what we send, and the other way round.
	size := binary.LittleEndian.Uint32(f.body()[4:])
	if size < minChunk {
		return 0, fmt.Errorf("the server takes chunks of %d bytes only; the standard wants %d", size, minChunk)
	}
	return int(min(size, maxChunk)), nil
}

// serverError is why the server closes the connection. OPC UA Part 6 §7.1.2.5.
func serverError(f frame) error {
	b := f.body()
	if len(b) < 4 {
		return errors.New("the server ends the connection and does not say why")
	}
	status := ua.StatusCode(binary.LittleEndian.Uint32(b))
	w := walker{b: b[4:]}
	text := ""
	if w.text() == nil && len(b) > 8 && len(b) < asciiText {
		text = string(b[8 : len(b)-len(w.b)])
	}
	if text == "" {
		return fmt.Errorf("the server ends the connection: %w", statusError{status})
	}
	return fmt.Errorf("the server ends the connection: %w (%q)", statusError{status}, text)
}

func appendText(b []byte, s string) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// appendBytes appends a byte string, nil as none.
func appendBytes(b, s []byte) []byte {
	if s == nil {
		return binary.LittleEndian.AppendUint32(b, 0xffffffff)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}
