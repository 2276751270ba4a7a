package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/fieldferry/fieldferry/localbroker/client"
	"github.com/fieldferry/fieldferry/localbroker/packet"
	"github.com/fieldferry/fieldferry/localbroker/topic"
)

// maxPayload is the longest payload that fits in a packet with a short topic, MQTT 5 §2.1.4.
const maxPayload = packet.MaxLength - 1024

// pub is the command: it publishes.
type pub struct {
	connection
	qos                                      int
	retain, null, stdin, lines, utf8, json   bool
	file, contentType, responseTopic, correl string
	user                                     []string
	expiry                                   time.Duration

	message client.Message // all but the payload
}

func pubCommand() *cobra.Command {
	var p pub
	cmd := &cobra.Command{
		Use:   "pub TOPIC [PAYLOAD]",
		Short: "Publish to a broker",
		Long: `pub publishes one message, or with --stdin-lines one for each line, and waits until
the broker has it: with QoS 1 and 2 until all are acknowledged. It exits with 1 if
the broker could not be reached or did not take them.

A payload that begins with - stands behind --, as in: pub plant/offset -- -5`,
		Args: args(cobra.RangeArgs(1, 2)),
	}
	p.flags(cmd)
	f := cmd.Flags()
	f.IntVarP(&p.qos, "qos", "q", 0, "0, 1 or 2")
	f.BoolVarP(&p.retain, "retain", "r", false, "have the broker keep it for those who subscribe later")
	f.StringVarP(&p.file, "file", "f", "", "the payload is what `FILE` holds")
	f.BoolVarP(&p.stdin, "stdin", "s", false, "the payload is the whole of the standard input")
	f.BoolVarP(&p.lines, "stdin-lines", "l", false, "each line of the standard input is a message")
	f.BoolVarP(&p.null, "null", "n", false, "the payload is empty; with --retain the broker forgets what it kept")
	f.StringArrayVarP(&p.user, "property", "D", nil, "a user property, `KEY=VALUE`; may come several times")
	f.StringVar(&p.contentType, "content-type", "", "the `TYPE` of the content, such as application/json")
	f.StringVar(&p.responseTopic, "response-topic", "", "the `TOPIC` for an answer")
	f.StringVar(&p.correl, "correlation", "", "the `TEXT` that an answer carries, too (correlation data)")
	f.BoolVar(&p.utf8, "utf8", false, "say that the payload is UTF-8 text (payload format indicator)")
	f.DurationVarP(&p.expiry, "expiry", "e", 0, "when nobody wants it any more, such as 90s or 24h")
	f.BoolVar(&p.json, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := p.check(args); err != nil {
			return usageError{fmt.Errorf("pub: %w", err)}
		}
		if err := p.resolve(); err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		context.AfterFunc(ctx, stop) // a second signal ends what hangs
		return p.run(ctx, cmd, args[1:])
	}
	return cmd
}

// check says what is wrong with how the command was called.
func (p *pub) check(args []string) error {
	if err := topic.CheckName(args[0], 0); err != nil {
		return err
	}
	sources := len(args) - 1
	for _, is := range []bool{p.file != "", p.stdin, p.lines, p.null} {
		if is {
			sources++
		}
	}
	switch {
	case sources == 0:
		return errors.New("what is to be published? Give it behind the topic, or with --file, --stdin, --stdin-lines or --null")
	case sources > 1:
		return errors.New("the payload comes from one place: behind the topic, or --file, --stdin, --stdin-lines or --null")
	case p.qos < 0 || p.qos > 2:
		return fmt.Errorf("--qos %d is none of 0, 1 and 2", p.qos)
	case p.expiry != 0 && (p.expiry < time.Second || p.expiry.Seconds() > 1<<32-1):
		return fmt.Errorf("--expiry %s is not between 1s and 136 years", p.expiry)
	}
	p.message = client.Message{Topic: args[0], QoS: byte(p.qos), Retain: p.retain, Expiry: p.expiry}
	return p.properties()
}

// properties takes the properties of the message from the flags.
func (p *pub) properties() error {
	props := packet.Properties(nil)
	if p.utf8 {
		props = props.AppendUint(packet.PayloadFormat, 1)
	}
	text := func(id packet.Property, flag, s string) error {
		if len(s) > 65535 {
			return fmt.Errorf("%s is longer than 65535 bytes", flag)
		}
		if s != "" {
			props = props.AppendText(id, s)
		}
		return nil
	}
	if p.responseTopic != "" {
		if err := topic.CheckName(p.responseTopic, 0); err != nil {
			return fmt.Errorf("--response-topic: %w", err)
		}
	}
	if err := errors.Join(text(packet.ContentType, "--content-type", p.contentType), text(packet.ResponseTopic, "--response-topic", p.responseTopic),
		text(packet.CorrelationData, "--correlation", p.correl)); err != nil {
		return err
	}
	for _, pair := range p.user {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return fmt.Errorf("--property %q is not KEY=VALUE", pair)
		}
		if len(key) > 65535 || len(value) > 65535 {
			return errors.New("--property is longer than 65535 bytes")
		}
		props = props.AppendUser(key, value)
	}
	if p.version != "5" && (len(props) > 0 || p.expiry > 0) {
		return errors.New("properties and --expiry need --mqtt 5")
	}
	if err := props.CheckPublish(); err != nil {
		return fmt.Errorf("a property is no UTF-8 text: %w", err)
	}
	p.message.Props = props
	return nil
}

