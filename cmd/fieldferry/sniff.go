package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fieldferry/fieldferry/adapters/serial/port"
)

func sniffCommand() *cobra.Command {
	s := &sniffer{settings: port.Settings{DataBits: 8, StopBits: 1}}
	cmd := &cobra.Command{
		Use:   "sniff PORT",
		Short: "Show what comes over a serial line",
		Long: `sniff shows what comes over a serial port, or a line behind tcp://host:port, in
hexadecimal and as text, with the pauses between, until it gets SIGINT or --for is
over. Without --baud it finds out the rate first, by what of the rates makes text of
what comes. At the end it says how messages seem to be framed, as it would stand in
a site file.

A device that is asked says nothing by itself: --send asks it, each second.

  fieldferry sniff /dev/ttyUSB0
  fieldferry sniff /dev/ttyUSB0 --baud 9600 --send 'SI\r\n'`,
		Args: args(cobra.ExactArgs(1)),
	}
	f := cmd.Flags()
	f.IntVar(&s.settings.Baud, "baud", 0, "of the port; 0 finds it out")
	f.IntVar(&s.settings.DataBits, "data-bits", 8, "of the port: 7 or 8")
	f.StringVar(&s.settings.Parity, "parity", "none", "of the port: none, even or odd")
	f.IntVar(&s.settings.StopBits, "stop-bits", 1, "of the port")
	f.DurationVar(&s.gap, "gap", 50*time.Millisecond, "the pause that parts messages")
	f.DurationVar(&s.listen, "listen", 2*time.Second, "how long each rate is listened to while it is found out")
	f.DurationVar(&s.total, "for", 0, "end after so long; 0 is never")
	send := f.String("send", "", "what to ask, each second, with escapes as \\r and \\x02")
	f.BoolVar(&s.asJSON, "json", false, "print a JSON object for each message, and one for what was found out")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, stop := untilSignal(cmd.Context())
		defer stop()
		if s.total > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, s.total)
			defer cancel()
		}
		text, err := strconv.Unquote(`"` + strings.ReplaceAll(*send, `"`, `\"`) + `"`)
		if err != nil {
			return usageError{fmt.Errorf("--send: %q has a \\ that begins no escape; write \\r, \\n, \\x02 or \\\\", *send)}
		}
		s.send = []byte(text)
		s.address, s.out, s.stderr = args[0], cmd.OutOrStdout(), cmd.ErrOrStderr()
		return s.run(ctx)
	}
	return cmd
}

// sniffer is one run of sniff.
type sniffer struct {
	address  string
	settings port.Settings
	gap      time.Duration
	listen   time.Duration
	total    time.Duration
	send     []byte
	asJSON   bool
	out      io.Writer
	stderr   io.Writer

	sent time.Time // when send was sent last
}

// heardMessage is what came between two pauses, as JSON.
type heardMessage struct {
	AtMs  int64  `json:"atMs"`  // from the beginning
	GapMs int64  `json:"gapMs"` // the pause before
	Hex   string `json:"hex"`
	Text  string `json:"text"`
}

func (s *sniffer) open(ctx context.Context) (port.Port, error) {
	if host, ok := strings.CutPrefix(s.address, "tcp://"); ok {
		return port.Dial(ctx, "tcp", host)
	}
	if err := s.settings.Check(); err != nil {
		return nil, usageError{err}
	}
	return port.Open(s.address, s.settings)
}

func (s *sniffer) run(ctx context.Context) error {
	var found *lineGuess
	if s.settings.Baud == 0 && !strings.HasPrefix(s.address, "tcp://") {
		var err error
		if found, err = s.find(ctx); err != nil {
			return err
		}
		if found == nil {
			fmt.Fprintln(s.stderr, "nothing came; check the cable, and whether the device has to be asked: --send 'SI\\r\\n'")
			return errNo
		}
		s.settings.Baud, s.settings.Parity, s.settings.DataBits = found.Baud, found.Parity, found.DataBits
		if !s.asJSON {
			fmt.Fprintf(s.out, "%d baud, %d data bits, parity %s: %s\n", found.Baud, found.DataBits, found.Parity, found.why())
		}
	}
	p, err := s.open(ctx)
	if err != nil {
		return err
	}
	messages, err := s.show(ctx, p)
	err = errors.Join(err, p.Close())
	form := guessFrame(messages)
	switch {
	case len(messages) == 0 && err == nil:
		fmt.Fprintln(s.stderr, "nothing came; check the cable, and whether the device has to be asked: --send 'SI\\r\\n'")
		return errNo
	case s.asJSON:
		err = errors.Join(err, printJSON(s.out, struct {
			Line  *lineGuess `json:"line,omitempty"`
			Frame string     `json:"frame"`
		}{found, form}))
	case len(messages) > 0:
		fmt.Fprintf(s.out, "\nin a site file:\n%s", siteOf(s.address, &s.settings, form, s.send))
	}
	return err
}

