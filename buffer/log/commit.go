package log

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"
)

// batch is the records of one commit on their way from the encoder to the
// committer. Two exist: one is encoded while the other is synced.
type batch struct {
	*chunk
	block  *Block
	bytes  []byte // of the block
	packed []byte // where those go if they are not in the chunk
	dir    []byte // where the owner writes the directory
	fresh  bool   // begins a generation
}

// ending is how a commit ended.
type ending struct {
	err  error
	told <-chan struct{} // closed when those who appended know
	at   time.Time
	took time.Duration
}

// maxGather bounds how long the disk is idle for those who may come back.
const maxGather = 20 * time.Millisecond

// encode is the goroutine that turns waiting entries into blocks. While the
// committer waits for the disk, it works ahead by one block if that is a whole
// one; a smaller one takes along all who have come when the disk is free.
func (l *Log) encode(next Seq) {
	defer close(l.blocks)
	filled := int64(0) // bytes in the generation, with those of the block before
	for i, spare := 0, [2]batch{}; ; i ^= 1 {
		b := &spare[i]
		last := l.queue.awaitWhole(l.ended)
		if last != nil {
			l.queue.gather(last.told, last.at.Add(min(last.took, maxGather)))
		}
		if b.chunk = l.queue.take(l.opts.Linger); b.chunk == nil {
			return
		}
		if last != nil {
			filled = l.written.Load()
			b.fresh = last.err != nil || filled == 0 || filled >= l.opts.GenerationBytes
			l.pack(b, next, last.err != nil)
		} else {
			b.fresh = filled >= l.opts.GenerationBytes
			l.pack(b, next, false)
			// A block that failed took its directory's numbers with it: again.
			if last = <-l.ended; last.err != nil {
				b.fresh = true
				l.pack(b, next, true)
			}
		}
		if b.fresh {
			filled = 0
		}
		filled += int64(len(b.bytes))
		next += Seq(b.n)
		l.blocks <- b
	}
}

// pack makes the block of a batch.
func (l *Log) pack(b *batch, first Seq, again bool) {
	up, boot := l.opts.Clock.Uptime()
	b.block = &Block{
		Header: Header{
			First: first, Count: b.n, Class: l.opts.Class,
			Wall: l.opts.Clock.Now(), Uptime: up, Boot: boot, Memo: new(Memo),
		},
		mem: b.buf, body: b.buf[headRoom:],
	}
	b.dir = l.owner.Directory(b.dir[:0], b.batch, b.fresh, again)
	at := headRoom - len(b.dir) - headerSize
	if at >= 0 {
		b.block.Directory = append(b.buf[at+headerSize:at+headerSize:headRoom], b.dir...)
	} else {
		b.block.Directory = bytes.Clone(b.dir)
	}
	if l.enc == nil && at >= 0 {
		b.bytes = b.buf[at:]
		b.block.putHeader(b.bytes, codecNone, b.block.body)
		return
	}
	b.packed = appendBlock(b.packed[:0], b.block, l.enc)
	b.bytes = b.packed
}

// commit is the goroutine that makes blocks durable, one after the other, and
// says so.
func (l *Log) commit() {
	for {
		select {
		case b, ok := <-l.blocks:
			if !ok {
				if err := l.seal(); err != nil {
					l.opts.Logger.Error("generation could not be sealed", "err", err)
				}
				return
			}
			began := time.Now()
			id, err := l.store(b)
			e := &ending{err: err, at: time.Now()}
			e.took = e.at.Sub(began)
			e.told = l.owner.Committed(b.block, id, b.batch, err)
			if err == nil && !b.fresh && Seq(id.First) == b.block.First {
				e.err = errAnew
			}
			l.ended <- e
		case ack := <-l.rotate:
			ack <- l.seal()
		}
	}
}

// errAnew tells the encoder that a block began a generation and was not made to:
// its directory leaves out what the generation before has told. So that is all that
// goes into this one.
var errAnew = errors.New("a generation begins with a block from within another")

