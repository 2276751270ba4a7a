package log

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
)

// GenID names a generation: a bounded file of blocks that one process life
// writes and that is only read afterwards.
type GenID struct {
	Epoch uint32 // the process life
	First uint64 // the sequence number its first block began with
	Rev   uint32 // 0 as it was written; higher the later it was rewritten
}

func (id GenID) String() string {
	s := fmt.Sprintf("g-%08x-%016x", id.Epoch, id.First)
	if id.Rev > 0 {
		s += fmt.Sprintf("-r%d", id.Rev)
	}
	return s
}

// Compare orders generations by what they hold, and then by revision.
func (id GenID) Compare(other GenID) int {
	return cmp.Or(cmp.Compare(id.First, other.First), cmp.Compare(id.Rev, other.Rev))
}

func parseGenID(name string) (id GenID, ok bool) {
	// Fewer than three are found where there is no revision.
	n, _ := fmt.Sscanf(name, "g-%08x-%016x-r%d", &id.Epoch, &id.First, &id.Rev)
	return id, n >= 2 && name == id.String()
}

// Disk keeps the generations of one log. It is called by one goroutine at a
// time for Create; the others may be called concurrently, but not for one
// generation.
type Disk interface {
	// List returns the generations there are, in the order of Compare.
	List() ([]GenID, error)
	// Create makes a new, empty generation. The file's name is durable on
	// return.
	Create(GenID) (Generation, error)
	// Write makes a generation that holds the given blocks, each of which stays as
	// it is until then. It is whole and durable on return of nil; otherwise a part
	// of it may be there.
	Write(id GenID, blocks iter.Seq2[Seq, []byte]) error
	// Open opens a generation for reading.
	Open(GenID) (Generation, error)
	// Sync makes durable what can be read of a generation that an earlier process
	// wrote: it may have been killed before it came to sync that, or over a sync
	// that failed. A Put that was cut, by a power cut say, is taken back: it never
	// returned. ErrDamaged is one that did, and is not whole any more. It is called
	// before Open.
	Sync(GenID) error
	// Remove deletes a generation, if it is there. It stays away on return of nil.
	Remove(GenID) error
	// DiskBytes is what a generation takes from the disk.
	DiskBytes(GenID) int64
	// Salvage calls fn with the file's bytes from wherever a block may begin. They
	// are valid during the call only; fn returns how many it used, at least one.
	Salvage(id GenID, fn func(p []byte) int) error
	// SetAside takes a damaged generation out of the list and keeps its file where
	// it can be inspected.
	SetAside(GenID) error
	// Replace puts a generation that holds the given blocks in the place of one
	// that is damaged, which is set aside. After a crash the generation is the one
	// or the other.
	Replace(id GenID, blocks iter.Seq2[Seq, []byte]) error
}

// Generation is one file of blocks. Reads may be concurrent with one Put. No
// method panics, whatever the file holds.
type Generation interface {
	// Put stores a block under the number of its first record, which must be
	// above all before. The block is durable on return of nil. After an error for
	// which NoSpace says no, whether it is durable is unknown.
	Put(first Seq, block []byte) error
	// Scan calls fn for the blocks that begin at from or later, in order, until
	// fn returns false. The bytes are valid during the call only.
	Scan(from Seq, fn func(first Seq, block []byte) bool) error
	Close() error
}

// files is the Disk in use: a folder of bbolt files. Each block has a bucket of
// its own with one key in it, because bbolt then writes it once: a plain value
// shares its leaf with three others, and all four would be written anew with
// each commit.
type files struct {
	dir  string
	opts FileOptions
}

// FileOptions are for Files.
type FileOptions struct {
	PageSize        int   // bytes; 0 is 16 KiB
	GenerationBytes int64 // about how large a file grows; 0 is 32 MiB
}

// Files is the Disk that keeps generations as bbolt files in a folder, which it
// makes if it is not there.
func Files(dir string, o FileOptions) (Disk, error) {
	if o.PageSize == 0 {
		o.PageSize = 16 << 10
	}
	if o.GenerationBytes == 0 {
		o.GenerationBytes = defaultGenerationBytes
	}
	if err := MakeDir(dir); err != nil {
		return nil, err
	}
	f := &files{dir: dir, opts: o}
	if err := f.finishReplacing(); err != nil {
		return nil, err
	}
	return f, nil
}

const (
	fileSuffix   = ".db"
	repairSuffix = ".db.repaired"
)

func (f *files) path(id GenID) string { return filepath.Join(f.dir, id.String()+fileSuffix) }

func (f *files) List() ([]GenID, error) {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return nil, err
	}
	var ids []GenID
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), fileSuffix); ok {
			if id, ok := parseGenID(name); ok {
				ids = append(ids, id)
			}
		}
	}
	slices.SortFunc(ids, GenID.Compare)
	return ids, nil
}

