package log

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
)

// recover reads the headers of a generation that was not sealed, and reports
// whether there is one. What it finds counts as accepted from then on, so it is
// made durable first: a block whose writer was killed before its sync would be
// gone after a power cut. A generation of which something cannot be read, or may
// be missing, is repaired.
func (l *Log) recover(g *generation, recovered func(GenID, Header, []byte)) (known bool, err error) {
	damage := l.disk.Sync(g.ID)
	if damage != nil && !errors.Is(damage, ErrDamaged) {
		// All that anyone was told of was durable before.
		l.opts.Logger.Error("generation could not be synced", "generation", g.ID.String(), "err", damage)
		damage = nil
	}
	heads, err := l.readHeads(g)
	switch {
	case damage != nil:
		heads, err = l.recoverDamaged(g, errors.Join(damage, err))
	case err == nil && !gaps(g.ID, heads):
	case err == nil:
		// A commit for which there was no room leaves a gap too.
		s, serr := l.salvage(g.ID, math.MaxUint64)
		if serr == nil && s.more(heads) {
			heads, err = l.recoverDamaged(g, fmt.Errorf("not all of %s can be reached: %w", g.ID, ErrDamaged))
		}
	default:
		heads, err = l.recoverDamaged(g, err)
	}
	if len(heads) == 0 && g.file != nil {
		err = errors.Join(err, g.file.Close())
		g.file = nil
	}
	if err != nil {
		return false, err
	}
	for i := range heads {
		h := &heads[i]
		if h.bytes > 0 {
			g.add(&h.Header, h.bytes)
		}
		recovered(g.ID, h.Header, h.dir)
	}
	return len(heads) > 0, nil
}

// recoverDamaged repairs a generation and returns what is known of its blocks.
func (l *Log) recoverDamaged(g *generation, cause error) ([]head, error) {
	if g.file != nil {
		cause = errors.Join(cause, g.file.Close())
		g.file = nil
	}
	s, err := l.repair(g, math.MaxUint64, cause)
	if err == nil {
		g.healed = true
	} else if len(s.found) == 0 {
		return nil, err
	} else {
		// For want of room, say. What is good of it counts nevertheless, or others would
		// take its place; the reader that comes to it has it repaired.
		l.opts.Logger.Error("generation could not be repaired yet", "generation", g.ID.String(), "blocks", len(s.found), "err", err)
	}
	heads := slices.Collect(maps.Values(s.hit))
	for _, p := range s.found {
		if h, dir, err := parseHeader(p); err == nil {
			heads = append(heads, head{h, dir, len(p)})
		}
	}
	slices.SortFunc(heads, func(a, b head) int { return cmp.Compare(a.First, b.First) })
	return heads, nil
}

// head is the header and directory of a block.
type head struct {
	Header
	dir   []byte
	bytes int // of the block; 0 if its body is lost
}

// gaps reports whether blocks may be missing between others.
func gaps(id GenID, heads []head) bool {
	next := Seq(id.First)
	for i := range heads {
		if heads[i].First != next {
			return true
		}
		next = heads[i].Last() + 1
	}
	return false
}

func (l *Log) readHeads(g *generation) (heads []head, err error) {
	if g.file, err = l.disk.Open(g.ID); err != nil {
		return nil, fmt.Errorf("open %s: %w", g.ID, err)
	}
	scanErr := g.file.Scan(0, func(first Seq, p []byte) bool {
		h, dir, herr := parseHeader(p)
		if herr == nil && (h.First != first || h.Class != l.opts.Class) {
			herr = fmt.Errorf("block %s stands at %s: %w", h.First, first, ErrDamaged)
		}
		if herr != nil {
			err = herr
			return false
		}
		heads = append(heads, head{h, bytes.Clone(dir), len(p)})
		return true
	})
	if err = errors.Join(scanErr, err); err != nil {
		// Only what was read to its end counts.
		err = errors.Join(fmt.Errorf("read %s: %w", g.ID, err), g.file.Close())
		g.file = nil
		return nil, err
	}
	return heads, nil
}
