package log

import (
	"errors"
	"fmt"
	"sort"
)

// keep adds the newest block to the cache and drops the oldest ones over its
// size. l.mu is held.
func (l *Log) keep(b *Block) {
	l.cache = append(l.cache, b)
	l.cached += cap(b.mem)
	n := 0
	for l.cached > l.opts.CacheBytes && n < len(l.cache)-1 {
		old := l.cache[n]
		l.cached -= cap(old.mem)
		l.floor = old.First
		if !old.lent { // what is stored while nobody reads makes no garbage
			l.spare = old.mem
		}
		n++
	}
	if n > 0 {
		rest := copy(l.cache, l.cache[n:])
		clear(l.cache[rest:])
		l.cache = l.cache[:rest]
	}
}

// newChunk makes a chunk with room for so many bytes of records.
func (l *Log) newChunk(size int) *chunk {
	size += headRoom
	l.mu.Lock()
	buf := l.spare
	l.spare = nil
	l.mu.Unlock()
	if cap(buf) < size || cap(buf)/4 > size {
		buf = make([]byte, 0, size)
	}
	return &chunk{buf: buf[:headRoom], batch: l.owner.NewBatch()}
}

// After returns the first block that begins above a number and whose header and
// directory are wanted, or nil if there is none yet. A block that is damaged is
// passed over and reported in the log: the owner sees from the next directory
// what it held.
func (l *Log) After(after Seq, want func(h *Header, dir []byte) bool) (*Block, error) {
	for {
		b, g := l.find(after, want)
		if g == nil {
			return b, nil
		}
		last := l.lastOf(g)
		b, next, err := l.read(g, after, last, want)
		l.release(g)
		switch {
		case err == nil && b != nil:
			return b, nil
		case err == nil:
			after = last // nothing wanted in the rest of the generation
		case l.isGone(g): // removed or replaced while it was read: look again
		case l.sealedAndNew(g):
			if herr := l.heal(g, err); herr != nil {
				return nil, errors.Join(err, herr)
			}
		case errors.Is(err, ErrDamaged) && next > after:
			l.opts.Logger.Error("block is damaged, its records are lost", "generation", g.ID.String(), "block", next.String(), "err", err)
			after = next
		default:
			return nil, fmt.Errorf("read %s: %w", g.ID, err)
		}
	}
}

// find returns the block from memory, or the generation to read it from, which
// must be released; neither if there is no such block.
func (l *Log) find(after Seq, want func(*Header, []byte) bool) (*Block, *generation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if after >= l.floor {
		i := sort.Search(len(l.cache), func(i int) bool { return l.cache[i].First > after })
		for ; i < len(l.cache); i++ {
			if b := l.cache[i]; want(&b.Header, b.Directory) {
				b.lent = true
				return b, nil
			}
		}
		return nil, nil
	}
	i := sort.Search(len(l.gens), func(i int) bool { return l.gens[i].Last > after })
	for ; i < len(l.gens); i++ {
		if g := l.gens[i]; g.Blocks > 0 {
			g.users++
			return nil, g
		}
	}
	return nil, nil
}

// read returns the first wanted block of a generation above after and up to
// last. With ErrDamaged, next is the number of the block that is damaged.
func (l *Log) read(g *generation, after, last Seq, want func(*Header, []byte) bool) (b *Block, next Seq, err error) {
	f, err := l.file(g)
	if err != nil {
		return nil, 0, err
	}
	scanErr := f.Scan(after+1, func(first Seq, p []byte) bool {
		if first > last {
			return false
		}
		next = first
		h, dir, herr := parseHeader(p)
		switch {
		case herr != nil:
			err = herr
		case h.First != first:
			err = fmt.Errorf("block %s stands at %s: %w", h.First, first, ErrDamaged)
		case !want(&h, dir):
			return true
		default:
			b, err = parseBlock(p, l.dec)
		}
		return false
	})
	return b, next, errors.Join(scanErr, err)
}

// sealedAndNew reports whether a generation can be repaired and was not yet.
func (l *Log) sealedAndNew(g *generation) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !g.active && !g.healed
}

func (l *Log) isGone(g *generation) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return g.gone
}

func (l *Log) lastOf(g *generation) Seq {
	l.mu.Lock()
	defer l.mu.Unlock()
	return g.Last
}

// file opens a generation's file if it is not open. Files of generations that
// nobody reads are closed by release.
func (l *Log) file(g *generation) (Generation, error) {
	l.mu.Lock()
	f := g.file
	l.mu.Unlock()
	if f != nil {
		return f, nil
	}
	f, err := l.disk.Open(g.ID)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	if g.file == nil {
		g.file, f = f, nil
	}
	open := g.file
	l.mu.Unlock()
	if f != nil { // another reader was faster
		return open, f.Close()
	}
	return open, nil
}

// release ends a use that find began, and closes files that are not needed: of
// what has been removed, and of all but the last few that were read.
func (l *Log) release(g *generation) {
	const keepOpen = 4
	l.mu.Lock()
	g.users--
	var idle []Generation
	if g.gone && g.users == 0 && g.file != nil {
		idle = append(idle, g.file)
		g.file = nil
	}
	open := 0
	for i := len(l.gens) - 1; i >= 0; i-- {
		o := l.gens[i]
		if o.file == nil || o.active {
			continue
		}
		if open++; open > keepOpen && o != g && o.users == 0 {
			idle = append(idle, o.file)
			o.file = nil
		}
	}
	l.mu.Unlock()
	for _, f := range idle {
		if err := f.Close(); err != nil {
			l.opts.Logger.Error("file of a generation could not be closed", "err", err)
		}
	}
}
