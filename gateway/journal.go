package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/buffer/rows"
	"github.com/fieldferry/fieldferry/gateway/command"
)

// journal is the command.Journal: rows in commands.db, and the audit log. What many
// devices write at a time goes in one transaction. docs/commands.md has the rows.
type journal struct {
	table    rows.Store
	audit    auditLog
	value    func([]byte, adapters.Value) []byte
	stamp    func() buffer.Stamp
	age      func(buffer.Stamp) time.Duration
	remember time.Duration

	writing sync.Mutex // held by who writes a batch; guards next
	next    uint64     // number of the next row

	mu    sync.Mutex // guards batch
	batch *journalBatch
}

type auditLog interface{ Append(lines []byte) error }

// journalBatch is what is written in one go.
type journalBatch struct {
	lines   []byte
	records []command.Record
	done    bool
	err     error
}

const (
	tableCommands = "commands" // by the digest of issuer and id
	tableOrder    = "order"    // the keys of those, by number, the oldest first
	tableJournal  = "about"    // origin: of the buffer in which the commands wait

	// maxRemembered are kept at most, however long they are to be.
	maxRemembered = 250_000
	pruneAtOnce   = 2_000 // rows in a transaction
)

var journalTables = []string{tableCommands, tableOrder, tableJournal}

// openJournal opens the rows in a file, or makes it. lost says that it may lack what an
// earlier process wrote.
func openJournal(path string, log *slog.Logger) (table rows.Store, lost bool, err error) {
	file, err := rows.Open(path, journalTables, rows.Options{})
	if !errors.Is(err, rows.ErrDamaged) {
		return file, false, err
	}
	log.Error("commands.db is damaged: it is set aside, and what can be read of it is kept; commands that wait are answered as unknown", "err", err)
	type row struct {
		table      string
		key, value []byte
	}
	var good []row
	_ = rows.Salvage(path, journalTables, func(table string, key, value []byte) { good = append(good, row{table, key, value}) })
	if err := rows.SetAside(path); err != nil {
		return nil, true, err
	}
	if file, err = rows.Open(path, journalTables, rows.Options{}); err != nil {
		return nil, true, err
	}
	err = file.Update(func(tx rows.Tx) error {
		for _, r := range good {
			if err := tx.Put(r.table, r.key, r.value); err != nil {
				return err
			}
		}
		return nil
	})
	return file, true, err
}

// newJournal goes on with the rows there are. other says that they know nothing of the
// commands that wait in the buffer of this origin.
func newJournal(table rows.Store, origin string) (j *journal, other bool, err error) {
	j = &journal{table: table, next: 1}
	err = table.Update(func(tx rows.Tx) error {
		for k := range tx.Rows(tableOrder, nil) {
			if len(k) == 8 {
				j.next = max(j.next, binary.BigEndian.Uint64(k)+1)
			}
		}
		if other = string(tx.Get(tableJournal, []byte("origin"))) != origin; !other {
			return nil
		}
		return tx.Put(tableJournal, []byte("origin"), []byte(origin))
	})
	return j, other, err
}

func journalKey(k command.Key) []byte {
	h := sha256.New()
	h.Write(binary.AppendUvarint(nil, uint64(len(k.Issuer))))
	h.Write([]byte(k.Issuer))
	h.Write([]byte(k.ID))
	return h.Sum(nil)
}

// journalRow is a row of commands.
type journalRow struct {
	state  command.State
	number uint64 // in the order
	at     buffer.Stamp
	digest command.Digest
	answer []byte
}

func (r *journalRow) append(dst []byte) []byte {
	dst = append(dst, byte(r.state))
	dst = binary.BigEndian.AppendUint64(dst, r.number)
	dst = binary.BigEndian.AppendUint64(dst, r.at.Boot)
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.at.Uptime))
	dst = append(dst, r.digest[:]...)
	return append(dst, r.answer...)
}

func parseJournalRow(v []byte) (r journalRow, ok bool) {
	const fixed = 1 + 3*8 + sha256.Size
	if len(v) < fixed || v[0] != byte(command.Started) && v[0] != byte(command.Answered) {
		return r, false
	}
	r.state = command.State(v[0])
	r.number = binary.BigEndian.Uint64(v[1:])
	r.at = buffer.Stamp{Boot: binary.BigEndian.Uint64(v[9:]), Uptime: time.Duration(binary.BigEndian.Uint64(v[17:]))}
	copy(r.digest[:], v[25:])
	r.answer = append([]byte(nil), v[fixed:]...)
	return r, true
}

