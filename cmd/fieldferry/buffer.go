package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

func bufferCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "buffer",
		Short: "Look into the buffer of a gateway, running or stopped",
		Long: `buffer shows what a gateway has stored. DIR is its data folder (gateway.data_dir
of the site file) or the folder buffer in it. Nothing in it is changed. Of a
gateway that runs, it shows how things were when it looked.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("there is no command %q of buffer%s", args[0], suggestion(cmd, args[0]))}
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(bufferStatCommand(), bufferVerifyCommand(), bufferExportCommand())
	return cmd
}

// inspectBuffer opens the buffer of a data folder.
func inspectBuffer(dir string) (*buffer.Folder, error) {
	if info, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no folder %s; give gateway.data_dir of the site file", dir)
	} else if err == nil && !info.IsDir() {
		return nil, fmt.Errorf("%s is not a folder; give gateway.data_dir of the site file", dir)
	}
	path := dir
	if info, err := os.Stat(filepath.Join(dir, "buffer")); err == nil && info.IsDir() {
		path = filepath.Join(dir, "buffer")
	}
	f, err := buffer.Inspect(path)
	switch {
	case errors.Is(err, buffer.ErrNoBuffer):
		return nil, fmt.Errorf("%s is not a data folder: there is no buffer in it; give gateway.data_dir of the site file", dir)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w; run this as the user that the gateway runs as", err)
	}
	return f, err
}

const snapshotNote = "The gateway runs: this is a snapshot, and what was delivered in the last second may still be shown as stored."

func bufferStatCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "stat DIR",
		Short: "Print the ledger and what is stored",
		Long: `stat prints the ledger of each destination and class, and the files that hold
