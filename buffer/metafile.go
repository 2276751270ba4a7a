package buffer

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"github.com/fieldferry/fieldferry/buffer/log"
	"github.com/fieldferry/fieldferry/buffer/rows"
)

// metaFile is the rows.Store in use: meta.db, with a ballast beside it.
type metaFile struct {
	*rows.File
	ballast *ballast
}

// openMeta opens meta.db and begins a new epoch, above all those given. A file
// that is damaged is set aside: what matters stands in the generations too.
func openMeta(dir string, pageSize int, above uint32, logger *slog.Logger) (*meta, error) {
	path := filepath.Join(dir, "meta.db")
	_, err := os.Lstat(path)
	isNew := errors.Is(err, os.ErrNotExist)
	m, err := tryMeta(path, pageSize, above)
	if errors.Is(err, log.ErrDamaged) {
		if aside := log.SetAside(path); aside != nil {
			return nil, errors.Join(err, aside)
		}
		logger.Error("meta.db is damaged; it was set aside and is made again from the generations", "err", err)
		m, err = tryMeta(path, pageSize, above)
	}
	if err != nil {
		return nil, err
	}
	if isNew {
		// Maybe a process that died before it came to that made the folder itself. Where
		// the one above cannot be synced, it was not made there just now.
		if err := log.SyncDir(filepath.Dir(filepath.Clean(dir))); err != nil {
			logger.Debug("folder above the data folder could not be synced", "err", err)
		}
	}
	return m, nil
}

func tryMeta(path string, pageSize int, above uint32) (*meta, error) {
	file, err := rows.Open(path, buckets, rows.Options{PageSize: pageSize})
	if errors.Is(err, rows.ErrInUse) {
		return nil, fmt.Errorf("%s is in use: another fieldferry runs on this data folder", path)
	} else if err != nil {
		return nil, err
	}
	free := func() (int64, error) { return log.Free(filepath.Dir(path)) }
	m := &meta{db: &metaFile{file, newBallast(filepath.Join(filepath.Dir(path), "ballast"), free)}}
	err = log.Guard(func() error {
		if _, _, _, err := m.load(); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		return m.begin(above)
	})
	if err != nil {
		return nil, errors.Join(err, log.Guard(file.Close))
	}
	return m, nil
}

func (f *metaFile) Update(fn func(rows.Tx) error) error {
	update := func() error { return log.GrowError(f.File.Update(fn)) }
	err := update()
	switch {
	case err == nil:
		f.ballast.restore()
	case log.NoSpace(err) || errors.Is(err, syscall.ENOSPC):
		if err := f.ballast.giveUp(); err != nil {
			return err
		}
		err = update()
	}
	return err
}

func (f *metaFile) DiskBytes() int64 { return f.File.DiskBytes() + log.DiskBytes(f.ballast.path) }
