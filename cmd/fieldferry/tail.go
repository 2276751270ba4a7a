package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/fieldferry/fieldferry/localbroker/client"
	"github.com/fieldferry/fieldferry/localbroker/packet"
	"github.com/fieldferry/fieldferry/localbroker/topic"
)

const (
	firstWait   = time.Second // before connecting again
	longestWait = 30 * time.Second
	steady      = 10 * time.Second // a connection that held for so long was a good one
	quiet       = time.Second      // without a retained message: there are no more
	shownHex    = 256              // bytes of a binary payload that are shown
)

// tail is the command: it prints what is published.
type tail struct {
	connection
	filters                  []string
	qos, count               int
	lasting                  time.Duration
	retainedOnly, noRetained bool
	json                     bool

	out, err io.Writer
	began    bool             // was connected once
	deadline <-chan time.Time // of --for

	mu      sync.Mutex // guards what follows
	seen    int
	full    bool // no more are printed
	failed  error
	enough  chan struct{} // closed when full
	another chan struct{} // gets a token for a message that was printed
}

func tailCommand() *cobra.Command {
	t := &tail{enough: make(chan struct{}), another: make(chan struct{}, 1)}
	cmd := &cobra.Command{
		Use:   "tail [FILTER...]",
		Short: "Print what is published on a broker",
		Long: `tail subscribes to a broker and prints each message as a line, its topic and its
payload; one that is binary as hex, one with control characters in quotes. With --json
each is an object. Without a filter it is #: everything, but not what begins with $.

It connects again when the connection breaks, says so on stderr, and ends with
SIGINT, --count or --for.`,
	}
	t.flags(cmd)
	f := cmd.Flags()
	f.StringArrayVarP(&t.filters, "topic", "t", nil, "a topic `FILTER` to subscribe to; may come several times")
	f.IntVarP(&t.qos, "qos", "q", 0, "highest QoS of what is sent to it: 0, 1 or 2")
	f.IntVarP(&t.count, "count", "n", 0, "end after `N` messages; with --for, exit with 1 if they do not come in time")
	f.DurationVar(&t.lasting, "for", 0, "end after this time, such as 10s")
	f.BoolVar(&t.retainedOnly, "retained-only", false, "only what the broker keeps; ends when no more of it comes, or by --count or --for")
	f.BoolVar(&t.noRetained, "no-retained", false, "only what is published from now on")
	f.BoolVar(&t.json, "json", false, "print each message as a line of JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		t.filters = append(t.filters, args...)
		if err := t.check(); err != nil {
			return usageError{fmt.Errorf("tail: %w", err)}
		}
		if err := t.resolve(); err != nil {
			return err
		}
		t.out, t.err = cmd.OutOrStdout(), cmd.ErrOrStderr()
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		context.AfterFunc(ctx, stop) // a second signal ends what hangs
		return t.run(ctx)
	}
	return cmd
}

// check says what is wrong with how the command was called.
func (t *tail) check() error {
	if len(t.filters) == 0 {
		t.filters = []string{"#"}
	}
	for _, f := range t.filters {
		if err := topic.CheckFilter(f, 0); err != nil {
			return fmt.Errorf("%q: %w", f, err)
		}
	}
	switch {
	case t.qos < 0 || t.qos > 2:
		return fmt.Errorf("--qos %d is none of 0, 1 and 2", t.qos)
	case t.count < 0:
		return fmt.Errorf("--count %d is less than nothing", t.count)
	case t.lasting < 0:
		return fmt.Errorf("--for %s is less than nothing", t.lasting)
	case t.retainedOnly && t.noRetained:
		return errors.New("--retained-only and --no-retained leave nothing; give one of them")
	}
	return nil
}

// ending is how tail ends without an error.
type ending struct{ answer error }

func (ending) Error() string { return "the end" }

// run connects again and again until there is an end.
func (t *tail) run(ctx context.Context) error {
	wait := firstWait
	for {
		since := time.Now()
		err := t.session(ctx)
		if end, ok := errors.AsType[ending](err); ok {
			return end.answer
		}
		if !t.began || permanent(err) {
			return err
		}
		if time.Since(since) > steady {
			wait = firstWait
		}
		pause := wait/2 + rand.N(wait/2) // so that not all come at the same time
		fmt.Fprintf(t.err, "fieldferry: %v; trying again in %s\n", err, pause.Round(100*time.Millisecond))
		wait = min(2*wait, longestWait)
		select {
		case <-time.After(pause):
		case <-t.deadline:
			return t.late()
		case <-ctx.Done():
			return nil
		}
	}
}

// refusedError is that the broker refuses all filters.
type refusedError struct{ error }

func (e refusedError) Unwrap() error { return e.error }

// permanent reports whether it is of no use to try again.
func permanent(err error) bool {
	switch packet.ReasonOf(err) {
	case packet.BadUserNameOrPassword, packet.NotAuthorized, packet.Banned, packet.BadAuthenticationMethod, packet.ClientIDNotValid, packet.UnsupportedVersion:
		return true
	}
	_, refused := errors.AsType[refusedError](err)
	return refused
}

