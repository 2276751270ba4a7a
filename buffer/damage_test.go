package buffer

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// damages are what can happen to a file. Each changes the bytes of one.
var damages = []struct {
	name string
	do   func(p []byte, r *rand.Rand) []byte
}{
	{"empty", func(p []byte, r *rand.Rand) []byte { return nil }},
	{"truncated", func(p []byte, r *rand.Rand) []byte { return p[:r.IntN(len(p))] }},
	{"truncated at a page", func(p []byte, r *rand.Rand) []byte { return p[:r.IntN(len(p)/4096)*4096] }},
	{"one bit", func(p []byte, r *rand.Rand) []byte { p[r.IntN(len(p))] ^= 1 << r.IntN(8); return p }},
	{"ten bits", func(p []byte, r *rand.Rand) []byte {
		for range 10 {
			p[r.IntN(len(p))] ^= 1 << r.IntN(8)
		}
		return p
	}},
	{"first meta page", func(p []byte, r *rand.Rand) []byte { clear(p[:4096]); return p }},
	{"second meta page", func(p []byte, r *rand.Rand) []byte { clear(p[4096:8192]); return p }},
	{"both meta pages", func(p []byte, r *rand.Rand) []byte { clear(p[:8192]); return p }},
	{"zeroed page", func(p []byte, r *rand.Rand) []byte { i := r.IntN(len(p)/4096) * 4096; clear(p[i : i+4096]); return p }},
	{"random page", func(p []byte, r *rand.Rand) []byte {
		i := r.IntN(len(p)/4096) * 4096
		for j := range p[i : i+4096] {
			p[i+j] = byte(r.Uint32())
		}
		return p
	}},
	{"random sector", func(p []byte, r *rand.Rand) []byte {
		i := r.IntN(len(p)/512) * 512
		for j := range p[i : i+512] {
			p[i+j] = byte(r.Uint32())
		}
		return p
	}},
	{"pages swapped", func(p []byte, r *rand.Rand) []byte {
		i, j := r.IntN(len(p)/4096)*4096, r.IntN(len(p)/4096)*4096
		tmp := bytes.Clone(p[i : i+4096])
		copy(p[i:], p[j:j+4096])
		copy(p[j:], tmp)
		return p
	}},
	{"noise", func(p []byte, r *rand.Rand) []byte {
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		return p
	}},
}

// TestDamage opens folders in which one file is damaged. The buffer always
// opens, hands out nothing that was not appended, keeps the order, loses at most
// what the file held, and counts what it lost.
func TestDamage(t *testing.T) {
	const perLife, lives = 400, 3
	origin := t.TempDir()
	for life := range lives {
		b, err := Open(origin, Options{PageSize: 4096, GenerationBytes: 4 << 10})
		if err != nil {
			t.Fatal(err)
		}
		o := outbox(t, b, "cloud", Telemetry)
		for i := range perLife / 20 {
			first := life*perLife + i*20 + 1
			put(t, b, first, first+19, o)
		}
		if life == 0 { // some are settled, so that there are marks to lose
			r, err := b.Reader(o)
			if err != nil {
				t.Fatal(err)
			}
			_, all := take(t, r, 50)
			for _, d := range all {
				o.Settle(d.Ordinal, Delivered)
			}
			r.Close()
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(filepath.Join(origin, "telemetry", "*.db"))
	if err != nil || len(files) < 6 {
		t.Fatalf("%d generations to damage, %v", len(files), err)
	}
	targets := map[string]string{
		"first":  "telemetry/" + filepath.Base(files[0]),
		"sealed": "telemetry/" + filepath.Base(files[len(files)/2]),
		"newest": "telemetry/" + filepath.Base(files[len(files)-1]),
		"meta":   "meta.db",
	}
	times := 25 / slower
	if testing.Short() {
		times = 3
	}
	for _, damage := range damages {
		for target, name := range targets {
			t.Run(damage.name+"/"+target, func(t *testing.T) {
				t.Parallel()
				for seed := range times {
					dir := t.TempDir()
					if err := os.CopyFS(dir, os.DirFS(origin)); err != nil {
						t.Fatal(err)
					}
					path := filepath.Join(dir, name)
					p, err := os.ReadFile(path)
					if err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(path, damage.do(p, rand.New(rand.NewPCG(1, uint64(seed)))), 0o600); err != nil {
						t.Fatal(err)
					}
					drainDamaged(t, dir, fmt.Sprintf("seed %d", seed), perLife*lives, target == "meta")
				}
			})
		}
	}
}

// drainDamaged reads what is left in a folder that once held messages up to n.
func drainDamaged(t *testing.T, dir, what string, n int, metaLost bool) {
	t.Helper()
	b, err := Open(dir, Options{PageSize: 4096, GenerationBytes: 4 << 10})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	defer func() {
		if err := b.Close(); err != nil {
			t.Errorf("%s: close: %v", what, err)
		}
	}()
	o := outbox(t, b, "cloud", Telemetry)
	r, err := b.Reader(o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	put(t, b, n+1, n+1, o) // it still takes messages
	last, got := 0, 0
	dst := make([]Delivery, 64)
	for {
		k, err := r.TryNext(dst)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if k == 0 {
			break
		}
		for _, d := range dst[:k] {
			var i int
			if _, err := fmt.Sscanf(string(d.Payload), "m%d", &i); err != nil || i <= last || i > n+1 || fmt.Sprintf("m%d", i) != string(d.Payload) {
				t.Fatalf("%s: %q comes after m%d", what, d.Payload, last)
			}
			last = i
			got++
			o.Settle(d.Ordinal, Delivered)
		}
	}
	l := o.Ledger()
	if l.Difference() != 0 || l.Stored != 0 {
		t.Errorf("%s: ledger %+v", what, l)
	}
	if last != n+1 {
		t.Errorf("%s: the last message is m%d, want m%d", what, last, n+1)
	}
	if l.Accepted != uint64(n+1) && !metaLost {
		t.Errorf("%s: %d accepted, want %d", what, l.Accepted, n+1)
	}
	// Outside the damaged file nothing may be lost: each holds far less than a
	// third.
	if got < (n-50)*2/3 {
		t.Errorf("%s: %d of %d messages came out: %+v", what, got, n-50, l)
	}
}

// TestDamageIsSetAside looks for the file that was damaged.
func TestDamageIsSetAside(t *testing.T) {
	dir := t.TempDir()
	b := reopen(t, dir)
	put(t, b, 1, 10, outbox(t, b, "cloud", Telemetry))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "telemetry", "*.db"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	p, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	blocks := 0
	for i := 0; i+70 < len(p); i++ {
		if bytes.HasPrefix(p[i:], []byte("FFB1")) {
			p[i+70] ^= 1
			blocks++
		}
	}
	if blocks == 0 {
		t.Fatal("there is no block in the file")
	}
	if err := os.WriteFile(files[0], p, 0o600); err != nil {
		t.Fatal(err)
	}
	b = reopen(t, dir)
	defer b.Close()
	o := outbox(t, b, "cloud", Telemetry)
	r, err := b.Reader(o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	put(t, b, 11, 11, o)
	got, _ := take(t, r, 1)
	if got[0] != "m11" {
		t.Errorf("got %q, want m11 alone", got)
	}
	o.Settle(11, Delivered)
	balance(t, o, Ledger{Accepted: 11, Delivered: 1, Dropped: map[string]uint64{"quarantined": 10}})
	var aside []string
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if strings.Contains(path, "quarantine/") {
			aside = append(aside, path)
		}
		return err
	})
	if len(aside) != 1 {
		t.Errorf("set aside are %v, want the damaged file", aside)
	}
}
