package localbroker

import "encoding/binary"

// fields takes apart what appendText and binary.AppendUvarint have put together. A
// read past the end sets bad and yields zeros.
type fields struct {
	p   []byte
	bad bool
}

func (f *fields) uvarint() uint64 {
	v, n := binary.Uvarint(f.p)
	if n <= 0 {
		f.p, f.bad = nil, true
		return 0
	}
	f.p = f.p[n:]
	return v
}

func (f *fields) varint() int64 {
	v, n := binary.Varint(f.p)
	if n <= 0 {
		f.p, f.bad = nil, true
		return 0
	}
	f.p = f.p[n:]
	return v
}

func (f *fields) byte() byte {
	if len(f.p) == 0 {
		f.bad = true
		return 0
	}
	b := f.p[0]
	f.p = f.p[1:]
	return b
}

// bytes is part of what was given.
func (f *fields) bytes() []byte {
	n := f.uvarint()
	if n > uint64(len(f.p)) {
		f.p, f.bad = nil, true
		return nil
	}
	b := f.p[:n:n]
	f.p = f.p[n:]
	return b
}

func (f *fields) text() string { return string(f.bytes()) }

// more reports whether something is left.
func (f *fields) more() bool { return len(f.p) > 0 && !f.bad }

func appendText[T ~string | ~[]byte](dst []byte, s T) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}
