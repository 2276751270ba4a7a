package opcua

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/gopcua/opcua/id"
	"github.com/gopcua/opcua/ua"
)

// Of a subscription. OPC UA Part 4 §5.14.
const (
	subscriptionLife = 30 * time.Second // that the server keeps it when we ask for nothing
	keepAlive        = time.Second      // it says at least so often that there is nothing
	perMessage       = 2000             // values of a message of the server
	perCreate        = 250              // items of a request: the first values come while the others are made
	leastCreate      = 10               // of a server that takes too long for so many
	maxQueue         = 1000             // values of an item that the server keeps for us
	publishHint      = time.Minute      // for how long a request for changes is good
)

// subscription is one at the server, of all items of a rate.
type subscription struct {
	id    uint32
	every time.Duration // as the server has it
	idle  time.Duration // longest that it says nothing
	last  time.Time     // something came
	next  uint32        // sequence number
}

// serving is one session's subscriptions.
type serving struct {
	*watch
	s           *session
	subs        map[uint32]*subscription
	of          map[time.Duration]*subscription // by the rate that was asked for
	answers     chan answer                     // to requests for changes
	outstanding int
	acks        []*ua.SubscriptionAcknowledgement

	last    time.Time // something came of any subscription, or to a probe
	turn    time.Time // of the loop
	probes  chan answer
	probing bool

	beats int // of the server's clock
	beat  time.Time

	retries  chan answer
	retrying []*item // that are asked for

	spaces  chan answer // the namespaces
	spacing bool        // they are asked for
}

