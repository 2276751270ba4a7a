package opcua

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gopcua/opcua/id"
	"github.com/gopcua/opcua/ua"

	"github.com/fieldferry/fieldferry/adapters"
)

// check says what of a write may not be. Nothing was sent by then.
func (d *device) check(values []adapters.Assignment) ([]*point, error) {
	if len(values) == 0 {
		return nil, errors.New("there is nothing to write")
	}
	var all []*point
	for i, v := range values {
		p, err := d.point(v.Point)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(values[:i], func(o adapters.Assignment) bool { return o.Point == v.Point }) {
			return nil, fmt.Errorf("%s: is to be written twice", v.Point)
		}
		if err := p.allowed(v.Value); err != nil {
			return nil, fmt.Errorf("%s: %w", v.Point, err)
		}
		all = append(all, p)
	}
	return all, nil
}

// pulse is what ends a pulse.
type pulse struct {
	point *point
	typ   variable
	value adapters.Value // raw
	at    time.Time
	tries int // that are left
}

// write writes points in order, calls methods, and reads back. Of what failed nothing
// after it is written; what may have been written is read back all the same.
func (s *session) write(ctx context.Context, points []*point, values []adapters.Assignment) (samples []adapters.Sample, pulses []pulse, err error) {
	var written []int // in values
	var called []adapters.Sample
	for i, p := range points {
		if p.Call != "" {
			var sample adapters.Sample
			if sample, err = s.callPoint(ctx, p, values[i].Value); err == nil || unknown(err) {
				called = append(called, sample)
			}
		} else {
			var after *pulse
			if after, err = s.writePoint(ctx, p, values[i].Value); err == nil || unknown(err) {
				written = append(written, i)
			}
			if after != nil {
				pulses = append(pulses, *after)
			}
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", p.Point.Point.Name, err)
			break
		}
	}
	if len(written) > 0 {
		var back []*point
		for _, i := range written {
			back = append(back, points[i])
		}
		var rerr error
		samples, rerr = s.readNow(ctx, back)
		if samples == nil {
			samples = make([]adapters.Sample, len(back))
			for i, p := range back {
				samples[i] = adapters.Sample{Point: p.Point.Point, Quality: adapters.Bad, Reason: reasonOf(rerr)}
			}
		}
		for i := range samples {
			if smp := &samples[i]; smp.Quality == adapters.Bad { // it was written, and what came of it is not known
				smp.Quality, smp.Value = adapters.Uncertain, values[written[i]].Value
			}
		}
		if err == nil {
			err = rerr
		}
	}
	return append(samples, called...), pulses, err
}

// unknown reports whether an error leaves it open what the server has done.
func unknown(err error) bool {
	var st statusError
	var local *refusal
	return !errors.As(err, &st) && !errors.As(err, &local)
}

// A refusal is a write that was not sent.
type refusal struct{ err error }

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// writePoint writes a variable, and returns what ends its pulse, if it has one.
func (s *session) writePoint(ctx context.Context, p *point, v adapters.Value) (*pulse, error) {
	node, ok := p.node.at(s.namespaces())
	if !ok {
		return nil, &refusal{fmt.Errorf("the server has no namespace %q", p.node.uri)}
	}
	typ, err := s.variable(ctx, node)
	if err != nil {
		return nil, &refusal{err}
	}
	raw, err := p.conv.raw(typ.id, v)
	if err != nil {
		return nil, &refusal{err}
	}
	value, err := encode(typ.id, typ.array, raw)
	if err != nil {
		return nil, &refusal{err}
	}
	if err := s.put(ctx, node, value); err != nil {
		return nil, err
	}
	if p.Write == nil || p.Write.Pulse <= 0 {
		return nil, nil
	}
	return &pulse{p, typ, opposite(raw), time.Now().Add(p.Write.Pulse), pulseTries}, nil
}

// opposite is what ends a pulse: off for on, 0 for a number, or on for off.
func opposite(v adapters.Value) adapters.Value {
	if v.Kind() == adapters.KindList {
		all := make([]adapters.Value, len(v.List()))
		for i, e := range v.List() {
			all[i] = opposite(e)
		}
		return adapters.List(all)
	}
	f, ok := v.Float64()
	switch {
	case !ok:
		return adapters.String("")
	case f == 0:
		return adapters.Int(1)
	}
	return adapters.Int(0)
}

