package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fieldferry/fieldferry/buffer"
)

const (
	messageBytes = 200
	take         = 256 // messages a reader takes at a time
)

// payloads are readings of a meter as JSON, no two of them the same.
var payloads = sync.OnceValue(func() [][]byte {
	rng := rand.New(rand.NewPCG(1, 2))
	all := make([][]byte, 4096)
	for i := range all {
		p := fmt.Appendf(nil, `{"temperature":%.2f,"humidity":%.1f,"pressure":%.2f,"voltage":[%.1f,%.1f,%.1f],"current":[%.2f,%.2f,%.2f],"power":%.1f,"energy":%.1f,"timestamp":%d`,
			20+5*rng.Float64(), 40+30*rng.Float64(), 1000+20*rng.Float64(), 228+4*rng.Float64(), 228+4*rng.Float64(), 228+4*rng.Float64(),
			10+6*rng.Float64(), 10+6*rng.Float64(), 10+6*rng.Float64(), 7000+2000*rng.Float64(), 100000+float64(i)*0.3, 1790000000000+int64(i)*20)
		p = append(p, `,"id":"`...)
		for len(p) < messageBytes-2 {
			p = strconv.AppendInt(p, int64(rng.IntN(10)), 10)
		}
		all[i] = append(p, '"', '}')
	}
	return all
})

// store is the buffer or the log it is held against.
type store interface {
	append(payload []byte, urgent bool, r buffer.Receipt) error
	// next takes the next messages, as many as are there, and settles them.
	next() (int, error)
	// commits is how many there were, as long as nothing is drained.
	commits() int64
	close() error
}

// kind is a way to store.
type kind struct {
	Plain    bool
	Compress bool
	PageSize int
}

func (k kind) String() string {
	switch {
	case k.Plain:
		return "plain log"
	case k.Compress:
		return fmt.Sprintf("zstd, pages of %d KiB", k.PageSize>>10)
	}
	return fmt.Sprintf("raw, pages of %d KiB", k.PageSize>>10)
}

// kinds are those of the buffer.
var kinds = []kind{{PageSize: 4 << 10}, {PageSize: 4 << 10, Compress: true}, {PageSize: 16 << 10}, {PageSize: 16 << 10, Compress: true}}

func (k kind) open(dir string) (store, error) {
	if k.Plain {
		return openPlain(filepath.Join(dir, "plain"))
	}
	return openBuffer(filepath.Join(dir, "buffer"), buffer.Options{PageSize: k.PageSize, Compress: k.Compress})
}

// bufferStore is the buffer with one outbox.
type bufferStore struct {
	b      *buffer.Buffer
	copies []buffer.Copy
	reader *buffer.Reader
	dst    []buffer.Delivery
}

func openBuffer(dir string, o buffer.Options) (*bufferStore, error) {
	b, err := buffer.Open(dir, o)
	if err != nil {
		return nil, err
	}
	s := &bufferStore{b: b, dst: make([]buffer.Delivery, take)}
	outbox, err := b.Outbox("cloud", buffer.Telemetry)
	if err != nil {
		return nil, err
	}
	s.copies = []buffer.Copy{{Outbox: outbox, QoS: 1}}
	s.reader, err = b.Reader(outbox)
	return s, err
}

func (s *bufferStore) append(payload []byte, urgent bool, r buffer.Receipt) error {
	m := buffer.Message{Topic: "devices/em-0001/telemetry", Payload: payload, QoS: 1, Urgent: urgent, Copies: s.copies}
	return s.b.Append(context.Background(), buffer.Telemetry, &m, r)
}

func (s *bufferStore) next() (int, error) {
	n, err := s.reader.TryNext(s.dst)
	for i := range s.dst[:n] {
		s.dst[i].Outbox.Settle(s.dst[i].Ordinal, buffer.Delivered)
	}
	return n, err
}

func (s *bufferStore) commits() int64 { return s.b.Stats().Blocks }

func (s *bufferStore) close() error {
	s.reader.Close()
	return s.b.Close()
}

// receipt waits for one append.
type receipt chan error

func (r receipt) Stored(err error) { r <- err }

// appendFor has so many goroutines append one message after the other and
// returns how many were stored, in all and a second.
func appendFor(s store, waiting int, d time.Duration) (n int, perSecond float64, err error) {
	var stored atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	began := time.Now()
	for i := range waiting {
		wg.Go(func() {
			done := make(receipt, 1)
			for n := i; time.Since(began) < d; n += waiting {
				err := s.append(payloads()[n%len(payloads())], true, done)
				if err == nil {
					err = <-done
				}
				if err != nil {
					failed.Store(&err)
					return
				}
				stored.Add(1)
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return 0, 0, *err
	}
	return int(stored.Load()), float64(stored.Load()) / time.Since(began).Seconds(), nil
}

// batch counts the appends that are on their way.
type batch struct {
	sync.WaitGroup
	failed atomic.Pointer[error]
}

func (b *batch) Stored(err error) {
	if err != nil {
		b.failed.Store(&err)
	}
	b.Done()
}

func (b *batch) wait() error {
	b.Wait()
	if err := b.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// fill appends n messages in groups, each of which is one commit if the store
// lingers long enough: only its last message is urgent.
func fill(s store, n, group int) error {
	var b batch
	for i := 0; i < n; i += group {
		for j := range min(group, n-i) {
			b.Add(1)
			if err := s.append(payloads()[(i+j)%len(payloads())], j == group-1 || i+j == n-1, &b); err != nil {
				return err
			}
		}
		if err := b.wait(); err != nil {
			return err
		}
	}
	return nil
}

// drain takes n messages and returns how many it took a second.
func drain(s store, n int) (perSecond float64, err error) {
	began := time.Now()
	for left := n; left > 0; {
		got, err := s.next()
		if err != nil {
			return 0, err
		}
		if got == 0 {
			return 0, fmt.Errorf("%d of %d messages are there", n-left, n)
		}
		left -= got
	}
	return float64(n) / time.Since(began).Seconds(), nil
}
