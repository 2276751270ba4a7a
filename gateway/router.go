package gateway

import (
	"github.com/fieldferry/fieldferry/bridge"
	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker"
)

// router says which bridges carry a publish. A message has one class: the highest
// that any of them gives it. What came down from an upstream goes up to none.
type router []*bridge.Mapper

// fromUpstream is the client id of what came down. No client can have one with a
// null character in it (MQTT 5 §1.5.4).
const fromUpstream = "\x00upstream"

func (r router) Route(m *localbroker.Message, dst []buffer.Copy) (buffer.Class, []buffer.Copy) {
	if m.ClientID == fromUpstream {
		return buffer.Local, dst
	}
	var found [4]bridge.Route
	routes := found[:0]
	class := buffer.Local
	for _, mapper := range r {
		if route, ok := mapper.Route(m.Topic, m.Retain, m.Props); ok {
			routes = append(routes, route)
			class = min(class, route.Class)
		}
	}
	for _, route := range routes {
		dst = append(dst, route.Copy(class))
	}
	return class, dst
}
