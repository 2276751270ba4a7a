package log

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
)

// CheckTree looks whether the tree of a bbolt file can be followed. Only bbolt's
// meta pages have checksums, and it trusts what the other pages say: a flipped bit
// can send it round in a circle until stack or memory is gone, which ends the
// process, or have it write over pages that are in use. What the values are is not
// looked at. The file must not be written meanwhile.
func CheckTree(path string, pageSize int) error { return checkTree(path, pageSize, false) }

// checkTree is CheckTree. With both, both meta pages must be whole: where one is
// damaged, bbolt goes by the other, and if that is the older one the last commit
// is not in its tree.
func checkTree(path string, pageSize int, both bool) error {
	p, unmap, err := mapFile(path)
	if err != nil {
		return err
	}
	err = Guard(func() error {
		t := tree{file: p, pageSize: pageSize}
		m, err := t.meta(both)
		if err != nil {
			return err
		}
		t.seen = make([]bool, min(m.pages, uint64(len(p)/pageSize)))
		return t.check(m)
	})
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return errors.Join(err, unmap())
}

// The bytes of a bbolt file, in the machine's byte order (bbolt v1.5,
// internal/common):
//
//	page     id u64, flags u16, count u16, further pages u32
//	  meta   magic, version, page size and flags u32, root page u64, its sequence
//	         u64, free list u64, pages u64, transaction u64, FNV-1a of these u64
//	  branch elements: position (from the element) u32, key size u32, page u64
//	  leaf   elements: flags u32, position u32, key size u32, value size u32
//	  free   page numbers u64; where count is 0xffff, the first is their count
//	bucket   root page u64, sequence u64; with root page 0 a leaf page follows
const (
	pageHeader  = 16
	pageElement = 16
	metaSummed  = 56

	pageBranch = 1
	pageLeaf   = 2
	pageFree   = 16
	leafBucket = 1

	noFreeList = math.MaxUint64
)

var order = binary.NativeEndian

// tree is a file that is checked.
type tree struct {
	file     []byte
	pageSize int
	seen     []bool // pages that have been reached
	todo     []uint64
}

type treeMeta struct{ root, free, pages, transaction uint64 }

// meta returns the newer of the meta pages that are whole.
func (t *tree) meta(both bool) (newest treeMeta, err error) {
	for i := range 2 {
		m, merr := t.metaPage(i)
		if merr != nil {
			if err = merr; both {
				return newest, err
			}
			continue
		}
		if m.pages > 0 && m.transaction >= newest.transaction {
			newest = m
		}
	}
	if newest.pages == 0 {
		return newest, err
	}
	return newest, nil
}

func (t *tree) metaPage(i int) (m treeMeta, err error) {
	at := i*t.pageSize + pageHeader
	if at+metaSummed+8 > len(t.file) {
		return m, fmt.Errorf("meta page %d is cut off: %w", i, ErrDamaged)
	}
	p := t.file[at:]
	sum := fnv.New64a()
	sum.Write(p[:metaSummed])
	if sum.Sum64() != order.Uint64(p[metaSummed:]) {
		return m, fmt.Errorf("checksum of meta page %d: %w", i, ErrDamaged)
	}
	return treeMeta{order.Uint64(p[16:]), order.Uint64(p[32:]), order.Uint64(p[40:]), order.Uint64(p[48:])}, nil
}

func (t *tree) check(m treeMeta) error {
	t.todo = append(t.todo, m.root)
	for len(t.todo) > 0 {
		id := t.todo[len(t.todo)-1]
		t.todo = t.todo[:len(t.todo)-1]
		p, err := t.page(id)
		if err != nil {
			return err
		}
		switch flags, count := order.Uint16(p[8:]), order.Uint16(p[10:]); {
		case flags == pageBranch && count > 0:
			err = t.branch(p)
		case flags == pageLeaf && (count > 0 || id != m.root || m.transaction <= 1): // 1: a new file
			err = t.leaf(p, false)
		default:
			err = fmt.Errorf("flags %#x, %d elements: %w", flags, count, ErrDamaged)
		}
		if err != nil {
			return fmt.Errorf("page %d: %w", id, err)
		}
	}
	if m.free == noFreeList {
		return nil
	}
	return t.freeList(m.free)
}

// page returns a page that is reached for the first time.
func (t *tree) page(id uint64) ([]byte, error) {
	if id < 2 || id >= uint64(len(t.seen)) {
		return nil, fmt.Errorf("there is no page %d: %w", id, ErrDamaged)
	}
	p := t.file[int(id)*t.pageSize:]
	if own := order.Uint64(p); own != id {
		return nil, fmt.Errorf("page %d says it is %d: %w", id, own, ErrDamaged)
	}
	n := 1 + uint64(order.Uint32(p[12:]))
	if n > uint64(len(t.seen))-id {
		return nil, fmt.Errorf("page %d is longer than the file: %w", id, ErrDamaged)
	}
	for i := range n {
		if t.seen[id+i] {
			return nil, fmt.Errorf("page %d is reached twice: %w", id+i, ErrDamaged)
		}
		t.seen[id+i] = true
	}
	return p[:int(n)*t.pageSize], nil
}

