// Package rows keeps small tables in a bbolt file: rows in buckets, changed by
// transactions that are durable or did not happen, each row with a checksum of its
// own, because bbolt has none for its data.
package rows

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/fieldferry/fieldferry/buffer/log"
)

// Store is tables of rows. Update is atomic and durable on return of nil; after an
// error nothing of it is there, unless the process dies first.
type Store interface {
	Update(func(Tx) error) error
	View(func(Tx) error) error
	Close() error
	DiskBytes() int64
}

// Tx is one transaction. Rows come in the order of their keys; their bytes are
// valid until it ends. Rows must not be changed while they are iterated over.
type Tx interface {
	Get(bucket string, key []byte) []byte
	Put(bucket string, key, value []byte) error
	Delete(bucket string, key []byte) error
	// Rows yields the rows whose keys begin with prefix.
	Rows(bucket string, prefix []byte) iter.Seq2[[]byte, []byte]
}

// ErrDamaged says that a file's bytes are not those that were written.
var ErrDamaged = log.ErrDamaged

// SetAside moves a damaged file into the folder quarantine beside it.
func SetAside(path string) error { return log.SetAside(path) }

// ErrInUse is returned for a file that another process has open.
var ErrInUse = errors.New("the file is in use by another process")

// File is a Store in a bbolt file.
type File struct {
	db   *bbolt.DB
	path string
}

// Options of a file; the zero value works.
type Options struct {
	PageSize int // 0 is the machine's
	ReadOnly bool
}

// Open opens a file with these buckets, or makes it. Every row of it is checked. An
// error that is ErrDamaged says that what is in it is damaged.
func Open(path string, buckets []string, o Options) (f *File, err error) {
	f = &File{path: path}
	err = log.Guard(func() (err error) {
		f.db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, PageSize: o.PageSize, NoStatistics: true, ReadOnly: o.ReadOnly})
		switch {
		case errors.Is(err, bolterrors.ErrTimeout):
			return fmt.Errorf("%s: %w", path, ErrInUse)
		case errors.As(err, new(*os.PathError)):
			return fmt.Errorf("open: %w", err)
		case err != nil: // what bbolt says of the file's bytes
			return fmt.Errorf("open %s: %v: %w", path, err, log.ErrDamaged)
		}
		if err := log.CheckTree(path, f.db.Info().PageSize); err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if err := f.makeBuckets(buckets, o.ReadOnly); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if err := f.db.View(func(tx *bbolt.Tx) error { return verify(tx, buckets) }); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if o.ReadOnly {
			return nil
		}
		// A file's sync makes its bytes durable and not its name. Whatever an earlier
		// process made in the folder before it died is covered here too.
		return log.SyncDir(filepath.Dir(path))
	})
	if err != nil {
		if f.db != nil {
			err = errors.Join(err, log.Guard(f.db.Close))
		}
		return nil, err
	}
	return f, nil
}

// makeBuckets makes the buckets of a new file. In one that has some, none may be
// missing.
func (f *File) makeBuckets(buckets []string, readOnly bool) error {
	isNew := false
	err := f.db.View(func(tx *bbolt.Tx) error {
		isNew = tx.Bucket([]byte(buckets[0])) == nil && !readOnly
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
	return f.db.Update(func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		return nil
	})
}

// verify checks the checksum that ends each row.
func verify(tx *bbolt.Tx, buckets []string) error {
	for _, name := range buckets {
		err := tx.Bucket([]byte(name)).ForEach(func(k, v []byte) error {
			if !sound(name, k, v) {
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

// Salvage yields the rows of these buckets that are sound in a file that may be
// damaged, as far as they can be reached. The file is not changed.
func Salvage(path string, buckets []string, row func(bucket string, key, value []byte)) error {
	return log.Guard(func() error {
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, NoStatistics: true, ReadOnly: true})
		if err != nil {
			return err
		}
		err = log.TreePairs(path, db.Info().PageSize, func(bucket string, k, v []byte) {
			if slices.Contains(buckets, bucket) && sound(bucket, k, v) {
				row(bucket, bytes.Clone(k), bytes.Clone(withoutSum(v)))
			}
		})
		return errors.Join(err, log.Guard(db.Close))
	})
}

// InUse reports whether a program has a file open for writing.
func InUse(path string) bool {
	err := log.Guard(func() error {
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, NoStatistics: true, Timeout: 1})
		if err == nil {
			err = db.Close()
		}
		return err
	})
	return errors.Is(err, bolterrors.ErrTimeout)
}

const sumSize = 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sound(bucket string, k, v []byte) bool {
	return len(v) >= sumSize && binary.BigEndian.Uint32(v[len(v)-sumSize:]) == rowSum(bucket, k, v[:len(v)-sumSize])
}

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

// Update is Store.Update.
func (f *File) Update(fn func(Tx) error) error {
	return f.db.Update(func(tx *bbolt.Tx) error { return fn(fileTx{tx}) })
}

// View is Store.View.
func (f *File) View(fn func(Tx) error) error {
	return f.db.View(func(tx *bbolt.Tx) error { return fn(fileTx{tx}) })
}

// Close closes the file.
func (f *File) Close() error { return f.db.Close() }

// DiskBytes is what the file takes from the disk.
func (f *File) DiskBytes() int64 { return log.DiskBytes(f.path) }

type fileTx struct{ tx *bbolt.Tx }

func (t fileTx) Get(bucket string, key []byte) []byte {
	return withoutSum(t.tx.Bucket([]byte(bucket)).Get(key))
}

func (t fileTx) Put(bucket string, key, value []byte) error {
	value = binary.BigEndian.AppendUint32(bytes.Clone(value), rowSum(bucket, key, value))
	return t.tx.Bucket([]byte(bucket)).Put(key, value)
}

func (t fileTx) Delete(bucket string, key []byte) error {
	return t.tx.Bucket([]byte(bucket)).Delete(key)
}

func (t fileTx) Rows(bucket string, prefix []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		c := t.tx.Bucket([]byte(bucket)).Cursor()
		for k, v := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
			if !yield(k, withoutSum(v)) {
				return
			}
		}
	}
}
