package buffer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/fieldferry/fieldferry/buffer/log"
	"github.com/fieldferry/fieldferry/buffer/rows"
)

// meta is meta.db: what is known of the buffer beside the blocks. It is small
// and rarely written: at most once a second, and when a generation ends.
//
//	about        version, origin, epoch, next (the id that no outbox had yet), each u32;
//	             note/ and a destination's name → its note
//	outboxes     id u32 → class u8, name length uvarint, name, next uvarint, marks,
//	             voids: uvarint count, each: first uvarint, copies uvarint, outcome u8
//	generations  class u8, epoch u32, first u64, revision u32 → last uvarint, records uvarint,
//	             blocks uvarint, bytes uvarint, first and newest wall clock uvarint ms,
//	             newest uptime uvarint ns, boot u64, lasts uvarint ns, spans
//	boots        boot u64 → began uvarint ms, newest wall clock uvarint ms, epoch uvarint
//	rejected     class u8 → appends that failed, uvarint
//	retired      class u8 → what outboxes that were removed had accepted, and its outcomes: marks
//	parked       outbox u32, ordinal u64 → parked copy
type meta struct {
	db     rows.Store
	origin uint32
	epoch  uint32
}

const (
	bucketAbout       = "about"
	bucketOutboxes    = "outboxes"
	bucketGenerations = "generations"
	bucketRejected    = "rejected"
	bucketParked      = "parked"
	bucketBoots       = "boots"
	bucketRetired     = "retired"
)

var (
	buckets = []string{bucketAbout, bucketOutboxes, bucketGenerations, bucketRejected, bucketParked, bucketBoots, bucketRetired}

	keyVersion = []byte("version")
	keyOrigin  = []byte("origin")
	keyEpoch   = []byte("epoch")
	keyNext    = []byte("next")
)

const metaVersion = 1

// storedOutbox is an outbox as meta.db has it.
type storedOutbox struct {
	id    uint32
	class Class
	name  string
	next  uint64
	marks marks
	voids []void
}

// storedGeneration is a seal with what the generation holds.
type storedGeneration struct {
	class Class
	seal  log.Seal
	lasts time.Duration // see generation
	spans []span
}

// begin reads what earlier process lives have left and starts a new epoch, above
// all those given.
func (m *meta) begin(above uint32) error {
	return m.db.Update(func(tx rows.Tx) error {
		if v := tx.Get(bucketAbout, keyVersion); len(v) == 4 && binary.BigEndian.Uint32(v) > metaVersion {
			return fmt.Errorf("the data folder has version %d, this program knows up to %d: install the newer version again", binary.BigEndian.Uint32(v), metaVersion)
		}
		m.origin = rand.Uint32()
		if v := tx.Get(bucketAbout, keyOrigin); len(v) == 4 {
			m.origin = binary.BigEndian.Uint32(v)
		}
		m.epoch = above
		if v := tx.Get(bucketAbout, keyEpoch); len(v) == 4 {
			m.epoch = max(above, binary.BigEndian.Uint32(v))
		}
		m.epoch++
		return errors.Join(
			tx.Put(bucketAbout, keyVersion, binary.BigEndian.AppendUint32(nil, metaVersion)),
			tx.Put(bucketAbout, keyOrigin, binary.BigEndian.AppendUint32(nil, m.origin)),
			tx.Put(bucketAbout, keyEpoch, binary.BigEndian.AppendUint32(nil, m.epoch)))
	})
}

var errRows = fmt.Errorf("a row is malformed: %w", log.ErrDamaged)

// load returns what earlier process lives have left.
func (m *meta) load() (outboxes []storedOutbox, gens []storedGeneration, rejected [NumClasses]uint64, err error) {
	err = m.db.View(func(tx rows.Tx) error {
		for k, v := range tx.Rows(bucketOutboxes, nil) {
			d := decoder{p: v}
			o := storedOutbox{class: Class(d.byte()), name: string(d.bytes()), next: d.uvarint(), marks: d.marks(), voids: d.voids()}
			if len(k) != 4 || d.bad || o.class >= NumClasses {
				return fmt.Errorf("outbox %x: %w", k, errRows)
			}
			o.id = binary.BigEndian.Uint32(k)
			outboxes = append(outboxes, o)
		}
		for k, v := range tx.Rows(bucketGenerations, nil) {
			if len(k) != 17 || Class(k[0]) >= NumClasses {
				return fmt.Errorf("generation %x: %w", k, errRows)
			}
			d := decoder{p: v}
			g := storedGeneration{class: Class(k[0]), seal: log.Seal{
				ID:      log.GenID{Epoch: binary.BigEndian.Uint32(k[1:]), First: binary.BigEndian.Uint64(k[5:]), Rev: binary.BigEndian.Uint32(k[13:])},
				Last:    log.Seq(d.uvarint()),
				Records: int64(d.uvarint()),
				Blocks:  int64(d.uvarint()),
				Bytes:   int64(d.uvarint()),
				First:   time.UnixMilli(int64(d.uvarint())),
				Newest:  time.UnixMilli(int64(d.uvarint())),
				Uptime:  time.Duration(d.uvarint()),
				Boot:    d.uint64(),
			}}
			g.lasts = time.Duration(d.uvarint())
			g.spans = d.spans(nil)
			if d.bad {
				return fmt.Errorf("generation %s: %w", g.seal.ID, errRows)
			}
			gens = append(gens, g)
		}
		for k, v := range tx.Rows(bucketRejected, nil) {
			d := decoder{p: v}
			if len(k) == 1 && Class(k[0]) < NumClasses {
				rejected[k[0]] = d.uvarint()
			}
		}
		return nil
	})
	return outboxes, gens, rejected, err
}

