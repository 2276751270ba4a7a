package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// bench is one run over the buffer.
type bench struct {
	dir    string
	rounds int
	turns  int           // of appends
	each   time.Duration // a turn
	wear   time.Duration
	linger time.Duration
	rates  []int // readings a second
	full   bool
	out    io.Writer // progress
	report report
}

// report is what --json prints.
type report struct {
	CPUs     int      `json:"cpus"`
	Go       string   `json:"go"`
	SyncP50  float64  `json:"fdatasync_p50_ms"`
	Messages int      `json:"message_bytes"`
	Figures  []figure `json:"figures"`
}

// figure is one result.
type figure struct {
	Part  string  `json:"part"`
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Limit string  `json:"limit,omitempty"`
	Met   *bool   `json:"met,omitempty"`
}

func (b *bench) add(part, name string, value float64, unit string) {
	b.put(figure{Part: part, Name: name, Value: value, Unit: unit})
}

func (b *bench) atLeast(part, name string, value, limit float64, unit string) {
	met := value >= limit
	b.put(figure{part, name, value, unit, fmt.Sprintf(">= %g", limit), &met})
}

func (b *bench) atMost(part, name string, value, limit float64, unit string) {
	met := value <= limit
	b.put(figure{part, name, value, unit, fmt.Sprintf("<= %g", limit), &met})
}

func (b *bench) put(f figure) {
	b.report.Figures = append(b.report.Figures, f)
	fmt.Fprintf(b.out, "%s: %s: %.4g %s %s\n", f.Part, f.Name, f.Value, f.Unit, verdict(f))
}

func verdict(f figure) string {
	switch {
	case f.Met == nil:
		return ""
	case *f.Met:
		return "(" + f.Limit + ")"
	}
	return "(" + f.Limit + ": MISSED)"
}

// parts are what can be measured, in the order in which it is.
var partNames = []string{"append", "bytes", "drain", "depth", "memory", "replay", "wear"}

func (b *bench) part(name string) func(context.Context) error {
	return map[string]func(context.Context) error{
		"append": b.measureAppend, "bytes": b.measureBytes, "drain": b.measureDrain, "depth": b.measureDepth,
		"memory": b.measureMemory, "replay": b.measureReplay, "wear": b.measureWear,
	}[name]
}

