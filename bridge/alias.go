package bridge

// maxAliases bounds what is remembered, whatever the upstream allows.
const maxAliases = 1024

// aliases are the topic aliases of one connection (MQTT 5 §3.3.2.3.4), given when a
// message is written: the buffer has full topics only. The first topics get them,
// for as long as the connection lasts: to take one away costs as much as it saves.
type aliases struct {
	most   int // Topic Alias Maximum of the upstream
	topics map[string]uint16
}

// find returns the alias that a topic has, or would have, 0 if none.
func (a *aliases) find(topic string) (alias uint16, known bool) {
	if alias, known = a.topics[topic]; known {
		return alias, true
	}
	if len(a.topics) < min(a.most, maxAliases) && len(topic) > 3 { // an alias takes 3 bytes
		return uint16(len(a.topics) + 1), false
	}
	return 0, false
}

// use notes that a message is written, so that the upstream knows its alias.
func (a *aliases) use(p *publish) {
	if p.alias == 0 || p.known {
		return
	}
	if a.topics == nil {
		a.topics = make(map[string]uint16)
	}
	a.topics[p.d.Topic] = p.alias
}