func (t *tree) branch(p []byte) error {
	var last []byte
	for i := range int(order.Uint16(p[10:])) {
		key, _, err := element(p, i, 0, 4, -1, last)
		if err != nil {
			return err
		}
		last = key
		t.todo = append(t.todo, order.Uint64(p[pageHeader+i*pageElement+8:]))
	}
	return nil
}

// leaf checks a leaf page, or the one that is within the value of a bucket.
func (t *tree) leaf(p []byte, within bool) error {
	var last []byte
	for i := range int(order.Uint16(p[10:])) {
		key, value, err := element(p, i, 4, 8, 12, last)
		if err != nil {
			return err
		}
		last = key
		switch flags := order.Uint32(p[pageHeader+i*pageElement:]); {
		case flags == 0:
			continue
		case flags != leafBucket || within || len(value) < 16:
			return fmt.Errorf("element %d has flags %#x and %d bytes: %w", i, flags, len(value), ErrDamaged)
		}
		if root := order.Uint64(value); root != 0 {
			t.todo = append(t.todo, root)
			continue
		}
		inner := value[16:]
		if len(inner) < pageHeader || order.Uint16(inner[8:]) != pageLeaf {
			return fmt.Errorf("bucket in element %d: %w", i, ErrDamaged)
		}
		if err := t.leaf(inner, true); err != nil {
			return fmt.Errorf("bucket in element %d: %w", i, err)
		}
	}
	return nil
}

// element returns key and value of an element of a page, given where it has its
// position and their sizes; -1 for no value. Its key must come after another.
func element(p []byte, i, position, keySize, valueSize int, after []byte) (key, value []byte, err error) {
	at := pageHeader + i*pageElement
	if at+pageElement > len(p) {
		return nil, nil, fmt.Errorf("element %d is outside of the page: %w", i, ErrDamaged)
	}
	e := p[at:]
	from, k, v := uint64(order.Uint32(e[position:])), uint64(order.Uint32(e[keySize:])), uint64(0)
	if valueSize >= 0 {
		v = uint64(order.Uint32(e[valueSize:]))
	}
	if from+k+v > uint64(len(e)) {
		return nil, nil, fmt.Errorf("element %d reaches out of the page: %w", i, ErrDamaged)
	}
	key, value = e[from:from+k], e[from+k:from+k+v]
	if i > 0 && bytes.Compare(key, after) <= 0 {
		return nil, nil, fmt.Errorf("element %d is not in order: %w", i, ErrDamaged)
	}
	return key, value, nil
}

// freeList looks that no page is in the tree and free, or free twice.
func (t *tree) freeList(id uint64) error {
	p, err := t.page(id)
	if err != nil {
		return err
	}
	count, ids := uint64(order.Uint16(p[10:])), p[pageHeader:]
	if count == math.MaxUint16 {
		count, ids = order.Uint64(ids), ids[8:]
	}
	if order.Uint16(p[8:]) != pageFree || count > uint64(len(ids)/8) {
		return fmt.Errorf("page %d is no free list: %w", id, ErrDamaged)
	}
	for i := range int(count) {
		free := order.Uint64(ids[8*i:])
		if free < 2 || free >= uint64(len(t.seen)) || t.seen[free] {
			return fmt.Errorf("page %d is not free: %w", free, ErrDamaged)
		}
		t.seen[free] = true
	}
	return nil
}

// TreePairs yields what is in the buckets at the root of a bbolt file that may be
// damaged, as far as it can be reached. What is yielded is valid during the call
// only, and as likely to be damaged as the rest.
func TreePairs(path string, pageSize int, pair func(bucket string, key, value []byte)) error {
	p, unmap, err := mapFile(path)
	if err != nil {
		return err
	}
	return errors.Join(Guard(func() error {
		t := tree{file: p, pageSize: pageSize}
		m, err := t.meta(false)
		if err != nil {
			return err
		}
		t.seen = make([]bool, min(m.pages, uint64(len(p)/pageSize)))
		t.pairs(m.root, func(name, bucket []byte) {
			inner := func(key, value []byte) { pair(string(name), key, value) }
			switch {
			case len(bucket) < 16:
			case order.Uint64(bucket) != 0:
				t.pairs(order.Uint64(bucket), inner)
			default:
				pagePairs(bucket[16:], inner)
			}
		})
		return nil
	}), unmap())
}

// pairs yields what is in the leaf pages below one, and passes over what it cannot
// reach.
func (t *tree) pairs(id uint64, pair func(key, value []byte)) {
	p, err := t.page(id)
	switch {
	case err != nil:
	case order.Uint16(p[8:]) == pageBranch:
		for i := range int(order.Uint16(p[10:])) {
			if at := pageHeader + i*pageElement; at+pageElement <= len(p) {
				t.pairs(order.Uint64(p[at+8:]), pair) // no deeper than there are pages
			}
		}
	case order.Uint16(p[8:]) == pageLeaf:
		pagePairs(p, pair)
	}
}

func pagePairs(p []byte, pair func(key, value []byte)) {
	if len(p) < pageHeader {
		return
	}
	for i := range int(order.Uint16(p[10:])) {
		if key, value, err := element(p, i, 4, 8, 12, nil); err == nil {
			pair(key, value)
		}
	}
}
