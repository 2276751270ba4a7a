package buffer

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fieldferry/fieldferry/buffer/log"
	"github.com/fieldferry/fieldferry/buffer/rows"
)

// Folder is a buffer as it lies on the disk, for looking at. Nothing in it is
// changed by that: no epoch begins, no damage is repaired. A program may be at
// work on it; then the folder is how it was when Inspect looked, and marks are up
// to a second behind.
type Folder struct {
	dir     string
	running bool
	meta    *meta // of a copy of meta.db; nil if that cannot be read
	damage  error // what is wrong with meta.db
	temp    string
	b       *Buffer // recovered as Open does it, and not started
	logs    [NumClasses]*log.Folder
}

// ErrNoBuffer is returned for a folder that holds no buffer.
var ErrNoBuffer = errors.New("there is no buffer in this folder")

// Inspect looks at the buffer in a folder. Damage is not an error.
func Inspect(dir string) (*Folder, error) {
	f := &Folder{dir: dir}
	if err := f.inspect(); err != nil {
		return nil, errors.Join(fmt.Errorf("inspect buffer: %w", err), f.Close())
	}
	return f, nil
}

func (f *Folder) inspect() error {
	before, err := f.files()
	if err != nil {
		return err
	}
	for tries := 0; ; tries++ {
		if err := f.read(); err != nil {
			return err
		}
		after, err := f.files()
		if err != nil {
			return err
		}
		// A generation that went between meta.db and its folder was read would look
		// like a loss.
		if !f.running || tries == 10 || slices.Equal(before, after) {
			return nil
		}
		if err := f.Close(); err != nil {
			return err
		}
		before = after
	}
}

// files are the names of what makes up the buffer.
func (f *Folder) files() (names []string, err error) {
	if _, err := os.Stat(f.dir); err != nil {
		return nil, err
	}
	found := false
	if _, err := os.Stat(filepath.Join(f.dir, "meta.db")); err == nil {
		found = true
	}
	for class := range NumClasses {
		entries, err := os.ReadDir(filepath.Join(f.dir, class.String()))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, err
		}
		found = true
		for _, e := range entries {
			names = append(names, filepath.Join(class.String(), e.Name()))
		}
	}
	if !found {
		return nil, ErrNoBuffer
	}
	return names, nil
}

func (f *Folder) read() error {
	if err := f.readMeta(); err != nil {
		return err
	}
	f.b = &Buffer{
		meta: f.meta, logger: slog.New(slog.DiscardHandler),
		kick: make(chan struct{}, 1), outboxes: make(map[outboxKey]*Outbox),
	}
	var outboxes []storedOutbox
	var gens []storedGeneration
	var rejected [NumClasses]uint64
	var retired storedRetired
	boots := make(map[uint64]bootTime)
	if f.meta != nil {
		var err error
		if boots, err = f.meta.boots(); err != nil {
			return err
		}
		if outboxes, gens, rejected, err = f.meta.load(); err != nil {
			return err
		}
		if retired, err = f.meta.retired(); err != nil {
			return err
		}
		f.b.knownIDs = retired.nextID
	}
	f.b.clock = newClock(log.SystemClock{}, boots)
	for class := range NumClasses {
		f.b.chains[class] = &chain{buffer: f.b, class: class, outboxes: make(map[uint32]*Outbox), gens: make(map[log.GenID]*generation)}
		f.b.chains[class].rejected.Store(rejected[class])
		f.b.chains[class].retired = retired.classes[class]
	}
	for _, s := range outboxes {
		f.b.addOutbox(s)
	}
	for _, c := range f.b.chains {
		if err := f.readChain(c, gens); err != nil {
			return fmt.Errorf("class %s: %w", c.class, err)
		}
	}
	return nil
}

// readChain finds out what the generations of a class hold.
func (f *Folder) readChain(c *chain, gens []storedGeneration) (err error) {
	sealed := make(map[log.GenID]log.Seal)
	for _, g := range gens {
		if g.class != c.class {
			continue
		}
		if _, err := os.Stat(filepath.Join(f.dir, c.class.String(), g.seal.ID.String()+".db")); err != nil {
			continue
		}
		sealed[g.seal.ID] = g.seal
		known := &generation{id: g.seal.ID, lasts: g.lasts, size: g.seal.Bytes, records: g.seal.Records}
		c.gens[known.id] = known
		for _, s := range g.spans {
			c.recovered(known, s)
		}
	}
	f.logs[c.class], err = log.Look(filepath.Join(f.dir, c.class.String()), byte(c.class), sealed, c.recoverBlock)
	for _, o := range c.outboxes {
		o.stored = max(o.stored, o.unsettled().len()) // what was accepted and is in no generation
	}
	return err
}

