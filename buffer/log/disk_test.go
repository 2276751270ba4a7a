package log

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestBrokenWhileOpen destroys both meta pages of a file that is open: what reads
// it gets an error, and closing it does not hang.
func TestBrokenWhileOpen(t *testing.T) {
	dir := t.TempDir()
	disk, err := Files(dir, FileOptions{PageSize: 4096})
	if err != nil {
		t.Fatal(err)
	}
	id := GenID{Epoch: 1, First: uint64(FirstOf(1))}
	g, err := disk.Create(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Put(FirstOf(1), []byte("block")); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, id.String()+fileSuffix), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, 8192), 0); err != nil {
		t.Fatal(err)
	}
	if err := g.Scan(0, func(Seq, []byte) bool { return true }); !errors.Is(err, ErrDamaged) {
		t.Errorf("a scan of the broken file: %v", err)
	}
	if err := g.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}
