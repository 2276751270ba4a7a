package log

import (
	"bytes"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

func coders(f *testing.F) (*zstd.Encoder, *zstd.Decoder) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		f.Fatal(err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxBody), zstd.WithDecoderLowmem(true))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(dec.Close)
	return enc, dec
}

func someBlock(first Seq, records ...string) *Block {
	b := &Block{Header: Header{First: first, Count: len(records), Wall: time.UnixMilli(1e12), Uptime: time.Hour, Boot: 7}, Directory: []byte("directory")}
	for _, r := range records {
		b.body = append(binary.AppendUvarint(b.body, uint64(len(r))), r...)
	}
	return b
}

// What is read of a block is written as it was, and nothing else is read. With mend,
// the sums are made right, so that what stands behind them is tried too.
func FuzzBlock(f *testing.F) {
	enc, dec := coders(f)
	long := string(bytes.Repeat([]byte("long"), 100))
	f.Add(appendBlock(nil, someBlock(FirstOf(1), "a", "bc", ""), nil), false)
	f.Add(appendBlock(nil, someBlock(FirstOf(1), long, "x"), enc), true)
	f.Add([]byte(magic), true)
	f.Fuzz(func(t *testing.T, p []byte, mend bool) {
		if mend && len(p) >= headerSize {
			copy(p, magic)
			p[4] = blockVersion
			dir, raw := int(binary.BigEndian.Uint32(p[20:])), int(binary.BigEndian.Uint32(p[28:]))
			if dir > len(p)-headerSize || raw > 1<<20 { // memory is what the sum of a block that we wrote allows
				return
			}
			body := p[headerSize+dir:]
			body = body[:min(len(body), int(binary.BigEndian.Uint32(p[24:])))]
			binary.BigEndian.PutUint32(p[56:], headerSum(p[:56], p[headerSize:headerSize+dir]))
			binary.BigEndian.PutUint32(p[60:], bodySum(p[56:60], body))
		}
		b, err := parseBlock(p, dec)
		if err != nil {
			return
		}
		n, bytes := 0, 0
		for _, rec := range b.Records() {
			n++
			bytes += len(rec)
		}
		if bytes > len(b.body) {
			t.Fatalf("%d bytes of records in a body of %d", bytes, len(b.body))
		}
		again, err := parseBlock(appendBlock(nil, b, nil), dec)
		if err != nil {
			t.Fatalf("what was read cannot be: %v", err)
		}
		if again.First != b.First || again.Count != b.Count || !again.Wall.Equal(b.Wall) || string(again.body) != string(b.body) || string(again.Directory) != string(b.Directory) {
			t.Fatalf("%+v became %+v", b, again)
		}
	})
}

// A good block is found whatever stands before and behind it, and nothing but what
// is good.
func FuzzSalvage(f *testing.F) {
	_, dec := coders(f)
	good := appendBlock(nil, someBlock(FirstOf(1), "a", "bc"), nil)
	f.Add([]byte("FFB1FFB1"), []byte(magic))
	f.Add(good[:70], good[1:])
	f.Add([]byte{}, []byte{})
	dir := f.TempDir()
	disk, err := Files(dir, FileOptions{PageSize: 4096})
	if err != nil {
		f.Fatal(err)
	}
	id := GenID{Epoch: 1, First: uint64(FirstOf(1))}
	l := &Log{disk: disk, dec: dec}
	f.Fuzz(func(t *testing.T, before, behind []byte) {
		file := append(append(bytes.Clone(before), good...), behind...)
		if err := os.WriteFile(filepath.Join(dir, id.String()+fileSuffix), file, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := l.salvage(id, math.MaxUint64)
		found, candidates := s.found, s.candidates
		if err != nil || candidates < len(found) {
			t.Fatalf("%d of %d: %v", len(found), candidates, err)
		}
		if !bytes.Equal(found[FirstOf(1)], good) {
			t.Fatalf("%d bytes before and %d behind: %d blocks, and not that one", len(before), len(behind), len(found))
		}
		for _, p := range found {
			if _, err := parseBlock(p, dec); err != nil {
				t.Fatal(err)
			}
		}
	})
}