func bufferCommand() *cobra.Command {
	b := &bench{}
	var parts []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "buffer",
		Short: "Measure the buffer against a plain segmented log",
		Long: `Measures the buffer with messages of 200 bytes, and holds what it finds against
the limits that the project has set itself; it exits with 1 if one is missed.

Rates are ratios to a plain segmented log that writes and syncs what waits (write
and fdatasync, segments of 32 MiB), measured in turns with the buffer: each ratio
is of two turns that follow one another, and the median counts. The log takes what
waits when the disk is free; the buffer lets those come back first whom the commit
before has answered. Bytes written are what the process hands to write(2).

The parts, each of which can be had alone with --part:

  append  messages stored while 64 or 1,000 wait at a time
  bytes   bytes written for each byte of payload, by messages in a commit
  drain   messages read and settled from the disk
  depth   10 million stored: opened after kill -9 (median of six kills), drained,
          and what is written afterwards
  memory  4 million stored and drained by processes that may have 96 MiB of memory,
          page cache included; without root, or where control groups cannot be made,
          only GOMEMLIMIT bounds them, and the figure says so
  replay  2 million drained while 10,000 a second are appended
  wear    bytes written a day by polled readings, with the default settings

All of them, at full size:

  fieldbench buffer --full --dir FOLDER

FOLDER lies on the disk that is to be measured; 3 GB are needed. Neighbours that
use the disk or the processors move every rate, and less so the ratios.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b.out = cmd.ErrOrStderr()
			if b.dir == "" {
				dir, err := os.MkdirTemp("", "fieldbench-")
				if err != nil {
					return err
				}
				defer os.RemoveAll(dir)
				b.dir = dir
			}
			for _, p := range parts {
				if !slices.Contains(partNames, p) {
					return usageError{fmt.Errorf("there is no part %q; the parts are %s", p, strings.Join(partNames, ", "))}
				}
			}
			if err := b.begin(); err != nil {
				return err
			}
			for _, p := range partNames {
				if len(parts) > 0 && !slices.Contains(parts, p) {
					continue
				}
				if err := b.part(p)(cmd.Context()); err != nil {
					return fmt.Errorf("%s: %w", p, err)
				}
			}
			return b.end(cmd.OutOrStdout(), asJSON)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&parts, "part", nil, "what to measure: "+strings.Join(partNames, ", ")+" (default all)")
	f.StringVar(&b.dir, "dir", "", "a folder on the disk to measure (default a temporary one)")
	f.IntVar(&b.turns, "turns", 45, "how often appends are measured; the median counts")
	f.DurationVar(&b.each, "time", 100*time.Millisecond, "how long appends are measured each time")
	f.IntVar(&b.rounds, "rounds", 5, "how often draining and replaying are measured; the median counts")
	f.DurationVar(&b.wear, "wear-time", 2*time.Minute, "how long wear is measured")
	f.DurationVar(&b.linger, "wear-linger", defaultLinger, "buffer.linger while it is")
	f.IntSliceVar(&b.rates, "rates", []int{1, 50, 1000, 10000}, "readings a second of which wear is measured, all at once")
	f.BoolVar(&b.full, "full", false, "measure 10 million stored, 4 million in little memory, 2 million replayed; else a tenth")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	cmd.AddCommand(workerCommand())
	return cmd
}

// size is a number of messages, or a tenth of it.
func (b *bench) size(full int) int {
	if b.full {
		return full
	}
	return full / 10
}

// begin notes what the machine is.
func (b *bench) begin() (err error) {
	b.report = report{CPUs: runtime.NumCPU(), Go: runtime.Version(), Messages: messageBytes}
	b.report.SyncP50, err = syncTime(b.dir)
	return err
}

// beginIn is begin with a folder below dir of its own for all that is measured; remove
// takes it away.
func (b *bench) beginIn(dir string) (remove func(), err error) {
	if dir, err = os.MkdirTemp(dir, "fieldbench-"); err != nil {
		return nil, err
	}
	remove = func() { os.RemoveAll(dir) }
	if b.dir, err = filepath.Abs(dir); err == nil {
		err = b.begin()
	}
	if err != nil {
		remove()
		return nil, err
	}
	return remove, nil
}

// end prints the figures; the error is errMissed if one misses its limit.
func (b *bench) end(w io.Writer, asJSON bool) error {
	if err := b.print(w, asJSON); err != nil {
		return err
	}
	if slices.ContainsFunc(b.report.Figures, func(f figure) bool { return f.Met != nil && !*f.Met }) {
		return errMissed
	}
	return nil
}

func (b *bench) print(w io.Writer, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(b.report)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "%d CPUs, %s, fdatasync %.2f ms (median), messages of %d bytes\n", b.report.CPUs, b.report.Go, b.report.SyncP50, b.report.Messages)
	for _, f := range b.report.Figures {
		fmt.Fprintf(t, "%s\t%s\t%.4g %s\t%s\n", f.Part, f.Name, f.Value, f.Unit, verdict(f))
	}
	return t.Flush()
}

// syncTime is the median of an append and its fdatasync, ms.
func syncTime(dir string) (float64, error) {
	dir, err := os.MkdirTemp(dir, "sync-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	l, err := openPlain(dir)
	if err != nil {
		return 0, err
	}
	var times []float64
	for range 100 {
		done := make(receipt, 1)
		began := time.Now()
		if err := errors.Join(l.append(payloads()[0], true, done), <-done); err != nil {
			return 0, errors.Join(err, l.close())
		}
		times = append(times, float64(time.Since(began))/float64(time.Millisecond))
	}
	return median(times), l.close()
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

func percentile(v []time.Duration, p float64) time.Duration {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return v[min(len(v)-1, int(float64(len(v))*p/100))]
}
