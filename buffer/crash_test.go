package buffer

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

var kills = flag.Int("kills", 50, "how often TestKill ends the process with SIGKILL")

const (
	crashDirEnv = "FIELDFERRY_TEST_CRASH_DIR"
	appenders   = 16
)

// TestKill runs appenders and a drainer in a process of their own and kills it,
// again and again, on one folder. Whatever an appender was told is stored must
// come out, in each appender's order, and the ledger must balance.
func TestKill(t *testing.T) {
	if dir := os.Getenv(crashDirEnv); dir != "" {
		crashChild(t, dir)
		return
	}
	if testing.Short() {
		t.Skip("kills a process many times")
	}
	dir := t.TempDir()
	var c crashRecord
	for range *kills {
		c.run(t, dir, time.Duration(5+rand.IntN(120))*time.Millisecond)
	}
	c.finish(t, dir)
}

// crashRecord is what came out of the child's pipe over all its lives.
type crashRecord struct {
	stored  [appenders]int // highest number that was acknowledged
	got     [appenders]int // highest number that was delivered; all below were too
	dups    int
	perKill int // most duplicates after one kill
}

func (c *crashRecord) run(t *testing.T, dir string, life time.Duration) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKill$", "-test.count=1")
	cmd.Env = append(os.Environ(), crashDirEnv+"="+dir, "FIELDFERRY_TEST_CRASH_FROM="+c.from())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	var timer *time.Timer
	dups := c.dups
	for lines.Scan() {
		if timer == nil { // it has opened the buffer
			timer = time.AfterFunc(life, func() { cmd.Process.Kill() })
		}
		c.line(t, lines.Text())
	}
	if timer == nil {
		t.Fatal("the child did not open the buffer")
	}
	timer.Stop()
	if err := cmd.Wait(); err == nil {
		t.Fatal("the child ended by itself")
	}
	c.perKill = max(c.perKill, c.dups-dups)
}

func (c *crashRecord) from() string {
	var s []string
	for i := range appenders {
		// Numbers that were neither acknowledged nor delivered may be used again.
		s = append(s, fmt.Sprint(max(c.stored[i], c.got[i])))
	}
	return strings.Join(s, ",")
}

func (c *crashRecord) line(t *testing.T, line string) {
	t.Helper()
	var what string
	var i, n int
	if k, err := fmt.Sscanf(line, "%s %d %d", &what, &i, &n); k != 3 || err != nil {
		return // cut off by the kill, or the test's own
	}
	switch what {
	case "stored":
		c.stored[i] = max(c.stored[i], n)
	case "got":
		switch {
		case n <= c.got[i]:
			c.dups++
		case n == c.got[i]+1:
			c.got[i] = n
		default:
			t.Fatalf("appender %d: %d comes after %d", i, n, c.got[i])
		}
	}
}

func (c *crashRecord) finish(t *testing.T, dir string) {
	t.Helper()
	b := reopen(t, dir)
	defer b.Close()
	o := outbox(t, b, "cloud", Telemetry)
	r, err := b.Reader(o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	dst := make([]Delivery, 100)
	for {
		n, err := r.TryNext(dst)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		for _, d := range dst[:n] {
			c.line(t, "got "+string(d.Payload))
			o.Settle(d.Ordinal, Delivered)
		}
	}
	total := 0
	for i := range appenders {
		total += c.got[i]
		if c.got[i] < c.stored[i] {
			t.Errorf("appender %d: %d of %d acknowledged messages came out", i, c.got[i], c.stored[i])
		}
	}
	l := o.Ledger()
	if l.Difference() != 0 || l.Stored != 0 || l.Delivered != l.Accepted || l.Accepted < uint64(total) {
		t.Errorf("ledger after %d messages: %+v", total, l)
	}
	if total == 0 {
		t.Error("nothing was ever delivered")
	}
	t.Logf("%d kills, %d messages, %d duplicates, %d at most after one kill", *kills, total, c.dups, c.perKill)
}

// crashChild appends and drains until it is killed. A line goes out before what
// it says can be forgotten: "stored" after the receipt, "got" before the settle.
func crashChild(t *testing.T, dir string) {
	b, err := Open(dir, Options{PageSize: 4096, GenerationBytes: 256 << 10})
	if err != nil {
		t.Fatal(err)
	}
	o := outbox(t, b, "cloud", Telemetry)
	r, err := b.Reader(o)
	if err != nil {
		t.Fatal(err)
	}
	var from [appenders]int
	for i, s := range strings.Split(os.Getenv("FIELDFERRY_TEST_CRASH_FROM"), ",") {
		fmt.Sscan(s, &from[i])
	}
	var mu sync.Mutex // guards stdout, so that lines stay whole
	say := func(w io.Writer, p []byte) {
		mu.Lock()
		defer mu.Unlock()
		w.Write(p)
	}
	say(os.Stdout, []byte("open 0 0\n"))
	for i := range appenders {
		go func() {
			done := make(receipt, 1)
			for n := from[i] + 1; ; n++ {
				m := Message{Topic: "t", Payload: fmt.Appendf(nil, "%d %d", i, n), Urgent: true, Copies: []Copy{{Outbox: o}}}
				if b.Append(context.Background(), Telemetry, &m, done) != nil || <-done != nil {
					return
				}
				say(os.Stdout, fmt.Appendf(nil, "stored %d %d\n", i, n))
			}
		}()
	}
	dst := make([]Delivery, 64)
	for {
		n, err := r.Next(context.Background(), dst)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		for _, d := range dst[:n] {
			fmt.Fprintf(&out, "got %s\n", d.Payload)
		}
		say(os.Stdout, out.Bytes())
		for _, d := range dst[:n] {
			o.Settle(d.Ordinal, Delivered)
		}
	}
}
