//go:build interop

package buffer

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// machine is a disk and the page cache before it, to which recorded system calls
// are done again. At any moment the power can be cut: what was synced is there,
// of the rest anything may be.
type machine struct {
	root      string // where the recorded process had its files
	top       *node
	fds       map[int64]*openFile
	pending   map[*call]func() // what a call that is under way does when it returns
	ignored   string           // a call that does nothing: the disk lies
	unmodeled []string
	told      []string // lines on standard output
	undone    undone   // by image
}

// undone counts the changes of names that a power cut has undone.
type undone struct{ all, unlinks int }

// openFile is a file and where the next write without a place goes.
type openFile struct {
	*node
	pos int64
}

// node is a file or a directory, which may have several names or none.
type node struct {
	writes []*fileWrite // of a file, in order

	dir     bool
	names   map[string]*node // as the process sees them
	ops     []*nameOp        // what made them so
	durable int              // ops up to here are
}

type fileWrite struct {
	data   []byte
	off    int64 // or the new size
	resize bool
	done   bool // the call has returned
	synced bool
	failed bool // so did the sync that was to cover it: the page cache forgets that it is to be written
}

// nameOp is a change of a directory: a name is made, removed, or takes the place
// of another.
type nameOp struct {
	name  string
	node  *node // nil: removed
	moved string
	done  bool
}

func newMachine(root, ignored string) *machine {
	m := &machine{root: root, ignored: ignored, top: &node{dir: true, names: map[string]*node{}}}
	m.restart()
	return m
}

// restart begins a process life: the files stay, and what is in the page cache,
// but for what log.Disk's Sync has it forget: what was to be synced and could not.
func (m *machine) restart() {
	m.fds = make(map[int64]*openFile)
	m.pending = make(map[*call]func())
	for _, g := range m.generations() {
		g.writes = slices.DeleteFunc(g.writes, func(w *fileWrite) bool { return w.failed })
	}
}

// generations returns the files of generations by their paths below the root.
func (m *machine) generations() map[string]*node {
	found := make(map[string]*node)
	for class, dir := range m.top.names {
		for name, n := range dir.names {
			if strings.HasPrefix(name, "g-") {
				found[filepath.Join(class, name)] = n
			}
		}
	}
	return found
}

