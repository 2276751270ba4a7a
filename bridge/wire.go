package bridge

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/fieldferry/fieldferry/buffer"
)

const (
	maxRemaining = 268_435_455 // MQTT 5 §1.5.5
	maxString    = 65_535      // MQTT 5 §1.5.4
	writeChunk   = 64 << 10
)

var (
	errTooLong = errors.New("packet is longer than what was announced")
	errLength  = errors.New("malformed remaining length")
	errSend    = errors.New("send") // before what the socket says
)

// publish is a PUBLISH as it goes on the wire: the copy, and what this
// connection makes of it.
type publish struct {
	d      *buffer.Delivery
	id     uint16 // not used with QoS 0
	qos    byte
	dup    bool
	retain bool
	expiry uint32 // seconds left, 0 for never
	alias  uint16 // of the topic; 0 is none
	known  bool   // the upstream knows the alias: the topic is left out
}

func (p *publish) topic() string {
	if p.known {
		return ""
	}
	return p.d.Topic
}

// remaining is the Remaining Length (MQTT 5 §2.1.4).
func (p *publish) remaining() int {
	props := p.properties()
	n := 2 + len(p.topic()) + varLen(props) + props + len(p.d.Payload)
	if p.qos > 0 {
		n += 2
	}
	return n
}

func (p *publish) properties() int {
	n := len(p.d.Props)
	if p.expiry > 0 {
		n += 5
	}
	if p.alias > 0 {
		n += 3
	}
	return n
}

// size is that of the whole packet.
func (p *publish) size() int {
	n := p.remaining()
	return 1 + varLen(n) + n
}

// writeTo copies the packet into w. The properties were encoded when the copy
// was made, so packets.Publish, which wants them decoded, is not used.
func (p *publish) writeTo(w *bufio.Writer) error {
	h := append(w.AvailableBuffer(), packets.PUBLISH<<4|p.qos<<1)
	if p.dup {
		h[0] |= 0x08
	}
	if p.retain {
		h[0] |= 0x01
	}
	h = binary.AppendUvarint(h, uint64(p.remaining()))
	h = binary.BigEndian.AppendUint16(h, uint16(len(p.topic())))
	h = append(h, p.topic()...)
	if p.qos > 0 {
		h = binary.BigEndian.AppendUint16(h, p.id)
	}
	h = binary.AppendUvarint(h, uint64(p.properties()))
	if p.expiry > 0 {
		h = append(h, packets.PropMessageExpiry)
		h = binary.BigEndian.AppendUint32(h, p.expiry)
	}
	if p.alias > 0 {
		h = append(h, packets.PropTopicAlias)
		h = binary.BigEndian.AppendUint16(h, p.alias)
	}
	w.Write(h)
	w.Write(p.d.Props)
	_, err := w.Write(p.d.Payload) // a bufio.Writer's first error stays
	return err
}

// appendPubrel appends a PUBREL without a reason code (MQTT 5 §3.6.2.1).
func appendPubrel(dst []byte, id uint16) []byte {
	return append(dst, packets.PUBREL<<4|2, 2, byte(id>>8), byte(id))
}

// varLen is how many bytes a Variable Byte Integer takes; its encoding is that
// of binary.AppendUvarint for what MQTT allows.
func varLen(n int) int {
	switch {
	case n < 1<<7:
		return 1
	case n < 1<<14:
		return 2
	case n < 1<<21:
		return 3
	}
	return 4
}

// packet is what came from the upstream.
type packet struct {
	kind   byte   // packets.PUBACK and so on
	id     uint16 // of an acknowledgement
	code   byte   // reason code of an acknowledgement, CONNACK or DISCONNECT
	reason string // the Reason String that came with it

	content packets.Packet // of CONNACK, DISCONNECT, PUBLISH and SUBACK
}

// readPacket reads one packet of at most limit bytes of Remaining Length, which
// is looked at before packets.ReadPacket is, because that would believe any.
func readPacket(r *bufio.Reader, limit int) (packet, error) {
	head, err := r.Peek(2)
	if err != nil {
		return packet{}, err
	}
	length, used := binary.Uvarint(head[1:])
	for n := 3; used == 0; n++ {
		if n > 5 {
			return packet{}, errLength // MQTT 5 §1.5.5: four bytes at most
		}
		if head, err = r.Peek(n); err != nil {
			return packet{}, err
		}
		length, used = binary.Uvarint(head[1:])
	}
	if length > uint64(limit) {
		return packet{}, fmt.Errorf("%w: %d bytes, at most %d", errTooLong, length, limit)
	}
	p := packet{kind: head[0] >> 4}
	switch {
	case length == 2 && used == 1 && p.kind >= packets.PUBACK && p.kind <= packets.PUBCOMP:
		// nearly all that comes: an acknowledgement without a reason code (MQTT 5 §3.4.2.1)
		if head, err = r.Peek(4); err != nil {
			return packet{}, err
		}
		p.id = binary.BigEndian.Uint16(head[2:])
		_, err = r.Discard(4)
		return p, err
	case length == 0 && used == 1 && p.kind == packets.DISCONNECT: // MQTT 5 §3.14.2.1: reason 0; packets calls it EOF
		_, err = r.Discard(2)
		return p, err
	}
	cp, err := decode(r)
	if err != nil {
		return packet{}, err
	}
	p.id = cp.PacketID()
	switch c := cp.Content.(type) {
	case *packets.Puback:
		p.code, p.reason = c.ReasonCode, c.Properties.ReasonString
	case *packets.Pubrec:
		p.code, p.reason = c.ReasonCode, c.Properties.ReasonString
	case *packets.Pubcomp:
		p.code, p.reason = c.ReasonCode, c.Properties.ReasonString
	case *packets.Connack:
		p.code, p.reason, p.content = c.ReasonCode, c.Properties.ReasonString, c
	case *packets.Disconnect:
		p.code, p.reason, p.content = c.ReasonCode, c.Properties.ReasonString, c
	case *packets.Publish:
		p.content = c
	case *packets.Suback:
		p.content = c
	}
	return p, nil
}

// decode turns a panic into an error: where int has 32 bits, a property length
// above 2 GiB makes packets slice with a negative index.
func decode(r io.Reader) (cp *packets.ControlPacket, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("malformed packet: %v", v)
		}
	}()
	cp, err = packets.ReadPacket(r)
	if errors.Is(err, io.EOF) { // its header was there
		err = fmt.Errorf("malformed packet: %w", io.ErrUnexpectedEOF)
	}
	return cp, err
}

// line is a connection on which neither a read nor a write may take longer than
// it should.
type line struct {
	net.Conn
	silence  time.Duration // longest wait for a byte of the peer
	stall    time.Duration // longest wait for the socket to take 64 KiB
	received atomic.Int64  // when bytes last came, Unix ns
	onWait   func()        // called before each wait for the peer, if not nil
}

func (l *line) Read(p []byte) (int, error) {
	if l.onWait != nil {
		l.onWait()
	}
	if err := l.SetReadDeadline(time.Now().Add(l.silence)); err != nil {
		return 0, err
	}
	n, err := l.Conn.Read(p)
	if n > 0 {
		l.received.Store(time.Now().UnixNano())
	}
	return n, err
}

// Write gives every 64 KiB a deadline of its own, so that a slow link may carry
// a large message.
func (l *line) Write(p []byte) (written int, err error) {
	for written < len(p) && err == nil {
		var n int
		if err = l.SetWriteDeadline(time.Now().Add(l.stall)); err == nil {
			n, err = l.Conn.Write(p[written:min(len(p), written+writeChunk)])
		}
		written += n
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", errSend, err)
	}
	return written, err
}
