package opcua

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gopcua/opcua/id"
	"github.com/gopcua/opcua/ua"
)

// ask sends a request of a session and returns the answer of its type.
func ask[R ua.Response](ctx context.Context, ch *channel, token *ua.NodeID, req ua.Request) (R, error) {
	var none R
	res, err := ch.call(ctx, req, token)
	if err != nil {
		return none, err
	}
	r, ok := res.(R)
	if !ok {
		return none, fmt.Errorf("the server answers %T with %T", req, res)
	}
	return r, nil
}

// namespaces returns the URIs of the server's namespaces.
func (s *session) namespaces() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.uris
}

func valueOf(i uint32) *ua.ReadValueID {
	return &ua.ReadValueID{NodeID: ua.NewNumericNodeID(0, i), AttributeID: ua.AttributeIDValue, DataEncoding: &ua.QualifiedName{}}
}

// learnLimits asks for the limits and the namespaces of the server.
func (s *session) learnLimits(ctx context.Context) error {
	var nodes []*ua.ReadValueID
	for _, i := range []uint32{
		id.Server_ServerCapabilities_OperationLimits_MaxNodesPerRead,
		id.Server_ServerCapabilities_OperationLimits_MaxNodesPerBrowse,
		id.Server_ServerCapabilities_OperationLimits_MaxMonitoredItemsPerCall,
	} {
		nodes = append(nodes, valueOf(i))
	}
	values, err := s.readAll(ctx, nodes)
	if errors.Is(err, statusError{ua.StatusBadTooManyOperations}) { // not even three
		s.limits.read = 1
		values, err = s.readAll(ctx, nodes)
	}
	if err != nil {
		return fmt.Errorf("cannot ask for the limits of the server: %w", err)
	}
	for i, to := range []*uint32{&s.limits.read, &s.limits.browse, &s.limits.monitor} {
		if n, ok := valueAs[uint32](values[i]); ok {
			*to = n
		}
	}
	return s.learnNamespaces(ctx)
}

func (s *session) learnNamespaces(ctx context.Context) error {
	res, err := ask[*ua.ReadResponse](ctx, s.ch, s.token, namespacesRequest())
	if err != nil {
		return fmt.Errorf("cannot ask for the namespaces: %w", err)
	}
	s.setNamespaces(res.Results)
	return nil
}

func namespacesRequest() *ua.ReadRequest {
	return &ua.ReadRequest{TimestampsToReturn: ua.TimestampsToReturnNeither, NodesToRead: []*ua.ReadValueID{valueOf(id.Server_NamespaceArray)}}
}

// setNamespaces takes what was read of them.
func (s *session) setNamespaces(values []*ua.DataValue) {
	if len(values) != 1 {
		return
	}
	uris, _ := valueAs[[]string](values[0])
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uris = uris
}

// readAll reads in as many requests as the limits want. Every node has an answer.
func (s *session) readAll(ctx context.Context, nodes []*ua.ReadValueID) ([]*ua.DataValue, error) {
	var requests []ua.Request
	for part := range chunks(nodes, s.limits.read, readNodes) {
		requests = append(requests, &ua.ReadRequest{TimestampsToReturn: ua.TimestampsToReturnBoth, NodesToRead: part})
	}
	answers, err := s.askAll(ctx, requests)
	if err != nil {
		return nil, err
	}
	var all []*ua.DataValue
	for i, a := range answers {
		res, ok := a.(*ua.ReadResponse)
		if part := requests[i].(*ua.ReadRequest).NodesToRead; !ok || len(res.Results) != len(part) {
			return nil, fmt.Errorf("the server answers a read of %d nodes with %T", len(part), a)
		}
		all = append(all, res.Results...)
	}
	return all, nil
}

// readNodes are read with one request at most, and inFlight requests sent before the
// first is answered: a server that answers one after the other need not wait for us.
const (
	readNodes = 500
	inFlight  = 4
)

// askAll sends requests and returns their answers, in order.
func (s *session) askAll(ctx context.Context, requests []ua.Request) ([]ua.Response, error) {
	answers := make([]ua.Response, len(requests))
	to := make(chan answer, inFlight)
	at := map[uint32]int{}
	timer := time.NewTimer(s.ch.timeout)
	defer timer.Stop()
	for next, left := 0, len(requests); left > 0; {
		for next < len(requests) && len(at) < inFlight {
			id, err := s.ch.send(requests[next], s.token, s.ch.timeout, to)
			if err != nil {
				return nil, err
			}
			at[id] = next
			next++
		}
		select {
		case a := <-to:
			if a.err != nil {
				return nil, a.err
			}
			answers[at[a.id]] = a.res
			delete(at, a.id)
			left--
			timer.Reset(s.ch.timeout)
		case <-timer.C:
			return nil, errNoAnswer
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return answers, nil
}

// chunks yields a list in parts that a limit allows.
func chunks[T any](list []T, limit uint32, most int) func(yield func([]T) bool) {
	if limit > 0 {
		most = min(most, int(limit))
	}
	return func(yield func([]T) bool) {
		for len(list) > 0 {
			part := list[:min(most, len(list))]
			list = list[len(part):]
			if !yield(part) {
				return
			}
		}
	}
}