// forget makes the files of generations on the disk what they are to the next
// process life.
func (m *machine) forget() error {
	m.restart()
	for path, g := range m.generations() {
		if err := os.WriteFile(filepath.Join(m.root, path), g.content(nil, cutAll), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// find returns the directory that a path stands in and its name there; nil for
// a path outside.
func (m *machine) find(path string) (dir *node, name string) {
	rel, err := filepath.Rel(m.root, path)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return nil, ""
	}
	dir = m.top
	parts := strings.Split(rel, "/")
	for _, p := range parts[:len(parts)-1] {
		if dir = dir.names[p]; dir == nil {
			return nil, ""
		}
	}
	return dir, parts[len(parts)-1]
}

func (n *node) change(op *nameOp) {
	n.ops = append(n.ops, op)
	apply(n.names, op)
}

func apply(names map[string]*node, op *nameOp) {
	if op.moved != "" {
		delete(names, op.moved)
	}
	if op.node == nil {
		delete(names, op.name)
	} else {
		names[op.name] = op.node
	}
}

// step does one step of a recorded process again.
func (m *machine) step(s step) {
	if s.enters {
		if then := m.enter(s.call); then != nil {
			m.pending[s.call] = then
		}
	}
	if s.returns {
		if then := m.pending[s.call]; then != nil && s.ret >= 0 {
			then()
		}
		delete(m.pending, s.call)
	}
}

// enter begins a call and returns what is left to do when it has returned. What
// is known to fail is not begun.
func (m *machine) enter(c *call) (then func()) {
	if c.name == m.ignored {
		return nil
	}
	if c.returned && c.ret < 0 {
		if c.name == "fsync" || c.name == "fdatasync" {
			if n := m.fds[c.int(0)]; n != nil {
				n.failSync()
			}
		}
		return nil
	}
	switch c.name {
	case "openat":
		return func() { m.open(c) }
	case "close":
		delete(m.fds, c.int(0))
	case "write":
		if c.int(0) == 1 {
			m.told = append(m.told, strings.Split(strings.TrimSuffix(c.args[1], "\n"), "\n")...)
		}
		if n := m.fds[c.int(0)]; n != nil {
			data := c.written()
			n.pos += int64(len(data))
			return n.write(&fileWrite{data: data, off: n.pos - int64(len(data))})
		}
	case "pwrite64":
		if n := m.fds[c.int(0)]; n != nil {
			return n.write(&fileWrite{data: c.written(), off: c.int(3)})
		}
	case "ftruncate":
		if n := m.fds[c.int(0)]; n != nil {
			return n.write(&fileWrite{resize: true, off: c.int(1)})
		}
	case "fsync", "fdatasync":
		if n := m.fds[c.int(0)]; n != nil {
			return n.sync()
		}
	case "unlinkat", "mkdirat":
		return m.rename(c, 1, 1)
	case "renameat", "renameat2":
		return m.rename(c, 1, 3)
	case "writev", "pwritev", "pwritev2", "fallocate", "sync_file_range", "dup", "dup2", "dup3":
		m.strange(c, 0)
	case "copy_file_range":
		m.strange(c, 2)
	default:
		for _, a := range c.args {
			if strings.HasPrefix(a, m.root) {
				m.unmodeled = append(m.unmodeled, c.name)
			}
		}
	}
	return nil
}

// written is what a write wrote, or tried to.
func (c *call) written() []byte {
	if c.returned {
		return []byte(c.args[1][:c.ret]) // a kill can cut it
	}
	return []byte(c.args[1])
}

// strange notes a call on a file of ours that the model does not know.
func (m *machine) strange(c *call, fd int) {
	if m.fds[c.int(fd)] != nil {
		m.unmodeled = append(m.unmodeled, c.name)
	}
}

func (m *machine) open(c *call) {
	path := c.args[1]
	dir, name := m.find(path)
	if dir == nil {
		return
	}
	n := dir.names[name]
	switch {
	case path == m.root:
		n = m.top
	case n == nil && strings.Contains(c.args[2], "O_CREAT"):
		n = &node{}
		dir.change(&nameOp{name: name, node: n, done: true})
	case n == nil:
		m.unmodeled = append(m.unmodeled, "open of unknown "+path)
		return
	}
	if strings.Contains(c.args[2], "O_TRUNC") {
		n.write(&fileWrite{resize: true})()
	}
	m.fds[c.ret] = &openFile{node: n}
}

func (n *node) write(w *fileWrite) (then func()) {
	n.writes = append(n.writes, w)
	return func() { w.done = true }
}

// sync begins a sync, which covers what has returned before it.
func (n *node) sync() (then func()) {
	var covered []*fileWrite
	for _, w := range n.writes {
		if w.done && !w.failed {
			covered = append(covered, w)
		}
	}
	ops := n.durable
	for ops < len(n.ops) && n.ops[ops].done {
		ops++
	}
	return func() {
		for _, w := range covered {
			w.synced = true
		}
		n.durable = max(n.durable, ops)
	}
}

// failSync is a sync that failed: no later one covers what it was to cover.
func (n *node) failSync() {
	for _, w := range n.writes {
		w.failed = w.failed || w.done && !w.synced
	}
}

// rename does any change of names: from and to are the arguments with the paths,
// one and the same for all but a rename.
func (m *machine) rename(c *call, from, to int) (then func()) {
	dir, name := m.find(c.args[from])
	if dir == nil {
		return nil
	}
	op := &nameOp{name: name}
	switch {
	case strings.HasPrefix(c.name, "mkdir"):
		op.node = &node{dir: true, names: map[string]*node{}}
	case from != to:
		other, target := m.find(c.args[to])
		if other != dir {
			m.unmodeled = append(m.unmodeled, "rename across directories")
			return nil
		}
		op.moved, op.name, op.node = name, target, dir.names[name]
	}
	dir.change(op)
	return func() { op.done = true }
}

// happened reports whether a call that the process did not see return was done,
// from what is on the disk.
func (m *machine) happened(c *call) bool {
	exists := func(path string) bool {
		_, err := os.Lstat(path)
		return err == nil
	}
	switch c.name {
	case "openat", "mkdirat":
		return exists(c.args[1]) // no matter who made it, there it is
	case "unlinkat":
		return !exists(c.args[1])
	case "renameat", "renameat2":
		return !exists(c.args[1]) && exists(c.args[3])
	case "pwrite64":
		if m.fds[c.int(0)] == nil {
			return false
		}
		c.ret = c.int(2)
		p, err := os.ReadFile(m.top.path(m.fds[c.int(0)].node, m.root))
		off := int(c.int(3))
		return err == nil && off <= len(p) && strings.HasPrefix(string(p[off:]), c.args[1])
	case "ftruncate":
		if m.fds[c.int(0)] == nil {
			return false
		}
		fi, err := os.Stat(m.top.path(m.fds[c.int(0)].node, m.root))
		return err == nil && fi.Size() == c.int(1)
	}
	return false // of a sync nobody knows
}

// path is where a node stands below n, "" if nowhere.
func (n *node) path(of *node, at string) string {
	if n == of {
		return at
	}
	for name, below := range n.names {
		if p := below.path(of, filepath.Join(at, name)); p != "" {
			return p
		}
	}
	return ""
}

// How a power cut treats the writes that were not synced.
const (
	cutNone   = iota // all are lost
	cutAll           // all are there
	cutSubset        // some are there
	cutTorn          // some of their sectors are there
	cutFlash         // the flash page around them is garbage, or they are there
	cutStyles
)

var cutNames = [cutStyles]string{"none", "all", "subset", "torn", "flash"}

const (
	sector    = 512
	flashPage = 16 << 10
)

// image writes what a power cut leaves to a folder. Changes of names that were
// not synced may be undone, the latest of a directory first.
func (m *machine) image(dir string, rng *rand.Rand, style int) error {
	return m.imageOf(m.top, dir, rng, style)
}

func (m *machine) imageOf(n *node, path string, rng *rand.Rand, style int) error {
	if !n.dir {
		return os.WriteFile(path, n.content(rng, style), 0o600)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	keep := len(n.ops)
	switch rng.IntN(4) {
	case 0:
		keep = n.durable
	case 1:
		keep = n.durable + rng.IntN(len(n.ops)-n.durable+1)
	}
	for _, op := range n.ops[keep:] {
		m.undone.all++
		if op.node == nil {
			m.undone.unlinks++
		}
	}
	names := make(map[string]*node)
	for _, op := range n.ops[:keep] {
		apply(names, op)
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if err := m.imageOf(names[name], filepath.Join(path, name), rng, style); err != nil {
			return fmt.Errorf("image: %w", err)
		}
	}
	return nil
}

func (n *node) content(rng *rand.Rand, style int) (p []byte) {
	for _, w := range n.writes {
		switch {
		case w.synced, style == cutAll:
		case style == cutNone, style == cutSubset && rng.IntN(2) == 0:
			continue
		}
		if w.resize {
			if w.synced || style == cutAll || rng.IntN(2) == 0 {
				p = resize(p, int(w.off))
			}
			continue
		}
		end := int(w.off) + len(w.data)
		if len(p) < end {
			p = resize(p, end)
		}
		switch {
		case w.synced || style == cutAll || style == cutSubset:
			copy(p[w.off:], w.data)
		case style == cutTorn:
			for at := 0; at < len(w.data); at += sector {
				if rng.IntN(2) == 0 {
					copy(p[int(w.off)+at:], w.data[at:min(at+sector, len(w.data))])
				}
			}
		case style == cutFlash:
			copy(p[w.off:], w.data)
			w.spoil(p, rng)
		}
	}
	return p
}

// spoil makes garbage of some flash pages that a write was to change.
func (w *fileWrite) spoil(p []byte, rng *rand.Rand) {
	for at := int(w.off) / flashPage * flashPage; at < int(w.off)+len(w.data); at += flashPage {
		if rng.IntN(5) < 2 {
			for i := at; i < min(at+flashPage, len(p)); i++ {
				p[i] = byte(rng.Uint32())
			}
		}
	}
}

func resize(p []byte, size int) []byte {
	if size <= len(p) {
		return p[:size:size]
	}
	return append(p, make([]byte, size-len(p))...)
}
