package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/gateway"
	"github.com/fieldferry/fieldferry/gateway/config"
	"github.com/fieldferry/fieldferry/gateway/health"
)

// statusWithin is how long a gateway may take to answer; its own probes take 5 s.
const statusWithin = 10 * time.Second

func statusCommand() *cobra.Command {
	var dataDir string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status FILE",
		Short: "Say how a running gateway stands",
		Long: `status asks the gateway that runs with a site file on this machine. The gateway
sends a message through its local broker, and one to each upstream and back, and tells
how long they took. It exits with 1 if one does not come back, or no gateway runs.`,
		Args: args(cobra.MaximumNArgs(1)),
	}
	find := siteFile(cmd)
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "the gateway's data `DIR`, instead of a site file")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if dataDir == "" {
			path, err := find(args)
			if err != nil {
				return err
			}
			c, problems := config.Load(path, config.Options{})
			if c == nil {
				for _, p := range problems {
					fmt.Fprintln(cmd.ErrOrStderr(), p)
				}
				return errNo
			}
			dataDir = c.Gateway.DataDir
		}
		return status(cmd.Context(), cmd.OutOrStdout(), dataDir, asJSON)
	}
	return cmd
}

func status(ctx context.Context, w io.Writer, dataDir string, asJSON bool) error {
	s, err := askStatus(ctx, dataDir)
	if err != nil {
		return err
	}
	if asJSON {
		err = printJSON(w, s)
	} else {
		err = printStatus(w, s, time.Now())
	}
	if err == nil && s.Health.Status == health.Down {
		err = errNo
	}
	return err
}

// askStatus asks the gateway that has the data folder.
func askStatus(ctx context.Context, dataDir string) (*gateway.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusWithin)
	defer cancel()
	path := gateway.ControlSocket(dataDir)
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://gateway/status", nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("no gateway runs with the data folder %s; start it with 'fieldferry run FILE'", dataDir)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("%s: %w; ask as the user that the gateway runs as, or with sudo", path, os.ErrPermission)
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("the gateway does not answer within %v; its log may say why", statusWithin)
	case err != nil:
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10))
		return nil, fmt.Errorf("the gateway answered %s: %s", res.Status, strings.TrimSpace(string(text)))
	}
	s := new(gateway.Status)
	if err := json.NewDecoder(res.Body).Decode(s); err != nil {
		return nil, fmt.Errorf("read the gateway's answer: %w", err)
	}
	return s, nil
}

func printStatus(to io.Writer, s *gateway.Status, now time.Time) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "gateway\t%s\t%s, up %s, version %s, pid %d\n", s.Gateway, s.Health.Status, since(&s.Started, now), s.Version, s.PID)
	for _, name := range slices.Sorted(maps.Keys(s.Health.Details)) {
		fmt.Fprintf(w, "health\t%s\t%s\n", name, stateText(s.Health.Details[name]))
	}
	for _, a := range s.Alarms {
		fmt.Fprintf(w, "alarm\t%s\t%s since %s: %s\n", strings.TrimSpace(a.Name+" "+a.Subject), a.Severity, since(&a.Since, now), a.Text)
	}
	b := &s.Broker
	fmt.Fprintf(w, "broker\t%s\t%d received, %d sent, %d refused, %d dropped; %d retained\n",
		count(b.Clients, "client"), b.Received, b.Sent, b.Refused, b.Dropped, b.Retained)
	for i := range s.Bridges {
		b := &s.Bridges[i]
		how := "not connected"
		if b.Connected {
			how = "connected"
		}
		fmt.Fprintf(w, "bridge\t%s\t%s %s %s\n", b.Name, how, b.URL, forHowLong(b.Since, now))
		if !b.Connected && b.LastError != "" {
			fmt.Fprintf(w, "\t\t%s\n", b.LastError)
		}
		fmt.Fprintf(w, "\t\t%s; %d in flight, %d came down\n", ledgerText(&b.Ledger), b.InFlight, b.Down)
	}
	for _, a := range s.Adapters {
		text := ""
		if n := a.LinkCounts; n != nil {
			how := "not connected"
			if n.Connected {
				how = "connected"
			}
			text = fmt.Sprintf("%s; %d polls, %d failed, %d late; %d online, %d offline", how, n.Polls, n.Failed, n.Late, n.Online, n.Offline)
		}
		fmt.Fprintf(w, "adapter\t%s\t%s\n", a.Name, text)
		if n := a.LinkCounts; n != nil && !n.Connected && n.LastError != "" {
			fmt.Fprintf(w, "\t\t%s\n", n.LastError)
		}
		for i := range a.Messages {
			m := &a.Messages[i]
			fmt.Fprintf(w, "messages\t%s\t%d good, %d other, %d with a wrong check, %d too long, %d cut\n", m.Device, m.Good, m.Other, m.Wrong, m.TooLong, m.Cut)
			if last, err := hex.DecodeString(m.LastHex); err == nil && m.LastWhat != "" {
				fmt.Fprintf(w, "\t\tthe last of these, %s, %s: %s\n", m.LastWhat, ago(m.LastTime, now), printable(last))
			}
		}
	}
	for _, d := range s.Devices {
		text := d.State
		if d.Reason != "" && d.State != "online" {
			text += ": " + d.Reason
		}
		if d.Since != nil {
			text += " " + forHowLong(d.Since, now)
		}
		fmt.Fprintf(w, "device\t%s\t%s; %d readings, last %s\n", d.ID, text, d.Readings, ago(d.Last, now))
	}
	f := &s.Buffer
	fmt.Fprintf(w, "buffer\t%.1f MB\t%s; %d rejected\n", float64(f.DiskBytes)/1e6, ledgerText(&f.Ledger), f.Rejected)
	return w.Flush()
}

func stateText(s health.State) string {
	text := string(s.Status)
	if s.LatencyMs >= 0 {
		text += fmt.Sprintf(", %.4g ms", s.LatencyMs)
	}
	if s.Error != "" {
		text += ": " + s.Error
	}
	return text
}

func ledgerText(l *buffer.Ledger) string {
	text := fmt.Sprintf("accepted %d = delivered %d + stored %d", l.Accepted, l.Delivered, l.Stored)
	if l.Parked > 0 {
		text += fmt.Sprintf(" + parked %d", l.Parked)
	}
	if l.Uncertain > 0 {
		text += fmt.Sprintf(" + uncertain %d", l.Uncertain)
	}
	for _, reason := range slices.Sorted(maps.Keys(l.Dropped)) {
		if n := l.Dropped[reason]; n > 0 {
			text += fmt.Sprintf(" + %s %d", reason, n)
		}
	}
	return text
}

// since is how long ago a time was, to the second.
func since(t *time.Time, now time.Time) string {
	return max(now.Sub(*t), 0).Round(time.Second).String()
}

func forHowLong(t *time.Time, now time.Time) string {
	if t == nil {
		return ""
	}
	return "for " + since(t, now)
}

func ago(t *time.Time, now time.Time) string {
	if t == nil {
		return "never"
	}
	return since(t, now) + " ago"
}
