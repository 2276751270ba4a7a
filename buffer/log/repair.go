package log

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// salvaged is what is left of the blocks in a damaged file, by number.
type salvaged struct {
	found      map[Seq][]byte // whole, as written
	hit        map[Seq]head   // of which only header and directory are whole
	candidates int            // places where a block may begin
}

// more reports whether there are whole blocks that are not among heads.
func (s *salvaged) more(heads []head) bool {
	n := 0
	for i := range heads {
		if _, ok := s.found[heads[i].First]; ok {
			n++
		}
	}
	return n < len(s.found)
}

// salvage finds the blocks up to last in a generation's file without trusting
// anything else that is in it.
func (l *Log) salvage(id GenID, last Seq) (s salvaged, err error) {
	s = salvaged{found: make(map[Seq][]byte), hit: make(map[Seq]head)}
	err = l.disk.Salvage(id, func(p []byte) int {
		s.candidates++
		h, dir, err := parseHeader(p)
		switch {
		case err != nil, h.Class != l.opts.Class, h.First < Seq(id.First), id.Rev == 0 && h.First.Epoch() != id.Epoch:
			return 1
		case h.First > last: // void: see Owner.Sealed
			return 1
		}
		if _, err := checkBody(p, &h); err != nil {
			s.hit[h.First] = head{Header: h, dir: bytes.Clone(dir)}
			return 1
		}
		n := headerSize + h.dir + h.stored
		s.found[h.First] = bytes.Clone(p[:n])
		return n
	})
	// A commit moves small blocks and leaves the old place as it is.
	for first := range s.found {
		delete(s.hit, first)
	}
	return s, err
}

// repair puts what is good of a damaged generation in its place and sets the
// damaged file aside. With no good block, the generation is gone; with an error,
// all is where it was.
func (l *Log) repair(g *generation, last Seq, cause error) (s salvaged, err error) {
	s, err = l.salvage(g.ID, last)
	switch {
	case err != nil:
		return s, fmt.Errorf("salvage %s: %w", g.ID, err)
	case s.candidates == 0 && g.Blocks == 0:
		// The process died while it made the file: nothing was committed to it.
		return s, l.disk.Remove(g.ID)
	case len(s.found) == 0:
		err = l.disk.SetAside(g.ID)
	default:
		err = l.disk.Replace(g.ID, func(yield func(Seq, []byte) bool) {
			for _, first := range slices.Sorted(maps.Keys(s.found)) {
				if !yield(first, s.found[first]) {
					return
				}
			}
		})
	}
	if err != nil {
		return s, fmt.Errorf("replace %s: %w", g.ID, err)
	}
	l.opts.Logger.Error("generation is damaged; its file was set aside, what is good of it is kept",
		"generation", g.ID.String(), "blocks", len(s.found), "err", cause)
	return s, nil
}

// heal repairs a sealed generation that a reader found damaged, once.
func (l *Log) heal(g *generation, cause error) error {
	l.healing.Lock()
	defer l.healing.Unlock()
	return l.healHeld(g, cause)
}

// healHeld is heal with l.healing held.
func (l *Log) healHeld(g *generation, cause error) error {
	l.mu.Lock()
	i := slices.Index(l.gens, g)
	skip := i < 0 || g.active || g.healed
	l.mu.Unlock()
	if skip { // another reader did it, or it can't be done
		return nil
	}
	healed, err := l.withoutCut(g)
	if err != nil {
		return err
	}
	if healed == nil {
		s, err := l.repair(g, l.lastOf(g), cause)
		if err != nil {
			return err
		}
		if len(s.found) > 0 {
			healed = &generation{Seal: g.Seal, healed: true}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if i = slices.Index(l.gens, g); i >= 0 {
		g.gone = true
		l.gens = slices.Delete(l.gens, i, i+1)
		if healed != nil {
			l.gens = slices.Insert(l.gens, i, healed)
		}
	}
	return nil
}

// withoutCut returns the generation without a commit whose sync failed, if that is
// all that is wrong with it; the file may still lead to what was to be synced.
func (l *Log) withoutCut(g *generation) (*generation, error) {
	if g.made || l.disk.Sync(g.ID) != nil {
		return nil, nil
	}
	again := &generation{Seal: g.Seal}
	n, hidden, err := l.hidden(again)
	if err == nil && !hidden && int64(n) == g.Blocks {
		return again, nil
	}
	if again.file == nil {
		return nil, nil
	}
	return nil, again.file.Close()
}

// Recheck counts the blocks of the sealed generations between two numbers, where a
// reader misses something: damage can hide a block from bbolt, and bbolt has no
// checksums to notice. It repairs those that show fewer than they hold, and reports
// whether there were any: then the reader looks again.
func (l *Log) Recheck(after, before Seq) (repaired bool, err error) {
	l.mu.Lock()
	var gens []*generation
	for _, g := range l.gens {
		if g.Last > after && Seq(g.ID.First) < before && !g.active && !g.healed && !g.whole {
			g.users++
			gens = append(gens, g)
		}
	}
	l.mu.Unlock()
	for _, g := range gens {
		damaged, gerr := l.recheck(g)
		l.release(g)
		repaired = repaired || damaged
		err = errors.Join(err, gerr)
	}
	return repaired, err
}

func (l *Log) recheck(g *generation) (damaged bool, err error) {
	shown, hidden, err := l.hidden(g)
	whole := err == nil && !hidden
	l.mu.Lock()
	gone := g.gone
	g.whole = whole
	l.mu.Unlock()
	if gone || whole {
		return false, nil
	}
	return true, l.heal(g, errors.Join(err, fmt.Errorf("%d of %d: %w", shown, g.Blocks, errHidden)))
}

var errHidden = fmt.Errorf("blocks that can be reached are too few: %w", ErrDamaged)

// hidden counts the blocks that can be reached in a sealed generation, and reports
// whether there are more.
func (l *Log) hidden(g *generation) (shown int, hidden bool, err error) {
	var heads []head
	rising := true
	f, err := l.file(g)
	if err == nil {
		err = f.Scan(0, func(first Seq, p []byte) bool {
			if h, _, err := parseHeader(p); err == nil && h.First == first && first <= g.Last {
				rising = rising && (len(heads) == 0 || heads[len(heads)-1].First < first)
				heads = append(heads, head{Header: h})
			}
			return true
		})
	}
	if err != nil || rising && int64(len(heads)) == g.Blocks {
		return len(heads), false, err
	}
	// An earlier process may have repaired it.
	s, serr := l.salvage(g.ID, g.Last)
	return len(heads), !rising || serr != nil || s.more(heads), nil
}
