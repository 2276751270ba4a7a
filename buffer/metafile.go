package buffer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/fieldferry/fieldferry/buffer/log"
)

// metaFile is the metaStore in use: meta.db, a bbolt file.
type metaFile struct {
	db      *bbolt.DB
	path    string
	ballast *ballast // nil if it is opened for looking only
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
	// A file's sync makes its bytes durable and not its name. Whatever an earlier
	// process made in the folder before it died is covered here too.
	if err := log.SyncDir(dir); err != nil {
		return nil, errors.Join(err, m.close())
	}
	if isNew {
		// Maybe that process made the folder itself. Where the one above cannot be
		// synced, it was not made there just now.
		if err := log.SyncDir(filepath.Dir(filepath.Clean(dir))); err != nil {
			logger.Debug("folder above the data folder could not be synced", "err", err)
		}
	}
	return m, nil
}

func tryMeta(path string, pageSize int, above uint32) (m *meta, err error) {
	var db *bbolt.DB
	err = log.Guard(func() (err error) {
		db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, PageSize: pageSize, NoStatistics: true})
		switch {
		case errors.Is(err, bolterrors.ErrTimeout):
			return fmt.Errorf("%s is in use: another fieldferry runs on this data folder", path)
		case errors.As(err, new(*os.PathError)):
			return fmt.Errorf("open: %w", err)
		case err != nil: // what bbolt says of the file's bytes
			return fmt.Errorf("open %s: %v: %w", path, err, log.ErrDamaged)
		}
		if err := log.CheckTree(path, db.Info().PageSize); err != nil {
			return fmt.Errorf("read: %w", err)
		}
		free := func() (int64, error) { return log.Free(filepath.Dir(path)) }
		m = &meta{db: &metaFile{db, path, newBallast(filepath.Join(filepath.Dir(path), "ballast"), free)}}
		if err := makeBuckets(db); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if err := db.View(verifyRows); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if _, _, _, err := m.load(); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		return m.begin(above)
	})
	if err != nil {
		if db != nil {
			err = errors.Join(err, log.Guard(db.Close))
		}
		return nil, err
	}
	return m, nil
}

// makeBuckets makes the buckets of a new file. In one that has some, none may be
// missing.
func makeBuckets(db *bbolt.DB) error {
	isNew := false
	err := db.View(func(tx *bbolt.Tx) error {
		isNew = tx.Bucket([]byte(bucketAbout)) == nil
		for _, name := range buckets {
			if !isNew && tx.Bucket([]byte(name)) == nil {
				return fmt.Errorf("bucket %s is missing: %w", name, log.ErrDamaged)
			}
		}
		return nil
	})
	if err != nil || !isNew {
		return err
	}
	return db.Update(func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		return nil
	})
}

// verifyRows checks the checksum that ends each row: bbolt has none for its data.
func verifyRows(tx *bbolt.Tx) error {
	for _, name := range buckets {
		err := tx.Bucket([]byte(name)).ForEach(func(k, v []byte) error {
			if len(v) < sumSize || binary.BigEndian.Uint32(v[len(v)-sumSize:]) != rowSum(name, k, v[:len(v)-sumSize]) {
				return fmt.Errorf("row %x of %s: checksum: %w", k, name, log.ErrDamaged)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

const sumSize = 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func rowSum(bucket string, key, value []byte) uint32 {
	sum := crc32.Checksum([]byte(bucket), castagnoli)
	sum = crc32.Update(sum, castagnoli, key)
	return crc32.Update(sum, castagnoli, value)
}

// withoutSum is a row's value as it was put.
func withoutSum(v []byte) []byte {
	if len(v) < sumSize {
		return nil
	}
	return v[:len(v)-sumSize]
}

func (f *metaFile) Update(fn func(metaTx) error) error {
	update := func() error {
		return log.GrowError(f.db.Update(func(tx *bbolt.Tx) error { return fn(metaFileTx{tx}) }))
	}
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

func (f *metaFile) View(fn func(metaTx) error) error {
	return f.db.View(func(tx *bbolt.Tx) error { return fn(metaFileTx{tx}) })
}

func (f *metaFile) Close() error { return f.db.Close() }

func (f *metaFile) DiskBytes() int64 { return log.DiskBytes(f.path) + log.DiskBytes(f.ballast.path) }

type metaFileTx struct{ tx *bbolt.Tx }

func (t metaFileTx) Get(bucket string, key []byte) []byte {
	return withoutSum(t.tx.Bucket([]byte(bucket)).Get(key))
}

func (t metaFileTx) Put(bucket string, key, value []byte) error {
	value = binary.BigEndian.AppendUint32(bytes.Clone(value), rowSum(bucket, key, value))
	return t.tx.Bucket([]byte(bucket)).Put(key, value)
}

func (t metaFileTx) Delete(bucket string, key []byte) error {
	return t.tx.Bucket([]byte(bucket)).Delete(key)
}

func (t metaFileTx) Rows(bucket string) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		c := t.tx.Bucket([]byte(bucket)).Cursor()
		for k, v := c.First(); k != nil; k, v = c.Next() {
			if !yield(k, withoutSum(v)) {
				return
			}
		}
	}
}