func (f *files) Create(id GenID) (Generation, error) {
	path := f.path(id)
	g, err := f.create(path)
	if err != nil {
		return nil, err
	}
	if err := SyncDir(f.dir); err != nil {
		return nil, errors.Join(err, g.Close(), removeIfThere(path))
	}
	return g, nil
}

func (f *files) create(path string) (*file, error) {
	g := &file{}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		PageSize:       f.opts.PageSize,
		NoFreelistSync: true, // else the list is rewritten with each commit
		FreelistType:   bbolt.FreelistMapType,
		NoStatistics:   true,
		// Where the length that lengthen gives does not do, a write makes the file longer
		// and the sync tells of it (in Linux since 3.7; bbolt is about older ones).
		NoGrowSync: true,
		// Growing the map waits for every open reader.
		InitialMmapSize: int(2 * f.opts.GenerationBytes),
		OpenFile: func(name string, flag int, perm os.FileMode) (opened *os.File, err error) {
			opened, err = os.OpenFile(name, flag, perm)
			g.writing = opened
			return opened, err
		},
	})
	if err != nil {
		// What was made of the file holds no block.
		return nil, errors.Join(err, removeIfThere(path))
	}
	db.NoSync = true // Put syncs, once
	g.db = db
	if err := g.lengthen(f.opts.GenerationBytes + f.opts.GenerationBytes/8); err != nil {
		return nil, errors.Join(err, g.Close(), removeIfThere(path))
	}
	return g, nil
}

// lengthen gives a new file its length at once, as far as it may grow: a sync that
// has a new length to tell of takes a third longer. What is not written takes no room.
func (g *file) lengthen(size int64) error {
	if fi, err := g.writing.Stat(); err != nil || fi.Size() >= size {
		return err
	}
	if err := g.writing.Truncate(size); err != nil {
		return nil // it grows as it is written
	}
	return g.writing.Sync()
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (f *files) Open(id GenID) (g Generation, err error) {
	path := f.path(id)
	err = Guard(func() error {
		f, err := openFile(path, 0)
		if err == nil {
			g = f
		}
		return err
	})
	return g, err
}

// openFile opens a file for reading. timeout is for its lock; 0 waits.
func openFile(path string, timeout time.Duration) (*file, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, NoStatistics: true, Timeout: timeout})
	if err != nil {
		return nil, err
	}
	if err := checkTree(path, db.Info().PageSize, true); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &file{db: db}, nil
}

func (f *files) Sync(id GenID) error {
	path := f.path(id)
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	// What a sync has failed for once, no later one writes; it is read all the same
	// until the page cache forgets it. If the disk has none of bbolt's newest meta
	// page, the commit before is the last. The two meta pages are written with two
	// more when the file is made, and cached together.
	synced := errors.Join(file.Sync(), forgetCached(file, 4*int64(f.opts.PageSize)), file.Close())
	last, err := lastCommitOf(path)
	if err != nil {
		return synced // nobody can open it; Open says why
	}
	if err = last.state(); errors.Is(err, errCut) {
		err = last.takeBack(path)
	}
	return errors.Join(synced, err)
}

func (f *files) Remove(id GenID) error {
	return errors.Join(removeIfThere(f.path(id)), SyncDir(f.dir))
}

func (f *files) DiskBytes(id GenID) int64 { return DiskBytes(f.path(id)) }

func (f *files) Salvage(id GenID, fn func(p []byte) int) error {
	p, unmap, err := mapFile(f.path(id))
	if err != nil {
		return err
	}
	return errors.Join(Guard(func() error {
		for off := 0; ; {
			i := bytes.Index(p[off:], []byte(magic))
			if i < 0 {
				return nil
			}
			off += i
			off += fn(p[off:])
		}
	}), unmap())
}

func (f *files) SetAside(id GenID) error {
	return errors.Join(SetAside(f.path(id)), SyncDir(f.dir))
}

func (f *files) Replace(id GenID, blocks iter.Seq2[Seq, []byte]) error {
	repaired := filepath.Join(f.dir, id.String()+repairSuffix)
	if err := removeIfThere(repaired); err != nil {
		return err
	}
	if err := f.write(repaired, blocks); err != nil {
		return errors.Join(err, removeIfThere(repaired))
	}
	if err := SetAside(f.path(id)); err != nil {
		return err
	}
	return errors.Join(os.Rename(repaired, f.path(id)), SyncDir(f.dir))
}

func (f *files) Write(id GenID, blocks iter.Seq2[Seq, []byte]) error {
	return f.write(f.path(id), blocks)
}

