package opcua

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/gopcua/opcua/id"
	"github.com/gopcua/opcua/ua"
)

// How many nodes are browsed with one request, and how many references a server may
// answer for one of them at once.
const (
	browseNodes = 200
	browseRefs  = 1000
)

// MaxBrowsed bounds how many nodes a browse returns.
const MaxBrowsed = 500_000

// A Node is one of a server.
type Node struct {
	ID     string // with the URI of its namespace
	Path   string // browse names from where the browse began, with slashes
	Name   string // browse name
	Title  string // display name
	Class  string // "Object", "Variable", "Method", …
	Parent string // id
	Depth  int

	// Of variables.
	Type     string // "Double", …; "" if it is not known
	Array    bool
	Writable bool
	Readable bool

	id *ua.NodeID
}

// browseOne returns the references of one node.
func (s *session) browseOne(ctx context.Context, d *ua.BrowseDescription) ([]*ua.ReferenceDescription, error) {
	all, err := s.browse(ctx, []*ua.BrowseDescription{d})
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// browse returns the references of nodes, in as many requests as it takes. A node that
// the server refuses to browse has none.
func (s *session) browse(ctx context.Context, nodes []*ua.BrowseDescription) ([][]*ua.ReferenceDescription, error) {
	var requests []ua.Request
	for part := range chunks(nodes, s.limits.browse, browseNodes) {
		requests = append(requests, &ua.BrowseRequest{
			View: &ua.ViewDescription{ViewID: ua.NewTwoByteNodeID(0)}, RequestedMaxReferencesPerNode: browseRefs, NodesToBrowse: part,
		})
	}
	answers, err := s.askAll(ctx, requests)
	if err != nil {
		return nil, err
	}
	var all [][]*ua.ReferenceDescription
	for i, a := range answers {
		res, ok := a.(*ua.BrowseResponse)
		if part := requests[i].(*ua.BrowseRequest).NodesToBrowse; !ok || len(res.Results) != len(part) {
			return nil, fmt.Errorf("the server answers a browse of %d nodes with %T", len(part), a)
		}
		at := len(all)
		var points [][]byte
		var of []int
		for i, r := range res.Results {
			all = append(all, r.References)
			if len(r.ContinuationPoint) > 0 {
				points, of = append(points, r.ContinuationPoint), append(of, at+i)
			}
		}
		for len(points) > 0 {
			next, err := ask[*ua.BrowseNextResponse](ctx, s.ch, s.token, &ua.BrowseNextRequest{ContinuationPoints: points})
			if err != nil {
				return nil, err
			}
			if len(next.Results) != len(points) {
				return nil, fmt.Errorf("the server answers %d of %d browses", len(next.Results), len(points))
			}
			var morePoints [][]byte
			var moreOf []int
			for i, r := range next.Results {
				all[of[i]] = append(all[of[i]], r.References...)
				if len(all[of[i]]) > MaxBrowsed {
					return nil, fmt.Errorf("a node has more than %d references", MaxBrowsed)
				}
				if len(r.ContinuationPoint) > 0 && len(r.References) > 0 {
					morePoints, moreOf = append(morePoints, r.ContinuationPoint), append(moreOf, of[i])
				}
			}
			points, of = morePoints, moreOf
		}
	}
	return all, nil
}

// tree returns the nodes below one, level by level. Depth 1 is its children; 0 is all.
// Each node comes once, where it is nearest; some come not at all.
func (s *session) tree(ctx context.Context, root *ua.NodeID, depth int, without []*ua.NodeID) ([]Node, error) {
	seen := map[string]bool{root.String(): true}
	for _, id := range without {
		seen[id.String()] = true
	}
	level := []Node{{id: root, ID: portable(root, s.namespaces())}}
	var all []Node
	for d := 1; len(level) > 0 && (depth == 0 || d <= depth); d++ {
		var ask []*ua.BrowseDescription
		for _, n := range level {
			ask = append(ask, &ua.BrowseDescription{
				NodeID: n.id, BrowseDirection: ua.BrowseDirectionForward, ReferenceTypeID: ua.NewNumericNodeID(0, id.HierarchicalReferences), IncludeSubtypes: true,
				NodeClassMask: uint32(ua.NodeClassObject | ua.NodeClassVariable | ua.NodeClassMethod), ResultMask: uint32(ua.BrowseResultMaskAll),
			})
		}
		answers, err := s.browse(ctx, ask)
		if err != nil {
			return nil, err
		}
		var next []Node
		for i, refs := range answers {
			for _, r := range refs {
				if r.NodeID == nil || r.NodeID.NodeID == nil || r.NodeID.ServerIndex != 0 {
					continue
				}
				nodeID := ua.NewNodeIDFromExpandedNodeID(r.NodeID)
				if key := nodeID.String(); !seen[key] {
					seen[key] = true
					next = append(next, s.node(r, nodeID, &level[i], d))
				}
			}
		}
		if all = append(all, next...); len(all) > MaxBrowsed {
			return nil, fmt.Errorf("there are more than %d nodes; browse a part of them with --node, or less deep with --depth", MaxBrowsed)
		}
		level = next
	}
	return all, s.describe(ctx, all)
}

func (s *session) node(r *ua.ReferenceDescription, nodeID *ua.NodeID, parent *Node, depth int) Node {
	n := Node{id: nodeID, ID: portable(nodeID, s.namespaces()), Parent: parent.ID, Depth: depth, Class: strings.TrimPrefix(r.NodeClass.String(), "NodeClass")}
	if r.BrowseName != nil {
		n.Name = r.BrowseName.Name
	}
	if r.DisplayName != nil {
		n.Title = r.DisplayName.Text
	}
	n.Path = n.Name
	if parent.Path != "" {
		n.Path = parent.Path + "/" + n.Name
	}
	return n
}

// describe asks for the types of the variables and what may be done with them.
func (s *session) describe(ctx context.Context, all []Node) error {
	var ask []*ua.ReadValueID
	var of []int
	attributes := []ua.AttributeID{ua.AttributeIDDataType, ua.AttributeIDValueRank, ua.AttributeIDUserAccessLevel}
	for i := range all {
		if all[i].Class != "Variable" {
			continue
		}
		of = append(of, i)
		for _, a := range attributes {
			ask = append(ask, &ua.ReadValueID{NodeID: all[i].id, AttributeID: a, DataEncoding: &ua.QualifiedName{}})
		}
	}
	values, err := s.readAll(ctx, ask)
	if err != nil {
		return err
	}
	known := map[string]string{}
	for k, i := range of {
		n := &all[i]
		v := values[k*len(attributes) : (k+1)*len(attributes)]
		if t, ok := valueAs[*ua.NodeID](v[0]); ok && t != nil {
			key := t.String()
			name, asked := known[key]
			if !asked {
				if b := s.builtIn(ctx, t); b != ua.TypeIDNull {
					name = typeName(b)
				}
				known[key] = name
			}
			n.Type = name
		}
		rank, _ := valueAs[int32](v[1])
		n.Array = rank >= 1
		access, ok := valueAs[uint8](v[2])
		n.Readable = !ok || access&uint8(ua.AccessLevelTypeCurrentRead) != 0
		n.Writable = ok && access&uint8(ua.AccessLevelTypeCurrentWrite) != 0
	}
	return nil
}

func valueAs[T any](dv *ua.DataValue) (v T, ok bool) {
	if dv == nil || dv.Value == nil || isBad(dv.Status) {
		return v, false
	}
	v, ok = dv.Value.Value().(T)
	return v, ok
}

// errNoNode is of a node to browse that is not there.
var errNoNode = errors.New("the server has no such node")
