package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// TestBufferScripts runs the scripts in testdata/buffer. They have two commands
// more: folder makes a data folder, and damage spoils what is stored in one.
func TestBufferScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/buffer", RequireExplicitExec: true, RequireUniqueNames: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"folder": makeDataFolder, "damage": damageFolder},
	})
}

// receipts tells how appends ended.
type receipts chan error

func (r receipts) Stored(err error) { r <- err }

// makeDataFolder is the command "folder DIR [running]": two destinations, of
// whose messages some are delivered, and two are parked.
func makeDataFolder(ts *testscript.TestScript, _ bool, args []string) {
	b, err := buffer.Open(filepath.Join(ts.MkAbs(args[0]), "buffer"), buffer.Options{Linger: time.Hour, PageSize: 4096, GenerationBytes: 2 << 10})
	ts.Check(err)
	cloud, err := b.Outbox("bridge/cloud/0", buffer.Telemetry)
	ts.Check(err)
	alerts, err := b.Outbox("bridge/cloud/0", buffer.Alert)
	ts.Check(err)
	put := func(n int, o *buffer.Outbox, m func(i int) buffer.Message) {
		r := make(receipts, n)
		for i := range n {
			m := m(i)
			m.QoS, m.Urgent = 1, i%10 == 9
			m.Copies = []buffer.Copy{{Outbox: o, Topic: "acme/" + m.Topic, QoS: 1}}
			ts.Check(b.Append(context.Background(), o.Class(), &m, r))
		}
		for range n {
			ts.Check(<-r)
		}
	}
	put(100, cloud, func(i int) buffer.Message {
		m := buffer.Message{Topic: "devices/em-1/telemetry", Payload: fmt.Appendf(nil, `{"power":%d}`, i)}
		if i == 40 {
			m.Payload, m.Expiry, m.Retain = []byte{0xFF, 0x00}, time.Hour, true
			m.Props = packet.Properties{}.AppendUint(packet.PayloadFormat, 1).AppendText(packet.ContentType, "x/y").AppendUser("seq", "o.1.41")
		}
		return m
	})
	put(10, alerts, func(i int) buffer.Message {
		return buffer.Message{Topic: "devices/em-1/alerts", Payload: fmt.Appendf(nil, "alert %d <&>", i)}
	})
	r, err := b.Reader(cloud, alerts)
	ts.Check(err)
	for n := 0; n < 42; { // alerts first
		all := make([]buffer.Delivery, 1)
		k, err := r.Next(context.Background(), all)
		ts.Check(err)
		for i := range all[:k] {
			d := &all[i]
			if d.Outbox == alerts && d.Ordinal <= 2 {
				ts.Check(alerts.Park(d, "not authorised (0x87)"))
			} else {
				d.Outbox.Settle(d.Ordinal, buffer.Delivered)
			}
			n++
		}
	}
	r.Close()
	if len(args) == 1 {
		ts.Check(b.Close())
		return
	}
	ts.Defer(func() { ts.Check(b.Close()) })
	for deadline := time.Now().Add(10 * time.Second); ; { // until the marks are durable
		f, err := buffer.Inspect(filepath.Join(ts.MkAbs(args[0]), "buffer"))
		ts.Check(err)
		s, err := f.Stats()
		ts.Check(err)
		ts.Check(f.Close())
		if s.Ledger.Stored == 68 {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("the marks did not become durable: %+v", s.Ledger)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// damageFolder is the command "damage DIR": it flips bits in all stored blocks of
// telemetry.
func damageFolder(ts *testscript.TestScript, _ bool, args []string) {
	files, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "buffer", "telemetry", "*.db"))
	ts.Check(err)
	n := 0
	for _, path := range files {
		p, err := os.ReadFile(path)
		ts.Check(err)
		for at := 0; ; at++ {
			i := bytes.Index(p[at:], []byte("FFB1"))
			if i < 0 {
				break
			}
			at += i
			p[at+64+60] ^= 1
			n++
		}
		ts.Check(os.WriteFile(path, p, 0o600))
	}
	if n == 0 {
		ts.Fatalf("nothing is stored in %s", args[0])
	}
}

func TestFormatBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 5 << 30: "5.0 GiB", 1 << 62: "4.0 EiB"} {
		if got := formatBytes(n); got != want {
			t.Errorf("%d bytes are %q, want %q", n, got, want)
		}
	}
}

// TestVerifiedJSON makes sure that the answer and the figures are on one level.
func TestVerifiedJSON(t *testing.T) {
	dir := t.TempDir()
	b, err := buffer.Open(dir, buffer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	if code := run([]string{"buffer", "verify", "--json", dir}, strings.NewReader(""), &out, &errs); code != 0 {
		t.Fatalf("exit %d: %s", code, errs.String())
	}
	var v struct {
		OK          bool             `json:"ok"`
		Blocks      *uint64          `json:"blocks"`
		Differences *uint64          `json:"differences"`
		Damaged     *uint64          `json:"damaged"`
		Outboxes    *json.RawMessage `json:"outboxes"`
	}
	if err := json.Unmarshal(out.Bytes(), &v); err != nil || !v.OK || v.Blocks == nil || v.Differences == nil || v.Damaged == nil || v.Outboxes == nil {
		t.Errorf("%s: %v", out.String(), err)
	}
}