// readMeta reads a copy of meta.db. The file itself is not opened for longer than
// it takes to see whether somebody has it: a gateway that starts would not get
// it.
func (f *Folder) readMeta() error {
	path := filepath.Join(f.dir, "meta.db")
	f.running = rows.InUse(path)
	p, err := readStable(path)
	if errors.Is(err, fs.ErrNotExist) {
		f.damage = errors.New("it is not there")
		return nil
	} else if err != nil {
		return err
	} else if len(p) == 0 {
		f.damage = errors.New("it is empty")
		return nil
	}
	if f.temp, err = writeTemp(p); err != nil {
		return err
	}
	file, err := rows.Open(f.temp, buckets, rows.Options{ReadOnly: true})
	if err == nil {
		m := &meta{db: file}
		if err = log.Guard(m.look); err == nil {
			f.meta = m
			return nil
		}
		err = errors.Join(err, log.Guard(file.Close))
	}
	if errors.Is(err, log.ErrDamaged) {
		f.damage = err
		return nil
	}
	return err
}

// look reads what begin reads, and that all the rest can be read.
func (m *meta) look() error {
	err := m.db.View(func(tx rows.Tx) error {
		if v := tx.Get(bucketAbout, keyVersion); len(v) == 4 && binary.BigEndian.Uint32(v) > metaVersion {
			return fmt.Errorf("the data folder has version %d, this program knows up to %d: use the newer version again", binary.BigEndian.Uint32(v), metaVersion)
		}
		if v := tx.Get(bucketAbout, keyOrigin); len(v) == 4 {
			m.origin = binary.BigEndian.Uint32(v)
		}
		if v := tx.Get(bucketAbout, keyEpoch); len(v) == 4 {
			m.epoch = binary.BigEndian.Uint32(v)
		}
		return nil
	})
	if err == nil {
		_, _, _, err = m.load()
	}
	return err
}

// readStable reads a file that may be written now and then, as it is between two
// writes.
func readStable(path string) ([]byte, error) {
	p, err := os.ReadFile(path)
	for range 20 {
		if err != nil {
			return nil, err
		}
		var again []byte
		if again, err = os.ReadFile(path); bytes.Equal(p, again) {
			break
		}
		p = again
	}
	return p, err
}

func writeTemp(p []byte) (path string, err error) {
	t, err := os.CreateTemp("", "fieldferry-meta-*.db")
	if err != nil {
		return "", err
	}
	_, err = t.Write(p)
	return t.Name(), errors.Join(err, t.Close())
}

// Close lets go of the files.
func (f *Folder) Close() error {
	var errs []error
	for class, l := range f.logs {
		if l != nil {
			errs = append(errs, l.Close())
			f.logs[class] = nil
		}
	}
	if f.meta != nil {
		errs = append(errs, log.Guard(f.meta.close))
		f.meta = nil
	}
	if f.temp != "" {
		errs = append(errs, os.Remove(f.temp))
		f.temp = ""
	}
	return errors.Join(errs...)
}

// FolderStats is what a folder holds.
type FolderStats struct {
	Dir        string        `json:"dir"`
	Running    bool          `json:"running"` // a program is at work on it, and this is a snapshot
	Origin     string        `json:"origin"`
	Boot       uint32        `json:"boot"` // of the last process life
	MetaDamage string        `json:"metaDamage,omitempty"`
	Ledger     Ledger        `json:"ledger"`
	DiskBytes  int64         `json:"diskBytes"` // of everything but what was set aside
	Outboxes   []OutboxStats `json:"outboxes"`
	Classes    []ClassFiles  `json:"classes"`
	Quarantine []Quarantined `json:"quarantine"`
}

// OutboxStats is the part of a destination in a class.
type OutboxStats struct {
	Name   string     `json:"name"`
	Class  Class      `json:"class"`
	Ledger Ledger     `json:"ledger"`
	Kept   uint64     `json:"kept"`             // parked copies that can be inspected
	Oldest *time.Time `json:"oldest,omitempty"` // when the oldest copy that is not settled was made durable
}

// ClassFiles is the part of a class.
type ClassFiles struct {
	Class       Class  `json:"class"`
	Rejected    uint64 `json:"rejected"` // appends that failed; they are in no ledger
	Generations int    `json:"generations"`
	Blocks      int64  `json:"blocks"`
	Records     int64  `json:"records"`
	Bytes       int64  `json:"bytes"` // of blocks, as written
	DiskBytes   int64  `json:"diskBytes"`
}