// write makes a file of blocks. Nothing counts on the file before it is whole, so
// it is synced once, at the end.
func (f *files) write(path string, blocks iter.Seq2[Seq, []byte]) error {
	const perTx = 1 << 20 // bytes; a transaction holds them in memory
	g, err := f.create(path)
	if err != nil {
		return err
	}
	var firsts []Seq
	var waiting [][]byte
	held := 0
	flush := func() error {
		if len(firsts) == 0 {
			return nil // an empty commit would count as one that lost its block
		}
		err := g.db.Update(func(tx *bbolt.Tx) error {
			for i, first := range firsts {
				if err := put(tx, first, waiting[i]); err != nil {
					return err
				}
			}
			return nil
		})
		firsts, waiting, held = firsts[:0], waiting[:0], 0
		return err
	}
	err = Guard(func() error {
		for first, block := range blocks {
			firsts, waiting, held = append(firsts, first), append(waiting, block), held+len(block)
			if held < perTx {
				continue
			}
			if err := flush(); err != nil {
				return err
			}
		}
		return errors.Join(flush(), g.db.Sync())
	})
	return errors.Join(err, g.Close(), SyncDir(f.dir))
}

// finishReplacing ends what a crash has cut in Replace: a repaired file takes the
// place of its original if that was set aside already.
func (f *files) finishReplacing() error {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return err
	}
	found := false
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), repairSuffix)
		if !ok {
			continue
		}
		found = true
		repaired, path := filepath.Join(f.dir, e.Name()), filepath.Join(f.dir, name+fileSuffix)
		if _, gone := os.Lstat(path); errors.Is(gone, os.ErrNotExist) {
			err = os.Rename(repaired, path)
		} else {
			err = os.Remove(repaired)
		}
		if err != nil {
			return err
		}
	}
	if !found {
		return nil
	}
	return SyncDir(f.dir)
}

// keepAside is how many damaged files are kept in a quarantine folder.
const keepAside = 8

// SetAside moves a damaged file into the folder quarantine beside its own, where
// the newest few are kept for inspection.
func SetAside(path string) error {
	dir := filepath.Join(filepath.Dir(path), "quarantine")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	// The names begin with a number that rises.
	n := 0
	for _, e := range entries {
		fmt.Sscanf(e.Name(), "%d-", &n)
	}
	for i := 0; i+keepAside <= len(entries); i++ {
		if err := os.Remove(filepath.Join(dir, entries[i].Name())); err != nil {
			return err
		}
	}
	return os.Rename(path, filepath.Join(dir, fmt.Sprintf("%06d-%s", n+1, filepath.Base(path))))
}

type file struct {
	db      *bbolt.DB
	writing *os.File // bbolt's own
	// broken is set when bbolt panicked over what the file holds. It may have held
	// its locks then, and Close would wait for them for ever.
	broken atomic.Bool
}

// guard is Guard for what is done with the file.
func (g *file) guard(f func() error) error {
	err := Guard(f)
	if errors.Is(err, errPanic) {
		g.broken.Store(true)
	}
	return err
}

var blockKey = []byte("d")

func (g *file) Put(first Seq, block []byte) error {
	return g.guard(func() error {
		var n uint64
		err := g.db.Update(func(tx *bbolt.Tx) error {
			n = uint64(tx.ID())
			return put(tx, first, block)
		})
		if err != nil {
			return GrowError(err)
		}
		if err := g.db.Sync(); err != nil {
			return fmt.Errorf("sync: %w", err)
		}
		// The block is durable, whether the note of it is or not.
		note(g.writing, g.db.Info().PageSize, n)
		return nil
	})
}

func put(tx *bbolt.Tx, first Seq, block []byte) error {
	// Keys only grow: a page is left as full as it gets.
	tx.Cursor().Bucket().FillPercent = 0.95
	b, err := tx.CreateBucket(seqKey(first))
	if err != nil {
		return err
	}
	b.FillPercent = 1
	return b.Put(blockKey, pad(block))
}

// pad makes a block end where what bbolt puts behind it is aligned. A small bucket
// lies within a page of its parent, and bbolt copies one that is not aligned to
// the heap, where damaged lengths lead to other things than a fault.
func pad(block []byte) []byte {
	const beside = 16 + 16 + 16 + 1 // headers of bucket, page and element, and the key
	for (beside+len(block))%8 != 0 {
		block = append(block, 0)
	}
	return block
}

func (g *file) Scan(from Seq, fn func(Seq, []byte) bool) error {
	return g.guard(func() error {
		return g.db.View(func(tx *bbolt.Tx) error {
			for first, block := range blocksFrom(tx, from) {
				if !fn(first, block) {
					return nil
				}
			}
			return nil
		})
	})
}

// blocksFrom yields the blocks that begin at from or later.
func blocksFrom(tx *bbolt.Tx, from Seq) iter.Seq2[Seq, []byte] {
	return func(yield func(Seq, []byte) bool) {
		c := tx.Cursor()
		for k, _ := c.Seek(seqKey(from)); k != nil; k, _ = c.Next() {
			first, ok := parseSeqKey(k)
			if !ok {
				continue
			}
			var block []byte
			if b := tx.Bucket(k); b != nil {
				block = b.Get(blockKey)
			}
			if !yield(first, block) {
				return
			}
		}
	}
}

// Close closes the file. One that is broken is abandoned, with its descriptor: it
// is read no more.
func (g *file) Close() error {
	if g.broken.Load() {
		return nil
	}
	return Guard(g.db.Close)
}
