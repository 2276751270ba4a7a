//go:build interop

package buffer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestInteropDamageOpensQuickly damages the file that a killed process was writing,
// of 64 MiB, and meta.db beside it: the buffer opens within a second.
func TestInteropDamageOpensQuickly(t *testing.T) {
	for _, compress := range []bool{false, true} {
		t.Run(fmt.Sprintf("zstd=%t", compress), func(t *testing.T) {
			o := Options{PageSize: 4096, GenerationBytes: 96 << 20, Compress: compress}
			origin, newest := killedWhileWriting(t, o, 64<<20)
			var longest time.Duration
			for _, damage := range damages {
				for _, name := range []string{newest, "meta.db"} {
					took := openDamaged(t, origin, name, damage.do, o)
					for try := 1; took > time.Second && try < 3; try++ { // others are at work here too
						took = min(took, openDamaged(t, origin, name, damage.do, o))
					}
					if longest = max(longest, took); took > time.Second {
						t.Errorf("%s, %s: opened after %v", damage.name, name, took)
					}
				}
			}
			t.Logf("opened after %v at the most", longest.Round(time.Millisecond))
		})
	}
}

// killedWhileWriting returns a folder with one file of a size in it, and the name of
// that.
func killedWhileWriting(t *testing.T, o Options, size int64) (origin, newest string) {
	t.Helper()
	dir := ramDir(t)
	b, err := Open(filepath.Join(dir, "data"), o)
	if err != nil {
		t.Fatal(err)
	}
	out := outbox(t, b, "cloud", Telemetry)
	rng := rand.New(rand.NewPCG(1, 1))
	const batch = 500
	r := make(receipt, batch)
	for b.Stats().Bytes < size {
		for range batch {
			payload := fmt.Appendf(nil, `{"temperature":%.2f,"humidity":%.1f,"pressure":%.2f,"timestamp":%d}`,
				20+5*rng.Float64(), 40+20*rng.Float64(), 1000+20*rng.Float64(), 1790000000000+rng.Int64N(1e9))
			m := Message{Topic: "devices/em-0001/telemetry", Payload: payload, QoS: 1, Copies: []Copy{{Outbox: out, QoS: 1}}}
			if err := b.Append(context.Background(), Telemetry, &m, r); err != nil {
				t.Fatal(err)
			}
		}
		for range batch {
			if err := <-r; err != nil {
				t.Fatal(err)
			}
		}
	}
	origin = filepath.Join(dir, "killed")
	if err := os.CopyFS(origin, os.DirFS(filepath.Join(dir, "data"))); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(origin, "telemetry", "*.db"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	return origin, filepath.Join("telemetry", filepath.Base(files[0]))
}

// openDamaged says how long it takes to open a copy of a folder in which a file is
// damaged.
func openDamaged(t *testing.T, origin, name string, damage func([]byte, *rand.Rand) []byte, o Options) time.Duration {
	t.Helper()
	dir := filepath.Join(filepath.Dir(origin), "copy")
	if err := os.CopyFS(dir, os.DirFS(origin)); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, name)
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, damage(p, rand.New(rand.NewPCG(1, 1))), 0o600); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	b, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	return took
}
