package localbroker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/buffer/rows"
	"github.com/fieldferry/fieldferry/localbroker/topic"
)

const (
	stateOutbox   = "$state"
	sessionOutbox = "session "
	applyEvery    = 10 * time.Second // what changes often, as retained readings do, is written once in that
	applyAtOnce   = 4096             // changes in a transaction
	applyBytes    = 4 << 20
)

// State is what of a broker outlives its process: sessions with their
// subscriptions, the packet identifiers that QoS 2 publishes have in use, retained
// messages and wills. What has changed is durable when its record is in the
// buffer's log; state.db follows every ten seconds, and is read only by Open.
type State struct {
	buffer   *buffer.Buffer
	table    rows.Store
	log      *slog.Logger
	outboxes [buffer.NumClasses]*buffer.Outbox
	reader   *buffer.Reader
	space    []buffer.Delivery
	applied  [buffer.NumClasses]uint64
	saved    saved // until a broker takes it
}

// OpenState opens the state in a file, or makes it, and brings it up to what the
// buffer's log has. A file that is damaged is set aside, and what can be read of it
// kept.
func OpenState(path string, b *buffer.Buffer, logger *slog.Logger) (*State, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	table, err := rows.Open(path, tables, rows.Options{})
	if errors.Is(err, rows.ErrDamaged) {
		logger.Error("state.db is damaged: it is set aside, and what can be read of it is kept", "err", err)
		table, err = salvageState(path)
	}
	switch {
	case errors.Is(err, rows.ErrInUse):
		return nil, fmt.Errorf("%s is in use: another fieldferry runs on this data folder", path)
	case err != nil:
		return nil, fmt.Errorf("open the broker's state: %w", err)
	}
	s, err := openState(table, b, logger)
	if err != nil {
		return nil, errors.Join(err, table.Close())
	}
	return s, nil
}

func salvageState(path string) (*rows.File, error) {
	type row struct {
		table      string
		key, value []byte
	}
	var good []row
	_ = rows.Salvage(path, tables, func(table string, key, value []byte) { good = append(good, row{table, key, value}) })
	if err := rows.SetAside(path); err != nil {
		return nil, err
	}
	table, err := rows.Open(path, tables, rows.Options{})
	if err != nil {
		return nil, err
	}
	return table, table.Update(func(tx rows.Tx) error {
		for _, r := range good {
			if err := tx.Put(r.table, r.key, r.value); err != nil {
				return err
			}
		}
		return nil
	})
}

func openState(table rows.Store, b *buffer.Buffer, logger *slog.Logger) (*State, error) {
	s := &State{buffer: b, table: table, log: logger, space: make([]buffer.Delivery, 256)}
	for class := range buffer.NumClasses {
		o, err := b.Outbox(stateOutbox, class)
		if err != nil {
			return nil, fmt.Errorf("open the broker's state: %w", err)
		}
		s.outboxes[class] = o
	}
	if err := s.begin(); err != nil {
		return nil, fmt.Errorf("open the broker's state: %w", err)
	}
	var err error
	if s.reader, err = b.ReaderFunc(func() {}, s.outboxes[:]...); err != nil {
		return nil, fmt.Errorf("open the broker's state: %w", err)
	}
	err = s.drain()
	if err == nil {
		s.saved, err = s.load()
	}
	if err == nil {
		err = s.removeOrphans()
	}
	if err != nil {
		s.reader.Close()
		return nil, fmt.Errorf("open the broker's state: %w", err)
	}
	return s, nil
}

// begin reads how far the log was applied.
func (s *State) begin() error {
	return s.table.Update(func(tx rows.Tx) error {
		if string(tx.Get(tableAbout, []byte("origin"))) != s.buffer.Origin() {
			// It is of another buffer, whose log is of no use any more, nor are the ordinals
			// of copies in it.
			return errors.Join(
				deleteRows(tx, tableApplied, nil),
				deleteRows(tx, tableReceived, nil),
				tx.Put(tableAbout, []byte("origin"), []byte(s.buffer.Origin())),
				tx.Put(tableAbout, []byte("version"), []byte{0, 0, 0, 1}))
		}
		for class := range buffer.NumClasses {
			if v := tx.Get(tableApplied, []byte{byte(class)}); len(v) == 8 {
				s.applied[class] = binary.BigEndian.Uint64(v)
			}
		}
		return nil
	})
}