// serve subscribes and tells the sink what comes, until the session is of no further
// use, which is the error, or ctx ends.
func (w *watch) serve(ctx context.Context, s *session) error {
	now := time.Now()
	v := &serving{
		watch: w, s: s, subs: map[uint32]*subscription{}, of: map[time.Duration]*subscription{},
		probes: make(chan answer, 1), retries: make(chan answer, 1), spaces: make(chan answer, 1), last: now, turn: now,
	}
	if err := v.subscribe(ctx); err != nil {
		if errors.Is(err, errNoAnswer) { // it may just be slow
			w.create = max(w.create/4, leastCreate)
		}
		return err
	}
	w.create = min(2*w.create, perCreate)
	v.last, v.turn = time.Now(), time.Now()
	for _, sub := range v.subs {
		sub.last = v.last
	}
	tick := time.NewTicker(w.tick)
	defer tick.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case a := <-v.answers:
			err = v.published(ctx, a)
		case a := <-v.probes:
			err = v.probed(a)
		case a := <-v.retries:
			err = v.retried(ctx, a)
		case a := <-v.spaces:
			v.spacing = false
			if r, ok := a.res.(*ua.ReadResponse); ok {
				s.setNamespaces(r.Results)
			}
		case <-tick.C:
			err = v.look(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// subscribe makes the subscriptions and their items. What the first items have comes
// while the others are made.
func (v *serving) subscribe(ctx context.Context) error {
	rates := map[time.Duration][]*item{}
	for _, it := range v.items {
		rates[it.every] = append(rates[it.every], it)
	}
	order := slices.Sorted(maps.Keys(rates))
	var first *subscription
	for _, every := range order {
		sub, err := v.newSubscription(ctx, every)
		if errors.Is(err, statusError{ua.StatusBadTooManySubscriptions}) && first != nil {
			v.link.log.Warn("the server allows no further subscription; the fastest serves", "every", every, "fastest", first.every)
			sub, err = first, nil
		}
		if err != nil {
			return fmt.Errorf("cannot subscribe: %w", err)
		}
		v.of[every] = sub
		if first == nil {
			first = sub
		}
	}
	n := len(v.subs) + 1
	v.answers = make(chan answer, n)
	for range n {
		if err := v.publish(); err != nil {
			return err
		}
	}
	if first != nil {
		v.monitorClock(ctx, first)
	}
	for _, every := range order {
		if err := v.monitorAll(ctx, v.of[every], rates[every]); err != nil {
			return err
		}
	}
	return nil
}

// drain takes the answers that have come.
func (v *serving) drain(ctx context.Context) error {
	for {
		select {
		case a := <-v.answers:
			if err := v.published(ctx, a); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

func (v *serving) newSubscription(ctx context.Context, every time.Duration) (*subscription, error) {
	alive := max(1, uint32(keepAlive/every))
	life := max(3*alive, uint32(subscriptionLife/every))
	res, err := ask[*ua.CreateSubscriptionResponse](ctx, v.s.ch, v.s.token, &ua.CreateSubscriptionRequest{
		RequestedPublishingInterval: milliseconds(every), RequestedLifetimeCount: life, RequestedMaxKeepAliveCount: alive,
		MaxNotificationsPerPublish: perMessage, PublishingEnabled: true,
	})
	if err != nil {
		return nil, err
	}
	sub := &subscription{id: res.SubscriptionID, every: every, last: time.Now(), next: 1}
	if ms := res.RevisedPublishingInterval; ms >= 1 && ms < 1e10 {
		sub.every = time.Duration(ms * float64(time.Millisecond))
	}
	if sub.every > every*5/4 {
		v.link.log.Warn("the server publishes more slowly than it was asked to", "every", every, "server", sub.every)
	}
	count := res.RevisedMaxKeepAliveCount
	if count == 0 || count > 1e6 {
		count = alive
	}
	sub.idle = time.Duration(count+1) * sub.every
	v.subs[sub.id] = sub
	return sub, nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// publish asks for changes.
func (v *serving) publish() error {
	acks := v.acks
	if acks == nil {
		acks = []*ua.SubscriptionAcknowledgement{}
	}
	v.acks = nil
	_, err := v.s.ch.send(&ua.PublishRequest{SubscriptionAcknowledgements: acks}, v.s.token, publishHint, v.answers)
	if err == nil {
		v.outstanding++
	}
	return err
}

// published takes an answer to a request for changes.
func (v *serving) published(ctx context.Context, a answer) error {
	v.outstanding--
	v.turn = time.Now()
	switch {
	case errors.Is(a.err, statusError{ua.StatusBadTooManyPublishRequests}) && v.outstanding > 0:
		return nil
	case errors.Is(a.err, statusError{ua.StatusBadTimeout}):
		return v.publish()
	case a.err != nil:
		return a.err
	}
	res, ok := a.res.(*ua.PublishResponse)
	if !ok {
		return fmt.Errorf("the server answers a request for changes with %T", a.res)
	}
	v.last = v.turn
	sub := v.subs[res.SubscriptionID]
	m := res.NotificationMessage
	if sub == nil || m == nil {
		return v.publish()
	}
	sub.last = v.turn
	if len(m.NotificationData) > 0 {
		if m.SequenceNumber != sub.next && sub.next != 1 {
			v.link.skipped.Add(1)
			v.link.log.Debug("messages of the server are missing", "expected", sub.next, "came", m.SequenceNumber)
		}
		sub.next = m.SequenceNumber + 1
		v.acks = append(v.acks, &ua.SubscriptionAcknowledgement{SubscriptionID: sub.id, SequenceNumber: m.SequenceNumber})
	}
	if err := v.publish(); err != nil { // before the sink, which may block
		return err
	}
	for _, data := range m.NotificationData {
		if data == nil {
			continue
		}
		switch n := data.Value.(type) {
		case *ua.DataChangeNotification:
			v.changed(n)
		case *ua.StatusChangeNotification:
			return fmt.Errorf("the server ends a subscription: %w", statusError{n.Status})
		}
	}
	v.flush(ctx)
	v.turn = time.Now() // the sink may have blocked, which is not the server's silence
	return nil
}

// changed takes values.
func (v *serving) changed(n *ua.DataChangeNotification) {
	now := time.Now()
	lost := false
	for _, m := range n.MonitoredItems {
		switch {
		case m == nil || m.Value == nil:
		case m.ClientHandle == v.beatHandle():
			v.beats++
			v.beat = now
		case m.ClientHandle < uint32(len(v.items)):
			it := v.items[m.ClientHandle]
			if !it.known && m.Value.Has(ua.DataValueStatusCode) && m.Value.Status&codeMask == ua.StatusBadWaitingForInitialData {
				continue // the server has just begun to look
			}
			t := it.conv.take(m.Value, now)
			lost = lost || m.Value.Has(ua.DataValueStatusCode) && m.Value.Status&overflow == overflow
			if st := m.Value.Status & codeMask; t.down && (st == ua.StatusBadNodeIDUnknown || st == ua.StatusBadNodeIDInvalid) {
				it.retry = cmp.Or(it.retry, itemFirst)
				it.retryAt = now.Add(it.retry)
			}
			v.take(it, t)
		}
	}
	if lost {
		v.link.skipped.Add(1)
	}
}

// look does what is due: it sees whether the server is heard from, tries again what it
// did not have, and ends pulses.
func (v *serving) look(ctx context.Context) error {
	if err := v.drain(ctx); err != nil { // what has come counts before what has not
		return err
	}
	now := time.Now()
	if held := now.Sub(v.turn); held > probeIdle { // by the sink, or by the machine
		v.last, v.beat = v.last.Add(held), v.beat.Add(held)
		for _, sub := range v.subs {
			sub.last = sub.last.Add(held)
		}
	}
	v.turn = now
	switch {
	case now.Sub(v.last) > silence:
		return fmt.Errorf("%w: %w", errSilent, errNoAnswer)
	case now.Sub(v.last) > probeIdle && !v.probing:
		if err := v.probe(); err != nil {
			return err
		}
	}
	fastest := time.Duration(0)
	for _, sub := range v.subs {
		if now.Sub(sub.last) > max(silence, 3*sub.idle) {
			return fmt.Errorf("%w of a subscription: %w", errSilent, errNoAnswer)
		}
		if fastest == 0 || sub.every < fastest { // it has the clock
			fastest = sub.every
		}
	}
	if v.beats > 1 && now.Sub(v.beat) > max(silence, 3*fastest) {
		return fmt.Errorf("%w: %w", errStale, errNoAnswer)
	}
	v.repeat(ctx, now)
	if err := v.again(now); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, pulseTimeout)
	defer cancel()
	_ = v.link.endPulses(limited, v.s, false) // it is logged
	return nil
}

// probe asks the server for its state.
func (v *serving) probe() error {
	v.probing = true
	_, err := v.s.ch.send(&ua.ReadRequest{TimestampsToReturn: ua.TimestampsToReturnNeither, NodesToRead: []*ua.ReadValueID{{
		NodeID: ua.NewNumericNodeID(0, id.Server_ServerStatus_State), AttributeID: ua.AttributeIDValue, DataEncoding: &ua.QualifiedName{},
	}}}, v.s.token, v.link.config.Timeout, v.probes)
	return err
}

func (v *serving) probed(a answer) error {
	v.probing = false
	if a.err != nil && (unknown(a.err) || isSessionError(a.err)) {
		return a.err
	}
	v.last = time.Now()
	return nil
}

// repeat tells values again whose heartbeat is due. Their time is that of the last
// message of the server, which would have said if they had changed.
func (v *serving) repeat(ctx context.Context, now time.Time) {
	for _, d := range v.devices {
		if d.is != online {
			continue
		}
		for _, g := range d.groups {
			var again []arrival
			for _, it := range g.items {
				if it.Heartbeat > 0 && it.known && now.Sub(it.at) >= it.Heartbeat {
					t := it.now
					if heard := v.of[g.every].last; heard.After(t.time) {
						t.time = heard
					}
					it.sent = t.value
					again = append(again, arrival{it, t})
				}
			}
			if len(again) > 0 {
				v.status(ctx, d) // if the sink has refused it
				v.tell(ctx, g, again)
			}
		}
	}
}
