//go:build interop

package buffer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	powerCuts = flag.Int("powercuts", 48, "crash images of each recording in TestInteropPowerCut")
	powerSeed = flag.Uint64("powercut-seed", 1, "first seed of TestInteropPowerCut")
)

const (
	recordedEnv = "FIELDFERRY_TEST_RECORDED"
	examinedEnv = "FIELDFERRY_TEST_EXAMINED"
)

// recorded says what the recorded process does. It goes to the process as JSON.
type recorded struct {
	Dir      string
	Options  recordedOptions
	Seed     uint64
	Life     int // process lives on one folder, from 0
	Messages int // of each appender
	Close    bool
	Faults   bool // calls fail: it may end early
}

type recordedOptions struct {
	PageSize        int
	Compress        bool
	GenerationBytes int64
	MaxBytes        int64 // 0: nothing is dropped
}

func (o recordedOptions) String() string {
	return fmt.Sprintf("page=%d,zstd=%t,limit=%d", o.PageSize, o.Compress, o.MaxBytes)
}

// recordedQueues are the outboxes, recordedAppenders say in which of them each
// appender has copies.
var (
	recordedQueues = []struct {
		name  string
		class Class
	}{{"cloud", Telemetry}, {"plant", Telemetry}, {"cloud", Alert}}
	recordedAppenders = [][]int{{0, 1}, {0, 1}, {0}, {2}}
)

const (
	perLife     = 1_000_000 // numbers of a life begin with a multiple
	outstanding = 8         // of each appender
)

// recordedPayload is the payload of a message, which says what it has to be.
func recordedPayload(appender, n int) string {
	return fmt.Sprintf("%d %d %s", appender, n, strings.Repeat(string(rune('a'+n%26)), 20+n*37%200))
}

// TestInteropPowerCut records what a process that appends, drains, drops and
// rotates does to the disk, and makes of it what a power cut may leave at any
// moment. Everything that the process had been told is stored by then must come
// out of each image, in order and unchanged, and the ledger must balance. On a
// disk that lies about syncs it does not.
func TestInteropPowerCut(t *testing.T) {
	if spec := os.Getenv(recordedEnv); spec != "" {
		recordedProcess(t, spec)
		return
	} else if os.Getenv(examinedEnv) != "" {
		examineImage(t)
		return
	}
	var total cuts
	// A disk that ignores fdatasync has no file's bytes durable, one that ignores fsync
	// no folder's names.
	lies := []*lie{{ignored: "fdatasync", least: 2}, {ignored: "fsync", least: 5}}
	seed, ran := *powerSeed, 0
	options := []recordedOptions{
		{PageSize: 4 << 10, GenerationBytes: 24 << 10},
		{PageSize: 16 << 10, GenerationBytes: 24 << 10, Compress: true},
		{PageSize: 4 << 10, GenerationBytes: 24 << 10, Compress: true, MaxBytes: 1500 << 10},
		{PageSize: 16 << 10, GenerationBytes: 24 << 10, MaxBytes: 4 << 20},
	}
	for _, o := range options {
		for range 2 {
			t.Run(fmt.Sprintf("%s,seed=%d", o, seed), func(t *testing.T) {
				rec := record(t, o, seed, "")
				total.add(rec.cut(t, *powerCuts))
				for _, l := range lies {
					rec.control(t, 8, l)
				}
				ran++
			})
			seed++
		}
	}
	t.Logf("power cuts: %s", &total)
	for _, l := range lies {
		t.Logf("on a disk that ignores %s, %d of %d images have lost something", l.ignored, l.bad, l.images)
		if l.bad*l.least < l.images { // or the test itself would prove nothing
			t.Errorf("too few images lose something on a disk that ignores %s", l.ignored)
		}
	}
	if *powerCuts >= 48 && ran == 2*len(options) && (total.images() < 300 || slices.Min(total.styles[:]) == 0 || total.unlinks == 0) {
		t.Error("the images do not show all that a power cut does")
	}
}

