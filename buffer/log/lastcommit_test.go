package log

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

const (
	sector    = 512
	flashPage = 16 << 10
)

// commits is a generation before and after its last commit, as a disk has it that
// wrote everything.
type commits struct {
	id            GenID
	pageSize      int
	blocks        [][]byte // as put
	before, after []byte
}

// ramDir is a folder on a disk of memory, where there is one: syncs are not what is
// tested.
func ramDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "fieldferry-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// putBlocks makes a generation of n blocks whose bodies have about so many bytes.
func putBlocks(t *testing.T, pageSize, n, size int) *commits {
	t.Helper()
	dir := ramDir(t)
	disk, err := Files(dir, FileOptions{PageSize: pageSize, GenerationBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	c := &commits{id: GenID{Epoch: 1, First: uint64(FirstOf(1))}, pageSize: pageSize}
	g, err := disk.Create(c.id)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, uint64(n*size)))
	noise := make([]byte, 4*size)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	for i := range n {
		body := noise[rng.IntN(2*size):][:size/2+rng.IntN(size)]
		c.blocks = append(c.blocks, appendBlock(nil, &Block{Header: Header{First: c.first(i), Count: 1}, body: body}, nil))
		c.before = c.after
		if err := g.Put(c.first(i), bytes.Clone(c.blocks[i])); err != nil {
			t.Fatal(err)
		}
		if i < n-2 {
			continue
		}
		if c.after, err = os.ReadFile(filepath.Join(dir, c.id.String()+fileSuffix)); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *commits) first(i int) Seq { return FirstOf(1) + Seq(i) }

// image makes a folder of the file.
func (c *commits) image(t *testing.T, p []byte) (Disk, string) {
	t.Helper()
	dir := ramDir(t)
	path := filepath.Join(dir, c.id.String()+fileSuffix)
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	disk, err := Files(dir, FileOptions{PageSize: c.pageSize, GenerationBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return disk, path
}

// found is how many blocks a generation has, if they are the first ones.
func (c *commits) found(disk Disk) (n int, err error) {
	g, err := disk.Open(c.id)
	if err != nil {
		return 0, err
	}
	scanErr := g.Scan(0, func(first Seq, p []byte) bool {
		if n == len(c.blocks) || first != c.first(n) || !bytes.HasPrefix(p, c.blocks[n]) {
			err = fmt.Errorf("block %s is not the one that was put", first)
			return false
		}
		n++
		return true
	})
	return n, errors.Join(err, scanErr, g.Close())
}

// cut is the file when the power goes within the last commit: of the sectors that
// it writes, some are there.
func (c *commits) cut(rng *rand.Rand) []byte {
	p := make([]byte, len(c.after))
	copy(p, c.before)
	// Nothing of a note about the last commit: that comes after it.
	note := (len(c.blocks)+madeWith+1)%2*c.pageSize + noteAt
	var changed []int
	for at := 0; at < len(p); at += sector {
		if at != note && !bytes.Equal(p[at:at+sector], c.after[at:at+sector]) {
			changed = append(changed, at)
		}
	}
	meta := (len(c.blocks) + madeWith) % 2 * c.pageSize
	half := rng.IntN(2) == 0
	styles := 6
	if c.pageSize == flashPage {
		styles++
	}
	style := rng.IntN(styles)
	page, noise := make(map[int]bool), make(map[int]bool)
	for _, at := range changed {
		there := rng.IntN(2) == 0
		switch style {
		case 0: // nothing, or all
			there = half
		case 1: // the meta page alone, or all but it
			there = (at == meta) == half
		case 2: // pages whole or not at all, with the meta page
			if _, ok := page[at/c.pageSize]; !ok {
				page[at/c.pageSize] = there
			}
			there = page[at/c.pageSize] || at == meta
		case 3: // all but one of the others
			there = true
		case 4: // few, with the meta page
			there = rng.IntN(8) == 0 || at == meta
		}
		if style == 6 { // a flash page that was being written is noise, or as it was, or as it was to be
			if _, ok := page[at/c.pageSize]; !ok {
				page[at/c.pageSize] = there
				if q := p[at/c.pageSize*c.pageSize:][:c.pageSize]; rng.IntN(5) < 2 {
					for i := range q {
						q[i] = byte(rng.Uint32())
					}
					noise[at/c.pageSize] = true
				}
			}
			there = page[at/c.pageSize] && !noise[at/c.pageSize]
		}
		if there {
			copy(p[at:at+sector], c.after[at:])
		}
	}
	if style == 3 {
		at := changed[rng.IntN(len(changed))]
		clear(p[at : at+sector])
		copy(p[at:at+sector], c.before[min(at, len(c.before)):])
	}
	return p
}

// TestCut cuts the last commit of a file anywhere. What was put before is there,
// and it itself whole or not at all, and nothing looks damaged.
func TestCut(t *testing.T) {
	images, without := 0, 0
	for _, pageSize := range []int{4 << 10, 16 << 10} {
		for _, size := range []int{60, 700, 6000, 40000} {
			// A leaf of 4 KiB is cut in two at about a hundred blocks, one of 16 KiB at four
			// hundred; where the old one was, a new one soon stands.
			for _, n := range []int{2, 3, 10, 100, 101, 102, 103, 104, 105, 120, 500} {
				if n*size > 1<<20 {
					continue
				}
				t.Run(fmt.Sprintf("%d of %d bytes in pages of %d", n, size, pageSize), func(t *testing.T) {
					c := putBlocks(t, pageSize, n, size)
					rng := rand.New(rand.NewPCG(2, uint64(n)))
					for i := range max(5, min(20, 1<<20/len(c.after))) {
						p := c.cut(rng)
						disk, _ := c.image(t, p)
						images++
						// What bbolt makes of it: the harness must bite.
						if got, err := c.found(disk); err != nil || got < n-1 {
							without++
						}
						if err := disk.Sync(c.id); err != nil {
							t.Fatalf("image %d: sync: %v", i, err)
						}
						if got, err := c.found(disk); err != nil || got < n-1 {
							t.Fatalf("image %d: %d blocks are there, %v", i, got, err)
						}
						if err := disk.Sync(c.id); err != nil {
							t.Fatalf("image %d: a second sync: %v", i, err)
						}
					}
				})
			}
		}
	}
	if without < images/10 {
		t.Errorf("of %d images only %d are bad without Sync", images, without)
	}
	t.Logf("%d images, %d of them bad without Sync", images, without)
}

// TestDamagedNotCut damages what the last commit of a file has written, and also the
// note that it was durable: it is not mistaken for one that was cut.
func TestDamagedNotCut(t *testing.T) {
	for _, pageSize := range []int{4 << 10, 16 << 10} {
		for _, size := range []int{60, 700, 6000, 40000} {
			for _, n := range []int{1, 2, 3, 120} {
				c := putBlocks(t, pageSize, n, size)
				at := bytes.Index(c.after, c.blocks[n-1][:headerSize])
				meta := (n + madeWith) % 2 * pageSize
				if got := binary.LittleEndian.Uint64(c.after[meta+64:]); got != uint64(n+madeWith) {
					t.Fatalf("meta page of commit %d where that of %d should be", got, n+madeWith)
				}
				block, note := at+headerSize+len(c.blocks[n-1])/4, (n+madeWith+1)%2*pageSize+noteAt
				for what, at := range map[string][]int{
					"block": {block}, "meta page": {meta + 20},
					"block, magic of the note": {block, note + 1}, "meta page, number of the note": {meta + 20, note + 7}, "block, sum of the note": {block, note + 15},
				} {
					p := bytes.Clone(c.after)
					for _, at := range at {
						p[at] ^= 0x10
					}
					disk, path := c.image(t, p)
					err := disk.Sync(c.id)
					if err == nil {
						_, err = c.found(disk)
					}
					if !errors.Is(err, ErrDamaged) {
						t.Errorf("%d blocks of %d bytes, pages of %d: damaged %s: %v", n, size, pageSize, what, err)
					}
					if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, p) {
						t.Errorf("%d blocks of %d bytes, pages of %d: damaged %s: the file was changed, %v", n, size, pageSize, what, err)
					}
				}
			}
		}
	}
}

// plainOwner is an owner to whom the records mean nothing.
type plainOwner struct{ noOwner }

func (plainOwner) NewBatch() any { return new([]chan error) }

func (plainOwner) Directory(dst []byte, _ any, _, _ bool) []byte { return dst }

func (plainOwner) Committed(_ *Block, _ GenID, batch any, err error) <-chan struct{} {
	for _, c := range *batch.(*[]chan error) {
		c <- err
	}
	told := make(chan struct{})
	close(told)
	return told
}

// TestDamagedWhileOpen damages a generation that this process has written and has
// still open: its blocks are found without waiting for itself.
func TestDamagedWhileOpen(t *testing.T) {
	dir := t.TempDir()
	disk, err := Files(dir, FileOptions{PageSize: 4096})
	if err != nil {
		t.Fatal(err)
	}
	l, err := Open(disk, 1, nil, nil, plainOwner{}, Options{CacheBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const n = 10
	for range n {
		stored := make(chan error, 1)
		err := l.Append(t.Context(), 5000, true, func(batch any, dst []byte) []byte {
			stores := batch.(*[]chan error)
			*stores = append(*stores, stored)
			return append(dst, make([]byte, 5000)...)
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := <-stored; err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, GenID{Epoch: 1, First: uint64(FirstOf(1))}.String()+fileSuffix), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, 8192), 0); err != nil {
		t.Fatal(err)
	}
	after := Seq(0)
	for i := range n {
		b, err := l.After(after, func(*Header, []byte) bool { return true })
		if err != nil || b == nil || b.First != FirstOf(1)+Seq(i) {
			t.Fatalf("block %d: %v, %v", i, b, err)
		}
		after = b.Last()
	}
}

// noOwner is the owner of a log to which nothing is appended.
type noOwner struct{ Owner }

func (noOwner) Sealed(Seal) error { return nil }

// TestFailedSync opens generations that were ended over a commit whose sync failed,
// and of which the disk has any part. What was put before is read, and no file is
// set aside.
func TestFailedSync(t *testing.T) {
	for _, n := range []int{3, 10, 120} {
		c := putBlocks(t, 4<<10, n, 6000)
		rng := rand.New(rand.NewPCG(3, uint64(n)))
		for i := range 20 {
			disk, path := c.image(t, c.cut(rng))
			seal := Seal{ID: c.id, Last: c.first(n - 2), Records: int64(n - 1), Blocks: int64(n - 1)}
			l, err := Open(disk, 2, map[GenID]Seal{c.id: seal}, nil, noOwner{}, Options{})
			if err != nil {
				t.Fatal(err)
			}
			got := 0
			for after := Seq(0); ; got++ {
				b, err := l.After(after, func(*Header, []byte) bool { return true })
				if err != nil {
					t.Fatalf("%d blocks, image %d: after %s: %v", n, i, after, err)
				}
				if before := Seq(1 << 63); b == nil || b.First != c.first(got) {
					// The owner sees from the directories that some are missing.
					if b != nil {
						before = b.First
					}
					if again, err := l.Recheck(after, before); err != nil {
						t.Fatal(err)
					} else if again {
						got--
						continue
					}
					if b == nil {
						break
					}
					t.Fatalf("%d blocks, image %d: block %s comes after %s", n, i, b.First, after)
				}
				after = b.Last()
			}
			if got != n-1 {
				t.Errorf("%d blocks, image %d: %d are read", n, i, got)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), "quarantine")); err == nil {
				t.Errorf("%d blocks, image %d: the file was set aside", n, i)
			}
		}
	}
}
