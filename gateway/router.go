package gateway

import (
	"github.com/fieldferry/fieldferry/bridge"
	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker"
)

// router says which bridges carry a publish. A message has one class: the highest
// that any of them gives it.
type router []*bridge.Mapper

func (r router) Route(m *localbroker.Message, dst []buffer.Copy) (buffer.Class, []buffer.Copy) {
	var found [4]bridge.Route
	routes := found[:0]
	class := buffer.Local
	for _, mapper := range r {
		if route, ok := mapper.Route(m.Topic, m.Retain); ok {
			routes = append(routes, route)
			class = min(class, route.Class)
		}
	}
	for _, route := range routes {
		dst = append(dst, route.Copy(class))
	}
	return class, dst
}
