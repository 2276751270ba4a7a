// Package log is a durable, append-only log of records, kept as generations of
// blocks on bbolt. It groups what is appended concurrently into one commit,
// gives each record a sequence number, checks every byte it reads, and removes
// whole generations when its owner has no more need of them.
//
// It knows nothing of MQTT, of destinations or of what is in a record: its owner
// writes a directory into each block that says so.
package log

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
)

const (
	defaultGenerationBytes = 32 << 20
	defaultBlockBytes      = 256 << 10
	defaultBlockRecords    = 4096
	defaultQueueBytes      = 4 << 20
	defaultCacheBytes      = 1 << 20
)

// Options of a log; the zero value works.
type Options struct {
	Class           byte          // written into each block
	Linger          time.Duration // longest a record that is not urgent waits for company
	Compress        bool          // zstd, fastest
	GenerationBytes int64         // a generation is closed at this size; 0 is 32 MiB
	BlockBytes      int           // a commit takes at most this much, or one record; 0 is 256 KiB
	BlockRecords    int           // and at most this many records; 0 is 4096
	QueueBytes      int           // what may wait for a commit before Append blocks; 0 is 4 MiB
	CacheBytes      int           // newest blocks held in memory for readers; 0 is 1 MiB
	Clock           Clock         // nil is SystemClock
	Logger          *slog.Logger  // nil discards
}

// Owner is what stands above a log and knows what the records mean. Directory is
// called by one goroutine, the other methods by another; none may call the log.
type Owner interface {
	// NewBatch makes what the owner has to the records of a block: it comes along with
	// each of them in Append. It is called by many goroutines.
	NewBatch() any
	// Directory appends to dst the owner's bytes for the block of a batch; fresh says
	// that the block begins a generation. After a failed
	// commit it is called again for the block that came after: what it gave out
	// since the last good commit is void, and again says so.
	Directory(dst []byte, batch any, fresh, again bool) []byte
	// Committed says that a block is durable, or not. After an error for which
	// NoSpace says yes it never will be; after another, it may show up when the log
	// is opened again, and until then nothing is written in its place. The channel
	// is closed when those who appended have been told: they may append again at once.
	Committed(b *Block, gen GenID, batch any, err error) (told <-chan struct{})
	// MakeRoom says that the disk has no room for a commit that needs so many
	// bytes. When the channel is closed, the commit is tried once more. Generations
	// may be removed until then, and Rotate be called.
	MakeRoom(need int) <-chan struct{}
	// Sealed says that a generation gets no more blocks: whatever its file may
	// hold beyond s.Last is void. The log goes on only when Sealed returns nil,
	// which must make it durable.
	Sealed(s Seal) error
}

// Seal is what is known of a generation once nothing more is written to it.
type Seal struct {
	ID      GenID
	Last    Seq   // the number of its last record
	Records int64 // how many it holds, the empty ones left by Rewrite not counted
	Blocks  int64
	Bytes   int64 // of its blocks, as written
	First   time.Time
	Newest  time.Time     // wall clock of its first and last commit
	Boot    uint64        // of its last commit
	Uptime  time.Duration // at its last commit
}

var (
	// ErrClosed is returned once Close was called.
	ErrClosed = errors.New("log is closed")
	// ErrTooLarge is returned for a record that no block can hold.
	ErrTooLarge = errors.New("record is too large")
)

// Log is one log. Its methods may be called concurrently.
type Log struct {
	disk  Disk
	opts  Options
	owner Owner
	enc   *zstd.Encoder // of the encoder goroutine; nil for no compression
	dec   *zstd.Decoder

	queue   queue
	blocks  chan *batch     // encoder to committer
	ended   chan *ending    // committer to encoder
	rotate  chan chan error // to the committer
	stopped chan struct{}   // closed when the committer has ended
	done    sync.WaitGroup
	closing sync.Once
	written atomic.Int64 // bytes in the generation that is being written

	healing sync.Mutex // one repair or rewriting at a time; guards what follows
	nextRev uint32
	orphans []GenID // files that a rewriting has left, which may or may not count

	active   *generation // of the committer: the one being written, or nil
	unsealed *Seal       // of the committer: a generation that has ended, and whose end is not yet known for good

	mu     sync.Mutex    // guards what follows
	gens   []*generation // oldest first; the last may be the one written
	cache  []*Block      // the newest blocks, without a gap
	cached int           // bytes in cache
	floor  Seq           // every block that begins above floor is in cache
	spare  []byte        // of a block that has left the cache, for a new one; or nil
}

// generation is a file and what is known of it. Its fields are guarded by
// Log.mu; file itself is used without it.
type generation struct {
	Seal
	file   Generation // nil until it is needed
	users  int        // goroutines that use file
	active bool       // being written
	made   bool       // by this process, which may have it open for writing and locked
	gone   bool       // removed or replaced; closed by its last user
	healed bool       // repaired once: what is still damaged is passed over
	whole  bool       // its tree shows every block that is in the file
}

