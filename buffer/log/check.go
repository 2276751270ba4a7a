package log

import (
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"math"
	"os"
	"slices"
	"sort"

	bolterrors "go.etcd.io/bbolt/errors"
)

// Checked is a block as it lies in its file, or what is wrong there.
type Checked struct {
	Generation GenID
	First      Seq    // where the block stands, or from where the file cannot be read
	Block      *Block // nil if it is damaged
	Bytes      int    // that were read
	Err        error  // what is damaged
}

// Check reads the blocks that begin above after and up to end from their files,
// never from memory, oldest first. It changes and repairs nothing, and keeps no
// transaction open while its caller looks at a block, which may take its time. Generations that are removed
// meanwhile are left out.
func (l *Log) Check(after, end Seq) iter.Seq[Checked] {
	return func(yield func(Checked) bool) {
		for {
			g, last := l.useNext(after, end)
			if g == nil {
				return
			}
			gone, more := l.checkGeneration(g, after, last, yield)
			l.release(g)
			if !more {
				return
			}
			if !gone {
				after = last
			}
		}
	}
}

// End is the number of the newest durable record.
func (l *Log) End() Seq {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.gens); n > 0 {
		return l.gens[n-1].Last
	}
	return 0
}

// useNext returns the generation of the first block above after, which must be
// released, and where to stop in it.
func (l *Log) useNext(after, end Seq) (*generation, Seq) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := sort.Search(len(l.gens), func(i int) bool { return l.gens[i].Last > after })
	for ; i < len(l.gens) && after < end; i++ {
		if g := l.gens[i]; g.Blocks > 0 && Seq(g.ID.First) <= end {
			g.users++
			return g, min(g.Last, end)
		}
	}
	return nil, 0
}