// endPulse writes what ends a pulse.
func (s *session) endPulse(ctx context.Context, p pulse) error {
	node, ok := p.point.node.at(s.namespaces())
	if !ok {
		return fmt.Errorf("the server has no namespace %q", p.point.node.uri)
	}
	value, err := encode(p.typ.id, p.typ.array, p.value)
	if err != nil {
		return err
	}
	return s.put(ctx, node, value)
}

// put writes a value, without status and times: many servers take those from no one.
func (s *session) put(ctx context.Context, node *ua.NodeID, v *ua.Variant) error {
	res, err := ask[*ua.WriteResponse](ctx, s.ch, s.token, &ua.WriteRequest{NodesToWrite: []*ua.WriteValue{{
		NodeID: node, AttributeID: ua.AttributeIDValue, Value: &ua.DataValue{EncodingMask: ua.DataValueValue, Value: v},
	}}})
	if err != nil {
		return err
	}
	if len(res.Results) != 1 {
		return fmt.Errorf("the server answers a write with %d results", len(res.Results))
	}
	if st := res.Results[0]; isBad(st) {
		return fmt.Errorf("the server refuses: %w%s", statusError{st}, writeHint(st))
	}
	return nil
}

func writeHint(st ua.StatusCode) string {
	switch st & codeMask {
	case ua.StatusBadNotWritable & codeMask, ua.StatusBadUserAccessDenied & codeMask, ua.StatusBadWriteNotSupported & codeMask:
		return "; see whether it lets this user write there"
	case ua.StatusBadTypeMismatch & codeMask:
		return "; it wants another type"
	}
	return ""
}

// A variable is the type that something takes.
type variable struct {
	id    ua.TypeID
	array bool
	name  string // of an argument
}

// variable returns the type of a variable: that of its value, or the declared one
// if it has none.
func (s *session) variable(ctx context.Context, node *ua.NodeID) (variable, error) {
	key := node.String()
	s.mu.Lock()
	v, ok := s.types[key]
	s.mu.Unlock()
	if ok {
		return v, nil
	}
	var nodes []*ua.ReadValueID
	for _, a := range []ua.AttributeID{ua.AttributeIDValue, ua.AttributeIDDataType, ua.AttributeIDValueRank} {
		nodes = append(nodes, &ua.ReadValueID{NodeID: node, AttributeID: a, DataEncoding: &ua.QualifiedName{}})
	}
	values, err := s.readAll(ctx, nodes)
	if err != nil {
		return v, err
	}
	if st := values[0].Status; st&codeMask == ua.StatusBadNodeIDUnknown || st&codeMask == ua.StatusBadNodeIDInvalid {
		return v, fmt.Errorf("the server has no such node: %w", statusError{st})
	}
	if cur := values[0].Value; cur != nil && cur.Type() != ua.TypeIDNull {
		v = variable{id: cur.Type(), array: cur.Has(ua.VariantArrayValues)}
	} else {
		if d := values[1].Value; d != nil {
			if t, ok := d.Value().(*ua.NodeID); ok {
				v.id = s.builtIn(ctx, t)
			}
		}
		if r := values[2].Value; r != nil {
			rank, _ := r.Value().(int32)
			v.array = rank >= 0
		}
	}
	if v.id == ua.TypeIDNull {
		return v, errors.New("the server does not say its type")
	}
	s.mu.Lock()
	s.types[key] = v
	s.mu.Unlock()
	return v, nil
}