// Stats counts.
func (f *Folder) Stats() (FolderStats, error) {
	s := FolderStats{Dir: f.dir, Running: f.running, Outboxes: []OutboxStats{}, DiskBytes: log.DiskBytes(filepath.Join(f.dir, "meta.db"))}
	if f.damage != nil {
		s.MetaDamage = f.damage.Error()
	}
	kept := make(map[uint32]uint64)
	if f.meta != nil {
		s.Origin, s.Boot = f.b.Origin(), f.b.Boot()
		err := f.meta.db.View(func(tx rows.Tx) error {
			for k := range tx.Rows(bucketParked, nil) {
				if len(k) >= 4 {
					kept[binary.BigEndian.Uint32(k)]++
				}
			}
			return nil
		})
		if err != nil {
			return s, err
		}
	}
	for _, o := range f.outboxes() {
		one := OutboxStats{Name: o.name, Class: o.class, Ledger: o.Ledger(), Kept: kept[o.id]}
		if t, ok := f.oldest(o); ok {
			one.Oldest = &t
		}
		if !o.own() {
			s.Ledger.Add(one.Ledger)
		}
		s.Outboxes = append(s.Outboxes, one)
	}
	for class, c := range f.b.chains {
		if l := c.retiredLedger(); l.Accepted > 0 {
			s.Ledger.Add(l)
			s.Outboxes = append(s.Outboxes, OutboxStats{Name: "(ended)", Class: Class(class), Ledger: l})
		}
	}
	for class, l := range f.logs {
		c := ClassFiles{Class: Class(class), Rejected: f.b.chains[class].rejected.Load()}
		for _, g := range l.Generations() {
			c.Generations++
			c.Blocks += g.Blocks
			c.Records += g.Records
			c.Bytes += g.Bytes
			c.DiskBytes += g.DiskBytes
		}
		s.DiskBytes += c.DiskBytes
		s.Classes = append(s.Classes, c)
	}
	var err error
	s.Quarantine, err = Quarantine(f.dir)
	return s, err
}

// outboxes returns them by class and name.
func (f *Folder) outboxes() []*Outbox {
	return slices.SortedFunc(maps.Values(f.b.outboxes), func(a, b *Outbox) int {
		return cmp.Or(cmp.Compare(a.class, b.class), cmp.Compare(a.name, b.name))
	})
}

// oldest is when the oldest copy of an outbox that is not settled became durable.
func (f *Folder) oldest(o *Outbox) (time.Time, bool) {
	open := o.unsettled()
	if len(open) == 0 || len(o.pins) == 0 {
		return time.Time{}, false
	}
	for c := range f.logs[o.class].From(log.Seq(o.pins[0].gen.id.First)) {
		if c.Block == nil {
			continue
		}
		if s, ok := findSpan(c.Block.Directory, o.id); ok && s.last >= open[0].first {
			return c.Block.Wall, true
		}
	}
	return time.Time{}, false
}

// Quarantined is a damaged file that was set aside.
type Quarantined struct {
	File  string `json:"file"` // in the buffer's folder
	Bytes int64  `json:"bytes"`
}

// Quarantine returns the files that were set aside in the buffer's folder dir.
func Quarantine(dir string) ([]Quarantined, error) {
	all := []Quarantined{}
	folders := []string{"quarantine"}
	for class := range NumClasses {
		folders = append(folders, filepath.Join(class.String(), "quarantine"))
	}
	for _, folder := range folders {
		entries, err := os.ReadDir(filepath.Join(dir, folder))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if info, err := e.Info(); err == nil {
				all = append(all, Quarantined{filepath.Join(folder, e.Name()), info.Size()})
			}
		}
	}
	return all, nil
}

// Verify recounts the folder as Buffer.Verify does.
func (f *Folder) Verify(ctx context.Context) (*Verified, error) {
	r := newRecount()
	at, now := f, f
	for tries := 0; ; tries++ {
		r.Verified = Verified{}
		if err := r.folder(ctx, at); err != nil {
			return nil, err
		}
		if f.running { // what was settled meanwhile is no difference
			var err error
			if now, err = Inspect(f.dir); err != nil {
				return nil, err
			}
			defer now.Close()
		}
		var all []Recount
		var missing uint64
		for key, o := range f.b.outboxes {
			if is := now.b.outboxes[key]; is != nil {
				one := r.outbox(is, o.next)
				missing += one.Missing
				all = append(all, one)
			}
		}
		// What was rewritten meanwhile is in files that were not there before.
		if missing == 0 || !f.running || tries == 3 {
			return r.result(all), nil
		}
		at = now
	}
}

func (r *recount) folder(ctx context.Context, f *Folder) error {
	if f.damage != nil {
		r.damaged(Damage{File: "meta.db", Reason: f.damage.Error()})
	}
	for class, l := range f.logs {
		for c := range l.Check() {
			r.block(Class(class), &c)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
	}
	return nil
}