// checkGeneration yields the blocks of a generation above after and up to last.
// It yields none if the generation is gone: what it held may be in another now.
// It reports no more if yield does.
func (l *Log) checkGeneration(g *generation, after, last Seq, yield func(Checked) bool) (gone, more bool) {
	f, err := l.file(g)
	for err == nil {
		var c Checked
		if c, err = l.checkNext(f, after, last); err != nil {
			break
		}
		if c.First == 0 {
			return false, true
		}
		c.Generation, after = g.ID, c.First
		if !yield(c) {
			return false, false
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return g.gone, true
	}
	// Its tree cannot be followed, or another process has it: the blocks can be
	// found without.
	s, serr := l.salvage(g.ID, last)
	locked := errors.Is(err, bolterrors.ErrTimeout)
	made := g.Blocks > 0 || s.candidates > 0 // else its process died while it made the file
	if made && (!locked || serr != nil) && !yield(Checked{Generation: g.ID, First: after + 1, Err: fmt.Errorf("read %s: %w", g.ID, errors.Join(err, serr))}) {
		return false, false
	}
	for _, first := range slices.Sorted(maps.Keys(s.found)) {
		if first > after && !yield(l.checked(g.ID, first, s.found[first])) {
			return false, false
		}
	}
	return false, true
}

// checkNext reads the first block of a file above after; there is none up to last
// if First is 0.
func (l *Log) checkNext(f Generation, after, last Seq) (c Checked, err error) {
	err = f.Scan(after+1, func(first Seq, p []byte) bool {
		if first <= last {
			c = l.checked(GenID{}, first, p)
		}
		return false
	})
	return c, err
}

func (l *Log) checked(id GenID, first Seq, p []byte) Checked {
	c := Checked{Generation: id, First: first, Bytes: len(p)}
	b, err := parseBlock(p, l.dec)
	switch {
	case err != nil:
		c.Err = err
	case b.First != first || b.Class != l.opts.Class:
		c.Err = fmt.Errorf("block %s stands at %s: %w", b.First, first, ErrDamaged)
	default:
		c.Block = b
	}
	return c
}

// Folder is the files of a log as they lie in a folder, for looking at only.
type Folder struct {
	l      *Log
	broken []Checked // of generations in which no block is whole
}

// Look opens the files of a log without changing anything. A process may be at
// work on them: what it writes or removes later is not seen. The generations in
// sealed are taken as they are described; any other is read through, and the
// header and directory of each of its blocks handed to recovered.
func Look(dir string, class byte, sealed map[GenID]Seal, recovered func(GenID, Header, []byte)) (*Folder, error) {
	dec, err := newDecoder(1)
	if err != nil {
		return nil, err
	}
	disk := lookDisk{&files{dir: dir}, make(map[GenID]blocks)}
	l := &Log{disk: disk, opts: Options{Class: class, Logger: slog.New(slog.DiscardHandler)}, dec: dec}
	folder := &Folder{l: l}
	ids, err := l.disk.List()
	if err == nil {
		ids, err = l.discard(ids, sealed)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		dec.Close()
		return nil, fmt.Errorf("list generations: %w", err)
	}
	for _, id := range ids {
		g := &generation{Seal: Seal{ID: id}}
		if s, ok := sealed[id]; ok {
			g.Seal = s
		} else {
			// Until the next start takes it back, a commit that was cut leads nowhere.
			if errors.Is(disk.Sync(id), errCut) {
				s, err := l.salvage(id, math.MaxUint64)
				if err != nil {
					return nil, errors.Join(err, folder.Close())
				}
				disk.salvaged[id] = s.found
			}
			var broken []Checked
			g.users++
			l.checkGeneration(g, 0, math.MaxUint64, func(c Checked) bool {
				if b := c.Block; b != nil {
					g.add(&b.Header, c.Bytes)
					recovered(id, b.Header, b.Directory)
				} else {
					broken = append(broken, c)
				}
				return true
			})
			l.release(g)
			if g.Blocks == 0 {
				folder.broken = append(folder.broken, broken...)
			}
		}
		if g.Blocks > 0 {
			l.gens = append(l.gens, g)
		}
	}
	return folder, nil
}

// Check is Log.Check of all there is.
func (f *Folder) Check() iter.Seq[Checked] {
	return func(yield func(Checked) bool) {
		for _, c := range f.broken {
			if !yield(c) {
				return
			}
		}
		f.l.Check(0, math.MaxUint64)(yield)
	}
}

// From is Log.Check from a record on.
func (f *Folder) From(first Seq) iter.Seq[Checked] { return f.l.Check(first-1, math.MaxUint64) }

// Generations is Log.Generations.
func (f *Folder) Generations() []GenerationInfo { return f.l.Generations() }

// Close closes the files.
func (f *Folder) Close() error {
	f.l.dec.Close()
	return f.l.closeFiles()
}

// lookDisk opens files that another process may have locked.
type lookDisk struct {
	*files
	salvaged map[GenID]blocks // what is read in the place of a file
}

// Open opens a generation, or returns bbolt's ErrTimeout at once if it is locked.
func (d lookDisk) Open(id GenID) (g Generation, err error) {
	if b, ok := d.salvaged[id]; ok {
		return b, nil
	}
	err = Guard(func() error {
		f, err := openFile(d.path(id), 1)
		if err == nil {
			g = f
		}
		return err
	})
	return g, err
}

// Sync says what Sync of a Disk would have to do, and does none of it.
func (d lookDisk) Sync(id GenID) error {
	last, err := lastCommitOf(d.path(id))
	if err != nil {
		return nil // Open says why
	}
	return last.state()
}

// Remove leaves the file where it is: what Open would remove is only passed over.
func (d lookDisk) Remove(GenID) error { return nil }

// blocks is a generation in memory.
type blocks map[Seq][]byte

func (b blocks) Put(Seq, []byte) error { return errors.ErrUnsupported }
func (b blocks) Close() error          { return nil }

func (b blocks) Scan(from Seq, fn func(Seq, []byte) bool) error {
	for _, first := range slices.Sorted(maps.Keys(b)) {
		if first >= from && !fn(first, b[first]) {
			break
		}
	}
	return nil
}