what is stored.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			f, err := inspectBuffer(args[0])
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, f.Close()) }()
			s, err := f.Stats()
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), s)
			}
			return printFolder(cmd.OutOrStdout(), &s)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printFolder(w io.Writer, s *buffer.FolderStats) error {
	fmt.Fprintf(w, "%s: boot %d, %s on disk\n", s.Dir, s.Boot, formatBytes(s.DiskBytes))
	if s.Running {
		fmt.Fprintln(w, snapshotNote)
	}
	if s.MetaDamage != "" {
		fmt.Fprintf(w, "meta.db is damaged (%s): this is what the generations say; the next start repairs it.\n", s.MetaDamage)
	}
	l := &s.Ledger
	fmt.Fprintf(w, "\naccepted %d = delivered %d + stored %d + parked %d + uncertain %d + dropped %d\n",
		l.Accepted, l.Delivered, l.Stored, l.Parked, l.Uncertain, sum(l.Dropped))
	if d := l.Difference(); d != 0 {
		fmt.Fprintf(w, "The ledger is out by %d: see 'fieldferry buffer verify'.\n", d)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nclass\tdestination\taccepted\tdelivered\tstored\tparked\tuncertain\tdropped\toldest")
	for _, o := range s.Outboxes {
		l := &o.Ledger
		if l.Accepted == 0 {
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%s\t%s\n", o.Class, o.Name,
			l.Accepted, l.Delivered, l.Stored, l.Parked, l.Uncertain, formatDropped(l.Dropped), formatTime(o.Oldest))
	}
	fmt.Fprintln(t, "\nclass\tgenerations\tblocks\trecords\tbytes\ton disk\trejected")
	for _, c := range s.Classes {
		if c.Generations > 0 || c.Rejected > 0 {
			fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%s\t%s\t%d\n", c.Class, c.Generations, c.Blocks, c.Records, formatBytes(c.Bytes), formatBytes(c.DiskBytes), c.Rejected)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(s.Quarantine) > 0 {
		fmt.Fprintln(w, "\nSet aside as damaged; delete them when you have seen them:")
		for _, q := range s.Quarantine {
			fmt.Fprintf(w, "  %s, %s\n", q.File, formatBytes(q.Bytes))
		}
	}
	return nil
}

func formatDropped(dropped map[string]uint64) string {
	n := sum(dropped)
	if n == 0 {
		return "0"
	}
	var reasons []string
	for _, reason := range slices.Sorted(maps.Keys(dropped)) {
		if dropped[reason] > 0 {
			reasons = append(reasons, fmt.Sprintf("%s %d", reason, dropped[reason]))
		}
	}
	return fmt.Sprintf("%d (%s)", n, strings.Join(reasons, ", "))
}

func formatTime(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

func formatBytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1024, 0
	for v >= 1024 && i < len(units)-1 {
		v /= 1024
		i++
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}

func bufferVerifyCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify DIR",
		Short: "Recount everything from the disk",
		Long: `verify reads every block, checks it, counts the messages that are not delivered,
and compares them with the ledger. It exits with 1 if something is damaged or the
ledger is out. It repairs nothing: the gateway does that when it meets the damage.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			f, err := inspectBuffer(args[0])
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, f.Close()) }()
			v, err := f.Verify(cmd.Context())
			if err != nil {
				return err
			}
			var answer error
			if v.Differences() > 0 || v.Damaged > 0 {
				answer = errNo
			}
			if asJSON {
				out := struct {
					OK bool `json:"ok"`
					*buffer.Verified
					Differences uint64 `json:"differences"`
				}{answer == nil, v, v.Differences()}
				return errors.Join(printJSON(cmd.OutOrStdout(), out), answer)
			}
			printVerified(cmd.OutOrStdout(), v)
			return answer
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printVerified(w io.Writer, v *buffer.Verified) {
	fmt.Fprintf(w, "read %s in %s with %s\n", formatBytes(v.Bytes), count(int(v.Blocks), "block"), count(int(v.Records), "message"))
	for _, d := range v.Damage {
		block := ""
		if d.Block != "" {
			block = ", block " + d.Block
		}
		fmt.Fprintf(w, "damaged: %s%s: %s\n", d.File, block, d.Reason)
	}
	if more := int(v.Damaged) - len(v.Damage); more > 0 {
		fmt.Fprintf(w, "damaged: %d more\n", more)
	}
	var found uint64
	for i := range v.Outboxes {
		o := &v.Outboxes[i]
		found += o.Found
		if o.Difference() != 0 {
			fmt.Fprintf(w, "difference: %s of class %s: the ledger is out by %d, with %d stored; %d found on the disk, %d missing\n",
				o.Name, o.Class, o.Difference(), o.Ledger.Stored, o.Found, o.Missing)
		}
	}
	if v.Differences() == 0 {
		fmt.Fprintf(w, "the ledger balances: %d copies are stored, and all are there\n", found)
	}
}

func bufferExportCommand() *cobra.Command {
	var x export
	var path string
	cmd := &cobra.Command{
		Use:   "export DIR",
		Short: "Write the stored or parked messages as JSON lines",
		Long: `export writes each message that is stored for a destination as one line of JSON,
in the order of delivery, class by class. A payload that is no text is in base64,
and "base64" is then true. Times are in ms, expiry is ms after enqueued.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			f, err := inspectBuffer(args[0])
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, f.Close()) }()
			out := cmd.OutOrStdout()
			if path != "" {
				file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
				if errors.Is(err, fs.ErrExist) {
					return fmt.Errorf("%s is there already; choose another name or remove it", path)
				} else if err != nil {
					return err
				}
				defer func() { err = errors.Join(err, file.Close()) }()
				out = file
			}
			w := bufio.NewWriterSize(out, 64<<10)
			x.out, x.err = json.NewEncoder(w), cmd.ErrOrStderr()
			x.out.SetEscapeHTML(false)
			return errors.Join(x.run(cmd, f), w.Flush())
		},
	}
	cmd.Flags().StringVarP(&path, "output", "o", "", "write to `FILE`, which must not be there")
	cmd.Flags().BoolVar(&x.parked, "parked", false, "the messages that their destination has refused")
	cmd.Flags().BoolVar(&x.base64, "base64", false, "every payload in base64")
	return cmd
}