// Find implements command.Journal.
func (j *journal) Find(k command.Key, old bool) (rec command.Record, there bool, err error) {
	var v []byte
	err = j.table.View(func(tx rows.Tx) error {
		v = append(v, tx.Get(tableCommands, journalKey(k))...)
		return nil
	})
	if err != nil || len(v) == 0 {
		return rec, false, err
	}
	r, ok := parseJournalRow(v)
	if !ok { // it was begun, and nobody knows what it was: no command is taken for it
		return command.Record{Key: k, State: command.Started}, true, nil
	}
	if r.state == command.Answered && !old && j.age(r.at) > j.remember {
		return rec, false, nil
	}
	return command.Record{Key: k, State: r.state, Digest: r.digest, Answer: r.answer}, true, nil
}

// Write implements command.Journal.
func (j *journal) Write(_ context.Context, events []command.Event, records ...command.Record) error {
	var lines []byte
	for i := range events {
		lines = events[i].Append(lines, j.value)
	}
	j.mu.Lock()
	b := j.batch
	if b == nil {
		b = &journalBatch{}
		j.batch = b
	}
	b.lines = append(b.lines, lines...)
	b.records = append(b.records, records...)
	j.mu.Unlock()

	j.writing.Lock() // and meanwhile others join the batch
	defer j.writing.Unlock()
	if b.done {
		return b.err
	}
	j.mu.Lock()
	j.batch = nil
	j.mu.Unlock()
	b.err = j.write(b)
	b.done = true
	return b.err
}

// write writes a batch: the lines first, so that nothing is done without them.
// j.writing is held.
func (j *journal) write(b *journalBatch) error {
	if err := j.audit.Append(b.lines); err != nil {
		return err
	}
	if len(b.records) == 0 {
		return nil
	}
	next := j.next
	err := j.table.Update(func(tx rows.Tx) error {
		for i := range b.records {
			if err := putRecord(tx, &b.records[i], &next, j.stamp()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write commands.db: %w", err)
	}
	j.next = next
	return nil
}

func putRecord(tx rows.Tx, rec *command.Record, next *uint64, at buffer.Stamp) error {
	key := journalKey(rec.Key)
	if old, ok := parseJournalRow(tx.Get(tableCommands, key)); ok {
		if err := tx.Delete(tableOrder, binary.BigEndian.AppendUint64(nil, old.number)); err != nil {
			return err
		}
	}
	r := journalRow{state: rec.State, number: *next, at: at, digest: rec.Digest, answer: rec.Answer}
	*next++
	if err := tx.Put(tableCommands, key, r.append(nil)); err != nil {
		return err
	}
	return tx.Put(tableOrder, binary.BigEndian.AppendUint64(nil, r.number), key)
}

// prune forgets answers that need not be remembered any more, and returns how many.
// No copy of them may be left that could come again.
func (j *journal) prune() (pruned int, err error) {
	for {
		n, err := j.pruneSome()
		pruned += n
		if err != nil || n < pruneAtOnce {
			return pruned, err
		}
	}
}

func (j *journal) pruneSome() (n int, err error) {
	j.writing.Lock()
	defer j.writing.Unlock()
	err = j.table.Update(func(tx rows.Tx) error {
		type row struct{ number, key []byte }
		var gone []row
		all := 0
		for range tx.Rows(tableOrder, nil) {
			all++
		}
		for number, key := range tx.Rows(tableOrder, nil) {
			r, ok := parseJournalRow(tx.Get(tableCommands, key))
			switch {
			case len(gone) == pruneAtOnce:
			case !ok: // of an order whose row is lost
				gone = append(gone, row{append([]byte(nil), number...), nil})
				continue
			case r.state != command.Answered: // its copy is waiting, or was dropped
				continue
			case j.age(r.at) > j.remember || all-len(gone) > maxRemembered:
				gone = append(gone, row{append([]byte(nil), number...), append([]byte(nil), key...)})
				continue
			}
			break
		}
		n = len(gone)
		for _, r := range gone {
			if err := tx.Delete(tableOrder, r.number); err != nil {
				return err
			}
			if r.key == nil {
				continue
			}
			if err := tx.Delete(tableCommands, r.key); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("forget old commands: %w", err)
	}
	return n, nil
}