// builtIn returns the built-in type that a data type is derived from.
func (s *session) builtIn(ctx context.Context, t *ua.NodeID) ua.TypeID {
	for range maxDepth {
		if t.Namespace() == 0 {
			switch n := t.IntID(); {
			case n == id.Enumeration:
				return ua.TypeIDInt32
			case n == id.BaseDataType:
				return ua.TypeIDVariant
			case n == id.UtcTime:
				return ua.TypeIDDateTime
			case n >= 1 && n <= 25 && n != uint32(ua.TypeIDExtensionObject):
				return ua.TypeID(n)
			}
		}
		refs, err := s.browseOne(ctx, &ua.BrowseDescription{
			NodeID: t, BrowseDirection: ua.BrowseDirectionInverse, ReferenceTypeID: ua.NewNumericNodeID(0, id.HasSubtype), ResultMask: uint32(ua.BrowseResultMaskNone),
		})
		if err != nil || len(refs) == 0 {
			return ua.TypeIDNull
		}
		t = ua.NewNodeIDFromExpandedNodeID(refs[0].NodeID)
	}
	return ua.TypeIDNull
}

// arguments returns what a method takes. OPC UA Part 3 §5.7.
func (s *session) arguments(ctx context.Context, method *ua.NodeID) ([]variable, error) {
	key := method.String()
	s.mu.Lock()
	args, ok := s.args[key]
	s.mu.Unlock()
	if ok {
		return args, nil
	}
	refs, err := s.browseOne(ctx, &ua.BrowseDescription{
		NodeID: method, BrowseDirection: ua.BrowseDirectionForward, ReferenceTypeID: ua.NewNumericNodeID(0, id.HasProperty), IncludeSubtypes: true,
		ResultMask: uint32(ua.BrowseResultMaskBrowseName),
	})
	if err != nil {
		return nil, err
	}
	for _, r := range refs {
		if r.BrowseName == nil || r.BrowseName.Name != "InputArguments" {
			continue
		}
		values, err := s.readAll(ctx, []*ua.ReadValueID{{NodeID: ua.NewNodeIDFromExpandedNodeID(r.NodeID), AttributeID: ua.AttributeIDValue, DataEncoding: &ua.QualifiedName{}}})
		if err != nil {
			return nil, err
		}
		if values[0].Value == nil {
			break
		}
		list, _ := values[0].Value.Value().([]*ua.ExtensionObject)
		for _, o := range list {
			a, ok := o.Value.(*ua.Argument)
			if !ok {
				return nil, errors.New("the server does not say what the method takes")
			}
			v := variable{name: a.Name, array: a.ValueRank >= 0}
			if a.DataType != nil {
				v.id = s.builtIn(ctx, a.DataType)
			}
			args = append(args, v)
		}
	}
	s.mu.Lock()
	s.args[key] = args
	s.mu.Unlock()
	return args, nil
}

// callPoint calls a method. Its arguments are the value: none for true, the value
// itself for one, a list for several. What it returns is the sample's value.
func (s *session) callPoint(ctx context.Context, p *point, v adapters.Value) (adapters.Sample, error) {
	sample := adapters.Sample{Point: p.Point.Point, Value: v, Quality: adapters.Uncertain, Reason: adapters.ReasonTimeout}
	method, ok := p.node.at(s.namespaces())
	object, there := p.object.at(s.namespaces())
	if !ok || !there {
		return sample, &refusal{fmt.Errorf("the server lacks the namespace of %s or %s", p.node.text, p.object.text)}
	}
	args, err := s.arguments(ctx, method)
	if err != nil {
		return sample, &refusal{err}
	}
	given, err := argumentsOf(args, v)
	if err != nil {
		return sample, &refusal{err}
	}
	res, err := ask[*ua.CallResponse](ctx, s.ch, s.token, &ua.CallRequest{MethodsToCall: []*ua.CallMethodRequest{{ObjectID: object, MethodID: method, InputArguments: given}}})
	if err != nil {
		sample.Reason = reasonOf(err)
		return sample, err
	}
	if len(res.Results) != 1 {
		return sample, fmt.Errorf("the server answers a call with %d results", len(res.Results))
	}
	r := res.Results[0]
	if isBad(r.StatusCode) {
		for i, st := range r.InputArgumentResults {
			if isBad(st) && i < len(args) {
				return sample, fmt.Errorf("the server refuses the argument %s: %w", args[i].name, statusError{st})
			}
		}
		return sample, fmt.Errorf("the server refuses: %w", statusError{r.StatusCode})
	}
	sample.Value, sample.Quality, sample.Reason = returned(r.OutputArguments)
	return sample, nil
}