// export writes messages as JSON lines.
type export struct {
	parked, base64 bool
	out            *json.Encoder
	err            io.Writer
}

// exported is a line.
type exported struct {
	Destination string      `json:"destination"`
	Class       string      `json:"class"`
	Ordinal     uint64      `json:"ordinal"`
	Topic       string      `json:"topic"`
	Payload     string      `json:"payload"`
	Base64      bool        `json:"base64,omitempty"`
	QoS         byte        `json:"qos"`
	Retain      bool        `json:"retain"`
	Enqueued    int64       `json:"enqueued"`         // Unix ms
	Expiry      int64       `json:"expiry,omitempty"` // ms after enqueued
	Properties  *properties `json:"properties,omitempty"`
	Parked      int64       `json:"parked,omitempty"` // Unix ms
	Reason      string      `json:"reason,omitempty"`
}

// properties are those of MQTT 5 that go with a message, §3.3.2.3.
type properties struct {
	PayloadFormat   *uint32     `json:"payloadFormat,omitempty"`
	ContentType     string      `json:"contentType,omitempty"`
	ResponseTopic   string      `json:"responseTopic,omitempty"`
	CorrelationData []byte      `json:"correlationData,omitempty"` // base64
	User            [][2]string `json:"user,omitempty"`
	Expiry          int64       `json:"expiry,omitempty"`          // seconds that are left of it
	SubscriptionIDs []uint32    `json:"subscriptionIds,omitempty"` // of what was received
}

// newProperties are the properties that belong to a message; nil if there are none.
func newProperties(p packet.Properties) *properties {
	if len(p) == 0 {
		return nil
	}
	all := &properties{ContentType: p.Text(packet.ContentType), ResponseTopic: p.Text(packet.ResponseTopic)}
	if v, ok := p.Uint(packet.PayloadFormat); ok {
		all.PayloadFormat = &v
	}
	all.CorrelationData, _ = p.Bytes(packet.CorrelationData)
	for k, v := range p.User() {
		all.User = append(all.User, [2]string{k, v})
	}
	return all
}

// run writes all that can be read. What cannot is said on stderr, and makes the
// answer no.
func (x *export) run(cmd *cobra.Command, f *buffer.Folder) error {
	damaged := false
	one := func(d *buffer.Delivery, parked time.Time, reason string, err error) error {
		if err != nil {
			damaged = true
			fmt.Fprintf(x.err, "fieldferry: left out: %v\n", err)
			return cmd.Context().Err()
		}
		line := x.line(d)
		if !parked.IsZero() {
			line.Parked, line.Reason = parked.UnixMilli(), reason
		}
		return errors.Join(x.out.Encode(line), cmd.Context().Err())
	}
	if x.parked {
		for p, err := range f.Parked() {
			if err := one(&p.Delivery, p.Parked, p.Reason, err); err != nil {
				return err
			}
		}
	} else {
		for d, err := range f.Stored() {
			if err := one(&d, time.Time{}, "", err); err != nil {
				return err
			}
		}
	}
	if damaged {
		return errNo
	}
	return nil
}

func (x *export) line(d *buffer.Delivery) *exported {
	line := &exported{
		Destination: d.Outbox.Name(), Class: d.Outbox.Class().String(), Ordinal: d.Ordinal,
		Topic: d.Topic, Payload: string(d.Payload), QoS: d.QoS, Retain: d.Retain,
		Enqueued: d.Enqueued.UnixMilli(), Expiry: d.Expiry.Milliseconds(),
	}
	if x.base64 || !utf8.Valid(d.Payload) {
		line.Payload, line.Base64 = base64.StdEncoding.EncodeToString(d.Payload), true
	}
	line.Properties = newProperties(packet.Properties(d.Props))
	return line
}