// show prints what comes until ctx ends, and returns the last messages.
func (s *sniffer) show(ctx context.Context, p port.Port) (messages [][]byte, err error) {
	const kept = 200
	var buf [4096]byte
	var message []byte
	began := time.Now()
	var first, last, before time.Time // of the message, of its last byte, and of that of the one before
	end := func() error {
		if len(message) == 0 {
			return nil
		}
		messages = append(messages[max(0, len(messages)-kept+1):], message)
		m := heardMessage{AtMs: first.Sub(began).Milliseconds(), Hex: hex.EncodeToString(message), Text: printable(message)}
		if !before.IsZero() {
			m.GapMs = first.Sub(before).Milliseconds()
		}
		before, message = last, nil
		if s.asJSON {
			return printJSON(s.out, m)
		}
		return m.print(s.out)
	}
	for ctx.Err() == nil {
		if err := s.ask(p); err != nil {
			return messages, err
		}
		n, err := p.Read(buf[:], time.Now().Add(min(s.gap, 50*time.Millisecond)))
		now := time.Now()
		if err != nil {
			return messages, errors.Join(end(), fmt.Errorf("%s: %w", s.address, err))
		}
		if n > 0 {
			if len(message) == 0 {
				first = now
			}
			message, last = append(message, buf[:n]...), now
		}
		if n == 0 && now.Sub(last) >= s.gap || len(message) > 64*1024 {
			if err := end(); err != nil {
				return messages, err
			}
		}
	}
	return messages, end()
}

// ask sends what is to be sent, each second.
func (s *sniffer) ask(p port.Port) error {
	if len(s.send) == 0 || time.Since(s.sent) < time.Second {
		return nil
	}
	s.sent = time.Now()
	return p.Write(s.send)
}

// print prints a message, sixteen bytes a row.
func (m *heardMessage) print(w io.Writer) error {
	b, err := hex.DecodeString(m.Hex)
	if err != nil {
		return err
	}
	if m.GapMs > 0 {
		fmt.Fprintf(w, "           pause of %d ms\n", m.GapMs)
	}
	for i := 0; i < len(b) && err == nil; i += 16 {
		row := b[i:min(i+16, len(b))]
		at := ""
		if i == 0 {
			at = fmt.Sprintf("%.3f", float64(m.AtMs)/1000)
		}
		_, err = fmt.Fprintf(w, "%9s  %-47x  %s\n", at, spaced(row), printable(row))
	}
	return err
}

// spaced prints bytes with a space between.
type spaced []byte

func (s spaced) Format(f fmt.State, verb rune) {
	text := fmt.Sprintf("% x", []byte(s))
	if w, ok := f.Width(); ok {
		text = fmt.Sprintf("%-*s", w, text)
	}
	fmt.Fprint(f, text)
}

// printable is what bytes say, with escapes for what is no text.
func printable(b []byte) string {
	var out strings.Builder
	for _, c := range b {
		switch {
		case c == '\r':
			out.WriteString(`\r`)
		case c == '\n':
			out.WriteString(`\n`)
		case c == '\t':
			out.WriteString(`\t`)
		case c == '\\':
			out.WriteString(`\\`)
		case c < ' ' || c > '~':
			fmt.Fprintf(&out, `\x%02X`, c)
		default:
			out.WriteByte(c)
		}
	}
	return out.String()
}

// find tries the rates on what comes, and returns the best; nil if nothing comes.
func (s *sniffer) find(ctx context.Context) (*lineGuess, error) {
	var best *lineGuess
	for _, parity := range []string{"none", "even"} {
		for _, baud := range []int{9600, 19200, 115200, 38400, 4800, 2400, 57600, 1200, 300, 230400} {
			s.settings.Baud, s.settings.Parity, s.settings.DataBits = baud, parity, 8
			fmt.Fprintf(s.stderr, "listening at %d baud, parity %s …\n", baud, parity)
			sample, err := s.sample(ctx, best == nil)
			switch {
			case err != nil:
				return nil, err
			case ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled):
				return nil, errors.New("interrupted")
			case len(sample) == 0 && (best == nil || ctx.Err() != nil):
				return best, nil
			case len(sample) == 0:
				continue
			}
			g := guessLine(baud, parity, sample)
			if best == nil || g.Score > best.Score {
				best = &g
			}
			if best.Score > 0.97 && best.Bytes >= 24 {
				return best, nil
			}
		}
		if best.Score > 0.8 {
			break
		}
	}
	return best, nil
}

// sample reads for a while. The first time it waits until something comes.
func (s *sniffer) sample(ctx context.Context, first bool) ([]byte, error) {
	p, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	s.sent = time.Time{}
	var all []byte
	var buf [1024]byte
	until := time.Now().Add(s.listen)
	for ctx.Err() == nil && len(all) < 256 && (time.Now().Before(until) || first && len(all) == 0) {
		if err := s.ask(p); err != nil {
			return nil, err
		}
		n, err := p.Read(buf[:], time.Now().Add(50*time.Millisecond))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.address, err)
		}
		if len(all) == 0 && n > 0 {
			until = time.Now().Add(s.listen)
		}
		all = append(all, buf[:n]...)
	}
	return all, nil
}
