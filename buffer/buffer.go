// Package buffer keeps messages until their destinations have them. A message is
// appended once, as one record in the log of its class; each destination has a
// copy of it in an outbox, and settles that copy when it is delivered. What was
// appended survives a crash of the process and of the machine, and the ledger
// says at any time what became of every copy.
//
// It knows of MQTT no more than the words: topic, QoS, retain, properties.
package buffer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fieldferry/fieldferry/buffer/log"
	"github.com/fieldferry/fieldferry/buffer/rows"
)

var (
	// ErrFull is given to a receipt when there is no room for the message.
	// Nothing of it is stored.
	ErrFull = errors.New("buffer is full")
	// ErrTooLarge is returned for a message that no block can hold.
	ErrTooLarge = errors.New("message is too large for the buffer")
	// ErrClosed is returned once Close was called.
	ErrClosed = errors.New("buffer is closed")
	// ErrFailed is given to a receipt when the disk failed. The message must not
	// be acknowledged; it may come out after a restart all the same.
	ErrFailed = errors.New("buffer storage failed")
)

// Options of a buffer; the zero value works.
type Options struct {
	Linger          time.Duration // longest an append that is not urgent waits for company
	PageSize        int           // of the files; 0 is 16 KiB
	Compress        bool          // zstd
	GenerationBytes int64         // 0 is 32 MiB, or less if that is a 32nd of what Limits allow
	Limits          Limits
	Free            func() (int64, error) // bytes free on the disk; nil asks it
	Clock           log.Clock             // nil is the machine's
	Logger          *slog.Logger          // nil discards
}

// Receipt is told once how an append ended: nil when the message is durable.
// Stored is called in the order of the appends of a class, from one goroutine for
// each class, and must not block.
type Receipt interface{ Stored(err error) }

// Buffer is an open data folder. Its methods may be called concurrently.
type Buffer struct {
	limits          Limits
	free            func() (int64, error)
	generationBytes int64
	meta            *meta
	clock           *clock
	latency         *latency
	logger          *slog.Logger
	chains          [NumClasses]*chain

	kick      chan struct{} // to the flusher
	waits     atomic.Bool   // a reader waits until a void is durable
	stop      chan struct{} // closed by Close
	flushing  sync.WaitGroup
	notifying sync.WaitGroup
	closing   sync.Once
	closeErr  error

	mu       sync.Mutex // guards what follows
	outboxes map[outboxKey]*Outbox
	nextID   uint32
	knownIDs uint32 // outboxes with lower ids are in meta.db, or were removed
}

type outboxKey struct {
	name  string
	class Class
}

// Open opens the buffer in a folder, or makes one there. Damage in the files is
// repaired as far as it goes and logged; an error is a folder that is in use or
// cannot be read or written.
func Open(dir string, o Options) (*Buffer, error) {
	o = o.withDefaults()
	// The disks first: they make the folder.
	var disks [NumClasses]log.Disk
	for c := range NumClasses {
		disk, err := log.Files(filepath.Join(dir, c.String()), log.FileOptions{PageSize: o.PageSize, GenerationBytes: o.GenerationBytes})
		if err != nil {
			return nil, fmt.Errorf("open buffer: %w", err)
		}
		disks[c] = disk
	}
	newest, err := newestEpoch(disks)
	if err != nil {
		return nil, err
	}
	m, err := openMeta(dir, o.PageSize, newest, o.Logger)
	if err != nil {
		return nil, err
	}
	if o.Free == nil {
		o.Free = func() (int64, error) { return log.Free(dir) }
	}
	return open(m, disks, o)
}

// Parts are what a buffer stands on where it has no folder.
type Parts struct {
	Meta  rows.Store // what meta.db is in a folder
	Disks [NumClasses]log.Disk
}

// OpenParts is Open on parts that the caller brings along; it owns them from then on.
// Where Options.Free is nil, no disk is ever full.
func OpenParts(p Parts, o Options) (*Buffer, error) {
	if o.Free == nil {
		o.Free = func() (int64, error) { return math.MaxInt64, nil }
	}
	newest, err := newestEpoch(p.Disks)
	if err != nil {
		return nil, errors.Join(err, p.Meta.Close())
	}
	m := &meta{db: p.Meta}
	if err := m.begin(newest); err != nil {
		return nil, errors.Join(fmt.Errorf("open buffer: %w", err), p.Meta.Close())
	}
	return open(m, p.Disks, o.withDefaults())
}

