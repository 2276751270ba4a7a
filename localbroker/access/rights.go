package access

import "github.com/fieldferry/fieldferry/localbroker/topic"

// Rights are what one client may do. They never change, and none of the methods
// blocks.
//
// The client's own rules are asked first, and the patterns only if those say
// nothing. Among each, a denial wins.
type Rights struct {
	own      *rules // of the user or of anonymous clients; may be nil
	patterns []rule // denials first, with the client's names in them
}

// MayPublish reports whether the client may publish to a topic.
func (r *Rights) MayPublish(name string) bool { return r.may(name, write) }

// MayReceive reports whether the client may get what was published to a topic.
func (r *Rights) MayReceive(name string) bool { return r.may(name, read) }

func (r *Rights) may(name string, want right) bool {
	if r.own != nil {
		if says := r.own.ask(name, want); says != nothing {
			return says == yes
		}
	}
	return ask(r.patterns, name, want) == yes
}

// verdict is what rules say.
type verdict byte

const (
	nothing verdict = iota
	yes
	no
)

// ask goes through rules, denials first.
func ask(list []rule, name string, want right) verdict {
	for i := range list {
		l := &list[i]
		if (l.right == deny || l.right&want != 0) && topic.Match(l.filter, name) {
			if l.right == deny {
				return no
			}
			return yes
		}
	}
	return nothing
}

// fewRules are asked one by one in the time that a search takes, and without
// memory for what it finds.
const fewRules = 4

func (r *rules) ask(name string, want right) verdict {
	if len(r.list) <= fewRules {
		return ask(r.list, name, want)
	}
	says := nothing
	var room [8]right
	found, _ := r.filters.AppendMatches(room[:0], name)
	for _, have := range found {
		switch {
		case have == deny:
			return no
		case have&want != 0:
			says = yes
		}
	}
	return says
}

// MaySubscribe reports whether the client may subscribe with a filter, without
// its share: whether there may be a topic that the filter matches and the client
// may read. What of the filter it may not read is left out at delivery.
func (r *Rights) MaySubscribe(filter string) bool {
	var denied []string
	readable := func(list []rule) bool {
		for _, l := range list {
			if l.right == deny {
				denied = append(denied, l.filter)
				continue
			}
			if l.right&read == 0 {
				continue
			}
			common, ok := overlap(l.filter, filter)
			if ok && !coveredBy(denied, common) {
				return true
			}
		}
		return false
	}
	return r.own != nil && readable(r.own.list) || readable(r.patterns)
}

// Everything is the right to do all that the broker lets anybody do.
type Everything struct{}

// MayPublish is true.
func (Everything) MayPublish(string) bool { return true }

// MaySubscribe is true.
func (Everything) MaySubscribe(string) bool { return true }

// MayReceive is true.
func (Everything) MayReceive(string) bool { return true }
