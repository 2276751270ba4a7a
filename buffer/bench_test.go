package buffer

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
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
		if err := syscall.Fdatasync(int(l.f.Fd())); err != nil {
			return err
		}
		for _, e := range batch {
			e.done.Stored(nil)
		}
	}
}

// BenchmarkAppend appends 200-byte messages, so many at a time. It alternates
// with the plain log in one run: compare within a run.
func BenchmarkAppend(b *testing.B) {
	payload := make([]byte, 200)
	for i := range payload {
		payload[i] = "0123456789.,:{}\"abcdefgh"[i*7%24]
	}
	for _, waiting := range []int{1, 64, 1000} {
		for _, kind := range []string{"plain", "raw", "zstd", "plain2", "raw2", "zstd2"} {
			b.Run(fmt.Sprintf("waiting=%d/%s", waiting, kind), func(b *testing.B) {
				var appendOne func(Receipt)
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
					appendOne = func(r Receipt) { l.append(payload, r) }
				} else {
					buf, err := Open(b.TempDir(), Options{PageSize: 4096, Compress: strings.HasPrefix(kind, "zstd")})
					if err != nil {
						b.Fatal(err)
					}
					defer buf.Close()
					o := outbox(b, buf, "cloud", Telemetry)
					copies := []Copy{{Outbox: o, QoS: 1}}
					appendOne = func(r Receipt) {
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
				for range waiting {
					wg.Go(func() {
						done := make(receipt, 1)
						for range per {
							appendOne(done)
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
