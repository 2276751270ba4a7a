package gateway

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/buffer/rows"
	"github.com/fieldferry/fieldferry/gateway/command"
	"github.com/fieldferry/fieldferry/gateway/config"
	"github.com/fieldferry/fieldferry/gateway/payload"
	"github.com/fieldferry/fieldferry/localbroker"
	"github.com/fieldferry/fieldferry/localbroker/packet"
)

const (
	// commandsOutbox begins the names of the queues of commands, one for each device;
	// that for all devices that are not there has no more.
	commandsOutbox = "commands"

	commandsAtOnce = 64 // taken from a queue into memory
	retryCommands  = time.Second
	pruneEvery     = time.Minute
)

// commands takes the commands for polled devices from the broker, and has them run. A
// command waits in the buffer, in the queue of its device, and is settled when its
// answer was told.
type commands struct {
	buffer   *buffer.Buffer
	broker   *localbroker.Broker // set before Run
	bridges  []*upstream
	recall   func(username, client string) localbroker.Rights // nil: everybody may do everything
	format   payload.Config
	last     func(device, point string) (adapters.Value, bool) // set before Run; nil: nobody knows
	executor *command.Executor
	journal  *journal
	audit    *command.Log // nil: the caller's
	log      *slog.Logger

	devices map[string]*command.Device
	mqtt    []string                  // patterns of the ids of devices that take their commands themselves
	lost    bool                      // what an earlier process knew of commands
	old     map[*buffer.Outbox]uint64 // up to where its commands were accepted by an earlier process

	unknown  *commandQueue // of devices that are not there
	retained atomic.Int64  // when a retained command was seen last, in seconds since 1970

	queues map[string]*commandQueue

	ready readyQueues
}

// commandQueue is the commands of one device that wait.
type commandQueue struct {
	device string // "" of many
	outbox *buffer.Outbox
	reader *buffer.Reader // of who works at it
	log    *slog.Logger

	// Guarded by readyQueues.mu:
	waiting bool // there may be something
	working bool
}

// readyQueues are the queues in which something may be.
type readyQueues struct {
	mu   sync.Mutex // guards what follows; taken while locks of the buffer are held
	list []*commandQueue
	wake chan struct{}
}

// add notes that there may be something in a queue.
func (r *readyQueues) add(q *commandQueue) {
	r.mu.Lock()
	if !q.waiting {
		q.waiting = true
		r.list = append(r.list, q)
	}
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// take returns the queues at which somebody has to begin to work.
func (r *readyQueues) take() (begin []*commandQueue) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range r.list {
		if !q.working {
			q.waiting, q.working = false, true
			begin = append(begin, q)
		}
	}
	r.list = slices.DeleteFunc(r.list, func(q *commandQueue) bool { return !q.waiting })
	return begin
}

// rest reports whether who worked at a queue may leave it.
func (r *readyQueues) rest(q *commandQueue) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if q.waiting {
		q.waiting = false
		r.list = slices.DeleteFunc(r.list, func(o *commandQueue) bool { return o == q })
		return false
	}
	q.working = false
	return true
}

// openCommands opens what takes commands. It is nil where no device is polled: what is
// published on topics of commands is the business of those who subscribe to it.
func openCommands(c *config.Config, buf *buffer.Buffer, bridges []*upstream, log *slog.Logger) (*commands, error) {
	polled := false
	for i := range c.Adapters {
		polled = polled || !c.Adapters[i].MQTT
	}
	if !polled {
		return nil, nil
	}
	k := newCommands(buf, bridges, payloadConfig(&c.Payload), log)
	for i := range c.Adapters {
		a := &c.Adapters[i]
		for j := range a.Devices {
			if a.MQTT {
				k.mqtt = append(k.mqtt, a.Devices[j].ID)
				continue
			}
			k.devices[a.Devices[j].ID] = commandDevice(&a.Devices[j])
		}
	}
	if err := k.open(c); err != nil {
		return nil, errors.Join(err, k.close())
	}
	return k, nil
}