// Open opens the log on a disk. The generations in sealed are taken as they are
// described; any other is read through, each block's header and directory being
// handed to recovered, also where the body is lost. New records get numbers of the given epoch, which must be
// higher than any used before.
func Open(disk Disk, epoch uint32, sealed map[GenID]Seal, recovered func(GenID, Header, []byte), owner Owner, o Options) (*Log, error) {
	if o.GenerationBytes == 0 {
		o.GenerationBytes = defaultGenerationBytes
	}
	if o.BlockBytes == 0 {
		o.BlockBytes = defaultBlockBytes
	}
	if o.BlockRecords == 0 {
		o.BlockRecords = defaultBlockRecords
	}
	if o.QueueBytes == 0 {
		o.QueueBytes = defaultQueueBytes
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = defaultCacheBytes
	}
	if o.Clock == nil {
		o.Clock = SystemClock{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	dec, err := newDecoder(2)
	if err != nil {
		return nil, err
	}
	l := &Log{
		disk: disk, opts: o, owner: owner, dec: dec,
		blocks: make(chan *batch), ended: make(chan *ending, 1), rotate: make(chan chan error),
		stopped: make(chan struct{}),
	}
	if o.Compress {
		l.enc, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2), zstd.WithWindowSize(128<<10), zstd.WithEncoderCRC(false))
		if err != nil {
			return nil, err
		}
	}
	ids, err := disk.List()
	if err != nil {
		return nil, fmt.Errorf("list generations: %w", err)
	}
	if ids, err = l.discard(ids, sealed); err != nil {
		return nil, err
	}
	for _, id := range ids {
		l.nextRev = max(l.nextRev, id.Rev)
		if s, ok := sealed[id]; ok {
			l.gens = append(l.gens, &generation{Seal: s})
			continue
		}
		g := &generation{Seal: Seal{ID: id}}
		known, err := l.recover(g, recovered)
		if err != nil {
			// Damage must not keep the rest from working. The file stays.
			o.Logger.Error("generation cannot be read and is left alone", "generation", id.String(), "err", err)
			continue
		}
		if !known {
			// It was made, and nothing committed to it.
			if err := l.Remove(id); err != nil {
				return nil, errors.Join(err, l.closeFiles())
			}
			continue
		}
		if g.Blocks > 0 {
			l.gens = append(l.gens, g)
		}
		if err := owner.Sealed(g.Seal); err != nil { // it never gets another block
			return nil, errors.Join(fmt.Errorf("seal %s: %w", id, err), l.closeFiles())
		}
	}
	if n := len(l.gens); n > 0 {
		l.floor = l.gens[n-1].Last
	}
	l.queue.init(o.QueueBytes, o.BlockRecords, o.BlockBytes, l.newChunk)
	l.ended <- &ending{}
	l.done.Go(func() { l.encode(FirstOf(epoch)) })
	l.done.Go(func() {
		defer close(l.stopped)
		l.commit()
	})
	return l, nil
}

// add counts one more block.
func (g *generation) add(h *Header, bytes int) {
	if g.Blocks == 0 {
		g.First = h.Wall
	}
	g.Newest, g.Boot, g.Uptime = h.Wall, h.Boot, h.Uptime
	g.Last = h.Last()
	g.Records += int64(h.Count)
	g.Blocks++
	g.Bytes += int64(bytes)
}

// Append queues a record of about so many bytes for the next commit, or, if it is
// urgent, for one that does not linger; the owner's Committed says what became of it.
// write appends the record to dst, and to the batch what belongs to it; it is called
// before Append returns, one record after the other, and must not call the log. Append
// blocks only while Options.QueueBytes are waiting, until ctx ends. Records are
// committed in the order in which they are written.
func (l *Log) Append(ctx context.Context, size int, urgent bool, write func(batch any, dst []byte) []byte) error {
	if size > maxBody/2 {
		return ErrTooLarge
	}
	return l.queue.push(ctx, size, urgent, write)
}

// Remove deletes a sealed generation. After an error it can be called again.
func (l *Log) Remove(id GenID) error {
	l.mu.Lock()
	var file Generation
	if i := slices.IndexFunc(l.gens, func(g *generation) bool { return g.ID == id }); i >= 0 {
		g := l.gens[i]
		if g.active {
			l.mu.Unlock()
			return fmt.Errorf("remove %s: it is being written", id)
		}
		l.gens = slices.Delete(l.gens, i, i+1)
		g.gone = true
		if g.users == 0 {
			file, g.file = g.file, nil
		}
	}
	l.mu.Unlock()
	var err error
	if file != nil {
		err = file.Close()
	}
	return errors.Join(err, l.disk.Remove(id))
}

// A GenerationInfo is a generation as it stands.
type GenerationInfo struct {
	Seal
	Active    bool  // being written
	DiskBytes int64 // what its file takes from the disk
}

// Generations returns what there is, oldest first.
func (l *Log) Generations() []GenerationInfo {
	l.mu.Lock()
	infos := make([]GenerationInfo, len(l.gens))
	for i, g := range l.gens {
		infos[i] = GenerationInfo{Seal: g.Seal, Active: g.active}
	}
	l.mu.Unlock()
	for i := range infos {
		infos[i].DiskBytes = l.disk.DiskBytes(infos[i].ID)
	}
	return infos
}

// Close commits what is queued, seals the generation that is being written, and
// closes the files. Appends that come later get ErrClosed.
func (l *Log) Close() error {
	var err error
	l.closing.Do(func() {
		l.queue.close()
		l.done.Wait()
		err = l.closeFiles()
		l.dec.Close()
	})
	return err
}

func (l *Log) closeFiles() error {
	var errs []error
	for _, g := range l.gens {
		if g.file != nil {
			errs = append(errs, g.file.Close())
			g.file = nil
		}
	}
	return errors.Join(errs...)
}