func generationKey(c Class, id log.GenID) []byte {
	k := append(make([]byte, 0, 17), byte(c))
	k = binary.BigEndian.AppendUint32(k, id.Epoch)
	k = binary.BigEndian.AppendUint64(k, id.First)
	return binary.BigEndian.AppendUint32(k, id.Rev)
}

func putGeneration(tx rows.Tx, c Class, s log.Seal, lasts time.Duration, spans []span) error {
	var v []byte
	for _, n := range [...]int64{int64(s.Last), s.Records, s.Blocks, s.Bytes, max(s.First.UnixMilli(), 0), max(s.Newest.UnixMilli(), 0), int64(s.Uptime)} {
		v = binary.AppendUvarint(v, uint64(n))
	}
	v = binary.BigEndian.AppendUint64(v, s.Boot)
	v = binary.AppendUvarint(v, uint64(lasts))
	return tx.Put(bucketGenerations, generationKey(c, s.ID), appendSpans(v, spans))
}

// boots returns what is known of boots.
func (m *meta) boots() (map[uint64]bootTime, error) {
	boots := make(map[uint64]bootTime)
	err := m.db.View(func(tx rows.Tx) error {
		for k, v := range tx.Rows(bucketBoots, nil) {
			d := decoder{p: v}
			b := bootTime{began: int64(d.uvarint()), newest: int64(d.uvarint()), epoch: uint32(d.uvarint())}
			if len(k) != 8 || d.bad {
				return fmt.Errorf("boot %x: %w", k, errRows)
			}
			boots[binary.BigEndian.Uint64(k)] = b
		}
		return nil
	})
	return boots, err
}

// saveClock puts what is known of this boot, and forgets old ones.
func (m *meta) saveClock(tx rows.Tx, boot uint64, b bootTime) error {
	v := binary.AppendUvarint(nil, uint64(b.began))
	v = binary.AppendUvarint(v, uint64(b.newest))
	v = binary.AppendUvarint(v, uint64(m.epoch))
	if err := tx.Put(bucketBoots, binary.BigEndian.AppendUint64(nil, boot), v); err != nil {
		return err
	}
	n, oldest, key := 0, m.epoch, []byte(nil)
	for k, v := range tx.Rows(bucketBoots, nil) {
		d := decoder{p: v}
		d.uvarint()
		d.uvarint()
		if epoch := uint32(d.uvarint()); epoch < oldest {
			oldest, key = epoch, bytes.Clone(k)
		}
		n++
	}
	if n > keepBoots {
		return tx.Delete(bucketBoots, key)
	}
	return nil
}

func putOutbox(tx rows.Tx, o *Outbox, next uint64, m *marks, voids []void) error {
	v := append(make([]byte, 0, 64), byte(o.class))
	v = appendString(v, o.name)
	v = binary.AppendUvarint(v, next)
	v = appendMarks(v, m)
	v = binary.AppendUvarint(v, uint64(len(voids)))
	for _, void := range voids {
		v = binary.AppendUvarint(v, void.first)
		v = binary.AppendUvarint(v, void.last-void.first+1)
		v = append(v, byte(void.out))
	}
	return tx.Put(bucketOutboxes, binary.BigEndian.AppendUint32(nil, o.id), v)
}

func (d *decoder) voids() (voids []void) {
	for n := d.uvarint(); n > 0 && !d.bad; n-- {
		first, count, out := d.uvarint(), d.uvarint(), Outcome(d.byte())
		if count == 0 || out == 0 || out >= numOutcomes {
			d.bad = true
			break
		}
		voids = append(voids, void{first, first + count - 1, out, true})
	}
	return voids
}

// create makes new outboxes durable.
func (m *meta) create(outboxes []*Outbox) error {
	return m.db.Update(func(tx rows.Tx) error {
		next := uint32(0)
		for _, o := range outboxes {
			next = max(next, o.id+1)
			if err := putOutbox(tx, o, o.next, &o.marks, nil); err != nil {
				return err
			}
		}
		return tx.Put(bucketAbout, keyNext, binary.BigEndian.AppendUint32(nil, next))
	})
}

