package packet

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"
)

// choppy gives its bytes in pieces of any size, with deadlines in between.
type choppy struct {
	b   []byte
	rng *rand.Rand
}

func (c *choppy) Read(p []byte) (int, error) {
	if c.rng.IntN(3) == 0 {
		return 0, os.ErrDeadlineExceeded
	}
	if len(c.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), 1+c.rng.IntN(1+c.rng.IntN(40000)))], c.b)
	c.b = c.b[n:]
	return n, nil
}

// nextThrough is Next through any number of deadlines, with the block given
// back at each of them if nothing is in it.
func nextThrough(r *Reader) (byte, []byte, error) {
	for {
		first, body, err := r.Next()
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return first, body, err
		}
		r.Idle()
	}
}

func TestReaderSizes(t *testing.T) {
	var raw []byte
	sizes := []int{0, 1, 100, 126, 127, 128, 250, 251, 252, 253, 254, 255, 256, 257, 1000, 16382, 16383, 16384, 16385, 16386, 40000, 65536, 70000, 300000, 1, 2, 3}
	for i, n := range sizes {
		p := Publish{Topic: "t", Payload: bytes.Repeat([]byte{byte(i)}, n)}
		raw = p.Append(raw, V311)
		raw = AppendPingreq(raw)
		s := Subscribe{PacketID: 1}
		for range n/20 + 1 { // longer than a block, too
			s.Subscriptions = append(s.Subscriptions, Subscription{Filter: "0123456789012345"})
		}
		raw = s.Append(raw, V311)
	}
	for seed := range uint64(20) {
		r := NewReader(&choppy{b: raw, rng: rand.New(rand.NewPCG(seed, 0))}, new(Blocks), 1<<20)
		var bodies [][]byte // stay as they are while more is read
		for i, n := range sizes {
			first, body, err := nextThrough(r)
			var p Publish
			if err != nil || p.Decode(V311, first, body) != nil || len(p.Payload) != n {
				t.Fatalf("publish %d of %d bytes: %v, got %d", i, n, err, len(p.Payload))
			}
			bodies = append(bodies, p.Payload)
			if first, body, err = nextThrough(r); err != nil || CheckEmpty(first, body) != nil || TypeOf(first) != PINGREQ {
				t.Fatalf("ping %d: %v", i, err)
			}
			var s Subscribe
			if _, body, err = nextThrough(r); err != nil || s.Decode(V311, body) != nil || len(s.Subscriptions) != n/20+1 {
				t.Fatalf("subscribe %d: %v", i, err)
			}
		}
		if _, _, err := nextThrough(r); err != io.EOF {
			t.Fatalf("after the last: %v", err)
		}
		r.Close()
		for i, b := range bodies {
			if bytes.Count(b, []byte{byte(i)}) != len(b) {
				t.Fatalf("publish %d changed after it was read", i)
			}
		}
	}
}

func TestReaderRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		raw  string
		v    Version
		want Reason
	}{
		{"type 0", "00", V311, Malformed},
		{"QoS 3", "36", V311, Malformed},
		{"DUP with QoS 0", "38", V311, Malformed},
		{"flags of PUBREL", "60", V311, Malformed},
		{"flags of CONNECT", "11", V311, Malformed},
		{"flags of SUBSCRIBE", "80", V5, Malformed},
		{"length of 5 bytes", "30 ffffffff7f", V311, Malformed},
		{"length of 5 bytes, small", "30 8080808001", V311, Malformed},
		{"length longer than need be", "c0 8000", V5, Malformed},
		{"too large", "30 8108", V5, PacketTooLarge},
		{"claims 256 MB", "10 ffffff7f", V5, PacketTooLarge},
	} {
		r := NewReader(io.MultiReader(bytes.NewReader(unhex(t, c.raw)), blocked{}), new(Blocks), 1027)
		r.SetVersion(c.v)
		if _, err := r.Header(); err == nil || ReasonOf(err) != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	r := NewReader(bytes.NewReader([]byte{0xc0, 0x80, 0x00}), new(Blocks), 100)
	if first, body, err := r.Next(); err != nil || CheckEmpty(first, body) != nil { // 3.1.1 does not forbid it
		t.Errorf("a long form of length 0 in 3.1.1: %v", err)
	}
}

// blocked stands for a peer that sends no more: a refusal must not need it.
type blocked struct{}

func (blocked) Read([]byte) (int, error) { return 0, errors.New("read on where the answer was known") }

func TestReaderEnds(t *testing.T) {
	whole := AppendPingreq(nil)
	whole = (&Publish{Topic: "topic", Payload: make([]byte, 500)}).Append(whole, V311)
	for cut := range len(whole) {
		r := NewReader(bytes.NewReader(whole[:cut]), new(Blocks), 1000)
		var err error
		for err == nil {
			_, _, err = r.Next()
		}
		want := io.ErrUnexpectedEOF
		if cut == 0 || cut == 2 {
			want = io.EOF
		}
		if err != want {
			t.Errorf("cut at %d: %v, want %v", cut, err, want)
		}
	}
}

// A length is only a claim: what is allocated follows what arrives.
func TestReaderTrustsNoLength(t *testing.T) {
	claim := []byte{0x30, 0xff, 0xff, 0xff, 0x7f}
	got := testing.AllocsPerRun(10, func() {
		r := NewReader(bytes.NewReader(claim), new(Blocks), MaxLength+5)
		if _, _, err := r.Next(); err != io.ErrUnexpectedEOF {
			t.Fatal(err)
		}
		if len(r.body) > firstPiece {
			t.Fatalf("%d bytes allocated for a claim", len(r.body))
		}
	})
	if got > 8 {
		t.Errorf("%v allocations", got)
	}
}

// A connection that sends little keeps no block, and one that has become idle
// gives it back.
func TestReaderBlock(t *testing.T) {
	var raw []byte
	for range 1000 {
		raw = AppendPingreq(raw)
	}
	src := bytes.NewReader(raw[:100])
	r := NewReader(src, new(Blocks), 1000)
	drain := func() {
		for {
			if _, _, err := r.Next(); err != nil {
				return
			}
		}
	}
	drain()
	if r.Busy() {
		t.Error("a block for 100 bytes")
	}
	src.Reset(raw)
	drain()
	if !r.Busy() {
		t.Error("no block for 2,000 bytes")
	}
	src.Reset(raw[:1])
	drain()
	if r.Idle(); !r.Busy() {
		t.Error("a byte was thrown away")
	}
	src.Reset(raw[1:2])
	if _, _, err := r.Next(); err != nil {
		t.Error(err)
	}
	if r.Idle(); r.Busy() {
		t.Error("an idle reader holds a block")
	}
}
