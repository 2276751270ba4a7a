package log

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
)

const treePage = 4096

// treeFile is a generation's file with blocks that fit into a leaf and such that
// have pages of their own, and how many those are.
func treeFile(t testing.TB) (path string, blocks int) {
	t.Helper()
	dir := t.TempDir()
	d, err := Files(dir, FileOptions{PageSize: treePage, GenerationBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	id := GenID{Epoch: 1, First: uint64(FirstOf(1))}
	blocks = 300
	err = d.Write(id, func(yield func(Seq, []byte) bool) {
		for i := range blocks {
			if !yield(FirstOf(1)+Seq(i), bytes.Repeat([]byte{byte(i)}, 50+i*37%3000)) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, id.String()+fileSuffix), blocks
}

// TestCheckTree changes one number after the other in a file: whatever passes can be
// read to its end.
func TestCheckTree(t *testing.T) {
	path, blocks := treeFile(t)
	if err := checkTree(path, treePage, true); err != nil {
		t.Fatal(err)
	}
	if n := pairsIn(t, path); n != blocks {
		t.Errorf("%d pairs are found where there are %d", n, blocks)
	}
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	write := func(page []byte, n int) {
		t.Helper()
		if _, err := f.WriteAt(page, int64(n)*treePage); err != nil {
			t.Fatal(err)
		}
	}
	rng := rand.New(rand.NewPCG(1, 1))
	found := 0
	const changes = 1000
	for range changes {
		n := rng.IntN(len(p) / treePage)
		page := p[n*treePage : (n+1)*treePage]
		changed := bytes.Clone(page)
		at := rng.IntN(pageHeader + 8*pageElement) // where the numbers stand
		switch rng.IntN(3) {
		case 0:
			changed[at] ^= 1 << rng.IntN(8)
		case 1:
			order.PutUint64(changed[at&^7:], uint64(rng.IntN(len(p)/treePage)))
		case 2:
			order.PutUint16(changed[at&^1:], uint16(rng.Uint32()))
		}
		write(changed, n)
		pairsIn(t, path)
		if err := checkTree(path, treePage, true); err == nil {
			readThrough(t, path, blocks)
		} else if !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		} else {
			found++
		}
		write(page, n)
	}
	if found < changes/10 || found == changes {
		t.Errorf("%d of %d changes were found", found, changes)
	}
}

// pairsIn is how many pairs TreePairs finds in a file.
func pairsIn(t testing.TB, path string) (n int) {
	t.Helper()
	if err := TreePairs(path, treePage, func(_ string, _, _ []byte) { n++ }); err != nil && !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
	return n
}

// readThrough reads what a file shows, which must come to an end.
func readThrough(t *testing.T, path string, blocks int) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, PageSize: treePage})
	if err != nil {
		return // it says so itself
	}
	f := &file{db: db}
	n := 0
	err = f.Scan(0, func(Seq, []byte) bool {
		n++
		return n <= 100*blocks // pages that are not in use any more may come back
	})
	if n > 100*blocks {
		t.Fatalf("there are %d blocks, and no end to what is shown", blocks)
	}
	if errors.Is(err, errPanic) {
		t.Fatalf("the file passed and could not be read: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestCheckTreeKnowsTheMetaPages damages one of them, and shows a tree that says it
// is empty.
func TestCheckTreeKnowsTheMetaPages(t *testing.T) {
	path, _ := treeFile(t)
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := (&tree{file: p, pageSize: treePage}).meta(true)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, change func(q []byte), both, good bool) {
		t.Helper()
		q := bytes.Clone(p)
		change(q)
		if err := os.WriteFile(path, q, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := checkTree(path, treePage, both); good != (err == nil) || !good && !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", what, err)
		}
	}
	newer, older := int(m.transaction%2), int((m.transaction+1)%2)
	damage := func(page int) func([]byte) {
		return func(q []byte) { q[page*treePage+pageHeader+40]++ }
	}
	check("the newer meta page", damage(newer), true, false)
	check("the older meta page", damage(older), true, false)
	check("the older meta page, where one is enough", damage(older), false, true)
	check("an empty tree", func(q []byte) {
		root := q[int(m.root)*treePage:]
		order.PutUint16(root[8:], pageLeaf)
		order.PutUint16(root[10:], 0)
	}, true, false)
}

func FuzzCheckTree(f *testing.F) {
	path, blocks := treeFile(f)
	p, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(pageHeader), []byte{1})
	f.Add(uint32(3*treePage), bytes.Repeat([]byte{2}, 16))
	f.Fuzz(func(t *testing.T, at uint32, change []byte) {
		q := bytes.Clone(p)
		copy(q[int(at)%len(q):], change)
		path := filepath.Join(t.TempDir(), fmt.Sprint("fuzz", fileSuffix))
		if err := os.WriteFile(path, q, 0o600); err != nil {
			t.Fatal(err)
		}
		pairsIn(t, path)
		if checkTree(path, treePage, true) == nil {
			readThrough(t, path, blocks)
		}
	})
}
