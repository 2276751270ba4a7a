package log

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"

	"go.etcd.io/bbolt"
)

// A commit is synced once. bbolt writes its pages and then one of the two meta
// pages, in turns, and never writes a page to which the other one leads. So if the
// power goes within a commit, any part of what it has written may be missing, and
// all that the commit before led to is there: which of the two holds is seen from
// the file. Each commit adds one block, so the meta page knows how many blocks its
// tree must have; each page of the tree that is missing or an older one shows.
//
// A commit that is not whole was either cut, then nobody was told of it and it is
// taken back, or damaged later, then what it held is lost and must be counted. So
// when it is durable, that is noted behind the other meta page: the next commit
// writes that page anyway.
//
//	 0  4  magic "FFB+"
//	 4  8  number of the commit
//	12  4  CRC32C of bytes 0 to 11
const (
	noteAt    = 512 // in a meta page: what bbolt has there is in the sector before
	noteSize  = 16
	noteMagic = "FFB+"

	// madeWith is the number of the newest meta page of a file as bbolt makes it.
	madeWith = 1

	minPageSize, maxPageSize = 1 << 10, 64 << 10 // of bbolt, bytes
)

// note says behind the meta page that commit n has not written that n is durable.
// If it gets lost, a block that is damaged later may be taken for one that was cut.
func note(f *os.File, pageSize int, n uint64) error {
	p := make([]byte, noteSize)
	copy(p, noteMagic)
	binary.BigEndian.PutUint64(p[4:], n)
	binary.BigEndian.PutUint32(p[12:], crc32.Checksum(p[:12], castagnoli))
	_, err := f.WriteAt(p, int64(n+1)%2*int64(pageSize)+noteAt)
	return err
}

// noted is the commit that a note is about; 0 if it is none. harmed says that there
// was one that is not whole any more: bbolt leaves the place empty when it writes a
// meta page, and no commit touches the other page.
func noted(p []byte) (n uint64, harmed bool) {
	if string(p[:4]) == noteMagic && crc32.Checksum(p[:12], castagnoli) == binary.BigEndian.Uint32(p[12:]) {
		return binary.BigEndian.Uint64(p[4:]), false
	}
	return 0, !bytes.Equal(p, make([]byte, noteSize))
}

// lastCommit is what a file says of its last commit.
type lastCommit struct {
	number   uint64
	page     int     // the meta page that leads to it
	noted    uint64  // the highest that is known to have been durable
	harmed   [2]bool // by meta page: what is noted behind it is not whole
	pageSize int
	torn     error // the other meta page is not whole; ErrDamaged
	err      error // the commit is not whole; ErrDamaged
}

// lastCommitOf looks at a file. An error is one that cannot be opened, because it is
// being written, say, or has no meta page that is whole: openFile says the same.
func lastCommitOf(path string) (c lastCommit, err error) {
	if err := c.readMeta(path); err != nil || c.torn != nil {
		return c, err
	}
	g, err := openFile(path, 1)
	switch {
	case errors.Is(err, ErrDamaged):
		c.err = err
		return c, nil
	case err != nil:
		return c, err
	}
	c.err = g.guard(func() error { return g.db.View(func(tx *bbolt.Tx) error { return wholeTree(tx, c.pageSize) }) })
	return c, g.Close()
}

// readMeta reads what stands in the meta pages.
func (c *lastCommit) readMeta(path string) error {
	p, unmap, err := mapFile(path)
	if err != nil {
		return err
	}
	err = Guard(func() error {
		t := tree{file: p}
		// The first page says how large it is; where it is not whole, the second is looked
		// for behind it.
		for t.pageSize = minPageSize; t.pageSize <= maxPageSize; t.pageSize *= 2 {
			var metas [2]treeMeta
			var errs [2]error
			for i := range metas {
				metas[i], errs[i] = t.metaPage(i)
			}
			if errs[0] != nil && errs[1] != nil {
				continue
			}
			if errs[0] != nil || errs[1] == nil && metas[1].transaction > metas[0].transaction {
				c.page = 1
			}
			if order.Uint32(p[c.page*t.pageSize+pageHeader+8:]) != uint32(t.pageSize) {
				continue
			}
			c.number, c.torn, c.pageSize = metas[c.page].transaction, errs[1-c.page], t.pageSize
			for i := range 2 {
				if at := i*t.pageSize + noteAt; at+noteSize <= len(p) {
					n, harmed := noted(p[at : at+noteSize])
					c.noted, c.harmed[i] = max(c.noted, n), harmed
				}
			}
			return nil
		}
		return fmt.Errorf("no meta page: %w", ErrDamaged)
	})
	return errors.Join(err, unmap())
}

