package opcua

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/gopcua/opcua/ua"
)

// A nodeRef is a node id as it was written. One with the URI of a namespace has an
// index only at a server. OPC UA Part 6 §5.3.1.10.
type nodeRef struct {
	text string
	uri  string // empty: the namespace is ns
	ns   uint16
	id   func(ns uint16) *ua.NodeID
}

// parseNode reads a node id such as "ns=2;s=Pump.Speed" or "nsu=urn:acme;i=7".
func parseNode(s string) (nodeRef, error) {
	r := nodeRef{text: s}
	wrong := func() (nodeRef, error) {
		return nodeRef{}, fmt.Errorf("%q is no node id; write one such as ns=2;s=Pump.Speed", s)
	}
	rest := s
	if strings.HasPrefix(s, "ns=") || strings.HasPrefix(s, "nsu=") {
		space, after, ok := strings.Cut(s, ";")
		if !ok {
			return wrong()
		}
		rest = after
		if uri, ok := strings.CutPrefix(space, "nsu="); ok {
			r.uri = unescape.Replace(uri)
			if r.uri == "" {
				return wrong()
			}
		} else {
			n, err := strconv.ParseUint(space[len("ns="):], 10, 16)
			if err != nil {
				return wrong()
			}
			r.ns = uint16(n)
		}
	}
	if len(rest) < 3 || rest[1] != '=' {
		return wrong()
	}
	id := rest[2:]
	switch rest[0] {
	case 'i':
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return wrong()
		}
		r.id = func(ns uint16) *ua.NodeID { return ua.NewNumericNodeID(ns, uint32(n)) }
	case 's':
		r.id = func(ns uint16) *ua.NodeID { return ua.NewStringNodeID(ns, id) }
	case 'g':
		if len(id) != 36 || ua.NewGUID(id) == nil {
			return wrong()
		}
		r.id = func(ns uint16) *ua.NodeID { return ua.NewGUIDNodeID(ns, id) }
	case 'b':
		b, err := base64.StdEncoding.DecodeString(id)
		if err != nil || strings.ContainsAny(id, "\r\n") { // which it passes over
			return wrong()
		}
		r.id = func(ns uint16) *ua.NodeID { return ua.NewByteStringNodeID(ns, b) }
	default:
		return wrong()
	}
	return r, nil
}

// A URI in a node id has its semicolons and percent signs escaped.
var (
	unescape = strings.NewReplacer("%3B", ";", "%3b", ";", "%25", "%")
	escape   = strings.NewReplacer(";", "%3B", "%", "%25")
)

// at returns the id at a server with these namespaces; false if it lacks the one.
func (r nodeRef) at(namespaces []string) (*ua.NodeID, bool) {
	ns := r.ns
	if r.uri != "" {
		i := slices.Index(namespaces, r.uri)
		if i < 0 || i > 0xffff {
			return nil, false
		}
		ns = uint16(i)
	}
	return r.id(ns), true
}

// portable writes a node id with the URI of its namespace, which stays the same
// when a server is set up anew and its index may not.
func portable(id *ua.NodeID, namespaces []string) string {
	ns := int(id.Namespace())
	if ns == 0 || ns >= len(namespaces) || namespaces[ns] == "" {
		return id.String()
	}
	_, rest, _ := strings.Cut(id.String(), ";")
	return "nsu=" + escape.Replace(namespaces[ns]) + ";" + rest
}