func newCommands(buf *buffer.Buffer, bridges []*upstream, format payload.Config, log *slog.Logger) *commands {
	return &commands{
		buffer: buf, bridges: bridges, format: format, log: log,
		devices: make(map[string]*command.Device), queues: make(map[string]*commandQueue), old: make(map[*buffer.Outbox]uint64),
		ready: readyQueues{wake: make(chan struct{}, 1)},
	}
}

func (k *commands) open(c *config.Config) (err error) {
	if k.audit, err = command.OpenLog(filepath.Join(c.Gateway.DataDir, "audit.log")); err != nil {
		return err
	}
	table, lost, err := openJournal(filepath.Join(c.Gateway.DataDir, "commands.db"), k.log)
	if err != nil {
		return err
	}
	k.lost = lost
	return k.begin(&c.Commands, table, k.audit)
}

// begin goes on with what an earlier process has left.
func (k *commands) begin(c *config.Commands, table rows.Store, audit auditLog) error {
	var other bool
	var err error
	if k.journal, other, err = newJournal(table, k.buffer.Origin()); err != nil {
		return errors.Join(err, table.Close())
	}
	k.lost = k.lost || other
	k.journal.audit, k.journal.value, k.journal.remember = audit, k.format.AppendValue, c.Remember
	k.journal.stamp = func() buffer.Stamp { return k.buffer.Stamp(0) }
	k.journal.age = k.buffer.Age
	k.executor = command.New(command.Options{
		Journal: k.journal, MaxAge: c.MaxAge, Off: !c.Enabled, Encode: k.encode, Last: k.before, Believes: k.buffer.Believes, Logger: k.log,
	})
	return k.openQueues()
}