// wholeTree checks the tree of a file, to which each commit adds a block: that it has
// them all, and that nothing of the last one is missing.
func wholeTree(tx *bbolt.Tx, pageSize int) error {
	var last Seq
	var block []byte
	n := 0
	for first, p := range blocksFrom(tx, 0) {
		if first <= last { // an older page can stand in the place of another
			return fmt.Errorf("block %s comes after %s: %w", first, last, ErrDamaged)
		}
		last, block = first, p
		n++
		h, _, err := parseHeader(p)
		if err == nil && h.First != first {
			err = fmt.Errorf("block %s stands at %s: %w", h.First, first, ErrDamaged)
		}
		// A small block lies in a page of the tree, which the last commit has written.
		if err == nil && len(p) <= pageSize {
			_, err = checkBody(p, &h)
		}
		if err != nil {
			return err
		}
	}
	// A repaired file has more: its commits are large.
	if commits := tx.ID() - madeWith; n < commits {
		return fmt.Errorf("%d blocks of %d commits: %w", n, commits, ErrDamaged)
	}
	if n == 0 {
		return nil
	}
	h, _, err := parseHeader(block)
	if err == nil {
		_, err = checkBody(block, &h)
	}
	if err != nil {
		return fmt.Errorf("block %s: %w", last, err)
	}
	return nil
}

// errCut is a last commit of which a part is missing and that nobody was told of.
var errCut = errors.New("the last commit was cut")

// state is nil if the commit is whole, errCut, or ErrDamaged.
func (c *lastCommit) state() error {
	switch {
	case c.noted > c.number:
		return fmt.Errorf("commit %d was whole: %w", c.noted, cmp.Or(c.torn, ErrDamaged))
	case c.torn != nil && c.harmed[c.page]: // what was noted of the next one
		return c.torn
	case c.torn != nil:
		return fmt.Errorf("%w: commit %d: %v", errCut, c.number+1, c.torn)
	case c.err == nil:
		return nil
	case c.noted == c.number || c.harmed[1-c.page]:
		return fmt.Errorf("commit %d was whole: %w", c.number, c.err)
	case c.number <= madeWith:
		return c.err // there is none to take back
	}
	return fmt.Errorf("%w: commit %d: %v", errCut, c.number, c.err)
}

// takeBack makes the commit before the one that was cut the last: both meta pages
// lead to it then. If it is not whole either, the file is damaged and is left as it
// was.
func (c *lastCommit) takeBack(path string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	last, cut, cause := c.number-1, c.page, c.err
	if c.torn != nil {
		last, cut, cause = c.number, 1-c.page, c.torn
	}
	was, good := make([]byte, noteAt), make([]byte, noteAt)
	if _, err := f.ReadAt(was, int64(cut*c.pageSize)); err != nil {
		return errors.Join(cause, err)
	}
	if _, err := f.ReadAt(good, int64((1-cut)*c.pageSize)); err != nil {
		return err
	}
	order.PutUint64(good, uint64(cut)) // a page says which one it is
	put := func(p []byte) error {
		_, err := f.WriteAt(p, int64(cut*c.pageSize))
		if err == nil {
			err = f.Sync()
		}
		return err
	}
	if err := put(good); err != nil {
		return err
	}
	if now, err := lastCommitOf(path); err == nil && now.state() == nil && now.number == last {
		return nil
	}
	return errors.Join(fmt.Errorf("nor is commit %d whole: %w", last, cause), put(was))
}
