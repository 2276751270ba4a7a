package log

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Rewrite puts one generation in the place of neighbouring sealed ones, given
// oldest first, with what is still needed of them. shrink says of each block which
// of its records stay and what its directory is then; nil if nothing of the block
// is needed. Blocks and records keep their numbers: in the place of a record that
// goes, an empty one stays.
//
// When the new file is durable, replace is called, which must make it durable
// that it has taken the place of the others, all at once. After an error of
// replace it is as if nothing had happened, unless the process dies first. Readers
// in the old generations go on. It must not be called concurrently with Remove of
// one of them.
func (l *Log) Rewrite(ctx context.Context, ids []GenID, shrink func(*Block) (directory []byte, stays []bool), replace func(Seal) error) error {
	l.healing.Lock()
	defer l.healing.Unlock()
	old, err := l.use(ids)
	if err != nil {
		return err
	}
	defer func() {
		for _, g := range old {
			l.release(g)
		}
	}()
	l.nextRev++
	id := GenID{Epoch: ids[0].Epoch, First: ids[0].First, Rev: l.nextRev}
	newest := old[len(old)-1].Seal
	seal := Seal{ID: id, First: old[0].Seal.First, Last: newest.Last, Newest: newest.Newest, Boot: newest.Boot, Uptime: newest.Uptime}
	var readErr error
	err = l.disk.Write(id, func(yield func(Seq, []byte) bool) {
		for _, g := range old {
			more := true
			readErr = l.eachBlock(ctx, g, func(b *Block) bool {
				kept := b.shrink(shrink(b))
				if kept == 0 {
					return true
				}
				p := appendBlock(nil, b, l.enc)
				seal.Blocks++
				seal.Records += int64(kept)
				seal.Bytes += int64(len(p))
				more = yield(b.First, p)
				return more
			})
			if readErr != nil || !more {
				return
			}
		}
	})
	if err = errors.Join(readErr, err); err == nil && seal.Blocks == 0 {
		err = errors.New("nothing is left of them")
	}
	if err != nil {
		return errors.Join(fmt.Errorf("rewrite %s: %w", ids[0], err), l.disk.Remove(id))
	}
	if err := replace(seal); err != nil {
		// It may count nevertheless when the log is opened again.
		l.orphans = append(l.orphans, id)
		return fmt.Errorf("replace %s: %w", ids[0], err)
	}
	l.mu.Lock()
	i := slices.Index(l.gens, old[0])
	l.gens = slices.Replace(l.gens, i, i+len(old), &generation{Seal: seal})
	for _, g := range old {
		g.gone = true
	}
	l.mu.Unlock()
	// The oldest goes first: see discard.
	for _, id := range append(l.orphans, ids...) {
		if err := l.disk.Remove(id); err != nil {
			l.opts.Logger.Error("a generation that was replaced could not be removed; the next start does it", "generation", id.String(), "err", err)
			break
		}
	}
	l.orphans = nil
	return nil
}

// use takes neighbouring sealed generations into use; each must be released.
func (l *Log) use(ids []GenID) (gens []*generation, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.gens, func(g *generation) bool { return g.ID == ids[0] })
	if i < 0 || i+len(ids) > len(l.gens) {
		return nil, fmt.Errorf("rewrite %s: it is not there", ids[0])
	}
	gens = slices.Clone(l.gens[i : i+len(ids)])
	for k, g := range gens {
		if g.ID != ids[k] || g.active {
			return nil, fmt.Errorf("rewrite %s: it is not a neighbour, or is being written", ids[k])
		}
	}
	for _, g := range gens {
		g.users++
	}
	return gens, nil
}

// eachBlock calls fn for every block of a sealed generation, until it returns
// false. A damaged generation is repaired, so that the next try may succeed.
func (l *Log) eachBlock(ctx context.Context, g *generation, fn func(*Block) bool) error {
	f, err := l.file(g)
	if err == nil {
		n, stopped := int64(0), false
		scanErr := f.Scan(0, func(first Seq, p []byte) bool {
			if first > g.Last {
				return false
			}
			if err = context.Cause(ctx); err != nil {
				return false
			}
			var b *Block
			if b, err = parseBlock(p, l.dec); err == nil && b.First != first {
				err = fmt.Errorf("block %s stands at %s: %w", b.First, first, ErrDamaged)
			}
			if err != nil {
				return false
			}
			n++
			stopped = !fn(b)
			return !stopped
		})
		err = errors.Join(scanErr, err)
		if err == nil && !stopped && n < g.Blocks && l.sealedAndNew(g) {
			var hidden bool
			if _, hidden, err = l.hidden(g); hidden {
				err = fmt.Errorf("%d of %d: %w", n, g.Blocks, errHidden)
			}
		}
	}
	if errors.Is(err, ErrDamaged) && l.sealedAndNew(g) {
		err = errors.Join(err, l.healHeld(g, err))
	}
	return err
}

// shrink leaves of a block the records that stay, and returns how many those are.
func (b *Block) shrink(directory []byte, stays []bool) (kept int) {
	if directory == nil {
		return 0
	}
	body := make([]byte, 0, len(b.body))
	i := 0
	for off := 0; off < len(b.body); i++ {
		rec, next := b.recordAt(off)
		if i < len(stays) && stays[i] && len(rec) > 0 {
			body = append(body, b.body[off:next]...)
			kept++
		} else {
			body = append(body, 0)
		}
		off = next
	}
	b.Directory, b.body = directory, body
	return kept
}

// discard removes the files that a crash has left of a rewriting: the ones that
// were replaced, or the one that was to replace them. It counts on Rewrite, which
// writes the new file whole, then has the seals replaced, then removes the oldest
// file and then the others.
func (l *Log) discard(ids []GenID, sealed map[GenID]Seal) (stay []GenID, err error) {
	for i, id := range ids {
		if _, known := sealed[id]; known {
			stay = append(stay, id)
			continue
		}
		// Its place is taken by one of a higher revision, or that of a lower one
		// with the same beginning is still there.
		replaced := slices.ContainsFunc(ids, func(other GenID) bool {
			s, ok := sealed[other]
			return ok && other.Rev > id.Rev && other.First <= id.First && Seq(id.First) <= s.Last
		})
		early := id.Rev > 0 && i > 0 && ids[i-1].First == id.First
		if !replaced && !early {
			stay = append(stay, id)
			continue
		}
		if err := l.disk.Remove(id); err != nil {
			return nil, fmt.Errorf("remove %s, which a rewriting has left: %w", id, err)
		}
	}
	return stay, nil
}
