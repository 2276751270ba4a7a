package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/fieldferry/fieldferry/buffer"
)

// demoView shows how the demo goes: drawn anew in a terminal, a line a second
// elsewhere, nothing with --json.
type demoView struct {
	out      io.Writer
	json     bool
	terminal bool
	length   time.Duration

	shown    time.Time // when the last frame was drawn
	lines    int       // of it
	polled   uint64    // until then
	received uint64
}

func newDemoView(out io.Writer, json bool, length time.Duration) *demoView {
	v := &demoView{out: out, json: json, length: length, shown: time.Now()}
	if f, ok := out.(*os.File); ok {
		v.terminal = !json && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
	}
	return v
}

func (v *demoView) show(r *demoRig, elapsed time.Duration) {
	every := time.Second
	if v.terminal {
		every = 500 * time.Millisecond
	}
	since := time.Since(v.shown)
	if v.json || since < every {
		return
	}
	v.shown = time.Now()
	polled, received := r.gateway.Readings(), r.cloud.Distinct()
	in := float64(polled-v.polled) / since.Seconds()
	out := float64(received-v.received) / since.Seconds()
	v.polled, v.received = polled, received
	line := "connected"
	switch {
	case !r.cutAt.IsZero():
		line = fmt.Sprintf("CUT for %.1f s", time.Since(r.cutAt).Seconds())
	case !r.gateway.Bridges()[0].Connected:
		line = "reconnecting"
	}
	l, stats := r.ledger(), r.gateway.Buffer().Stats()
	if !v.terminal {
		online := 0
		for _, d := range r.gateway.Devices() {
			if d.Online {
				online++
			}
		}
		fmt.Fprintf(v.out, "%5.1f s  devices %d of %d online  polled %.0f/s  received upstream %.0f/s  stored %d  upstream %s\n",
			elapsed.Seconds(), online, demoUnits, in, out, l.Stored, line)
		return
	}
	var b strings.Builder
	if v.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", v.lines)
	}
	row := func(format string, args ...any) {
		fmt.Fprintf(&b, format+"\x1b[K\n", args...)
		v.lines++
	}
	v.lines = 0
	row("Fieldferry demo, %.1f of %.0f s", elapsed.Seconds(), v.length.Seconds())
	row("")
	for _, d := range r.gateway.Devices() {
		state := "waiting"
		if d.Known {
			state = "online"
			if !d.Online {
				state = "offline: " + d.Reason
			}
		}
		row("  %s  %-20s %6d readings", d.ID, state, d.Readings)
	}
	row("")
	row("  field     %6.1f readings/s", in)
	row("  buffer    %6d stored, %d KiB on disk", l.Stored, stats.DiskBytes>>10)
	row("  line      %s, %s so far", line, count(r.outages, "outage"))
	row("  upstream  %6.1f messages/s received", out)
	row("")
	row("  accepted %d = delivered %d + stored %d + parked %d + uncertain %d + dropped %d",
		l.Accepted, l.Delivered, l.Stored, l.Parked, l.Uncertain, sum(l.Dropped))
	io.WriteString(v.out, b.String())
}

// end prints the figures. l is the gateway's own ledger.
func (v *demoView) end(r demoResult, l buffer.Ledger) {
	if v.json {
		printJSON(v.out, r)
		return
	}
	verdict := "balances"
	if d := l.Difference(); d != 0 {
		verdict = fmt.Sprintf("is out by %d", d)
	}
	fmt.Fprintf(v.out, `
The gateway's ledger %s:
  accepted %d = delivered %d + stored %d + parked %d + uncertain %d + dropped %d
A subscriber of the upstream received:
  %d different messages, %d duplicates, over %s
  lost %d
`, verdict, l.Accepted, l.Delivered, l.Stored, l.Parked, l.Uncertain, sum(l.Dropped),
		r.Delivered, r.Duplicates, count(r.Outages, "outage"), r.Lost)
}

func sum(m map[string]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}
