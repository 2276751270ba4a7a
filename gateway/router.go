package gateway

import (
	"strings"

	"github.com/fieldferry/fieldferry/bridge"
	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker"
)

// router says which bridges carry a publish. A message has one class: the highest
// that any of them gives it. What came down from an upstream goes up to none.
type router []*bridge.Mapper

// commandRouter also has the commands of polled devices wait in their queues. Commands
// is nil where there are none.
type commandRouter struct {
	router
	commands *commands
}

func (r commandRouter) Route(m *localbroker.Message, dst []buffer.Copy) (buffer.Class, []buffer.Copy) {
	if r.commands != nil {
		if c, ok := r.commands.copyFor(m); ok {
			// A message has one class, so the bridges give it that of commands, too.
			_, dst = r.router.route(m, dst, buffer.Command)
			return buffer.Command, append(dst, c)
		}
	}
	return r.router.Route(m, dst)
}

// fromUpstream begins the client id of what came down, and the bridge's name ends it.
// No client can have one with a null character in it (MQTT 5 §1.5.4).
const fromUpstream = "\x00upstream "

// Route implements localbroker.Router.
func (r router) Route(m *localbroker.Message, dst []buffer.Copy) (buffer.Class, []buffer.Copy) {
	return r.route(m, dst, buffer.NumClasses)
}

// route is Route with a class that is given, unless it is NumClasses.
func (r router) route(m *localbroker.Message, dst []buffer.Copy, given buffer.Class) (buffer.Class, []buffer.Copy) {
	if strings.HasPrefix(m.ClientID, fromUpstream) {
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
	if given < buffer.NumClasses {
		class = given
	}
	for _, route := range routes {
		dst = append(dst, route.Copy(class))
	}
	return class, dst
}
