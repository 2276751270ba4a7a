package log

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
)

// salvage finds the whole blocks in a generation's file without trusting
// anything else that is in it, and returns them as written, by number.
func (l *Log) salvage(id GenID) (found map[Seq][]byte, candidates int, err error) {
	found = make(map[Seq][]byte)
	err = l.disk.Salvage(id, func(p []byte) int {
		candidates++
		h, _, err := parseHeader(p)
		if err != nil || h.First < Seq(id.First) || id.Rev == 0 && h.First.Epoch() != id.Epoch || h.Class != l.opts.Class {
			return 1
		}
		if _, err := parseBlock(p, l.dec); err != nil {
			return 1
		}
		n := headerSize + h.dir + h.stored
		found[h.First] = bytes.Clone(p[:n])
		return n
	})
	return found, candidates, err
}

// repair puts what is good of a damaged generation in its place and sets the
// damaged file aside. It returns the good blocks; with none, the generation is
// gone. With an error, they are where they were.
func (l *Log) repair(g *generation, cause error) (found map[Seq][]byte, err error) {
	found, candidates, err := l.salvage(g.ID)
	switch {
	case err != nil:
		return found, fmt.Errorf("salvage %s: %w", g.ID, err)
	case candidates == 0 && g.Blocks == 0:
		// The process died while it made the file: nothing was committed to it.
		return nil, l.disk.Remove(g.ID)
	case len(found) == 0:
		err = l.disk.SetAside(g.ID)
	default:
		err = l.disk.Replace(g.ID, func(yield func(Seq, []byte) bool) {
			for _, first := range slices.Sorted(maps.Keys(found)) {
				if !yield(first, found[first]) {
					return
				}
			}
		})
	}
	if err != nil {
		return found, fmt.Errorf("replace %s: %w", g.ID, err)
	}
	l.opts.Logger.Error("generation is damaged; its file was set aside, what is good of it is kept",
		"generation", g.ID.String(), "blocks", len(found), "err", cause)
	return found, nil
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
	found, err := l.repair(g, cause)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if i = slices.Index(l.gens, g); i >= 0 {
		g.gone = true
		l.gens[i] = &generation{Seal: g.Seal, healed: true}
		if len(found) == 0 {
			l.gens = slices.Delete(l.gens, i, i+1)
		}
	}
	return nil
}
