package log

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Seq orders the records of one log: the epoch of the process life that wrote
// the record in the upper 24 bits, a counter that starts at 1 in the lower 40.
// Gaps are normal; the order of two records is the order of their numbers.
type Seq uint64

const counterBits = 40

// FirstOf is the lowest number an epoch gives.
func FirstOf(epoch uint32) Seq { return Seq(epoch)<<counterBits | 1 }

// Epoch is the process life that wrote the record.
func (s Seq) Epoch() uint32 { return uint32(s >> counterBits) }

func (s Seq) String() string {
	return fmt.Sprintf("%d.%d", s.Epoch(), uint64(s)&(1<<counterBits-1))
}

// The bytes of a block, big endian. docs/format-buffer.md shows them with their
// reasons.
//
//	 0  4  magic "FFB1"
//	 4  1  version, 1
//	 5  1  class of the log
//	 6  1  codec of the body: 0 none, 1 zstd
//	 7  1  flags, 0
//	 8  8  sequence number of the first record
//	16  4  number of records
//	20  4  length of the directory
//	24  4  length of the body as stored
//	28  4  length of the body, decoded
//	32  8  wall clock at the commit, Unix ms
//	40  8  time since the machine booted, ns (CLOCK_BOOTTIME)
//	48  8  id of that boot
//	56  4  CRC32C of bytes 0 to 55 and the directory
//	60  4  CRC32C of bytes 56 to 59 and the body as stored
//	64     directory: the owner's bytes, never compressed
//	       body: each record as uvarint length and bytes
const (
	headerSize   = 64
	blockVersion = 1
	magic        = "FFB1"

	codecNone = 0
	codecZstd = 1

	// decodeSlack lets the decoder copy without looking where the body ends: a tenth
	// faster.
	decodeSlack = 16

	// maxBody bounds what a damaged length can make a reader allocate.
	maxBody = 1 << 28
)

// ErrDamaged is returned for a block whose bytes are not those that were
// written.
var ErrDamaged = errors.New("block is damaged")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Header says what a block holds and when it was written.
type Header struct {
	First  Seq
	Count  int
	Class  byte
	Wall   time.Time     // at the commit, in the machine's belief
	Uptime time.Duration // since the machine booted
	Boot   uint64        // which boot Uptime counts from

	Memo *Memo // nil for a block from its file

	codec            byte
	dir, stored, raw int
}

// Memo is what the readers of a block in memory have worked out about it, for those who
// come after them.
type Memo struct {
	once  sync.Once
	value any
}

// Do returns what make has returned the first time.
func (m *Memo) Do(make func() any) any {
	m.once.Do(func() { m.value = make() })
	return m.value
}

// Last is the number of the block's last record.
func (h *Header) Last() Seq { return h.First + Seq(h.Count) - 1 }

// Size is the bytes of the block's directory and records, decoded.
func (h *Header) Size() int { return h.dir + h.raw }

// A Block is the records of one commit. It is not changed after it was made and
// may be read by any number of goroutines.
type Block struct {
	Header
	Directory []byte // the owner's bytes
	body      []byte // decoded

	mem  []byte // where they lie, if they are the log's own; nil for a block from its file
	lent bool   // someone else may have it; guarded by Log.mu
}

// Records yields each record's number and bytes; the bytes are valid for as
// long as they are referenced and must not be changed.
func (b *Block) Records() iter.Seq2[Seq, []byte] {
	return func(yield func(Seq, []byte) bool) {
		for off, seq := 0, b.First; off < len(b.body); seq++ {
			rec, next := b.recordAt(off)
			if rec == nil || !yield(seq, rec) {
				return
			}
			off = next
		}
	}
}

// RecordAt returns the record that starts at an offset of the body, and where
// the next one starts; nil at the end. The first starts at 0.
func (b *Block) RecordAt(off int) (rec []byte, next int) { return b.recordAt(off) }

func (b *Block) recordAt(off int) ([]byte, int) {
	n, w := binary.Uvarint(b.body[off:])
	if w <= 0 || n > uint64(len(b.body)-off-w) {
		return nil, len(b.body)
	}
	start := off + w
	end := start + int(n)
	return b.body[start:end:end], end
}

// Size is the bytes of the directory and of the records.
func (b *Block) Size() int { return len(b.Directory) + len(b.body) }

// appendBlock encodes b after dst. enc is nil for no compression.
func appendBlock(dst []byte, b *Block, enc *zstd.Encoder) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, headerSize)...)
	dst = append(dst, b.Directory...)
	bodyAt := len(dst)
	codec := byte(codecNone)
	if enc != nil && len(b.body) >= 128 {
		dst = compress(dst, b.body, enc)
		codec = codecZstd
		if len(dst)-bodyAt >= len(b.body) {
			dst, codec = dst[:bodyAt], codecNone
		}
	}
	if codec == codecNone {
		dst = append(dst, b.body...)
	}
	b.putHeader(dst[start:], codec, dst[bodyAt:])
	return dst
}