// lie counts images of a disk that ignores a call, and those that have lost
// something: one in so many at the least.
type lie struct {
	ignored     string
	bad, images int
	least       int
}

// cuts counts images of power cuts.
type cuts struct {
	styles      [cutStyles]int
	undone      int // in which a change of a name was undone
	unlinks     int // in which the removal of a file was
	lost, aside int // that have lost something; with a file set aside
}

func (c *cuts) images() (n int) {
	for _, k := range c.styles {
		n += k
	}
	return n
}

func (c *cuts) add(o cuts) {
	for style, n := range o.styles {
		c.styles[style] += n
	}
	c.undone += o.undone
	c.unlinks += o.unlinks
	c.lost += o.lost
	c.aside += o.aside
}

func (c *cuts) String() string {
	var styles []string
	for style, n := range c.styles {
		styles = append(styles, fmt.Sprintf("%d %s", n, cutNames[style]))
	}
	return fmt.Sprintf("%d images (%s; names undone in %d, removals in %d), %d lost something, %d with a file set aside",
		c.images(), strings.Join(styles, ", "), c.undone, c.unlinks, c.lost, c.aside)
}

// TestInteropBadDisk makes writes and syncs fail while it records: what a failed
// sync was to make durable is lost in the images, whatever a later one says.
func TestInteropBadDisk(t *testing.T) {
	if spec := os.Getenv(recordedEnv); spec != "" {
		recordedProcess(t, spec)
		return
	} else if os.Getenv(examinedEnv) != "" {
		examineImage(t)
		return
	}
	var total cuts
	for i, c := range []struct {
		inject string // of each thread, one call fails, and after some more another
		full   bool   // it says that there is no room: the oldest is dropped
	}{
		{inject: "fdatasync:error=EIO:when=19+23"},
		{inject: "fdatasync:error=ENOSPC:when=17+29"}, // too late to say so
		{inject: "pwrite64:error=EIO:when=41+53"},
		{inject: "pwrite64:error=ENOSPC:when=37+59", full: true},
		{inject: "fsync:error=EIO:when=9+3"},
		{inject: "unlinkat,renameat:error=EIO:when=2+3"},
	} {
		for _, page := range []int{4 << 10, 16 << 10} {
			t.Run(fmt.Sprintf("%s,page=%d", c.inject, page), func(t *testing.T) {
				o := recordedOptions{PageSize: page, GenerationBytes: 24 << 10}
				if c.full {
					o.MaxBytes = 1 << 40
				}
				var rec *recording
				var failures, stored int
				// Which calls fail depends on what the threads do. A life that has many fail at
				// its start stores nothing.
				for try := 0; try < 5 && (failures < 3 || stored < 100); try++ {
					rec = record(t, o, uint64(i), c.inject)
					failures, stored = rec.failures(), len(newPromise(rec.at(rec.steps(), "").told).stored[0])
				}
				t.Logf("%d calls failed, %d messages were stored", failures, stored)
				if failures < 3 || stored < 100 {
					t.Error("the recording proves nothing")
				}
				total.add(rec.cut(t, 20))
			})
		}
	}
	t.Logf("power cuts: %s", &total)
}

// failures is how many calls an injected error ended.
func (rec *recording) failures() (n int) {
	for _, life := range rec.lives {
		for _, s := range life {
			if s.returns && s.injected {
				n++
			}
		}
	}
	return n
}

// recording is the trace of some process lives on one folder.
type recording struct {
	options recordedOptions
	seed    uint64
	ram     string // a folder on a disk of memory
	root    string // where the process had its files
	lives   [][]step
}

