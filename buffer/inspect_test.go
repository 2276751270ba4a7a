package buffer

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fieldferry/fieldferry/buffer/rows"
)

func inspect(t testing.TB, dir string) *Folder {
	t.Helper()
	f, err := Inspect(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func folderStats(t testing.TB, f *Folder) FolderStats {
	t.Helper()
	s, err := f.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fingerprint is of every file in a folder.
func fingerprint(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		p, err := os.ReadFile(path)
		all[path] = fmt.Sprintf("%x", sha256.Sum256(p))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// stored are the payloads that Stored yields, by outbox, with the ordinals.
func stored(t testing.TB, f *Folder) map[string][]string {
	t.Helper()
	all := make(map[string][]string)
	for d, err := range f.Stored() {
		if err != nil {
			t.Fatal(err)
		}
		name := d.Outbox.Class().String() + "/" + d.Outbox.Name()
		all[name] = append(all[name], fmt.Sprintf("%d %s", d.Ordinal, d.Payload))
	}
	return all
}

// makeFolder fills a folder in two lives, and leaves in it what a kill leaves.
func makeFolder(t testing.TB) (dir string, left map[string][]string, ledgers map[string]Ledger) {
	t.Helper()
	live := t.TempDir()
	b := openSmall(t, live)
	o, p := outbox(t, b, "cloud", Telemetry), outbox(t, b, "plant", Telemetry)
	fill(t, b, 200, o, p)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = openSmall(t, live)
	defer b.Close()
	o, p = outbox(t, b, "cloud", Telemetry), outbox(t, b, "plant", Telemetry)
	alert := outbox(t, b, "cloud", Alert)
	put(t, b, 201, 230, o)
	put(t, b, 1, 20, alert)
	r, err := b.Reader(alert)
	if err != nil {
		t.Fatal(err)
	}
	_, all := take(t, r, 5)
	for i := range all[:3] {
		if err := alert.Park(&all[i], "not authorised"); err != nil {
			t.Fatal(err)
		}
	}
	alert.Settle(all[3].Ordinal, Delivered)
	r.Close()
	if err := b.save(true); err != nil {
		t.Fatal(err)
	}
	left, ledgers = make(map[string][]string), make(map[string]Ledger)
	for _, o := range []*Outbox{o, p, alert} {
		name := o.Class().String() + "/" + o.Name()
		ledgers[name] = o.Ledger()
		o.mu.Lock()
		for i := uint64(1); i < o.next; i++ {
			if o.unsettled().has(i) {
				left[name] = append(left[name], fmt.Sprintf("%d m%d", i, i))
			}
		}
		o.mu.Unlock()
	}
	dir = filepath.Join(t.TempDir(), "buffer")
	if err := os.CopyFS(dir, os.DirFS(live)); err != nil {
		t.Fatal(err)
	}
	return dir, left, ledgers
}

func TestInspect(t *testing.T) {
	dir, left, ledgers := makeFolder(t)
	before := fingerprint(t, dir)
	f := inspect(t, dir)
	s := folderStats(t, f)
	if s.Running || s.Boot != 2 || len(s.Origin) != 8 || s.MetaDamage != "" || len(s.Quarantine) > 0 || s.DiskBytes == 0 {
		t.Errorf("stats are %+v", s)
	}
	got := make(map[string]Ledger)
	var sum Ledger
	for _, o := range s.Outboxes {
		name := o.Class.String() + "/" + o.Name
		got[name] = o.Ledger
		sum.Add(o.Ledger)
		if o.Oldest == nil || time.Since(*o.Oldest) > time.Minute {
			t.Errorf("the oldest of %s is of %v", name, o.Oldest)
		}
		if want := o.Ledger.Parked; o.Kept != want {
			t.Errorf("%s keeps %d parked copies, want %d", name, o.Kept, want)
		}
	}
	// What was settled in between is durable only up to the first that is not.
	for name, l := range ledgers {
		g := got[name]
		if g.Accepted != l.Accepted || g.Stored < l.Stored || g.Difference() != 0 {
			t.Errorf("%s: ledger is %+v, want about %+v", name, g, l)
		}
	}
	if d := cmp.Diff(sum, s.Ledger); d != "" {
		t.Errorf("sum (-want +got):\n%s", d)
	}
	have := stored(t, f)
	for name, want := range left {
		for _, one := range want {
			if !slices.Contains(have[name], one) {
				t.Errorf("%s: %q is not among the stored", name, one)
			}
		}
		if uint64(len(have[name])) != got[name].Stored {
			t.Errorf("%s: %d copies come, %d are stored", name, len(have[name]), got[name].Stored)
		}
	}
	n := 0
	for p, err := range f.Parked() {
		if n++; err != nil || p.Reason != "not authorised" || p.Ordinal != uint64(n) || string(p.Payload) != fmt.Sprintf("m%d", n) || p.Topic != "t" || p.QoS != 1 || p.Outbox.Name() != "cloud" || time.Since(p.Parked) > time.Minute {
			t.Errorf("parked %d is %+v, %v", n, p, err)
		}
	}
	if n != 3 {
		t.Errorf("%d parked copies come, want 3", n)
	}
	v, err := f.Verify(t.Context())
	if err != nil || v.Differences() != 0 || v.Damaged != 0 || v.Records == 0 {
		t.Errorf("verify says %+v, %v", v, err)
	}
	if diff := cmp.Diff(before, fingerprint(t, dir)); diff != "" {
		t.Errorf("the folder has changed:\n%s", diff)
	}
	// What Open makes of the folder is what was shown.
	b := reopen(t, dir)
	defer b.Close()
	for name, l := range got {
		class, name, _ := strings.Cut(name, "/")
		c, _ := ParseClass(class)
		if diff := cmp.Diff(outbox(t, b, name, c).Ledger(), l); diff != "" {
			t.Errorf("%s of %s (-open +inspected):\n%s", name, class, diff)
		}
	}
}

// TestInspectWhileItRuns looks at a buffer that is at work.
func TestInspectWhileItRuns(t *testing.T) {
	dir := t.TempDir()
	b := openSmall(t, dir)
	defer b.Close()
	o := outbox(t, b, "cloud", Telemetry)
	fill(t, b, 200, o)
	if err := b.save(true); err != nil {
		t.Fatal(err)
	}
	f := inspect(t, dir)
	s := folderStats(t, f)
	if !s.Running || s.Ledger.Accepted != 200 || s.Ledger.Difference() != 0 {
		t.Errorf("stats are %+v", s)
	}
	if got := len(stored(t, f)["telemetry/cloud"]); uint64(got) != s.Ledger.Stored {
		t.Errorf("%d copies come, %d are stored", got, s.Ledger.Stored)
	}
	// All of it is settled, and its files removed, between the look and the recount.
	r, err := b.Reader(o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, all := take(t, r, int(o.Ledger().Stored))
	for _, d := range all {
		o.Settle(d.Ordinal, Delivered)
	}
	put(t, b, 201, 210, o)
	if err := b.sweep(); err != nil {
		t.Fatal(err)
	}
	if err := b.save(true); err != nil {
		t.Fatal(err)
	}
	v, err := f.Verify(t.Context())
	if err != nil || v.Differences() != 0 || v.Damaged != 0 {
		t.Errorf("verify says %+v, %v", v, err)
	}
}

func TestInspectDamage(t *testing.T) {
	t.Run("block", func(t *testing.T) {
		dir, left, _ := makeFolder(t)
		files := generations(t, dir, Telemetry)
		damageBlock(t, files[len(files)-1], 0)
		f := inspect(t, dir)
		v, err := f.Verify(t.Context())
		if err != nil || v.Damaged != 1 || v.Differences() != 30 || v.Damage[0].File != "telemetry/"+filepath.Base(files[len(files)-1]) {
			t.Errorf("verify says %+v, %v", v, err)
		}
		good, bad := 0, 0
		for d, err := range f.Stored() {
			if err != nil {
				bad++
			} else if d.Outbox.Class() == Telemetry {
				good++
			}
		}
		want := len(left["telemetry/cloud"]) + len(left["telemetry/plant"]) - 30
		if bad != 1 || good < want {
			t.Errorf("%d copies come and %d errors, want at least %d and 1", good, bad, want)
		}
	})
	t.Run("meta.db", func(t *testing.T) {
		dir, left, _ := makeFolder(t)
		overwrite(t, filepath.Join(dir, "meta.db"), 0, make([]byte, 64<<10))
		f := inspect(t, dir)
		if s := folderStats(t, f); s.MetaDamage == "" || s.Ledger.Stored < uint64(len(left["telemetry/cloud"])) {
			t.Errorf("stats are %+v", s)
		}
		if v, err := f.Verify(t.Context()); err != nil || v.Damaged != 1 || v.Damage[0].File != "meta.db" {
			t.Errorf("verify says %+v, %v", v, err)
		}
		for _, err := range f.Parked() {
			if err == nil {
				t.Error("a parked copy comes from nowhere")
			}
		}
	})
	t.Run("quarantine", func(t *testing.T) {
		dir, _, _ := makeFolder(t)
		aside := filepath.Join(dir, "alert", "quarantine")
		if err := os.MkdirAll(aside, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(aside, "000001-g.db"), []byte("xyz"), 0o600); err != nil {
			t.Fatal(err)
		}
		want := []Quarantined{{File: "alert/quarantine/000001-g.db", Bytes: 3}}
		if diff := cmp.Diff(want, folderStats(t, inspect(t, dir)).Quarantine); diff != "" {
			t.Errorf("quarantine (-want +got):\n%s", diff)
		}
	})
}

// A meta.db without a byte, as a disk that was full leaves one, is damage and no riddle.
func TestInspectEmptyMeta(t *testing.T) {
	dir, _, _ := makeFolder(t)
	if err := os.Truncate(filepath.Join(dir, "meta.db"), 0); err != nil {
		t.Fatal(err)
	}
	s, err := inspect(t, dir).Stats()
	if err != nil || s.MetaDamage != "it is empty" {
		t.Errorf("damage %q, %v", s.MetaDamage, err)
	}
}

func TestInspectRefuses(t *testing.T) {
	dir, temp := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", temp) // other processes have such files in the usual one
	if _, err := Inspect(dir); !errors.Is(err, ErrNoBuffer) {
		t.Errorf("an empty folder: %v", err)
	}
	if _, err := Inspect(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	if err := reopen(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	db, err := rows.Open(filepath.Join(dir, "meta.db"), buckets, rows.Options{})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx rows.Tx) error {
		return tx.Put(bucketAbout, keyVersion, binary.BigEndian.AppendUint32(nil, metaVersion+1))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Inspect(dir); err == nil || !strings.Contains(err.Error(), "version 2, this program knows up to 1") {
		t.Errorf("a newer version: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(temp, "fieldferry-meta-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
