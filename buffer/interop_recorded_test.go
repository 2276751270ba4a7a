//go:build interop

package buffer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// recordedProcess is the process that is recorded. It ends by SIGKILL when it
// has appended everything, or closes the buffer. A line goes out before what it
// says can be forgotten: "stored" after the receipt, "got" before the settle.
func recordedProcess(t *testing.T, spec string) {
	var r recorded
	if err := json.Unmarshal([]byte(spec), &r); err != nil {
		t.Fatal(err)
	}
	b, err := Open(r.Dir, Options{
		PageSize: r.Options.PageSize, Compress: r.Options.Compress, GenerationBytes: r.Options.GenerationBytes,
		Linger: 2 * time.Millisecond, Limits: Limits{MaxBytes: r.Options.MaxBytes},
	})
	if err != nil {
		t.Fatal(err)
	}
	var queues []*Outbox
	for _, q := range recordedQueues {
		queues = append(queues, outbox(t, b, q.name, q.class))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var drainers sync.WaitGroup
	for i, of := range [][]int{{0, 2}, {1}} {
		var outboxes []*Outbox
		for _, q := range of {
			outboxes = append(outboxes, queues[q])
		}
		rd, err := b.Reader(outboxes...)
		if err != nil {
			t.Fatal(err)
		}
		rng := rand.New(rand.NewPCG(r.Seed, uint64(10*r.Life+i)))
		drainers.Go(func() { recordedDrain(t, ctx, rd, queues, rng) })
	}
	var wg sync.WaitGroup
	for a := range recordedAppenders {
		wg.Go(func() {
			recordedAppend(b, queues, a, r)
			if !r.Close { // in the midst of what the others do
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}
		})
	}
	wg.Wait()
	cancel()
	drainers.Wait()
	if err := b.Close(); err != nil && !r.Faults {
		t.Fatal(err)
	}
}

// numberedReceipt says which message was stored.
type numberedReceipt struct {
	n    int
	done chan<- numberedResult
}

type numberedResult struct {
	n   int
	err error
}

func (r numberedReceipt) Stored(err error) { r.done <- numberedResult{r.n, err} }

func recordedAppend(b *Buffer, queues []*Outbox, a int, r recorded) {
	var copies []Copy
	for _, q := range recordedAppenders[a] {
		copies = append(copies, Copy{Outbox: queues[q], QoS: 1})
	}
	done := make(chan numberedResult, outstanding)
	hear := func() {
		if res := <-done; res.err == nil {
			fmt.Printf("stored %d %d\n", a, res.n)
		}
	}
	waiting := 0
	for n := r.Life*perLife + 1; n <= r.Life*perLife+r.Messages; n++ {
		if waiting == outstanding {
			hear()
			waiting--
		}
		m := Message{Topic: "devices/em-0001/telemetry", Payload: []byte(recordedPayload(a, n)), QoS: 1, Urgent: n%3 == 0, Copies: copies}
		err := b.Append(context.Background(), copies[0].Outbox.Class(), &m, numberedReceipt{n, done})
		for tries := 0; errors.Is(err, ErrFull) && tries < 100; tries++ {
			time.Sleep(time.Millisecond) // a publisher tries again
			err = b.Append(context.Background(), copies[0].Outbox.Class(), &m, numberedReceipt{n, done})
		}
		if err == nil {
			waiting++
		}
	}
	for ; waiting > 0; waiting-- {
		hear()
	}
}

// recordedDrain settles what comes, not quite in order, and falls behind at
// times, so that generations pile up and are dropped.
func recordedDrain(t *testing.T, ctx context.Context, r *Reader, queues []*Outbox, rng *rand.Rand) {
	defer r.Close()
	dst := make([]Delivery, 32)
	for {
		n, err := r.Next(ctx, dst[:1+rng.IntN(len(dst))])
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				t.Error(err) // reading never fails, whatever writing does
			}
			return
		}
		var lines strings.Builder
		for _, d := range dst[:n] {
			payload := string(d.Payload)
			fmt.Fprintf(&lines, "got %d %s\n", slices.Index(queues, d.Outbox), payload[:strings.LastIndex(payload, " ")])
		}
		os.Stdout.WriteString(lines.String())
		for _, i := range rng.Perm(n) {
			dst[i].Outbox.Settle(dst[i].Ordinal, Delivered)
		}
		if rng.IntN(10) == 0 {
			time.Sleep(time.Duration(rng.IntN(40)) * time.Millisecond)
		}
	}
}