// record runs some lives on one folder. inject is strace's, to make calls fail.
func record(t *testing.T, o recordedOptions, seed uint64, inject string) *recording {
	t.Helper()
	dir := ramDir(t)
	rec := &recording{options: o, seed: seed, ram: dir, root: filepath.Join(dir, "data")}
	if err := os.Mkdir(rec.root, 0o700); err != nil {
		t.Fatal(err)
	}
	for life := range 3 {
		trace := filepath.Join(dir, "trace")
		recordLife(t, recorded{Dir: rec.root, Options: o, Seed: seed, Life: life, Messages: 250, Close: life == 1, Faults: inject != ""}, trace, inject)
		rec.lives = append(rec.lives, readTrace(t, trace))
		rec.settle(life)
		if err := rec.at(rec.steps(), "").forget(); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(trace); err != nil {
			t.Fatal(err)
		}
	}
	return rec
}

// settle finds out from the disk whether the calls in which a life was killed
// were done, and ends its steps accordingly.
func (rec *recording) settle(life int) {
	pending := make(map[*call]bool)
	for _, s := range rec.lives[life] {
		if s.enters && !s.returned {
			pending[s.call] = true
		}
	}
	m := rec.at(rec.steps(), "")
	for c := range pending {
		if c.returned = true; m.happened(c) {
			rec.lives[life] = append(rec.lives[life], step{c, false, true})
		} else {
			c.ret = -1
		}
	}
}

// recordLife runs the recorded process under strace, to its end.
func recordLife(t *testing.T, r recorded, trace, inject string) {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal("strace is not installed (.ci/peers installs it)")
	}
	spec, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	test, _, _ := strings.Cut(t.Name(), "/")
	args := []string{"-f", "-xx", "-qq", "--signal=none", "--seccomp-bpf", "-s", fmt.Sprint(16 << 20), "-o", trace, "-e", "trace=" + traced}
	if inject != "" {
		args = append(args, "-e", "inject="+inject)
	}
	cmd := exec.CommandContext(t.Context(), strace, append(args, os.Args[0], "-test.run=^"+test+"$", "-test.count=1")...)
	cmd.Env = append(os.Environ(), recordedEnv+"="+string(spec))
	out, err := cmd.CombinedOutput()
	killed := false
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		status := exit.Sys().(syscall.WaitStatus)
		killed = status.Signaled() && status.Signal() == syscall.SIGKILL
	}
	if !killed && (err != nil || !r.Close) && !r.Faults {
		t.Fatalf("life %d ended with %v\n%s", r.Life, err, out)
	}
}

// at is the machine after so many steps of the recording.
func (rec *recording) at(steps int, ignored string) *machine {
	m := newMachine(rec.root, ignored)
	for _, life := range rec.lives {
		m.restart()
		n := min(steps, len(life))
		for _, s := range life[:n] {
			m.step(s)
		}
		if steps -= n; steps == 0 {
			break
		}
	}
	return m
}

func (rec *recording) steps() (n int) {
	for _, life := range rec.lives {
		n += len(life)
	}
	return n
}

// renames are the steps after which a change of a name waits for its sync.
func (rec *recording) renames() (after []int) {
	n := 0
	for _, life := range rec.lives {
		for _, s := range life {
			n++
			creates := s.name == "openat" && strings.Contains(s.args[2], "O_CREAT")
			if s.returns && s.ret >= 0 && (creates || s.name == "mkdirat" || s.name == "unlinkat" || s.name == "renameat") && strings.HasPrefix(s.args[1], rec.root) {
				after = append(after, n)
			}
		}
	}
	return after
}