// session is one connection. Its error is why it ended.
func (t *tail) session(ctx context.Context) error {
	conn, err := t.dial(ctx, t.take)
	if err != nil {
		if ctx.Err() != nil {
			return ending{}
		}
		return err
	}
	defer func() { _ = conn.Close() }() // nobody waits for what it could say
	if err := t.subscribe(ctx, conn); err != nil {
		if ctx.Err() != nil {
			return ending{}
		}
		return err
	}
	if t.began {
		fmt.Fprintln(t.err, "fieldferry: connected again; what was published meanwhile may be missing")
	} else if t.lasting > 0 {
		t.deadline = time.After(t.lasting)
	}
	t.began = true
	var idle *time.Timer
	var silence <-chan time.Time
	if t.retainedOnly && t.count == 0 && t.lasting == 0 {
		idle = time.NewTimer(quiet)
		defer idle.Stop()
		silence = idle.C
	}
	for {
		select {
		case <-t.enough:
			return ending{t.failed}
		case <-t.another:
			if idle != nil {
				idle.Reset(quiet)
			}
		case <-silence:
			return ending{}
		case <-t.deadline:
			return ending{t.late()}
		case <-conn.Done():
			return t.explain(fmt.Errorf("the connection to %s is lost: %w", t.address, conn.Err()))
		case <-ctx.Done():
			return ending{}
		}
	}
}

// late is the answer when the time is over.
func (t *tail) late() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.full = true
	if t.count == 0 || t.seen >= t.count {
		return nil
	}
	fmt.Fprintf(t.err, "fieldferry: %d of %s came in %s\n", t.seen, count(t.count, "message"), t.lasting)
	return errNo
}

// subscribe subscribes to all filters. Those that the broker refuses are told; if
// it refuses all, there is nothing to wait for.
func (t *tail) subscribe(ctx context.Context, conn *client.Client) error {
	subs := make([]packet.Subscription, len(t.filters))
	for i, f := range t.filters {
		subs[i] = packet.Subscription{Filter: f, QoS: byte(t.qos)}
		if t.noRetained {
			subs[i].RetainHandling = 2 // version 5 only; take leaves them out as well
		}
	}
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	reasons, err := conn.Subscribe(ctx, subs...)
	if len(reasons) != len(subs) {
		if err == nil {
			err = packet.Errorf(packet.ProtocolError, "the broker answers %d filters with %d reasons", len(subs), len(reasons))
		}
		return t.explain(err)
	}
	granted := 0
	for i, r := range reasons {
		if !r.Failed() {
			granted++
		} else if len(subs) > 1 {
			fmt.Fprintf(t.err, "fieldferry: the broker refuses %s: %v\n", t.filters[i], r)
		}
	}
	if granted > 0 {
		return nil
	}
	what := "the broker refuses " + strings.Join(t.filters, " and ")
	if t.mqtt == packet.V311 { // has but one reason for it, 3.1.1 §3.9.3
		return refusedError{fmt.Errorf("%s and does not say why; %s", what, t.hintOf(packet.NotAuthorized))}
	}
	return refusedError{t.explain(&packet.Error{Reason: reasons[0], Text: what})}
}

// take prints one message.
func (t *tail) take(m *client.Message) {
	if t.retainedOnly && !m.Retain || t.noRetained && m.Retain {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.full {
		return
	}
	t.failed = t.print(m)
	t.seen++
	if t.failed != nil || t.seen == t.count {
		t.full = true
		close(t.enough)
	}
	select {
	case t.another <- struct{}{}:
	default:
	}
}

// received is a message as JSON.
type received struct {
	Time       string      `json:"time"` // when it came here
	Topic      string      `json:"topic"`
	Payload    *string     `json:"payload,omitempty"`
	Base64     *string     `json:"payload_base64,omitempty"` // in the place of payload, if that is no UTF-8
	QoS        byte        `json:"qos"`
	Retain     bool        `json:"retain"`
	Dup        bool        `json:"dup"`
	Properties *properties `json:"properties,omitempty"`
}

func (t *tail) print(m *client.Message) error {
	if !t.json {
		_, err := fmt.Fprintf(t.out, "%s %s\n", readableTopic(m.Topic), readable(m.Payload))
		return err
	}
	r := received{
		Time:  time.Now().UTC().Format("2006-01-02T15:04:05.000Z07:00"),
		Topic: m.Topic, QoS: m.QoS, Retain: m.Retain, Dup: m.Dup,
		Properties: newProperties(m.Props),
	}
	if text := string(m.Payload); utf8.ValidString(text) {
		r.Payload = &text
	} else {
		text = base64.StdEncoding.EncodeToString(m.Payload)
		r.Base64 = &text
	}
	if m.Expiry > 0 || len(m.SubscriptionIDs) > 0 {
		if r.Properties == nil {
			r.Properties = new(properties)
		}
		r.Properties.Expiry = int64(m.Expiry / time.Second)
		r.Properties.SubscriptionIDs = m.SubscriptionIDs
	}
	enc := json.NewEncoder(t.out)
	enc.SetEscapeHTML(false)
	return enc.Encode(r)
}

// readable is a payload on one line that does a terminal no harm.
func readable(payload []byte) string {
	switch {
	case len(payload) == 0:
		return "(empty)"
	case !utf8.Valid(payload):
		shown := payload[:min(len(payload), shownHex)]
		more := ""
		if len(shown) < len(payload) {
			more = "…"
		}
		return fmt.Sprintf("0x%s%s (%s)", hex.EncodeToString(shown), more, count(len(payload), "byte"))
	case plain(string(payload)):
		return string(payload)
	}
	return strconv.Quote(string(payload))
}

// readableTopic is readable for a topic, which could be mistaken for two words.
func readableTopic(name string) string {
	if plain(name) && !strings.Contains(name, " ") {
		return name
	}
	return strconv.Quote(name)
}

// plain reports whether a text can be shown as it is.
func plain(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) && r != '\t' })
}