// putOutboxes puts the marks of outboxes and returns what to call when they are
// durable.
func putOutboxes(tx rows.Tx, outboxes []*Outbox) (done func(), err error) {
	versions, voids := make([]uint64, len(outboxes)), make([][]void, len(outboxes))
	for i, o := range outboxes {
		o.mu.Lock()
		mk, version := o.durable()
		next, removed := o.next, o.removed
		versions[i], voids[i] = version, slices.Clone(o.voids)
		o.mu.Unlock()
		if removed { // its row must not come back
			continue
		}
		if err := putOutbox(tx, o, next, &mk, voids[i]); err != nil {
			return nil, err
		}
	}
	return func() {
		for i, o := range outboxes {
			o.persisted(versions[i], voids[i])
		}
	}, nil
}

// saveOutboxes makes the marks of outboxes durable, and what more puts, which may be
// nil.
func (m *meta) saveOutboxes(outboxes []*Outbox, more func(rows.Tx) error) error {
	var done func()
	err := m.db.Update(func(tx rows.Tx) (err error) {
		if more != nil {
			if err := more(tx); err != nil {
				return err
			}
		}
		done, err = putOutboxes(tx, outboxes)
		return err
	})
	if err == nil {
		done()
	}
	return err
}

// save makes the marks of outboxes, the count of rejected appends and the time of
// this boot durable.
func (m *meta) save(outboxes []*Outbox, rejected [NumClasses]uint64, clock *clock) error {
	var done func()
	boot, b, known := clock.toSave()
	err := m.db.Update(func(tx rows.Tx) (err error) {
		for c, n := range rejected {
			if err := tx.Put(bucketRejected, []byte{byte(c)}, binary.AppendUvarint(nil, n)); err != nil {
				return err
			}
		}
		if known {
			if err := m.saveClock(tx, boot, b); err != nil {
				return err
			}
		}
		done, err = putOutboxes(tx, outboxes)
		return err
	})
	if err == nil {
		done()
		clock.saved(b)
	}
	return err
}

// seal makes durable what a generation holds, together with the marks of the
// outboxes of its class: those in its blocks are read no more.
func (m *meta) seal(c *chain, s log.Seal, g *generation, lasts time.Duration) error {
	list := make([]span, 0, len(g.spans))
	outboxes := make([]*Outbox, 0, len(g.spans))
	c.mu.Lock()
	for id, sp := range g.spans {
		if o := c.outboxes[id]; o != nil { // or it was removed
			list = append(list, sp)
			outboxes = append(outboxes, o)
		}
	}
	c.mu.Unlock()
	var done func()
	err := m.db.Update(func(tx rows.Tx) (err error) {
		if err := putGeneration(tx, c.class, s, lasts, list); err != nil {
			return err
		}
		done, err = putOutboxes(tx, outboxes)
		return err
	})
	if err == nil {
		done()
	}
	return err
}

// replace makes one generation take the place of others.
func (m *meta) replace(c *chain, ids []log.GenID, s log.Seal, lasts time.Duration, spans []span) error {
	return m.db.Update(func(tx rows.Tx) error {
		for _, id := range ids {
			if err := tx.Delete(bucketGenerations, generationKey(c.class, id)); err != nil {
				return err
			}
		}
		return putGeneration(tx, c.class, s, lasts, spans)
	})
}

// forget removes the seals of generations whose files are gone.
func (m *meta) forget(c Class, ids []log.GenID) error {
	return m.db.Update(func(tx rows.Tx) error {
		for _, id := range ids {
			if err := tx.Delete(bucketGenerations, generationKey(c, id)); err != nil {
				return err
			}
		}
		return nil
	})
}

const notePrefix = "note/"

func putNote(tx rows.Tx, name, text string) error {
	return tx.Put(bucketAbout, []byte(notePrefix+name), []byte(text))
}

func (m *meta) note(name string) (text string, err error) {
	err = m.db.View(func(tx rows.Tx) error {
		text = string(tx.Get(bucketAbout, []byte(notePrefix+name)))
		return nil
	})
	return text, err
}

// park keeps a copy that its destination refused.
func (m *meta) park(o *Outbox, d *Delivery, reason string, now time.Time) error {
	k := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, o.id), d.Ordinal)
	v := binary.AppendUvarint(nil, uint64(max(now.UnixMilli(), 0)))
	v = appendString(v, reason)
	v = append(v, flags(d.QoS, d.Retain, false, len(d.Props) > 0))
	v = binary.AppendUvarint(v, uint64(max(d.Enqueued.UnixMilli(), 0)))
	v = appendString(v, d.Topic)
	if len(d.Props) > 0 {
		v = appendString(v, d.Props)
	}
	v = append(v, d.Payload...)
	return m.db.Update(func(tx rows.Tx) error { return tx.Put(bucketParked, k, v) })
}

func (m *meta) close() error { return m.db.Close() }