// cut examines images of power cuts. Every fourth power cut comes between a change
// of a name and its sync.
func (rec *recording) cut(t *testing.T, images int) (c cuts) {
	t.Helper()
	if m := rec.at(rec.steps(), ""); len(m.unmodeled) > 0 {
		t.Fatalf("the model of the disk does not know %v", m.unmodeled)
	}
	rng := rand.New(rand.NewPCG(rec.seed, 1))
	renames := rec.renames()
	for i := range images {
		style := i % cutStyles
		if style == cutFlash && rec.options.PageSize < flashPage {
			style = cutTorn // small pages do not protect their neighbours: docs/operations.md
		}
		steps := 1 + rng.IntN(rec.steps())
		if rng.IntN(4) == 0 {
			steps = renames[rng.IntN(len(renames))]
		}
		m := rec.at(steps, "")
		aside, out, err := rec.examine(t, m, rng, style)
		if err != nil {
			c.lost++
			t.Errorf("power cut after step %d of %d, unsynced writes: %s: %v\n%s", steps, rec.steps(), cutNames[style], err, out)
		}
		if aside {
			c.aside++
			if style != cutFlash { // nothing but a flash page can damage what was durable
				t.Errorf("power cut after step %d of %d, unsynced writes: %s: a file was set aside\n%s", steps, rec.steps(), cutNames[style], out)
			}
		}
		c.styles[style]++
		if m.undone.all > 0 {
			c.undone++
		}
		if m.undone.unlinks > 0 {
			c.unlinks++
		}
	}
	return c
}

// control examines images of a disk that ignores a call. Whatever is on it, it can
// be read.
func (rec *recording) control(t *testing.T, images int, l *lie) {
	t.Helper()
	rng := rand.New(rand.NewPCG(rec.seed, 2))
	for i := range images {
		style := []int{cutSubset, cutTorn}[i%2]
		steps := rec.steps()/10 + rng.IntN(rec.steps()*9/10)
		l.images++
		_, out, err := rec.examine(t, rec.at(steps, l.ignored), rng, style)
		if err != nil {
			l.bad++
		}
		if bytes.Contains(out, []byte("\ngoroutine ")) {
			t.Errorf("power cut after step %d of %d on a disk that ignores %s: the process crashed or hung: %v\n%s", steps, rec.steps(), l.ignored, err, out)
		}
	}
}

// examined is an image and what must be in it. It goes to the process that
// examines it as JSON.
type examined struct {
	Dir     string
	Options recordedOptions
	Told    []string
}

// examine makes an image of the machine and has a process of its own open it and
// hold it against what the recorded process had been told, so that a crash or an
// endless loop in the database is seen. It reports whether files were set aside,
// and what the process said.
func (rec *recording) examine(t *testing.T, m *machine, rng *rand.Rand, style int) (aside bool, out []byte, err error) {
	t.Helper()
	dir, err := os.MkdirTemp(rec.ram, "image-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := m.image(dir, rng, style); err != nil {
		t.Fatal(err)
	}
	spec, err := json.Marshal(examined{dir, rec.options, m.told})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	test, _, _ := strings.Cut(t.Name(), "/")
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+test+"$", "-test.count=1")
	cmd.Env = append(os.Environ(), examinedEnv+"=-")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) } // says where it hangs
	cmd.WaitDelay = 5 * time.Second
	cmd.Stdin = bytes.NewReader(spec)
	out, err = cmd.CombinedOutput()
	for _, pattern := range []string{"quarantine", "*/quarantine"} {
		if there, err := filepath.Glob(filepath.Join(dir, pattern)); err == nil && len(there) > 0 {
			aside = true
		}
	}
	return aside, out[max(len(out)-5000, 0):], err
}

func examineImage(t *testing.T) {
	// What a cycle in a damaged tree would take is not taken from the machine.
	if err := unix.Setrlimit(unix.RLIMIT_AS, &unix.Rlimit{Cur: 4 << 30, Max: 4 << 30}); err != nil {
		t.Fatal(err)
	}
	var x examined
	if err := json.NewDecoder(os.Stdin).Decode(&x); err != nil {
		t.Fatal(err)
	}
	p := newPromise(x.Told)
	p.drops = x.Options.MaxBytes > 0
	if err := p.check(x.Dir, Options{PageSize: x.Options.PageSize, Compress: x.Options.Compress, GenerationBytes: x.Options.GenerationBytes, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))}); err != nil {
		t.Fatal(err)
	}
}