// newestEpoch is the highest that a generation was ever written in.
func newestEpoch(disks [NumClasses]log.Disk) (newest uint32, err error) {
	for _, disk := range disks {
		ids, err := disk.List()
		if err != nil {
			return 0, fmt.Errorf("open buffer: %w", err)
		}
		for _, id := range ids {
			newest = max(newest, id.Epoch)
		}
	}
	return newest, nil
}

func (o Options) withDefaults() Options {
	if o.Clock == nil {
		o.Clock = log.SystemClock{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.PageSize == 0 {
		o.PageSize = 16 << 10
	}
	if o.GenerationBytes == 0 {
		o.GenerationBytes = 32 << 20
		if o.Limits.MaxBytes > 0 { // what is dropped for room is a whole generation
			o.GenerationBytes = min(o.GenerationBytes, max(o.Limits.MaxBytes/32, 256<<10))
		}
	}
	return o
}

// open brings a buffer up on its parts, which it owns from then on.
func open(m *meta, disks [NumClasses]log.Disk, o Options) (*Buffer, error) {
	b := &Buffer{
		limits: o.Limits, free: o.Free, generationBytes: o.GenerationBytes,
		meta: m, latency: newLatency(), logger: o.Logger,
		kick: make(chan struct{}, 1), stop: make(chan struct{}),
		outboxes: make(map[outboxKey]*Outbox), nextID: 1,
	}
	if err := b.recover(disks, o); err != nil {
		for _, c := range b.chains {
			if c != nil && c.log != nil {
				err = errors.Join(err, c.log.Close())
				close(c.receipts)
			}
		}
		b.notifying.Wait()
		return nil, errors.Join(fmt.Errorf("open buffer: %w", err), m.close())
	}
	// A clock that is believed now may be wrong after the next boot.
	if err := b.save(false); err != nil {
		b.logger.Error("marks could not be saved", "err", err)
	}
	b.tidyAtOpen()
	b.flushing.Go(b.flush)
	return b, nil
}

// recover brings the outboxes to where the last process life left them.
func (b *Buffer) recover(disks [NumClasses]log.Disk, o Options) error {
	outboxes, gens, rejected, err := b.meta.load()
	if err != nil {
		return err
	}
	retired, err := b.meta.retired()
	if err != nil {
		return err
	}
	b.nextID = max(b.nextID, retired.nextID)
	b.knownIDs = b.nextID
	boots, err := b.meta.boots()
	if err != nil {
		return err
	}
	b.clock = newClock(o.Clock, boots)
	sealed := make([]map[log.GenID]log.Seal, NumClasses)
	for class := range NumClasses {
		sealed[class] = make(map[log.GenID]log.Seal)
		b.chains[class] = &chain{
			buffer: b, class: class,
			receipts: make(chan ended, 8),
			outboxes: make(map[uint32]*Outbox),
			gens:     make(map[log.GenID]*generation),
		}
		b.chains[class].rejected.Store(rejected[class])
		b.chains[class].retired = retired.classes[class]
	}
	for _, s := range outboxes {
		b.addOutbox(s)
	}
	for _, g := range gens {
		sealed[g.class][g.seal.ID] = g.seal
	}
	for class, c := range b.chains {
		if err := b.openChain(c, disks[class], sealed[class], gens, o); err != nil {
			return fmt.Errorf("class %s: %w", c.class, err)
		}
	}
	return nil
}

func (b *Buffer) openChain(c *chain, disk log.Disk, sealed map[log.GenID]log.Seal, gens []storedGeneration, o Options) error {
	ids, err := disk.List()
	if err != nil {
		return err
	}
	there := make(map[log.GenID]bool)
	for _, id := range ids {
		there[id] = true
	}
	var gone []log.GenID
	for _, g := range gens {
		switch {
		case g.class != c.class:
		case !there[g.seal.ID]:
			gone = append(gone, g.seal.ID)
		default:
			known := &generation{id: g.seal.ID, lasts: g.lasts, size: g.seal.Bytes, records: g.seal.Records}
			known.sealed.Store(true)
			c.gens[known.id] = known
			for _, s := range g.spans {
				c.recovered(known, s)
			}
		}
	}
	if len(gone) > 0 {
		if err := b.meta.forget(c.class, gone); err != nil {
			return err
		}
	}
	c.log, err = log.Open(timedDisk{disk, c.class, b.latency}, b.meta.epoch, sealed, c.recoverBlock, c, log.Options{
		Class: byte(c.class), Linger: o.Linger, Compress: o.Compress, GenerationBytes: o.GenerationBytes,
		Clock: b.clock, Logger: o.Logger.With("class", c.class.String()),
	})
	if err != nil {
		return err
	}
	for _, o := range c.outboxes {
		o.enc.next = o.next
		o.dupTo = min(o.sent, o.next-1) // what was reserved ahead was not handed out
		o.reserved, o.began = o.sent, o.sent
		// What was accepted and is in no generation is lost; the reader finds out.
		open := o.next - 1 - o.cursor
		for _, v := range o.voids {
			open -= v.last - v.first + 1
		}
		o.stored = max(o.stored, open)
	}
	b.notifying.Go(c.notify)
	return nil
}

// recoverBlock takes note of a block of a generation that was not sealed.
func (c *chain) recoverBlock(id log.GenID, h log.Header, p []byte) {
	g := c.gens[id]
	if g == nil {
		g = &generation{id: id, spans: make(map[uint32]span)}
		c.gens[id] = g
	}
	dir, ok := parseDirectory(p)
	if !ok {
		c.buffer.logger.Error("directory of a block is malformed", "class", c.class.String(), "block", h.First.String())
		return
	}
	g.add(&h, dir.lasts)
	g.size, g.records = g.size+int64(h.Size()), g.records+int64(h.Count)
	for _, s := range dir.spans {
		if c.outboxes[s.outbox] == nil {
			if c.gone(s.outbox, dir.names) {
				continue
			}
			c.buffer.addOutbox(storedOutbox{id: s.outbox, class: c.class, name: dir.names[s.outbox], next: s.first})
		}
		g.extend(s)
		c.recovered(g, s)
	}
	for outbox, m := range dir.marks {
		if o := c.outboxes[outbox]; o != nil && m.cursor >= o.cursor {
			o.recoverMarks(m)
		}
	}
}

// recoverMarks moves an outbox that is being recovered forward.
func (o *Outbox) recoverMarks(m marks) {
	for i := range o.pins {
		p := &o.pins[i]
		if settled := min(p.last, m.cursor); settled >= p.first {
			o.stored -= settled + 1 - p.first - o.voided(p.first, settled)
			p.first = settled + 1
		}
	}
	m.sent = max(o.sent, m.sent)
	switch {
	case m.session < o.session: // of before the session was lost
		m.rec, m.session = o.rec, o.session
	case m.session == o.session:
		m.rec = max(o.rec, m.rec)
	}
	o.marks = m
	o.taken = o.cursor
	voids := o.voids
	o.voids, o.ahead = nil, [numOutcomes]uint64{}
	o.recoverVoids(voids) // lets go of the pins too
}

// recoverVoids takes over the copies that were dropped before the cursor got to
// them.
func (o *Outbox) recoverVoids(voids []void) {
	for _, v := range voids {
		if v.first = max(v.first, o.cursor+1); v.first <= v.last {
			o.voids = append(o.voids, v)
			o.ahead[v.out] += v.last - v.first + 1
		}
	}
	o.advance()
}

// recovered takes note of copies that a generation holds.
func (c *chain) recovered(g *generation, s span) {
	o := c.outboxes[s.outbox]
	if o == nil {
		return
	}
	o.next = max(o.next, s.last+1)
	s.first = max(s.first, o.cursor+1)
	if n := len(o.pins); n > 0 { // a file that was replaced may have come back
		s.first = max(s.first, o.pins[n-1].last+1)
	}
	// A crash came before the file was gone, or a part of it was dropped. A pin
	// reaches to the end of what the generation holds, dropped or not: see shrink.
	for _, v := range o.voids {
		if v.first <= s.first && s.first <= v.last {
			s.first = v.last + 1
		}
	}
	if s.first > s.last {
		return
	}
	o.stored += s.last - s.first + 1 - o.voided(s.first, s.last)
	o.pin(s, g, g.bytes(s))
}

// addOutbox makes an outbox known. b.mu is held, or nobody else knows b yet.
func (b *Buffer) addOutbox(s storedOutbox) *Outbox {
	c := b.chains[s.class]
	o := &Outbox{id: s.id, name: s.name, class: s.class, chain: c, next: max(s.next, 1), marks: s.marks, taken: s.marks.cursor, dupTo: s.marks.sent}
	o.limit.Window = maxWindow
	o.recoverVoids(s.voids)
	o.enc.next = o.next
	b.outboxes[outboxKey{s.name, s.class}] = o
	b.nextID = max(b.nextID, s.id+1)
	c.mu.Lock()
	c.outboxes[s.id] = o
	c.mu.Unlock()
	return o
}

// Outbox returns the outbox of a destination in a class. A new one is durable on
// return.
func (b *Buffer) Outbox(name string, class Class) (*Outbox, error) {
	all, err := b.MakeOutboxes(class, name)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// MakeOutboxes is Outbox for several destinations in one write.
func (b *Buffer) MakeOutboxes(class Class, names ...string) ([]*Outbox, error) {
	if class >= NumClasses {
		return nil, fmt.Errorf("make outboxes: there is no class %d", class)
	}
	// The lock is held over the write: two callers must not make one name twice,
	// and outboxes are made when the program or a session begins.
	b.mu.Lock()
	defer b.mu.Unlock()
	var fresh []*Outbox
	seen := make(map[string]bool)
	for _, name := range names {
		if b.outboxes[outboxKey{name, class}] == nil && !seen[name] {
			seen[name] = true
			fresh = append(fresh, &Outbox{id: b.nextID + uint32(len(fresh)), name: name, class: class, next: 1})
		}
	}
	if len(fresh) > 0 {
		if err := b.meta.create(fresh); err != nil {
			return nil, fmt.Errorf("make outbox %s: %w", fresh[0].name, err)
		}
	}
	for _, o := range fresh {
		b.addOutbox(storedOutbox{id: o.id, class: class, name: o.name, next: 1})
	}
	all := make([]*Outbox, len(names))
	for i, name := range names {
		all[i] = b.outboxes[outboxKey{name, class}]
	}
	return all, nil
}

// Outboxes returns all outboxes there are.
func (b *Buffer) Outboxes() []*Outbox {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make([]*Outbox, 0, len(b.outboxes))
	for _, o := range b.outboxes {
		all = append(all, o)
	}
	return all
}

// Append queues a message for the next commit of its class and returns; r is told
// how it ended. It blocks only for back pressure, while 4 MiB of the class wait
// for the disk. With an error, r is told nothing.
func (b *Buffer) Append(ctx context.Context, class Class, m *Message, r Receipt) error {
	if len(m.Copies) == 0 || class >= NumClasses {
		return fmt.Errorf("append to class %s: message has no destination", class)
	}
	c := b.chains[class]
	if !c.tried.Load() {
		c.tried.Store(true)
	}
	if c.full.Load() && !m.own() {
		c.rejected.Add(1)
		b.kickFlusher()
		return ErrFull
	}
	for i := range m.Copies {
		if m.Copies[i].Number != nil {
			return c.appendNumbered(ctx, m, r)
		}
	}
	return c.append(ctx, m, r)
}

// own reports whether the message only changes the program's own state. That takes
// next to no room, and is what those need who come to take what fills the buffer.
func (m *Message) own() bool {
	return !slices.ContainsFunc(m.Copies, func(c Copy) bool { return !c.Outbox.own() })
}

// appendNumbered gives the copies their numbers in the order in which they are
// queued. Whoever waits here for room holds up the others, who would wait too.
func (c *chain) appendNumbered(ctx context.Context, m *Message, r Receipt) error {
	c.numbering.Lock()
	defer c.numbering.Unlock()
	for i := range m.Copies {
		if cp := &m.Copies[i]; cp.Number != nil {
			cp.Props = cp.Number.Number()
		}
	}
	err := c.append(ctx, m, r)
	if err != nil {
		for i := range m.Copies {
			if cp := &m.Copies[i]; cp.Number != nil {
				cp.Number.Undo()
			}
		}
	}
	return err
}

func (c *chain) append(ctx context.Context, m *Message, r Receipt) error {
	for i := range m.Copies {
		if of := m.Copies[i].Outbox.class; of != c.class {
			return fmt.Errorf("append to class %s: a copy is for an outbox of class %s", c.class, of)
		}
	}
	age := time.Duration(0)
	if !m.Enqueued.IsZero() {
		age = max(c.buffer.clock.raw.Now().Sub(m.Enqueued), 0)
	}
	p := pending{receipt: r}
	if m.Expiry > 0 && !slices.ContainsFunc(m.Copies, func(c Copy) bool { return c.Outbox.keepsExpired() }) {
		p.lasts = uint64(max((m.Expiry - age).Milliseconds(), 1))
	}
	err := c.log.Append(ctx, recordSize(m, age), m.Urgent, func(batch any, dst []byte) []byte {
		a := batch.(*appends)
		a.list = append(a.list, p)
		for i := range m.Copies {
			a.outboxes = append(a.outboxes, m.Copies[i].Outbox)
		}
		return appendRecord(dst, m, age)
	})
	switch {
	case errors.Is(err, log.ErrClosed):
		return ErrClosed
	case errors.Is(err, log.ErrTooLarge):
		return ErrTooLarge
	}
	return err
}

// Origin is the random name of this data folder, 8 hex digits.
func (b *Buffer) Origin() string { return fmt.Sprintf("%08x", b.meta.origin) }

// Boot counts the process lives on this data folder, from 1.
func (b *Buffer) Boot() uint32 { return b.meta.epoch }

// Stats is what the buffer holds and has seen.
type Stats struct {
	Ledger      Ledger
	Classes     [NumClasses]ClassStats
	Generations int
	Blocks      int64 // in them; each was a commit
	Bytes       int64 // of blocks, as written
	DiskBytes   int64 // of the files that hold them
}

// ClassStats is the part of a class.
type ClassStats struct {
	Ledger   Ledger
	Rejected uint64 // appends that failed; they are in no ledger
}

// Stats counts over all outboxes but the program's own, whose names begin with $.
func (b *Buffer) Stats() Stats {
	var s Stats
	for _, o := range b.Outboxes() {
		if !o.own() {
			s.Classes[o.class].Ledger.Add(o.Ledger())
		}
	}
	for class, c := range b.chains {
		s.Classes[class].Rejected = c.rejected.Load()
		s.Classes[class].Ledger.Add(c.retiredLedger())
		s.Ledger.Add(s.Classes[class].Ledger)
		for _, g := range c.log.Generations() {
			s.Generations++
			s.Blocks += g.Blocks
			s.Bytes += g.Bytes
			s.DiskBytes += g.DiskBytes
		}
	}
	return s
}

// Close commits what is queued, makes all marks durable and closes the files.
// Readers must be closed before.
func (b *Buffer) Close() error {
	b.closing.Do(func() {
		close(b.stop)
		b.flushing.Wait()
		var errs []error
		for _, c := range b.chains {
			// Sealed while the notifier still runs: receipts come first.
			errs = append(errs, c.log.Rotate(context.Background()))
		}
		for _, o := range b.Outboxes() {
			o.unreserve()
		}
		errs = append(errs, b.save(true), b.sweep())
		for _, c := range b.chains {
			errs = append(errs, c.log.Close())
			close(c.receipts)
		}
		b.notifying.Wait()
		errs = append(errs, b.save(true), b.meta.close())
		b.closeErr = errors.Join(errs...)
	})
	return b.closeErr
}