// published is what has come of it.
type published struct {
	Topic    string `json:"topic"`
	Messages int    `json:"messages"`
	Bytes    int    `json:"bytes"` // of payload
	QoS      byte   `json:"qos"`
	Retain   bool   `json:"retain"`
}

func (p *pub) run(ctx context.Context, cmd *cobra.Command, args []string) error {
	payloads := &payloads{}
	switch {
	case p.lines:
		payloads.lines = bufio.NewReaderSize(cmd.InOrStdin(), 64<<10)
	case len(args) == 1:
		payloads.one = []byte(args[0])
	case p.stdin:
		text, err := readPayload(cmd.InOrStdin())
		if err != nil {
			return fmt.Errorf("read the payload: %w", err)
		}
		payloads.one = text
	case p.file != "":
		file, err := os.Open(p.file)
		if err != nil {
			return fmt.Errorf("--file: %w", err)
		}
		payloads.one, err = readPayload(file)
		if err = errors.Join(err, file.Close()); err != nil {
			return fmt.Errorf("--file: %w", err)
		}
	}
	conn, err := p.dial(ctx, nil)
	if err != nil {
		return err
	}
	sent := published{Topic: p.message.Topic, QoS: p.message.QoS, Retain: p.message.Retain}
	err = p.publish(ctx, conn, payloads, &sent)
	_ = conn.Close() // says goodbye; what counts was acknowledged
	if err != nil {
		if p.lines {
			err = fmt.Errorf("%w (after %s)", err, count(sent.Messages, "message"))
		}
		return err
	}
	if p.json {
		return printJSON(cmd.OutOrStdout(), sent)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "published %s to %s (QoS %d)\n", count(sent.Messages, "message"), sent.Topic, sent.QoS)
	return nil
}

// publish sends the payloads and waits until the broker has taken them all. sent counts
// those of which that is known.
func (p *pub) publish(ctx context.Context, conn *client.Client, from *payloads, sent *published) error {
	type underway struct {
		result <-chan error
		bytes  int
	}
	interrupted := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	results := make(chan underway, 1000)
	settled := make(chan error, 1)
	go func() { // ends when results is closed; it is waited for below
		var failed error
		for u := range results {
			if failed != nil {
				continue
			}
			if failed = p.await(ctx, u.result); failed != nil {
				cancel(failed)
				continue
			}
			sent.Messages++
			sent.Bytes += u.bytes
		}
		settled <- failed
	}()
	start := func(payload []byte) error {
		if p.utf8 && !utf8.Valid(payload) { // MQTT 5 §3.3.2.3.2
			return errors.New("the payload is not UTF-8; leave --utf8 out")
		}
		m := p.message
		m.Payload = payload
		result, err := conn.Start(ctx, &m)
		if err != nil {
			return err
		}
		select {
		case results <- underway{result, len(payload)}:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	err := from.each(ctx, conn.Done(), start)
	close(results)
	if failed := <-settled; failed != nil {
		err = failed // is why, if both
	}
	if err == errGone {
		err = conn.Err()
	}
	if err == nil && p.message.QoS == 0 {
		// There is no acknowledgement, but an answer to what comes behind.
		ping, done := context.WithTimeout(ctx, p.timeout)
		defer done()
		err = conn.Ping(ping)
	}
	switch {
	case err == nil:
		return nil
	case interrupted.Err() != nil:
		return errors.New("interrupted before the broker had acknowledged all")
	}
	return p.explain(fmt.Errorf("publish to %s: %w", p.message.Topic, err))
}

// await waits for the broker's answer to one message.
func (p *pub) await(ctx context.Context, result <-chan error) error {
	timeout := time.NewTimer(p.timeout)
	defer timeout.Stop()
	select {
	case err := <-result:
		return err
	case <-timeout.C:
		return context.DeadlineExceeded
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// errGone is that the connection ended; the client says why.
var errGone = errors.New("the connection ended")

// payloads are what is to be published: one, or the lines of a stream.
type payloads struct {
	one   []byte
	lines *bufio.Reader
}

// each hands out the payloads until one of them fails, the connection ends, or ctx.
func (p *payloads) each(ctx context.Context, gone <-chan struct{}, put func([]byte) error) error {
	if p.lines == nil {
		return put(p.one)
	}
	type line struct {
		text []byte
		err  error
	}
	next := make(chan line)
	go func() { // cannot be woken while it reads: ends with the stream or the process
		for {
			text, err := readLine(p.lines)
			select {
			case next <- line{text, err}:
			case <-gone:
				return
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	for {
		select {
		case l := <-next:
			switch {
			case l.err == io.EOF:
				return nil
			case l.err != nil:
				return fmt.Errorf("read the standard input: %w", l.err)
			}
			if err := put(l.text); err != nil {
				return err
			}
		case <-gone:
			return errGone
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// readLine reads a line without its end. The error is io.EOF if there is none.
func readLine(r *bufio.Reader) ([]byte, error) {
	var text []byte
	for {
		part, err := r.ReadSlice('\n')
		text = append(text, part...)
		switch {
		case len(text) > maxPayload:
			return nil, fmt.Errorf("a line is longer than the %d bytes of a payload", maxPayload)
		case err == bufio.ErrBufferFull:
			continue
		case err == io.EOF && len(text) > 0, err == nil:
			return []byte(strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")), nil
		}
		return nil, err
	}
}

func readPayload(r io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxPayload+1))
	if err == nil && len(text) > maxPayload {
		err = fmt.Errorf("it is longer than the %d bytes of a payload", maxPayload)
	}
	return text, err
}
