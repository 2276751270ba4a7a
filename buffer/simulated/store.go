package simulated

import (
	"bytes"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/fieldferry/fieldferry/buffer/rows"
)

// tables are rows by bucket and key. Once they are a store's, they do not change.
type tables map[string]map[string][]byte

// store keeps rows over the lives of the machine. An update is there as a whole or
// not at all.
type store struct {
	part
	tables tables
}

// opened is a store as one life has it.
type opened struct {
	*store
	l        *Life
	updating sync.Mutex // as in bbolt, one update at a time
}

// Store returns the store of this name, which has any bucket that is asked for.
func (l *Life) Store(name string) rows.Store {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	s := l.m.stores[name]
	if s == nil {
		s = &store{part: l.m.part("store ", name)}
		l.m.stores[name] = s
	}
	return &opened{store: s, l: l}
}

// Rows is how many rows a bucket of a store has.
func (m *Machine) Rows(store, bucket string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.stores[store]; s != nil {
		return len(s.tables[bucket])
	}
	return 0
}

func (s *opened) now() tables {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	return s.tables
}

func (s *opened) Update(fn func(rows.Tx) error) error {
	s.updating.Lock()
	defer s.updating.Unlock()
	t := tx{tables: maps.Clone(s.now()), own: make(map[string]bool)}
	if t.tables == nil {
		t.tables = make(tables)
	}
	if err := fn(t); err != nil {
		return err
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	return s.write(s.l, "save", func() { s.tables = t.tables })
}

func (s *opened) View(fn func(rows.Tx) error) error {
	s.m.mu.Lock()
	over := s.l.over()
	s.m.mu.Unlock()
	if over {
		return ErrOff
	}
	return fn(tx{tables: s.now()})
}

func (s *opened) Close() error     { return nil }
func (s *opened) DiskBytes() int64 { return 0 }

// tx is a transaction. It copies a bucket before it changes the first row of it.
type tx struct {
	tables tables
	own    map[string]bool
}

func (t tx) change(bucket string) map[string][]byte {
	if !t.own[bucket] {
		t.own[bucket] = true
		t.tables[bucket] = maps.Clone(t.tables[bucket])
		if t.tables[bucket] == nil {
			t.tables[bucket] = make(map[string][]byte)
		}
	}
	return t.tables[bucket]
}

func (t tx) Get(bucket string, key []byte) []byte { return t.tables[bucket][string(key)] }

func (t tx) Put(bucket string, key, value []byte) error {
	t.change(bucket)[string(key)] = bytes.Clone(value)
	return nil
}

func (t tx) Delete(bucket string, key []byte) error {
	delete(t.change(bucket), string(key))
	return nil
}

func (t tx) Rows(bucket string, prefix []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		for _, k := range slices.Sorted(maps.Keys(t.tables[bucket])) {
			if strings.HasPrefix(k, string(prefix)) && !yield([]byte(k), t.tables[bucket][k]) {
				return
			}
		}
	}
}