// Run makes state.db follow the log until ctx ends.
func (s *State) Run(ctx context.Context) error {
	tick := time.NewTicker(applyEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			if err := s.drain(); err != nil {
				s.log.Error("state.db could not be brought up to the log; the next start does it", "err", err)
			}
			return nil
		case <-tick.C:
			if err := s.drain(); err != nil {
				s.log.Error("state.db could not be brought up to the log", "err", err)
			}
		}
	}
}

// drain applies what the log has.
func (s *State) drain() error {
	for {
		var batch []buffer.Delivery
		for bytes := 0; len(batch) < applyAtOnce && bytes < applyBytes; {
			n, err := s.reader.TryNext(s.space)
			if err != nil {
				s.reader.Rewind()
				return err
			}
			if n == 0 {
				break
			}
			batch = append(batch, s.space[:n]...)
			for i := range s.space[:n] {
				bytes += len(s.space[i].Payload)
			}
		}
		if len(batch) == 0 {
			return nil
		}
		applied := s.applied
		err := s.table.Update(func(tx rows.Tx) error {
			for i := range batch {
				d := &batch[i]
				class := d.Outbox.Class()
				if d.Ordinal <= applied[class] {
					continue
				}
				applied[class] = d.Ordinal
				if err := apply(tx, d, s.buffer.Stamp); err != nil {
					s.log.Error("a change of the broker's state is lost", "err", err)
				}
			}
			for class, n := range applied {
				if n > s.applied[class] {
					if err := tx.Put(tableApplied, []byte{byte(class)}, binary.BigEndian.AppendUint64(nil, n)); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			s.reader.Rewind()
			return err
		}
		s.applied = applied
		for i := range batch {
			batch[i].Outbox.Settle(batch[i].Ordinal, buffer.Delivered)
		}
	}
}

// Close closes the state. Run must have returned, and the buffer be open.
func (s *State) Close() error {
	err := s.drain()
	s.reader.Close()
	return errors.Join(err, s.table.Close())
}

// saved is what was there when the state was opened.
type saved struct {
	sessions []savedSession
	subs     map[uint64][]savedSubscription
	ids      map[uint64]map[uint16]buffer.Class
	received map[uint64][]received
	retained []savedMessage
	wills    map[string]savedMessage
}

// received is a copy whose PUBREC came out of turn.
type received struct {
	class   buffer.Class
	ordinal uint64
}

// load reads the tables. Rows that are malformed are told of and left out.
func (s *State) load() (all saved, err error) {
	all.subs = make(map[uint64][]savedSubscription)
	all.ids = make(map[uint64]map[uint16]buffer.Class)
	all.received = make(map[uint64][]received)
	all.wills = make(map[string]savedMessage)
	bad := 0
	var expired []string
	err = s.table.View(func(tx rows.Tx) error {
		for k, v := range tx.Rows(tableSessions, nil) {
			f := fields{p: v}
			one := f.session(string(k))
			if f.bad {
				bad++
				continue
			}
			all.sessions = append(all.sessions, one)
		}
		for k, v := range tx.Rows(tableSubs, nil) {
			f := fields{p: v}
			sub := savedSubscription{flags: f.byte(), id: uint32(f.uvarint()), filter: f.text()}
			if f.bad || len(k) < 9 || sub.flags&3 > 2 || topic.CheckFilter(sub.filter, 0) != nil {
				bad++
				continue
			}
			id := binary.BigEndian.Uint64(k)
			all.subs[id] = append(all.subs[id], sub)
		}
		for k := range tx.Rows(tableIDs, nil) {
			if len(k) != 11 || buffer.Class(k[10]) >= buffer.NumClasses {
				bad++
				continue
			}
			id := binary.BigEndian.Uint64(k)
			if all.ids[id] == nil {
				all.ids[id] = make(map[uint16]buffer.Class)
			}
			all.ids[id][binary.BigEndian.Uint16(k[8:])] = buffer.Class(k[10])
		}
		for k := range tx.Rows(tableReceived, nil) {
			if len(k) != 17 || buffer.Class(k[8]) >= buffer.NumClasses {
				bad++
				continue
			}
			id := binary.BigEndian.Uint64(k)
			all.received[id] = append(all.received[id], received{buffer.Class(k[8]), binary.BigEndian.Uint64(k[9:])})
		}
		for _, table := range []string{tableRetained, tableWills} {
			for k, v := range tx.Rows(table, nil) {
				f := fields{p: append([]byte(nil), v...)}
				m := f.message()
				if f.bad {
					bad++
					continue
				}
				switch {
				case table == tableWills:
					all.wills[string(k)] = m
				case m.Expiry > 0 && s.buffer.Age(m.since) >= m.Expiry:
					expired = append(expired, m.Topic)
				default:
					all.retained = append(all.retained, m)
				}
			}
		}
		return nil
	})
	if bad > 0 {
		s.log.Error("rows of state.db are malformed and left out", "count", bad)
	}
	if err == nil && len(expired) > 0 {
		err = s.forgetRetained(expired)
	}
	return all, err
}

// forgetRetained deletes the rows of retained messages that have expired, unless
// others came.
func (s *State) forgetRetained(topics []string) error {
	return s.table.Update(func(tx rows.Tx) error {
		for _, topic := range topics {
			f := fields{p: tx.Get(tableRetained, nameKey(nil, topic))}
			if m := f.message(); f.bad || m.Expiry == 0 || s.buffer.Age(m.since) < m.Expiry {
				continue
			}
			if err := tx.Delete(tableRetained, nameKey(nil, topic)); err != nil {
				return err
			}
		}
		return nil
	})
}

// record queues a change. It is in the order of the calls for each class.
func (s *State) record(ctx context.Context, class buffer.Class, kind byte, payload []byte, r buffer.Receipt) error {
	return s.buffer.Append(ctx, class, &buffer.Message{
		Topic: changeTopic(kind), Payload: payload, Urgent: true,
		Copies: []buffer.Copy{{Outbox: s.outboxes[class]}},
	}, r)
}

// await is a receipt that is waited for.
type await struct{ done chan error }

func (a await) Stored(err error) { a.done <- err }

// change is one that is not stored yet.
type change struct {
	kind    byte
	payload []byte
}

// store makes changes durable. After an error some of them may be, too.
func (s *State) store(ctx context.Context, changes ...change) error {
	waits := make([]await, len(changes))
	for i, c := range changes {
		waits[i] = await{make(chan error, 1)}
		if err := s.record(ctx, buffer.Local, c.kind, c.payload, waits[i]); err != nil {
			return err
		}
	}
	for _, a := range waits {
		select {
		case err := <-a.done:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// noReceipt is for a change that nobody waits for.
type noReceipt struct{}

func (noReceipt) Stored(error) {}

// newSessionID is a number that no session had.
func newSessionID() uint64 { return max(rand.Uint64(), 1) }

// outboxName is the name of a session's outboxes.
func outboxName(client string, id uint64) string {
	return fmt.Sprintf("%s%s#%016x", sessionOutbox, client, id)
}

// removeOrphans removes what sessions have left that do not exist.
func (s *State) removeOrphans() error {
	known := make(map[uint64]bool)
	names := make(map[string]bool)
	for _, one := range s.saved.sessions {
		known[one.id] = true
		names[outboxName(one.client, one.id)] = true
	}
	var gone []*buffer.Outbox
	settled := make(map[string]uint64) // by outbox name and class
	for name, outboxes := range s.sessionOutboxes() {
		if !names[name] {
			gone = append(gone, outboxes...)
		}
		for _, o := range outboxes {
			settled[name+o.Class().String()] = o.Marks().Settled
		}
	}
	if err := s.buffer.Remove(gone...); err != nil {
		return err
	}
	return s.table.Update(func(tx rows.Tx) error {
		for id := range s.saved.subs {
			if !known[id] {
				if err := endSession(tx, id); err != nil {
					return err
				}
			}
		}
		for _, one := range s.saved.sessions { // what is settled need not be known any more
			for _, r := range s.saved.received[one.id] {
				if r.ordinal > settled[outboxName(one.client, one.id)+r.class.String()] {
					continue
				}
				key := binary.BigEndian.AppendUint64(append(sessionPrefix(one.id), byte(r.class)), r.ordinal)
				if err := tx.Delete(tableReceived, key); err != nil {
					return err
				}
			}
		}
		for id := range s.saved.ids {
			if !known[id] {
				if err := endSession(tx, id); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// sessionOutboxes returns the outboxes of sessions that are there, by name.
func (s *State) sessionOutboxes() map[string][]*buffer.Outbox {
	all := make(map[string][]*buffer.Outbox)
	for _, o := range s.buffer.Outboxes() {
		if strings.HasPrefix(o.Name(), sessionOutbox) {
			all[o.Name()] = append(all[o.Name()], o)
		}
	}
	return all
}