// openQueues opens the queues, and removes those of devices that are not in the site
// file any more and have nothing in them.
func (k *commands) openQueues() error {
	devices := slices.Sorted(maps.Keys(k.devices))
	var gone []*buffer.Outbox
	for _, o := range k.buffer.Outboxes() {
		device, ok := strings.CutPrefix(o.Name(), commandsOutbox+"/")
		switch {
		case !ok || o.Class() != buffer.Command || k.devices[device] != nil:
		case o.Stored() == 0:
			gone = append(gone, o)
		default: // what is left in it is answered
			devices = append(devices, device)
		}
	}
	if err := k.buffer.Remove(gone...); err != nil {
		return err
	}
	names := []string{commandsOutbox}
	for _, d := range devices {
		names = append(names, commandsOutbox+"/"+d)
	}
	outboxes, err := k.buffer.MakeOutboxes(buffer.Command, names...)
	if err != nil {
		return err
	}
	for i, o := range outboxes {
		if i == 0 {
			k.unknown, err = k.openQueue("", o)
		} else {
			k.queues[devices[i-1]], err = k.openQueue(devices[i-1], o)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// openQueue opens the queue of a device.
func (k *commands) openQueue(device string, o *buffer.Outbox) (q *commandQueue, err error) {
	o.SetLimit(buffer.OutboxLimit{KeepExpired: true, Window: 2 * commandsAtOnce})
	q = &commandQueue{device: device, outbox: o, log: k.log.With("device", device)}
	k.old[o] = o.Ledger().Accepted
	if q.reader, err = k.buffer.ReaderFunc(func() { k.ready.add(q) }, o); err != nil {
		return nil, err
	}
	return q, nil
}

// queue is the queue for a device; nil if the device takes its commands itself.
func (k *commands) queue(device string) *commandQueue {
	if k.devices[device] == nil {
		for _, pattern := range k.mqtt {
			if ok, _ := path.Match(pattern, device); ok {
				return nil
			}
		}
		return k.unknown
	}
	return k.queues[device]
}

// The forms of commands.
const (
	formCommand = 'c' // devices/{device}/commands
	formCall    = 'r' // requests/{device}/rpc
)

// commandTopic says what device a topic has commands for, and in which form.
func commandTopic(name string) (device string, form byte, ok bool) {
	if rest, is := strings.CutPrefix(name, "devices/"); is {
		device, ok = strings.CutSuffix(rest, "/commands")
		form = formCommand
	} else if rest, is := strings.CutPrefix(name, "requests/"); is {
		device, ok = strings.CutSuffix(rest, "/rpc")
		form = formCall
	}
	return device, form, ok && device != "" && !strings.Contains(device, "/")
}

// copyFor is the copy of a publish that is a command. It reports false for what is none.
// A retained one is none: it would be carried out again with each subscription.
func (k *commands) copyFor(m *localbroker.Message) (buffer.Copy, bool) {
	device, form, ok := commandTopic(m.Topic)
	if !ok {
		return buffer.Copy{}, false
	}
	q := k.queue(device)
	if q == nil {
		return buffer.Copy{}, false
	}
	if m.Retain {
		if now := time.Now().Unix(); now-k.retained.Swap(now) >= 60 { // whoever sends one may send many
			k.log.Warn("a retained command is ignored; publish commands without the retain flag", "topic", m.Topic)
		}
		return buffer.Copy{}, false
	}
	e := envelope{form: form, device: device, from: command.Issuer{Client: m.ClientID, Username: m.Username}}
	if bridge, down := strings.CutPrefix(m.ClientID, fromUpstream); down {
		e.from = command.Issuer{Bridge: bridge}
	}
	return buffer.Copy{Outbox: q.outbox, Topic: e.topic()}, true
}

// envelope is what the queue knows of a command beside its payload: the copy's topic.
type envelope struct {
	form   byte
	device string
	from   command.Issuer
}

func (e *envelope) topic() string {
	return strings.Join([]string{"", string(e.form), e.device, e.from.Bridge, e.from.Client, e.from.Username}, "\x00")
}

func parseEnvelope(topic string) (e envelope, ok bool) {
	// Neither topics nor client ids nor user names have a null character in them (MQTT 5
	// §1.5.4).
	parts := strings.Split(topic, "\x00")
	if len(parts) != 6 || parts[0] != "" || parts[1] != string(formCommand) && parts[1] != string(formCall) {
		return e, false
	}
	return envelope{form: parts[1][0], device: parts[2], from: command.Issuer{Bridge: parts[3], Client: parts[4], Username: parts[5]}}, true
}

// issuer is what ids are unique for.
func (e *envelope) issuer() string {
	if e.from.Bridge != "" {
		return "bridge\x00" + e.from.Bridge
	}
	return "client\x00" + e.from.Client + "\x00" + e.from.Username
}

// reply is what must be known to tell the answer.
type reply struct {
	ordinal  uint64
	envelope envelope
	rawID    []byte
	config   []byte
	replyTo  string // a call's
	topic    string // MQTT 5 Response Topic
	props    packet.Properties
}

// request makes a request of a command that waits.
func (k *commands) request(d *buffer.Delivery) *command.Request {
	r := &command.Request{Age: d.Age(), Lasts: d.Expiry, Old: d.Ordinal <= k.old[d.Outbox], Lost: k.lost}
	// In another boot, and nobody knows when, is what looks as if it were at its start.
	r.AgeUnknown = k.buffer.Stamp(r.Age).Uptime <= 0 && !k.buffer.Believes(time.Now())
	rep := &reply{ordinal: d.Ordinal}
	r.Reply = rep
	var ok bool
	if rep.envelope, ok = parseEnvelope(d.Topic); !ok {
		r.Wrong = errors.New("it is malformed in the buffer")
		return r
	}
	e := &rep.envelope
	r.Issuer, r.From, r.Call = e.issuer(), e.from, e.form == formCall
	props := packet.Properties(d.Props)
	correlation, has := props.Bytes(packet.CorrelationData)
	if has {
		rep.props = rep.props.AppendText(packet.CorrelationData, string(correlation))
	}
	rep.topic = props.Text(packet.ResponseTopic)
	parse := payload.ParseCommand
	if r.Call {
		parse = payload.ParseCall
	}
	c, err := parse(d.Payload)
	if c.ID == "" && err == nil {
		// The correlation data is the requester's own name for its request.
		switch {
		case len(correlation) == 0:
			err = errors.New("id: is missing; give each command an id of its own, or correlation data")
		case utf8.Valid(correlation):
			c.ID = "correlation:" + string(correlation)
		default:
			c.ID = "correlation:" + hex.EncodeToString(correlation)
		}
	}
	rep.rawID, rep.replyTo = c.RawID, c.ReplyTo
	if rep.rawID == nil && utf8.Valid(correlation) && len(correlation) > 0 {
		rep.rawID, _ = json.Marshal(string(correlation))
	}
	r.ID, r.Wrong = c.ID, err
	r.Command = adapters.Command{ID: c.ID, Device: e.device, Action: c.Action, Values: c.Values, Points: c.Points, Expires: c.Expires}
	if c.Action == payload.GetConfig && !r.Call {
		r.Wrong = errors.New("action: getConfig is a method of calls, on requests/" + e.device + "/rpc")
	}
	if dev := k.devices[e.device]; dev != nil && r.Call && c.Action == payload.GetConfig {
		rep.config = dev.Config
	}
	return r
}

// before is what a point held when it was last read.
func (k *commands) before(device, point string) (adapters.Value, bool) {
	if k.last == nil {
		return adapters.Value{}, false
	}
	return k.last(device, point)
}

// encode is the executor's.
func (k *commands) encode(r *command.Request, res *adapters.Result) []byte {
	rep := r.Reply.(*reply)
	if r.Call {
		return k.format.AppendReply(nil, res, rep.rawID, rep.config)
	}
	return k.format.AppendAnswer(nil, res, rep.rawID, !k.buffer.Believes(res.Time))
}

// Run has commands run until ctx ends.
func (k *commands) Run(ctx context.Context) error {
	var working sync.WaitGroup
	defer working.Wait()
	prune := time.NewTicker(pruneEvery)
	defer prune.Stop()
	for {
		for _, q := range k.ready.take() {
			working.Go(func() { k.work(ctx, q) })
		}
		select {
		case <-ctx.Done():
			return nil
		case <-k.ready.wake:
		case <-prune.C:
			if err := k.prune(); err != nil {
				k.log.Error("commands that were answered long ago are still remembered", "error", err)
			}
		}
	}
}

// work works at a queue until there is nothing in it.
func (k *commands) work(ctx context.Context, q *commandQueue) {
	space := make([]buffer.Delivery, commandsAtOnce)
	for ctx.Err() == nil {
		n, err := q.reader.TryNext(space)
		if err == nil && n == 0 {
			if k.ready.rest(q) {
				return
			}
			continue
		}
		if err == nil {
			err = k.process(ctx, q, space[:n])
			clear(space)
		}
		if err == nil {
			continue
		}
		q.reader.Rewind()
		if ctx.Err() != nil {
			return
		}
		q.log.Error("commands wait", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(retryCommands):
		}
	}
}

// process has commands run, in their order.
func (k *commands) process(ctx context.Context, q *commandQueue, list []buffer.Delivery) error {
	requests := make([]*command.Request, len(list))
	for i := range list {
		requests[i] = k.request(&list[i])
	}
	return k.executor.Process(ctx, k.devices[q.device], requests, func(ctx context.Context, answers []command.Answer) error {
		if err := k.tell(ctx, answers); err != nil {
			return err
		}
		for _, a := range answers {
			out := buffer.Delivered
			if a.Status == adapters.Expired {
				out = buffer.DroppedExpired
			}
			q.outbox.Settle(a.Request.Reply.(*reply).ordinal, out)
		}
		return nil
	})
}

// prune forgets answers that need not be remembered any more. What could come again is
// settled durably before.
func (k *commands) prune() error {
	outboxes := []*buffer.Outbox{k.unknown.outbox}
	for _, q := range k.queues {
		outboxes = append(outboxes, q.outbox)
	}
	for o, last := range k.old {
		if o.Marks().Settled < last {
			return nil
		}
	}
	if err := k.buffer.Flush(outboxes...); err != nil {
		return err
	}
	_, err := k.journal.prune()
	return err
}

// close closes what openCommands has opened. Run must have returned.
func (k *commands) close() error {
	if k == nil {
		return nil
	}
	var errs []error
	if k.unknown != nil {
		k.unknown.reader.Close()
	}
	for _, q := range k.queues {
		if q != nil {
			q.reader.Close()
		}
	}
	if k.journal != nil {
		errs = append(errs, k.journal.table.Close())
	}
	if k.audit != nil {
		errs = append(errs, k.audit.Close())
	}
	return errors.Join(errs...)
}

// add makes commands go over a link.
func (k *commands) add(l adapters.Link, devices ...string) {
	if k == nil {
		return
	}
	for _, id := range devices {
		d := k.devices[id]
		d.Writer, _ = l.(adapters.Writer)
		d.Reader, _ = l.(adapters.Reader)
		d.Checker, _ = l.(adapters.Checker)
		if c, ok := l.(adapters.Counter); ok {
			d.Ready = func() bool { return c.Stats().Connected }
		}
	}
}

// commandDevice is a device of the site file as commands see it.
func commandDevice(d *config.Device) *command.Device {
	dev := &command.Device{Name: d.ID, Points: make(map[string]bool, len(d.Points)), Config: payload.DeviceConfig(deviceInfo(d))}
	for i := range d.Points {
		p := &d.Points[i]
		// Methods are there to be called, and other things to be told.
		dev.Points[p.Name] = p.Write != nil || p.OPCUA != nil && p.OPCUA.Call != "" || p.Serial != nil && p.Serial.Send != ""
	}
	if len(d.Actions) > 0 {
		dev.Actions = make(map[string][]command.Step, len(d.Actions))
	}
	for _, a := range d.Actions {
		var steps []command.Step
		for _, s := range a.Steps {
			step := command.Step{Wait: s.Wait}
			for _, v := range s.Write {
				step.Write = append(step.Write, adapters.Assignment{Point: v.Point, Value: siteValue(v.Value)})
			}
			steps = append(steps, step)
		}
		dev.Actions[a.Name] = steps
	}
	return dev
}

// siteValue is a value of the site file.
func siteValue(v any) adapters.Value {
	switch v := v.(type) {
	case bool:
		return adapters.Bool(v)
	case int64:
		return adapters.Int64(v)
	case uint64:
		return adapters.Uint64(v)
	case float64:
		return adapters.Float64(v)
	}
	return adapters.String(fmt.Sprint(v))
}

// deviceInfo is what a call of getConfig is told of a device.
func deviceInfo(d *config.Device) *payload.DeviceInfo {
	info := &payload.DeviceInfo{Device: d.ID, Type: d.Type, Zone: d.Zone, Profile: d.Profile, Tags: d.Tags}
	for i := range d.Points {
		p := &d.Points[i]
		one := payload.PointInfo{Name: p.Name, Unit: p.Unit, Every: p.Every.Milliseconds(), Enum: p.Enum}
		if p.Modbus != nil {
			one.As = p.Modbus.As
		}
		if p.Serial != nil {
			if one.As = p.Serial.As; p.Serial.Send != "" {
				one.As, one.Write = "", &payload.WriteInfo{}
			}
		}
		for _, b := range p.Bits {
			one.Bits = append(one.Bits, b.Name)
		}
		if w := p.Write; w != nil {
			one.Write = &payload.WriteInfo{Min: w.Min, Max: w.Max, Values: w.Values, Pulse: w.Pulse.Milliseconds()}
		}
		info.Points = append(info.Points, one)
	}
	for _, a := range d.Actions {
		info.Actions = append(info.Actions, a.Name)
	}
	return info
}
