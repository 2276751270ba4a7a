package buffer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/fieldferry/fieldferry/buffer/log"
)

// damages are what can happen to a file. Each changes the bytes of one.
var damages = []struct {
	name string
	do   func(p []byte, r *rand.Rand) []byte
}{
	{"empty", func(p []byte, r *rand.Rand) []byte { return nil }},
	{"truncated", func(p []byte, r *rand.Rand) []byte { return p[:r.IntN(len(p))] }},
	{"truncated at a page", func(p []byte, r *rand.Rand) []byte { return p[:r.IntN(len(p)/4096)*4096] }},
	{"one bit", func(p []byte, r *rand.Rand) []byte { p[r.IntN(len(p))] ^= 1 << r.IntN(8); return p }},
	{"ten bits", func(p []byte, r *rand.Rand) []byte {
		for range 10 {
			p[r.IntN(len(p))] ^= 1 << r.IntN(8)
		}
		return p
	}},
	{"first meta page", func(p []byte, r *rand.Rand) []byte { clear(p[:4096]); return p }},
	{"second meta page", func(p []byte, r *rand.Rand) []byte { clear(p[4096:8192]); return p }},
	{"both meta pages", func(p []byte, r *rand.Rand) []byte { clear(p[:8192]); return p }},
	{"zeroed page", func(p []byte, r *rand.Rand) []byte { i := r.IntN(len(p)/4096) * 4096; clear(p[i : i+4096]); return p }},
	{"random page", func(p []byte, r *rand.Rand) []byte {
		i := r.IntN(len(p)/4096) * 4096
		for j := range p[i : i+4096] {
			p[i+j] = byte(r.Uint32())
		}
		return p
	}},
	{"random sector", func(p []byte, r *rand.Rand) []byte {
		i := r.IntN(len(p)/512) * 512
		for j := range p[i : i+512] {
			p[i+j] = byte(r.Uint32())
		}
		return p
	}},
	{"pages swapped", func(p []byte, r *rand.Rand) []byte {
		i, j := r.IntN(len(p)/4096)*4096, r.IntN(len(p)/4096)*4096
		tmp := bytes.Clone(p[i : i+4096])
		copy(p[i:], p[j:j+4096])
		copy(p[j:], tmp)
		return p
	}},
	{"noise", func(p []byte, r *rand.Rand) []byte {
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		return p
	}},
}

// TestDamage opens folders in which one file is damaged, as a killed process has
// left them. The buffer always opens, hands out nothing that was not appended,
// keeps the order, loses only messages of which the damage has hit the block, and
// counts those. Only of the end of the file that was being written nobody knows
// what it held, if the damage has hit the blocks' headers too.
func TestDamage(t *testing.T) {
	origin := damageOrigin(t)
	files, err := filepath.Glob(filepath.Join(origin, "telemetry", "*.db"))
	if err != nil || len(files) < 6 {
		t.Fatalf("%d generations to damage, %v", len(files), err)
	}
	relative := func(path string) string {
		rel, err := filepath.Rel(origin, path)
		if err != nil {
			t.Fatal(err)
		}
		return rel
	}
	everything := []string{"meta.db", "ballast"}
	for _, path := range files {
		everything = append(everything, relative(path))
	}
	targets := map[string][]string{ // by seed
		"first":  {relative(files[0])},
		"sealed": {relative(files[len(files)/2])},
		"newest": {relative(files[len(files)-1])},
		"meta":   {"meta.db"},
		"any":    everything,
	}
	blocks := make(map[string][]storedBlock)
	for _, name := range everything {
		blocks[name] = storedBlocks(t, filepath.Join(origin, name))
	}
	times := 25 / slower
	if testing.Short() {
		times = 3
	}
	for _, damage := range damages {
		for target, names := range targets {
			t.Run(damage.name+"/"+target, func(t *testing.T) {
				t.Parallel()
				for seed := range times {
					dir := filepath.Join(ramDir(t), "data")
					if err := os.CopyFS(dir, os.DirFS(origin)); err != nil {
						t.Fatal(err)
					}
					name := names[seed%len(names)]
					path := filepath.Join(dir, name)
					p, err := os.ReadFile(path)
					if err != nil {
						t.Fatal(err)
					}
					p = damage.do(p, rand.New(rand.NewPCG(1, uint64(seed))))
					if err := os.WriteFile(path, p, 0o600); err != nil {
						t.Fatal(err)
					}
					harm := harm{hit: make(map[int]bool)}
					for _, b := range blocks[name] {
						for i := b.first; i <= b.last && !bytes.Contains(p, b.bytes); i++ {
							harm.hit[i] = true
						}
						// The body's checksum between them is not theirs.
						if name == targets["newest"][0] && !(bytes.Contains(p, b.bytes[:60]) && bytes.Contains(p, b.bytes[64:b.head])) {
							harm.unknown += b.last - b.first + 1
						} else {
							harm.unknown = 0
						}
					}
					drainDamaged(t, dir, fmt.Sprintf("%s, seed %d", name, seed), harm)
				}
			})
		}
	}
}