// putHeader writes the header of a block whose body is stored, to which the directory
// belongs that b has.
func (b *Block) putHeader(h []byte, codec byte, stored []byte) {
	copy(h, magic)
	h[4], h[5], h[6], h[7] = blockVersion, b.Class, codec, 0
	binary.BigEndian.PutUint64(h[8:], uint64(b.First))
	binary.BigEndian.PutUint32(h[16:], uint32(b.Count))
	binary.BigEndian.PutUint32(h[20:], uint32(len(b.Directory)))
	binary.BigEndian.PutUint32(h[24:], uint32(len(stored)))
	binary.BigEndian.PutUint32(h[28:], uint32(len(b.body)))
	binary.BigEndian.PutUint64(h[32:], uint64(b.Wall.UnixMilli()))
	binary.BigEndian.PutUint64(h[40:], uint64(b.Uptime))
	binary.BigEndian.PutUint64(h[48:], b.Boot)
	binary.BigEndian.PutUint32(h[56:], headerSum(h[:56], b.Directory))
	binary.BigEndian.PutUint32(h[60:], bodySum(h[56:60], stored))
}

// compress appends body to dst as one frame, or a large one as two, which are made
// at the same time: compressing takes as long as the disk does.
func compress(dst, body []byte, enc *zstd.Encoder) []byte {
	const large = 64 << 10
	if len(body) < large {
		return enc.EncodeAll(body, dst)
	}
	half := len(body) / 2
	var second []byte
	var wg sync.WaitGroup
	wg.Go(func() { second = enc.EncodeAll(body[half:], nil) })
	dst = enc.EncodeAll(body[:half], dst)
	wg.Wait()
	return append(dst, second...)
}

func headerSum(head, dir []byte) uint32 {
	return crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, dir)
}

// bodySum starts from the header's own sum, so that a good body under another
// block's header is found out.
func bodySum(headSum, body []byte) uint32 {
	return crc32.Update(crc32.Checksum(headSum, castagnoli), castagnoli, body)
}

// parseHeader checks and returns a block's header and directory. The directory
// points into p.
func parseHeader(p []byte) (h Header, dir []byte, err error) {
	if len(p) < headerSize || string(p[:4]) != magic {
		return h, nil, fmt.Errorf("no block header: %w", ErrDamaged)
	}
	if p[4] != blockVersion {
		return h, nil, fmt.Errorf("block version %d is not known: %w", p[4], ErrDamaged)
	}
	h = Header{
		Class:  p[5],
		codec:  p[6],
		First:  Seq(binary.BigEndian.Uint64(p[8:])),
		Count:  int(binary.BigEndian.Uint32(p[16:])),
		dir:    int(binary.BigEndian.Uint32(p[20:])),
		stored: int(binary.BigEndian.Uint32(p[24:])),
		raw:    int(binary.BigEndian.Uint32(p[28:])),
		Wall:   time.UnixMilli(int64(binary.BigEndian.Uint64(p[32:]))),
		Uptime: time.Duration(binary.BigEndian.Uint64(p[40:])),
		Boot:   binary.BigEndian.Uint64(p[48:]),
	}
	if h.dir > len(p)-headerSize {
		return h, nil, fmt.Errorf("directory is longer than the block: %w", ErrDamaged)
	}
	dir = p[headerSize : headerSize+h.dir]
	if headerSum(p[:56], dir) != binary.BigEndian.Uint32(p[56:]) {
		return h, nil, fmt.Errorf("header checksum: %w", ErrDamaged)
	}
	if h.stored > maxBody || h.raw > maxBody || h.Count == 0 {
		return h, nil, fmt.Errorf("block of %d records in %d bytes: %w", h.Count, h.raw, ErrDamaged)
	}
	return h, dir, nil
}

// checkBody returns the body of the block in p, whose header is h, as it is stored.
func checkBody(p []byte, h *Header) ([]byte, error) {
	body := p[headerSize+h.dir:]
	if len(body) < h.stored {
		return nil, fmt.Errorf("body is cut: %w", ErrDamaged)
	}
	body = body[:h.stored]
	if bodySum(p[56:60], body) != binary.BigEndian.Uint32(p[60:]) {
		return nil, fmt.Errorf("body checksum: %w", ErrDamaged)
	}
	return body, nil
}

// newDecoder makes one that so many may use at the same time. The block's own sum
// covers what it is given; a second one would be of the same bytes.
func newDecoder(users int) (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(users), zstd.WithDecoderMaxMemory(maxBody), zstd.WithDecoderLowmem(true), zstd.IgnoreChecksum(true))
}

// parseBlock checks p whole and decodes it. The block owns no byte of p.
func parseBlock(p []byte, dec *zstd.Decoder) (*Block, error) {
	h, dir, err := parseHeader(p)
	if err != nil {
		return nil, err
	}
	body, err := checkBody(p, &h)
	if err != nil {
		return nil, err
	}
	b := &Block{Header: h, Directory: append([]byte(nil), dir...)}
	switch h.codec {
	case codecNone:
		b.body = append([]byte(nil), body...)
	case codecZstd:
		if b.body, err = dec.DecodeAll(body, make([]byte, 0, h.raw+decodeSlack)); err != nil {
			return nil, fmt.Errorf("decode body: %v: %w", err, ErrDamaged)
		}
	default:
		return nil, fmt.Errorf("codec %d is not known: %w", h.codec, ErrDamaged)
	}
	if len(b.body) != h.raw {
		return nil, fmt.Errorf("body of %d bytes, %d expected: %w", len(b.body), h.raw, ErrDamaged)
	}
	return b, nil
}