// store makes a block durable. Where the disk is full the owner may make room,
// once.
func (l *Log) store(b *batch) (GenID, error) {
	id, err := l.put(b)
	if NoSpace(err) && !fileLimit(err) && l.awaitRoom(len(b.bytes)) {
		id, err = l.put(b)
	}
	return id, err
}

// awaitRoom lets the owner make room. It reports false if the generation that the
// block was to go to was ended for that: the block was not made to begin one.
func (l *Log) awaitRoom(need int) bool {
	made := l.owner.MakeRoom(need)
	for {
		select {
		case <-made:
			return true
		case ack := <-l.rotate:
			begun := l.active != nil && l.active.Blocks > 0
			ack <- l.seal()
			if begun {
				return false
			}
		}
	}
}

// put writes the block to the generation that is being written, or to a new one.
// A file that failed is never written again: nobody knows what a later sync would
// make of it; neither is one that cannot grow, or was full and did not get room.
func (l *Log) put(b *batch) (GenID, error) {
	if b.fresh && l.active != nil && l.active.Blocks > 0 {
		if err := l.seal(); err != nil {
			return GenID{}, err
		}
	}
	for attempt := 1; ; attempt++ {
		g, err := l.writable(b.block.First)
		if err != nil {
			return GenID{}, err
		}
		if err = g.file.Put(b.block.First, b.bytes); err == nil {
			l.written.Add(int64(len(b.bytes)))
			l.mu.Lock()
			g.add(&b.block.Header, len(b.bytes))
			l.keep(b.block)
			l.mu.Unlock()
			return g.ID, nil
		}
		err = fmt.Errorf("write %s: %w", g.ID, err)
		if NoSpace(err) && (!fileLimit(err) || g.Blocks == 0) {
			if g.Blocks == 0 { // part of what was not stored may be in it
				if serr := l.seal(); serr != nil {
					l.opts.Logger.Error("empty generation could not be removed", "err", serr)
				}
			}
			return GenID{}, err
		}
		l.opts.Logger.Error("a generation failed and is written no more", "err", err)
		if serr := l.seal(); serr != nil {
			return GenID{}, fmt.Errorf("%w; %v", err, serr) // not a lack of space, whatever serr is
		} else if attempt == 2 {
			return GenID{}, err
		}
	}
}

// writable returns the generation that is being written, making it if there is
// none.
func (l *Log) writable(first Seq) (*generation, error) {
	if l.active != nil {
		return l.active, nil
	}
	if err := l.settleEnd(); err != nil {
		return nil, err
	}
	id := GenID{Epoch: first.Epoch(), First: uint64(first)}
	f, err := l.disk.Create(id)
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", id, err)
	}
	l.active = &generation{Seal: Seal{ID: id, Last: first - 1}, file: f, active: true, made: true} // gens stay ordered by Last
	l.mu.Lock()
	l.gens = append(l.gens, l.active)
	l.mu.Unlock()
	return l.active, nil
}

// seal ends the generation that is being written.
func (l *Log) seal() error {
	if g := l.active; g != nil {
		l.active = nil
		l.written.Store(0)
		l.mu.Lock()
		g.active = false
		l.mu.Unlock()
		s := g.Seal
		l.unsealed = &s
	}
	return l.settleEnd()
}

// settleEnd makes it known for good where the last generation ends; one that
// holds nothing is removed. Until then none follows it: its file may hold a block
// that nobody was told of, and whose place another is about to take.
func (l *Log) settleEnd() error {
	s := l.unsealed
	if s == nil {
		return nil
	}
	end := l.owner.Sealed
	if s.Blocks == 0 {
		end = func(s Seal) error { return l.Remove(s.ID) }
	}
	if err := end(*s); err != nil {
		return fmt.Errorf("seal %s: %w", s.ID, err)
	}
	l.unsealed = nil
	return nil
}

// Rotate seals the generation that is being written, if there is one.
func (l *Log) Rotate(ctx context.Context) error {
	ack := make(chan error, 1)
	select {
	case l.rotate <- ack:
		return <-ack
	case <-l.stopped:
		return ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
