package buffer

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// The plain log is what the buffer is measured against: the same records,
// appended to one file with one write and one fdatasync for all that wait.
type plainLog struct {
	f  *os.File
	mu sync.Mutex // guards queue
	q  []plainEntry
	c  chan struct{}
}

type plainEntry struct {
	data []byte
	done Receipt
}

func openPlain(tb testing.TB) *plainLog {
	f, err := os.Create(filepath.Join(tb.TempDir(), "log"))
	if err != nil {
		tb.Fatal(err)
	}
	return &plainLog{f: f, c: make(chan struct{}, 1)}
}

func (l *plainLog) append(data []byte, r Receipt) {
	l.mu.Lock()
	l.q = append(l.q, plainEntry{data, r})
	l.mu.Unlock()
	select {
	case l.c <- struct{}{}:
	default:
	}
}

func (l *plainLog) run(ctx context.Context) error {
	var batch []plainEntry
	var buf []byte
	for {
		select {
		case <-ctx.Done():
			return l.f.Close()
		case <-l.c:
		}
		l.mu.Lock()
		batch, l.q = l.q, batch[:0]
		l.mu.Unlock()
		buf = buf[:0]
		for _, e := range batch {
			buf = binary.BigEndian.AppendUint32(buf, uint32(len(e.data)))
			buf = append(buf, e.data...)
		}
		if _, err := l.f.Write(buf); err != nil {
			return err
		}
		if err := datasync(l.f); err != nil {
			return err
		}
		for _, e := range batch {
			e.done.Stored(nil)
		}
	}
}

// readings are payloads of 200 bytes that compress as those of a meter do.
func readings() [][]byte {
	rng := rand.New(rand.NewPCG(1, 2))
	all := make([][]byte, 4096)
	for i := range all {
		p := fmt.Appendf(nil, `{"voltage":[%.1f,%.1f,%.1f],"current":[%.2f,%.2f,%.2f],"power":%.1f,"energy":%.1f,"timestamp":%d,"id":"`,
			228+4*rng.Float64(), 228+4*rng.Float64(), 228+4*rng.Float64(), 10+6*rng.Float64(), 10+6*rng.Float64(), 10+6*rng.Float64(),
			7000+2000*rng.Float64(), 100000+float64(i)*0.3, 1790000000000+int64(i)*20)
		for len(p) < 200 {
			p = append(p, byte('0'+rng.IntN(10)))
		}
		all[i] = p
	}
	return all
}

// BenchmarkAppend appends 200-byte messages, so many at a time. It alternates
// with the plain log in one run: compare within a run.
func BenchmarkAppend(b *testing.B) {
	payloads := readings()
	for _, waiting := range []int{1, 64, 1000} {
		for _, kind := range []string{"plain", "raw", "zstd", "plain2", "raw2", "zstd2"} {
			b.Run(fmt.Sprintf("waiting=%d/%s", waiting, kind), func(b *testing.B) {
				var appendOne func([]byte, Receipt)
				if strings.HasPrefix(kind, "plain") {
					l := openPlain(b)
					ctx, stop := context.WithCancel(b.Context())
					var wg sync.WaitGroup
					wg.Go(func() {
						if err := l.run(ctx); err != nil {
							b.Error(err)
						}
					})
					defer wg.Wait()
					defer stop()
					appendOne = l.append
				} else {
					buf, err := Open(b.TempDir(), Options{PageSize: 4096, Compress: strings.HasPrefix(kind, "zstd")})
					if err != nil {
						b.Fatal(err)
					}
					defer buf.Close()
					o := outbox(b, buf, "cloud", Telemetry)
					copies := []Copy{{Outbox: o, QoS: 1}}
					appendOne = func(payload []byte, r Receipt) {
						m := Message{Topic: "devices/em-0001/telemetry", Payload: payload, QoS: 1, Urgent: true, Copies: copies}
						if err := buf.Append(context.Background(), Telemetry, &m, r); err != nil {
							b.Error(err)
						}
					}
				}
				b.SetBytes(200)
				b.ReportAllocs()
				var wg sync.WaitGroup
				per := b.N/waiting + 1
				b.ResetTimer()
				for i := range waiting {
					wg.Go(func() {
						done := make(receipt, 1)
						for j := range per {
							appendOne(payloads[(i+j*waiting)%len(payloads)], done)
							if err := <-done; err != nil {
								b.Error(err)
							}
						}
					})
				}
				wg.Wait()
			})
		}
	}
}

// BenchmarkDrain takes and settles 200-byte messages that are on the disk.
func BenchmarkDrain(b *testing.B) {
	payloads := readings()
	for _, compress := range []bool{false, true} {
		b.Run(fmt.Sprintf("zstd=%v", compress), func(b *testing.B) {
			buf, err := Open(b.TempDir(), Options{PageSize: 4096, Compress: compress})
			if err != nil {
				b.Fatal(err)
			}
			defer buf.Close()
			o := outbox(b, buf, "cloud", Telemetry)
			m := Message{Topic: "devices/em-0001/telemetry", QoS: 1, Copies: []Copy{{Outbox: o, QoS: 1}}}
			done := make(receipt, b.N)
			for i := range b.N {
				m.Payload = payloads[i%len(payloads)]
				if err := buf.Append(context.Background(), Telemetry, &m, done); err != nil {
					b.Fatal(err)
				}
			}
			for range b.N {
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			}
			r, err := buf.Reader(o)
			if err != nil {
				b.Fatal(err)
			}
			defer r.Close()
			dst := make([]Delivery, 256)
			b.SetBytes(200)
			b.ReportAllocs()
			b.ResetTimer()
			for left := b.N; left > 0; {
				n, err := r.TryNext(dst)
				if err != nil || n == 0 {
					b.Fatalf("%d of %d came out: %v", b.N-left, b.N, err)
				}
				for i := range dst[:n] {
					o.Settle(dst[i].Ordinal, Delivered)
				}
				left -= n
			}
		})
	}
}
