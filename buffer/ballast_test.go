package buffer

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/fieldferry/fieldferry/buffer/log"
	"github.com/fieldferry/fieldferry/buffer/rows"
)

func TestBallastComesBackWhenThereIsRoom(t *testing.T) {
	free := int64(1 << 30)
	path := filepath.Join(t.TempDir(), "ballast")
	b := newBallast(path, func() (int64, error) { return free, nil })
	if got := log.DiskBytes(path); got < ballastBytes {
		t.Fatalf("it takes %d bytes", got)
	}
	free = 1 << 20
	for range 2 { // the second finds nothing to give up
		if err := b.giveUp(); err != nil {
			t.Fatal(err)
		}
	}
	b.restore()
	if got := log.DiskBytes(path); got != 0 {
		t.Errorf("it takes %d bytes of a full disk", got)
	}
	free = 1 << 30
	b.restore()
	if got := log.DiskBytes(path); got < ballastBytes {
		t.Errorf("it takes %d bytes when there is room again", got)
	}
}

// errNoRoom is what a write to a full disk returns.
var errNoRoom = &os.PathError{Op: "write", Path: "meta.db", Err: syscall.ENOSPC}

func TestMetaGivesUpBallast(t *testing.T) {
	dir := t.TempDir()
	b := reopen(t, dir)
	defer b.Close()
	f := b.meta.db.(*metaFile)
	if log.DiskBytes(f.ballast.path) < ballastBytes {
		t.Fatal("there is no ballast")
	}
	f.ballast.free = func() (int64, error) { return 0, nil }
	tries := 0
	err := f.Update(func(rows.Tx) error {
		if tries++; log.DiskBytes(f.ballast.path) > 0 {
			return errNoRoom
		}
		return nil
	})
	if err != nil || tries != 2 {
		t.Errorf("after %d tries: %v", tries, err)
	}
}