const (
	damagedMessages = 1200 // in the folder that is damaged, from m1 on
	damagedSettled  = 50   // of them, the first
)

// damageOrigin makes the folder: of two process lives that ended well and one that
// was killed.
func damageOrigin(t *testing.T) string {
	t.Helper()
	dir, origin := t.TempDir(), filepath.Join(t.TempDir(), "origin")
	const lives = 3
	for life := range lives {
		b, err := Open(dir, Options{PageSize: 4096, GenerationBytes: 4 << 10})
		if err != nil {
			t.Fatal(err)
		}
		o := outbox(t, b, "cloud", Telemetry)
		for i := range damagedMessages / lives / 20 {
			first := life*damagedMessages/lives + i*20 + 1
			put(t, b, first, first+19, o)
		}
		if life == 0 { // some are settled, so that there are marks to lose
			r, err := b.Reader(o)
			if err != nil {
				t.Fatal(err)
			}
			_, all := take(t, r, damagedSettled)
			for _, d := range all {
				o.Settle(d.Ordinal, Delivered)
			}
			r.Close()
		}
		if life == lives-1 {
			if err := os.CopyFS(origin, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return origin
}

// harm is what damage has done to a file.
type harm struct {
	hit     map[int]bool // messages whose block is not whole any more
	unknown int          // messages of the last blocks, of which nothing is left
}

// storedBlock is a block as it stands in its file, and its messages.
type storedBlock struct {
	bytes       []byte
	head        int // bytes of header and directory
	first, last int
}

// storedBlocks finds the blocks in a file: docs/format-buffer.md.
func storedBlocks(t *testing.T, path string) (blocks []storedBlock) {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	for {
		i := bytes.Index(p, []byte("FFB1"))
		if i < 0 {
			break
		}
		p = p[i:]
		u32 := func(off int) int { return int(binary.BigEndian.Uint32(p[off:])) }
		head := 64 + u32(20)
		end := head + u32(24)
		dir, ok := parseDirectory(p[64:head])
		if !ok || len(dir.spans) != 1 {
			t.Fatalf("%s: a directory has %d spans", path, len(dir.spans))
		}
		// A place that a small block has left may be in use again.
		if whole := crc32.Update(crc32.Checksum(p[56:60], castagnoli), castagnoli, p[head:end]) == uint32(u32(60)); whole {
			// There is one outbox, and all that is appended has a copy in it.
			blocks = append(blocks, storedBlock{p[:end], head, int(dir.spans[0].first), int(dir.spans[0].last)})
		}
		p = p[4:]
	}
	slices.SortFunc(blocks, func(a, b storedBlock) int { return a.first - b.first })
	return slices.CompactFunc(blocks, func(a, b storedBlock) bool { return a.first == b.first })
}

// drainDamaged reads what is left in a folder.
func drainDamaged(t *testing.T, dir, what string, harm harm) {
	t.Helper()
	b, err := Open(dir, Options{PageSize: 4096, GenerationBytes: 4 << 10})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	defer func() {
		if err := b.Close(); err != nil {
			t.Errorf("%s: close: %v", what, err)
		}
	}()
	o := outbox(t, b, "cloud", Telemetry)
	r, err := b.Reader(o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	const end = damagedMessages + 1
	put(t, b, end, end, o) // it still takes messages
	last := 0
	out := make(map[int]bool)
	dst := make([]Delivery, 64)
	for {
		k, err := r.TryNext(dst)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if k == 0 {
			break
		}
		for _, d := range dst[:k] {
			var i int
			if _, err := fmt.Sscanf(string(d.Payload), "m%d", &i); err != nil || i <= last || i > end || fmt.Sprintf("m%d", i) != string(d.Payload) {
				t.Fatalf("%s: %q comes after m%d", what, d.Payload, last)
			}
			last = i
			out[i] = true
			o.Settle(d.Ordinal, Delivered)
		}
	}
	lost := uint64(0)
	for i := damagedSettled + 1; i <= end; i++ {
		if out[i] {
			continue
		}
		lost++
		if !harm.hit[i] {
			t.Fatalf("%s: m%d did not come out, and its block is whole; %d messages are hit", what, i, len(harm.hit))
		}
	}
	unknown := uint64(harm.unknown)
	l := o.Ledger()
	if l.Difference() != 0 || l.Stored != 0 || l.Accepted != end-unknown || l.Dropped["quarantined"] != lost-unknown {
		t.Errorf("%s: %d are lost, of which %d cannot be counted; the ledger is %+v", what, lost, unknown, l)
	}
}

// TestDamageWithoutRoomToRepair opens a folder in which the file that was being
// written is damaged and no other can be made. What is good of it counts, takes its
// place in the order, and comes out when there is room.
func TestDamageWithoutRoomToRepair(t *testing.T) {
	dir := damageOrigin(t)
	files, err := filepath.Glob(filepath.Join(dir, "telemetry", "*.db"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	newest := files[len(files)-1]
	p, err := os.ReadFile(newest)
	if err != nil {
		t.Fatal(err)
	}
	clear(p[:8192])
	if err := os.WriteFile(newest, p, 0o600); err != nil {
		t.Fatal(err)
	}
	o := Options{PageSize: 4096, GenerationBytes: 4 << 10}.withDefaults()
	m, err := openMeta(dir, o.PageSize, 0, o.Logger)
	if err != nil {
		t.Fatal(err)
	}
	var full atomic.Bool
	full.Store(true)
	var disks [NumClasses]log.Disk
	for c := range NumClasses {
		disk, err := log.Files(filepath.Join(dir, c.String()), log.FileOptions{PageSize: o.PageSize, GenerationBytes: o.GenerationBytes})
		if err != nil {
			t.Fatal(err)
		}
		disks[c] = noRepair{disk, &full}
	}
	o.Free = func() (int64, error) { return 1 << 40, nil }
	b, err := open(m, disks, o)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	out := outbox(t, b, "cloud", Telemetry)
	const end = damagedMessages + 1
	put(t, b, end, end, out)
	balance(t, out, Ledger{Accepted: end, Delivered: damagedSettled, Stored: end - damagedSettled})
	r, err := b.Reader(out)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var got []string
	drain := func() (err error) {
		dst := make([]Delivery, 64)
		for n := 1; n > 0 && err == nil; {
			n, err = r.TryNext(dst)
			for _, d := range dst[:n] {
				got = append(got, string(d.Payload))
			}
		}
		return err
	}
	if err := drain(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("read of what cannot be repaired: %v", err)
	}
	full.Store(false)
	if err := drain(); err != nil {
		t.Fatal(err)
	}
	if w := want(damagedSettled+1, end); !slices.Equal(got, w) {
		t.Errorf("%d came out, want %d in order", len(got), len(w))
	}
}

// noRepair is a disk on which no file can be put in the place of another while it is
// full.
type noRepair struct {
	log.Disk
	full *atomic.Bool
}

func (d noRepair) Replace(id log.GenID, blocks iter.Seq2[log.Seq, []byte]) error {
	if d.full.Load() {
		return &os.PathError{Op: "write", Path: id.String(), Err: syscall.ENOSPC}
	}
	return d.Disk.Replace(id, blocks)
}

// ramDir is a folder on a disk of memory, where there is one.
func ramDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "fieldferry-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestDamageIsSetAside looks for the file that was damaged.
func TestDamageIsSetAside(t *testing.T) {
	dir := t.TempDir()
	b := reopen(t, dir)
	put(t, b, 1, 10, outbox(t, b, "cloud", Telemetry))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "telemetry", "*.db"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	p, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	blocks := 0
	for i := 0; i+70 < len(p); i++ {
		if bytes.HasPrefix(p[i:], []byte("FFB1")) {
			p[i+70] ^= 1
			blocks++
		}
	}
	if blocks == 0 {
		t.Fatal("there is no block in the file")
	}
	if err := os.WriteFile(files[0], p, 0o600); err != nil {
		t.Fatal(err)
	}
	b = reopen(t, dir)
	defer b.Close()
	o := outbox(t, b, "cloud", Telemetry)
	r, err := b.Reader(o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	put(t, b, 11, 11, o)
	got, _ := take(t, r, 1)
	if got[0] != "m11" {
		t.Errorf("got %q, want m11 alone", got)
	}
	o.Settle(11, Delivered)
	balance(t, o, Ledger{Accepted: 11, Delivered: 1, Dropped: map[string]uint64{"quarantined": 10}})
	var aside []string
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if strings.Contains(path, "quarantine/") {
			aside = append(aside, path)
		}
		return err
	})
	if len(aside) != 1 {
		t.Errorf("set aside are %v, want the damaged file", aside)
	}
}
