package packet

import (
	"io"
	"sync"
)

// BlockSize is the size of the buffers that Blocks lends, in bytes.
const BlockSize = 16 << 10

// smallSize is what a connection that is idle keeps to read into.
const smallSize = 256

// firstPiece is what is allocated at once for a long packet; after that it
// grows as its bytes arrive, since its length is only a claim.
const firstPiece = 64 << 10

// Blocks lends buffers to connections for as long as they are busy. The zero
// value is ready; it is safe for concurrent use.
type Blocks struct{ pool sync.Pool }

// Get lends a buffer of BlockSize bytes.
func (b *Blocks) Get() *[BlockSize]byte {
	if block, ok := b.pool.Get().(*[BlockSize]byte); ok {
		return block
	}
	return new([BlockSize]byte)
}

// Put takes a buffer back.
func (b *Blocks) Put(block *[BlockSize]byte) { b.pool.Put(block) }

// Reader reads packets from a stream. It borrows a block while much arrives,
// and an error in the middle of a packet, such as a deadline, loses nothing: the
// next call goes on. It is for one goroutine.
type Reader struct {
	src     io.Reader
	blocks  *Blocks
	limit   int
	version Version

	buf   []byte // small[:] or block[:]; buf[r:w] is read and not yet taken
	r, w  int
	full  bool // the last read filled buf, so there may be more
	block *[BlockSize]byte
	small [smallSize]byte

	first  byte // of the packet that is being read
	length int  // its Remaining Length, -1 before its header is taken
	body   []byte
	have   int
}

// NewReader returns a Reader of src that refuses packets of more than limit
// bytes, header included.
func NewReader(src io.Reader, blocks *Blocks, limit int) *Reader {
	r := &Reader{src: src, blocks: blocks, limit: limit, length: -1}
	r.buf = r.small[:]
	return r
}

// SetLimit changes the limit for the packets to come.
func (r *Reader) SetLimit(limit int) { r.limit = limit }

// SetVersion tells what the connection speaks: with version 5 a Remaining
// Length that is longer than it need be is malformed [MQTT-1.5.5-1].
func (r *Reader) SetVersion(v Version) { r.version = v }

// Header waits for the first byte and the length of the next packet, without
// allocating anything, and returns the first byte. Calling it again before
// Body returns the same.
func (r *Reader) Header() (first byte, err error) {
	for r.length < 0 {
		if b := r.buf[r.r:r.w]; len(b) > 0 {
			if err := checkFirst(b[0]); err != nil {
				return 0, err
			}
			v, n, err := readVarint(b[1:])
			switch {
			case err != nil:
				return 0, err
			case n > 1 && v>>(7*(n-1)) == 0 && r.version == V5:
				return 0, malformed("a Remaining Length that is longer than it need be")
			case n > 0 && 1+n+int(v) > r.limit:
				return 0, Errorf(PacketTooLarge, "%v of %d bytes, the limit is %d", TypeOf(b[0]), 1+n+int(v), r.limit)
			case n > 0:
				r.first, r.length, r.have = b[0], int(v), 0
				r.r += 1 + n
				return r.first, nil
			}
		}
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	return r.first, nil
}

// Next returns the next packet. The body of a PUBLISH is allocated for it and
// belongs to the caller; any other is valid until the next call.
func (r *Reader) Next() (first byte, body []byte, err error) {
	if _, err := r.Header(); err != nil {
		return 0, nil, err
	}
	if TypeOf(r.first) == PUBLISH || r.length > BlockSize {
		body, err = r.own()
	} else {
		body, err = r.borrowed()
	}
	if err != nil {
		return 0, nil, err
	}
	r.length, r.body = -1, nil
	return r.first, body, nil
}

// borrowed returns the body where it is in the buffer.
func (r *Reader) borrowed() ([]byte, error) {
	for r.w-r.r < r.length {
		if err := r.fill(); err != nil {
			return nil, err
		}
	}
	body := r.buf[r.r : r.r+r.length : r.r+r.length]
	r.r += r.length
	return body, nil
}

// own returns the body in memory of its own.
func (r *Reader) own() ([]byte, error) {
	if r.body == nil {
		r.body = make([]byte, min(r.length, firstPiece))
	}
	for r.have < r.length {
		if r.have == len(r.body) {
			longer := make([]byte, min(r.length, 2*len(r.body)))
			copy(longer, r.body)
			r.body = longer
		}
		switch {
		case r.r < r.w:
			n := copy(r.body[r.have:], r.buf[r.r:r.w])
			r.have += n
			r.r += n
		case r.length-r.have >= BlockSize:
			n, err := r.src.Read(r.body[r.have:])
			r.have += n
			if n == 0 && err != nil {
				return nil, r.broken(err)
			}
		default:
			if err := r.fill(); err != nil {
				return nil, err
			}
		}
	}
	return r.body, nil
}

// fill reads once, behind what is in the buffer.
func (r *Reader) fill() error {
	if r.r == r.w {
		r.r, r.w = 0, 0
	}
	switch {
	case r.block == nil && (r.full && r.w == 0 || r.w == len(r.buf)):
		r.block = r.blocks.Get()
		r.move(r.block[:])
	case r.w == len(r.buf):
		r.move(r.buf)
	}
	space := r.buf[r.w:]
	n, err := r.src.Read(space)
	r.w += n
	r.full = n == len(space)
	if n > 0 || err == nil {
		return nil // an error comes again
	}
	return r.broken(err)
}

// move makes buf the buffer, with what is not yet taken at its beginning.
func (r *Reader) move(buf []byte) {
	r.w = copy(buf, r.buf[r.r:r.w])
	r.r = 0
	r.buf = buf
}

// broken tells the end of the stream in the middle of a packet from a proper one.
func (r *Reader) broken(err error) error {
	if err == io.EOF && (r.length >= 0 || r.r < r.w) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Buffered reports whether bytes are there for which no read is needed.
func (r *Reader) Buffered() bool { return r.r < r.w }

// Busy reports whether the reader holds a block.
func (r *Reader) Busy() bool { return r.block != nil }

// Idle gives the block back if nothing is in it. Bodies that are not the
// caller's own are not valid any more.
func (r *Reader) Idle() {
	if r.block != nil && r.r == r.w {
		r.Close()
	}
}

// Close gives the block back whatever is in it; the Reader is empty then.
func (r *Reader) Close() {
	if r.block != nil {
		r.blocks.Put(r.block)
		r.block = nil
	}
	r.buf, r.r, r.w, r.full = r.small[:], 0, 0, false
}