// argumentsOf makes the arguments of a method of a value.
func argumentsOf(args []variable, v adapters.Value) ([]*ua.Variant, error) {
	var list []adapters.Value
	switch {
	case len(args) == 0:
		if v.Kind() == adapters.KindNone || v.Kind() == adapters.KindBool && v.Bool() || v.Kind() == adapters.KindList && len(v.List()) == 0 {
			return []*ua.Variant{}, nil
		}
		return nil, errors.New("is a method without arguments; write true")
	case len(args) == 1 && (args[0].array || v.Kind() != adapters.KindList):
		list = []adapters.Value{v}
	case v.Kind() == adapters.KindList:
		list = v.List()
	}
	if len(list) != len(args) {
		return nil, fmt.Errorf("is a method with %d arguments; write a list of them", len(args))
	}
	given := make([]*ua.Variant, len(args))
	for i, a := range args {
		var err error
		if given[i], err = encode(a.id, a.array, list[i]); err != nil {
			return nil, fmt.Errorf("the argument %s %w", a.name, err)
		}
	}
	return given, nil
}

// returned is what a method has returned: true for nothing, a list for several values.
func returned(out []*ua.Variant) (adapters.Value, adapters.Quality, string) {
	plain := newConverter(&Point{})
	var all []adapters.Value
	for _, o := range out {
		v, why := plain.value(o.Value())
		if why != "" {
			return adapters.Bool(true), adapters.Uncertain, why
		}
		all = append(all, v)
	}
	switch len(all) {
	case 0:
		return adapters.Bool(true), adapters.Good, ""
	case 1:
		return all[0], adapters.Good, ""
	}
	return adapters.List(all), adapters.Good, ""
}

// readNow reads points at once. What is not good is an error too.
func (s *session) readNow(ctx context.Context, points []*point) ([]adapters.Sample, error) {
	samples := make([]adapters.Sample, len(points))
	if _, err := s.readInto(ctx, points, samples); err != nil {
		return nil, err
	}
	for i := range samples {
		if smp := &samples[i]; smp.Quality == adapters.Bad {
			return samples, fmt.Errorf("%s: %s", smp.Point.Name, smp.Reason)
		}
	}
	return samples, nil
}

// readInto reads points into samples. It returns the newest time of theirs, or of
// the answer if none has one.
func (s *session) readInto(ctx context.Context, points []*point, samples []adapters.Sample) (read reading, err error) {
	var nodes []*ua.ReadValueID
	var of []int
	for i, p := range points {
		samples[i] = adapters.Sample{Point: p.Point.Point, Quality: adapters.Bad, Reason: reasonNamespace}
		node, ok := p.node.at(s.namespaces())
		if !ok {
			read.down++
			continue
		}
		nodes = append(nodes, &ua.ReadValueID{NodeID: node, AttributeID: ua.AttributeIDValue, DataEncoding: &ua.QualifiedName{}})
		of = append(of, i)
	}
	values, err := s.readAll(ctx, nodes)
	if err != nil {
		return read, err
	}
	now := time.Now()
	for i, dv := range values {
		t := points[of[i]].conv.take(dv, now)
		smp := &samples[of[i]]
		smp.Value, smp.Quality, smp.Reason = t.value, t.quality, t.reason
		if t.down {
			read.down++
		}
		if t.time.After(read.newest) {
			read.newest = t.time
		}
	}
	return read, nil
}

// reading is how a read went.
type reading struct {
	newest time.Time
	down   int // points that the server has no value of
}

// reasonNamespace is why a point has no value whose namespace the server lacks.
const reasonNamespace = "no-such-namespace"

const pulseTries = 10

// reasonOf returns why there was no answer.
func reasonOf(err error) string {
	var st statusError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &st):
		return statusName(st.status)
	case errors.Is(err, errNoAnswer), errors.Is(err, context.DeadlineExceeded):
		return adapters.ReasonTimeout
	case errors.Is(err, adapters.ErrNotConnected):
		return adapters.ReasonNotConnected
	}
	return adapters.ReasonConnection
}