// promise is what a recorded process has been told and has said.
type promise struct {
	drops  bool                       // the buffer had limits
	stored []map[recordedMessage]bool // by queue: told stored
	got    []map[recordedMessage]bool // by queue: handed out
}

type recordedMessage struct{ appender, n int }

func newPromise(told []string) *promise {
	p := &promise{}
	for range recordedQueues {
		p.stored = append(p.stored, map[recordedMessage]bool{})
		p.got = append(p.got, map[recordedMessage]bool{})
	}
	for _, line := range told {
		var m recordedMessage
		var q int
		if n, _ := fmt.Sscanf(line, "stored %d %d", &m.appender, &m.n); n == 2 {
			for _, q := range recordedAppenders[m.appender] {
				p.stored[q][m] = true
			}
		} else if n, _ := fmt.Sscanf(line, "got %d %d %d", &q, &m.appender, &m.n); n == 3 {
			p.got[q][m] = true
		}
	}
	return p
}

// check opens the folder, drains it, and says what is not as it was promised.
func (p *promise) check(dir string, o Options) error {
	b, err := Open(dir, o)
	if err != nil {
		return err
	}
	var errs []error
	for i := range recordedQueues {
		if err := p.drain(b, i); err != nil {
			errs = append(errs, fmt.Errorf("%s of class %s: %w", recordedQueues[i].name, recordedQueues[i].class, err))
		}
	}
	if err := b.Close(); err != nil {
		return errors.Join(append(errs, err)...)
	}
	// Drained, it goes on, and remembers.
	if b, err = Open(dir, o); err != nil {
		return errors.Join(append(errs, err)...)
	}
	s := b.Stats()
	if s.Ledger.Difference() != 0 || s.Ledger.Stored != 0 || s.Generations != 0 {
		errs = append(errs, fmt.Errorf("after it was drained and opened again: %+v", s))
	}
	return errors.Join(append(errs, b.Close())...)
}

func (p *promise) drain(b *Buffer, q int) error {
	o, err := b.Outbox(recordedQueues[q].name, recordedQueues[q].class)
	if err != nil {
		return err
	}
	before := o.Ledger()
	if before.Difference() != 0 {
		return fmt.Errorf("the ledger is out by %d: %+v", before.Difference(), before)
	}
	r, err := b.Reader(o)
	if err != nil {
		return err
	}
	defer r.Close()
	out := make(map[recordedMessage]bool)
	var last [4]int // by appender
	dst := make([]Delivery, 64)
	for {
		n, err := r.TryNext(dst)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		for _, d := range dst[:n] {
			var m recordedMessage
			if _, err := fmt.Sscan(string(d.Payload), &m.appender, &m.n); err != nil || !slices.Contains(recordedAppenders[m.appender], q) || string(d.Payload) != recordedPayload(m.appender, m.n) {
				return fmt.Errorf("payload was altered: %q", d.Payload)
			}
			if m.n <= last[m.appender] {
				return fmt.Errorf("of appender %d, %d comes after %d", m.appender, m.n, last[m.appender])
			}
			last[m.appender] = m.n
			out[m] = true
			o.Settle(d.Ordinal, Delivered)
		}
	}
	l := o.Ledger()
	switch {
	case l.Difference() != 0 || l.Stored != 0:
		return fmt.Errorf("drained, the ledger is %+v", l)
	case uint64(len(out)) != before.Stored-(l.Dropped["quarantined"]-before.Dropped["quarantined"]):
		return fmt.Errorf("%d came out, %d were said to be stored: %+v", len(out), before.Stored, l)
	case l.Dropped["quarantined"] != 0:
		return fmt.Errorf("%d are lost: %+v", l.Dropped["quarantined"], l)
	}
	var missing []recordedMessage
	for m := range p.stored[q] {
		if !p.got[q][m] && !out[m] {
			missing = append(missing, m)
		}
	}
	var dropped uint64
	for _, n := range l.Dropped {
		dropped += n
	}
	switch {
	case !p.drops && dropped > 0:
		return fmt.Errorf("%d were dropped without a limit: %+v", dropped, l)
	case uint64(len(missing)) > dropped:
		slices.SortFunc(missing, func(a, b recordedMessage) int { return a.n - b.n })
		return fmt.Errorf("%d of %d that were told stored are missing, %d of them counted as dropped; the first is %v", len(missing), len(p.stored[q]), dropped, missing[0])
	}
	all := maps.Clone(p.stored[q])
	maps.Copy(all, p.got[q])
	if l.Accepted+uint64(len(recordedAppenders)*outstanding*3) < uint64(len(all)) {
		return fmt.Errorf("%d are known to have been accepted: %+v", len(all), l)
	}
	return nil
}
