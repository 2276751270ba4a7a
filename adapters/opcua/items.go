package opcua

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/gopcua/opcua/id"
	"github.com/gopcua/opcua/ua"

	"github.com/fieldferry/fieldferry/adapters"
)

// monitorClock watches the server's clock. Where it does not change, or cannot be
// watched, the session does without.
func (v *serving) monitorClock(ctx context.Context, sub *subscription) {
	res, err := v.monitor(ctx, sub, []*ua.MonitoredItemCreateRequest{{
		ItemToMonitor:       &ua.ReadValueID{NodeID: ua.NewNumericNodeID(0, id.Server_ServerStatus_CurrentTime), AttributeID: ua.AttributeIDValue, DataEncoding: &ua.QualifiedName{}},
		MonitoringMode:      ua.MonitoringModeReporting,
		RequestedParameters: &ua.MonitoringParameters{ClientHandle: v.beatHandle(), SamplingInterval: milliseconds(beatEvery), QueueSize: 1, DiscardOldest: true},
	}})
	if err != nil || isBad(res[0].StatusCode) {
		v.link.log.Debug("the server's clock cannot be watched", "error", err)
	}
}

// beatHandle is that of the server's clock.
func (v *serving) beatHandle() uint32 { return uint32(len(v.items)) }

func (v *serving) monitor(ctx context.Context, sub *subscription, items []*ua.MonitoredItemCreateRequest) ([]*ua.MonitoredItemCreateResult, error) {
	// What was told already must not be good for longer while nothing is heard.
	ctx, cancel := context.WithTimeoutCause(ctx, silence, errNoAnswer)
	defer cancel()
	res, err := ask[*ua.CreateMonitoredItemsResponse](ctx, v.s.ch, v.s.token, &ua.CreateMonitoredItemsRequest{
		SubscriptionID: sub.id, TimestampsToReturn: ua.TimestampsToReturnBoth, ItemsToCreate: items,
	})
	if err != nil {
		return nil, err
	}
	if len(res.Results) != len(items) {
		return nil, fmt.Errorf("the server answers %d of %d items", len(res.Results), len(items))
	}
	return res.Results, nil
}

// monitorAll makes items. Those that the server does not take are bad and tried again
// later.
func (v *serving) monitorAll(ctx context.Context, sub *subscription, items []*item) error {
	for part := range chunks(items, v.s.limits.monitor, v.create) {
		asked, requests := v.requests(sub, part)
		if len(asked) == 0 {
			v.flush(ctx)
			continue
		}
		res, err := v.monitor(ctx, sub, requests)
		if err != nil {
			return fmt.Errorf("cannot subscribe: %w", err)
		}
		again := v.made(asked, res)
		if len(again) > 0 { // without a deadband
			if err := v.monitorAll(ctx, sub, again); err != nil {
				return err
			}
		}
		if err := v.drain(ctx); err != nil {
			return err
		}
		v.flush(ctx)
	}
	return nil
}

// requests makes the requests for items, of those whose namespace the server has.
func (v *serving) requests(sub *subscription, items []*item) (asked []*item, all []*ua.MonitoredItemCreateRequest) {
	for _, it := range items {
		node, ok := it.node.at(v.s.namespaces())
		if !ok {
			v.failed(it, reasonNamespace)
			continue
		}
		sampling := it.group.dev.sampling
		queue := 2*int64(sub.every/max(sampling, time.Millisecond)) + 1
		r := &ua.MonitoredItemCreateRequest{
			ItemToMonitor:  &ua.ReadValueID{NodeID: node, AttributeID: ua.AttributeIDValue, DataEncoding: &ua.QualifiedName{}},
			MonitoringMode: ua.MonitoringModeReporting,
			RequestedParameters: &ua.MonitoringParameters{
				ClientHandle: it.handle, SamplingInterval: milliseconds(sampling), QueueSize: uint32(min(max(queue, 10), maxQueue)), DiscardOldest: true,
			},
		}
		if it.Deadband > 0 && !it.Relative && !it.plain {
			// A part of the range, which is the standard's other deadband, is not what a
			// part of the last value is.
			r.RequestedParameters.Filter = ua.NewExtensionObject(&ua.DataChangeFilter{
				Trigger: ua.DataChangeTriggerStatusValue, DeadbandType: uint32(ua.DeadbandTypeAbsolute), DeadbandValue: it.Deadband / math.Abs(it.conv.scale),
			})
		}
		asked, all = append(asked, it), append(all, r)
	}
	return asked, all
}

