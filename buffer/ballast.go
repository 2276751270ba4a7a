package buffer

import (
	"errors"
	"io/fs"
	"os"
	"sync/atomic"

	"github.com/fieldferry/fieldferry/buffer/log"
)

// ballast is a file that is there to be given up: where the disk is full, the
// room it frees lets meta.db say what was dropped to make more.
type ballast struct {
	path    string
	free    func() (int64, error) // bytes on the disk
	missing atomic.Bool
}

const ballastBytes = 1 << 20

func newBallast(path string, free func() (int64, error)) *ballast {
	b := &ballast{path: path, free: free}
	b.missing.Store(log.DiskBytes(path) < ballastBytes)
	b.restore()
	return b
}

// giveUp removes the file.
func (b *ballast) giveUp() error {
	b.missing.Store(true)
	if err := os.Remove(b.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// restore makes the file anew if there is room again. If that fails there was
// none.
func (b *ballast) restore() {
	if !b.missing.Load() {
		return
	}
	if free, err := b.free(); err != nil || free < 4*ballastBytes || !b.missing.CompareAndSwap(true, false) {
		return
	}
	f, err := os.OpenFile(b.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = f.Write(make([]byte, ballastBytes))
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		b.missing.Store(true)
		os.Remove(b.path)
	}
}