// made notes which items the server has made, and returns those to be asked for again
// without a deadband.
func (v *serving) made(items []*item, res []*ua.MonitoredItemCreateResult) (again []*item) {
	for i, it := range items {
		st := res[i].StatusCode
		switch {
		case !isBad(st):
			it.id, it.retryAt, it.retry = res[i].MonitoredItemID, time.Time{}, 0
		case !it.plain && it.Deadband > 0 && !it.Relative && filterRefused(st):
			it.plain = true
			again = append(again, it)
		default:
			v.failed(it, statusName(st))
		}
	}
	return again
}

func filterRefused(st ua.StatusCode) bool {
	switch st & codeMask {
	case ua.StatusBadFilterNotAllowed, ua.StatusBadMonitoredItemFilterUnsupported, ua.StatusBadMonitoredItemFilterInvalid, ua.StatusBadDeadbandFilterInvalid:
		return true
	}
	return false
}

// failed notes that the server does not have an item.
func (v *serving) failed(it *item, reason string) {
	it.id = 0
	it.retry = min(max(2*it.retry, itemFirst), itemMax)
	it.retryAt = time.Now().Add(it.retry)
	v.take(it, told{quality: adapters.Bad, reason: reason, time: time.Now(), down: true})
}

// again asks anew for items that the server did not have, one request at a time.
func (v *serving) again(now time.Time) error {
	if v.retrying != nil {
		return nil
	}
	var due, gone []*item
	var rate *subscription
	for _, it := range v.items {
		if it.retryAt.IsZero() || now.Before(it.retryAt) {
			continue
		}
		if sub := v.of[it.every]; rate == nil || rate == sub {
			rate = sub
			due = append(due, it)
			if it.id != 0 {
				gone = append(gone, it)
			}
		}
		if len(due) == min(v.create, int(cmp.Or(v.s.limits.monitor, perCreate))) {
			break
		}
	}
	if due == nil {
		return nil
	}
	if len(gone) > 0 { // the server has an item of a node that it has not
		req := &ua.DeleteMonitoredItemsRequest{SubscriptionID: rate.id}
		for _, it := range gone {
			req.MonitoredItemIDs = append(req.MonitoredItemIDs, it.id)
			it.id = 0
		}
		if _, err := v.s.ch.send(req, v.s.token, v.link.config.Timeout, make(chan answer, 1)); err != nil {
			return err
		}
	}
	if !v.spacing && slices.ContainsFunc(due, func(it *item) bool { return it.node.uri != "" && !slices.Contains(v.s.namespaces(), it.node.uri) }) {
		// A server that has just started may have its namespaces later.
		v.spacing = true
		if _, err := v.s.ch.send(namespacesRequest(), v.s.token, v.link.config.Timeout, v.spaces); err != nil {
			return err
		}
	}
	asked, requests := v.requests(rate, due)
	if len(asked) == 0 {
		return nil
	}
	v.retrying = asked
	_, err := v.s.ch.send(&ua.CreateMonitoredItemsRequest{
		SubscriptionID: rate.id, TimestampsToReturn: ua.TimestampsToReturnBoth, ItemsToCreate: requests,
	}, v.s.token, v.link.config.Timeout, v.retries)
	return err
}

func (v *serving) retried(ctx context.Context, a answer) error {
	items := v.retrying
	v.retrying = nil
	if a.err != nil && (unknown(a.err) || isSessionError(a.err)) {
		return a.err
	}
	res, ok := a.res.(*ua.CreateMonitoredItemsResponse)
	if !ok || len(res.Results) != len(items) {
		for _, it := range items {
			v.failed(it, cmp.Or(reasonOf(a.err), adapters.ReasonProtocol))
		}
	} else {
		for _, it := range v.made(items, res.Results) {
			it.retryAt = time.Now() // without a deadband
		}
	}
	v.flush(ctx)
	return nil
}
